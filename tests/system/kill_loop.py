#!/usr/bin/env python3
"""SIGKILL at random moments under load, through HTTP to Parquet: nothing lost, doubled or half.

Also during recovery (shortly after a start) and during compaction (small triggers). With keys: the bench's retries run across
the restarts and every row is there exactly once.
"""

from lib import *

SETTINGS = {
    "wal.segment_size": "4MB", "wal.max_size": "2GB", "wal.reserve": "16MB", "ingest.max_record_size": "16MB",
    "compaction.trigger_size": "8MB", "compaction.max_delay": "300ms",
}


def restart(server, rng, recovery_kills):
    """Starts again; now and then it is killed again while it recovers."""
    while True:
        server.start()
        if rng.random() > 0.25:
            return server.wait_ready()
        time.sleep(rng.random() * 0.15)
        recovery_kills.append(1)
        server.kill()


def rounds(r, args, engine):
    name = f"kill_loop/{engine}"
    rng = random.Random(f"{args.seed}-{engine}")
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.io": engine})
    recovery_kills, acked = [], 0
    for _ in range(args.rounds):
        restart(server, rng, recovery_kills)
        size = rng.choice([1, 10, 200, 1000])
        known = os.path.getsize(ledger) if os.path.exists(ledger) else 0
        b = Bench(server.url, ledger, duration="1500ms", connections=8, rows=size, format=rng.choice(["columnar", "row", "batch"]), timeout="5s")
        # The bench first reads what the ledger holds; its first line says that the load begins.
        wait_for("the load", 60, lambda known=known: os.path.exists(ledger) and os.path.getsize(ledger) > known)
        time.sleep(0.1 + rng.random() * 1.0)
        server.kill()
        b.interrupt()
        acked += b.result(30)["acked"]
    server.start().wait_ready()
    shipped = server.flush(120)
    status = server.get_json("/api/v1/status")[1]
    code = server.stop()
    extra = f"{args.rounds} kills under load, {len(recovery_kills)} during recovery; through_seq {shipped['through_seq']}, quarantine {status['quarantine']['records']}, exit {code}; seed {args.seed}"
    judge(r, name, ledger, lake, extra)
    if code != 0 or status["quarantine"]["records"]:
        r.fail(name + "/end", extra)


def with_keys(r, args, engine):
    name = f"kill_loop/keys/{engine}"
    rng = random.Random(f"{args.seed}-keys-{engine}")
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.io": engine}, port=free_port())
    server.start().wait_ready()
    kills = max(3, args.rounds)
    b = Bench(server.url, ledger, duration=f"{round(kills * 1.3) + 2}s", connections=8, rows=50, keys=True, retry_for="60s", timeout="5s")
    done = 0
    while done < kills and b.running():
        time.sleep(0.3 + rng.random() * 0.8)
        server.kill()
        time.sleep(rng.random() * 0.2)
        server.start().wait_ready()
        done += 1
    out = b.result(300)
    server.flush(120)
    server.stop()
    judge(r, name, ledger, lake, f"{done} kills; {out['retries']} retries, {out['replayed']} answered from the remembered key; seed {args.seed}")
    r.check(
        out["unanswered"] == 0 and out["acked"] == out["requests"] and out["retries"] > 0, name + "/answered",
        f"{out['requests']} requests, {out['acked']} acked, {out['refused']} refused, {out['unanswered']} unanswered",
    )


def main():
    args = parser(__doc__, rounds=20, only="").parse_args()
    r = Results()
    for engine in ("pwrite", "mmap"):
        for name, f in ((f"kill_loop/{engine}", rounds), (f"kill_loop/keys/{engine}", with_keys)):
            if args.only in name:
                case(r, name, f, r, args, engine)
    r.end()


if __name__ == "__main__":
    main()

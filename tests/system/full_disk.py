#!/usr/bin/env python3
"""A full disk under load: 503 with Retry-After, no SIGBUS, nothing acknowledged is lost, writing resumes by itself when room returns.

Small ext4 images hold log and lake together, or only the log, or only the lake. A ballast file leaves little room and is removed later.
A start on the full disk answers 503, drains, and takes writes again when there is room.
"""

from lib import *

SETTINGS = {
    "wal.segment_size": "8MB", "wal.max_size": "1GB", "wal.reserve": "32MB", "ingest.max_record_size": "4MB", "wal.pool": 2,
    "compaction.trigger_size": "16MB", "compaction.max_delay": "1s",
}
FULL = ("disk_full", "backlog")


def refusals(ledger):
    out = {}
    for line in open(ledger):
        x = json.loads(line)
        if x["outcome"] in ("refused", "unanswered"):
            k = f"{x['outcome']}:{x.get('reason')}"
            out[k] = out.get(k, 0) + 1
    return out


def load_until_full(server, ledger, limit=60):
    """Loads until the disk or the log refuses; returns what direct writes and /ready said then."""
    load = Bench(server.url, ledger, duration=f"{limit}s", connections=8, rows=1000, timeout="10s")
    seen = {}
    end = time.monotonic() + limit - 2
    while time.monotonic() < end and sum(seen.values()) < 20:
        if not server.alive():
            load.interrupt()
            load.result(30)
            raise Problem(f"the server ended with {server.process.returncode}: {server.last_words()}")
        status, headers, reason = server.write(probe_body(), timeout=15)
        if status == 503:
            if not headers.get("retry-after", "").isdigit():
                raise Problem(f"503 {reason} without Retry-After: {headers}")
            seen[reason] = seen.get(reason, 0) + 1
        elif status != 204:
            raise Problem(f"a write was answered {status} {reason}")
        time.sleep(0.02)
    ready = server.ready()
    # On for a moment: a full disk under load, not at rest.
    time.sleep(1)
    load.interrupt()
    return load.result(30), seen, ready


def fill(path):
    with open(path, "ab", buffering=0) as f:
        for size in (1 << 16, 4096, 512):
            with contextlib.suppress(OSError):
                while f.write(b"\xff" * size) == size:
                    pass
        with contextlib.suppress(OSError):
            os.fsync(f.fileno())


def start_on_full(server):
    """Starts; None when it serves, else how it ended."""
    server.start()
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if not server.alive():
            return f"exit {server.process.returncode}: {server.last_words(1)[:300]}"
        status, body = server.ready()
        if status in (200, 503) and body.get("reason") != "recovering":
            return None
        time.sleep(0.02)
    return "recovering for 20 s"


def no_reserve(r, args, engine):
    """A backlog, the reserve spent but for what the drain leaves, not a block left where the log is, room where the lake is: it starts,
    says 503, and drains; three times over."""
    name = f"full_disk/no_reserve/{engine}"
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    image = LoopFs(d, "disk", 256)
    wal = image.path + "/wal"
    server = Server(wal, lake, d, {**SETTINGS, "wal.io": engine}).start(compaction__paused="true").wait_ready()
    bench(server.url, ledger, requests=800, rows=1000)
    server.kill()
    os.truncate(wal + "/reserve", 4 << 20)
    gone = [*glob.glob(wal + "/spare-*"), *glob.glob(wal + "/pool/*")]
    for path in gone:
        with contextlib.suppress(FileNotFoundError):
            os.remove(path)
    filler = image.path + "/filler"
    fill(filler)
    free = image.free()
    ended = start_on_full(server)
    if ended is None:
        with contextlib.suppress(Problem):
            wait_for("the drain", 20, lambda: server.metrics()["arc_wal_shipped_sequence"] >= 800)
        w = server.get_json("/api/v1/status")[1]["watermarks"]
        r.check(w["shipped"] >= 800, name + "/starts", f"start with {free} bytes free and no reserve: serving, shipped {w['shipped']} of {w['durable']}, /ready {server.ready()}")
        server.kill()
    else:
        r.fail(name + "/starts", f"a start with {free} bytes free and no reserve should answer 503 and drain; {ended}")
    os.remove(filler)
    server.start().wait_ready()
    server.flush(60)
    judge(r, name, ledger, lake, f"after room returned, exit {server.stop()}")
    image.umount()


def drained(r, args, where):
    """A dead node's log on a disk without a free block; the lake on another disk, or on the same: `arc drain` ships it out of the reserve."""
    name = f"full_disk/drain/{where}"
    d = workdir(args.keep)
    image = LoopFs(d, "disk", 256)
    ledger, wal = d + "/ledger", image.path + "/wal"
    lake = (image.path if where == "together" else d) + "/lake"
    server = Server(wal, lake, d, SETTINGS).start(compaction__paused="true").wait_ready()
    bench(server.url, ledger, requests=800, rows=1000)
    server.kill()
    if where == "log":
        os.truncate(wal + "/reserve", 4 << 20)
    for path in [*glob.glob(wal + "/spare-*"), *glob.glob(wal + "/pool/*")]:
        os.remove(path)
    filler = image.path + "/filler"
    fill(filler)
    free = image.free()
    args = [arc_bin(), "drain", wal, "--json", "--timeout", "60s", "--set", f"storage.local_path={lake}", "--set", "compaction.trigger_size=16MB"]
    p = subprocess.run(args, capture_output=True, text=True, env=clean_env(), cwd=d, check=False, timeout=120)
    found = json.loads(p.stdout or "{}")
    good = p.returncode == 0 and found["rows"] == 800_000
    r.check(good, name, f"with {free} bytes free and a reserve: exit {p.returncode}, {found or p.stderr[-400:]}")
    judge(r, name + "/rows", ledger, lake)
    os.remove(filler)
    image.umount()


def one(r, args, engine, where):
    name = f"full_disk/{where}/{engine}"
    d = workdir(args.keep)
    ledger = d + "/ledger"
    image = LoopFs(d, "disk", 256)
    wal = (d if where == "lake" else image.path) + "/wal"
    lake = (d if where == "log" else image.path) + "/lake"
    settings = {**SETTINGS, "wal.io": engine}
    leave = {"together": 110, "log": 68, "lake": 8}[where] << 20
    if where == "lake":
        settings["wal.max_size"] = "64MB"
    server = Server(wal, lake, d, settings).start().wait_ready()
    bench(server.url, ledger, requests=20, rows=100)
    ballast = image.ballast(leave - ((49 << 20) if where != "lake" else 0))
    out, seen, ready = load_until_full(server, ledger)
    reasons = refusals(ledger)
    r.check(
        any(k in FULL for k in seen) and set(seen) <= {*FULL, "not_stored"} and server.alive() and "refused:poisoned" not in reasons, name + "/refuses",
        f"direct writes: 503 {seen}, all with Retry-After; /ready then {ready[0]} {ready[1] if isinstance(ready[1], str) else ready[1].get('reason')}; bench acked {out['acked']}, {reasons}; {image.free() >> 20} MiB free",
    )

    # A kill, and a start on the full disk. The last room goes first, so that it is full whatever was drained meanwhile.
    server.kill()
    filler = image.path + "/filler"
    fill(filler)
    free = image.free()
    ended = start_on_full(server)
    if ended:
        r.fail(name + "/starts", f"a start with {free >> 10} KiB free should answer 503 and drain (reserve there: {os.path.exists(wal + '/reserve')}); {ended}")
        os.remove(filler)
        server.start()
        fill(filler)
    wait_for("recovery", 20, lambda: server.ready()[0] in (200, 503) and server.ready()[1].get("reason") != "recovering")
    before = server.metrics()
    answers = {}
    end = time.monotonic() + 4
    while time.monotonic() < end:
        status, headers, reason = server.write(probe_body(), timeout=15)
        answers[f"{status} {reason}"] = answers.get(f"{status} {reason}", 0) + 1
        if status == 503 and not headers.get("retry-after", "").isdigit():
            r.fail(name + "/retry_after", f"{reason}: {headers}")
        time.sleep(0.05)
    ready = server.ready()
    after = server.metrics()
    drained = f"shipped {before['arc_wal_shipped_sequence']:.0f} -> {after['arc_wal_shipped_sequence']:.0f} of {after['arc_wal_durable_sequence']:.0f}"
    good = not ended and server.alive() and set(answers) <= {"204 None", "503 disk_full", "503 backlog", "503 not_stored"}
    # What the drain releases makes room again: then writes are taken. Without room they are not.
    # A full lake on a disk of its own is no full log: the log goes on until it has reached its limit.
    good = good and (where == "lake" or (ready[0] == 200) == (after["arc_wal_disk_full"] == 0)) and (where != "lake" or any(k.startswith("503") for k in answers))
    if not ended:
        r.check(good, name + "/starts", f"start with {free >> 10} KiB free: alive {server.alive()}, writes {answers}, {drained}, then /ready {ready[0]} {ready[1].get('reason')}, {image.free() >> 20} MiB free")

    # Room returns.
    os.remove(ballast)
    os.remove(filler)
    since = time.monotonic()
    wait_for("/ready after room returned", 30, lambda: server.ready()[0] == 200)
    took = time.monotonic() - since
    out = bench(server.url, ledger, requests=200, rows=100, timeout=60)
    r.check(out["acked"] == 200, name + "/resumes", f"ready {took:.1f} s after room returned, without a restart; then {out['acked']} of 200 requests acked {out['reasons'] or ''}")
    server.flush(90)
    status = server.get_json("/api/v1/status")[1]
    reserve = os.path.getsize(wal + "/reserve") if os.path.exists(wal + "/reserve") else 0
    code = server.stop()
    judge(r, name, ledger, lake, f"quarantine {status['quarantine']['records']}, reserve {reserve >> 20} MiB, exit {code}")
    image.umount()


def main():
    args = parser(__doc__, only="").parse_args()
    r = Results()
    why = LoopFs.unavailable()
    if why:
        r.skip("full_disk", why)
        r.end()
    for where in ("together", "log", "lake"):
        for engine in ("pwrite", "mmap"):
            if args.only in f"{where}/{engine}":
                case(r, f"full_disk/{where}/{engine}", one, r, args, engine, where)
    for engine in ("pwrite", "mmap"):
        if args.only in f"no_reserve/{engine}":
            case(r, f"full_disk/no_reserve/{engine}", no_reserve, r, args, engine)
    for where in ("log", "together"):
        if args.only in f"drain/{where}":
            case(r, f"full_disk/drain/{where}", drained, r, args, where)
    r.end()


if __name__ == "__main__":
    main()

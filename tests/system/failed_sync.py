#!/usr/bin/env python3
"""Failed syncs and writes of the log, injected into the committer's thread under load.

After a failed sync: whoever waits hears 503 unknown_outcome, nothing is acknowledged any more, /ready says 503, the process exits
with 74 after wal.poison_exit_after; after a restart every acknowledged row is there once and every other request whole or absent.
"""

from lib import *

SETTINGS = {
    "wal.segment_size": "4MB", "wal.max_size": "2GB", "wal.reserve": "16MB", "ingest.max_record_size": "16MB", "wal.poison_exit_after": "2s",
    "compaction.trigger_size": "16MB", "compaction.max_delay": "60s",
}


def inject(server, thread, call, error, when, d):
    tag = f"inject-{call}-{error}-{when}".replace("+", "on")
    return Strace(server.thread(thread), ["-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}"], f"{d}/{tag}", threads=False)


def wait_exit_and_restart(server, expected):
    code = server.wait_exit(15)
    words = server.last_words(2)
    if code != expected:
        raise Problem(f"exit code {code}, expected {expected}: {words}")
    server.start().wait_ready()
    server.flush(60)
    return code


def poisoning(r, args, name, engine, call, error, when=40, thread="arc-commit", mode="fdatasync"):
    """Under load the `when`th call fails."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.io": engine, "wal.sync_mode": mode}).start().wait_ready()
    load = Bench(server.url, ledger, duration="4s", connections=8, rows=20, timeout="3s")
    time.sleep(0.5)
    strace = inject(server, thread, call, error, when, d)
    wait_for("/ready to say poisoned", 10, lambda: server.ready()[1].get("reason") == "poisoned" if server.ready()[0] == 503 else None)
    poisoned_at = time.monotonic()
    durable = server.metrics()["arc_wal_durable_sequence"]
    status, headers, reason = server.write(probe_body())
    r.check(
        status == 503 and reason == "poisoned" and headers.get("retry-after", "").isdigit(), name + "/probe",
        f"direct write: {status} reason {reason} Retry-After {headers.get('retry-after')}",
    )
    s, body = server.get_json("/ready")
    time.sleep(1)
    after = server.metrics()["arc_wal_durable_sequence"]
    code = server.wait_exit(15)
    took = time.monotonic() - poisoned_at
    r.check(
        code == 74 and 1.0 < took < 5.0 and after == durable and s == 503, name + "/exit",
        f"exit code {code} {took:.1f} s after the poison; /ready {s} {body.get('reason')}; durable sequence stayed {durable:.0f} -> {after:.0f}; {server.last_words(1)[:200]}",
    )
    strace.detach()
    load.interrupt()
    out = load.result(30)
    injected = strace.text().count("(INJECTED)")
    highest = max((x.get("seq") or 0 for x in map(json.loads, open(ledger)) if x["outcome"] == "acked"), default=0)
    r.check(
        injected >= 1 and out["reasons"].get("unknown_outcome", 0) >= 1 and out["reasons"].get("poisoned", 0) >= 1 and highest <= durable, name + "/answers",
        f"{injected} injected; acked {out['acked']}, highest acked sequence {highest} of {durable:.0f} durable, reasons {out['reasons']}",
    )
    server.start().wait_ready()
    server.flush(60)
    code = server.stop()
    judge(r, name, ledger, lake, f"after the restart, exit {code}")


def no_space_on_write(r, args, name, engine_call="pwritev"):
    """One ENOSPC of a write: back-pressure, the segment is given up, writing goes on."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.io": "pwrite"}).start().wait_ready()
    load = Bench(server.url, ledger, duration="3s", connections=8, rows=20, timeout="5s")
    time.sleep(0.5)
    strace = inject(server, "arc-commit", engine_call, "ENOSPC", 60, d)
    wait_for("the injection", 10, lambda: "(INJECTED)" in strace.text())
    before = server.metrics()["arc_wal_durable_sequence"]
    strace.detach()
    out = load.result(30)
    m = server.metrics()
    reasons = out["reasons"]
    r.check(
        server.alive() and m["arc_wal_poisoned"] == 0 and m["arc_wal_durable_sequence"] > before and (reasons.get("disk_full", 0) + reasons.get("unknown_outcome", 0)) >= 1,
        name + "/goes_on", f"acked {out['acked']}, reasons {reasons}, durable {before:.0f} -> {m['arc_wal_durable_sequence']:.0f}, poisoned {m['arc_wal_poisoned']:.0f}",
    )
    server.kill()
    server.start().wait_ready()
    server.flush(60)
    judge(r, name, ledger, lake, f"after kill and restart, exit {server.stop()}")


def no_space_for_good(r, args, name):
    """Every write of the committer says ENOSPC, the successor's header too: whatever it does, nothing acknowledged is lost."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.io": "pwrite"}).start().wait_ready()
    load = Bench(server.url, ledger, duration="4s", connections=8, rows=20, timeout="3s")
    time.sleep(0.5)
    strace = inject(server, "arc-commit", "pwritev", "ENOSPC", "60+", d)
    wait_for("the injection", 10, lambda: "(INJECTED)" in strace.text())
    time.sleep(0.3)
    _, _, reason = server.write(probe_body())
    with contextlib.suppress(Problem):
        server.wait_exit(6)
    code = server.process.poll()
    strace.detach()
    load.interrupt()
    out = load.result(30)
    if code is None:
        server.kill()
    r.check(reason in ("poisoned", "disk_full") and code in (None, 74), name + "/answers", f"direct write: reason {reason}; exit {code}; bench {out['reasons']}")
    server.start().wait_ready()
    server.flush(60)
    judge(r, name, ledger, lake, f"after the restart, exit {server.stop()}")


def at_the_mark(r, args, name):
    """The sync of the mark fails, after the row was acknowledged."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {**SETTINGS, "wal.mark_delay": "200ms"}).start().wait_ready()
    strace = inject(server, "arc-commit", "fdatasync", "EIO", 2, d)
    out = bench(server.url, ledger, requests=1, rows=5, connections=1)
    wait_for("/ready to say poisoned", 5, lambda: server.ready()[0] == 503)
    strace.detach()
    code = wait_exit_and_restart(server, 74)
    judge(r, name, ledger, lake, f"acked {out['acked']}, then the mark's sync failed, exit {code}")
    server.stop()


def at_activation(r, args, name, call):
    """A step of the activation of a segment fails while everything is acknowledged."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, SETTINGS).start().wait_ready()
    bench(server.url, ledger, requests=200, rows=20)
    time.sleep(0.3)
    strace = inject(server, "arc-commit", call, "EIO", 1, d)
    with contextlib.suppress(Problem, OSError, http.client.HTTPException):
        server.flush(3)
    ready = server.ready()
    strace_text = strace.text()
    strace.detach()
    code = server.wait_exit(15)
    server.start().wait_ready()
    server.flush(60)
    injected = "(INJECTED)" in strace_text
    if not injected:
        raise Problem(f"{call} was not called by the committer")
    if code != 74:
        r.fail(name + "/exit", f"exit {code}")
    judge(r, name, ledger, lake, f"{call} failed during the activation, /ready {ready[0]} {ready[1] if isinstance(ready[1], str) else ready[1].get('reason')}, exit {code}")
    server.stop()


def in_the_compactor(r, args, name, call, when):
    """A sync of the manifest or of a file fails: acknowledged rows stay safe, and get to Parquet once, at the latest after a restart."""
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, SETTINGS).start().wait_ready()
    load = Bench(server.url, ledger, duration="2s", connections=4, rows=50, timeout="3s")
    strace = inject(server, "arc-compact", call, "EIO", when, d)
    time.sleep(0.5)
    flushed = "flushed"
    try:
        server.flush(6)
    except (Problem, OSError, http.client.HTTPException) as e:
        flushed = f"flush: {str(e)[:160]}"
    injected = strace.text().count("(INJECTED)")
    time.sleep(0.5)
    ready = server.ready()
    strace.detach()
    load.interrupt()
    load.result(30)
    with contextlib.suppress(Problem):
        server.wait_exit(4)
    code = server.process.poll()
    if server.alive():
        code = f"none, stopped with {server.stop()}"
    if not injected:
        raise Problem(f"{call} was not called {when} times by the compactor")
    server.start().wait_ready()
    server.flush(60)
    reason = ready[1] if isinstance(ready[1], str) else ready[1].get("reason")
    if call == "fdatasync" and code != 74:
        # The manifest's sync: poison as well.
        r.fail(name + "/exit", f"a sync of the manifest failed, the process should end with 74: {code}")
    judge(r, name, ledger, lake, f"{call} number {when} of the compactor failed; {flushed}; /ready {ready[0]} {reason}; exit by itself: {code}")
    server.stop()


def main():
    args = parser(__doc__).parse_args()
    r = Results()
    if not have_strace():
        r.skip("failed_sync", "no strace")
        r.end()
    for name, f, rest in [
        ("failed_sync/pwrite/fdatasync", poisoning, ("pwrite", "fdatasync", "EIO")),
        ("failed_sync/pwrite/fdatasync_ENOSPC", poisoning, ("pwrite", "fdatasync", "ENOSPC")),
        ("failed_sync/pwrite/write_EIO", poisoning, ("pwrite", "pwritev", "EIO")),
        ("failed_sync/mmap/msync", poisoning, ("mmap", "msync", "EIO")),
        ("failed_sync/pwrite/write_ENOSPC", no_space_on_write, ()),
        ("failed_sync/pwrite/write_ENOSPC_for_good", no_space_for_good, ()),
        ("failed_sync/mark", at_the_mark, ()),
        ("failed_sync/activation/fsync", at_activation, ("fsync",)),
        ("failed_sync/activation/rename", at_activation, ("rename",)),
    ]:
        case(r, name, f, r, args, name, *rest)
    for call, whens in (("fdatasync", (1, 2, 3, 5)), ("fsync", (1, 2, 3, 5, 8))):
        for when in whens:
            name = f"failed_sync/compactor/{call}_{when}"
            case(r, name, in_the_compactor, r, args, name, call, when)
    r.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Power loss, many times on one log: the ext4 shutdown ioctl under load, then recovery of the journal and of the log.

Log and lake lie on an ext4 image mounted with commit=300, so that only what was synced is in the journal. The ioctl (without a flush
of the journal) drops everything else and fails every later write. The ledger lies outside. Engines take turns, round by round.
"""

from lib import *

SETTINGS = {
    "wal.segment_size": "4MB", "wal.max_size": "512MB", "wal.reserve": "16MB", "ingest.max_record_size": "16MB", "wal.poison_exit_after": "30s",
    "compaction.max_delay": "300ms", "compaction.trigger_size": "8MB",
}


def selftest(r, d):
    """The method: what was synced is there afterwards, what was not is not."""
    fs = LoopFs(d, "self", 64, "loop,commit=300")
    for name, sync in (("synced", True), ("unsynced", False)):
        with open(os.path.join(fs.path, name), "wb") as f:
            f.write(b"x" * 100_000)
            f.flush()
            if sync:
                os.fsync(f.fileno())
                dirfd = os.open(fs.path, os.O_RDONLY)
                os.fsync(dirfd)
                os.close(dirfd)
    fs.power_off()
    try:
        with open(os.path.join(fs.path, "later"), "wb") as f:
            f.write(b"x")
        later = "written"
    except OSError as e:
        later = e.strerror
    fs.umount()
    fs.mount()
    there = sorted(n for n in os.listdir(fs.path) if n != "lost+found")
    whole = "synced" in there and open(os.path.join(fs.path, "synced"), "rb").read() == b"x" * 100_000
    lost = "unsynced" not in there or os.path.getsize(os.path.join(fs.path, "unsynced")) == 0
    fs.umount()
    return r.check(whole and lost and later != "written", "power_loss/method", f"synced file whole: {whole}, unsynced file lost: {lost}, write afterwards: {later}")


def first_starts(r, args, d):
    """Power loss, or SIGKILL, at a random moment of the very first start: the next start makes the log."""
    rng = random.Random(args.seed)
    fs = LoopFs(d, "first", 512, "loop,commit=300")
    bad, stages = [], {}
    for i in range(args.first_starts):
        at = f"{fs.path}/r{i}"
        os.mkdir(at)
        os.sync()
        server = Server(at + "/wal", at + "/lake", d, {**SETTINGS, "compaction.trigger_size": "8MB"})
        process = subprocess.Popen(server.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=clean_env())
        entry = defer(Server._kill, process)
        time.sleep(rng.random() * 0.08)
        if i % 2:
            fs.power_off()
            time.sleep(0.01)
        undo(entry)
        if i % 2:
            fs.umount()
            fs.mount()
        names = os.listdir(at + "/wal") if os.path.exists(at + "/wal") else []
        stage = "segment" if any(n.startswith("seg-") for n in names) else "manifest" if any(n.startswith("manifest-") and not n.endswith(".tmp") for n in names) else "nothing"
        stages[stage] = stages.get(stage, 0) + 1
        try:
            server.start().wait_ready(20)
            server.kill()
        except Problem as e:
            bad.append(f"{sorted(names)}: {e}")
        shutil.rmtree(at)
    fs.umount()
    r.check(not bad, "power_loss/first_start", f"{args.first_starts} first starts cut short (had made: {stages}): {len(bad)} could not be repeated {bad[:1] or ''}; seed {args.seed}")


def rounds(r, args):
    rng = random.Random(args.seed)
    d = workdir(args.keep)
    if not selftest(r, d):
        return
    case(r, "power_loss/first_start", first_starts, r, args, d)
    fs = LoopFs(d, "disk", 3072, "loop,commit=300")
    ledger, lake = d + "/ledger", fs.path + "/lake"
    server = Server(fs.path + "/wal", lake, d, SETTINGS)
    offs = {"load": 0, "compaction": 0, "recovery": 0, "quiet": 0}
    torn, recoveries = 0, []
    for i in range(args.rounds):
        engine = ("pwrite", "mmap")[i % 2]
        # Every round continues the log that the last one left.
        delay = rng.choice(["100ms", "300ms", "60s"])
        settings = {"wal__io": engine, "compaction__max_delay": delay, "compaction__trigger_size": rng.choice(["2MB", "8MB", "64MB"])}
        server.start(**settings)
        load = None
        if i > 0 and rng.random() < 0.15:
            # During recovery, or just after it.
            time.sleep(rng.random() * 0.1)
            offs["recovery"] += 1
        else:
            started = time.monotonic()
            server.wait_ready()
            recoveries.append(time.monotonic() - started)
            size = rng.choice([1, 20, 200, 1000])
            load = Bench(server.url, ledger, duration="3s", connections=8, rows=size, timeout="3s", format=rng.choice(["columnar", "row", "batch"]))
            time.sleep(0.3 + rng.random() * 1.2)
            if rng.random() < 0.25:
                # The moment of a flush: seal, plan, files, commits, release.
                threading.Thread(target=_quiet, args=(server,), daemon=True).start()
                time.sleep(rng.random() * 0.15)
                offs["compaction"] += 1
            elif rng.random() < 0.15:
                load.interrupt()
                time.sleep(rng.random() * 0.2)
                offs["quiet"] += 1
            else:
                offs["load"] += 1
        fs.power_off()
        if load:
            time.sleep(0.05)
            load.interrupt()
            load.result(30)
        server.kill()
        fs.umount()
        fs.mount()
        with open(server.err, errors="replace") as f:
            torn += f.read().count("nothing on disk shows that its tail was acknowledged")
        if subprocess.run(["df", fs.path], capture_output=True, check=False).returncode or fs.free() < 600 << 20:
            note(f"only {fs.free() >> 20} MiB left on the image: ending after {i + 1} rounds")
            break
    done = i + 1
    server.start().wait_ready()
    with open(server.err, errors="replace") as f:
        torn += f.read().count("nothing on disk shows that its tail was acknowledged")
    server.flush(120)
    status = server.get_json("/api/v1/status")[1]
    m = server.metrics()
    code = server.stop()
    extra = (
        f"{done} power losses ({', '.join(f'{v} during {k}' for k, v in offs.items())}), torn tails {torn}, damage {m['arc_wal_damage_findings_total']:.0f}, "
        f"quarantine {status['quarantine']['records']}, recovery at most {max(recoveries, default=0):.2f} s, exit {code}; seed {args.seed}"
    )
    judge(r, "power_loss", ledger, lake, extra)
    r.check(
        status["quarantine"]["records"] == 0 and m["arc_wal_damage_findings_total"] == 0 and code == 0, "power_loss/end",
        f"damage {m['arc_wal_damage_findings_total']:.0f}, quarantine {status['quarantine']['records']}, exit {code}",
    )
    with open(server.err, errors="replace") as f:
        bad = [line.strip() for line in f if " ERROR " in line]
    if bad:
        r.fail("power_loss/log", bad[0][:400])
    fs.umount()


def _quiet(server):
    with contextlib.suppress(Problem, OSError, http.client.HTTPException):
        server.flush(5)


def main():
    args = parser(__doc__, rounds=20, first_starts=100).parse_args()
    r = Results()
    why = LoopFs.unavailable()
    if why:
        r.skip("power_loss", why)
        r.end()
    case(r, "power_loss", rounds, r, args)
    r.end()


if __name__ == "__main__":
    main()

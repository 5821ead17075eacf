#!/usr/bin/env python3
"""A large backlog: recovery and drain in bounded memory, with progress on /ready, and every row there.

RssAnon counts; VmRSS also holds mapped pages of the page cache, which the kernel takes back at will.
"""

from lib import *


class Sampler(threading.Thread):
    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.pid, self.on = server, server.pid, True
        self.samples = self.anon = self.rss = 0
        self.phase = {}
        self.phase_now = "recovery"

    def run(self):
        while self.on:
            with contextlib.suppress(OSError), open(f"/proc/{self.pid}/status") as f:
                kib = {k: int(v.split()[0]) for k, v in (line.split(":", 1) for line in f) if k in ("RssAnon", "VmRSS")}
                if kib:
                    self.samples += 1
                    self.anon, self.rss = max(self.anon, kib["RssAnon"]), max(self.rss, kib["VmRSS"])
                    self.phase[self.phase_now] = max(self.phase.get(self.phase_now, 0), kib["RssAnon"])
            time.sleep(0.05)


def one(r, args, engine, kind):
    name = f"backlog/{kind}/{engine}"
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    target = int(args.gib * (1 << 30))
    if shutil.disk_usage(d).free < 3 * target + (4 << 30):
        r.skip(name, f"needs {(3 * target + (4 << 30)) >> 30} GiB of disk")
        return
    rows = {"big": 10_000, "small": 5}[kind]
    settings = {"wal.max_size": f"{(2 * target + (2 << 30)) >> 20}MB", "wal.io": engine}
    server = Server(d + "/wal", lake, d, settings).start(compaction__paused="true").wait_ready()
    started = time.monotonic()
    load = Bench(server.url, ledger, duration="600s", connections=16 if kind == "big" else 64, rows=rows, timeout="60s")
    wait_for("the backlog to grow", 580, lambda: server.get_json("/api/v1/status")[1]["backlog"]["bytes"] >= target, every=0.1)
    load.interrupt()
    filled = time.monotonic() - started
    load.result(60)
    status = server.get_json("/api/v1/status")[1]
    backlog, durable = status["backlog"]["bytes"], status["watermarks"]["durable"]
    server.kill()

    started = time.monotonic()
    server.start()
    sampler = Sampler(server)
    sampler.start()
    progress, reasons = [], {}
    while True:
        if not server.alive():
            raise Problem(f"the server ended with {server.process.returncode}: {server.last_words()}")
        code, body = server.ready()
        if code == 200:
            break
        if code == 503:
            reasons[body.get("reason")] = reasons.get(body.get("reason"), 0) + 1
            if body.get("progress") and body.get("reason") == "recovering":
                progress.append(body["progress"]["bytes_done"] / max(1, body["progress"]["bytes_total"]))
        if time.monotonic() - started > 600:
            raise Problem("not ready after 600 s")
        time.sleep(0.01)
    recovery = time.monotonic() - started
    sampler.phase_now = "drain"
    # The drain runs beside a little traffic.
    out = bench(server.url, ledger, requests=50, rows=rows, connections=2)
    wait_for("the drain", 900, lambda: server.metrics()["arc_wal_shipped_sequence"] >= durable, every=0.1)
    drained = time.monotonic() - started
    server.flush(120)
    sampler.on = False
    sampler.join()
    status = server.get_json("/api/v1/status")[1]
    code = server.stop()
    shown = sorted(set(progress)) == sorted(set(progress), key=progress.index)
    r.check(
        set(reasons) == {"recovering"} and bool(progress) and shown and progress[-1] > 0, name + "/progress",
        f"/ready said 503 {reasons} for {recovery:.2f} s, progress {' '.join(f'{p:.0%}' for p in progress[:: max(1, len(progress) // 8)])}",
    )
    r.check(
        sampler.anon < args.most_mib << 10 and sampler.samples > 5 and out["acked"] == 50, name + "/memory",
        f"backlog {backlog / (1 << 30):.2f} GiB, {durable} records (filled in {filled:.0f} s); recovered in {recovery:.2f} s, drained {drained - recovery:.1f} s later; "
        f"RssAnon at most {sampler.anon >> 10} MiB ({', '.join(f'{k} {v >> 10}' for k, v in sampler.phase.items())}), VmRSS at most {sampler.rss >> 10} MiB in {sampler.samples} samples; limit {args.most_mib} MiB",
    )
    judge(r, name, ledger, lake, f"quarantine {status['quarantine']['records']}, exit {code}")


def main():
    args = parser(__doc__, gib=4.0, most_mib=1024, kinds="big,small", engines="pwrite").parse_args()
    r = Results()
    for engine in args.engines.split(","):
        for kind in args.kinds.split(","):
            case(r, f"backlog/{kind}/{engine}", one, r, args, engine, kind)
    r.end()


if __name__ == "__main__":
    main()

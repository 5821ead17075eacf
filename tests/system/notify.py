#!/usr/bin/env python3
"""What the service manager hears when a thread of the log hangs: strace holds the committer in its sync, and the pings stop; it is let
go, and they come again. The other threads and /health go on all the while: the ping is tied to the log, not to the process."""

from lib import *


class Manager:
    """NOTIFY_SOCKET's other end."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(path)
        self.path = path
        self.seen = []
        self.thread = threading.Thread(target=self._listen, daemon=True)
        self.thread.start()

    def _listen(self):
        with contextlib.suppress(OSError):
            while True:
                lines = self.socket.recv(4096).decode().splitlines()
                self.seen.append((time.monotonic(), dict(l.split("=", 1) for l in lines)))

    def pings(self, since, until=None):
        return [t for t, m in list(self.seen) if m.get("WATCHDOG") == "1" and t >= since and (until is None or t < until)]

    def statuses(self, since):
        return [m["STATUS"] for t, m in list(self.seen) if "STATUS" in m and t >= since]


def hang(r, args, watchdog):
    d = workdir(args.keep)
    manager = Manager(d + "/notify")
    env = {"NOTIFY_SOCKET": manager.path, "WATCHDOG_USEC": str(int(watchdog * 1e6))}
    server = Server(d + "/wal", d + "/lake", d, {"wal.segment_size": "4MB", "wal.reserve": "16MB"}, env=env).start().wait_ready()
    wait_for("READY=1", 20, lambda: any(m.get("READY") == "1" for _, m in list(manager.seen)))
    began = time.monotonic()
    time.sleep(watchdog)
    before = manager.pings(began)
    r.check(len(before) >= 3, "notify/moving", f"{len(before)} pings in {watchdog:.0f} s of an idle server")

    held = watchdog * 2 + 4
    strace = Strace(
        server.thread("arc-commit"), ["-e", "trace=fdatasync", "-e", f"inject=fdatasync:delay_enter={int(held * 1e6)}:when=1"], f"{d}/hold", threads=False
    )
    answers = []
    stuck_from = time.monotonic()
    # It waits for its sync as long as that takes.
    writer = threading.Thread(target=lambda: answers.append(server.write(probe_body(), timeout=held + 60)), daemon=True)
    writer.start()
    patience = max(watchdog / 4, 3.0)
    quiet_from, quiet_to = stuck_from + patience + watchdog / 4 + 0.5, stuck_from + held - 1
    time.sleep(quiet_to - time.monotonic())
    quiet = manager.pings(quiet_from, quiet_to)
    healthy, _, _ = server.request("GET", "/health")
    said = [s for s in manager.statuses(stuck_from) if "committer" in s]
    r.check(
        not quiet and healthy == 200 and said and not answers, "notify/hanging",
        f"{len(quiet)} pings from {quiet_from - stuck_from:.1f} to {quiet_to - stuck_from:.1f} s of the hang; /health {healthy}; status {said[:1]}; no answer to the write yet",
    )
    wait_for("a ping after the hang", held + 20, lambda: manager.pings(quiet_to + 0.01))
    writer.join(held + 60)
    strace.detach()
    again = manager.pings(quiet_to)[0] - stuck_from
    r.check(
        server.alive() and again > held - 0.5 and answers[:1] and answers[0][0] == 204, "notify/moving-again",
        f"held for {held:.0f} s, the next ping after {again:.1f} s; the write got {answers[0][0] if answers else None}",
    )
    status, _, reason = server.write(probe_body(), timeout=30)
    code = server.stop()
    last = [m for _, m in list(manager.seen) if m.get("STOPPING") == "1"]
    r.check(status == 204 and code == 0 and len(last) == 1, "notify/stopping", f"a write: {status}; exit {code}; STOPPING said {len(last)} times")


def main():
    args = parser(__doc__.splitlines()[0], watchdog=6.0).parse_args()
    r = Results()
    if not have_strace():
        r.skip("notify", "strace is missing, or may not trace here")
        r.end()
    case(r, "notify", hang, r, args, args.watchdog)
    r.end()


if __name__ == "__main__":
    main()

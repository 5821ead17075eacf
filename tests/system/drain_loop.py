#!/usr/bin/env python3
"""Two nodes on one lake, killed at random moments under load. What the killed one leaves is drained, by drains that are killed as
well, or taken up by the node itself; at the end both are drained for good. Nothing lost, doubled or half.
"""

from lib import *

SETTINGS = {
    "wal.segment_size": "4MB", "wal.max_size": "2GB", "wal.reserve": "16MB", "ingest.max_record_size": "16MB",
    "compaction.trigger_size": "8MB", "compaction.max_delay": "300ms",
}
# Another machine, which was told other things.
ELSEWHERE = {"wal.max_size": "1GB", "ingest.max_record_size": "16MB", "compaction.compression": "snappy", "compaction.max_outputs": "5", "log.format": "text"}


class Drain:
    def __init__(self, server, lake, logs, rng, name):
        settings = {**ELSEWHERE, "storage.local_path": lake, "compaction.trigger_size": rng.choice(["1MB", "8MB", "64MB"])}
        args = [arc_bin(), "drain", server.wal, "--json"]
        for k, v in settings.items():
            args += ["--set", f"{k}={v}"]
        self.err = os.path.join(logs, name + ".err")
        with open(self.err, "wb") as err:
            self.process = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=clean_env(), cwd=logs)
        self._entry = defer(Server._kill, self.process)

    def kill(self):
        """Whether it was still at work."""
        running = self.process.poll() is None
        undo(self._entry)
        self.process.stdout.close()
        return running

    def result(self, timeout=120):
        out, _ = self.process.communicate(timeout=timeout)
        undo(self._entry)
        if self.process.returncode != 0:
            with open(self.err, errors="replace") as f:
                raise Problem(f"a drain ended with {self.process.returncode}: {out.decode()} {f.read().strip()[-600:]}")
        found = json.loads(out)
        if found["status"] != "drained" or found["segments_left"] != 1 or found["through_seq"] != found["target_seq"]:
            raise Problem(f"a drain ended with 0 and says {found}")
        return found


def rounds(r, args):
    rng = random.Random(f"{args.seed}-drain")
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    nodes = []
    for i, engine in enumerate(("pwrite", "mmap")):
        os.mkdir(f"{d}/logs-{i}")
        nodes.append(Server(f"{d}/wal-{i}", lake, f"{d}/logs-{i}", {**SETTINGS, "wal.io": engine}))
    count = {"drained": 0, "cut off": 0, "restarted": 0, "rows by drains": 0}
    number = 0

    def drain(node, kill_after=None):
        nonlocal number
        number += 1
        x = Drain(node, lake, d, rng, f"drain-{number}")
        if kill_after is not None:
            time.sleep(kill_after)
            count["cut off"] += x.kill()
        else:
            count["rows by drains"] += x.result()["rows"]
            count["drained"] += 1

    for _ in range(args.rounds):
        node = rng.choice(nodes)
        # Some load leaves its log to the drain, some is shipped while it comes in.
        node.start(compaction__paused=rng.choice(["true", "false"])).wait_ready()
        known = os.path.getsize(ledger) if os.path.exists(ledger) else 0
        b = Bench(node.url, ledger, duration="1200ms", connections=8, rows=rng.choice([1, 10, 200, 1000]), format=rng.choice(["columnar", "row", "batch"]), timeout="5s")
        wait_for("the load", 60, lambda known=known: os.path.exists(ledger) and os.path.getsize(ledger) > known)
        time.sleep(0.1 + rng.random() * 0.6)
        node.kill()
        b.interrupt()
        b.result(30)
        for _ in range(rng.choice([0, 0, 1, 2])):
            drain(node, rng.random() * 0.25)
        if rng.random() < 0.5:
            drain(node)
        else:
            count["restarted"] += 1
    for node in nodes:
        if not os.path.exists(node.wal):
            continue
        drain(node)
        # The node may come back: there is nothing to ship.
        node.start().wait_ready()
        flushed = node.flush(60)
        code = node.stop()
        if flushed["rows"] or code != 0:
            r.fail("drain_loop/back", f"a drained node that came back shipped {flushed} and ended with {code}")
    extra = f"{args.rounds} kills of nodes, {count['cut off']} of drains, {count['drained']} drains to the end, {count['rows by drains']} rows by drains; seed {args.seed}"
    judge(r, "drain_loop", ledger, lake, extra)
    left = [f for f in glob.glob(lake + "/**/.*", recursive=True) if os.path.isfile(f)]
    r.check(not left, "drain_loop/leftovers", f"{len(left)} unfinished files in the lake {left[:3]}")
    r.check(count["cut off"] * 5 >= args.rounds or args.rounds < 10, "drain_loop/cut_off", f"{count['cut off']} drains were killed at work")


def main():
    args = parser(__doc__, rounds=20).parse_args()
    r = Results()
    case(r, "drain_loop", rounds, r, args)
    r.end()


if __name__ == "__main__":
    main()

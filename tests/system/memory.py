#!/usr/bin/env python3
"""Attacks on each buffer that data can grow, against a server with the default memory settings (docs/memory.md).

Every attack has a server of its own, in a memory cgroup where one can be made (root; version 1 or 2). It passes when the server lives, was
not stopped by the cgroup, and its largest RssAnon stayed under the bound of its row. `--limit-mib` sets the cgroup's limit: the
sum of the budgets. Mapped segments and the page cache count in the cgroup too, but the kernel can take them back.
"""

import gzip

from lib import *

MIB = 1 << 20
SETTINGS = {
    "wal.segment_size": "64MB", "wal.max_size": "4GB", "compaction.trigger_size": "64MB", "compaction.max_delay": "1s", "log.level": "error", "wal.allow_volatile": "true",
}
HOUR_MS = 3_600_000
NOW = int(time.time() * 1000) // HOUR_MS * HOUR_MS


def pack(value):
    import msgpack

    return msgpack.packb(value)


class Cgroup:
    """A memory cgroup with a limit, or None of one: `kind` says why."""

    def __init__(self, limit):
        self.path, self.kind = None, "no memory cgroup can be made here"
        for root, limit_file in (("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")):
            path = f"{root}/arc-memory-{os.getpid()}"
            try:
                os.mkdir(path)
            except OSError:
                continue
            try:
                with open(f"{path}/{limit_file}", "w") as f:
                    f.write(str(limit))
            except OSError:
                os.rmdir(path)
                continue
            self.path, self.kind = path, f"cgroup of {limit // MIB} MiB"
            defer(self.remove)
            return

    def enter(self):
        """For the child between fork and exec."""
        if self.path:
            with open(f"{self.path}/cgroup.procs", "w") as f:
                f.write(str(os.getpid()))

    def kills(self):
        """Processes that were ended for want of memory."""
        if not self.path:
            return 0
        for name in ("memory.oom_control", "memory.events"):
            with contextlib.suppress(OSError), open(f"{self.path}/{name}") as f:
                for line in f:
                    if line.startswith("oom_kill "):
                        return int(line.split()[1])
        return 0

    def remove(self):
        end = time.monotonic() + 5
        while self.path and time.monotonic() < end:
            try:
                os.rmdir(self.path)
                self.path = None
            except OSError:
                time.sleep(0.1)


class Peak(threading.Thread):
    """The largest RssAnon of a process, in bytes, looked at every 20 ms."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.bytes, self.done = pid, 0, threading.Event()
        self.start()

    def run(self):
        while not self.done.wait(0.02):
            with contextlib.suppress(OSError), open(f"/proc/{self.pid}/status") as f:
                for line in f:
                    if line.startswith("RssAnon:"):
                        self.bytes = max(self.bytes, int(line.split()[1]) << 10)

    def end(self):
        self.done.set()
        self.join()
        return self.bytes


def send(server, body, path="/api/v1/write/msgpack", headers=None, timeout=120):
    """The status, or the name of what broke."""
    try:
        status, _, _ = server.request("POST", path, body, {"x-arc-database": "d", **(headers or {})}, timeout)
        return status
    except (OSError, http.client.HTTPException) as e:
        return type(e).__name__


def together(server, bodies, **kw):
    """Sends all bodies at one time; the statuses, counted."""
    out = [None] * len(bodies)

    def one(i):
        out[i] = send(server, bodies[i], **kw)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(len(bodies))]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return {str(s): out.count(s) for s in dict.fromkeys(out)}


# --- attacks: each returns what it heard -------------------------------------------------------------------------------


def bodies(server):
    """More large bodies at one time than ingest.max_in_flight holds."""
    body = pack({"m": "t", "columns": {"time": [NOW] * 8, "s": ["x" * (6 << 20)] * 8}})
    return together(server, [body] * 24)


def json_text(server):
    """Nested values whose JSON text is six times as long (faults.md H9)."""
    body = gzip.compress(pack({"m": "t", "columns": {"time": [NOW], "s": [["\x01" * (100 << 20)]]}}), 1)
    return together(server, [body] * 4)


def invalid_text(server):
    """Bytes that each become three: U+FFFD."""
    raw = b"\x82\xa1m\xa1t\xa7columns\x82\xa4time\x91" + pack(NOW) + b"\xa1s\x91\xdb" + (100 << 20).to_bytes(4, "big") + b"\xff" * (100 << 20)
    return together(server, [gzip.compress(raw, 1)] * 4)


def small_numbers(server):
    """Numbers of one byte that take eight, and NULLs that take none on the wire to speak of."""
    n = 8 << 20
    column = b"\xdd" + n.to_bytes(4, "big") + b"\x01" * n
    nils = b"\xdd" + n.to_bytes(4, "big") + b"\xc0" * n
    times = b"\xdd" + n.to_bytes(4, "big") + pack(NOW * 1000) * n
    raw = b"\x82\xa1m\xa1t\xa7columns\x84\xa4time" + times + b"\xa1a" + column + b"\xa1b" + column + b"\xa1c" + nils
    return together(server, [gzip.compress(raw, 1)] * 4)


def bombs(server):
    """64 bodies that inflate to more than ingest.max_inflated_size."""
    bomb = gzip.compress(b"\0" * (200 << 20), 9)
    return together(server, [bomb] * 64)


def line_fields(server):
    """Line protocol with many lines of many fields."""
    line = "m " + ",".join(f"f{i}=1i" for i in range(900)) + f" {NOW}000000\n"
    return together(server, [(line * 3000).encode()] * 4, path="/write?db=d")


def catalog(server):
    """250 tables of 1,000 columns with names of 256 bytes, six times (faults.md H7)."""
    answers = []
    for r in range(6):
        items = []
        for t in range(250):
            fields = {f"c{r}_{i}_".ljust(256, "x"): [1] for i in range(60)}
            items.append({"m": f"t{r}_{t}", "columns": {"time": [NOW], **fields}})
        answers.append(send(server, gzip.compress(pack({"batch": items}), 1)))
    for r in range(40):
        items = [{"m": f"u{r}_{t}", "columns": {"time": [NOW], **{f"c{i}_".ljust(256, "y"): [1] for i in range(1000)}}} for t in range(25)]
        answers.append(send(server, gzip.compress(pack({"batch": items}), 1)))
    answers.append(server.get_json("/api/v1/status", timeout=60)[0])
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


def long_and_short(server):
    """One long string before many short ones and NULLs (faults.md H1)."""
    values = ["L" * (8 << 20)] + [f"s{i}" for i in range(8193)] + [None] * 8000
    body = pack({"m": "t", "columns": {"time": [NOW + i for i in range(len(values))], "s": values}})
    heard = send(server, body)
    server.flush(timeout=120)
    return {str(heard): 1}


def wide_strings(server):
    """16 requests of 480 strings of 250 KB that become one file (faults.md H1)."""
    answers = []
    for r in range(16):
        values = [f"{r:04}{i:04}" + "w" * 250_000 for i in range(480)]
        answers.append(send(server, gzip.compress(pack({"m": "t", "columns": {"time": [NOW + i for i in range(480)], "s": values}}), 1)))
    with contextlib.suppress(Problem):
        server.flush(timeout=180)
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


def many_columns(server):
    """1,000 columns of strings, 4,000 rows, in a few requests."""
    answers = []
    for r in range(8):
        columns = {f"c{i}": [f"{r}-{i}-{n}-{'z' * 20}" for n in range(400)] for i in range(1000)}
        answers.append(send(server, gzip.compress(pack({"m": "t", "columns": {"time": [NOW + r * 1000 + n for n in range(400)], **columns}}), 1)))
    server.flush(timeout=180)
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


def many_outputs(server):
    """Plans of thousands of files: 1,000 tables, an hour each."""
    answers = []
    for r in range(4):
        items = [{"m": f"t{t}", "columns": {"time": [NOW + r * HOUR_MS + n for n in range(20)], "v": [1.5] * 20}} for t in range(1000)]
        answers.append(send(server, pack({"batch": items})))
    server.flush(timeout=180)
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


def keys(server):
    """200,000 idempotency keys of 128 bytes, over kept connections."""
    body = pack({"m": "t", "columns": {"time": [NOW], "v": [1]}})

    def client(n):
        c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
        for i in range(25_000):
            c.request("POST", "/api/v1/write/msgpack", body, {"Idempotency-Key": f"{n}-{i}-".ljust(128, "k")})
            r = c.getresponse()
            r.read()
            if r.status != 204:
                raise Problem(f"key {n}-{i}: {r.status}")

    threads = [threading.Thread(target=client, args=(n,)) for n in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    return {"204": 200_000}


def plans(server):
    """Shipped plans of a table of 1,000 columns (faults.md H6)."""
    columns = {f"c{i}": [1] for i in range(1000)}
    body = pack({"m": "t", "columns": {"time": [NOW], **columns}})
    for _ in range(300):
        send(server, body)
        server.flush(timeout=60)
    return {"flushes": 300}


def refusals(server):
    """Bad requests that each differ: what the status keeps of them."""
    answers = []
    for i in range(3000):
        answers.append(send(server, f"{'t' * 100}{i},{'x' * 50000}".encode(), path=f"/write?db=d{i % 50}"))
    answers.append(server.get_json("/api/v1/status", timeout=60)[0])
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


def unread_answers(server):
    """Clients that ask for the status and the metrics and never read."""
    items = [{"m": f"t{t}", "columns": {"time": [NOW], **{f"column_{i}": [1] for i in range(50)}}} for t in range(500)]
    send(server, pack({"batch": items}))
    socks = []
    for n in range(400):
        s = socket.create_connection(("127.0.0.1", server.port))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        s.sendall(f"GET {('/api/v1/status', '/metrics')[n % 2]} HTTP/1.1\r\nHost: x\r\n\r\n".encode() * 20)
        socks.append(s)
    time.sleep(3)
    for s in socks:
        s.close()
    return {"connections": 400}


def deferred(server):
    """Twelve tables whose files cannot be published: their rows move to side segments (faults.md H10)."""
    os.makedirs(f"{server.lake}/d", exist_ok=True)
    for t in range(12):
        with open(f"{server.lake}/d/t{t}", "w"):
            pass
    answers = []
    values = [os.urandom(512).hex() for _ in range(1000)]
    for r in range(60):
        items = [{"m": f"t{t}", "columns": {"time": [NOW + r * 1000 + n for n in range(100)], "s": values[:100]}} for t in range(12)]
        answers.append(send(server, pack({"batch": items})))
    time.sleep(35)
    return {str(s): answers.count(s) for s in dict.fromkeys(answers)}


#         name         attack          bound in MiB
ATTACKS = [
    ("bodies", bodies, 1024),
    ("json_text", json_text, 1024),
    ("invalid_text", invalid_text, 1024),
    ("small_numbers", small_numbers, 1536),
    ("bombs", bombs, 1024),
    ("line_fields", line_fields, 1024),
    ("catalog", catalog, 640),
    ("long_and_short", long_and_short, 640),
    ("wide_strings", wide_strings, 900),
    ("many_columns", many_columns, 900),
    ("many_outputs", many_outputs, 512),
    ("keys", keys, 256),
    ("plans", plans, 256),
    ("refusals", refusals, 256),
    ("unread_answers", unread_answers, 512),
    ("deferred", deferred, 512),
]


def attack(r, name, run, bound, limit, place):
    d = f"{place}/{name}"
    os.makedirs(d)
    group = Cgroup(limit)
    server = Server(f"{d}/wal", f"{d}/lake", d, SETTINGS, preexec=group.enter).start().wait_ready()
    peak = Peak(server.pid)
    try:
        heard = run(server)
        time.sleep(1.5)
    except (Problem, OSError, http.client.HTTPException) as e:
        heard = f"{type(e).__name__}: {e}"
    alive, kills = server.alive(), group.kills()
    if alive:
        # What was acknowledged has to become files, and a start has to live with it too.
        with contextlib.suppress(Problem, OSError):
            server.flush(timeout=60)
        alive = server.alive()
    live = peak.end()
    server.kill()
    again = 0
    try:
        server.start().wait_ready()
        peak = Peak(server.pid)
        time.sleep(1.5)
        again = peak.end()
        alive = alive and server.alive()
    except Problem as e:
        alive, heard = False, f"{heard}; restart: {e}"
    kills = max(kills, group.kills())
    server.kill()
    group.remove()
    good = alive and kills == 0 and max(live, again) <= bound * MIB
    r.check(good, f"memory/{name}", f"{heard}; RssAnon at most {live // MIB} MiB, {again // MIB} after a restart, bound {bound}; {group.kind}, {kills} kills; alive {alive}")
    shutil.rmtree(d, ignore_errors=True)


def main():
    args = parser(__doc__, limit_mib=2048, only="").parse_args()
    r = Results()
    place = workdir(args.keep)
    for name, run, bound in ATTACKS:
        if not args.only or name in args.only.split(","):
            case(r, f"memory/{name}", attack, r, name, run, bound, args.limit_mib * MIB, place)
    r.end()


if __name__ == "__main__":
    main()

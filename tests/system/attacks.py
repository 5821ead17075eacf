#!/usr/bin/env python3
"""Hostile clients against the real server, while healthy ones keep writing.

A process of its own writes rows at a fixed rate and asks for /health at the same rate. Each attack has its spell beside it; what counts
is how the server answered the attack, what memory, CPU and descriptors it took, and how the healthy clients fared. Everything goes over
loopback. At the end every acknowledged row is in Parquet exactly once.
"""

import collections
import gzip
import random as rnd
import select
import zlib

from lib import *

MIB = 1 << 20
# What the server is started with; the times are short so that a spell sees them run out.
SETTINGS = {
    "server.header_timeout": "3s",
    "server.read_timeout": "8s",
    "server.idle_timeout": "6s",
    "server.max_connections": 1500,
    "ingest.max_tables": 1000,
    "ingest.idempotency_max_keys": 5000,
    "compaction.max_delay": "5s",
    "log.level": "warn",
}
MAX_PAYLOAD, MAX_INFLATED, MAX_RECORD, IN_FLIGHT = 64 * MIB, 128 * MIB, 128 * MIB, 256 * MIB
# Largest read buffer of a connection.
READ_BUFFER = 256 << 10
RATE, ROWS = 25, 20


# --- healthy clients, a process of their own ------------------------------------------------------------------------


def healthy_body(first):
    import msgpack

    now = int(time.time() * 1000)
    ids = list(range(first, first + ROWS))
    return msgpack.packb({"m": "bench_0", "columns": {"time": [now] * ROWS, "id": ids, "v": [float(i) for i in ids]}})


def healthy(port, ledger):
    """Two writers and two probes, each at RATE a second by the clock: an answer that comes late makes the next one late too, and
    that counts. Prints [time, kind, milliseconds, outcome] lines; ends when stdin closes."""
    stop = threading.Event()
    out_lock, id_lock = threading.Lock(), threading.Lock()
    next_id = [1]
    book = open(ledger, "a")

    def client(kind, offset):
        conn = None
        at = time.monotonic() + offset
        while not stop.is_set():
            time.sleep(max(0, at - time.monotonic()))
            outcome, first = "unanswered", 0
            if kind == "w":
                with id_lock:
                    first, next_id[0] = next_id[0], next_id[0] + ROWS
            try:
                if conn is None:
                    conn = http.client.HTTPConnection("127.0.0.1", port, timeout=15)
                    conn.connect()
                    conn.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                if kind == "w":
                    conn.request("POST", "/api/v1/write/msgpack", healthy_body(first), {"x-arc-database": "bench"})
                else:
                    conn.request("GET", "/health")
                r = conn.getresponse()
                data = r.read()
                outcome = "acked" if r.status in (200, 204) else "refused"
                if b"unknown_outcome" in data:
                    outcome = "unanswered"
                if r.will_close:
                    conn.close()
                    conn = None
            except (OSError, http.client.HTTPException):
                conn.close()
                conn = None
            ended = time.monotonic()
            with out_lock:
                if kind == "w":
                    book.write(json.dumps({"first_id": first, "last_id": first + ROWS - 1, "outcome": outcome}) + "\n")
                print(json.dumps([at, kind, (ended - at) * 1000, outcome]), flush=True)
            at += 1 / RATE
        if conn:
            conn.close()

    threads = [threading.Thread(target=client, args=(k, i / RATE / 4)) for i, k in enumerate("whwh")]
    for t in threads:
        t.start()
    sys.stdin.read()
    stop.set()
    for t in threads:
        t.join()
    book.close()


class Healthy:
    def __init__(self, server, ledger):
        self.process = subprocess.Popen(
            [sys.executable, os.path.abspath(__file__), "--healthy", str(server.port), ledger], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._entry = defer(Server._kill, self.process)
        self.lines = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(json.loads(line))

    def between(self, a, b):
        return [x for x in list(self.lines) if a <= x[0] < b]

    def end(self):
        self.process.stdin.close()
        self.process.wait(30)
        self.reader.join(10)
        undo(self._entry)


def percentile(values, p):
    values = sorted(values)
    return values[min(len(values) - 1, int(len(values) * p))] if values else float("nan")


# --- what the server takes ------------------------------------------------------------------------------------------


class Watch(threading.Thread):
    """Peaks of the server's process, from one `reset` to the next."""

    def __init__(self, pid):
        super().__init__(daemon=True)
        self.pid, self.on = pid, True
        self.reset()

    def reset(self):
        self.anon = self.rss = self.fds = 0
        self.cpu0 = self.cpu()

    def cpu(self):
        with open(f"/proc/{self.pid}/stat") as f:
            fields = f.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def open_files(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def run(self):
        while self.on:
            with contextlib.suppress(OSError):
                with open(f"/proc/{self.pid}/status") as f:
                    kib = {k: int(v.split()[0]) for k, v in (line.split(":", 1) for line in f) if k in ("RssAnon", "VmRSS")}
                if kib:
                    self.anon, self.rss = max(self.anon, kib["RssAnon"]), max(self.rss, kib["VmRSS"])
                self.fds = max(self.fds, self.open_files())
            time.sleep(0.02)


# --- talking to the server ------------------------------------------------------------------------------------------

WRITE = "POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nx-arc-database: attack\r\n"


def post(body, headers="", length=None):
    return (WRITE + headers + f"Content-Length: {len(body) if length is None else length}\r\n\r\n").encode() + body


def chunked(raw, headers=""):
    return (WRITE + headers + "Transfer-Encoding: chunked\r\n\r\n").encode() + raw


def connect(port, timeout=15, buffer=None):
    s = socket.socket()
    if buffer:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    s.settimeout(timeout)
    s.connect(("127.0.0.1", port))
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


class Answers:
    """Reads the answers of one connection."""

    def __init__(self, sock):
        self.sock, self.buf = sock, b""

    def next(self):
        """(status, headers, body), or "closed", "reset", "timeout"."""
        try:
            while b"\r\n\r\n" not in self.buf:
                data = self.sock.recv(65536)
                if not data:
                    return "closed" if not self.buf else "cut"
                self.buf += data
            head, self.buf = self.buf.split(b"\r\n\r\n", 1)
            lines = head.decode("latin-1").split("\r\n")
            status = int(lines[0].split(" ")[1])
            headers = {k.strip().lower(): v.strip() for k, v in (line.split(":", 1) for line in lines[1:])}
            if status == 100:
                return self.next()
            n = int(headers.get("content-length", 0))
            while len(self.buf) < n:
                data = self.sock.recv(65536)
                if not data:
                    return "cut"
                self.buf += data
            body, self.buf = self.buf[:n], self.buf[n:]
            return status, headers, body
        except TimeoutError:
            return "timeout"
        except OSError:
            return "reset"


class Attack:
    """What one attack saw."""

    def __init__(self, server, seconds):
        self.server, self.port = server, server.port
        self.seconds = seconds
        self.until = time.monotonic() + seconds
        self.seen = collections.Counter()
        self.wrong = []
        self.lock = threading.Lock()

    def more(self):
        return time.monotonic() < self.until

    def took(self, answer, label=None):
        """Takes down an answer; its body must be the one shape of errors, but for those that hyper gives to broken heads."""
        with self.lock:
            if isinstance(answer, str):
                self.seen[(label + " " if label else "") + answer] += 1
                return answer
            status, headers, body = answer
            self.seen[(label + " " if label else "") + str(status)] += 1
            why = None
            if status == 204 and body:
                why = "204 with a body"
            elif status >= 400 and body:
                try:
                    x = json.loads(body)
                    if not (x["error"] and x["error"] == x["message"] and x["code"]):
                        why = f"body {body[:100]!r}"
                except (ValueError, KeyError):
                    why = f"body {body[:100]!r}"
                if status in (429, 503) and not headers.get("retry-after", "").isdigit():
                    why = f"{status} without Retry-After"
            elif status >= 400 and (status not in (400, 431) or "x-request-id" in headers):
                why = f"{status} without a body"
            if why:
                self.wrong.append(why)
            return status

    def once(self, raw, timeout=20, label=None):
        """One connection, one request, one answer."""
        try:
            s = connect(self.port, timeout)
        except OSError:
            return self.took("no connection", label)
        with s:
            # The server may answer and close before it has all.
            with contextlib.suppress(OSError):
                s.sendall(raw)
            return self.took(Answers(s).next(), label)

    def crowd(self, n, f):
        """`f(i)` in `n` threads."""
        threads = [threading.Thread(target=f, args=(i,), daemon=True) for i in range(n)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(self.seconds + 60)
        if any(t.is_alive() for t in threads):
            raise Problem("an attacker's thread hangs: the server neither answered nor closed")

    def repeat(self, bodies, threads=4, label=True):
        """Each of the named requests once, then again by turns from some threads until the time is up."""
        items = list(bodies.items())
        self.until = time.monotonic() + self.seconds
        for name, raw in items:
            self.once(raw, label=name if label else None)

        def run(i):
            r = rnd.Random(i)
            while self.more():
                name, raw = r.choice(items)
                self.once(raw, label=name if label else None)

        self.crowd(threads, run)


# --- bodies ---------------------------------------------------------------------------------------------------------


def gz_zeros(n):
    c = zlib.compressobj(9, zlib.DEFLATED, 31)
    out = [c.compress(bytes(16 * MIB)) for _ in range(n // (16 * MIB))]
    return b"".join(out) + c.flush()


def u32(n):
    return n.to_bytes(4, "big")


def text(s):
    s = s if isinstance(s, bytes) else s.encode()
    return (bytes([0xA0 | len(s)]) if len(s) < 32 else b"\xd9" + bytes([len(s)]) if len(s) < 256 else b"\xda" + len(s).to_bytes(2, "big")) + s


def array(n):
    return b"\xdd" + u32(n)


def mapping(n):
    return b"\xdf" + u32(n)


def columnar(columns, table="t"):
    """{"m": table, "columns": columns}; the values are encoded already."""
    return b"\x82" + text("m") + text(table) + text("columns") + mapping(len(columns)) + b"".join(text(k) + v for k, v in columns)


def stamp():
    return b"\xcf" + int(time.time() * 1000).to_bytes(8, "big")


# --- attacks --------------------------------------------------------------------------------------------------------


def calm(a):
    """No attack: what the others are compared with."""
    a.seen["none"] += 1


def gzip_bombs(a):
    member = gz_zeros(64 * MIB)
    lie = gz_zeros(256 * MIB)
    lie = lie[:-4] + (100).to_bytes(4, "little")
    a.repeat({
        "one": post(gz_zeros(1024 * MIB)),
        "members": post(member * 40),
        "tiny members": post(gzip.compress(b"") * 200_000),
        "lies": post(lie),
        "nested": post(gzip.compress(gzip.compress(member))),
        "cut": post(member[:-9]),
    })


def zstd_bombs(a):
    import zstandard

    def frame(n, **kw):
        return zstandard.ZstdCompressor(level=1, **kw).compress(bytes(n))

    magic = b"\x28\xb5\x2f\xfd"
    raw_block = (1 | (3 << 3)).to_bytes(3, "little") + b"\x81\xa1m"
    params = zstandard.ZstdCompressionParameters(window_log=27, compression_level=1)
    wide = zstandard.ZstdCompressor(compression_params=params).compressobj()
    wide = wide.compress(b"\xc0") + wide.flush()
    a.repeat({
        "one": post(frame(1024 * MIB)),
        "frames": post(frame(64 * MIB) * 40),
        "empty frames": post(frame(0) * 200_000),
        "skippable": post(magic + b"\x20\x00\x01\x00\x00" + (b"\x50\x2a\x4d\x18" + (0).to_bytes(4, "little")) * 500_000),
        "window 2^31": post(magic + b"\x00" + bytes([21 << 3]) + raw_block),
        "window 2^41": post(magic + b"\x00" + bytes([31 << 3]) + raw_block),
        "window 2^27": post(wide),
        "size 2^60": post(magic + b"\xe0" + (1 << 60).to_bytes(8, "little") + raw_block),
        "size 100 MiB": post(magic + b"\xa0" + (100 * MIB).to_bytes(4, "little") + raw_block),
        "size 1": post(magic + b"\x20\x01" + (1 | 2 | (MIB << 3) & 0xFFFFFF).to_bytes(3, "little") + b"\x00"),
        "nested": post(zstandard.compress(frame(64 * MIB))),
    })


def claims(a):
    """Lengths of 2^32 - 1 with nothing behind them, everywhere one may stand."""
    most = b"\xff\xff\xff\xff"
    heads = {"array": b"\xdd" + most, "map": b"\xdf" + most, "str": b"\xdb" + most, "bin": b"\xc6" + most, "ext": b"\xc9" + most + b"\x01"}
    bodies = {}
    for name, h in heads.items():
        bodies[name] = post(h)
        bodies[name + " of columns"] = post(b"\x82\xa1m\xa1t" + text("columns") + h)
        bodies[name + " in a column"] = post(columnar([("time", b"\x91" + stamp()), ("v", h + b"\x01")]))
        bodies[name + " as cell"] = post(columnar([("time", b"\x91" + stamp()), ("v", b"\x91" + h)]))
        bodies[name + " as batch"] = post(b"\x81" + text("batch") + h + b"\x80")
        bodies[name + " unknown"] = post(b"\x82" + text("x") + h + text("m") + text("t"))
        bodies[name + " of fields"] = post(b"\x82\xa1m\xa1t" + text("fields") + h)
    a.repeat(bodies, label=False)


def nesting(a):
    """10,000 and a million levels, where a value may be nested and where not."""
    bodies = {}
    for n in (10_000, 1_000_000):
        for name, h in (("arrays", b"\x91"), ("maps", b"\x81\xa1a"), ("wide arrays", b"\xdc\x00\x02\xc0")):
            deep = h * n + b"\x01"
            bodies[f"{n} {name}"] = post(deep)
            bodies[f"{n} {name} in a cell"] = post(columnar([("time", b"\x91" + stamp()), ("v", b"\x91" + deep)]))
            bodies[f"{n} {name} unknown"] = post(b"\x81" + text("x") + deep)
    a.repeat(bodies, label=False)


def cells(a):
    """Small bodies that become large tables: one-byte numbers, absent cells, long runs of nothing."""
    n = 40_000_000
    ints = columnar([("time", array(n) + b"\x01" * n), ("a", array(n) + b"\x01" * n), ("b", array(n) + b"\x02" * n)])
    nils = columnar([("time", array(n) + b"\x01" * n), ("a", array(n) + b"\xc0" * n)])
    sparse = [b"\x82\xa1m\xa1t" + text("fields") + b"\x81" + text(f"c{i}") + b"\xcb" + struct.pack(">d", 1.5) for i in range(1000)]
    sparse += [b"\x82\xa1m\xa1t" + text("fields") + b"\x81" + text("c0") + b"\xcb" + struct.pack(">d", 1.5)] * 60_000
    sparse = array(len(sparse)) + b"".join(sparse)
    empties = array(6_000_000) + b"\x80" * 6_000_000
    a.repeat({
        "ints": post(gzip.compress(ints, 1)),
        "nils": post(gzip.compress(nils, 1)),
        "sparse": post(gzip.compress(sparse, 1)),
        "empty items": post(gzip.compress(empties, 1)),
    }, threads=6)


def columns(a):
    """10,000 columns in one request, and by and by until the table is full."""
    def request(names, table):
        return post(columnar([("time", b"\x91" + stamp())] + [(n, b"\x91\x01") for n in names], table))

    a.once(request([f"c{i}" for i in range(10_000)], "wide"), label="at once")
    for i in range(0, 2000, 100):
        a.once(request([f"c{j}" for j in range(i, i + 100)], "grown"), label="grown")
    while a.more():
        a.once(request([f"c{i}" for i in range(10_000)], "wide"), label="at once")


def tables(a):
    """100,000 tables in one request, and by and by until the catalog is full."""
    def item(i):
        return columnar([("time", b"\x91" + stamp()), ("v", b"\x91\x01")], f"t{i}")

    def request(r):
        return post(b"\x81" + text("batch") + array(len(r)) + b"".join(item(i) for i in r))

    many = request(range(100_000))
    a.once(many, label="at once")
    for i in range(0, 2000, 50):
        a.once(request(range(i, i + 50)), label="by and by")
    while a.more():
        a.once(many, label="at once")


def hours(a):
    """Rows of 10,000 different hours."""
    def request(n):
        times = b"".join(b"\xcf" + (1_700_000_000_000 + i * 3_600_000).to_bytes(8, "big") for i in range(n))
        return post(columnar([("time", array(n) + times), ("v", array(n) + b"\x01" * n)], "hours"))

    a.once(request(300), label="300")
    many = request(10_000)
    while a.more():
        a.once(many, label="10000")


def names(a):
    """Names that are no names."""
    bad = [b"\xff\xfe", b"\xc0\xaf", b"\xed\xa0\x80", b"a\x00b", b"", b"\x1b[2J", b"x" * 300]
    cells = {}
    for i, n in enumerate(bad):
        cells[f"table {i}"] = post(b"\x82" + text("m") + text(n) + text("columns") + mapping(2) + text("time") + b"\x91" + stamp() + text("v") + b"\x91\x01")
        cells[f"column {i}"] = post(columnar([("time", b"\x91" + stamp()), (n, b"\x91\x01")]))
        cells[f"field {i}"] = post(b"\x82\xa1m\xa1t" + text("fields") + b"\x81" + text(n) + b"\x01")
    for n in ("..", "."):
        cells[f"table {n}"] = post(columnar([("time", b"\x91" + stamp()), ("v", b"\x91\x01")], n))
    for i, n in enumerate((b"\xff\xfe", b"../../etc", b"a" * 65, b"1a", b"a b", b"")):
        head = b"POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nx-arc-database: " + n + b"\r\nContent-Length: 1\r\n\r\n\x80"
        cells[f"database {i}"] = head
    cells["query"] = b"POST /api/v1/write/msgpack?db=%ff%fe HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n\x80"
    a.repeat(cells)


def big_bodies(a):
    """200 clients at a time with 50 MB each, which decode to nothing worth keeping."""
    body = b"\x82\xa1m\xa1t" + text("columns") + b"\x81" + text("v") + b"\x91\xc6" + u32(50_000_000) + rnd.Random(1).randbytes(50_000_000) + b"\x00"
    raw = post(body)
    del body
    a.crowd(200, lambda _: a.once(raw, timeout=60))


def announced(a):
    """200 clients announce 50 MB: some send nothing, some a little, some a byte a moment."""
    n = 200
    socks = []
    for i in range(n):
        s = connect(a.port)
        s.sendall(post(b"", length=50_000_000) + bytes(0 if i % 3 == 0 else 1000))
        socks.append(s)
    deadline = time.monotonic() + 20
    left = set(range(n))
    while left and time.monotonic() < deadline:
        for i in list(left):
            try:
                if i % 3 == 1:
                    socks[i].send(b"x")
                readable, _, _ = select.select([socks[i]], [], [], 0)
                if not readable:
                    continue
                a.took(Answers(socks[i]).next())
            except OSError:
                a.took("reset")
            left.discard(i)
            socks[i].close()
        time.sleep(0.2)
    for i in left:
        a.took("timeout")
        socks[i].close()


def half_sent(a):
    """Clients announce 50 MB, send 1 MB of it at once, and then stop."""
    socks = []
    for _ in range(200):
        s = connect(a.port)
        s.settimeout(1)
        with contextlib.suppress(OSError):
            s.sendall(post(bytes(MIB), length=50_000_000))
        s.settimeout(20)
        socks.append(s)
    a.crowd(len(socks), lambda i: (a.took(Answers(socks[i]).next()), socks[i].close()))


def slow_heads(a):
    """Heads that come byte by byte, or never."""
    socks = [connect(a.port) for _ in range(600)]
    raw = b"GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: " + b"y" * 1000
    sent = 0
    deadline = time.monotonic() + 12
    left = {s.fileno(): s for s in socks}
    while left and time.monotonic() < deadline:
        for i, s in enumerate(socks):
            if s.fileno() >= 0 and i % 2:
                with contextlib.suppress(OSError):
                    s.send(raw[sent : sent + 1])
        sent += 1
        p = select.poll()
        for fd in left:
            p.register(fd, select.POLLIN)
        for fd, _ in p.poll(100):
            s = left.pop(fd)
            a.took(Answers(s).next())
            s.close()
    for s in left.values():
        a.took("timeout")
        s.close()


def idle(a):
    """More connections than the server takes, all silent."""
    limit = SETTINGS["server.max_connections"]
    socks = []
    for _ in range(limit + 500):
        s = socket.socket()
        s.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            s.connect(("127.0.0.1", a.port))
        socks.append(s)
    ends = time.monotonic() + 15
    left = {s.fileno(): s for s in socks}
    p = select.poll()
    for fd in left:
        p.register(fd, select.POLLIN)
    while left and time.monotonic() < ends:
        for fd, _ in p.poll(200):
            s = left.pop(fd)
            p.unregister(fd)
            s.setblocking(True)
            s.settimeout(2)
            a.took(Answers(s).next())
            s.close()
    for s in left.values():
        a.took("timeout")
        s.close()


def deaf(a):
    """Clients that ask for much and never read: pipelines of thousands of requests, large answers."""
    socks = []
    asks = [b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n", post(b"\x80"), b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"]
    for i in range(200):
        s = connect(a.port, buffer=4096)
        s.setblocking(False)
        socks.append((s, asks[i % 4] * 5000))
    sent = [0] * len(socks)
    ends = time.monotonic() + max(a.seconds, 4)
    while time.monotonic() < ends:
        for i, (s, raw) in enumerate(socks):
            with contextlib.suppress(OSError):
                sent[i] += s.send(raw[sent[i] : sent[i] + 20_000])
        time.sleep(0.1)
    # They read nothing: the server has to close them when their time is up.
    wait_for("deaf clients to be closed", 30, lambda: a.server.metrics()["arc_http_connections"] < 50, every=0.5)
    a.seen["closed"] += len(socks)
    for s, _ in socks:
        s.close()


def pipelines(a):
    """Pipelines of thousands: all are answered, in order."""
    n = 3000
    raw = (post(b"\x80") + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n") * (n // 2)

    def send(s):
        with contextlib.suppress(OSError):
            s.sendall(raw)

    def run(_):
        with connect(a.port) as s:
            threading.Thread(target=send, args=(s,), daemon=True).start()
            answers = Answers(s)
            for i in range(n):
                got = a.took(answers.next())
                if got != (400, 200)[i % 2]:
                    a.wrong.append(f"answer {i} is {got}")
                    return

    a.crowd(8, run)


def half_closed(a):
    """Clients that say they will send no more: those that wait get their answers, those that leave cost little."""
    raw = post(columnar([("time", b"\x91" + stamp()), ("v", b"\x91\x01")], "half"))

    def run(i):
        while a.more():
            with contextlib.suppress(OSError), connect(a.port) as s:
                if i % 4 == 0:
                    s.sendall(raw)
                    s.shutdown(socket.SHUT_WR)
                    a.took(Answers(s).next(), "waits")
                elif i % 4 == 1:
                    s.sendall(raw)
                    s.shutdown(socket.SHUT_WR)
                elif i % 4 == 2:
                    s.sendall(raw[:-5])
                    s.shutdown(socket.SHUT_WR)
                    a.took(Answers(s).next(), "half a body")
                else:
                    s.sendall(raw[:40])
                    s.shutdown(socket.SHUT_WR)
                    a.took(Answers(s).next(), "half a head")

    a.crowd(16, run)


def headers(a):
    """Heads too long, in every way."""
    a.repeat({
        "number": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"".join(b"a%d: b\r\n" % i for i in range(2000)) + b"\r\n",
        "size": b"GET /health HTTP/1.1\r\nHost: x\r\nX: " + b"y" * MIB + b"\r\n\r\n",
        "endless": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"X: yyyyyyyyyyyyyyyyyyyyyyyyy\r\n" * 100_000,
        "line": b"GET /" + b"a" * MIB + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "query": b"GET /health?" + b"a=b&" * 7000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        "name": b"GET /health HTTP/1.1\r\nHost: x\r\n" + b"n" * 100_000 + b": v\r\n\r\n",
    }, threads=8)


def chunks(a):
    """Chunked bodies that are slow to say little, or wrong."""
    row = columnar([("time", b"\x91" + stamp()), ("v", b"\x91\x01")], "chunks")
    tiny = b"".join(b"1\r\n" + bytes([b]) + b"\r\n" for b in row) + b"0\r\n\r\n"
    many = b"1\r\nx\r\n" * 200_000 + b"0\r\n\r\n"
    a.repeat({
        "tiny": chunked(tiny),
        "many": chunked(many),
        "extensions": chunked(b"1;" + b"e" * 100_000 + b"\r\nx\r\n0\r\n\r\n"),
        "extensions each": chunked(b"1;eeeeeeeeeeeeeeeeeeee\r\nx\r\n" * 20_000 + b"0\r\n\r\n"),
        "trailers": chunked(b"1\r\nx\r\n0\r\n" + b"t: v\r\n" * 50_000 + b"\r\n"),
        "no number": chunked(b"zz\r\nx\r\n0\r\n\r\n"),
        "negative": chunked(b"-1\r\nx\r\n0\r\n\r\n"),
        "overflow": chunked(b"ffffffffffffffff1\r\nx\r\n0\r\n\r\n"),
        "no end of line": chunked(b"1\r\nxyz\r\n0\r\n\r\n"),
        "over the limit": chunked((b"%x\r\n" % MIB + bytes(MIB) + b"\r\n") * 66 + b"0\r\n\r\n"),
    })
    # A chunk that is announced and does not come is a body that is too slow.
    a.crowd(100, lambda _: a.once(chunked(b"7fffffffffffffff\r\n" + bytes(1000)), label="huge"))


def lengths(a):
    """Content-Length in conflict, negative, huge, and beside chunks."""
    def raw(h, body=b"\x80"):
        return (WRITE + h + "\r\n").encode() + body

    a.repeat({
        "two": raw("Content-Length: 1\r\nContent-Length: 2\r\n"),
        "list": raw("Content-Length: 1, 2\r\n"),
        "negative": raw("Content-Length: -1\r\n"),
        "plus": raw("Content-Length: +1\r\n"),
        "hex": raw("Content-Length: 0x1\r\n"),
        "words": raw("Content-Length: many\r\n"),
        "huge": raw("Content-Length: 18446744073709551614\r\n"),
        "over 64 bits": raw("Content-Length: 184467440737095516160\r\n"),
        "5 GB": raw("Content-Length: 5000000000\r\n"),
        "65 MB": raw("Content-Length: 70000000\r\n", bytes(2 * MIB)),
        "and chunks": raw("Content-Length: 1\r\nTransfer-Encoding: chunked\r\n", b"1\r\n\x80\r\n0\r\n\r\n"),
        "unknown coding": raw("Transfer-Encoding: gzip\r\n"),
    }, threads=6)


def expectations(a):
    """Expect: 100-continue that is never followed by a body, Upgrade, other protocols and versions."""
    get = "GET /health HTTP/1.1\r\nHost: x\r\n"
    a.repeat({
        "expect refused": (WRITE + "Expect: 100-continue\r\nContent-Length: 999999999\r\n\r\n").encode(),
        "expect bad": (WRITE + "Expect: the-worst\r\nContent-Length: 1\r\n\r\n").encode() + b"\x80",
        "websocket": (get + "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n").encode(),
        "h2c": (get + "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n\r\n").encode(),
        "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(100),
        "connect": b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "http/1.0": b"GET /health HTTP/1.0\r\n\r\n",
        "http/1.0 write": post(b"\x80").replace(b"HTTP/1.1", b"HTTP/1.0"),
        "http/0.9": b"GET /health\r\n\r\n",
        "http/9": b"GET /health HTTP/9.9\r\n\r\n",
        "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(300),
        "absolute": b"GET http://example.org/health HTTP/1.1\r\nHost: example.org\r\n\r\n",
        "smuggled": b"GET /health HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked, identity\r\n\r\n",
    })
    # The server says "100 Continue", then nothing comes: the connection ends without an answer.
    socks = []
    for _ in range(200):
        s = connect(a.port, timeout=20)
        s.sendall((WRITE + "Expect: 100-continue\r\nContent-Length: 50000000\r\n\r\n").encode())
        socks.append(s)
    a.crowd(len(socks), lambda i: (a.took(Answers(socks[i]).next(), "expect silent"), socks[i].close()))


def disconnects(a):
    """Thousands of clients that go away in the middle, with FIN and with RST."""
    row = post(columnar([("time", b"\x91" + stamp()), ("v", b"\x91" + text("y" * 1000))], "gone"))

    def run(i):
        r = rnd.Random(i)
        while a.more():
            with contextlib.suppress(OSError):
                s = connect(a.port)
                if r.random() < 0.5:
                    s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                s.sendall(row[: r.randrange(1, len(row) + 1)])
                s.close()
                with a.lock:
                    a.seen["left"] += 1

    a.crowd(8, run)


def keys(a):
    """More idempotency keys than are kept, each new."""
    n = SETTINGS["ingest.idempotency_max_keys"]
    row = columnar([("time", b"\x91" + stamp()), ("v", b"\x91\x01")], "keys")

    def run(i):
        with connect(a.port) as s:
            answers = Answers(s)
            for j in range(0, n, 50):
                s.sendall(b"".join(post(row, f"Idempotency-Key: {i}-{j + k}\r\n") for k in range(50)))
                for _ in range(50):
                    a.took(answers.next())
            for bad in ("", "x" * 129, "\x7f"):
                a.once(post(row, f"Idempotency-Key: {bad}\r\n"), label="bad")

    a.crowd(4, run)
    live = a.server.get_json("/api/v1/status")[1]["keys"]
    if not 0 < live <= n:
        a.wrong.append(f"{live} keys are kept, at most {n} may be")


def slow_status(a):
    """Readers of large answers that take their time, with a catalog that is full (see tables)."""
    socks = []
    for i in range(800):
        s = connect(a.port, buffer=4096)
        s.sendall(b"GET /api/v1/status HTTP/1.1\r\nHost: x\r\n\r\n")
        socks.append(s)
    time.sleep(max(2, a.seconds))

    def run(i):
        a.took(Answers(socks[i]).next())
        socks[i].close()

    a.crowd(len(socks), run)


# name, attack, outcomes that must be seen, and all that may be.
ATTACKS = [
    (calm, {"none"}, set()),
    (gzip_bombs, {"one 413", "members 413", "tiny members 400", "lies 413", "nested 400", "cut 400"}, {"one 503", "members 503", "lies 503", "nested 503", "tiny members 503", "cut 503"}),
    (zstd_bombs, {"one 413", "frames 413", "window 2^31 400", "window 2^41 400", "window 2^27 400", "size 2^60 400", "size 1 400", "size 100 MiB 400", "nested 400", "empty frames 400", "skippable 400"}, {"one 503", "frames 503", "size 2^60 503", "size 100 MiB 503", "nested 503", "skippable 503", "empty frames 503"}),
    (claims, {"400"}, set()),
    (nesting, {"400"}, {"503"}),
    (cells, {"ints 413", "nils 413", "sparse 413", "empty items 400"}, {"ints 503", "nils 503", "sparse 503", "empty items 503"}),
    (columns, {"at once 400", "grown 204", "grown 400"}, set()),
    (hours, {"300 204", "10000 413"}, set()),
    (
        names,
        {f"{k} {i} 400" for k in ("table", "column", "field") for i in range(7) if i > 2 or k != "table"}
        | {f"database {i} 400" for i in range(6)} | {"table . 400", "table .. 400", "query 400"},
        # What is not UTF-8 in a table's name is replaced, as in values.
        {f"table {i} 204" for i in range(3)},
    ),
    (keys, {"204", "bad 400"}, set()),
    (big_bodies, {"400"}, {"503", "reset"}),
    (announced, {"closed"}, {"503"}),
    (half_sent, {"closed"}, {"503"}),
    (slow_heads, {"closed"}, {"reset"}),
    (idle, {"closed"}, set()),
    (pipelines, {"400", "200"}, set()),
    (half_closed, {"waits 204", "half a body closed", "half a head closed"}, {"half a head 400"}),
    (headers, {"number 431", "size 431", "endless 431", "line 431", "query 200", "name 431"}, set()),
    (chunks, {"tiny 204", "many 400", "no number 400", "negative 400", "overflow 400", "huge closed", "no end of line 400", "over the limit 413", "extensions 400", "trailers 400"}, {"extensions each 400"}),
    (lengths, {"two 400", "list 400", "negative 400", "plus 400", "hex 400", "words 400", "huge 431", "over 64 bits 400", "5 GB 413", "65 MB 413", "and chunks 400", "unknown coding 400"}, set()),
    (expectations, {"expect refused 413", "http/1.0 200", "http/1.0 write 400", "expect silent closed"}, None),
    (disconnects, {"left"}, set()),
    (tables, {"at once 400", "by and by 204", "by and by 400"}, set()),
    (deaf, {"closed"}, set()),
    (slow_status, {"200"}, {"503"}),
]


def spell(r, server, people, watch, attack, must, may, args, table):
    name = attack.__name__
    a = Attack(server, args.seconds)
    base, fds_before = server.metrics(), watch.open_files()
    time.sleep(0.3)
    watch.reset()
    began = time.monotonic()
    attack(a)
    # Whoever was slowed by it counts to it.
    time.sleep(max(0.5, args.seconds - (time.monotonic() - began)))
    ended = time.monotonic()
    cpu = (watch.cpu() - watch.cpu0) / (ended - began)
    anon, fds = watch.anon / 1024, watch.fds
    if not server.alive():
        raise Problem(f"the server ended with {server.process.returncode}: {server.last_words()}")
    wait_for("the connections to end", 20, lambda: server.metrics()["arc_http_connections"] <= base["arc_http_connections"] + 8, every=0.2)
    after = server.metrics()
    time.sleep(0.3)
    fds_after = watch.open_files()
    mine = people.between(began, ended)
    writes, probes = [x for x in mine if x[1] == "w"], [x for x in mine if x[1] == "h"]
    acked = [x[2] for x in writes if x[3] == "acked"]
    lost = collections.Counter(x[3] for x in writes if x[3] != "acked")
    w50, w99 = percentile(acked, 0.5), percentile(acked, 0.99)
    h50, h99 = percentile([x[2] for x in probes], 0.5), percentile([x[2] for x in probes], 0.99)
    ratio = w99 / max(h99, 1)
    seen = set(a.seen)
    strange = set() if may is None else seen - must - may
    problems = []
    if must - seen:
        problems.append(f"never seen: {', '.join(sorted(must - seen))}")
    if strange:
        problems.append(f"not allowed: {', '.join(f'{s} x{a.seen[s]}' for s in sorted(strange))}")
    if a.wrong:
        problems.append(f"{len(a.wrong)} wrong answers, such as {a.wrong[0]}")
    if after["arc_http_in_flight_bytes"] > MIB:
        problems.append(f"{after['arc_http_in_flight_bytes']:.0f} bytes in flight are left over")
    # Segments and outputs may have come; sockets would be hundreds.
    if fds_after > fds_before + 24:
        problems.append(f"{fds_after} descriptors are open, {fds_before} were before")
    if after["arc_http_panics_total"] > base["arc_http_panics_total"]:
        problems.append("a handler panicked")
    cores = os.cpu_count()
    # Bodies and queue; for each core a large body (inflated into a buffer that grows, decoded, encoded); connections; the compactor.
    bound = args.idle_mib + 2 * IN_FLIGHT // MIB + cores * (MAX_INFLATED * 3 // 2 + 4 * MAX_RECORD + 2 * MAX_RECORD) // MIB + fds * READ_BUFFER // MIB + 512
    if anon > bound:
        problems.append(f"RssAnon {anon:.0f} MiB is over what the configuration implies, {bound} MiB")
    if len(acked) < 0.98 * len(writes) or len(writes) < 0.9 * 2 * RATE * (ended - began):
        problems.append(f"healthy clients: {len(acked)} of {len(writes)} writes acknowledged in {ended - began:.1f} s, {dict(lost)}")
    if ratio > args.most_ratio and w99 > args.most_ms:
        problems.append(f"healthy writes wait {ratio:.1f} times as long as /health")
    if w50 > args.most_median:
        problems.append(f"half of the healthy writes take more than {args.most_median:.0f} ms")
    shown = ", ".join(f"{k} x{v}" for k, v in sorted(a.seen.items()))
    details = (
        f"{ended - began:.1f} s; RssAnon {anon:.0f} MiB (implied bound {bound}), {cpu:.2f} cores, {fds} descriptors; writes p50 {w50:.1f} p99 {w99:.1f} ms, "
        f"/health p50 {h50:.1f} p99 {h99:.1f} ms, ratio of p99 {ratio:.2f}; acked {len(acked)} of {len(writes)}; answers: {shown}"
    )
    r.check(not problems, f"attacks/{name}", details + (f"; {'; '.join(problems)}" if problems else ""))
    table.append((name, anon, cpu, fds, w50, w99, h50, h99, ratio, len(acked), len(writes), shown))


def main():
    if sys.argv[1:2] == ["--healthy"]:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        return healthy(int(sys.argv[2]), sys.argv[3])
    args = parser(__doc__, seconds=4.0, only="", table="", most_ratio=10.0, most_ms=500.0, most_median=300.0).parse_args()
    r = Results()
    for module in ("msgpack", "zstandard"):
        try:
            __import__(module)
        except ImportError:
            r.skip("attacks", f"no Python module {module}")
            r.end()
    if not raise_nofile(6000):
        r.skip("attacks", "cannot open 6000 files (ulimit -n)")
        r.end()
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, SETTINGS).start().wait_ready()
    watch = Watch(server.pid)
    watch.start()
    people = Healthy(server, ledger)
    time.sleep(2)
    args.idle_mib = watch.anon // 1024
    wanted = args.only.split(",") if args.only else None
    table = []
    for attack, must, may in ATTACKS:
        if wanted is None or attack.__name__ in wanted:
            case(r, f"attacks/{attack.__name__}", spell, r, server, people, watch, attack, must, may, args, table)
    people.end()
    watch.on = False
    case(r, "attacks/rows", last, r, server, ledger, lake)
    if args.table:
        with open(args.table, "w") as f:
            f.write("| attack | RssAnon MiB | cores | fds | writes p50 / p99 ms | /health p50 / p99 ms | ratio | healthy acked |\n|---|---|---|---|---|---|---|---|\n")
            for n, anon, cpu, fds, w50, w99, h50, h99, ratio, acked, writes, _ in table:
                f.write(f"| {n} | {anon:.0f} | {cpu:.2f} | {fds} | {w50:.1f} / {w99:.1f} | {h50:.1f} / {h99:.1f} | {ratio:.2f} | {acked}/{writes} |\n")
    r.end()


def last(r, server, ledger, lake):
    server.flush(120)
    code = server.stop()
    judge(r, "attacks/rows", ledger, lake, f"exit {code}")


if __name__ == "__main__":
    main()

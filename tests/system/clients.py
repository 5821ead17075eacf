#!/usr/bin/env python3
"""Clients that others have made, unmodified, over TLS and with tokens: the load survives restarts and refusals, and every row is read back.

Each client writes `--rows` rows in its batches and with its retries. Meanwhile the server is stopped and killed and started again, refuses with
503 (a balancer before it, then the server itself with a full log), and one answer gets lost on its way. At the end pyarrow and DuckDB must find every row with
its values and types. These clients send no Idempotency-Key, so what they send again after a lost answer is stored twice: a row may be
there twice only if the client said that it sent it again without having had an answer, and how many are is printed.

Clients come from PyPI and npm at fixed versions, into ARC_SYSTEM_CACHE (else ~/.cache/arc-system); the programs that drive them
are in `clients/`. Needs openssl, and for the clients in JavaScript node 18 or later.
"""

import base64
import collections
import gzip
import hashlib
import secrets
import selectors
import ssl
import venv

from lib import *

PROGRAMS = os.path.join(HERE, "clients")
CACHE = os.path.join(os.environ.get("ARC_SYSTEM_CACHE") or os.path.expanduser("~/.cache/arc-system"), "clients")
NPM = ["@influxdata/influxdb-client@1.35.0", "influx@5.12.0", "@influxdata/influxdb3-client@2.1.0"]

Kind = collections.namedtuple("Kind", "title program packages parameters newline")
KINDS = {
    "v2": Kind("influxdb-client 1.50.0 (PyPI)", "v2.py", ["influxdb-client==1.50.0"], {}, "\n"),
    "v3": Kind("influxdb3-python 0.21.0 (PyPI)", "v3.py", ["influxdb3-python==0.21.0"], {}, "\n"),
    # This client writes a newline in a text as a backslash and an n.
    "v1": Kind("influxdb 5.3.2 (PyPI)", "v1.py", ["influxdb==5.3.2"], {}, "\\n"),
    "arc-columnar": Kind("arc-tsdb-client 0.1.2 (PyPI), columnar", "arc.py", ["arc-tsdb-client==0.1.2"], {"format": "columnar"}, "\n"),
    "arc-rows": Kind("arc-tsdb-client 0.1.2 (PyPI), rows", "arc.py", ["arc-tsdb-client==0.1.2"], {"format": "rows"}, "\n"),
    "arc-line": Kind("arc-tsdb-client 0.1.2 (PyPI), line protocol", "arc.py", ["arc-tsdb-client==0.1.2"], {"format": "line"}, "\n"),
    "arc-buffered": Kind("arc-tsdb-client 0.1.2 (PyPI), buffered", "arc.py", ["arc-tsdb-client==0.1.2"], {"format": "buffered"}, "\n"),
    "js-v2": Kind("@influxdata/influxdb-client 1.35.0 (npm)", "v2.mjs", None, {}, "\n"),
    "js-v1": Kind("influx 5.12.0 (npm)", "v1.mjs", None, {}, "\n"),
    "js-v3": Kind("@influxdata/influxdb3-client 2.1.0 (npm)", "v3.mjs", None, {}, "\n"),
}
READER = ["duckdb==1.5.5", "pyarrow==26.0.1"]


# --- what is installed -----------------------------------------------------------------------------------------------------------


def installed(name, packages, make):
    """A directory of the cache with these packages in it; made once, and only then named in `done`."""
    where = os.path.join(CACHE, f"{name}-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:8]}")
    if not os.path.exists(where + "/done"):
        shutil.rmtree(where, ignore_errors=True)
        os.makedirs(where)
        p = make(where)
        if p.returncode != 0:
            raise Missing(f"{' '.join(packages)} cannot be installed: {p.stderr.decode(errors='replace').strip()[-300:]}")
        with open(where + "/done", "w"):
            pass
    return where


class Missing(Exception):
    """Something this machine does not have."""


def python_with(name, packages):
    def make(where):
        venv.create(where, with_pip=True)
        return subprocess.run([where + "/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages], capture_output=True, timeout=600, check=False)

    return installed(name, packages, make) + "/bin/python"


def node_modules():
    if shutil.which("node") is None or shutil.which("npm") is None:
        raise Missing("no node and npm")

    def make(where):
        with open(where + "/package.json", "w") as f:
            f.write('{"private": true}')
        return subprocess.run(["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *NPM], cwd=where, capture_output=True, timeout=600, check=False)

    return installed("js", NPM, make)


def certificates(d):
    """A CA of our own and a certificate for localhost; returns (ca, cert, key)."""
    new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    with open(d + "/ext", "w") as f:
        f.write("subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\nauthorityKeyIdentifier=keyid\nsubjectKeyIdentifier=hash\n")
    for args in (
        ["req", "-x509", *new, "-keyout", d + "/ca.key", "-out", d + "/ca.pem", "-days", "2", "-subj", "/CN=CA of a test", "-addext", "keyUsage=critical,keyCertSign,cRLSign"],
        ["req", *new, "-keyout", d + "/key.pem", "-out", d + "/csr", "-subj", "/CN=localhost"],
        ["x509", "-req", "-in", d + "/csr", "-CA", d + "/ca.pem", "-CAkey", d + "/ca.key", "-CAcreateserial", "-out", d + "/cert.pem", "-days", "2", "-extfile", d + "/ext"],
    ):
        subprocess.run(["openssl", *args], check=True, capture_output=True)
    return d + "/ca.pem", d + "/cert.pem", d + "/key.pem"


# --- the server, and what stands before it ---------------------------------------------------------------------------------------


class Secured(Server):
    """A server with TLS and tokens. Asked as the administrator."""

    def __init__(self, d, certs, **settings):
        self.ca, cert, key = certs
        self.admin = "admin-" + secrets.token_hex(24)
        secure = {"auth.enabled": "true", "auth.token_file": d + "/tokens.json", "server.tls_enabled": "true", "server.tls_cert_file": cert, "server.tls_key_file": key}
        super().__init__(d + "/wal", d + "/lake", d, {**secure, **settings}, free_port())
        self.environment = {"ARC_AUTH_BOOTSTRAP_TOKEN": self.admin}
        self.context = ssl.create_default_context(cafile=self.ca)

    @property
    def url(self):
        return f"https://localhost:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=10):
        c = http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=self.context)
        try:
            c.request(method, path, body=body, headers={"Authorization": f"Bearer {self.admin}", **(headers or {})})
            r = c.getresponse()
            return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
        finally:
            c.close()

    def tables(self):
        """All tables, page by page."""
        found, offset = set(), 0
        while offset is not None:
            status = self.get_json(f"/api/v1/status?offset={offset}&limit=1000")[1]
            found |= {(t["database"], t["table"]) for t in status["tables"]}
            offset = status["tables_next_offset"]
        return found

    def token(self, name, permissions, **more):
        body = json.dumps({"name": name, "permissions": permissions, **more})
        status, _, data = self.request("POST", "/api/v1/auth/tokens", body, {"Content-Type": "application/json"})
        if status != 201:
            raise Problem(f"making a token was answered {status}: {data[:300]!r}")
        return json.loads(data)["token"]

    def tokens(self, database):
        return {
            "token": self.token("write", ["write"]), "read_token": self.token("read", ["read"]), "admin_token": self.admin,
            "other_token": self.token("other", ["write"], databases=["somewhere-else"]),
        }


class Switch(threading.Thread):
    """Carries TCP to the server without looking into it, until told otherwise.

    `refuse`: nobody listens. `spell`: new connections reach a server that answers 503, those there are closed once they are quiet.
    `cut_half`: of the next request only its beginning is carried, then `struck` is called and the connections end.
    `cut_answer`: the next answer to a request is not carried; the connection ends.
    """

    REQUEST = 1500  # more bytes than this from the client, after the last from the server, are a request and not a handshake

    def __init__(self, upstream, busy):
        super().__init__(daemon=True)
        self.upstream, self.busy = upstream, busy
        self.lock = threading.RLock()
        self.selector = selectors.DefaultSelector()
        self.pairs = {}
        self.listener, self.port = None, 0
        self.mode, self.struck = "carry", None
        self.cuts = {"half": 0, "answer": 0}
        self.running = True
        self.listen()
        defer(self.end)
        self.start()

    def listen(self):
        with self.lock:
            s = socket.socket()
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            s.bind(("127.0.0.1", self.port))
            s.listen(64)
            self.listener, self.port = s, s.getsockname()[1]
            self.selector.register(s, selectors.EVENT_READ)

    def refuse(self):
        with self.lock:
            if self.listener:
                self.selector.unregister(self.listener)
                self.listener.close()
                self.listener = None
            self.close_all()

    def set(self, mode, struck=None):
        with self.lock:
            self.mode, self.struck = mode, struck

    def close(self, s, hard=False):
        pair = self.pairs.get(s)
        if pair is None:
            return
        for x in (pair["client"], pair["server"]):
            self.pairs.pop(x, None)
            self.selector.unregister(x)
            if hard:
                x.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            x.close()

    def close_all(self, hard=False):
        for s in list(self.pairs):
            self.close(s, hard)

    def accept(self):
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(("127.0.0.1", self.busy.port if self.mode == "spell" else self.upstream), timeout=2)
        except OSError:
            client.close()
            return
        pair = {"client": client, "server": server, "asked": 0, "quiet": time.monotonic(), "away": self.mode == "spell"}
        for s in (client, server):
            s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            s.settimeout(10)
            self.pairs[s] = pair
            self.selector.register(s, selectors.EVENT_READ)

    def carry(self, s):
        pair = self.pairs.get(s)
        if pair is None:
            return
        try:
            data = s.recv(65536)
            if not data:
                self.close(s)
                return
            if s is pair["client"]:
                if self.mode == "cut_half" and pair["asked"] + len(data) > self.REQUEST:
                    pair["server"].sendall(data[: max(0, self.REQUEST - 100 - pair["asked"])])
                    self.mode, struck = "carry", self.struck
                    self.cuts["half"] += 1
                    struck()
                    self.close_all(hard=True)
                    return
                pair["asked"] += len(data)
                pair["server"].sendall(data)
            else:
                if self.mode == "cut_answer" and pair["asked"] > self.REQUEST:
                    self.mode = "carry"
                    self.cuts["answer"] += 1
                    self.close(s, hard=True)
                    return
                pair["asked"] = 0
                pair["client"].sendall(data)
            pair["quiet"] = time.monotonic()
        except OSError:
            self.close(s, hard=True)

    def run(self):
        while self.running:
            ready = self.selector.select(0.002 if self.mode == "spell" else 0.02)
            with self.lock:
                for key, _ in ready:
                    if key.fileobj is self.listener:
                        self.accept()
                    else:
                        self.carry(key.fileobj)
                if self.mode == "spell":
                    for s, pair in list(self.pairs.items()):
                        if not pair["away"] and not pair["asked"] and time.monotonic() - pair["quiet"] > 0.003:
                            self.close(s)

    def end(self):
        self.running = False
        self.join(5)
        self.refuse()


class Busy(threading.Thread):
    """What a balancer says while nobody is there to serve: 503, no JSON, Retry-After."""

    BODY = b"<html><body><h1>503 Service Unavailable</h1>No server is available to handle this request.</body></html>\n"

    def __init__(self, certs):
        super().__init__(daemon=True)
        self.answers = 0
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certs[1], certs[2])
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        defer(self.listener.close)
        self.start()

    def run(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.answer, args=(s,), daemon=True).start()

    def answer(self, s):
        with contextlib.suppress(OSError, ValueError):
            s.settimeout(10)
            with self.context.wrap_socket(s, server_side=True) as t, t.makefile("rb") as f:
                length, chunked = 0, False
                for line in iter(f.readline, b"\r\n"):
                    if not line:
                        return
                    name, _, value = line.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                    chunked |= name.lower() == b"transfer-encoding"
                while chunked:
                    length = int(f.readline(), 16)
                    f.read(length + 2)
                    chunked = length > 0
                    length = 0
                f.read(length)
                self.answers += 1
                t.sendall(b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/html\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(self.BODY) + self.BODY)


# --- a client at work ------------------------------------------------------------------------------------------------------------


class Program:
    """A client program under way."""

    def __init__(self, d, kind, parameters, ca):
        self.acked, self.again, self.lost, self.checks, self.stored, self.ended = 0, [], [], [], None, False
        self.phase = "start"
        if kind.packages is None:
            command, parameters = ["node"], {**parameters, "modules": node_modules() + "/"}
        else:
            command = [python_with(kind.packages[0].split("=")[0], kind.packages)]
        # The ways these clients document for a CA of one's own, where they have no option for it.
        env = {**clean_env(), "REQUESTS_CA_BUNDLE": ca, "SSL_CERT_FILE": ca, "PYTHONDONTWRITEBYTECODE": "1"}
        self.err = d + "/client.err"
        with open(self.err, "ab") as err:
            self.process = subprocess.Popen(
                [*command, os.path.join(PROGRAMS, kind.program), json.dumps({**parameters, **kind.parameters, "ca": ca})],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=env, text=True,
            )
        self._entry = defer(Server._kill, self.process)
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            try:
                x = json.loads(line)
            except ValueError:
                continue
            ev = x.pop("ev")
            if ev == "ack":
                self.acked += x["rows"]
            elif ev == "end":
                self.ended = True
            elif ev == "stored":
                self.stored = x["ids"]
            else:
                x["phase"] = self.phase
                {"again": self.again, "lost": self.lost, "check": self.checks}[ev].append(x)

    def alive(self):
        return self.process.poll() is None

    def words(self):
        with open(self.err, errors="replace") as f:
            return " | ".join(f.read().strip().splitlines()[-4:])[-600:]

    def wait(self, timeout):
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise Problem(f"the client did not end within {timeout} s: {self.acked} rows written, {self.words()}") from None
        self.reader.join(10)
        undo(self._entry)
        if code != 0 or not self.ended:
            raise Problem(f"the client ended with {code}: {self.words()}")

    def count(self, kind):
        return sum(a["kind"] == kind for a in self.again)


def spans(ranges):
    return sum(b - a + 1 for a, b in ranges)


def outside(inner, outer):
    """Those of the ids in `inner` that are in none of `outer`; both are lists of [first, last]."""
    ids = set()
    for a, b in outer:
        ids.update(range(a, b + 1))
    return [i for a, b in inner for i in range(a, b + 1) if i not in ids]


def read_back(lake, **parameters):
    p = subprocess.run([python_with("reader", READER), os.path.join(PROGRAMS, "readback.py"), json.dumps({"lake": lake, **parameters})], capture_output=True, timeout=300, check=False)
    if p.returncode != 0:
        raise Problem(f"reading back: {p.stderr.decode(errors='replace').strip()[-600:]}")
    return json.loads(p.stdout.decode().splitlines()[-1])


WANTED_TYPES = {
    "time": "timestamp[us, tz=UTC]", "host": "string", "region": "string", "id": "int64", "big": "int64", "value": "double", "text": "string", "ok": "bool", "maybe": "double",
}


def load(r, args, name, certs):
    """The load with all its mishaps."""
    kind = KINDS[name]
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    tokens = server.tokens("metrics")
    busy = Busy(certs)
    switch = Switch(server.port, busy)
    rate = args.rows / args.seconds
    program = Program(
        d, kind,
        {"mode": "load", "url": f"https://localhost:{switch.port}", "host": "localhost", "port": switch.port, "database": "metrics", "table": "load", "rows": args.rows,
         "batch": min(1000, max(50, args.rows // 100)), "rate": rate, **tokens},
        certs[0],
    )
    told, started = [], time.monotonic()

    def reach(fraction):
        def look():
            if not program.alive() and program.acked < args.rows * fraction:
                raise Problem(f"the client ended with {program.process.returncode} after {program.acked} rows: {program.words()}")
            return program.acked >= args.rows * fraction

        wait_for(f"{fraction:.0%} of the rows", 60 + args.seconds, look)

    def restart(how, **settings):
        """Down for a second; the clients meet refused connections, then a server that may not be ready yet."""
        down = time.monotonic()
        code = how()
        # What the server answered last must get through the switch.
        time.sleep(0.3)
        switch.refuse()
        time.sleep(1)
        server.start(**settings)
        switch.listen()
        server.wait_ready()
        return code, time.monotonic() - down

    def half_then_kill():
        dead = threading.Event()

        def struck():
            server.process.kill()
            dead.set()

        switch.set("cut_half", struck)
        if not dead.wait(60):
            raise Problem("no request came to be cut in half")
        server.process.wait()
        server.kill()

    reach(0.08)
    program.phase = "SIGTERM"
    code, took = restart(server.stop)
    told.append(f"SIGTERM (exit {code}, away {took:.1f} s)")
    reach(0.22)
    program.phase = "SIGKILL"
    _, took = restart(half_then_kill)
    told.append(f"SIGKILL in a request (away {took:.1f} s)")
    reach(0.36)
    program.phase = "lost answer"
    switch.set("cut_answer")
    wait_for("an answer to lose", 60, lambda: switch.cuts["answer"] == 1)
    told.append("1 answer lost")
    reach(0.5)
    program.phase = "balancer"
    switch.set("spell")
    time.sleep(args.spell)
    wait_for("a 503 of the balancer", 60, lambda: busy.answers > 0)
    switch.set("carry")
    told.append(f"{args.spell:.0f} s of a balancer's 503 ({busy.answers} answers)")
    reach(0.65)
    program.phase = "full log"
    # The rows of about a twelfth of the load fill this log.
    limit = max(96 << 10, args.rows * 6)
    restart(server.stop, compaction__paused="true", compaction__trigger_size=limit // 8, wal__segment_size=limit // 16, wal__max_size=limit, wal__reserve=limit // 4, ingest__max_record_size=limit // 2)
    before = program.count("refused")
    wait_for("the log to be full", 90 + args.seconds, lambda: server.ready()[1].get("reason") == "backlog" and program.count("refused") > before)
    time.sleep(args.spell)
    full = program.count("refused") - before
    program.phase = "second SIGTERM"
    code, took = restart(server.stop)
    told.append(f"{args.spell:.0f} s of the server's own 503 with a full log ({full} answers noted), SIGTERM (exit {code}, away {took:.1f} s)")
    program.wait(240 + args.seconds)
    took = time.monotonic() - started
    server.flush()
    code = server.stop()
    found = read_back(server.lake, database="metrics", table="load", rows=args.rows, newline=kind.newline)
    unclear = [x for a in program.again if a["kind"] == "unclear" for x in a["ids"]]
    unexplained = outside(found["doubled"], unclear)
    twice = found["rows"] - found["distinct"]
    lost = sum(spans(x["ids"]) for x in program.lost)
    by_phase = {}
    for a in program.again:
        if a["kind"] == "unclear":
            by_phase.setdefault(a["phase"], []).extend(a["ids"])
    # A batch may have gone unanswered more than once: what was meant to lose an answer is taken for the reason first.
    doubled_by, left = {}, found["doubled"]
    for phase in sorted(by_phase, key=lambda p: (p != "lost answer", p != "SIGKILL")):
        rest = outside(left, by_phase[phase])
        if rest != [i for x, y in left for i in range(x, y + 1)]:
            doubled_by[phase] = spans(left) - len(rest)
        left = [[i, i] for i in rest]
    # Who is stopped in good order answers what it has taken; and what is refused is not stored.
    orderly = not set(doubled_by) - {"SIGKILL", "lost answer"}
    good = (
        program.acked == args.rows and not lost and not found["missing"] and not found["foreign"] and not found["different"] and not unexplained
        and found["types"] == WANTED_TYPES and found["duckdb"] == [found["rows"], found["distinct"]] and twice > 0 and code == 0 and orderly
    )
    text = (
        f"{kind.title}: sent {args.rows}, acked {program.acked}, distinct {found['distinct']}, total {found['rows']}, doubled {twice} {doubled_by} "
        f"of {spans(unclear)} rows sent again without an answer; batches sent again: after 503 {program.count('refused')}, unreached {program.count('unreached')}, unclear {program.count('unclear')}; "
        f"{', '.join(told)}; {found['files']} files, {took:.0f} s"
    )
    for what, bad in (
        ("given up", program.lost[:2]), ("missing", found["missing"][:5]), ("foreign", found["foreign"]), ("different", found["different"]),
        ("doubled without reason", unexplained[:10]), ("duckdb", found["duckdb"] if found["duckdb"] != [found["rows"], found["distinct"]] else None),
        ("types", found["types"] if found["types"] != WANTED_TYPES else None), ("exit code", code), ("doubled by an orderly stop or a refusal", None if orderly else doubled_by),
        ("the lost answer doubled nothing", not twice),
    ):
        if bad:
            text += f"; {what}: {bad}"
    r.check(good, f"clients/load/{name}", text)


def checks(r, args, name, certs):
    """Health, tokens, errors: what the client makes of the answers, and which rows stay."""
    kind = KINDS[name]
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    program = Program(
        d, kind, {"mode": "checks", "url": server.url, "host": "localhost", "port": server.port, "database": "checks", "table": "load", **server.tokens("checks")}, certs[0]
    )
    problem = None
    try:
        program.wait(120)
    except Problem as e:
        problem = str(e)
    server.flush()
    server.stop()
    for c in program.checks:
        note(f"{name} {c['name']}: {'' if c['ok'] else 'NOT AS EXPECTED: '}{c['details']}")
    bad = [f"{c['name']}: {c['details']}" for c in program.checks if not c["ok"]] + ([problem] if problem else [])
    if program.stored is not None:
        ids = read_back(server.lake, database="checks", table="errors", rows=0, newline="", ids_only=True)["ids"]
        if ids != program.stored:
            bad.append(f"rows stored: {ids}, expected {program.stored}")
    r.check(
        not bad and len(program.checks) > 3, f"clients/checks/{name}",
        f"{kind.title}: {len(program.checks)} checks ({', '.join(c['name'] for c in program.checks)}), rows stored {program.stored}" if not bad else " || ".join(bad),
    )


# --- Telegraf ----------------------------------------------------------------------------------------------------------------------


def pack(x):
    """MessagePack as a Go encoder writes it: integers as short as can be, floats whole."""
    if x is None:
        return b"\xc0"
    if isinstance(x, bool):
        return b"\xc3" if x else b"\xc2"
    if isinstance(x, int):
        if 0 <= x < 128:
            return bytes([x])
        return b"\xd3" + x.to_bytes(8, "big", signed=True) if x < 1 << 63 else b"\xcf" + x.to_bytes(8, "big")
    if isinstance(x, float):
        return b"\xcb" + struct.pack(">d", x)
    if isinstance(x, str):
        b = x.encode()
        return (bytes([0xA0 | len(b)]) if len(b) < 32 else b"\xda" + len(b).to_bytes(2, "big")) + b
    if isinstance(x, list):
        return b"\xdc" + len(x).to_bytes(2, "big") + b"".join(map(pack, x))
    return b"\xde" + len(x).to_bytes(2, "big") + b"".join(pack(k) + pack(v) for k, v in x.items())


def telegraf(r, args, certs):
    """Requests in the shape of Telegraf's outputs arc, influxdb, influxdb_v2 and influxdb_v3, read from their sources; Telegraf itself has no package here.

    All but arc's compress into a stream, so their bodies are chunked and gzip.
    """
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    tokens = server.tokens("telegraf")
    agent = {"User-Agent": "Telegraf/1.40.0 Go/1.26.0", "Accept-Encoding": "gzip"}
    seen = []

    def post(name, want, path, body, headers, chunked=False, text=None):
        c = http.client.HTTPSConnection("localhost", server.port, timeout=5, context=server.context)
        try:
            if chunked:
                c.request("POST", path, body=iter([body[i : i + 700] for i in range(0, len(body), 700)]), headers={**agent, **headers, "Transfer-Encoding": "chunked"}, encode_chunked=True)
            else:
                c.request("POST", path, body=body, headers={**agent, **headers})
            answer = c.getresponse()
            data = answer.read()
        finally:
            c.close()
        ok = answer.status == want and (want != 204 or data == b"")
        if want >= 400 or path == "/query":
            try:
                said = json.loads(data)
                ok = ok and (want == 200 or isinstance(said.get("error"), str)) and (text is None or text in said["error"])
            except ValueError:
                ok = False
        seen.append((name, ok, f"{answer.status} {data[:200].decode(errors='replace')}"))

    t0 = 1767225600_000
    n = 1000
    arc = {"Content-Type": "application/msgpack", "Content-Encoding": "gzip", "x-api-key": tokens["token"], "x-arc-database": "telegraf"}
    cpu = {"m": "cpu", "columns": {"time": [t0 + i * 10 for i in range(n)], "id": list(range(n)), "host": [f"h{i % 10}" for i in range(n)], "usage": [None if i % 9 == 0 else i / 7 for i in range(n)], "uptime": [1 << 40] * n}}
    mem = {"columns": {"used": [i * 1.5 for i in range(n)], "time": [t0 + i * 10 for i in range(n)], "id": list(range(n)), "host": ["h"] * n}, "m": "mem"}
    post("arc, one table", 204, "/api/v1/write/msgpack", gzip.compress(pack(cpu)), arc)
    post("arc, several tables", 204, "/api/v1/write/msgpack", gzip.compress(pack([mem, {**cpu, "m": "cpu2"}])), arc)
    post("arc, wrong key", 401, "/api/v1/write/msgpack", gzip.compress(pack(cpu)), {**arc, "x-api-key": "wrong"})
    post("arc, conflict", 400, "/api/v1/write/msgpack", gzip.compress(pack({"m": "cpu", "columns": {"time": [t0], "host": [1.5]}})), arc)

    basic = {"Authorization": "Basic " + base64.b64encode(b"telegraf:" + tokens["token"].encode()).decode()}
    line = {"Content-Type": "text/plain; charset=utf-8", "Content-Encoding": "gzip"}

    def lines(table, unit):
        return "".join(f"{table},host=h\\ {i % 10},cpu=cpu-total id={i}i,usage={i / 7!r},up={'true' if i % 2 else 'false'},text=\"a \\\"b\\\"\" {(t0 + i * 10) * unit}\n" for i in range(n)).encode()

    # Telegraf's databases are made with the token it writes with.
    post("influxdb, create database", 200, "/query", "q=CREATE+DATABASE+%22telegraf%22", {**basic, "Content-Type": "application/x-www-form-urlencoded"})
    post("influxdb", 204, "/write?db=telegraf", gzip.compress(lines("v1", 1_000_000)), {**basic, **line}, chunked=True)
    post("influxdb, rp and consistency", 204, "/write?consistency=any&db=telegraf&rp=autogen", gzip.compress(lines("v1b", 1_000_000)), {**basic, **line}, chunked=True)
    post("influxdb, conflict", 400, "/write?db=telegraf", gzip.compress(b'v1 id="text" 1\nv1 id=5000i 2\n'), {**basic, **line}, chunked=True, text="partial write")
    post("influxdb, unparsable", 400, "/write?db=telegraf", gzip.compress(b"v1 id= 1\n"), {**basic, **line}, chunked=True, text="unable to parse")
    v2 = {"Authorization": f"Token {tokens['token']}", **line}
    post("influxdb_v2", 204, "/api/v2/write?bucket=telegraf&org=influxdata", gzip.compress(lines("v2", 1_000_000)), v2, chunked=True)
    post("influxdb_v2, conflict", 422, "/api/v2/write?bucket=telegraf&org=influxdata", gzip.compress(b'v2 id="text" 1\nv2 id=5000i 2\n'), v2, chunked=True)
    v3 = {"Authorization": f"Bearer {tokens['token']}", **line}
    post("influxdb_v3", 204, "/api/v3/write_lp?db=telegraf", gzip.compress(lines("v3", 1_000_000)), v3, chunked=True)
    post("influxdb_v3, conflict", 400, "/api/v3/write_lp?db=telegraf", gzip.compress(b'v3 id="text" 1\nv3 id=5000i 2\n'), v3, chunked=True, text="partial write")
    post("influxdb_v2, wrong token", 401, "/api/v2/write?bucket=telegraf&org=influxdata", gzip.compress(lines("v2", 1_000_000)), {**v2, "Authorization": "Token wrong"}, chunked=True)
    server.flush()
    server.stop()
    for table, ids in (("cpu", n), ("mem", n), ("cpu2", n), ("v1", n + 1), ("v1b", n), ("v2", n + 1), ("v3", n + 1)):
        found = read_back(server.lake, database="telegraf", table=table, rows=0, newline="", ids_only=True)
        want = list(range(n)) + ([5000] if ids > n else [])
        seen.append((f"rows of {table}", found["ids"] == want and found["rows"] == ids, f"{found['rows']} rows"))
    for name, ok, text in seen:
        note(f"telegraf {name}: {'' if ok else 'NOT AS EXPECTED: '}{text}")
    bad = [f"{name}: {text}" for name, ok, text in seen if not ok]
    r.check(not bad, "clients/telegraf", f"{len(seen)} checks: {', '.join(s[0] for s in seen)}" if not bad else " || ".join(bad))


# --- the examples of the documentation ---------------------------------------------------------------------------------------------


def examples(r, args, certs):
    """Each example of docs/clients.md is run as it stands there, but for the address, the token and the CA; each writes one row."""
    with open(os.path.join(REPO, "docs", "clients.md")) as f:
        page = f.read()
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    token = server.tokens("metrics")["token"]
    ran, bad = [], []
    for section in page.split("\n## ")[1:]:
        title = section.split("\n", 1)[0].split(" ")[0]
        for language, code in re.findall(r"^```(python|js)\n(.*?)^```", section, re.S | re.M):
            for old, new in (("arc.example:8000", f"localhost:{server.port}"), ("arc.example", "localhost"), ("8000", str(server.port)), ("ca.pem", certs[0])):
                code = code.replace(old, new)
            if language == "js":
                if shutil.which("node") is None:
                    r.skip(f"clients/examples/{title}", "no node")
                    ran.append(f"{title} (skipped)")
                    continue
                where = os.path.join(d, "example.mjs")
                if not os.path.exists(d + "/node_modules"):
                    os.symlink(node_modules() + "/node_modules", d + "/node_modules")
                command, first = ["node", where], f"const TOKEN = {json.dumps(token)}\n"
            else:
                where = os.path.join(d, "example.py")
                package = next(k.packages for k in KINDS.values() if k.packages and k.packages[0].split("=")[0] == title)
                command, first = [python_with(title, package), where], f"TOKEN = {token!r}\n"
            with open(where, "w") as f:
                f.write(first + code)
            try:
                p = subprocess.run(command, cwd=d, env={**clean_env(), "REQUESTS_CA_BUNDLE": certs[0], "SSL_CERT_FILE": certs[0]}, capture_output=True, timeout=60, check=False)
                said, code = (p.stdout + p.stderr).decode(errors="replace").strip(), p.returncode
            except subprocess.TimeoutExpired:
                said, code = "", "no end within 60 s"
            rows = server.flush()["rows"]
            ran.append(f"{title} ({language})")
            if code != 0 or said or rows != 1:
                bad.append(f"{title}: exit {code}, {rows} rows, {said[-300:]}")
    server.stop()
    if len(ran) != 7:
        bad.append(f"expected 7 examples, found {ran}")
    r.check(not bad, "clients/examples", f"{', '.join(ran)}: one row each" if not bad else " || ".join(bad))


# --- glances: a monitor with three exporters ---------------------------------------------------------------------------------------


GLANCES = ["glances==4.5.8", "influxdb==5.3.2", "influxdb-client==1.50.0", "influxdb3-python==0.21.0"]


def glances(r, args, certs):
    """glances from PyPI with its exporters for InfluxDB v1, v2 and v3, as it is."""
    python = python_with("glances", GLANCES)
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    token = server.tokens("glances")["token"]
    # The databases need not be made: they are there once something is written to them.
    where = f"host={{}}\nport={server.port}\nprotocol=https\n"
    with open(d + "/glances.conf", "w") as f:
        f.write(
            f"[influxdb]\n{where.format('localhost')}user=any\npassword={token}\ndb=glances1\n"
            f"[influxdb2]\n{where.format('localhost')}user=any\npassword=any\norg=any\nbucket=glances2\ntoken={token}\ninterval=1\n"
            f"[influxdb3]\n{where.format('https://localhost:' + str(server.port))}org=any\ndatabase=glances3\ntoken={token}\n"
        )
    env = {**clean_env(), "SSL_CERT_FILE": certs[0], "REQUESTS_CA_BUNDLE": certs[0], "HOME": d, "XDG_CACHE_HOME": d}
    seen, bad = [], []
    for n, export in enumerate(("influxdb", "influxdb2", "influxdb3"), 1):
        p = subprocess.run(
            [python, "-m", "glances", "-C", d + "/glances.conf", "--export", export, "--quiet", "--time", "1", "--stop-after", "5", "--disable-check-update"],
            cwd=d, env=env, capture_output=True, timeout=120, check=False,
        )
        if p.returncode != 0:
            bad.append(f"{export} ended with {p.returncode}: {(p.stdout + p.stderr).decode(errors='replace')[-300:]}")
    server.flush()
    server.stop()
    for n in (1, 2, 3):
        tables = sorted(os.listdir(f"{server.lake}/glances{n}")) if os.path.isdir(f"{server.lake}/glances{n}") else []
        seen.append(f"v{n}: {len(tables)} tables")
        if not {"cpu", "mem", "load"} <= set(tables):
            bad.append(f"tables of glances{n}: {tables}")
    r.check(not bad, "clients/glances", ", ".join(seen) if not bad else " || ".join(bad))


# --- icinga2: the one sender in C++ ------------------------------------------------------------------------------------------------


ICINGA = """
include <itl>
library "perfdata"
object CheckerComponent "checker" {{ }}
object Endpoint NodeName {{ }}
object Zone ZoneName {{ endpoints = [ NodeName ] }}
object Host "h1" {{
  check_command = "dummy"
  check_interval = 1s
  vars.dummy_state = 0
  vars.dummy_text = "fine|load=0.5;1;2;0 users=3"
}}
for (i in range(10)) {{
  object Service "s" + i {{
    host_name = "h1"
    check_command = "dummy"
    check_interval = 1s
    vars.dummy_state = 0
    vars.dummy_text = "fine|'/var used'=5MB;1;2;0;10 time=0.25s load=0.5"
  }}
}}
object InfluxdbWriter "v1" {{
  host = "localhost"
  port = {port}
  database = "icinga1"
  username = "any"
  password = "{token}"
  {common}
}}
object Influxdb2Writer "v2" {{
  host = "localhost"
  port = {port}
  organization = "any"
  bucket = "icinga2"
  auth_token = "{token}"
  {common}
}}
"""
ICINGA_COMMON = """ssl_enable = true
  ssl_ca_cert = "{ca}"
  flush_threshold = 16
  flush_interval = 1s
  enable_send_thresholds = true
  enable_send_metadata = true
  host_template = {{ measurement = "$host.check_command$", tags = {{ hostname = "$host.name$" }} }}
  service_template = {{ measurement = "$service.check_command$", tags = {{ hostname = "$host.name$", service = "$service.name$" }} }}"""


def icinga_files():
    """icinga2 from Debian, unpacked and not installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise Missing("no Debian")

    def make(where):
        script = (
            "set -e; p=$(apt-get install --no-install-recommends -s icinga2-bin | awk '/^Inst/{print $2}'); apt-get download -qq $p; for f in *.deb; do dpkg -x $f .; rm $f; done; ls usr/lib/*/icinga2/sbin/icinga2"
        )
        return subprocess.run(["bash", "-c", script], cwd=where, capture_output=True, timeout=300, check=False)

    return installed("icinga2", ["icinga2-bin"], make)


def icinga2(r, args, certs):
    """Its writers for v1 (the token in the URL) and v2, for some seconds."""
    root = icinga_files()
    d = workdir(args.keep)
    server = Secured(d, certs).start().wait_ready()
    with open(d + "/icinga.conf", "w") as f:
        f.write(ICINGA.format(port=server.port, token=server.tokens("icinga1")["token"], common=ICINGA_COMMON.format(ca=certs[0])))
    binary = glob.glob(root + "/usr/lib/*/icinga2/sbin/icinga2")[0]
    dirs = {n: f"{d}/icinga-{n}" for n in ("DataDir", "InitRunDir", "LogDir", "CacheDir", "SpoolDir")}
    os.makedirs(dirs["InitRunDir"] + "/icinga2")
    for x in dirs.values():
        os.makedirs(x, exist_ok=True)
    defines = {**dirs, "RunAsUser": "root", "RunAsGroup": "root", "ConfigDir": d, "NodeName": "t", "ZoneName": "t", "PidPath": d + "/icinga.pid"}
    command = [binary, "daemon", "-c", d + "/icinga.conf", "-I", root + "/usr/share/icinga2/include"] + [x for k, v in defines.items() for x in ("-D", f"{k}={v}")]
    out = d + "/icinga.out"
    with open(out, "wb") as f:
        p = subprocess.Popen(
            command, cwd=d, stdin=subprocess.DEVNULL, stdout=f, stderr=f, start_new_session=True, env={**clean_env(), "LD_LIBRARY_PATH": os.path.dirname(os.path.dirname(os.path.dirname(binary)))}
        )
    # It forks; the session is ours alone, so all of it can be ended.
    entry = defer(os.killpg, p.pid, signal.SIGKILL)
    try:
        wait_for("icinga2 to write", 60, lambda: len(server.tables()) > 1 or p.poll() is not None, every=0.5)
        time.sleep(5)
    except Problem as e:
        with open(out, errors="replace") as f:
            raise Problem(f"{e}; {f.read()[-500:]}") from None
    undo(entry)
    p.wait()
    server.flush()
    tables = server.tables()
    server.stop()
    metrics = read_back(server.lake, database="icinga1", table="dummy", rows=0, newline="", types_only=True)
    wanted = {"value": "double", "state": "int64", "metric": "string", "service": "string", "hostname": "string", "unit": "string", "reachable": "bool"}
    good = tables == {("icinga1", "dummy"), ("icinga2", "dummy")} and all(metrics["types"].get(k) == v for k, v in wanted.items()) and metrics["rows"] > 100
    r.check(good, "clients/icinga2", f"icinga2 2.13: tables {sorted(tables)}, {metrics['rows']} rows by v1, types {metrics['types']}")


def main():
    args = parser(__doc__, rows=100_000, seconds=40.0, spell=5.0, only="", parts="checks,examples,telegraf,glances,icinga2,load").parse_args()
    r = Results()
    if shutil.which("openssl") is None:
        r.skip("clients", "no openssl")
        r.end()
    certs = certificates(workdir(args.keep))
    names = args.only.split(",") if args.only else list(KINDS)
    for part, f in (("checks", checks), ("examples", examples), ("telegraf", telegraf), ("glances", glances), ("icinga2", icinga2), ("load", load)):
        if part not in args.parts.split(","):
            continue
        if part in ("examples", "telegraf", "glances", "icinga2"):
            try:
                if part == "glances":
                    python_with("glances", GLANCES)
                if part == "icinga2":
                    icinga_files()
                python_with("reader", READER)
            except (Missing, subprocess.TimeoutExpired) as e:
                r.skip(f"clients/{part}", str(e))
            else:
                case(r, f"clients/{part}", f, r, args, certs)
            continue
        for name in names:
            if part == "checks" and name.startswith("arc-") and name != "arc-columnar":
                continue
            try:
                if KINDS[name].packages is None:
                    node_modules()
                else:
                    python_with(KINDS[name].packages[0].split("=")[0], KINDS[name].packages)
                python_with("reader", READER)
            except (Missing, subprocess.TimeoutExpired) as e:
                r.skip(f"clients/{part}/{name}", str(e))
                continue
            case(r, f"clients/{part}/{name}", f, r, args, name, certs)
    r.end()


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Floods of wrong tokens and of TLS handshakes, and handshakes that do not end, beside clients that are well.

What a flood of wrong tokens costs is held against the same rate of GET /health, in turns, in one run: CPU seconds of the server by
/proc/PID/stat. Everything goes over loopback.
"""

import collections
import ssl
import statistics

from attacks import Watch, percentile
from lib import *

WRONG = "arc_" + "0" * 64


def command(d, *args):
    p = subprocess.run([arc_bin(), *args], cwd=d, env=clean_env(), capture_output=True, text=True, timeout=30)
    if p.returncode != 0:
        raise Problem(f"arc {' '.join(args)} ended with {p.returncode}: {p.stderr}")
    return p.stdout.strip()


def certificate(d):
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=DNS:localhost", "-keyout", d + "/key.pem", "-out", d + "/cert.pem"],
        check=True,
        capture_output=True,
    )


class TlsServer(Server):
    def _find_port(self):
        with open(self.out) as f:
            m = re.search(r"https://[^\s:]+:(\d+)", f.read())
        if m:
            return int(m.group(1))
        return super()._find_port()

    def context(self):
        c = ssl.create_default_context(cafile=self.logs + "/cert.pem")
        return c

    def request(self, method, path, body=None, headers=None, timeout=10):
        c = http.client.HTTPSConnection("localhost", self.port, timeout=timeout, context=self.context())
        try:
            c.request(method, path, body=body, headers=headers or {})
            r = c.getresponse()
            return r.status, {k.lower(): v for k, v in r.getheaders()}, r.read()
        finally:
            c.close()


# --- wrong tokens -----------------------------------------------------------------------------------------------------


def get(path, headers=""):
    return f"GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n".encode()


def flood(port, request, status, rate, seconds, connections=8):
    """Sends at `rate` a second over kept-alive connections, in small batches by the clock; counts the answers."""
    socks = []
    for _ in range(connections):
        s = socket.create_connection(("127.0.0.1", port), timeout=15)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        socks.append(s)
    first = f"HTTP/1.1 {status} ".encode()
    batch = max(1, rate // 100 // connections)
    begun, at, sent, answered = time.monotonic(), time.monotonic(), 0, 0
    while at - begun < seconds:
        time.sleep(max(0, at - time.monotonic()))
        for s in socks:
            s.sendall(request * batch)
        sent += batch * connections
        for s in socks:
            seen, tail = 0, b""
            while seen < batch:
                data = s.recv(1 << 16)
                if not data:
                    raise Problem("the connection was closed")
                data = tail + data
                seen += data.count(first)
                # A status line may be cut by the end of a read.
                tail = data[-(len(first) - 1) :]
            answered += seen
        at += batch * connections / rate
    for s in socks:
        s.close()
    if sent != answered:
        raise Problem(f"{sent} requests, {answered} answers with {status}")
    return sent


def wrong_tokens(r, args, d):
    """CPU of 401s beside that of GET /health."""
    server = Server(d + "/wal", d + "/lake", d, {"auth.enabled": "true", "log.level": "info"}).start().wait_ready()
    with open(server.out) as f:
        admin = re.search(r"arc_[0-9a-f]{64}", f.read()).group(0)
    # A real server has tokens: the look into the table is part of the price.
    for i in range(20):
        command(d, "token", "create", f"t{i}")
    time.sleep(1.5)
    import base64

    basic = base64.b64encode(b"user:" + WRONG.encode()).decode()
    body = "m f=1"
    kinds = {
        "health": (get("/health"), 200),
        "none": (get("/api/v1/status"), 401),
        "bearer": (get("/api/v1/status", f"Authorization: Bearer {WRONG}\r\n"), 401),
        "x-api-key": (get("/api/v1/status", f"x-api-key: {WRONG}\r\n"), 401),
        "basic": (get("/api/v1/status", f"Authorization: Basic {basic}\r\n"), 401),
        "p": (get(f"/api/v1/status?u=x&p={WRONG}"), 401),
        "write": (f"POST /api/v1/write/msgpack HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {WRONG}\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode(), 401),
        "wrong on /health": (get("/health", f"Authorization: Bearer {WRONG}\r\n"), 200),
    }
    watch = Watch(server.pid)
    cost = collections.defaultdict(list)
    flood(server.port, *kinds["health"], args.rate, 1)
    for _ in range(args.rounds):
        for name, (request, status) in kinds.items():
            before = watch.cpu()
            n = flood(server.port, request, status, args.rate, args.seconds)
            cost[name].append((watch.cpu() - before) / n * 1e6)
    median = {k: statistics.median(v) for k, v in cost.items()}
    for k, v in median.items():
        note(f"{k}: {v:.1f} us of CPU a request ({', '.join(f'{x:.1f}' for x in cost[k])}), {v / median['health']:.2f} of /health")
    ratio = median["bearer"] / median["health"]
    shown = ", ".join(f"{k} {v / median['health']:.2f}" for k, v in median.items() if k != "health")
    r.check(
        ratio <= args.most_ratio,
        "access/wrong_tokens",
        f"at {args.rate}/s, {args.rounds} turns of {args.seconds:.0f} s: /health {median['health']:.1f} us of CPU a request, a wrong Bearer token {median['bearer']:.1f} us, "
        f"ratio {ratio:.2f}; of /health: {shown}",
    )
    with open(server.err) as f:
        lines = [x for x in f.read().splitlines() if "a request was refused" in x]
    spent = args.rounds * len(kinds) * args.seconds
    r.check(0 < len(lines) <= spent / 10 + 3, "access/wrong_token_lines", f"{len(lines)} lines in about {spent:.0f} s of floods")
    code, _, _ = server.request("GET", "/api/v1/status", headers={"Authorization": f"Bearer {admin}"})
    r.check(code == 200 and server.stop() == 0, "access/after_the_flood", f"the admin's token: {code}")


# --- TLS --------------------------------------------------------------------------------------------------------------


class People(threading.Thread):
    """One kept-alive client, 25 requests a second by the clock, and one that makes a new connection twice a second."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.on, self.kept, self.new, self.failed = server, True, [], [], []
        self.other = threading.Thread(target=self._new, daemon=True)

    def start(self):
        super().start()
        self.other.start()

    def _ask(self, c):
        c.request("GET", "/health")
        if c.getresponse().read()[:1] != b"{":
            raise OSError("no answer")

    def run(self):
        c = http.client.HTTPSConnection("localhost", self.server.port, timeout=15, context=self.server.context())
        at = time.monotonic()
        while self.on:
            time.sleep(max(0, at - time.monotonic()))
            try:
                self._ask(c)
                self.kept.append((at, (time.monotonic() - at) * 1000))
            except (OSError, http.client.HTTPException) as e:
                self.failed.append((at, str(e)))
                c.close()
            at += 0.04

    def _new(self):
        at = time.monotonic()
        while self.on:
            time.sleep(max(0, at - time.monotonic()))
            c = http.client.HTTPSConnection("localhost", self.server.port, timeout=15, context=self.server.context())
            try:
                self._ask(c)
                self.new.append((at, (time.monotonic() - at) * 1000))
            except (OSError, http.client.HTTPException) as e:
                self.failed.append((at, str(e)))
            c.close()
            at += 0.5


def handshakes(port, seconds, processes):
    """Full handshakes, as fast as they go; how many there were."""
    args = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-time", str(max(1, int(seconds)))]
    all_of_them = [subprocess.Popen(args, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) for _ in range(processes)]
    entries = [defer(Server._kill, p) for p in all_of_them]
    total = 0
    for p, e in zip(all_of_them, entries):
        out, _ = p.communicate(timeout=seconds + 30)
        m = re.search(r"(\d+) connections in (\d+) real seconds", out)
        total += int(m.group(1)) if m else 0
        undo(e)
    return total


def silent(port, seconds, count):
    """Connections that never end their handshake: half send nothing, half the beginning of one. All are closed by the server."""
    hello = bytes([0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC, 0x03, 0x03])
    closed, end = 0, time.monotonic() + seconds
    live = []
    while time.monotonic() < end:
        while len(live) < count:
            s = socket.create_connection(("127.0.0.1", port), timeout=15)
            if len(live) % 2:
                s.sendall(hello)
            s.setblocking(False)
            live.append(s)
        time.sleep(0.1)
        for s in list(live):
            try:
                if not s.recv(64):
                    raise ConnectionResetError
            except BlockingIOError:
                continue
            except OSError:
                s.close()
                live.remove(s)
                closed += 1
    for s in live:
        s.close()
    return closed


def tls(r, args, d):
    certificate(d)
    # Two healthy connections have to find a slot beside the silent ones.
    settings = {"server.tls_enabled": "true", "server.tls_cert_file": "cert.pem", "server.tls_key_file": "key.pem"}
    settings |= {"server.header_timeout": "2s", "server.max_connections": 600, "log.level": "info"}
    server = TlsServer(d + "/wal2", d + "/lake2", d, settings).start().wait_ready()
    watch = Watch(server.pid)
    watch.start()
    people = People(server)
    people.start()
    time.sleep(1)
    spells = {
        "calm": lambda: time.sleep(args.seconds) or 0,
        "handshakes": lambda: handshakes(server.port, args.seconds, 2),
        "silent": lambda: silent(server.port, args.seconds + 3, 500),
        "both": lambda: (handshakes_beside(server.port, args.seconds + 3)),
    }
    base = server.metrics()
    for name, attack in spells.items():
        watch.reset()
        began = time.monotonic()
        n = attack()
        ended = time.monotonic()
        cpu = (watch.cpu() - watch.cpu0) / (ended - began)
        time.sleep(0.3)
        kept = [x for at, x in people.kept if began <= at < ended]
        new = [x for at, x in people.new if began <= at < ended]
        failed = [x for at, x in people.failed if began <= at < ended]
        good = server.alive() and not failed and len(kept) > 20 * (ended - began) and percentile(kept, 0.99) < args.most_ms and watch.anon < 400 * 1024
        r.check(
            good,
            f"access/tls_{name}",
            f"{ended - began:.1f} s, {n} of the attack; {cpu:.2f} cores, RssAnon {watch.anon / 1024:.0f} MiB, {watch.fds} descriptors; kept-alive p50 {percentile(kept, 0.5):.1f} "
            f"p99 {percentile(kept, 0.99):.1f} ms ({len(kept)}), new connections p50 {percentile(new, 0.5):.1f} max {max(new, default=0):.1f} ms ({len(new)}); failed: {failed[:3]}",
        )
        wait_for("the connections to end", 20, lambda: server.metrics()["arc_http_connections"] <= 4, every=0.2)
    refused = server.metrics()['arc_http_rejected_total{reason="tls_handshake"}'] - base['arc_http_rejected_total{reason="tls_handshake"}']
    with open(server.err) as f:
        lines = sum("a TLS handshake failed" in x for x in f)
    r.check(refused > 500 and 0 < lines <= 8, "access/tls_lines", f"{refused:.0f} handshakes failed, {lines} lines of the log")
    people.on = False
    people.join(5)
    watch.on = False
    r.check(server.stop() == 0, "access/tls_stop", "ended in good order")


def handshakes_beside(port, seconds):
    out = []
    t = threading.Thread(target=lambda: out.append(silent(port, seconds, 500)))
    t.start()
    n = handshakes(port, seconds, 2)
    t.join()
    return n + out[0]


def main():
    args = parser(__doc__, seconds=4.0, rounds=5, rate=4000, most_ratio=1.2, most_ms=500.0).parse_args()
    r = Results()
    if not raise_nofile(3000):
        r.skip("access", "cannot open 3000 files (ulimit -n)")
        r.end()
    d = workdir(args.keep)
    case(r, "access/wrong_tokens", wrong_tokens, r, args, d)
    if shutil.which("openssl"):
        case(r, "access/tls", tls, r, args, d)
    else:
        r.skip("access/tls", "no openssl")
    r.end()


if __name__ == "__main__":
    main()

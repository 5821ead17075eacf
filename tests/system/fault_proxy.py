#!/usr/bin/env python3
"""A proxy in front of an object store that does to requests what networks and stores do to them in life.

It knows HTTP/1.1 well enough to tell one request from the next and S3, Azure and GCS well enough to tell a put from a part. It
changes no header that a client signs; the client's endpoint is the proxy's address, so the Host it signs is what the store sees.

    proxy = FaultProxy(store.port, kind="s3", seed=7)
    proxy.set(Rule("slow_down", ops={"put", "part"}, p=0.3), Rule("cut_after", ops={"complete"}))
    proxy.set()             # passes everything on
    proxy.refuse(True)      # connections are refused, those that are open are cut

The first rule that matches a request and whose lot falls decides. Actions:

    pass            passes it on (a rule before others exempts what it matches)
    delay           after `seconds`
    slow_down       503 SlowDown           not passed on     server_error    500 InternalError
    skew            403 RequestTimeTooSkewed                 expired         400 ExpiredToken, as S3 says it
    denied          403                                      expired403      the same with 403, as other stores say it
    hang            nothing is answered until the rules change; then the connection is cut
    hang_after      passed on, and then as hang
    cut_before      the connection is reset, nothing was passed on
    cut_after       passed on, the answer awaited, the connection reset: a lost reply
    half            half of the body is passed on, then both connections are cut
    error200        200 with an error document, not passed on   error200_after   the same, passed on before
    late            the connection is reset, the request is passed on `seconds` later: a zombie
    twice           passed on twice, the second answer is given
    strip           the condition of create-only is taken out of it: a store that overwrites
    short           a body cut to half is passed on as if whole (stores that check digests refuse it)
    half_answer     half of the answer's body, then a reset
"""

import collections
import hashlib
import urllib.parse

from lib import *

CHUNK = 256 << 10
OPS = ("put", "part", "begin", "complete", "abort", "uploads", "get", "head", "list", "delete", "other")
CONDITIONS = (b"if-none-match", b"x-goog-if-generation-match")
ANSWERED = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "server_error": (500, "InternalError", "We encountered an internal error. Please try again."),
    "skew": (403, "RequestTimeTooSkewed", "The difference between the request time and the current time is too large."),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "expired403": (403, "ExpiredToken", "The provided token has expired."),
    "denied": (403, "AccessDenied", "Access Denied"),
}
AZURE_CODES = {"SlowDown": "ServerBusy", "RequestTimeTooSkewed": "AuthenticationFailed", "ExpiredToken": "AuthenticationFailed", "AccessDenied": "AuthorizationFailure"}
ACTIONS = {
    *ANSWERED, "pass", "delay", "hang", "hang_after", "cut_before", "cut_after", "half", "error200", "error200_after", "late", "twice", "strip", "short", "half_answer",
}
REASONS = {200: "OK", 400: "Bad Request", 403: "Forbidden", 500: "Internal Server Error", 503: "Service Unavailable"}


class Rule:
    def __init__(self, action, ops=None, p=1.0, key="", seconds=1.0, times=None, hook=None):
        """`key`: a part of the object's name. `times`: how often at most. `hook` is called when it strikes: after the store's
        answer where the action awaits it, after the half of `half`, else before anything is passed on."""
        if action not in ACTIONS:
            raise ValueError(f"no action {action}; there are {' '.join(sorted(ACTIONS))}")
        unknown = set(ops or ()) - set(OPS)
        if unknown:
            raise ValueError(f"no operation {' '.join(unknown)}; there are {' '.join(OPS)}")
        self.action, self.ops, self.p, self.key, self.seconds, self.times = action, set(ops) if ops else None, p, key, seconds, times
        self.hook = hook

    def __repr__(self):
        return f"{self.action}({','.join(sorted(self.ops)) if self.ops else 'all'}{f' {self.p:g}' if self.p < 1 else ''}{f' {self.key}' if self.key else ''})"


class Gone(Exception):
    """One side has closed or reset its connection."""


class Stream:
    """A socket with a buffer of what was read too far."""

    def __init__(self, sock):
        self.sock, self.buffer = sock, b""

    def fill(self):
        try:
            got = self.sock.recv(CHUNK)
        except OSError as e:
            raise Gone(str(e)) from None
        if not got:
            raise Gone("closed")
        self.buffer += got

    def head(self):
        """First line and headers as (line, [(name, value)]); None at the end of the connection."""
        while b"\r\n\r\n" not in self.buffer:
            if len(self.buffer) > 1 << 20:
                raise Gone("a head of more than 1 MiB")
            try:
                self.fill()
            except Gone:
                if self.buffer:
                    raise
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        headers = []
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            headers.append((name, value.strip()))
        return lines[0], headers

    def take(self, n):
        """At most n bytes, at least one."""
        if not self.buffer:
            self.fill()
        got, self.buffer = self.buffer[:n], self.buffer[n:]
        return got

    def line(self):
        while b"\r\n" not in self.buffer:
            self.fill()
        got, _, self.buffer = self.buffer.partition(b"\r\n")
        return got + b"\r\n"

    def body(self, length, chunked):
        """The pieces of a body as they stand on the wire; length -1: to the end of the connection."""
        if chunked:
            while True:
                size = self.line()
                yield size
                left = int(size.split(b";")[0], 16)
                if left == 0:
                    while True:
                        line = self.line()
                        yield line
                        if line == b"\r\n":
                            return
                left += 2
                while left:
                    got = self.take(left)
                    left -= len(got)
                    yield got
        while length:
            try:
                got = self.take(length if length > 0 else CHUNK)
            except Gone:
                if length < 0:
                    return
                raise
            if length > 0:
                length -= len(got)
            yield got

    def send(self, data):
        try:
            self.sock.sendall(data)
        except OSError as e:
            raise Gone(str(e)) from None

    def reset(self):
        """Ends the connection with RST, so that the other side does not take it for an orderly end."""
        with contextlib.suppress(OSError):
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def close(self):
        with contextlib.suppress(OSError):
            self.sock.close()


def value_of(headers, name):
    for n, v in headers:
        if n.lower() == name:
            return v
    return None


def framing(headers):
    """(length or None, chunked)"""
    if (value_of(headers, b"transfer-encoding") or b"").lower().endswith(b"chunked"):
        return None, True
    length = value_of(headers, b"content-length")
    return (int(length) if length is not None else None), False


class Request:
    def __init__(self, line, headers, kind):
        self.line, self.headers = line, headers
        method, target, _ = line.split(b" ", 2)
        self.method = method.decode()
        path, _, query = target.decode().partition("?")
        self.key = urllib.parse.unquote(path)
        self.query = dict(urllib.parse.parse_qsl(query, keep_blank_values=True))
        self.length, self.chunked = framing(headers)
        self.op = self._azure() if kind == "azure" else self._s3()

    def _s3(self):
        q, m = self.query, self.method
        if m == "PUT":
            return "part" if "uploadId" in q else "put" if self.key.strip("/").count("/") else "other"
        if m == "POST":
            return "begin" if "uploads" in q else "complete" if "uploadId" in q else "delete" if "delete" in q else "other"
        if m == "DELETE":
            return "abort" if "uploadId" in q else "delete"
        if m == "GET":
            return "uploads" if "uploads" in q else "list" if not self.key.strip("/").count("/") else "get"
        return "head" if m == "HEAD" else "other"

    def _azure(self):
        q, m = self.query, self.method
        if m == "PUT":
            return {"block": "part", "blocklist": "complete"}.get(q.get("comp"), "other" if "restype" in q else "put")
        if m == "GET":
            return "list" if q.get("comp") == "list" else "get"
        return {"HEAD": "head", "DELETE": "delete"}.get(m, "other")


class FaultProxy:
    def __init__(self, upstream, kind="s3", seed=0, port=None):
        self.upstream, self.kind, self.rng = upstream, kind, random.Random(f"{seed}-proxy")
        self.port = port or free_port()
        self.lock = threading.Lock()
        self.rules, self.generation = (), 0
        # (operation, action) -> how often; what the store answered: (operation, status) -> how often.
        self.done, self.answers = collections.Counter(), collections.Counter()
        # Of those for data alone: operation -> how often.
        self.data = collections.Counter()
        self.open, self.late = set(), []
        self.now = self.most = 0
        self.refused = True
        self.listener = None
        self.refuse(False)
        self._entry = defer(self.close)

    def set(self, *rules):
        with self.lock:
            self.rules = tuple(rules)
            self.generation += 1

    def refuse(self, yes):
        if yes == self.refused:
            return
        self.refused = yes
        if yes:
            # A thread that waits in accept would keep the port listening after a mere close.
            with contextlib.suppress(OSError):
                self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
            # Bound and not listening: refused, and nobody else gets the port.
            self.listener = self._bound()
            self.cut_all()
            return
        if self.listener:
            self.listener.close()
        self.listener = self._bound()
        self.listener.listen(256)
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def _bound(self):
        s = socket.socket()
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind(("127.0.0.1", self.port))
        return s

    def cut_all(self):
        with self.lock:
            streams = list(self.open)
        for s in streams:
            with contextlib.suppress(OSError):
                s.sock.shutdown(socket.SHUT_RDWR)

    def close(self):
        self.refuse(True)
        self.listener.close()

    def settle(self, timeout=60):
        """Waits for the zombies."""
        for t in list(self.late):
            t.join(timeout)

    def faults(self):
        """{action: how often} without what was passed on unharmed."""
        out = collections.Counter()
        for (_, action), n in self.done.items():
            if action != "pass":
                out[action] += n
        return dict(out)

    def said(self):
        return ", ".join(f"{n} {a}" for a, n in sorted(self.faults().items())) or "no fault"

    # -- one connection

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), daemon=True).start()

    def _serve(self, sock):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client = Stream(sock)
        with self.lock:
            self.open.add(client)
        try:
            while self._one(client):
                pass
        except (Gone, ValueError):
            client.reset()
        finally:
            with self.lock:
                self.open.discard(client)
            client.close()

    def _pick(self, request):
        with self.lock:
            chosen = None
            for rule in self.rules:
                if (rule.ops is None or request.op in rule.ops) and rule.key in request.key and rule.times != 0 and self.rng.random() < rule.p:
                    if rule.times is not None:
                        rule.times -= 1
                    chosen = rule
                    break
            self.done[request.op, chosen.action if chosen else "pass"] += 1
            if request.key.endswith(".parquet"):
                self.data[request.op] += 1
            return chosen, self.generation

    def _one(self, client):
        head = client.head()
        if head is None:
            return False
        request = Request(*head, self.kind)
        rule, generation = self._pick(request)
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            return self._act(client, request, rule.action if rule else "pass", rule, generation)
        finally:
            with self.lock:
                self.now -= 1

    def _act(self, client, request, action, rule, generation):
        if value_of(request.headers, b"expect") and action not in ("cut_before", "hang"):
            client.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        hook = rule.hook if rule and rule.hook else lambda: None
        if action not in ("cut_after", "hang_after", "error200_after", "half"):
            hook()
        if action == "cut_before":
            client.reset()
            return False
        if action == "hang":
            self._hang(client, generation)
            return False
        if action == "delay":
            time.sleep(rule.seconds)
        if action in ANSWERED:
            self._body(client, request)
            self._answer(client, request, *ANSWERED[action])
            return True
        if action == "error200":
            self._body(client, request)
            self._answer(client, request, 200, "InternalError", "We encountered an internal error. Please try again.")
            return True
        if action in ("late", "twice", "short"):
            body = self._body(client, request)
            if action == "late":
                t = threading.Thread(target=self._zombie, args=(request, body, rule.seconds), daemon=True)
                self.late.append(t)
                t.start()
                client.reset()
                return False
            if action == "short":
                request.headers = [(n, v) for n, v in request.headers if n.lower() not in (b"content-length", b"content-md5")]
                request.headers.append((b"Content-Length", str(len(body) // 2).encode()))
                body = body[: len(body) // 2]
            else:
                store = self._pass_on(request, [body])
                self._drain(store, request)
            return self._give(client, self._pass_on(request, [body]), request)
        pieces = client.body(request.length or 0, request.chunked)
        if action == "half":
            store = self._pass_on(request, self._half(pieces, request))
            hook()
            store.reset()
            client.reset()
            return False
        store = self._pass_on(request, pieces, strip=action == "strip")
        if action == "half_answer":
            self._give(client, store, request, half=True)
            return False
        if action in ("cut_after", "hang_after", "error200_after"):
            self._drain(store, request)
            hook()
            if action == "cut_after":
                client.reset()
                return False
            if action == "hang_after":
                self._hang(client, generation)
                return False
            self._answer(client, request, 200, "InternalError", "We encountered an internal error. Please try again.")
            return True
        return self._give(client, store, request)

    def _hang(self, client, generation):
        """Until the rules change or the client has had enough."""
        import select

        while self.generation == generation and not self.refused:
            if select.select([client.sock], [], [], 0.1)[0]:
                try:
                    if not client.sock.recv(CHUNK):
                        break
                except OSError:
                    break
        client.reset()

    @staticmethod
    def _body(client, request):
        return b"".join(client.body(request.length or 0, request.chunked))

    @staticmethod
    def _half(pieces, request):
        left = (request.length or 2) // 2
        for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    def _pass_on(self, request, pieces, strip=False):
        """Sends it to the store; returns the connection, where the answer is to be read. One connection a request: some of
        these servers close theirs at will, and a put must not be sent twice by accident."""
        try:
            store = Stream(socket.create_connection(("127.0.0.1", self.upstream), 10))
        except OSError as e:
            raise Gone(str(e)) from None
        store.sock.settimeout(300)
        store.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        out = [request.line]
        if self.kind == "gcs":
            # Google's clients escape more than S3's servers undo.
            method, target, version = request.line.split(b" ", 2)
            query = target.partition(b"?")[1:]
            out = [b" ".join([method, urllib.parse.quote(request.key, safe="/-_.~=").encode() + b"".join(query), version])]
        for name, value in request.headers:
            low = name.lower()
            if low in (b"expect", b"connection") or strip and low in CONDITIONS:
                continue
            if self.kind == "gcs" and low == b"authorization":
                continue
            if self.kind == "gcs" and low == b"x-goog-if-generation-match" and value == b"0":
                name, value = b"If-None-Match", b"*"
            out.append(name + b": " + value)
        out.append(b"Connection: close")
        if self.kind == "gcs":
            # A stand-in gets no token of Google's, and moto lets nobody without a name read.
            out.append(b"Authorization: AWS4-HMAC-SHA256 Credential=standin/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0")
        try:
            store.send(b"\r\n".join(out) + b"\r\n\r\n")
            for piece in pieces:
                store.send(piece)
        except Gone:
            store.close()
            raise
        return store

    def _read_head(self, store):
        while True:
            head = store.head()
            if head is None:
                raise Gone("the store closed")
            status = int(head[0].split(b" ", 2)[1])
            if status >= 200:
                return status, head[0], head[1]

    def _note_answer(self, request, status):
        with self.lock:
            self.answers[request.op, status] += 1

    def _give(self, client, store, request, half=False):
        try:
            status, line, headers = self._read_head(store)
            self._note_answer(request, status)
            length, chunked = framing(headers)
            bare = request.method == "HEAD" or status in (204, 304)
            if bare:
                chunked, pieces, keep = False, (), True
            elif chunked:
                pieces, keep = store.body(0, True), True
            elif length is None:
                # The end of the connection is the end of the body.
                pieces, keep = store.body(-1, False), False
            else:
                pieces, keep = store.body(length, False), True
            if half and not bare:
                pieces = self._half(pieces, request) if length is None else self._cut(pieces, length // 2)
            out = [b"HTTP/1.1 " + line.split(b" ", 1)[1]]
            out += [n + b": " + v for n, v in headers if n.lower() not in (b"connection", b"keep-alive")]
            if self.kind == "gcs" and value_of(headers, b"x-goog-generation") is None:
                # A generation is a number that changes with the object; the stand-in derives it from what does.
                tag = value_of(headers, b"etag") or b""
                out.append(b"x-goog-generation: " + str(int.from_bytes(hashlib.sha256(tag).digest()[:6], "big") + 1).encode())
            if not keep:
                out.append(b"Connection: close")
            client.send(b"\r\n".join(out) + b"\r\n\r\n")
            for piece in pieces:
                client.send(piece)
        finally:
            store.close()
        if half:
            client.reset()
            return False
        return keep

    @staticmethod
    def _cut(pieces, left):
        for piece in pieces:
            yield piece[:left]
            left -= len(piece)
            if left <= 0:
                return

    def _drain(self, store, request):
        try:
            status, _, headers = self._read_head(store)
            self._note_answer(request, status)
            length, chunked = framing(headers)
            if request.method != "HEAD" and status not in (204, 304):
                for _ in store.body(-1 if length is None and not chunked else length or 0, chunked):
                    pass
        finally:
            store.close()

    def _zombie(self, request, body, seconds):
        time.sleep(seconds)
        with contextlib.suppress(Gone):
            self._drain(self._pass_on(request, [body]), request)

    def _answer(self, client, request, status, code, text):
        extra = b""
        if self.kind == "azure":
            code = AZURE_CODES.get(code, code)
            extra = b"x-ms-error-code: " + code.encode() + b"\r\n"
        if status == 503:
            extra += b"Retry-After: 1\r\n"
        body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>{text}</Message><RequestId>fault</RequestId></Error>'.encode()
        head = f"HTTP/1.1 {status} {REASONS[status]}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n".encode() + extra + b"\r\n"
        client.send(head + (b"" if request.method == "HEAD" else body))


def parse_rule(text):
    """ACTION [OP,OP...] [p=0.3] [key=TEXT] [seconds=2] [times=1]"""
    words = text.split()
    kw = {}
    for w in words[1:]:
        k, eq, v = w.partition("=")
        if eq:
            kw[k] = v if k == "key" else int(v) if k == "times" else float(v)
        else:
            kw["ops"] = w.split(",")
    return Rule(words[0], **kw)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("upstream", type=int, help="port of the store on 127.0.0.1")
    p.add_argument("--port", type=int)
    p.add_argument("--kind", choices=("s3", "azure", "gcs"), default="s3")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--rule", action="append", default=[], help=parse_rule.__doc__)
    args = p.parse_args()
    proxy = FaultProxy(args.upstream, args.kind, args.seed, args.port)
    proxy.set(*map(parse_rule, args.rule))
    print(f"port {proxy.port}; one rule a line, `;` between several, `refuse`, `listen`, `stats`, an empty line passes everything", flush=True)
    for line in sys.stdin:
        line = line.strip()
        try:
            if line in ("refuse", "listen"):
                proxy.refuse(line == "refuse")
            elif line == "stats":
                print(dict(proxy.done), dict(proxy.answers), flush=True)
            else:
                proxy.set(*[parse_rule(x) for x in line.split(";") if x.strip()])
                print(proxy.rules, flush=True)
        except (ValueError, TypeError, IndexError) as e:
            print(f"not understood: {e}", flush=True)


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Clients hear the answers that come before their body is through: 400, 401, 403, 404, 405, 411, 413, 415, in plain text and over TLS.

Each client sends bodies many times as large as the socket buffers. Some write all of it before they read. A table shows what each heard.
Python packages come from PyPI at fixed versions, into ARC_SYSTEM_CACHE (else ~/.cache/arc-system). A client that this machine does not
have is skipped. Needs openssl; for Java a JDK (17 or later), for Node 18 or later.
"""

import socket as sockets

from clients import *

PACKAGES = ["requests==2.32.5", "httpx==0.28.1", "aiohttp==3.13.2"]
# Of an unknown client 16 MB are read, of a known one 256 MB.
UNKNOWN, KNOWN = 12 << 20, 64 << 20
LIMIT = {"server.max_payload_size": "50MB"}


class Plain(Server):
    """The same server without TLS, with tokens."""

    def __init__(self, d):
        self.admin = "admin-" + secrets.token_hex(24)
        super().__init__(d + "/wal", d + "/lake", d, {"auth.enabled": "true", "auth.token_file": d + "/tokens.json", **LIMIT}, free_port())
        self.environment = {"ARC_AUTH_BOOTSTRAP_TOKEN": self.admin}

    @property
    def url(self):
        return f"http://localhost:{self.port}"

    def request(self, method, path, body=None, headers=None, timeout=10):
        return super().request(method, path, body, {"Authorization": f"Bearer {self.admin}", **(headers or {})}, timeout)

    token = Secured.token
    tokens = Secured.tokens


def cases(server, d):
    """Name (the status that must be heard), method, path, body's size, headers."""
    tokens = server.tokens("d")
    known = {"Authorization": "Bearer " + tokens["token"]}
    other = {"Authorization": "Bearer " + tokens["other_token"]}
    table = [
        ("400", "POST", "/write?db=1bad", KNOWN, known),
        ("401", "POST", "/write?db=d", UNKNOWN, {}),
        ("403", "POST", "/write?db=d", KNOWN, other),
        ("404", "POST", "/no/such/path?x=1", UNKNOWN, {}),
        ("405", "PUT", "/write?db=d", UNKNOWN, {}),
        ("413", "POST", "/write?db=d", KNOWN, known),
        ("415", "POST", "/write?db=d", 48 << 20, {**known, "Content-Encoding": "snappy"}),
    ]
    for _, _, _, size, _ in table:
        file = f"{d}/body-{size}"
        if not os.path.exists(file):
            with open(file, "wb") as f:
                f.truncate(size)
    return table


def raw(server, table, _file, _env):
    """Writes everything, then reads; knows 411 too."""
    out = {}
    known = table[0][4]
    for name, method, path, size, headers in [*table, ("411", "POST", "/write?db=d", KNOWN, known)]:
        s = sockets.create_connection(("localhost", server.port), timeout=60)
        if server.url.startswith("https"):
            s = server.context.wrap_socket(s, server_hostname="localhost")
        length = {} if name == "411" else {"Content-Length": str(size)}
        head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n" + "".join(f"{k}: {v}\r\n" for k, v in {**headers, **length}.items()) + "\r\n"
        try:
            s.sendall(head.encode())
            for _ in range(size >> 16):
                s.sendall(b"x" * 65536)
            out[name] = (s.recv(12).decode() + " ").split(" ")[1]
        except OSError as e:
            out[name] = repr(e)
        s.close()
    return out


def program(*command):
    def run(_server, _table, file, env):
        p = subprocess.run([*command, file], capture_output=True, timeout=900, check=False, env=env, text=True)
        out = dict(line.split("\t", 1) for line in p.stdout.splitlines() if "\t" in line)
        return out or {"all": f"ended with {p.returncode}: {p.stderr.strip()[-200:]}"}

    return run


def each(command):
    """A command for each case; `command` makes it and reads the status from what it printed."""

    def run(server, table, file, env):
        out = {}
        for (name, method, path, _, headers), line in zip(table, open(file)):
            args, status = command(method, server.url + path, line.split("\t")[3], headers, env["SSL_CERT_FILE"])
            p = subprocess.run(args, capture_output=True, timeout=120, check=False, text=True, env=env)
            out[name] = status(p)
        return out

    return run


def curl(*more):
    def command(method, url, body, headers, ca):
        given = [x for k, v in headers.items() for x in ("-H", f"{k}: {v}")]
        args = ["curl", "-s", "-S", "--http1.1", "--cacert", ca, "-o", "/dev/null", "-w", "%{http_code}", "-X", method, *given, *more, "--data-binary", "@" + body, url]
        return args, lambda p: p.stdout if p.returncode == 0 else f"{p.stdout} exit {p.returncode}: {p.stderr.strip()}"

    return each(command)


def wget(method, url, body, headers, ca):
    given = [f"--header={k}: {v}" for k, v in headers.items()]
    args = ["wget", "--tries=1", "-S", "-O", "/dev/null", f"--ca-certificate={ca}", f"--method={method}", f"--body-file={body}", *given, url]

    def status(p):
        heard = re.findall(r"^\s*HTTP/1\.1 (\d+)", p.stderr, re.M)
        return heard[-1] if heard else p.stderr.strip()[-200:]

    return args, status


def java(d, certs):
    if shutil.which("javac") is None:
        raise Missing("no javac")
    subprocess.run(["javac", "-d", d, os.path.join(PROGRAMS, "Early.java")], check=True, capture_output=True)
    store = d + "/trust.p12"
    subprocess.run(["keytool", "-importcert", "-noprompt", "-alias", "ca", "-file", certs[0], "-keystore", store, "-storetype", "PKCS12", "-storepass", "changeit"], check=True, capture_output=True)
    return ["java", f"-Djavax.net.ssl.trustStore={store}", "-Djavax.net.ssl.trustStorePassword=changeit", "-cp", d, "Early"]


def clients(d, certs):
    """Each client's name, and how it runs or why it cannot."""

    def needs(tool, run):
        return run if shutil.which(tool) else Missing(f"no {tool}")

    def attempt(make):
        try:
            return make()
        except (Missing, subprocess.SubprocessError, OSError) as e:
            return Missing(str(e))

    python = attempt(lambda: python_with("early", PACKAGES))
    machine = attempt(lambda: java(d, certs))
    found = {
        "sockets": raw,
        "curl": needs("curl", curl()),
        "curl without Expect": needs("curl", curl("-H", "Expect:")),
        "curl, HTTP/1.0": needs("curl", curl("--http1.0", "-H", "Expect:")),
        "wget": needs("wget", each(wget)),
        "Node http": needs("node", program("node", os.path.join(PROGRAMS, "early.mjs"), "http")),
        "Node fetch": needs("node", program("node", os.path.join(PROGRAMS, "early.mjs"), "fetch")),
        "Python http.client": program(sys.executable, os.path.join(PROGRAMS, "early.py"), "http.client"),
    }
    for library in ("requests", "httpx", "aiohttp"):
        found[f"Python {library}"] = python if isinstance(python, Missing) else program(python, os.path.join(PROGRAMS, "early.py"), library)
    for api in ("HttpClient", "HttpURLConnection"):
        found[f"Java {api}"] = machine if isinstance(machine, Missing) else program(*machine, api)
    return found


def main():
    args = parser(__doc__, only="").parse_args()
    results, d = Results(), workdir(args.keep)
    certs = certificates(d)
    rows, found = [], clients(d, certs)
    for scheme in ("http", "https"):
        home = f"{d}/{scheme}"
        os.makedirs(home)
        server = Plain(home) if scheme == "http" else Secured(home, certs, **LIMIT)
        server.start()
        server.wait_ready()
        table = cases(server, d)
        file = home + "/cases"
        with open(file, "w") as f:
            for name, method, path, size, headers in table:
                f.write("\t".join([name, method, server.url + path, f"{d}/body-{size}", json.dumps(headers)]) + "\n")
        env = {**clean_env(), "SSL_CERT_FILE": certs[0], "NODE_EXTRA_CA_CERTS": certs[0]}
        for name, run in found.items():
            if args.only and args.only not in name:
                continue
            title = f"{name}, {scheme}"
            if isinstance(run, Missing):
                results.skip(title, str(run))
                continue
            heard = case(results, title, run, server, table, file, env)
            if heard is None:
                continue
            rows.append((title, heard))
            wrong = {k: heard.get(k, heard.get("all", "nothing")) for k in [t[0] for t in table] + [k for k in heard if k == "411"] if heard.get(k) != k}
            results.check(not wrong, title, f"heard {' '.join(sorted(heard))}" if not wrong else str(wrong))
        stored = server.get_json("/api/v1/status")[1]["watermarks"]["durable"]
        results.check(stored == 0, f"nothing stored, {scheme}", f"{stored} records")
        server.stop()
    columns = ["400", "401", "403", "404", "405", "411", "413", "415"]
    print(f"\n{'client':32}" + "".join(f"{c:>6}" for c in columns))
    for title, heard in rows:
        print(f"{title:32}" + "".join(f"{'ok' if heard.get(c) == c else '-' if c == '411' and c not in heard else 'LOST':>6}" for c in columns))
    results.end()


if __name__ == "__main__":
    main()

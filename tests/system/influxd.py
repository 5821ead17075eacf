"""influxd 1.6.7 as a process beside arc: an oracle for line protocol and a yardstick for speed.

`INFLUXD` names the binary, else the one on PATH, else the one that `python3 influxd.py fetch` unpacked into the cache
(`ARC_SYSTEM_CACHE`, else `~/.cache/arc-system`) from Debian's package `influxdb`, and the same for `WRK` and `wrk`. Nothing is
installed and no service is started: the process has its own configuration, directory and loopback ports, and reports nothing.
"""

import http.client
import json
import os
import shutil
import subprocess
import sys
import tempfile
import urllib.parse

from lib import Problem, Server, clean_env, defer, free_port, undo, wait_for

CACHE = os.environ.get("ARC_SYSTEM_CACHE") or os.path.expanduser("~/.cache/arc-system")
PACKAGES = {"influxd": ("influxd", ["influxdb"]), "wrk": ("wrk", ["wrk", "libluajit-5.1-2", "libluajit-5.1-common"])}


def find(tool):
    """The binary's path, or None."""
    folder = os.path.join(CACHE, PACKAGES[tool][0], "usr", "bin", tool)
    for path in (os.environ.get(tool.upper()), shutil.which(tool), folder):
        if path and os.access(path, os.X_OK):
            return path
    return None


def environment(tool):
    """The environment for a binary that may be an unpacked package."""
    env = clean_env()
    libraries = os.path.join(CACHE, PACKAGES[tool][0], "usr", "lib", "x86_64-linux-gnu")
    if os.path.isdir(libraries):
        env["LD_LIBRARY_PATH"] = libraries
    return env


def missing(tool):
    return f"no {tool}: set {tool.upper()}, install Debian's package {PACKAGES[tool][1][0]}, or run `python3 tests/system/influxd.py fetch`"


def fetch():
    """Downloads the packages with apt and unpacks them into the cache, without installing them."""
    for tool, (folder, packages) in PACKAGES.items():
        if find(tool):
            print(f"{tool}: {find(tool)}")
            continue
        with tempfile.TemporaryDirectory() as d:
            subprocess.run(["apt-get", "download", *packages], cwd=d, check=True, stdout=subprocess.DEVNULL)
            for deb in os.listdir(d):
                subprocess.run(["dpkg", "-x", os.path.join(d, deb), os.path.join(CACHE, folder)], check=True)
        print(f"{tool}: {find(tool)}")


# Synced like arc: with a delay of 0 every write ends with an fsync of the log (its default). The rest is its defaults but for
# background work that has no part in either comparison, and limits that the cases would run into.
CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{rpc}"
[meta]
  dir = "{dir}/meta"
  logging-enabled = false
[data]
  dir = "{dir}/data"
  wal-dir = "{dir}/wal"
  wal-fsync-delay = "0s"
  query-log-enabled = false
  max-series-per-database = 0
  max-values-per-tag = 0
[monitor]
  store-enabled = false
[subscriber]
  enabled = false
[continuous_queries]
  enabled = false
[retention]
  enabled = false
[shard-precreation]
  enabled = false
[http]
  enabled = true
  bind-address = "127.0.0.1:{port}"
  log-enabled = false
  max-body-size = 0
[logging]
  level = "warn"
"""


def exactly(name):
    """A regular expression for one name; InfluxQL cannot quote every character, and a regular expression can."""
    return "/\\A" + "".join(f"\\x{{{ord(c):x}}}" for c in name) + "\\z/"


class Influxd:
    def __init__(self, directory):
        self.directory = os.path.abspath(directory)
        self.connection = None

    def start(self):
        binary = find("influxd")
        if binary is None:
            raise Problem(missing("influxd"))
        os.makedirs(self.directory, exist_ok=True)
        self.port = free_port()
        config = os.path.join(self.directory, "influxd.conf")
        with open(config, "w") as f:
            f.write(CONFIG.format(dir=self.directory, port=self.port, rpc=free_port()))
        self.log = os.path.join(self.directory, "influxd.log")
        env = environment("influxd")
        env["HOME"] = self.directory
        for name in [n for n in env if n.startswith("INFLUXDB_")]:
            del env[name]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen([binary, "-config", config], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env)
        self._entry = defer(Server._kill, self.process)
        wait_for("influxd's /ping", 30, self._answers, every=0.05)
        return self

    def _answers(self):
        if self.process.poll() is not None:
            with open(self.log, errors="replace") as f:
                raise Problem(f"influxd ended with {self.process.returncode}: {f.read()[-400:]}")
        try:
            status, headers, _ = self.request("GET", "/ping")
        except OSError:
            return False
        self.version = headers.get("x-influxdb-version")
        return status == 204

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self):
        return self.process.pid

    def request(self, method, path, body=None, headers=None, timeout=60):
        """Over one kept connection: (status, headers, body)."""
        if self.connection is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            self.connection.request(method, path, body=body, headers=headers or {})
            r = self.connection.getresponse()
            data = r.read()
        except (OSError, http.client.HTTPException):
            self.connection.close()
            self.connection = None
            raise
        return r.status, {k.lower(): v for k, v in r.getheaders()}, data

    def query(self, text, database=None, method="POST"):
        """The `results` of an InfluxQL query, times in nanoseconds; an error anywhere in it is a Problem."""
        args = {"q": text, "epoch": "ns"} | ({"db": database} if database else {})
        status, _, data = self.request(method, "/query?" + urllib.parse.urlencode(args))
        # Its JSON is not UTF-8 where a name or value was not: bytes that are no character read as U+FFFD.
        answer = json.loads(data.decode("utf-8", "replace"), parse_int=lambda s: -0.0 if s == "-0" else int(s))
        for r in [answer, *answer.get("results", [])]:
            if "error" in r:
                raise Problem(f"influxd: {text}: {status} {r['error']}")
        return answer["results"]

    def create(self, database):
        self.query(f'CREATE DATABASE "{database}"')

    def drop(self, database):
        self.query(f'DROP DATABASE "{database}"')

    def write(self, database, body, precision="ns", headers=None):
        """(status, error text)."""
        args = urllib.parse.urlencode({"db": database, "precision": precision})
        status, _, data = self.request("POST", "/write?" + args, body, headers)
        if not data:
            return status, ""
        try:
            return status, json.loads(data.decode("utf-8", "replace")).get("error", "")
        except ValueError:
            return status, data.decode("utf-8", "replace")

    def rows(self, database):
        """Everything in a database: [(measurement, {tag: value}, {field: (type, value)}, time in ns)]."""
        types = {}
        for s in self.query("SHOW FIELD KEYS FROM /[\\s\\S]*/", database)[0].get("series", []):
            types[s["name"]] = dict(s["values"])
        # One measurement at a time: in a query over several, fields of one name and different types hide each other.
        names = "; ".join(f"SELECT * FROM {exactly(m)} GROUP BY *" for m in types)
        out = []
        for s in (s for r in (self.query(names, database) if names else []) for s in r.get("series", [])):
            tags = {k: v for k, v in s.get("tags", {}).items() if v != ""}
            for row in s["values"]:
                fields = {}
                for name, value in zip(s["columns"][1:], row[1:]):
                    if value is not None:
                        kind = types[s["name"]].get(name, "?")
                        fields[name] = (kind, float(value) if kind == "float" else value)
                out.append((s["name"], tags, fields, row[0]))
        return out

    def stop(self):
        if self.connection:
            self.connection.close()
        undo(self._entry)


if __name__ == "__main__":
    if sys.argv[1:] != ["fetch"]:
        sys.exit("usage: influxd.py fetch")
    fetch()

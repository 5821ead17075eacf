#!/usr/bin/env python3
"""schemathesis over docs/openapi.yaml against a running server: no 5xx, and no answer that the page does not describe.

Needs schemathesis (pip install schemathesis msgpack) in this Python. The server runs with tokens; requests carry the admin's, and are
tried without. What a schema cannot say (columns of one length, names that differ) makes 400 of requests that fit it, so the check
that such requests succeed is left out. The token in use is kept from being deleted.
"""

import importlib.util

from lib import *

TOKEN = "schemathesis-token-schemathesis-token-0123"
CHECKS = [
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance", "response_schema_conformance",
    "negative_data_rejection", "missing_required_header", "unsupported_method", "allow_header_conformance", "ignored_auth",
]
HOOKS = '''
import msgpack
import schemathesis


def plain(v):
    if isinstance(v, dict):
        return {k: plain(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [plain(x) for x in v]
    if isinstance(v, int) and not -(1 << 63) <= v < (1 << 64):
        return float(v)
    return v.encode("utf-8", "replace").decode() if isinstance(v, str) else v


@schemathesis.serializer("application/msgpack")
def as_msgpack(ctx, value):
    return value if isinstance(value, bytes) else msgpack.packb(plain(value))


@schemathesis.deserializer("application/msgpack")
def from_msgpack(ctx, response):
    return msgpack.unpackb(response.content)


@schemathesis.hook
def before_call(ctx, case, kwargs):
    # The first token is the one that all requests carry: nothing may end it.
    if str((case.path_parameters or {}).get("id", "")).strip() == "1":
        case.path_parameters["id"] = 4242
'''


def main():
    args = parser(__doc__.splitlines()[0], examples=50).parse_args()
    r = Results()
    if importlib.util.find_spec("schemathesis") is None:
        r.skip("openapi_fuzz", "schemathesis is not installed in this Python")
        r.end()
    d = workdir(args.keep)
    settings = {"compaction.max_delay": "5s", "wal.segment_size": "4MB", "wal.reserve": "16MB", "auth.enabled": "true", "auth.token_file": d + "/tokens.json"}
    server = Server(d + "/wal", d + "/lake", d, settings, env={"ARC_AUTH_BOOTSTRAP_TOKEN": TOKEN}).start().wait_ready()
    # What was asked of it until it was ready does not count.
    before = server.metrics()
    with open(d + "/arc_hooks.py", "w") as f:
        f.write(HOOKS)
    report = d + "/report.ndjson"
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", REPO + "/docs/openapi.yaml", "--url", server.url, "--checks", ",".join(CHECKS),
        "-H", f"Authorization: Bearer {TOKEN}", "--max-examples", str(args.examples), "--seed", str(args.seed), "--phases", "examples,coverage,fuzzing,stateful",
        "--request-timeout", "30", "--continue-on-failure", "--generation-database", "none", "--report-ndjson-path", report, "--suppress-health-check", "all",
    ]
    env = {**clean_env(), "SCHEMATHESIS_HOOKS": "arc_hooks", "PYTHONPATH": d}
    p = subprocess.run(command, cwd=d, env=env, capture_output=True, text=True, timeout=1500)
    with open(d + "/schemathesis.txt", "w") as f:
        f.write(p.stdout + p.stderr)
    if p.returncode:
        note(p.stdout[-6000:] + p.stderr[-2000:])
    summary = [l.strip() for l in p.stdout.splitlines() if re.search(r"(Operations|Selected|Tested|cases|passed|failures|errors|Fuzzing|Coverage|Stateful|Examples)", l)]
    r.check(p.returncode == 0, "openapi_fuzz/answers", f"exit {p.returncode}; seed {args.seed}; " + "; ".join(summary[-14:]))
    m = server.metrics()
    served = {k: int(v - before[k]) for k, v in m.items() if k.startswith("arc_http_requests_total")}
    by_class = {c: sum(v for k, v in served.items() if f'status="{c}"' in k) for c in ("2xx", "4xx", "5xx")}
    r.check(
        by_class["5xx"] == 0 and m["arc_http_panics_total"] == 0 and by_class["2xx"] > 200 and by_class["4xx"] > 200, "openapi_fuzz/no-5xx",
        f"{by_class} ({[k for k, v in served.items() if v and '5xx' in k]}), panics {m['arc_http_panics_total']:.0f}, rows stored {m['arc_ingest_rows_total']:.0f}, tables {len(server_tables(server))}",
    )
    never = sorted({re.search(r'route="(\w+)"', k).group(1) for k in served} - {re.search(r'route="(\w+)"', k).group(1) for k, v in served.items() if v} - {"other"})
    r.check(not never, "openapi_fuzz/all-routes", f"routes that were never asked: {never}")
    rows = m["arc_ingest_rows_total"]
    c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=70)
    c.request("POST", "/api/v1/flush", headers={"Authorization": f"Bearer {TOKEN}"})
    status = c.getresponse().status
    shipped = server.metrics()
    r.check(
        status == 200 and shipped["arc_compact_rows_total"] == rows and shipped["arc_compact_quarantined_records"] == 0, "openapi_fuzz/shipped",
        f"flush {status}: {shipped['arc_compact_rows_total']:.0f} of {rows:.0f} acknowledged rows in Parquet, {shipped['arc_compact_quarantined_records']:.0f} in quarantine",
    )
    code = server.stop()
    r.check(code == 0, "openapi_fuzz/stop", f"exit {code}")
    r.end()


def server_tables(server):
    c = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    c.request("GET", "/api/v1/status", headers={"Authorization": f"Bearer {TOKEN}"})
    return json.loads(c.getresponse().read())["tables"]


if __name__ == "__main__":
    main()

"""arc-tsdb-client: columnar and row MessagePack, line protocol, its buffered writer. It does not retry: the application does.

The certificate is found by SSL_CERT_FILE.
"""

from arc_client import ArcClient
from arc_client.exceptions import ArcAuthenticationError, ArcConnectionError, ArcIngestionError, ArcServerError

import rows
from rows import P, Pace, check, kind_of, refuses, row, say, until_written


def client(token=P["token"]):
    return ArcClient(host=P["host"], port=P["port"], token=token, database=P["database"], ssl=True, timeout=5.0)


def transient(e):
    """All errors of a write are ArcIngestionError; what it was is its cause."""
    cause = e.__cause__
    return isinstance(e, ArcIngestionError) and not (isinstance(cause, ArcAuthenticationError) or isinstance(cause, ArcServerError) and cause.status_code < 500)


def kind(e):
    cause = e.__cause__
    if isinstance(cause, ArcConnectionError):
        return "unreached"
    return "refused" if isinstance(cause, ArcServerError) and "unknown" not in str(cause) else kind_of(cause or e)


def columns(first, last):
    names = ["host", "region", "id", "big", "value", "text", "ok", "maybe"]
    out = {"time": []} | {n: [] for n in names}
    for i in range(first, last):
        tags, fields, us = row(i)
        out["time"].append(us)
        for n in names:
            out[n].append(tags.get(n, fields.get(n)))
    # A column without any value has no type yet; the client can leave it out.
    return {n: v for n, v in out.items() if any(x is not None for x in v)}


def records(first, last):
    for i in range(first, last):
        tags, fields, us = row(i)
        yield {"measurement": P["table"], "timestamp": us, "fields": fields, "tags": tags}


def buffered(c, first, last):
    """The buffer forgets a batch whose write failed, so the application keeps its rows until the buffer is closed without an error."""
    with c.write.buffered(batch_size=P["batch"], flush_interval=3600.0) as buffer:
        for r in records(first, last):
            buffer.write(r)


def load():
    from arc_client.ingestion.line_protocol import format_lines

    rows.kind_of = kind
    write = {
        "columnar": lambda c, a, b: c.write.write_columnar(P["table"], columns(a, b)),
        "rows": lambda c, a, b: c.write.write_records(list(records(a, b))),
        "line": lambda c, a, b: c.write.write_line_protocol(format_lines(list(records(a, b)))),
        "buffered": buffered,
    }[P["format"]]
    pace = Pace(P["rate"])
    with client() as c:
        for first in range(0, P["rows"], P["batch"]):
            last = min(first + P["batch"], P["rows"])
            until_written(lambda first=first, last=last: write(c, first, last), [[first, last - 1]], transient)
            say("ack", rows=last - first)
            pace.wait(last - first)


def checks():
    with client(P["admin_token"]) as c:
        health = c.health()
        check("health", health.status in ("pass", "ok", "healthy"), health)
        check("ready", c.ready(), c.ready())
        verified = c.auth.verify()
        check("auth.verify", verified.valid and "admin" in (verified.permissions or []), verified)
        made = c.auth.create_token("temporary", description="made by a test", permissions=["write"], expires_in="24h")
        check("auth.create_token", made.success and made.token, made.model_copy(update={"token": "..."}))
        info = next(t for t in c.auth.list_tokens() if t.name == "temporary")
        check("auth.list_tokens", info.permissions == ["write"] and info.expires_at, info)
        with client(made.token) as w:
            w.write.write_columnar("errors", {"time": [1_000_000_000_000_000], "id": [1]})
            check("a new token writes", True, "no exception")
            rotated = c.auth.rotate_token(info.id)
            check("auth.rotate_token", rotated and rotated != made.token, "another token")
            refuses("the old token after a rotation", lambda: w.write.write_columnar("errors", {"time": [1], "id": [2]}), lambda e: isinstance(e.__cause__, ArcAuthenticationError))
        with client(rotated) as w:
            w.write.write_columnar("errors", {"time": [1_000_000_000_000_001], "id": [3]})
            c.auth.revoke_token(info.id)
            check("auth.revoke_token", True, "no exception")
            refuses("a revoked token", lambda: w.write.write_columnar("errors", {"time": [1], "id": [4]}), lambda e: isinstance(e.__cause__, ArcAuthenticationError))
        refuses("columns of two types", lambda: c.write.write_columnar("errors", {"time": [1, 2], "id": ["text", "b"]}), lambda e: isinstance(e, ArcIngestionError) and "id" in str(e))
        refuses("a bad line", lambda: c.write.write_line_protocol("errors id=5i 1000000000000000000\nerrors id= 1"), lambda e: isinstance(e, ArcIngestionError) and "line 2" in str(e))
        c.write.write_point("errors", {"id": 6}, {"host": "a"}, 1_000_000_000_000_002)
    say("stored", ids=[1, 3, 5, 6])
    for name, token in (("wrong token", "wrong"), ("read-only token", P["read_token"]), ("token of another database", P["other_token"])):
        with client(token) as c:
            refuses(name, lambda c=c: c.write.write_columnar("errors", {"time": [1], "id": [7]}), lambda e: isinstance(e.__cause__, ArcAuthenticationError))
    with client("wrong") as c:
        check("auth.verify, wrong token", not c.auth.verify().valid, c.auth.verify())


{"load": load, "checks": checks}[P["mode"]]()
say("end")

"""influxdb (InfluxDB v1): it retries broken connections by itself, an answer of 503 is left to the application.

The certificate is checked with `verify_ssl=True` and REQUESTS_CA_BUNDLE. The session that notes failed tries is handed in by the client's own
option `session`: it changes nothing of what is sent.
"""

import requests
from influxdb import InfluxDBClient
from influxdb.exceptions import InfluxDBClientError, InfluxDBServerError

import rows
from rows import P, Pace, check, kind_of, refuses, row, say, until_written

current = []


def kind(e):
    """An answer of the server is refusal; the session has told of the rest already."""
    return "refused" if isinstance(e, InfluxDBServerError) and "unknown_outcome" not in str(e) else kind_of(e)


class Noting(requests.Session):
    def request(self, *args, **kw):
        try:
            return super().request(*args, **kw)
        except requests.exceptions.RequestException as e:
            say("again", kind=kind_of(e), why=f"{type(e).__name__}: {e}"[:200], ids=list(current))
            raise


def client(token=P["token"], **more):
    return InfluxDBClient(
        host=P["host"], port=P["port"], username="any", password=token, database=P["database"], ssl=True, verify_ssl=True, gzip=True, timeout=5, **more
    )


def point(i):
    tags, fields, us = row(i)
    return {"measurement": P["table"], "tags": tags, "fields": fields, "time": us}


def load():
    rows.kind_of = kind
    pace = Pace(P["rate"])
    with client(session=Noting(), retries=20) as c:
        for first in range(0, P["rows"], P["batch"]):
            last = min(first + P["batch"], P["rows"])
            current[:] = [[first, last - 1]]
            points = [point(i) for i in range(first, last)]
            until_written(
                lambda points=points: c.write_points(points, time_precision="u"), list(current),
                lambda e: isinstance(e, (InfluxDBServerError, requests.exceptions.ConnectionError)),
            )
            say("ack", rows=last - first)
            pace.wait(last - first)


def checks():
    c = client()
    check("ping", c.ping(), c.ping())
    c.create_database(P["database"])
    check("create_database", True, "no exception")
    found = c.get_list_database()
    check("get_list_database", isinstance(found, list), found)

    def write(*lines, **more):
        return c.write_points(list(lines), time_precision="s", protocol="line", **more)

    def client_error(code, *words):
        return lambda e: isinstance(e, InfluxDBClientError) and e.code == code and all(w in str(e) for w in words)

    write("errors a=1i,id=1i 1")
    write("errors a=2i,id=2i 2", retention_policy="autogen", consistency="any")
    refuses("bad line", lambda: write("errors a=3i,id=3i 2", "errors a= 3", "errors a=4i,id=4i 4"), client_error(400, "partial write", "unable to parse", "dropped=1"))
    refuses("only bad lines", lambda: write("errors a= 3"), client_error(400, "unable to parse"))
    refuses("type conflict", lambda: write('errors a="text",id=5i 5', "errors a=6i,id=6i 6"), client_error(400, "partial write", "field type conflict", "dropped=1"))
    refuses("query", lambda: c.query("SELECT * FROM errors"), client_error(400))
    say("stored", ids=[1, 2, 3, 4, 6])
    for name, token, status in (("wrong token", "wrong", 401), ("read-only token", P["read_token"], 403), ("token of another database", P["other_token"], 403)):
        refuses(name, lambda token=token: client(token).write_points(["errors a=7i,id=7i 7"], protocol="line"), client_error(status))


{"load": load, "checks": checks}[P["mode"]]()
say("end")

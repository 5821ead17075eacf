"""influxdb-client (InfluxDB v2), its batching writer and its retries: nothing of the client is changed."""

from influxdb_client import InfluxDBClient, Point, WriteOptions, WritePrecision
from influxdb_client.client.exceptions import InfluxDBError
from influxdb_client.client.write_api import SYNCHRONOUS
from influxdb_client.rest import ApiException

from rows import P, Pace, check, ids_of, kind_of, refuses, row, say


def client(token=P["token"], **more):
    return InfluxDBClient(url=P["url"], token=token, org="any", ssl_ca_cert=P["ca"], enable_gzip=True, timeout=5_000, **more)


def point(i):
    tags, fields, us = row(i)
    p = Point(P["table"]).time(us, WritePrecision.US)
    for k, v in tags.items():
        p = p.tag(k, v)
    for k, v in fields.items():
        p = p.field(k, v)
    return p


def load():
    def written(_, data):
        say("ack", rows=data.count(b" id=") + data.count(b",id="))

    def again(_, data, error):
        # An answer that asks for a retry comes as InfluxDBError; everything else is an error of the connection.
        kind = "refused" if isinstance(error, InfluxDBError) else kind_of(error)
        say("again", kind=kind, why=f"{type(error).__name__}: {error}"[:200], ids=ids_of(data))

    def lost(_, data, error):
        say("lost", why=f"{type(error).__name__}: {error}"[:300], ids=ids_of(data))

    options = WriteOptions(batch_size=P["batch"], flush_interval=500, retry_interval=500, max_retry_delay=4_000, max_retries=200, max_retry_time=600_000)
    pace = Pace(P["rate"])
    with client() as c, c.write_api(write_options=options, success_callback=written, error_callback=lost, retry_callback=again) as api:
        for i in range(P["rows"]):
            api.write(bucket=P["database"], record=point(i))
            if i % 100 == 99:
                pace.wait(100)


def checks():
    with client() as c:
        check("ping", c.ping(), c.ping())
        check("version", c.version(), c.version())
        check("build", c.build(), c.build())
        ready = c.ready()
        check("ready", ready.status == "ready", ready.to_dict())
        health = c.health()
        check("health", health.status == "pass", health.to_dict())
        api = c.write_api(write_options=SYNCHRONOUS)
        where = {"bucket": P["database"], "write_precision": "s"}

        def api_error(status, *words):
            return lambda e: isinstance(e, ApiException) and e.status == status and all(w in e.message for w in words)

        api.write(record="errors a=1i,id=1i 1", **where)
        refuses("bad line", lambda: api.write(record="errors a=2i,id=2i 2\nerrors a= 3\nerrors a=3i,id=3i 4", **where), api_error(400, "line 2"))
        refuses("type conflict", lambda: api.write(record='errors a="text",id=4i 5\nerrors a=5i,id=5i 6', **where), api_error(422, "a"))
        refuses("no bucket", lambda: api.write(bucket="", write_precision="s", record="errors a=1i 1"), api_error(400))
        refuses("bad bucket", lambda: api.write(bucket="a/b", write_precision="s", record="errors a=1i 1"), api_error(400))
    say("stored", ids=[1, 2, 3, 5])
    for name, token, status in (("wrong token", "wrong", 401), ("read-only token", P["read_token"], 403), ("token of another database", P["other_token"], 403)):
        with client(token) as c:
            refuses(name, lambda c=c: c.write_api(write_options=SYNCHRONOUS).write(bucket=P["database"], record="errors a=9i,id=9i 9"), api_error(status))


{"load": load, "checks": checks}[P["mode"]]()
say("end")

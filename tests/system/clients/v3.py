"""influxdb3-python (InfluxDB 3): its batching writer and its retries.

It writes to `/api/v2/write` unless told `use_v2_api=False`; this program tells it so.
"""

from influxdb_client_3 import InfluxDBClient3, Point, WriteOptions, WritePrecision, write_client_options
from influxdb_client_3.exceptions import InfluxDBError, InfluxDBPartialWriteError
from influxdb_client_3.write_client.client.write_api import SYNCHRONOUS, WriteType
from influxdb_client_3.write_client.write_exceptions import ApiException

from rows import P, Pace, check, ids_of, kind_of, refuses, row, say


def client(token=P["token"], database=P["database"], **options):
    return InfluxDBClient3(
        host=P["url"], token=token, database=database, ssl_ca_cert=P["ca"], enable_gzip=True, write_client_options=write_client_options(**options)
    )


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
        kind = "refused" if isinstance(error, InfluxDBError) else kind_of(error)
        say("again", kind=kind, why=f"{type(error).__name__}: {error}"[:200], ids=ids_of(data))

    def lost(_, data, error):
        say("lost", why=f"{type(error).__name__}: {error}"[:300], ids=ids_of(data))

    options = WriteOptions(
        write_type=WriteType.batching, batch_size=P["batch"], flush_interval=500, retry_interval=500, max_retry_delay=4_000, max_retries=200,
        max_retry_time=600_000, timeout=5_000, use_v2_api=False,
    )
    pace = Pace(P["rate"])
    with client(write_options=options, success_callback=written, error_callback=lost, retry_callback=again) as c:
        for i in range(P["rows"]):
            c.write(record=point(i))
            if i % 100 == 99:
                pace.wait(100)


def checks():
    with client(write_options=SYNCHRONOUS) as c:
        check("server version", c.get_server_version(), c.get_server_version())

        def write(lines, **more):
            return c.write(record=lines, write_precision="s", **{"use_v2_api": False, **more})

        def partial(*numbers):
            def look(e):
                return isinstance(e, InfluxDBPartialWriteError) and [x.line_number for x in e.line_errors] == list(numbers) and all(x.error_message and x.original_line for x in e.line_errors)

            return look

        write("errors a=1i,id=1i 1")
        refuses("bad line", lambda: write("errors a=2i,id=2i 2\nerrors a= 3\nerrors a=3i,id=3i 4"), partial(2))
        refuses("bad line, accept_partial=false", lambda: write("errors a=4i,id=4i 2\nerrors a= 3\nerrors a=5i,id=5i 4", accept_partial=False), partial(2))
        refuses("type conflict", lambda: write('errors a="text",id=6i 5\nerrors a=7i,id=7i 6'), partial(1))
        write("errors a=8i,id=8i 8", no_sync=True)
        write("errors a=9i,id=9i 9", use_v2_api=True)
    say("stored", ids=[1, 2, 3, 7, 8, 9])
    for name, token, status in (("wrong token", "wrong", 401), ("read-only token", P["read_token"], 403), ("token of another database", P["other_token"], 403)):
        with client(token, write_options=SYNCHRONOUS) as c:
            refuses(name, lambda c=c: c.write(record="errors a=10i,id=10i 9"), lambda e, status=status: isinstance(e, ApiException) and e.status == status)


{"load": load, "checks": checks}[P["mode"]]()
say("end")

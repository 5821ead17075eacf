#!/usr/bin/env python3
"""The tools of the store tests themselves: the servers keep create-only honest and the proxy does what it says, with signatures
left whole. What store_loop shows rests on this."""

from fault_proxy import FaultProxy, Request, Rule
from lib import *
from stores import SERVERS, Unavailable, bring_up


def s3_code(e):
    response = getattr(e, "response", None)
    return response["ResponseMetadata"]["HTTPStatusCode"] if response else type(e).__name__


class Outside:
    """Puts and gets of a store's own client, each tried once, without a retry."""

    def __init__(self, store, port):
        self.store, self.port = store, port
        if store.kind == "s3":
            from botocore.config import Config
            import boto3

            self.c = boto3.client(
                "s3", endpoint_url=f"http://127.0.0.1:{port}", region_name="us-east-1", aws_access_key_id=store.access_key,
                aws_secret_access_key=store.secret_key,
                config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}, read_timeout=2, connect_timeout=2, max_pool_connections=1),
            )
        else:
            from azure.storage.blob import BlobServiceClient
            from stores import AZURE_ACCOUNT, AZURE_KEY

            self.c = BlobServiceClient(
                f"http://127.0.0.1:{port}/{AZURE_ACCOUNT}", credential=AZURE_KEY, retry_total=0, read_timeout=2, connection_timeout=2
            )

    def create(self, key, data):
        """What came of a create-only put: "made", "there", or what else."""
        try:
            if self.store.kind == "s3":
                self.c.put_object(Bucket="tools", Key=key, Body=data, IfNoneMatch="*")
            else:
                self.c.get_blob_client("tools", key).upload_blob(data, overwrite=False)
            return "made"
        except Exception as e:  # noqa: BLE001
            status = s3_code(e) if self.store.kind == "s3" else getattr(e, "status_code", None) or type(e).__name__
            return "there" if status in (409, 412) else status

    def multipart(self, key, parts):
        """Two calls that the caller can put a fault between."""
        if self.store.kind == "s3":
            upload = self.c.create_multipart_upload(Bucket="tools", Key=key)["UploadId"]
            done = [
                {"PartNumber": i + 1, "ETag": self.c.upload_part(Bucket="tools", Key=key, UploadId=upload, PartNumber=i + 1, Body=p)["ETag"]}
                for i, p in enumerate(parts)
            ]
            return lambda: self.c.complete_multipart_upload(Bucket="tools", Key=key, UploadId=upload, MultipartUpload={"Parts": done})
        from azure.storage.blob import BlobBlock

        blob = self.c.get_blob_client("tools", key)
        ids = [f"{i:06}" for i in range(len(parts))]
        for i, part in zip(ids, parts, strict=True):
            blob.stage_block(i, part)
        return lambda: blob.commit_block_list([BlobBlock(i) for i in ids])


def honest(r, store, name):
    """Races for one key: exactly one winner each, and its bytes are what is there."""
    sides = [Outside(store, store.port) for _ in range(6)]
    bad, won = [], 0
    for i in range(10):
        out = [None] * len(sides)

        def race(n, i=i, out=out):
            out[n] = sides[n].create(f"race/{i}", f"{n}".encode() * 1000)

        threads = [threading.Thread(target=race, args=(n,)) for n in range(len(sides))]
        [t.start() for t in threads]
        [t.join() for t in threads]
        winners = [n for n, o in enumerate(out) if o == "made"]
        if len(winners) != 1 or set(out) != {"made", "there"} or store.read("tools", f"race/{i}") != f"{winners[0]}".encode() * 1000:
            bad.append((i, out))
        won += len(winners)
    r.check(not bad, name + "/create_only", f"10 races of {len(sides)} for one key: {won} winners, the others hear that it is there{f'; {bad[:2]}' if bad else ''}")


def signatures(r, store, proxy, name):
    good = Outside(store, proxy.port).create("signed/1", b"x" * 100_000)
    details = f"a signed put through the proxy: {good}"
    ok = good == "made"
    if store.kind == "s3" and store.checks_signatures:
        from botocore.exceptions import ClientError

        try:
            store.client(secret_key="wrong", port=proxy.port).put_object(Bucket="tools", Key="signed/2", Body=b"x")
            ok, details = False, details + "; with a wrong key: accepted"
        except ClientError as e:
            code = e.response["Error"]["Code"]
            ok = ok and code == "SignatureDoesNotMatch"
            details += f"; with a wrong key: {code}"
    r.check(ok, name + "/signatures", details)


# action -> (what the client hears of a put, whether the object is there afterwards)
PUTS = {
    "slow_down": ((503,), False), "server_error": ((500,), False), "skew": ((403,), False), "expired": ((400,), False), "denied": ((403,), False),
    "hang": (("ReadTimeoutError", "ServiceResponseTimeoutError", "ServiceResponseError", "ServiceRequestTimeoutError"), False),
    "hang_after": (("ReadTimeoutError", "ServiceResponseTimeoutError", "ServiceResponseError"), True),
    "cut_before": (("ConnectionClosedError", "ConnectionError", "EndpointConnectionError", "ServiceResponseError", "ServiceRequestError"), False),
    "cut_after": (("ConnectionClosedError", "ConnectionError", "EndpointConnectionError", "ServiceResponseError", "ServiceRequestError"), True),
    "half": (("ConnectionClosedError", "ConnectionError", "EndpointConnectionError", "ServiceResponseError", "ServiceRequestError"), False),
    # The clients of both vendors look at the status alone here, or call the answer odd.
    "error200": (("made", 200, 500, "HttpResponseError"), False), "error200_after": (("made", 200, 500, "HttpResponseError"), True),
    "delay": (("made",), True), "pass": (("made",), True), "twice": (("there",), True),
}


def actions(r, store, proxy, name):
    bad, heard = [], []
    for n, (action, (answers, there)) in enumerate(PUTS.items()):
        key = f"act/{action}"
        proxy.set(Rule(action, ops={"put"}, seconds=0.3))
        out = Outside(store, proxy.port).create(key, bytes([n]) * 300_000)
        proxy.set()
        # A server may take a moment to see that a put was cut.
        time.sleep(0.2)
        present = {k: s for k, s in store.objects("tools", "act/")}.get(key)
        heard.append(f"{action}: {out}, {'there' if present else 'not there'}")
        if out not in answers or (present is not None) != there or present not in (None, 300_000):
            bad.append(f"{action}: heard {out!r}, object of {present} bytes; expected {answers}, {'there' if there else 'not there'}")
    r.check(not bad, name + "/put", "; ".join(bad or heard))
    proxy.refuse(True)
    out = Outside(store, proxy.port).create("act/refused", b"x")
    proxy.refuse(False)
    again = Outside(store, proxy.port).create("act/refused", b"x")
    r.check(out in ("EndpointConnectionError", "ConnectTimeoutError", "ServiceRequestError") and again == "made", name + "/refuse", f"refused: {out}; afterwards: {again}")
    proxy.set(Rule("late", ops={"put"}, seconds=0.7))
    out = Outside(store, proxy.port).create("act/late", b"first" * 1000)
    proxy.set()
    before = "act/late" in dict(store.objects("tools", "act/late"))
    proxy.settle()
    after = "act/late" in dict(store.objects("tools", "act/late"))
    r.check(out != "made" and not before and after, name + "/late", f"heard {out}; there at once: {before}; there after the zombie: {after}")
    proxy.set(Rule("strip", ops={"put"}))
    outs = [Outside(store, proxy.port).create("act/strip", str(i).encode()) for i in range(2)]
    proxy.set()
    if outs[0] == 403:
        r.ok(name + "/strip", "the condition is part of what is signed, so this server cannot be made dishonest")
    else:
        r.check(outs == ["made", "made"] and store.read("tools", "act/strip") == b"1", name + "/strip", f"two create-only puts: {outs}")


def multiparts(r, store, proxy, name):
    parts = [b"a" * (5 << 20), b"b" * 1000]
    bad, heard = [], []
    for action, there in (("slow_down", False), ("cut_after", True), ("error200", False), ("error200_after", True), ("pass", True)):
        key = f"multi/{action}"
        side = Outside(store, proxy.port)
        complete = side.multipart(key, parts)
        left = [k for k, _ in store.multiparts("tools") if k == key]
        proxy.set(Rule(action, ops={"complete"}))
        try:
            complete()
            out = "done"
        except Exception as e:  # noqa: BLE001
            out = s3_code(e) if store.kind == "s3" else getattr(e, "status_code", None) or type(e).__name__
        proxy.set()
        present = dict(store.objects("tools", "multi/")).get(key)
        after = [k for k, _ in store.multiparts("tools") if k == key]
        heard.append(f"{action}: {out}, {'there' if present else 'not there'}, unfinished {len(left)} then {len(after)}")
        if (present == len(parts[0]) + len(parts[1])) != there or len(left) != 1 or len(after) != (0 if there else 1) or (out == "done") != (action == "pass") and not action.startswith("error200"):
            bad.append(heard[-1])
    r.check(not bad, name + "/multipart", "; ".join(bad or heard))
    side = Outside(store, proxy.port)
    proxy.set(Rule("half", ops={"part"}))
    try:
        side.multipart("multi/half", parts)
        out = "done"
    except Exception as e:  # noqa: BLE001
        out = type(e).__name__
    proxy.set()
    r.check(out != "done" and "multi/half" not in dict(store.objects("tools", "multi/")), name + "/half_part", f"heard {out}, no object")


def stopped(r, store, name):
    if not store.persistent:
        r.skip(name + "/stop", "this server keeps its objects in the memory of its process")
        return
    before = sorted(store.objects("tools"))
    store.stop_gateway()
    try:
        socket.create_connection(("127.0.0.1", store.port), 1).close()
        gone = False
    except OSError:
        gone = True
    store.start_gateway()
    after = sorted(store.objects("tools"))
    r.check(gone and before == after and before, name + "/stop", f"stopped: refused {gone}; started again: {len(after)} of {len(before)} objects")


def operations(r):
    """Requests are told apart by what they do."""
    cases = [
        ("s3", "PUT /b/k", "put"), ("s3", "PUT /b/a/k?partNumber=1&uploadId=x", "part"), ("s3", "POST /b/k?uploads", "begin"), ("s3", "POST /b/k?uploads=", "begin"),
        ("s3", "POST /b/k?uploadId=x", "complete"), ("s3", "DELETE /b/k?uploadId=x", "abort"), ("s3", "GET /b?list-type=2&prefix=a", "list"), ("s3", "GET /b/?list-type=2", "list"),
        ("s3", "GET /b?uploads&prefix=a", "uploads"), ("s3", "GET /b/k", "get"), ("s3", "HEAD /b/k", "head"), ("s3", "PUT /b", "other"), ("s3", "POST /b?delete", "delete"),
        ("azure", "PUT /a/c/k", "put"), ("azure", "PUT /a/c/k?comp=block&blockid=1", "part"), ("azure", "PUT /a/c/k?comp=blocklist", "complete"),
        ("azure", "GET /a/c?restype=container&comp=list", "list"), ("azure", "HEAD /a/c/k", "head"), ("azure", "PUT /a/c?restype=container", "other"),
    ]
    bad = [(k, line, got, want) for k, line, want in cases if (got := Request(f"{line} HTTP/1.1".encode(), [], k).op) != want]
    r.check(not bad, "store_tools/operations", f"{len(cases)} requests told apart{f'; {bad}' if bad else ''}")


def one(r, args, kind):
    name = f"store_tools/{kind}"
    d = workdir(args.keep)
    started = time.monotonic()
    try:
        store = bring_up(kind, d)
    except Unavailable as e:
        r.skip(name, str(e))
        return
    entry = defer(store.stop)
    r.ok(name + "/start", f"listens after {time.monotonic() - started:.1f} s")
    store.create_bucket("tools")
    proxy = FaultProxy(store.port, store.kind, args.seed)
    honest(r, store, name)
    signatures(r, store, proxy, name)
    actions(r, store, proxy, name)
    multiparts(r, store, proxy, name)
    stopped(r, store, name)
    undo(entry)


def gcs(r, args):
    """The stand-in: Google's condition is kept, generations change with the object."""
    name = "store_tools/gcs"
    try:
        store = bring_up("gcs", workdir(args.keep))
    except Unavailable as e:
        r.skip(name, str(e))
        return
    entry = defer(store.stop)
    store.create_bucket("tools")
    proxy = FaultProxy(store.port, store.kind, args.seed)

    def ask(method, body=None, **headers):
        c = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=10)
        c.request(method, "/tools/a/b", body=body, headers={k.replace("_", "-"): v for k, v in headers.items()})
        answer = c.getresponse()
        answer.read()
        c.close()
        return answer.status, answer.getheader("x-goog-generation")

    first, second = (ask("PUT", x, x_goog_if_generation_match="0") for x in (b"first", b"second"))
    seen = ask("HEAD")
    third = ask("PUT", b"third")
    r.check(
        (first[0], second[0], seen[0], third[0]) == (200, 412, 200, 200) and first[1] == seen[1] != third[1] and store.read("tools", "a/b") == b"third", name,
        f"created {first}, again {second}, there {seen}, replaced {third}",
    )
    undo(entry)


def main():
    args = parser(__doc__, stores=",".join(SERVERS)).parse_args()
    r = Results()
    operations(r)
    for kind in args.stores.split(","):
        if kind == "gcs":
            case(r, "store_tools/gcs", gcs, r, args)
            continue
        case(r, f"store_tools/{kind}", one, r, args, kind)
    r.end()


if __name__ == "__main__":
    main()

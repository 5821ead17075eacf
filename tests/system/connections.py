#!/usr/bin/env python3
"""One-row requests from 1,000 connections: how many requests share a sync, and what a request costs in log bytes."""

from lib import *


def one(r, args, engine):
    name = f"connections/{engine}"
    d = workdir(args.keep)
    ledger, lake = d + "/ledger", d + "/lake"
    server = Server(d + "/wal", lake, d, {"wal.io": engine}).start().wait_ready()
    before = server.metrics()
    out = bench(server.url, ledger, duration=f"{args.seconds}s", connections=args.connections, rows=1)
    after = server.metrics()
    n = {k: after[k] - before[k] for k in ("arc_wal_syncs_total", "arc_ingest_batches_total", "arc_wal_record_bytes_total", "arc_wal_pad_bytes_total", "arc_ingest_rows_total")}
    batches, syncs = n["arc_ingest_batches_total"], n["arc_wal_syncs_total"]
    r.check(
        batches >= out["acked"] > args.connections and out["unanswered"] == 0 and out["refused"] == 0 and syncs * 4 < batches, name,
        f"{args.connections} connections, {out['requests_per_second']:.0f} requests/s, p50 {out['latency_us']['p50'] / 1000:.2f} ms, p99 {out['latency_us']['p99'] / 1000:.2f} ms; "
        f"{syncs:.0f} syncs for {batches:.0f} requests = {syncs / batches:.4f} a request ({batches / syncs:.0f} requests a sync); "
        f"log bytes a request {n['arc_wal_record_bytes_total'] / batches:.0f} without pads, {(n['arc_wal_record_bytes_total'] + n['arc_wal_pad_bytes_total']) / batches:.0f} with; "
        f"refused {out['refused']}, unanswered {out['unanswered']} {out['reasons'] or ''}",
    )
    server.flush(60)
    server.stop()
    judge(r, name + "/rows", ledger, lake)


def main():
    args = parser(__doc__, seconds=5, connections=1000).parse_args()
    r = Results()
    if not raise_nofile(2 * args.connections + 200):
        r.skip("connections", f"cannot open {2 * args.connections} files (ulimit -n)")
        r.end()
    for engine in ("pwrite", "mmap"):
        case(r, f"connections/{engine}", one, r, args, engine)
    r.end()


if __name__ == "__main__":
    main()

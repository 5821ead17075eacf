#!/usr/bin/env python3
"""Every 204 comes after the sync that covers its record, as strace sees it.

`pwrite`: for the answer with `X-Arc-Sequence: n`, the first fdatasync (or fsync) of the file that STARTED after the pwritev that
completed record n RETURNED must have RETURNED before the system call that sends the answer STARTED.

`mmap`: records are stores to memory, which strace does not see. Weaker: an msync whose range covers the bytes at which record n is
found in its segment afterwards STARTED after the last read of the request from its socket RETURNED, and RETURNED before the send of
its answer STARTED. (That the stores came before that msync is not seen; each range is synced once, and the rows are verified.)

Order is that of strace's output: it sees entry and exit of each call while the thread is stopped, so what the file puts in an order
happened in it. The checker is run against `wal.sync_mode = unsafe-none` and against made-up traces too: it must find violations there.
"""

import zlib

from lib import *

CALLS = "pwrite64,pwritev,pwritev2,fdatasync,fsync,msync,sync_file_range,write,writev,sendto,sendmsg"
READS = ",read,readv,recvfrom,recvmsg,mmap"
LINE = re.compile(r"^(\d+)\s+(\d+\.\d+)\s+(.*)$")
RESUMED = re.compile(r"^<\.\.\. (\w+) resumed>(.*)$")
CALL = re.compile(r"^(\w+)\((.*)$")
RETURN = re.compile(r"=\s+(-?\d+)(?:\s|$)[^=]*$")
FD = re.compile(r"^(\d+)<([^>]*)>")
BASE = re.compile(r'iov_base="((?:[^"\\]|\\.)*)"(?:\.\.\.)?, iov_len=(\d+)')
TEXT = re.compile(r'^\d+<[^>]*>, "((?:[^"\\]|\\.)*)"')
SEQUENCE = re.compile(r"x-arc-sequence: (\d+)", re.I)
ESCAPE = re.compile(rb"\\([0-7]{1,3}|.)", re.S)
NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"v": b"\v", b"f": b"\f", b"a": b"\a", b"b": b"\b", b"e": b"\x1b"}
SYNCS = ("fdatasync", "fsync")
WRITES = ("pwritev", "pwritev2", "pwrite64")
SENDS = ("write", "writev", "sendto", "sendmsg")
RECEIVES = ("read", "readv", "recvfrom", "recvmsg")


def unescape(s):
    def one(m):
        x = m.group(1)
        return bytes([int(x, 8)]) if x[:1] in b"01234567" else NAMED.get(x, x)

    return ESCAPE.sub(one, s.encode("latin-1", "replace"))


def calls(lines):
    """(position, thread, event, name, arguments, return value): event is "start" or "end", in the order of the trace."""
    open_calls = {}
    for at, line in enumerate(lines):
        m = LINE.match(line)
        if not m:
            continue
        thread, _, rest = m.groups()
        r = RESUMED.match(rest)
        if r:
            name, args = open_calls.pop(thread, (r.group(1), ""))
            ret = RETURN.search(r.group(2))
            yield at, thread, "end", name, args + r.group(2), int(ret.group(1)) if ret else None
            continue
        c = CALL.match(rest)
        if not c:
            continue
        name, args = c.groups()
        yield at, thread, "start", name, args, None
        if args.rstrip().endswith("<unfinished ...>"):
            open_calls[thread] = (name, args.rstrip()[: -len("<unfinished ...>")].rstrip())
        else:
            ret = RETURN.search(args)
            yield at, thread, "end", name, args, int(ret.group(1)) if ret else None


def records(args):
    """Write records whose headers begin the buffers of a pwritev: (sequence, end offset within the call)."""
    at = 0
    for base, length in BASE.findall(args):
        h = unescape(base)[:64]
        if len(h) == 64:
            magic, kind, _, _, payload, _, _, offset, sequence, _, _, _ = struct.unpack("<IBBHIIQQQQqI", h[:60])
            if magic == 0xF54352A7 and kind == 1:
                if zlib.crc32(h[:60]) != struct.unpack("<I", h[60:])[0]:
                    raise Problem(f"record header of sequence {sequence} has a bad CRC in the trace")
                yield sequence, offset, at + 64 + payload
        at += int(length)


def check_pwrite(lines):
    """Counts, and the violations found."""
    pending = {}  # file -> [(sequence, end)] handed to a write that has not covered them yet
    written = {}  # file -> [sequence] written, not yet under a sync
    in_sync = {}  # (thread, file) -> sequences that the sync under way covers
    durable = set()
    seen = set()
    out = {"answers": 0, "syncs": 0, "groups": 0, "records": 0, "violations": []}
    for at, thread, event, name, args, ret in calls(lines):
        fd = FD.match(args)
        if not fd:
            continue
        path = fd.group(2)
        if name in WRITES:
            if event == "start":
                offset = re.search(r"\], \d+, (\d+)", args)
                for sequence, own, end in records(args):
                    pending.setdefault(path, []).append((sequence, int(offset.group(1)) + end))
                    if sequence in seen:
                        out["violations"].append(f"line {at + 1}: sequence {sequence} written twice")
                    seen.add(sequence)
            elif ret is not None and ret > 0 and path in pending:
                offset = re.search(r"\], \d+, (\d+)", args)
                covered = int(offset.group(1)) + ret if offset else 0
                done = [s for s, end in pending[path] if end <= covered]
                pending[path] = [(s, end) for s, end in pending[path] if end > covered]
                if done:
                    out["groups"] += 1
                    out["records"] += len(done)
                    written.setdefault(path, []).extend(done)
        elif name in SYNCS:
            if event == "start":
                # Only what was written completely before this moment; it also stays listed until a sync succeeds.
                in_sync[(thread, path)] = list(written.get(path, ()))
            else:
                covered = in_sync.pop((thread, path), ())
                if ret == 0 and covered:
                    out["syncs"] += 1
                    durable.update(covered)
                    gone = set(covered)
                    written[path] = [s for s in written[path] if s not in gone]
        elif name in SENDS and event == "start" and "HTTP/1.1 204" in args:
            for n in SEQUENCE.findall(args):
                out["answers"] += 1
                if int(n) not in durable:
                    why = "its record was not seen written" if int(n) not in seen else "no sync of it had returned"
                    out["violations"].append(f"line {at + 1}: 204 for sequence {n} was sent, {why}")
    return out


MSYNC = re.compile(r"^(0x[0-9a-f]+), (\d+), MS_SYNC")
MMAP = re.compile(r"^(?:NULL|0x[0-9a-f]+), (\d+), PROT_READ\|PROT_WRITE, MAP_SHARED, \d+<([^>]*)>, (0x[0-9a-f]+|0)\)\s+= (0x[0-9a-f]+)")
MAPS = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) rw-s ([0-9a-f]+) \S+ \S+\s+(\S+)")


def maps_of(pid):
    """Shared writable mappings of files: [(start, end, path)]."""
    with open(f"/proc/{pid}/maps") as f:
        found = [m for m in map(MAPS.match, f) if m and int(m.group(3), 16) == 0]
    return [(int(m.group(1), 16), int(m.group(2), 16), m.group(4)) for m in found]


def places(wal):
    """Where the records are: sequence -> (file, offset, end)."""
    out = {}
    for path in glob.glob(wal + "/seg-*.wal"):
        with open(path, "rb") as f:
            data = f.read()
        at = 8192
        while at + 64 <= len(data):
            magic, kind, _, _, payload, _, _, offset, sequence = struct.unpack_from("<IBBHIIQQQ", data, at)
            if magic != 0xF54352A7 or offset != at or zlib.crc32(data[at : at + 60]) != struct.unpack_from("<I", data, at + 60)[0]:
                break
            end = at + 64 + payload
            if kind == 1:
                out[sequence] = (path, at, end)
            at = (end + 7) // 8 * 8
    return out


def check_mmap(lines, maps, where):
    maps = list(maps)
    last_read = {}  # socket -> position of the end of its last read
    under_way = {}  # thread -> position of the start of its msync, and the range
    synced = {}  # file -> [(from, to, start position)] of msyncs that have returned
    out = {"answers": 0, "syncs": 0, "violations": []}
    for step, (at, thread, event, name, args, ret) in enumerate(calls(lines)):
        if name == "mmap" and event == "end":
            m = MMAP.match(args)
            if m and m.group(3) == "0":
                begin = int(m.group(4), 16)
                maps.insert(0, (begin, begin + int(m.group(1)), m.group(2)))
        elif name == "msync" and event == "start":
            m = MSYNC.match(args)
            if m:
                under_way[thread] = (step, int(m.group(1), 16), int(m.group(2)))
        elif name == "msync":
            began, address, length = under_way.pop(thread, (None, 0, 0))
            home = next((x for x in maps if x[0] <= address and address + length <= x[1]), None)
            if ret == 0 and began is not None and home:
                out["syncs"] += 1
                synced.setdefault(home[2], []).append((address - home[0], address - home[0] + length, began))
        else:
            fd = FD.match(args)
            if not fd:
                continue
            if name in RECEIVES and event == "end" and ret is not None and ret > 0:
                last_read[fd.group(1)] = step
            elif name in SENDS and event == "start" and "HTTP/1.1 204" in args:
                for n in SEQUENCE.findall(args):
                    out["answers"] += 1
                    received, place = last_read.get(fd.group(1)), where.get(int(n))
                    if place is None:
                        out["violations"].append(f"line {at + 1}: 204 for sequence {n} was sent, the log does not hold it")
                    elif received is None or not any(
                        began > received and lo <= place[1] and place[2] <= hi for lo, hi, began in synced.get(place[0], ())[-50:]
                    ):
                        out["violations"].append(f"line {at + 1}: 204 for sequence {n} was sent, no msync of its bytes began and returned since its request was read")
    return out


def made_up():
    """Traces whose verdict is known: (lines, violations)."""

    def header(n, offset):
        h = struct.pack("<IBBHIIQQQQqI", 0xF54352A7, 1, 0, 0, 8, 0, 7, offset, n, n - 1, 0, 0)
        h += struct.pack("<I", zlib.crc32(h))
        return "".join(f"\\{b:03o}" for b in h)

    def write(n, offset, tail):
        return f'11 1.0 pwritev(5</w/seg>, [{{iov_base="{header(n, offset)}"..., iov_len=72}}, {{iov_base="", iov_len=4024}}], 2, {offset}{tail}'

    sync, ack = "11 1.0 fdatasync(5</w/seg>", '12 1.0 writev(9<socket:[1]>, [{iov_base="HTTP/1.1 204 No Content\\r\\nx-arc-sequence: %d\\r\\n\\r\\n", iov_len=60}], 1) = 60'
    done = ") = 4096"
    return [
        ([write(1, 8192, done), sync + ") = 0", ack % 1], 0),
        ([write(1, 8192, done), ack % 1, sync + ") = 0"], 1),
        ([write(1, 8192, done), sync + " <unfinished ...>", ack % 1, "11 1.0 <... fdatasync resumed>) = 0"], 1),
        ([write(1, 8192, done), sync + " <unfinished ...>", "11 1.0 <... fdatasync resumed>) = 0", ack % 1], 0),
        # The sync began before the write had returned: it does not count.
        ([write(1, 8192, " <unfinished ...>"), "13 1.0 fdatasync(5</w/seg> <unfinished ...>", "11 1.0 <... pwritev resumed>) = 4096", "13 1.0 <... fdatasync resumed>) = 0", ack % 1], 1),
        ([write(1, 8192, done), sync + ") = -1 EIO (Input/output error)", ack % 1], 1),
        ([write(1, 8192, ") = 16"), sync + ") = 0", ack % 1], 1),
        ([sync + ") = 0", ack % 1], 1),
        ([write(1, 8192, done), sync.replace("seg", "other") + ") = 0", ack % 1], 1),
    ]


def traced(args, engine, mode):
    d = workdir(args.keep)
    server = Server(d + "/wal", d + "/lake", d, {"wal.io": engine, "wal.sync_mode": mode, "wal.segment_size": "1MB", "wal.max_size": "4GB", "compaction.trigger_size": "256MB", "compaction.paused": "true"})
    server.start().wait_ready()
    reads = READS if engine == "mmap" else ""
    strace = Strace(server.pid, ["-y", "-ttt", "-s", "192", "-e", "trace=" + CALLS + reads, "-e", "signal=none"], d + "/trace")
    maps = maps_of(server.pid)
    out = bench(server.url, d + "/ledger", duration=f"{int(args.seconds * 1000)}ms", connections=16, rows=2)
    strace.detach()
    where = places(d + "/wal")
    server.stop()
    server.start(compaction__paused="false").wait_ready().flush()
    server.stop()
    with open(d + "/trace", encoding="latin-1") as f:
        lines = f.read().splitlines()
    found = check_mmap(lines, maps, where) if engine == "mmap" else check_pwrite(lines)
    return found, out, d


def main():
    args = parser(__doc__, seconds=3.0).parse_args()
    r = Results()
    wrong = []
    for i, (lines, expected) in enumerate(made_up()):
        got = check_pwrite(lines)["violations"]
        if len(got) != expected:
            wrong.append(f"trace {i}: expected {expected} violations, found {got}")
    r.check(not wrong, "sync_before_ack/checker", "; ".join(wrong) or f"{len(made_up())} made-up traces judged as they should be")
    if not have_strace():
        r.skip("sync_before_ack", "no strace")
        r.end()
    for engine in ("pwrite", "mmap"):
        for mode in ("fdatasync", "fsync", "unsafe-none"):
            if engine == "mmap" and mode == "fsync":
                continue
            name = f"sync_before_ack/{engine}/{mode}"

            def one(name=name, engine=engine, mode=mode):
                found, out, d = traced(args, engine, mode)
                bad = found["violations"]
                counts = f"{found['answers']} answers of {out['acked']} acked requests checked against {found['syncs']} syncs"
                if engine == "pwrite":
                    counts += f" of {found['groups']} group writes with {found['records']} records"
                whole = found["answers"] == out["acked"] > 0
                if mode == "unsafe-none":
                    r.check(whole and len(bad) == found["answers"], name, f"{counts}: {len(bad)} violations found, as there must be; first: {bad[:1]}")
                else:
                    weak = " (weaker check: an msync of the record's bytes between request and answer)" if engine == "mmap" else ""
                    r.check(whole and not bad, name, f"{counts}: {len(bad)} violations{weak} {bad[:3] or ''}".strip())
                    judge(r, name + "/rows", d + "/ledger", d + "/lake")

            case(r, name, one)
    r.end()


if __name__ == "__main__":
    main()

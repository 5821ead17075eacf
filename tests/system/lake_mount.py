#!/usr/bin/env python3
"""A local lake on a mount of its own: unmounted, unmounted by force, mounted over, and exchanged, while the server runs.

Needs root and mount namespaces: the script goes on in one of its own, so that no mount of this machine is touched. `umount` is refused
while the server runs. After `umount -l`, and with another filesystem mounted over the lake, rows are taken, nothing goes to where the
path leads then and nothing is released; when the lake is back, every acknowledged row is in it once.
"""

from lib import *

SETTINGS = {"compaction.max_delay": "200ms", "wal.segment_size": "1MB", "wal.max_size": "256MB", "compaction.trigger_size": "16MB",
            "ingest.max_record_size": "4MB", "wal.reserve": "1MB"}


def sh(*args):
    p = subprocess.run(args, capture_output=True, text=True)
    return p.returncode, (p.stdout + p.stderr).strip()


def must(*args):
    code, text = sh(*args)
    if code:
        raise Problem(f"{' '.join(args)}: {code}: {text}")


def files(root):
    return sorted(os.path.relpath(os.path.join(d, n), root) for d, _, names in os.walk(root) for n in names)


def status(server):
    return server.get_json("/api/v1/status")[1]


def write(server, n, sent):
    for _ in range(n):
        code, _, reason = server.write(probe_body(value=len(sent)))
        if code != 204:
            raise Problem(f"a write was answered {code} {reason}")
        sent.append(len(sent))


def stored(lake):
    """The values in the lake's files, sorted."""
    duckdb = duckdb_module()
    found = [os.path.join(lake, f) for f in files(lake) if f.endswith(".parquet")]
    return sorted(x for (x,) in duckdb.sql(f"SELECT v FROM read_parquet({found!r}, hive_partitioning = false)").fetchall())


def one(r, args, how):
    name = f"lake_mount/{how}"
    d = workdir(args.keep)
    disk, lake, wal = (os.path.join(d, x) for x in ("disk", "lake", "wal"))
    for x in (disk, lake):
        os.mkdir(x)
    # The filesystem is mounted twice, so that it can come back after `umount -l`.
    must("mount", "-t", "tmpfs", "-o", "size=64m", "lake", disk)
    defer(sh, "umount", "-l", disk)
    must("mount", "--bind", disk, lake)
    defer(sh, "umount", "-l", lake)
    server = Server(wal, lake, d, SETTINGS).start()
    server.wait_ready()
    sent = []
    write(server, 5, sent)
    server.flush()
    code, text = sh("umount", lake)
    if code == 0 or "busy" not in text:
        raise Problem(f"umount of a lake in use: {code} {text}, expected 'target is busy'")
    if how == "umount_lazy":
        must("umount", "-l", lake)
    elif how == "mount_over":
        must("mount", "-t", "tmpfs", "-o", "size=16m", "other", lake)
    else:
        must("umount", "-l", lake)
        must("mount", "-t", "tmpfs", "-o", "size=16m", "other", lake)
    before = status(server)["watermarks"]["shipped"]
    write(server, 5, sent)
    wait_for("the lake is said to be away", 20, lambda: "another directory" in (status(server)["last_error"] or ""))
    time.sleep(1)
    write(server, 5, sent)
    w = status(server)["watermarks"]
    strays = files(lake)
    if w["shipped"] != before or w["released"] > before or strays:
        raise Problem(f"with the lake away: {w}, shipped {before} before, files below: {strays}")
    if how == "exchanged":
        # A start does not take it for the lake either, and leaves no segment.
        segments = len([f for f in os.listdir(wal) if f.startswith("seg-")])
        server.kill()
        server.start()
        code = server.wait_exit(20)
        left = len([f for f in os.listdir(wal) if f.startswith("seg-")])
        if code != 3 or left != segments:
            raise Problem(f"a start on another lake ended with {code}, {segments} segments before, {left} after: {server.last_words()}")
    if how != "umount_lazy":
        must("umount", lake)
    if how != "mount_over":
        must("mount", "--bind", disk, lake)
    if how == "exchanged":
        server.start().wait_ready()
    server.flush()
    found = stored(lake)
    error = status(server)["last_error"]
    server.stop()
    r.check(found == sent and error is None, name, f"{len(sent)} rows acknowledged, {len(found)} in the lake, last error {error}")
    must("umount", lake)
    r.ok(name + "/umount", "the lake can be unmounted once the server has stopped")


def main():
    args = parser(__doc__).parse_args()
    r = Results()
    if os.environ.get("ARC_LAKE_MOUNT") != "1":
        code, text = sh("unshare", "-m", "--propagation", "private", "true") if shutil.which("unshare") else (1, "no unshare")
        if os.geteuid() != 0 or code:
            r.skip("lake_mount", f"needs root and mount namespaces: {text}")
            r.end()
        os.environ["ARC_LAKE_MOUNT"] = "1"
        argv = [sys.executable, os.path.abspath(__file__), *sys.argv[1:]]
        os.execvp("unshare", ["unshare", "-m", "--propagation", "private", *argv])
    if duckdb_module() is None:
        r.skip("lake_mount", "needs duckdb")
        r.end()
    for how in ("umount_lazy", "mount_over", "exchanged"):
        case(r, f"lake_mount/{how}", one, r, args, how)
    r.end()


main()

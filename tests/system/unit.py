#!/usr/bin/env python3
"""ops/arc.service without a running systemd: `systemd-analyze verify` and `security`, and the server under what the unit forbids.

A server is started as another user, without capabilities, with no_new_privs, LimitNOFILE, and under a seccomp filter made from the
unit's SystemCallFilter, MemoryDenyWriteExecute and RestrictAddressFamilies. It must take writes, ship them, answer, and stop in good
order; the system calls that it makes, as strace sees them without the filter, must all be allowed. Not tried: the mount namespace
(ProtectSystem and its like), user namespaces, cgroup limits.
"""

import ctypes
import pwd

from lib import *

UNIT = os.path.join(REPO, "ops", "arc.service")
ALLOW, ERRNO_EPERM = 0x7FFF0000, 0x00050000 | 1
NE, MASKED_EQ = 1, 7
PROT_WRITE, PROT_EXEC = 2, 4
PR_SET_NO_NEW_PRIVS, PR_CAPBSET_DROP = 38, 24


def unit_lines():
    out = {}
    for line in open(UNIT):
        m = re.match(r"(\w+)=(.*)", line.strip())
        if m:
            out.setdefault(m.group(1), []).append(m.group(2))
    return out


def members(name):
    """System calls of a set such as @system-service, or the one call."""
    if not name.startswith("@"):
        return {name}
    out = set()
    text = subprocess.run(["systemd-analyze", "syscall-filter", "--no-pager", name], capture_output=True, text=True, check=True).stdout
    for word in text.split("\n")[1:]:
        word = word.strip()
        if word and not word.startswith("#"):
            out |= members(word)
    return out


def allowed(unit):
    """The lines in their order: the first decides that it is a list of what is allowed, `~` takes away."""
    out = set()
    for line in unit["SystemCallFilter"]:
        for name in line.lstrip("~").split():
            out = out - members(name) if line.startswith("~") else out | members(name)
    # Always allowed with such a list (systemd.exec).
    return out | members("@default") | {"execve", "exit", "exit_group", "getrlimit", "rt_sigreturn", "sigreturn", "time", "clock_gettime", "nanosleep"}


class Compare(ctypes.Structure):
    _fields_ = [("arg", ctypes.c_uint), ("op", ctypes.c_int), ("a", ctypes.c_uint64), ("b", ctypes.c_uint64)]


def confine(calls, uid, gid, nofile):
    """In the child, before exec."""
    libc, sec = ctypes.CDLL(None, use_errno=True), ctypes.CDLL("libseccomp.so.2", use_errno=True)
    sec.seccomp_init.restype = ctypes.c_void_p
    resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))
    for capability in range(64):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    os.umask(0o027)
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError("no_new_privs")
    ctx = ctypes.c_void_p(sec.seccomp_init(ctypes.c_uint32(ERRNO_EPERM)))
    rule = lambda action, nr, *cmp: sec.seccomp_rule_add_array(ctx, ctypes.c_uint32(action), nr, len(cmp), (Compare * max(1, len(cmp)))(*cmp))
    for name in calls:
        nr = sec.seccomp_syscall_resolve_name(name.encode())
        if nr < 0:
            continue
        # What has conditions is allowed by them alone.
        if name == "mmap":
            for prot in range(8):
                if prot & (PROT_WRITE | PROT_EXEC) != PROT_WRITE | PROT_EXEC:
                    rule(ALLOW, nr, Compare(2, MASKED_EQ, 7, prot))
        elif name in ("mprotect", "pkey_mprotect"):
            rule(ALLOW, nr, Compare(2, MASKED_EQ, PROT_EXEC, 0))
        elif name == "socket":
            for family in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
                rule(ALLOW, nr, Compare(0, MASKED_EQ, 0xFFFFFFFF, family))
        else:
            rule(ALLOW, nr)
    if sec.seccomp_load(ctx):
        raise OSError("seccomp_load")


def work(server, rounds=30):
    """Something of everything: writes, a flush, the pages, a second log segment, idle time with its mark."""
    for i in range(rounds):
        status, _, reason = server.write(probe_body(value=i))
        if status != 204:
            raise Problem(f"a write got {status} {reason}: {server.last_words()}")
    done = server.flush()
    for path in ("/health", "/ready", "/metrics", "/api/v1/status"):
        status, _, _ = server.request("GET", path)
        if status != 200:
            raise Problem(f"{path}: {status}")
    time.sleep(0.3)
    return done


SETTINGS = {"wal.segment_size": "64KB", "wal.max_size": "64MB", "wal.reserve": "1MB", "compaction.trigger_size": "1MB", "ingest.max_record_size": "4MB", "compaction.workers": "2"}


def analyzed(r):
    with tempfile.TemporaryDirectory() as d:
        # The binary need not be installed where this runs.
        copy = os.path.join(d, "arc.service")
        with open(copy, "w") as f:
            f.write(open(UNIT).read().replace("/usr/bin/arc ", "/bin/true "))
        p = subprocess.run(["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True)
        r.check(p.returncode == 0 and not p.stderr.strip(), "unit/verify", f"exit {p.returncode}, says {p.stderr.strip() or 'nothing'}")
    p = subprocess.run(["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT], capture_output=True, text=True)
    m = re.search(r"exposure level.*?: ([0-9.]+)", p.stdout)
    open_ones = [l.split("  ")[0].lstrip("✗ ") for l in p.stdout.splitlines() if l.lstrip().startswith("✗")]
    r.check(bool(m) and float(m.group(1)) <= 1.5, "unit/security", f"exposure {m.group(1) if m else p.stdout[-200:]}; left open: {', '.join(open_ones)}")


def confined(r, args, unit, calls):
    d = workdir(args.keep)
    uid, gid = pwd.getpwnam("nobody")[2:4]
    os.chown(d, uid, gid)
    os.chmod(d, 0o755)
    # A place that the other user may execute from.
    binary = d + "/arc"
    shutil.copy2(arc_bin(), binary)
    os.chmod(binary, 0o755)
    os.environ["ARC_BIN"] = binary
    # What this machine lets us have of it.
    nofile = min(int(unit["LimitNOFILE"][0]), resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    server = Server(d + "/wal", d + "/lake", d, SETTINGS, preexec=lambda: confine(calls, uid, gid, nofile)).start().wait_ready()
    done = work(server)
    status = dict(l.split(":", 1) for l in open(f"/proc/{server.pid}/status").read().splitlines() if ":" in l)
    nice = [open(f"/proc/{server.pid}/task/{server.thread('arc-compact')}/stat").read().rsplit(")", 1)[1].split()[16]]
    code = server.stop()
    errors = [l for l in open(server.err) if re.search(r"ERROR|panic|Operation not permitted", l)]
    r.check(
        done["rows"] >= 30 and code == 0 and not errors and nice == ["5"], "unit/confined",
        f"uid {status['Uid'].split()[0]}, CapBnd {status['CapBnd'].strip()}, NoNewPrivs {status['NoNewPrivs'].strip()}, Seccomp {status['Seccomp'].strip()}: "
        f"{done['rows']} rows in {done['files']} files, compactor at nice {nice[0]}, exit {code}, errors {errors[:2]}",
    )
    server.start().wait_ready()
    code = server.stop()
    r.check(code == 0, "unit/confined-again", f"a second start on the same log: exit {code}")


def traced(r, args, calls):
    d = workdir(args.keep)
    server = Server(d + "/wal", d + "/lake", d, SETTINGS, prefix=["strace", "-f", "-qq", "-o", d + "/calls"]).start().wait_ready()
    work(server)
    # strace hands signals on to nobody: the server is its child.
    child = int(subprocess.run(["pgrep", "-P", str(server.pid)], capture_output=True, text=True).stdout.split()[0])
    os.kill(child, signal.SIGTERM)
    code = server.wait_exit(60)
    used = set(re.findall(r"^\d+ +(\w+)\(", open(d + "/calls").read(), re.M))
    r.check(len(used) > 40 and used <= calls and code == 0, "unit/system-calls", f"{len(used)} different ones, not allowed: {sorted(used - calls)}")


def main():
    args = parser(__doc__.splitlines()[0]).parse_args()
    r = Results()
    if not shutil.which("systemd-analyze"):
        r.skip("unit", "systemd-analyze is missing")
        r.end()
    unit = unit_lines()
    case(r, "unit/analyze", analyzed, r)
    calls = allowed(unit)
    if have_strace():
        case(r, "unit/system-calls", traced, r, args, calls)
    else:
        r.skip("unit/system-calls", "strace is missing")
    if os.getuid() == 0:
        case(r, "unit/confined", confined, r, args, unit, calls)
    else:
        r.skip("unit/confined", "needs root")
    r.end()


if __name__ == "__main__":
    main()

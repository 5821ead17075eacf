#!/usr/bin/env python3
"""The Dockerfile without an engine: its instructions are read and carried out, one after the other, as far as that goes.

The context is what .dockerignore lets through. The build stage's command runs there with this machine's toolchain (or ARC_BIN stands
for its result; `--build` insists). The last stage runs in a root of its own (`--root DIR` with a Debian of the same release in it, else
debootstrap makes one), by chroot, as the user that the file names: the server, its HEALTHCHECK, a write with the token that the first
start prints, STOPSIGNAL, and a second container on the same volume.

What this cannot show: the base images themselves, layers and caches, the engine's seccomp and network, other platforms.
"""

import fnmatch
import shlex

from lib import *

DOCKERFILE = os.path.join(REPO, "Dockerfile")
ONE_LIST = {"ENTRYPOINT", "CMD"}


def instructions():
    """[(instruction, rest)], continuation lines joined, comments gone."""
    out, pending = [], ""
    for line in open(DOCKERFILE):
        line = line.rstrip("\n")
        if line.lstrip().startswith("#"):
            continue
        if line.endswith("\\"):
            pending += line[:-1] + " "
            continue
        line = (pending + line).strip()
        pending = ""
        if line:
            word, _, rest = line.partition(" ")
            out.append((word.upper(), rest.strip()))
    if pending:
        raise Problem(f"the last line goes on: {pending}")
    return out


def stages():
    """[{from, name, steps}]"""
    out = []
    for word, rest in instructions():
        if word == "FROM":
            parts = rest.split()
            out.append({"from": parts[0], "name": parts[2] if len(parts) == 3 and parts[1].upper() == "AS" else str(len(out)), "steps": []})
        elif out:
            out[-1]["steps"].append((word, rest))
        elif word != "ARG":
            raise Problem(f"{word} before the first FROM")
    return out


def ignored(path):
    """.dockerignore: the last pattern that matches the path or a directory above it decides."""
    out = False
    for line in open(os.path.join(REPO, ".dockerignore")):
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        keep, pattern = pattern.startswith("!"), pattern.lstrip("!").strip("/")
        parts = path.split("/")
        above = ["/".join(parts[: i + 1]) for i in range(len(parts))]
        if pattern == "**" or any(fnmatch.fnmatch(a, pattern) for a in above):
            out = not keep
    return out


def context():
    """Paths of the build context that git knows: what a clean clone would send."""
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPO, capture_output=True, text=True, check=True).stdout.split("\n")
    return [f for f in files if f and not ignored(f) and os.path.isfile(os.path.join(REPO, f))]


def copy_context(files, target):
    for f in files:
        os.makedirs(os.path.dirname(os.path.join(target, f)) or target, exist_ok=True)
        shutil.copy2(os.path.join(REPO, f), os.path.join(target, f))


def read_rules(r, all_stages):
    last = all_stages[-1]["steps"]
    get = lambda word: [rest for w, rest in last if w == word]
    order = [w for w, _ in last]
    r.check(len(all_stages) == 2 and all_stages[0]["name"] == "build", "dockerfile/stages", " -> ".join(s["from"] for s in all_stages))
    wanted = re.search(r'^rust-version = "([0-9.]+)"', open(os.path.join(REPO, "Cargo.toml")).read(), re.M).group(1)
    r.check(f":{wanted}-" in all_stages[0]["from"], "dockerfile/toolchain", f"{all_stages[0]['from']}, Cargo.toml says {wanted}")
    release = [s["from"].split(":")[1].split("-") for s in all_stages]
    r.check("bookworm" in release[0] and "bookworm" in release[1], "dockerfile/same-libc", f"{release}: what was linked there runs here")
    user = get("USER")
    r.check(len(user) == 1 and re.fullmatch(r"[1-9]\d*:[1-9]\d*", user[0]), "dockerfile/user", f"USER {user}, numeric so that an orchestrator can see that it is not root")
    r.check(order.index("USER") > max(i for i, w in enumerate(order) if w == "RUN"), "dockerfile/no-root-after-user", "nothing is run behind USER")
    for word in ("ENTRYPOINT", "CMD"):
        r.check(isinstance(json.loads(get(word)[0]), list), f"dockerfile/{word.lower()}", f"{get(word)[0]}: signals reach the process itself")
    r.check(get("STOPSIGNAL") == ["SIGTERM"] and get("VOLUME") == ["/var/lib/arc"] and get("EXPOSE") == ["8000"], "dockerfile/contract", "STOPSIGNAL, VOLUME, EXPOSE")
    text = "\n".join(f"{w} {x}" for s in all_stages for w, x in s["steps"])
    r.check(not re.search(r"(TOKEN|SECRET|PASSWORD|KEY)=\S", text.replace("TOKEN_FILE=", "")), "dockerfile/no-secrets", "no credentials in ENV or ARG")


def environment(steps):
    env = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
    for word, rest in steps:
        if word == "ENV":
            env |= dict(part.split("=", 1) for part in shlex.split(rest))
    return env


def make_root(args, d):
    if args.root:
        # It is changed: in a copy.
        subprocess.run(["cp", "-a", args.root, d + "/root"], check=True)
        return d + "/root"
    if not shutil.which("debootstrap"):
        return None
    root = d + "/root"
    p = subprocess.run(["debootstrap", "--variant=minbase", "bookworm", root], capture_output=True, text=True)
    if p.returncode:
        note(p.stdout[-500:] + p.stderr[-500:])
        return None
    return root


def in_root(root, argv, env, user=None, cwd="/"):
    base = ["chroot"] + ([f"--userspec={user}", "--groups="] if user else []) + [root, "/usr/bin/env", "-i"]
    return base + [f"{k}={v}" for k, v in env.items()] + ["/bin/sh", "-c", f'cd {shlex.quote(cwd)} && exec "$@"', "sh", *argv]


def main():
    args = parser(__doc__.splitlines()[0], root="", build=0).parse_args()
    r = Results()
    d = workdir(args.keep)
    all_stages = case(r, "dockerfile/parse", stages)
    if not all_stages:
        r.end()
    case(r, "dockerfile/rules", read_rules, r, all_stages)

    files = context()
    size = sum(os.path.getsize(os.path.join(REPO, f)) for f in files)
    sources = [p for s in all_stages for w, rest in s["steps"] if w == "COPY" and not rest.startswith("--from") for p in rest.split()[:-1]]
    missing = [s for s in sources if s != "." and s not in files]
    secret = [f for f in files if re.search(r"(^|/)(\.git|target|data|.*\.pem|.*\.env|.*tokens\.json)(/|$)", f)]
    r.check(not missing and not secret and size < 8 << 20, "dockerfile/context", f"{len(files)} files, {size >> 10} KiB; missing {missing}, not to be sent {secret}")

    built = d + "/build"
    copy_context(files, built)
    commands = [rest for w, rest in all_stages[0]["steps"] if w == "RUN"]
    if args.build or not os.environ.get("ARC_BIN"):
        env = {**os.environ, "ARC_REVISION": "dockerfile-test", "CARGO_TARGET_DIR": built + "/target"}
        for c in commands:
            p = subprocess.run(["/bin/sh", "-c", c], cwd=built, env=env, capture_output=True, text=True)
            if not r.check(p.returncode == 0, "dockerfile/build", f"{c}: {p.returncode}, {p.stderr.strip().splitlines()[-1:]}"):
                r.end()
    else:
        # Whether the context is enough to build from shows without building.
        for c in commands:
            words = shlex.split(c)
            checked = ["cargo", "metadata", "--locked", "--no-deps", "--format-version", "1"]
            p = subprocess.run(checked, cwd=built, capture_output=True, text=True)
            targets = json.loads(p.stdout)["packages"][0]["targets"] if p.returncode == 0 else []
            absent = [t["src_path"] for t in targets if not os.path.exists(t["src_path"])]
            wanted = {"src/lib.rs", "src/main.rs", "build.rs", "Cargo.lock"}
            r.check(
                p.returncode == 0 and not absent and wanted <= set(files) and words[:2] == ["cargo", "build"], "dockerfile/build-context",
                f"targets {[t['name'] for t in targets]}, absent {absent}; {p.stderr.strip()[:200]}",
            )
        r.skip("dockerfile/build", f"ARC_BIN is set: `{commands[0]}` was not run here (--build 1 does)")
        os.makedirs(built + "/target/release")
        shutil.copy2(arc_bin(), built + "/target/release/arc")

    if os.getuid() != 0:
        r.skip("dockerfile/container", "chroot needs root")
        r.end()
    root = make_root(args, d)
    if not root:
        r.skip("dockerfile/container", "no Debian to run it in: neither --root nor a debootstrap that works")
        r.end()
    case(r, "dockerfile/container", container, r, all_stages, root, built, args)
    r.end()


def container(r, all_stages, root, built, args):
    steps = all_stages[-1]["steps"]
    env = environment(steps)
    cwd, user = "/", None
    for word, rest in steps:
        if word == "RUN":
            p = subprocess.run(in_root(root, ["/bin/sh", "-c", rest], env), capture_output=True, text=True)
            if not r.check(p.returncode == 0, "dockerfile/run", f"{rest[:60]}...: {p.returncode} {p.stderr.strip()[-200:] if p.returncode else ''}"):
                return
        elif word == "COPY":
            parts = rest.split()
            sources, target = parts[:-1], root + parts[-1]
            if sources[0].startswith("--from="):
                base, sources = built, [s.replace("/src/", "", 1) for s in sources[1:]]
            else:
                base = REPO
            if parts[-1].endswith("/"):
                os.makedirs(target, exist_ok=True)
            for s in sources:
                shutil.copy2(os.path.join(base, s), target)
        elif word == "USER":
            user = rest
        elif word == "WORKDIR":
            cwd = rest
    get = lambda word: next(rest for w, rest in steps if w == word)
    argv = json.loads(get("ENTRYPOINT")) + json.loads(get("CMD"))
    health = json.loads(get("HEALTHCHECK").split(" CMD ", 1)[1])
    # The network of this machine is shared here, so the port is another one.
    port = free_port()
    env |= {"ARC_SERVER_PORT": str(port), "ARC_WAL_SEGMENT_SIZE": "1MB", "ARC_WAL_RESERVE": "4MB"}
    run = lambda a: subprocess.run(in_root(root, a, env, user, cwd), capture_output=True, text=True, timeout=60)

    p = run(["/usr/bin/arc", "version", "--json"])
    r.check(p.returncode == 0, "dockerfile/version", f"{p.stdout.strip() or p.stderr.strip()[:200]}: the binary finds its libraries")
    who = run(["/usr/bin/id"]).stdout.strip()
    r.check("uid=10001" in who and "root" not in who, "dockerfile/non-root", who)
    p = run(health)
    r.check(p.returncode == 1, "dockerfile/health-before", f"exit {p.returncode}: {p.stderr.strip()[:100]}")

    def start(n):
        out = open(f"{built}/out-{n}", "wb")
        process = subprocess.Popen(in_root(root, argv, env, user, cwd), stdin=subprocess.DEVNULL, stdout=out, stderr=open(f"{built}/err-{n}", "wb"))
        entry = defer(Server._kill, process)

        def healthy():
            if process.poll() is not None:
                raise Problem(f"ended with {process.returncode}: {open(f'{built}/err-{n}').read()[-400:]}")
            return run(health).returncode == 0 and run(health + ["--ready"]).returncode == 0

        wait_for("HEALTHCHECK", 30, healthy, every=0.2)
        return process, entry

    def write(headers, value):
        c = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        c.request("POST", "/api/v1/write/msgpack", body=probe_body(value=value), headers=headers)
        a = c.getresponse()
        a.read()
        return a.status, a.getheader("x-arc-sequence")

    process, entry = start(1)
    r.ok("dockerfile/healthcheck", f"{' '.join(health)}: 0 once it serves, also with --ready; listening on {env['ARC_SERVER_HOST']}")
    printed = lambda n: re.search(r"ADMIN TOKEN.*?\s(\S{40,})", open(f"{built}/out-{n}").read(), re.S)
    token = printed(1)
    without = write({}, 1)
    r.check(without[0] == 401 and token, "dockerfile/auth", f"a write without a token: {without[0]}; the admin token was {'printed' if token else 'NOT printed'} by the first start")
    headers = {"Authorization": f"Bearer {token.group(1)}"} if token else {}
    first = write(headers, 1)
    process.send_signal(getattr(signal, get("STOPSIGNAL")))
    code = process.wait(40)
    undo(entry)
    r.check(first[0] == 204 and code == 0, "dockerfile/stop", f"a write with it: {first}; {get('STOPSIGNAL')}: exit {code}")
    owners = {os.stat(root + "/var/lib/arc/" + n).st_uid for n in os.listdir(root + "/var/lib/arc")}
    r.check(owners == {10001}, "dockerfile/volume", f"{sorted(os.listdir(root + '/var/lib/arc'))} belong to {owners}")
    process, entry = start(2)
    second = write(headers, 2)
    again = printed(2)
    process.send_signal(signal.SIGTERM)
    code = process.wait(40)
    undo(entry)
    r.check(
        second[0] == 204 and second[1] == str(int(first[1] or 0) + 1) and code == 0 and not again, "dockerfile/again",
        f"a second container on the volume: {second}, exit {code}, the token printed again: {bool(again)}",
    )
    r.skip("dockerfile/engine", "not tried: base images from a registry, layers and build cache, the engine's seccomp and network, arm64")


if __name__ == "__main__":
    main()

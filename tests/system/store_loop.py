#!/usr/bin/env python3
"""Ingest into real object stores that fail: kills at random moments and in the middle of uploads, outages, lost replies, errors
under a 200, credentials that are refused for a while, two logs on one bucket, a copied log, a dishonest store.

After each case the whole bucket is downloaded: every acknowledged row once (`arc bench verify` and DuckDB), every .parquet whole, no
upload left unfinished, memory bounded, the backlog drained.
"""

import collections

import fault_proxy
from fault_proxy import FaultProxy, Rule
from lib import *
from stores import SERVERS, Unavailable, bring_up

SETTINGS = {
    "wal.segment_size": "4MB", "wal.max_size": "4GB", "wal.reserve": "64MB", "ingest.max_record_size": "16MB",
    "compaction.trigger_size": "8MB", "compaction.max_delay": "300ms", "storage.timeout": "5s", "storage.part_size": "5MB",
    "wal.poison_exit_after": "1s",
}
# A round whose outputs take one put each, and one whose outputs take several parts.
SMALL = {"compaction.trigger_size": "8MB", "compaction.max_delay": "300ms", "compaction.compression": "zstd"}
LARGE = {"compaction.trigger_size": "14MB", "compaction.max_delay": "3s", "compaction.compression": "none"}
WRITES = {"put", "part", "begin", "complete"}


class Memory(threading.Thread):
    """The largest RssAnon of whatever process the server has at a time."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.on, self.most, self.samples = server, True, 0, 0
        self.start()

    def run(self):
        while self.on:
            with contextlib.suppress(OSError, AttributeError, ValueError), open(f"/proc/{self.server.pid}/status") as f:
                for line in f:
                    if line.startswith("RssAnon:"):
                        self.most = max(self.most, int(line.split()[1]) >> 10)
                        self.samples += 1
            time.sleep(0.1)

    def end(self):
        self.on = False
        self.join()
        return self.most


class Place:
    """A store with a bucket of this case, a proxy before it, and a directory."""

    count = 0

    def __init__(self, args, store, seed):
        Place.count += 1
        self.store, self.bucket = store, f"bucket-{Place.count}"
        self.dir = workdir(args.keep)
        store.create_bucket(self.bucket)
        self.proxy = FaultProxy(store.port, store.kind, seed)
        self.ledger = self.dir + "/ledger"

    def server(self, name="", port=0, **settings):
        wal, logs = f"{self.dir}/wal{name}", f"{self.dir}/logs{name}"
        os.makedirs(logs)
        all_settings = {**SETTINGS, **self.store.settings(self.bucket, self.proxy.port), **{k.replace("__", "."): v for k, v in settings.items()}}
        return Server(wal, self.dir + "/no-lake", logs, all_settings, port)

    def download(self):
        lake = tempfile.mkdtemp(prefix="lake-", dir=self.dir)
        return lake, self.download_to(lake)

    def download_to(self, lake):
        return self.store.download(self.bucket, lake)

    def left_over(self, timeout=30):
        """Uploads that nobody ended. Those that a crash left are aborted some time after the start."""
        if self.store.kind == "azure":
            return []
        end = time.monotonic() + timeout
        while (left := self.store.multiparts(self.bucket)) and time.monotonic() < end:
            time.sleep(0.5)
        return left


def whole_objects(lake, database="bench"):
    """(how many .parquet files, those that cannot be read whole, names that are neither data nor ours)."""
    duckdb = duckdb_module()
    good, bad, odd = 0, [], []
    db = duckdb.connect(config={"threads": 2}) if duckdb else None
    for folder, _, names in os.walk(lake):
        for n in names:
            path = os.path.join(folder, n)
            rel = os.path.relpath(path, lake)
            if rel.startswith("_arc/"):
                continue
            if not n.endswith(".parquet"):
                odd.append(rel)
                continue
            try:
                with open(path, "rb") as f:
                    head = f.read(4)
                    f.seek(-4, os.SEEK_END)
                    if head != b"PAR1" or f.read(4) != b"PAR1":
                        raise ValueError("no magic")
                if db:
                    # Every value of every column, so that every page is decoded.
                    db.execute("select count(columns(*)) from read_parquet(?)", [path]).fetchall()
                good += 1
            except Exception as e:  # noqa: BLE001
                bad.append(f"{rel}: {str(e)[:200]}")
    return good, bad, odd


def backlog(server):
    return server.get_json("/api/v1/status")[1]["backlog"]["bytes"]


def finish(r, name, place, servers, memory, args, extra="", logs=(), kills=0):  # `kills`: what may have left a probe behind
    """Everything is flushed by servers that run and see a store without faults; then the bucket is judged."""
    place.proxy.set()
    place.proxy.refuse(False)
    place.proxy.settle()
    drained = time.monotonic()
    left_bytes, quarantined, codes = 0, 0, []
    for server in servers:
        server.wait_ready()
        server.flush(300)
        drained_after = time.monotonic() - drained
        # What is committed is released soon after.
        with contextlib.suppress(Problem):
            wait_for("the release", 20, lambda s=server: backlog(s) == 0, every=0.2)
        status = server.get_json("/api/v1/status")[1]
        left_bytes += status["backlog"]["bytes"]
        quarantined += status["quarantine"]["records"]
    # Uploads whose beginning nobody heard of are found by a start.
    left = place.left_over(10)
    swept = len(left)
    if left:
        for server in servers:
            codes.append(server.stop())
            server.start().wait_ready()
        left = place.left_over()
    most = max(m.end() for m in memory)
    for server in servers:
        codes.append(server.stop())
    lake, objects = place.download()
    good, bad, odd = whole_objects(lake)
    # Each committed file with the length and digest that the manifest has, and no file that no commit names.
    told, clean = [], True
    for wal in [s.wal for s in servers] + list(logs):
        p = subprocess.run([arc_bin(), "wal", "verify", "--json", "--lake", lake, wal], capture_output=True, env=clean_env(), check=False)
        found = json.loads(p.stdout) if p.stdout else {}
        findings = found.get("findings")
        clean = clean and p.returncode == 0 and not findings
        told.append(f"{p.returncode} {found.get('verdict')}{str(findings or '')[:400]}{p.stderr.decode(errors='replace')[-200:] if p.returncode else ''}")
    # A kill between the two calls of a probe, or a fault of the second, leaves a few bytes; one in the race leaves up to 4 names.
    objects_now = [k for k, _ in place.store.objects(place.bucket)]
    probes = [k for k in objects_now if "/probe-" in k]
    raced = [k for k in objects_now if "/race-" in k]
    extra = f"{extra}; flushed in {drained_after:.1f} s, backlog {left_bytes} bytes, quarantine {quarantined}, exit {codes}; RssAnon at most {most} MiB"
    judge(r, name, place.ledger, lake, extra)
    r.check(
        clean and not bad and not odd and not left and left_bytes == 0 and quarantined == 0 and set(codes) == {0} and most < args.most_mib and len(probes) <= kills and len(raced) <= 4 * (kills + 1), name + "/bucket",
        f"{objects} objects, {good} whole .parquet, {len(bad)} partial {bad[:3]}, {len(odd)} others {odd[:3]}, {len(left)} unfinished uploads {left[:3]} ({swept} before another start), "
        f"{len(probes)} probes and {len(raced)} race objects left; arc wal verify --lake: {'; '.join(told)}; RssAnon at most {most} of {args.most_mib} MiB",
    )
    shutil.rmtree(lake, ignore_errors=True)
    if not args.keep:
        place.store.drop(place.bucket)


def restart(server, rng, recovery_kills, **settings):
    """Starts again; now and then it is killed again while it recovers or begins to ship."""
    while True:
        server.start(**settings)
        if rng.random() > 0.2:
            return server.wait_ready()
        time.sleep(rng.random() * 0.3)
        recovery_kills.append(1)
        server.kill()


def kill_rounds(r, args, store, group=25):
    """Groups of rounds, each with a log and a bucket of its own, so that each is counted and nothing grows without end."""
    for n in range(0, args.rounds, group):
        name = f"store_loop/kill/{store.name}/{n}"
        case(r, name, kill_group, r, args, store, name, min(group, args.rounds - n))


def kill_group(r, args, store, name, rounds):
    """SIGKILL at a random moment, or at the moment when a certain request was sent or answered."""
    rng = random.Random(f"{args.seed}-{name}")
    place = Place(args, store, rng.random())
    server = place.server()
    memory = Memory(server)
    recovery_kills, where = [], collections.Counter()
    for _ in range(rounds):
        large = rng.random() < 0.4
        place.proxy.set(Rule("delay", ops=WRITES, p=0.3, seconds=rng.choice([0.02, 0.1, 0.4])))
        restart(server, rng, recovery_kills, **{k.replace(".", "__"): v for k, v in (LARGE if large else SMALL).items()})
        known = os.path.getsize(place.ledger) if os.path.exists(place.ledger) else 0
        b = Bench(
            server.url, place.ledger, duration="20s", connections=4, rows=500 if large else rng.choice([1, 10, 200]), tables=1 if large else 3,
            format="columnar" if large else rng.choice(["columnar", "row", "batch"]), timeout="5s",
        )
        wait_for("the load", 60, lambda known=known: os.path.exists(place.ledger) and os.path.getsize(place.ledger) > known)
        kind = rng.choice(["time", "put", "part", "complete", "begin"] if large else ["time", "time", "put"])
        hit = threading.Event()
        if kind != "time":
            action = rng.choice(["cut_before", "cut_after", "half"] if kind in ("put", "part") else ["cut_before", "cut_after"])
            # Mostly at data, now and then at the probe or a plan.
            key = ".parquet" if rng.random() < 0.75 else ""
            place.proxy.set(
                Rule("pass", ops={kind}, key=key, times=rng.randrange(3)),
                Rule(action, ops={kind}, key=key, times=1, hook=lambda: (server.process.kill(), hit.set())),
                Rule("delay", ops=WRITES, p=0.3, seconds=0.05),
            )
            hit.wait(8)
        else:
            time.sleep(0.1 + rng.random() * 1.2)
        where[f"{action} {kind}" if hit.is_set() else "random"] += 1
        server.kill()
        b.interrupt()
        b.result(60)
    server.start()
    ops = {op: place.proxy.data[op] for op in ("put", "begin", "part", "complete", "abort")}
    finish(
        r, name, place, [server], [memory], args,
        f"{rounds} kills under load ({', '.join(f'{v} {k}' for k, v in sorted(where.items()))}), {len(recovery_kills)} soon after a start; requests for data {ops}; seed {args.seed}",
        kills=rounds + len(recovery_kills),
    )
    r.check(rounds < 10 or ops["complete"] and ops["put"], name + "/mixed", f"single puts and multiparts: {ops}")


def mixes(seed):
    """Rules drawn from a seed: several faults at a time, each with its own odds."""
    rng = random.Random(seed)
    actions = ["slow_down", "server_error", "hang", "hang_after", "cut_before", "cut_after", "half", "error200", "error200_after", "late", "twice", "skew", "expired", "delay", "half_answer"]
    rules = []
    for a in rng.sample(actions, 6):
        ops = None if rng.random() < 0.3 else set(rng.sample(sorted(WRITES | {"get", "head", "abort", "uploads", "list"}), 4)) | {rng.choice(["put", "part", "complete"])}
        rules.append(Rule(a, ops=ops, p=rng.choice([0.05, 0.15, 0.3]), seconds=rng.choice([0.1, 0.5, 2, 8])))
    return rules


ALL = set(fault_proxy.OPS)
FAULTS = {
    "slow_down": [Rule("slow_down")], "server_error": [Rule("server_error")], "hang": [Rule("hang")], "hang_after": [Rule("hang_after", ops=WRITES)],
    "cut_before": [Rule("cut_before")], "cut_after": [Rule("cut_after", ops=WRITES)], "half": [Rule("half", ops={"put", "part"})],
    "error200": [Rule("error200", ops=WRITES)], "error200_after": [Rule("error200_after", ops=WRITES)],
    "skew": [Rule("skew")], "expired": [Rule("expired")], "expired403": [Rule("expired403")], "denied": [Rule("denied")],
    "late": [Rule("late", ops={"put", "complete"}, seconds=3, p=0.7)], "twice": [Rule("twice", ops={"put", "complete", "part"})],
    "half_answer": [Rule("half_answer", p=0.7)], # Of data only: half a plan object is taken for another's, and the server stops.
    "short": [Rule("short", ops={"put", "part"}, p=0.5, key=".parquet")],
}


def outage(r, args, store, fault):
    """Load goes on while the store has a fault for a spell; then it has none."""
    name = f"store_loop/outage/{store.name}/{fault}"
    if fault == "short" and store.checks_signatures:
        r.skip(name, "this store compares the digest of what it gets")
        return
    if fault == "user_disabled" and not hasattr(store, "disable_user"):
        r.skip(name, "radosgw only")
        return
    rng = random.Random(f"{args.seed}-{name}")
    place = Place(args, store, rng.random())
    large = rng.random() < 0.5 or fault in ("part", "half")
    server = place.server(**{k.replace(".", "__"): v for k, v in (LARGE if large else SMALL).items()})
    memory = Memory(server)
    server.start().wait_ready()
    known = 0
    b = Bench(server.url, place.ledger, duration=f"{args.spell + 4}s", connections=2, rows=200 if large else 50, tables=1 if large else 3, timeout="10s")
    wait_for("the load", 30, lambda: os.path.exists(place.ledger) and os.path.getsize(place.ledger) > known)
    time.sleep(1)
    described = fault
    if fault == "stopped":
        if store.persistent:
            store.stop_gateway()
            described = f"{store.name} stopped"
        else:
            place.proxy.refuse(True)
            described = "connections refused"
    elif fault == "frozen":
        store.freeze()
        described = f"{store.name} under SIGSTOP"
    elif fault == "user_disabled":
        store.disable_user()
    elif fault.startswith("mix"):
        rules = mixes(rng.random())
        described = " ".join(map(repr, rules))
        place.proxy.set(*rules)
    else:
        place.proxy.set(*[Rule(x.action, x.ops, x.p, x.key, x.seconds) for x in FAULTS[fault]])
    start = server.get_json("/api/v1/status")[1]["watermarks"]
    stalls, slowest, last, shipped_during = 0, 0.0, start["durable"], 0
    until = time.monotonic() + args.spell
    try:
        while time.monotonic() < until:
            time.sleep(1)
            t = time.monotonic()
            status = server.get_json("/api/v1/status")[1]
            slowest = max(slowest, time.monotonic() - t)
            # 204s go on: what is durable grows in every second.
            stalls += status["watermarks"]["durable"] <= last
            last = status["watermarks"]["durable"]
        shipped_during = status["watermarks"]["shipped"] - start["shipped"]
        peak = status["backlog"]["bytes"]
        ready = server.ready()
        error = status.get("last_error")
    finally:
        if fault == "stopped" and store.persistent:
            store.start_gateway()
        elif fault == "frozen":
            store.thaw()
        elif fault == "user_disabled":
            store.enable_user()
        place.proxy.set()
        place.proxy.refuse(False)
    healed = time.monotonic()
    out = b.result(120)
    # Without a flush: the server comes back to work by itself.
    durable = server.get_json("/api/v1/status")[1]["watermarks"]["durable"]
    moved = 0
    if fault == "short":
        # The one fault that a person has to end: the store keeps half of an object under its final name and called that success.
        time.sleep(3)
        moved = move_halves(place)
    wait_for("the backlog to drain by itself", 300, lambda: server.get_json("/api/v1/status")[1]["watermarks"]["shipped"] >= durable, every=0.2)
    took = time.monotonic() - healed
    r.check(
        stalls == 0 and out["refused"] == 0 and out["unanswered"] == 0, name + "/ingest",
        f"{args.spell} s of: {described}; {out['acked']} requests acked, {out['refused']} refused, {out['unanswered']} unanswered, seconds without a new durable record {stalls}, slowest status {slowest:.2f} s; "
        f"p99 {out['latency_us']['p99'] / 1000:.0f} ms; faults: {place.proxy.said()}; /ready {ready[0]}; last_error {str(error)[:160]}",
    )
    finish(
        r, name, place, [server], [memory], args,
        f"{'large' if large else 'small'} outputs; backlog {peak >> 20} MiB at the end of the spell ({shipped_during} sequences shipped in it), drained {took:.1f} s after{f', {moved} halves moved away by hand' if moved else ''}; seed {args.seed}",
        kills=sum(place.proxy.faults().values()),
    )


def move_halves(place):
    """What last_error asks an operator for: objects that are not whole are moved away. Returns how many."""
    lake = tempfile.mkdtemp(prefix="halves-", dir=place.dir)
    place.download_to(lake)
    _, bad, _ = whole_objects(lake)
    for line in bad:
        place.store.remove(place.bucket, line.split(": ")[0])
    shutil.rmtree(lake)
    return len(bad)


def down_at_start(r, args, store):
    """A store that cannot be reached when the server starts: it takes writes all the same, ships when the store is there."""
    name = f"store_loop/down_at_start/{store.name}"
    place = Place(args, store, args.seed)
    place.proxy.refuse(True)
    server = place.server()
    memory = Memory(server)
    server.start().wait_ready(30)
    out = bench(server.url, place.ledger, duration="3s", connections=2, rows=50)
    # Killed and started again before it has ever seen its store.
    server.kill()
    server.start().wait_ready(30)
    again = bench(server.url, place.ledger, duration="2s", connections=2, rows=50)
    error = server.get_json("/api/v1/status")[1]["last_error"]
    place.proxy.refuse(False)
    r.check(
        out["acked"] > 0 and out["refused"] == 0 and again["acked"] > 0 and again["refused"] == 0, name + "/ingest",
        f"{out['acked']} and {again['acked']} requests acked without a store; last_error {str(error)[:200]}",
    )
    finish(r, name, place, [server], [memory], args, f"seed {args.seed}")


def log_uuid(wal):
    p = subprocess.run([arc_bin(), "wal", "verify", "--json", wal], capture_output=True, env=clean_env(), check=False)
    return json.loads(p.stdout)["log_uuid"]


def forked(r, args, store, racing):
    """Two servers on copies of one log directory: one ships, the other stops with exit 3, nothing is doubled."""
    name = f"store_loop/forked/{store.name}/{'race' if racing else 'one_first'}"
    place = Place(args, store, args.seed)
    a = place.server("-a")
    memory = [Memory(a)]
    a.start().wait_ready()
    bench(a.url, place.ledger, duration="1s", connections=4, rows=200)
    a.flush()
    a.kill()
    a.start(compaction__paused="true").wait_ready()
    bench(a.url, place.ledger, duration="1s", connections=4, rows=200)
    a.kill()
    shutil.copytree(f"{place.dir}/wal-a", f"{place.dir}/wal-b")
    ledger_b = place.ledger + "-b"
    shutil.copy(place.ledger, ledger_b)
    b = place.server("-b")
    memory.append(Memory(b))
    a.start().wait_ready()
    if not racing:
        bench(a.url, place.ledger, duration="1s", connections=4, rows=200)
        a.flush()
        b.start()
        with contextlib.suppress(Problem):
            bench(b.url, ledger_b, duration="1s", connections=4, rows=100)
    else:
        b.start()
        loads = [Bench(s.url, ledger, duration="2s", connections=4, rows=100, timeout="5s") for s, ledger in ((a, place.ledger), (b, ledger_b))]
        [x.result(60) for x in loads]
    # Whoever has lost a plan stops by itself. The last plans are asked for.
    def one_ended():
        return not a.alive() or not b.alive()

    end = time.monotonic() + 60
    while not one_ended() and time.monotonic() < end:
        for s in (a, b):
            with contextlib.suppress(OSError, Problem, http.client.HTTPException):
                s.request("POST", "/api/v1/flush?timeout=1s", timeout=5)
        time.sleep(0.2)
    loser, winner, ledger = (b, a, place.ledger) if a.alive() else (a, b, ledger_b)
    if not one_ended():
        r.fail(name, f"both copies go on; {a.last_words()} || {b.last_words()}")
        return
    code = loser.wait_exit(30)
    said = loser.last_words(4)
    r.check(code == 3 and winner.alive() and (racing or loser is b), name + "/stops", f"{'b' if loser is b else 'a'} ended with {code}: {said[-500:]}")
    place.ledger = ledger
    finish(r, name, place, [winner], memory, args, f"seed {args.seed}")


def drain(place, server, log, kill_after=None):
    """`arc drain DIR`: (exit code or None if it was killed, its JSON, its last words)."""
    args = [arc_bin(), "drain", server.wal, "--json"]
    for k, v in server.settings.items():
        if k.split(".")[0] in ("storage", "compaction"):
            args += ["--set", f"{k}={v}"]
    with open(log, "wb") as err:
        p = subprocess.Popen(args, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=err, env=clean_env(), cwd=place.dir)
        entry = defer(Server._kill, p)
        try:
            out, _ = p.communicate(timeout=kill_after if kill_after is not None else 300)
        except subprocess.TimeoutExpired:
            undo(entry)
            if kill_after is None:
                raise Problem("arc drain did not end within 300 s") from None
            return None, None, ""
        undo(entry)
    with open(log, errors="replace") as f:
        words = " | ".join(f.read().strip().splitlines()[-3:])
    found = None
    with contextlib.suppress(ValueError, IndexError):
        found = json.loads(out.decode().strip().splitlines()[-1])
    return p.returncode, found, words


def drained(r, args, store, n):
    """Two ingesters on one bucket. One is killed for good, in the middle of its work; its directory is drained elsewhere."""
    name = f"store_loop/drain/{store.name}/{n}"
    rng = random.Random(f"{args.seed}-{name}")
    place = Place(args, store, rng.random())
    shape = {k.replace(".", "__"): v for k, v in rng.choice([SMALL, LARGE]).items()}
    a, b = place.server("-a", **shape), place.server("-b", **shape)
    memory = [Memory(a), Memory(b)]
    a.start().wait_ready()
    b.start().wait_ready()
    load = {"connections": 4, "rows": rng.choice([10, 200, 1000])}
    # One ledger: the two take turns at the load and ship side by side.
    for s in (a, b, a, b):
        bench(s.url, place.ledger, duration="700ms", **load)
    how = rng.choice(["paused", "upload", "outage", "random"])
    if how == "paused":
        a.kill()
        a.start(compaction__paused="true").wait_ready()
    elif how == "outage":
        place.proxy.set(Rule("server_error", p=0.9))
    elif how == "upload":
        place.proxy.set(Rule("pass", ops=WRITES, times=rng.randrange(12)), Rule(rng.choice(["cut_after", "cut_before"]), ops=WRITES, times=1, hook=lambda: a.process.kill()))
    known = os.path.getsize(place.ledger)
    x = Bench(a.url, place.ledger, duration="20s", timeout="5s", **load)
    wait_for("the load", 60, lambda: os.path.getsize(place.ledger) > known)
    time.sleep(0.3 + rng.random() * 1.5)
    a.kill()
    x.interrupt()
    x.result(60)
    place.proxy.set()
    # The other goes on while the dead one is drained.
    y = Bench(b.url, place.ledger, duration="4s", **load)
    kills = 0
    for i in range(rng.choice([0, 3, 6])):
        code, _, words = drain(place, a, f"{place.dir}/drain-{i}.err", kill_after=0.05 + rng.random() * 0.8)
        kills += code is None
        if code not in (None, 0):
            raise Problem(f"arc drain ended with {code}: {words}")
    code, found, words = drain(place, a, f"{place.dir}/drain.err")
    y.result(60)
    r.check(code == 0 and found is not None, name + "/drain", f"killed: {how}; drain killed {kills} times, then exit {code}: {found} {words[-300:] if code else ''}")
    again, found_again, words = drain(place, a, f"{place.dir}/drain-again.err")
    r.check(again == 0 and found_again and not found_again.get("files"), name + "/drain_again", f"exit {again}: {found_again} {words[-300:] if again else ''}")
    # The dead one comes back after all: nothing to ship.
    before = len(store.objects(place.bucket))
    a.start().wait_ready()
    a.flush(60)
    code = a.stop()
    after = len([k for k, _ in store.objects(place.bucket)])
    r.check(code == 0, name + "/returns", f"the drained node started again: exit {code}, {before} objects before, {after} after (the other node goes on)")
    finish(r, name, place, [b], memory, args, f"seed {args.seed}", logs=[a.wal])


def dishonest(r, args, store):
    """A store that overwrites under a create-only put is refused, or said clearly, and nothing is shipped to it."""
    name = f"store_loop/dishonest/{store.name}"
    if store.checks_signatures:
        r.skip(name, "the condition is part of what this store's clients sign")
        return
    place = Place(args, store, args.seed)
    place.proxy.set(Rule("strip", ops={"put", "complete"}))
    server = place.server(storage__create_only="probe")
    code, said = None, ""
    try:
        server.start()
        # The check may come before the first plan only.
        with contextlib.suppress(Problem):
            bench(server.url, place.ledger, duration="1s", connections=2, rows=50)
        end = time.monotonic() + 10
        while server.alive() and time.monotonic() < end:
            with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
                said = server.get_json("/api/v1/status")[1]["last_error"] or ""
            time.sleep(0.2)
    except Problem:
        pass
    code = server.process.poll()
    words = server.last_words(6)
    server.kill()
    data = [k for k, _ in store.objects(place.bucket) if k.endswith(".parquet")]
    text = f"{said} {words}"
    named = "create-only" in text or "create only" in text or "overw" in text or "If-None-Match" in text
    r.check(named and not data, name, f"exit {code}; {len(data)} data objects; last_error {str(said)[:300]}; log: {words[-400:]}")


CASES = {
    "kill": kill_rounds,
    "down_at_start": down_at_start,
    **{f"outage/{f}": (lambda r, a, s, f=f: outage(r, a, s, f)) for f in ("stopped", "frozen", *FAULTS, "user_disabled")},
    "mix": lambda r, a, s: [case(r, f"store_loop/outage/{s.name}/mix{i}", outage, r, a, s, f"mix{i}") for i in range(a.mixes)],
    "forked/one_first": lambda r, a, s: forked(r, a, s, False),
    "forked/race": lambda r, a, s: forked(r, a, s, True),
    "drain": lambda r, a, s: [case(r, f"store_loop/drain/{s.name}/{i}", drained, r, a, s, i) for i in range(a.drains)],
    "dishonest": dishonest,
}


def main():
    args = parser(
        __doc__, rounds=20, spell=20, mixes=3, drains=4, most_mib=900, stores=",".join(SERVERS), only="", skip="",
    ).parse_args()
    r = Results()
    for kind in args.stores.split(","):
        d = workdir(args.keep)
        try:
            store = bring_up(kind, d)
        except Unavailable as e:
            r.skip(f"store_loop/{kind}", str(e))
            continue
        entry = defer(store.stop)
        for name, f in CASES.items():
            wanted = any(name.startswith(o) for o in args.only.split(",")) if args.only else True
            if wanted and not (args.skip and any(name.startswith(o) for o in args.skip.split(","))):
                case(r, f"store_loop/{name}/{kind}", f, r, args, store)
        undo(entry)
    r.end()


if __name__ == "__main__":
    main()

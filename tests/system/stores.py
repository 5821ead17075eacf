#!/usr/bin/env python3
"""Object stores as real servers on loopback ports: Ceph radosgw, moto_server, azurite.

Nothing is installed: packages are unpacked into ARC_SYSTEM_CACHE (default ~/.cache/arc-system) by the ordinary clients of their
registries, once. What cannot be had is `Unavailable` with the reason, and the test that wanted it prints SKIP.

`stores.py fetch` fills the cache; `stores.py run NAME` starts one and waits.
"""

import urllib.parse
import uuid

from lib import *

CACHE = os.environ.get("ARC_SYSTEM_CACHE") or os.path.expanduser("~/.cache/arc-system")
AZURITE = "azurite@3.35.0"
PYTHON_PACKAGES = ["moto[server,s3]==5.2.5", "boto3", "azure-storage-blob", "duckdb==1.5.5"]
CEPH_PACKAGES = ["radosgw", "ceph-mon", "ceph-osd", "ceph-base", "ceph-common"]
# The account and key that azurite documents for everybody.
AZURE_ACCOUNT = "devstoreaccount1"
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


class Unavailable(Exception):
    """A server that cannot be had here, and why."""


def _run(what, args, timeout=600, **kw):
    try:
        p = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False, **kw)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{what}: {e}") from None
    if p.returncode != 0:
        raise Unavailable(f"{what}: exit {p.returncode}: {(p.stderr or p.stdout).strip()[-300:]}")
    return p.stdout


@contextlib.contextmanager
def _filling(name, contents):
    """The folder of a cached part and whether it has to be made; one that was made by halves or of other contents is made again."""
    os.makedirs(CACHE, exist_ok=True)
    folder = os.path.join(CACHE, name)
    with open(folder + ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = os.path.join(folder, ".complete")
        fresh = True
        with contextlib.suppress(OSError), open(done) as f:
            fresh = f.read() != contents
        if fresh:
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
        yield folder, fresh
        if fresh:
            with open(done, "w") as f:
                f.write(contents)


def python_environment():
    """A Python environment with moto, the stores' own clients and DuckDB; its packages become importable here as well."""
    with _filling("stores-python", " ".join(PYTHON_PACKAGES)) as (folder, fresh):
        if fresh:
            note("fetching moto, boto3 and azure-storage-blob")
            _run("python -m venv", [sys.executable, "-m", "venv", folder])
            _run("pip install", [os.path.join(folder, "bin", "pip"), "install", "-q", *PYTHON_PACKAGES])
    for site in glob.glob(os.path.join(folder, "lib", "python3*", "site-packages")):
        if site not in sys.path:
            # Behind what the interpreter has: duckdb and pyarrow stay those of the caller.
            sys.path.append(site)
    return folder


def azurite_folder():
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise Unavailable("no node and npm")
    with _filling("azurite", AZURITE) as (folder, fresh):
        if fresh:
            note(f"fetching {AZURITE}")
            _run("npm install", ["npm", "install", "--no-audit", "--no-fund", "--silent", AZURITE], cwd=folder)
    return folder


def ceph_folder():
    """Root of the unpacked packages of Ceph. What the machine has already of their dependencies is taken from it."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"no {tool}: Ceph comes from Debian's packages")
    with _filling("ceph", " ".join(CEPH_PACKAGES)) as (folder, fresh):
        if fresh:
            note("fetching Ceph from Debian")
            if os.geteuid() == 0:
                _run("apt-get update", ["apt-get", "update"])
            plan = _run("apt-get --print-uris", ["apt-get", "install", "-y", "--print-uris", "--no-install-recommends", *CEPH_PACKAGES])
            names = [line.split()[1] for line in plan.splitlines() if line.startswith("'")]
            wanted = ["=".join(urllib.parse.unquote(n).split("_")[:2]) for n in names]
            if not wanted:
                raise Unavailable("Ceph is installed on this machine; remove it or unpack its packages by hand")
            debs = os.path.join(folder, "debs")
            os.makedirs(debs)
            _run("apt-get download", ["apt-get", "download", *wanted], cwd=debs)
            root = os.path.join(folder, "root")
            for deb in glob.glob(os.path.join(debs, "*.deb")):
                _run("dpkg-deb -x", ["dpkg-deb", "-x", deb, root])
            shutil.rmtree(debs)
    return os.path.join(folder, "root")


class Child:
    """A server process of a store, with its log."""

    def __init__(self, args, log, env=None, cwd=None):
        self.args, self.log, self.env, self.cwd = args, log, env, cwd
        self.process = self._entry = None

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.args, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, cwd=self.cwd, start_new_session=True
            )
        self._entry = defer(self._end, self.process)
        return self

    @staticmethod
    def _end(process):
        """A clean stop, so that a server with its state on a disk writes it; then a kill."""
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def stop(self):
        undo(self._entry)

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        undo(self._entry)

    def freeze(self):
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self):
        self.process.send_signal(signal.SIGCONT)

    def last_words(self):
        with open(self.log, errors="replace") as f:
            return " | ".join(f.read().strip().splitlines()[-4:])[-600:]

    def wait_port(self, port, timeout):
        def look():
            if self.process.poll() is not None:
                raise Problem(f"{os.path.basename(self.args[0])} ended with {self.process.returncode}: {self.last_words()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return True
            return False

        try:
            wait_for(f"port {port} of {os.path.basename(self.args[0])}", timeout, look, every=0.1)
        except Problem as e:
            raise Problem(f"{e}: {self.last_words()}") from None
        return self


class S3Store:
    """What the S3 servers share: a client of their own for setting up and counting, never through a proxy."""

    kind = "s3"
    access_key, secret_key = "arcaccesskey", "arcsecretkey"

    def client(self, access_key=None, secret_key=None, port=None):
        import boto3
        from botocore.config import Config

        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{port or self.port}", region_name="us-east-1",
            aws_access_key_id=access_key or self.access_key, aws_secret_access_key=secret_key or self.secret_key,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 3}, read_timeout=60, proxies={}),
        )

    def create_bucket(self, bucket):
        self.client().create_bucket(Bucket=bucket)

    def objects(self, bucket, prefix=""):
        """[(key, bytes)]"""
        out = []
        for page in self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
            out += [(o["Key"], o["Size"]) for o in page.get("Contents", [])]
        return out

    @staticmethod
    def read_with(client, bucket, key):
        return client.get_object(Bucket=bucket, Key=key)["Body"].read()

    def read(self, bucket, key):
        return self.read_with(self.client(), bucket, key)

    def multiparts(self, bucket):
        """Uploads that were begun and neither completed nor aborted: [(key, upload id)]."""
        out = []
        for page in self.client().get_paginator("list_multipart_uploads").paginate(Bucket=bucket):
            out += [(u["Key"], u["UploadId"]) for u in page.get("Uploads", [])]
        return out

    def remove(self, bucket, key):
        self.client().delete_object(Bucket=bucket, Key=key)

    def drop(self, bucket):
        """Removes what the bucket holds, so that a server in memory does not grow from case to case."""
        client, keys = self.client(), [k for k, _ in self.objects(bucket)]
        for i in range(0, len(keys), 500):
            client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": k} for k in keys[i : i + 500]]})

    def settings(self, bucket, port=None, prefix=""):
        """Keys of arc's configuration; `port` is that of a proxy in front of the store."""
        out = {
            "storage.backend": "s3", "storage.s3_bucket": bucket, "storage.s3_region": "us-east-1",
            "storage.s3_endpoint": f"http://127.0.0.1:{port or self.port}", "storage.s3_use_ssl": "false", "storage.s3_path_style": "true",
            "storage.s3_access_key": self.access_key, "storage.s3_secret_key": self.secret_key,
        }
        if prefix:
            out["storage.s3_prefix"] = prefix
        return out

    def download(self, bucket, to, prefix=""):
        return _download(self, bucket, to, prefix)


def _download(store, bucket, to, prefix):
    """Every object of the bucket as a file under `to`; returns how many."""
    client = store.client()
    found = store.objects(bucket, prefix)
    for key, size in found:
        path = os.path.join(to, key[len(prefix):].lstrip("/"))
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as f:
            f.write(store.read_with(client, bucket, key))
        if os.path.getsize(path) != size:
            raise Problem(f"{store.name}: {key} is listed with {size} bytes and read with {os.path.getsize(path)}")
    return len(found)


class Moto(S3Store):
    """In memory, no signatures: the quick lane. Stopped, it has lost everything; it can be frozen."""

    name = "moto"
    checks_signatures = False
    persistent = False

    def __init__(self, base):
        env = python_environment()
        self.port = free_port()
        self.child = Child(
            [os.path.join(env, "bin", "moto_server"), "-H", "127.0.0.1", "-p", str(self.port)], os.path.join(base, "moto.log"), cwd=base
        ).start()
        self.child.wait_port(self.port, 60)

    def settings(self, bucket, port=None, prefix=""):
        # Racing creates sometimes have two winners here, so that the probe refuses it by chance.
        return {**super().settings(bucket, port, prefix), "storage.create_only": "trust"}

    def freeze(self):
        self.child.freeze()

    def thaw(self):
        self.child.thaw()

    def stop(self):
        self.child.kill()


class GcsStandIn(Moto):
    """Google's XML API as far as it is S3's: moto behind the proxy, which turns the condition of create-only into S3's and adds
    generations. No Google server and no Google authentication: what this shows of GCS is how arc speaks, not what Google does."""

    name = "gcs_stand_in"
    kind = "gcs"

    def __init__(self, base):
        super().__init__(base)
        # Without a key file that says so, object_store asks the metadata server of the machine before every put, even to a plain address.
        self.key_file = os.path.join(base, "no-account.json")
        with open(self.key_file, "w") as f:
            json.dump({"private_key": "", "private_key_id": "", "client_email": "", "disable_oauth": True}, f)

    def settings(self, bucket, port=None, prefix=""):
        if port is None:
            raise Problem("the stand-in for GCS needs the proxy in front of it")
        out = {"storage.backend": "gcs", "storage.gcs_bucket": bucket, "storage.gcs_endpoint": f"http://127.0.0.1:{port}", "storage.gcs_service_account_file": self.key_file, "storage.create_only": "trust"}
        if prefix:
            out["storage.gcs_prefix"] = prefix
        return out


class Radosgw(S3Store):
    """A Ceph of one monitor, one OSD in memory and one gateway. The gateway can be stopped and started: the objects stay."""

    name = "radosgw"
    checks_signatures = True
    persistent = True

    def __init__(self, base, gigabytes=6):
        python_environment()
        root = ceph_folder()
        self.dir = tempfile.mkdtemp(prefix="ceph-", dir=base)
        lib = os.path.join(root, "usr/lib/x86_64-linux-gnu")
        fsid, osd_uuid = str(uuid.uuid4()), str(uuid.uuid4())
        mon_port, self.port = free_port(), free_port()
        self.conf = os.path.join(self.dir, "ceph.conf")
        self.env = {
            **clean_env(), "LD_LIBRARY_PATH": f"{lib}:{lib}/ceph:{root}/lib/x86_64-linux-gnu", "PATH": f"{root}/usr/bin:{os.environ.get('PATH', '')}",
            "PYTHONPATH": f"{root}/usr/lib/python3/dist-packages", "CEPH_CONF": self.conf,
        }
        for d in ("mon", "osd", "rgw", "run"):
            os.mkdir(os.path.join(self.dir, d))
        with open(self.conf, "w") as f:
            f.write(
                f"""[global]
fsid = {fsid}
mon_host = v1:127.0.0.1:{mon_port}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_bind_msgr2 = false
ms_bind_port_min = 20000
ms_bind_port_max = 31000
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_pool_default_pg_num = 2
osd_pool_default_pgp_num = 2
mon_max_pg_per_osd = 10000
osd_crush_chooseleaf_type = 0
osd_objectstore = memstore
osd_class_update_on_start = false
memstore_device_bytes = {gigabytes << 30}
plugin_dir = {lib}/ceph
erasure_code_dir = {lib}/ceph/erasure-code
osd_class_dir = {lib}/rados-classes
run_dir = {self.dir}/run
admin_socket =
pid_file =
log_file = {self.dir}/$name.log
mon_cluster_log_file = {self.dir}/cluster.log
crash_dir = {self.dir}
mon_data = {self.dir}/mon
osd_data = {self.dir}/osd
rgw_data = {self.dir}/rgw
debug_ms = 0
debug_rgw = 1
debug_osd = 0
debug_mon = 0
debug_paxos = 0
mon_data_avail_crit = 1
mon_data_avail_warn = 2
osd_memory_target = 939524096
rgw_frontends = beast endpoint=127.0.0.1:{self.port}
rgw_thread_pool_size = 64
rgw_enable_usage_log = false
rgw_gc_obj_min_wait = 5
rgw_gc_processor_period = 5
rgw_gc_processor_max_time = 5
"""
            )
        tool = lambda name, *a, timeout=60: _run(name, [f"{root}/usr/bin/{name}", "-c", self.conf, *a], timeout, env=self.env)  # noqa: E731
        self.tool = tool
        monmap = os.path.join(self.dir, "monmap")
        tool("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"v1:127.0.0.1:{mon_port}", monmap)
        tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        log = os.path.join(self.dir, "out.log")
        self.mon = Child([f"{root}/usr/bin/ceph-mon", "-c", self.conf, "-f", "-i", "a"], log, self.env).start()
        self.mon.wait_port(mon_port, 30)
        self.ceph = lambda *a: _run("ceph", [sys.executable, f"{root}/usr/bin/ceph", "-c", self.conf, *a], 60, env=self.env)
        if self.ceph("osd", "new", osd_uuid, "0").strip() != "0":
            raise Problem("ceph osd new made another OSD than 0")
        tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)
        # Now and then a fresh monitor refuses an OSD that comes too early, and the OSD ends for it.
        for attempt in range(10):
            self.osd = Child([f"{root}/usr/bin/ceph-osd", "-c", self.conf, "-f", "-i", "0"], log, self.env).start()
            end = time.monotonic() + 60
            up = False
            while not up and self.osd.process.poll() is None and time.monotonic() < end:
                time.sleep(0.3)
                up = json.loads(self.ceph("osd", "stat", "--format", "json"))["num_up_osds"] == 1
            if up:
                break
            self.osd.kill()
            time.sleep(0.5 + attempt)
        else:
            raise Problem(f"the OSD does not come up: {self.osd.last_words()}")
        self.gateway = Child([f"{root}/usr/bin/radosgw", "-c", self.conf, "-f", "-n", "client.rgw"], log, self.env).start()
        self.gateway.wait_port(self.port, 120)
        self.admin("user", "create", "--uid", "arc", "--display-name", "arc", "--access-key", self.access_key, "--secret-key", self.secret_key)

    def admin(self, *a):
        return self.tool("radosgw-admin", "-n", "client.rgw", *a)

    def disable_user(self):
        self.admin("user", "suspend", "--uid", "arc")

    def enable_user(self):
        self.admin("user", "enable", "--uid", "arc")

    def freeze(self):
        self.gateway.freeze()

    def thaw(self):
        self.gateway.thaw()

    def stop_gateway(self):
        self.gateway.kill()

    def start_gateway(self):
        self.gateway.start().wait_port(self.port, 120)

    def stop(self):
        for child in (self.gateway, self.osd, self.mon):
            child.kill()


class Azurite:
    """Azure's emulator with its state on the disk: it survives a clean stop (not a kill: it writes its index every few seconds)."""

    name = "azurite"
    kind = "azure"
    checks_signatures = True
    persistent = True

    def __init__(self, base):
        python_environment()
        folder = azurite_folder()
        self.port = free_port()
        state = tempfile.mkdtemp(prefix="azurite-", dir=base)
        script = os.path.join(folder, "node_modules/azurite/dist/src/blob/main.js")
        self.child = Child(
            ["node", script, "--blobHost", "127.0.0.1", "--blobPort", str(self.port), "--location", state, "--silent", "--skipApiVersionCheck", "--disableTelemetry"],
            os.path.join(base, "azurite.log"), cwd=base,
        ).start()
        self.child.wait_port(self.port, 60)

    def client(self):
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient(f"http://127.0.0.1:{self.port}/{AZURE_ACCOUNT}", credential=AZURE_KEY, retry_total=3)

    def create_bucket(self, bucket):
        self.client().create_container(bucket)

    def objects(self, bucket, prefix=""):
        return [(b.name, b.size) for b in self.client().get_container_client(bucket).list_blobs(name_starts_with=prefix or None)]

    @staticmethod
    def read_with(client, bucket, key):
        return client.get_blob_client(bucket, key).download_blob().readall()

    def read(self, bucket, key):
        return self.read_with(self.client(), bucket, key)

    def multiparts(self, bucket):
        """Blobs of uncommitted blocks alone. Azure drops those after a week by itself; there is nothing to abort."""
        c = self.client().get_container_client(bucket)
        committed = {b.name for b in c.list_blobs()}
        return [(b.name, "uncommitted") for b in c.list_blobs(include=["uncommittedblobs"]) if b.name not in committed]

    def remove(self, bucket, key):
        self.client().get_blob_client(bucket, key).delete_blob()

    def drop(self, bucket):
        self.client().delete_container(bucket)

    def settings(self, bucket, port=None, prefix=""):
        out = {
            "storage.backend": "azure", "storage.azure_account": AZURE_ACCOUNT, "storage.azure_access_key": AZURE_KEY,
            "storage.azure_container": bucket, "storage.azure_endpoint": f"http://127.0.0.1:{port or self.port}", "storage.azure_use_emulator": "true",
        }
        if prefix:
            out["storage.azure_prefix"] = prefix
        return out

    def download(self, bucket, to, prefix=""):
        return _download(self, bucket, to, prefix)

    def freeze(self):
        self.child.freeze()

    def thaw(self):
        self.child.thaw()

    def stop_gateway(self):
        self.child.stop()

    def start_gateway(self):
        self.child.start().wait_port(self.port, 60)

    def stop(self):
        self.child.stop()


SERVERS = {"moto": Moto, "radosgw": Radosgw, "azurite": Azurite, "gcs": GcsStandIn}


def bring_up(name, base):
    """One server by name, or `Unavailable`. A server that is there and does not start is a Problem, not a skip."""
    return SERVERS[name](base)


def main():
    what = sys.argv[1:2]
    if what == ["fetch"]:
        bad = 0
        for name, f in (("python", python_environment), ("azurite", azurite_folder), ("ceph", ceph_folder)):
            try:
                print(f"{name}: {f()}")
            except Unavailable as e:
                bad = 1
                print(f"{name}: not to be had: {e}")
        sys.exit(bad)
    if what != ["run"] or len(sys.argv) != 3 or sys.argv[2] not in SERVERS:
        sys.exit("usage: stores.py fetch | run moto|radosgw|azurite")
    started = time.monotonic()
    store = bring_up(sys.argv[2], workdir())
    store.create_bucket("arc")
    print(f"{store.name} on port {store.port} after {time.monotonic() - started:.1f} s; settings:", flush=True)
    for k, v in store.settings("arc").items():
        print(f"  --set {k}={v}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()

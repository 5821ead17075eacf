"""The readers of the matrix: what each is made of, and its environment in the cache.

Each version has an environment of its own: two versions of one library cannot be in the same one, and one large
installation takes minutes to find versions that fit together. `versions.py` fills the cache, one after the other.
"""

import contextlib
import fcntl
import glob
import os
import shutil
import subprocess
import sys

CACHE = os.path.join(os.environ.get("ARC_SYSTEM_CACHE") or os.path.expanduser("~/.cache/arc-system"), "readers")

# Name of a reader: its packages, and the module of `adapters.py` that drives it.
READERS = {
    "polars-1.20": ("polars", ["polars==1.20.0"]),
    "polars-1.42": ("polars", ["polars==1.42.1"]),
    "polars-2.1": ("polars", ["polars==2.1.0"]),
    "datafusion-45": ("datafusion", ["datafusion==45.2.0", "pyarrow==26.0.1", "typing-extensions"]),
    "datafusion-55": ("datafusion", ["datafusion==55.0.0", "pyarrow==26.0.1", "typing-extensions"]),
    "duckdb-1.0": ("duckdb", ["duckdb==1.0.0"]),
    "duckdb-1.5": ("duckdb", ["duckdb==1.5.5"]),
    "duckdb-2.0": ("duckdb", ["duckdb==2.0.1"]),
    "pyarrow-14": ("pyarrow", ["pyarrow==14.0.2", "numpy==1.26.4"]),
    "pyarrow-26": ("pyarrow", ["pyarrow==26.0.1"]),
    "fastparquet-2024": ("fastparquet", ["fastparquet==2024.11.0", "pandas==2.2.3", "numpy==1.26.4"]),
    "fastparquet-2026": ("fastparquet", ["fastparquet==2026.9.0"]),
    "spark-3.5": ("spark", ["pyspark==3.5.9"]),
    "spark-4.2": ("spark", ["pyspark==4.2.0"]),
    "chdb-4.4": ("chdb", ["chdb==4.4.0"]),
}


class Unavailable(Exception):
    """A reader that cannot be had here, and why."""


def _run(what, args, timeout=1200):
    try:
        p = subprocess.run(args, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout, check=False)
    except (OSError, subprocess.TimeoutExpired) as e:
        raise Unavailable(f"{what}: {e}") from None
    if p.returncode != 0:
        raise Unavailable(f"{what}: exit {p.returncode}: {(p.stderr or p.stdout).strip()[-300:]}")


def python(name, fetch=True):
    """The interpreter of the reader's environment, which is made first where it is missing or of other packages."""
    kind, packages = READERS[name]
    if kind == "spark" and shutil.which("java") is None:
        raise Unavailable("no java (Spark needs Java 17)")
    os.makedirs(CACHE, exist_ok=True)
    folder = os.path.join(CACHE, name)
    interpreter = os.path.join(folder, "bin", "python")
    with open(folder + ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = os.path.join(folder, ".complete")
        contents = " ".join(packages)
        with contextlib.suppress(OSError), open(done, encoding="utf-8") as f:
            if f.read() == contents:
                return interpreter
        if not fetch:
            raise Unavailable("not in the cache")
        shutil.rmtree(folder, ignore_errors=True)
        _run("python -m venv", [sys.executable, "-m", "venv", "--without-pip", folder])
        pip = [sys.executable, "-m", "pip", "--python", interpreter, "install", "-q", "--no-cache-dir", "--no-compile"]
        _run("pip install", [*pip, *packages])
        # The tests of the packages take a third of the space.
        for tests in glob.glob(os.path.join(folder, "lib/python3*/site-packages/*/tests")):
            shutil.rmtree(tests, ignore_errors=True)
        with open(done, "w", encoding="utf-8") as f:
            f.write(contents)
    return interpreter


def main():
    failed = False
    for name in sys.argv[1:] or READERS:
        try:
            python(name)
            print(f"{name}: ready", flush=True)
        except Unavailable as e:
            failed = True
            print(f"{name}: {e}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()

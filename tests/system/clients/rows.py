"""What the client programs in Python share: the rows that all of them write, and how they talk to the test.

A program gets its parameters as JSON in its first argument and prints one JSON object a line on stdout:
`{"ev": "ack", "rows": n}` for rows that the client calls written, `{"ev": "again", "kind": K, "why": text, "ids": ranges}` for rows
that are sent once more, `{"ev": "lost", ...}` for rows that the client gave up, `{"ev": "check", "name", "ok", "details"}`.
The kinds of `again`: `refused` (an answer said no), `unreached` (no connection), `unclear` (sent, no answer).
rows.mjs has the same rows in JavaScript; expected.py holds both to it.
"""

import json
import re
import sys
import threading
import time

P = json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}
T0_US = 1767225600_000_000
HOSTS = ["web-1", "web 2", "web,3", "web=4", "höst 5", "web'6", 'web"7', "日本"]
_lock = threading.Lock()


def row(i):
    """(tags, fields, time in microseconds) of row `i`. All numbers are exact in a double, all times whole microseconds."""
    tags = {"host": HOSTS[i % len(HOSTS)]}
    if i % 3:
        tags["region"] = f"r{i % 5}"
    special = {1: 5e-324, 2: 1.7976931348623157e308, 3: 1e21 * i, 4: -1.5e-7, 5: float(i)}
    fields = {
        "id": i,
        "big": (i if i % 2 else -i) * 1_000_003,
        "value": special.get(i % 1000, i / 7),
        "text": f'say "{i}", a=b c\\d é' if i % 97 else f"two\nlines {i}",
        "ok": i % 2 == 0,
    }
    if i % 5 == 0:
        fields["maybe"] = i / 2 + 0.25
    return tags, fields, T0_US + i * 250_000 + i % 7


def say(ev, **more):
    with _lock:
        print(json.dumps({"ev": ev, **more}), flush=True)


def check(name, ok, details):
    say("check", name=name, ok=bool(ok), details=str(details)[:600])


def refuses(name, f, wanted):
    """`f` must raise; `wanted(exception)` must hold. Says what the exception looks like."""
    try:
        got = f()
    except Exception as e:  # noqa: BLE001
        text = " ".join(str(e).split())
        try:
            good = wanted(e)
        except Exception as e2:  # noqa: BLE001
            good, text = False, f"{text} (looking at it: {e2!r})"
        check(name, good, f"{type(e).__module__}.{type(e).__name__}: {text}")
    else:
        check(name, False, f"no exception, answered {got!r}")


def ranges(ids):
    out = []
    for i in sorted(ids):
        if out and out[-1][1] == i - 1:
            out[-1][1] = i
        else:
            out.append([i, i])
    return out


def ids_of(lines):
    """The ids in line protocol as these programs write it."""
    if isinstance(lines, str):
        lines = lines.encode()
    return ranges(int(m) for m in re.findall(rb"[ ,]id=(\d+)i", lines))


def kind_of(error):
    """What a failed try means, from the types in the exception's chain and the answer in it, if any."""
    names, seen = [], error
    while seen is not None and len(names) < 20:
        names.append(type(seen).__name__)
        seen = getattr(seen, "reason", None) if isinstance(getattr(seen, "reason", None), BaseException) else seen.__cause__ or seen.__context__
    if any(n in ("NewConnectionError", "ConnectTimeoutError", "ConnectError", "ConnectionRefusedError") for n in names):
        return "unreached"
    response = getattr(error, "response", None)
    if response is not None or getattr(error, "status_code", None):
        return "unclear" if "unknown_outcome" in str(getattr(response, "data", "")) + str(error) else "refused"
    return "unclear"


class Pace:
    """Rows at a steady rate, so that every fault strikes in the middle of the load; time that was lost is not made up for."""

    def __init__(self, rate):
        self.rate, self.due = rate, time.monotonic()

    def wait(self, rows):
        now = time.monotonic()
        self.due = max(self.due + rows / self.rate, now)
        time.sleep(self.due - now)


def until_written(write, ids, transient):
    """The loop that an application needs around a client that does not retry by itself.

    Same rows again until the client calls them written; anything that is not `transient` is the program's failure.
    """
    wait = 0.25
    while True:
        try:
            write()
        except Exception as e:  # noqa: BLE001
            if not transient(e):
                raise
            say("again", kind=kind_of(e), why=f"{type(e).__name__}: {e}"[:200], ids=ids)
            time.sleep(wait)
            wait = min(wait * 2, 2)
        else:
            return

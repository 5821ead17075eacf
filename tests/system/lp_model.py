"""What arc makes of a body of line protocol, written from the contract and not from its code: slow, plain, one line at a time.

`parse(body, precision)` gives (numbers of the bad lines, rows, notes): a row is [table, {tag: text}, {field: "type:value"}, nanoseconds or None for
"now"], and the notes name the rules on which arc and another parser are known to part (docs/line-protocol.md has them by these names).
"""

import math
import re

UNITS = {"": 1, "n": 1, "ns": 1, "u": 10**3, "us": 10**3, "µ": 10**3, "ms": 10**6, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
MIN_US, MAX_US = -62135596800 * 10**6, 253402300800 * 10**6 - 1
I64 = range(-(1 << 63), 1 << 63)
INTEGER = re.compile(rb"-?[0-9]+\Z")
FLOAT = re.compile(rb"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?\Z")
BOOLEANS = {b"t": True, b"T": True, b"true": True, b"True": True, b"TRUE": True, b"f": False, b"F": False, b"false": False, b"False": False, b"FALSE": False}


class Bad(Exception):
    pass


class Unpaired(Bad):
    """Quotes do not pair: the line ends at its own first newline, or it would take the lines behind it along."""


def control(text):
    return any(ord(c) < 32 or 127 <= ord(c) < 160 for c in text)


# Characters that show nothing or turn the direction of what stands around them. Joiners and selectors are allowed in some places.
UNSEEN = [
    (0xAD, 0xAD), (0x34F, 0x34F), (0x61C, 0x61C), (0x115F, 0x1160), (0x17B4, 0x17B5), (0x180B, 0x180F), (0x200B, 0x200F), (0x2028, 0x202E), (0x2060, 0x206F),
    (0x2800, 0x2800), (0x3164, 0x3164), (0xFDD0, 0xFDEF), (0xFE00, 0xFE0F), (0xFEFF, 0xFEFF), (0xFFA0, 0xFFA0), (0xFFF9, 0xFFFB), (0x1BCA0, 0x1BCA3), (0x1D173, 0x1D17A),
    (0xE0000, 0xE007F), (0xE0100, 0xE01EF), *((p + 0xFFFE, p + 0xFFFF) for p in range(0, 0x110000, 0x10000)),
]


def unseen(c):
    return any(first <= ord(c) <= last for first, last in UNSEEN)


def selector(c):
    return 0xFE00 <= ord(c) <= 0xFE0F or 0xE0100 <= ord(c) <= 0xE01EF


def visible(name):
    """No white space at an end, nothing invisible; a joiner between two characters that are not ASCII, a selector behind one."""
    if name.strip() != name:
        return False
    for i, c in enumerate(name):
        before, after = name[i - 1 : i] if i else "", name[i + 1 : i + 2]
        letter = lambda x: x and ord(x) > 127 and not x.isspace() and not unseen(x)
        if c in "\u200c\u200d":
            if not ((letter(before) or (before and selector(before))) and letter(after)):
                return False
        elif selector(c):
            if not (letter(before) or (before and before in "0123456789#*" and after == "\u20e3")):
                return False
        elif unseen(c):
            return False
    return True


def escaped_table(name):
    return "".join(chr(b) if (chr(b).isalnum() and b < 128) or b == 45 or (b in b"_." and i > 0) else f"%{b:02X}" for i, b in enumerate(name.encode()))


class Parser:
    def __init__(self, body, precision):
        self.body, self.precision, self.unit = body, precision, UNITS[precision]
        self.bad, self.rows, self.notes = [], [], set()
        self.types = {}
        self.tables = {}
        self.columns = {}

    def text(self, raw):
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.notes.add("utf8")
            raise Bad("invalid UTF-8") from None

    def name(self, at, stops, escapes):
        """The element from `at` to the first of `stops` that no backslash stands before: (text, end)."""
        b, out, start = self.body, bytearray(), at
        while at < len(b) and b[at] not in stops:
            if b[at] == 92 and b[at + 1 : at + 2] and b[at + 1] in escapes:
                if b[at - 1 : at] == b"\\":
                    self.notes.add("double-backslash")
                out.append(b[at + 1])
                at += 2
            else:
                out.append(b[at])
                at += 1
        if b"\\\\" in out or b"\\\\" in b[start:at]:
            self.notes.add("two-backslashes")
        if 9 in out:
            self.notes.add("tab")
        return bytes(out), at

    def blanks(self, at):
        while at < len(self.body) and self.body[at] in b" \t":
            at += 1
        return at

    def ends(self, at):
        """A line ends here: at a newline, a carriage return before one, or the end of the body."""
        rest = self.body[at : at + 2]
        if rest in (b"\r\n", b"\r"):
            self.notes.add("crlf")
            return True
        return rest[:1] in (b"", b"\n")

    def line_end(self, start):
        """Where the line that starts here ends: its newline outside quotes; its first newline when the quotes do not pair."""
        b, at, fields, quoted, equals = self.body, start, False, False, False
        while at < len(b):
            c, behind_equals, equals = b[at], equals, b[at] == 61
            if quoted:
                if c == 92 and b[at + 1 : at + 2] in (b'"', b"\\"):
                    at += 2
                    continue
                if c == 34:
                    if b[at + 1 : at + 2] not in (b"", b",", b" ", b"\n") and b[at + 1 : at + 3] not in (b"\r", b"\r\n"):
                        break
                    quoted = False
            elif c == 10:
                return at
            elif c == 92 and b[at + 1 : at + 2] in (b",", b" ", b"="):
                at += 2
                continue
            elif c == 32:
                fields = True
            elif c == 34 and fields and behind_equals:
                quoted = True
            at += 1
        if quoted:
            self.notes.add("unpaired-quote")
            return self.first_newline(start)
        return at

    def first_newline(self, start):
        end = self.body.find(b"\n", start)
        return len(self.body) if end < 0 else end

    def run(self):
        at, b = 0, self.body
        while at < len(b):
            start = self.blanks(at)
            while b[start : start + 3] == b"\xef\xbb\xbf":
                self.notes.add("bom")
                start = self.blanks(start + 3)
            if start < len(b) and b[start] == 35:
                end = self.first_newline(start)
                if 34 in b[start:end] or 92 in b[start:end]:
                    self.notes.add("comment")
                at = end + 1
                continue
            if self.ends(start):
                at = start + (2 if b[start : start + 2] == b"\r\n" else 1)
                continue
            end = None
            try:
                row, end = self.line(start)
                self.store(*row)
            except Bad as e:
                self.bad.append(b.count(b"\n", 0, start) + 1)
                if end is None:
                    end = self.first_newline(start) if isinstance(e, Unpaired) else self.line_end(start)
                if b"\\\n" in b[start : end + 2]:
                    self.notes.add("escaped-newline")
            at = end + 1
        return self

    def line(self, at):
        b = self.body
        if b[at : at + 2] == b"\\#":
            # Without the backslash the line would be a comment.
            self.notes.add("escaped-hash")
            at += 1
        name, at = self.name(at, b", \n", b", ")
        if b"\\=" in name or b'\\"' in name or b"\\\\" in name:
            self.notes.add("measurement-escapes")
        if not name:
            raise Bad("no measurement")
        tags, fields = [], []
        while b[at : at + 1] == b",":
            key, at = self.name(at + 1, b",= \n", b",= ")
            if not key or b[at : at + 1] != b"=":
                if b[at : at + 1] == b",":
                    self.notes.add("comma")
                raise Bad("tag without key or value")
            if b[at + 1 : at + 2] == b"=":
                self.notes |= {"tag-equals", "equals-in-tag-value"}
                raise Bad("= in a tag value")
            value, at = self.name(at + 1, b",= \n", b",= ")
            if b[at : at + 1] == b"=":
                self.notes.add("equals-in-tag-value")
                raise Bad("= in a tag value")
            if not value:
                raise Bad("empty tag value")
            tags.append((key, value))
        if b[at : at + 1] != b" ":
            raise Bad("no fields")
        space, at = at, self.blanks(at)
        if 9 in b[space:at]:
            self.notes.add("tab")
        while True:
            key, at = self.name(at, b",= \n", b",= ")
            if b'\\"' in key:
                self.notes.add("field-key-quote")
            if not key or b[at : at + 1] != b"=":
                if b[at : at + 1] == b"," or fields:
                    self.notes.add("comma")
                raise Bad("field without key or value")
            value, at = self.value(at + 1)
            fields.append((key, value))
            if b[at : at + 1] != b",":
                break
            at += 1
        time = None
        if b[at : at + 1] == b" ":
            space, at = at, self.blanks(at)
            if 9 in b[space:at]:
                self.notes.add("tab")
            if self.ends(at):
                self.notes.add("trailing-space")
            else:
                end = at
                while end < len(b) and b[end] not in b" \t\r\n":
                    end += 1
                if not INTEGER.match(b[at:end]):
                    raise Bad("bad time stamp")
                n = int(b[at:end])
                time = n * self.unit
                if self.unit > 1 and self.precision in ("us", "µ"):
                    self.notes.add("precision")
                if abs(time) >= (1 << 63) - 1:
                    self.notes.add("time-range")
                if n not in I64 or not MIN_US <= time // 1000 <= MAX_US:
                    raise Bad("time stamp out of range")
                at = self.blanks(end)
                if 9 in b[end:at]:
                    self.notes.add("tab")
        if time is None and self.unit > 1:
            self.notes.add("now")
        if not self.ends(at):
            raise Bad("text behind the line")
        if b[at : at + 1] == b"\r":
            at += 1
        return (name, tags, fields, time), at

    def value(self, at):
        b = self.body
        if b[at : at + 1] == b'"':
            out, at = bytearray(), at + 1
            while True:
                if at >= len(b):
                    raise Bad("quotes do not pair")
                if b[at] == 34:
                    at += 1
                    if b[at : at + 1] not in (b",", b" ") and not self.ends(at):
                        self.notes.add("after-quote")
                        raise Unpaired("text behind a string")
                    return ("s", bytes(out)), at
                if b[at] == 92 and b[at + 1 : at + 2] in (b'"', b"\\"):
                    at += 1
                out.append(b[at])
                at += 1
        end = at
        while end < len(b) and b[end] not in b", \n" and not self.ends(end):
            end += 1
        word = b[at:end]
        if word in BOOLEANS:
            return ("b", BOOLEANS[word]), end
        if word[-1:] == b"i" and INTEGER.match(word[:-1]):
            if int(word[:-1]) not in I64:
                raise Bad("integer out of range")
            return ("i", int(word[:-1])), end
        if word[-1:] == b"u" and INTEGER.match(word[:-1]) and word[:1] != b"-":
            self.notes.add("unsigned")
            if int(word[:-1]) >= 1 << 64:
                raise Bad("integer out of range")
            # Beyond int64 only a column of floats may hold it.
            return ("i" if int(word[:-1]) in I64 else "u", int(word[:-1])), end
        if FLOAT.match(word):
            f = float(word)
            if word.lstrip(b"-")[:1] == b"." or re.search(rb"\.([eE]|\Z)", word):
                self.notes.add("no-digit")
            if math.isinf(f):
                self.notes.add("overflow")
                raise Bad("float out of range")
            return ("f", f), end
        if 34 in word:
            self.notes.add("stray-quote")
        raise Bad("no value")

    def store(self, name, tags, fields, time):
        """Checks that need the whole line, then what the table has already. Nothing of a refused line is remembered."""
        table = self.text(name)
        if control(table):
            self.notes.add("control")
            raise Bad("control character in a name")
        if not visible(table):
            self.notes.add("invisible")
            raise Bad("a name that nobody sees as it is")
        if table in (".", "..") or len(name) > 128 or len(escaped_table(table)) > 200:
            self.notes.add("name-limits")
            raise Bad("measurement cannot be a table")
        tag_values, raw_of = {}, {}
        for raw, v in tags:
            k = self.column(raw)
            if k in tag_values:
                self.notes.add("duplicate-tag")
                raise Bad("tag twice")
            tag_values[k] = self.text(v)
        field_values = {}
        for raw, (kind, v) in fields:
            k = self.column(raw)
            if raw_of.setdefault(k, raw) != raw:
                raise Bad("two names that become one")
            if kind == "s":
                v = self.text(v)
            if k in field_values and field_values[k][0] != kind:
                self.notes.add("same-field-other-type")
            field_values.pop(k, None)
            field_values[k] = (kind, v)
        for k in [k for k in field_values if k in tag_values]:
            self.notes.add("tag-and-field")
            if k + "_value" in field_values or k + "_value" in tag_values:
                raise Bad("tag and field of one name, and <name>_value")
            field_values[k + "_value"] = field_values.pop(k)
        own = {}
        for k in [*tag_values, *field_values]:
            if own.setdefault(k.lower(), k) != k:
                self.notes.add("case")
                raise Bad("names that are equal but for case")
        types = self.types.setdefault(table, {})
        folded = self.columns.setdefault(table, {})
        new = {}
        for k, kind in [*((k, "s") for k in tag_values), *((k, kind) for k, (kind, _) in field_values.items())]:
            if folded.get(k.lower(), k) != k:
                self.notes.add("case")
                raise Bad("a column differs by case")
            had = types.get(k)
            if kind == "u":
                n = field_values[k][1]
                if had != "f" or int(float(n)) != n:
                    raise Bad("integer out of range")
                field_values[k] = ("f", float(n))
                continue
            if had is None or had == kind:
                # A tag is a column of strings: a string field of its name in another line goes there too.
                new[k] = kind
                continue
            self.notes.add("conflict")
            if {had, kind} == {"i", "f"}:
                if kind == "i" and abs(field_values[k][1]) > 1 << 53 and int(float(field_values[k][1])) != field_values[k][1]:
                    raise Bad("integer that a double cannot hold")
                if kind == "f" and any(r[0] == table and k in r[2] and r[2][k][0] == "i" and int(float(r[2][k][1])) != r[2][k][1] for r in self.rows):
                    raise Bad("the column has integers that a double cannot hold")
                new[k] = "f"
            else:
                raise Bad("another type")
        types.update(new)
        folded.update((k.lower(), k) for k in new)
        for r in self.rows:
            if r[0] == table and r[1] == tag_values and r[3] == time:
                self.notes.add("same-point")
        self.rows.append([table, tag_values, field_values, time])

    def column(self, raw):
        k = self.text(raw)
        if k.lower() == "time":
            self.notes.add("time-name")
            raise Bad("named time")
        if control(k):
            self.notes.add("control")
            raise Bad("control character in a name")
        if not visible(k):
            self.notes.add("invisible")
            raise Bad("a name that nobody sees as it is")
        if len(raw) > 256:
            self.notes.add("name-limits")
            raise Bad("name too long")
        if k.lower() in ("date", "hour"):
            self.notes.add("hive")
            k += "_value"
        return k


def typed(kind, value):
    """The one text of a value: a float by its shortest digits, so that -0 is not 0 and 1 is not 1.0."""
    if kind == "f":
        return f"f:{float(value)!r}"
    if kind == "b":
        return "b:true" if value else "b:false"
    return f"{kind}:{value}"


def parse(body, precision=""):
    p = Parser(body, precision).run()
    rows = []
    for table, tags, fields, time in p.rows:
        # A column that has become float64 shows its integers as floats.
        shown = {k: typed("f" if p.types[table][k] == "f" and kind == "i" else kind, v) for k, (kind, v) in fields.items()}
        rows.append([table, tags, shown, time])
    return p.bad, rows, p.notes

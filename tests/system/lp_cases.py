"""Corner cases of line protocol: written by hand, and generated from a fixed seed. Each is one request body.

`cases()` gives [Case(id, body, precision)], the same ones at every call; `tests/golden/line_protocol_cases.jsonl` holds them with
what each parser makes of them (`line_protocol.py --record` writes it).
"""

import random
from collections import namedtuple

Case = namedtuple("Case", "id body precision")

# What stands in the place of X in one element of an otherwise plain line.
SPECIAL = [
    "\\", "\\\\", "\\\\\\", "\\\\\\\\", ",", " ", "=", '"', "\t", "\n", "\r", "\r\n", "#", "'", "\\,", "\\ ", "\\=", '\\"', "\\n", "\\t", "\\r", "\\x", "\\#",
    "\\\\,", "\\\\ ", "\\\\=", '\\\\"', "\\\\\\,", "\\\\\\ ", "\\\\\\=", '\\\\\\"', "\\\n", "\\\t", "\\é", ",,", "==", '""', "  ", "\\,\\,", "\\ \\ ", "\\=\\=", ", ", " ,", "=,", ",=",
    "é", "日本語", "😀", "e\u0301", "\u00a0", "\u0085", "\u2028", "\u200b", "\ufeff", "\x00", "\x01", "\x1b", "\x7f", "/", "%", ".", "..", "*", "$", "`", "<", "|", "&", ";", ":", "{}", "()", "[", "-", "_", "+", "@", "!", "?", "^", "~",
]
ELEMENTS = {
    "measurement": "{} f=1 1",
    "measurement-with-tag": "{},t=v f=1 1",
    "tag-key": "m,{}=v f=1 1",
    "tag-value": "m,t={} f=1 1",
    "tag-value-first": "m,t={},u=w f=1 1",
    "field-key": "m {}=1 1",
    "field-key-second": 'm f="a",{}=1 1',
    "string": 'm f="{}" 1',
    "string-second": 'm f=1,g="{}",h=t 1',
    "unquoted": "m f={} 1",
}

NUMBERS = [
    "0", "-0", "1", "-1", "+1", "00", "001", "-001", "10", "123456789", "9007199254740991", "9007199254740992", "9007199254740993", "-9007199254740993", "9223372036854775806", "9223372036854775807", "9223372036854775808", "-9223372036854775807", "-9223372036854775808", "-9223372036854775809", "18446744073709551614", "18446744073709551615", "18446744073709551616", "99999999999999999999", "0000000000000000000000001",
    "1.0", "1.", ".1", ".", "-.1", "-1.", "-.", "-", "--1", "1-", "1.5", "-1.5", "1.25e3", "1e3", "1E3", "1e+3", "1e-3", "1E+3", "1e", "1e+", "1e-", "e1", "1e1.5", "1.e3", ".5e3", "-.5e3", "1ee3", "1e3e3", "1e 3", "0e0", "-0.0", "0.1", "0.30000000000000004", "1e22", "1e23", "5e-324", "4.9e-324", "2.4e-324", "2.5e-324", "2.2250738585072014e-308", "2.2250738585072011e-308", "1.7976931348623157e308",
    "1.7976931348623158e308", "1.7976931348623159e308", "-1.7976931348623157e308", "1e308", "1e309", "-1e309", "1e400", "1e-400", "1e-999999999", "1e999999999", "123456789012345678901234567890", "0.1234567890123456789012345678901234567890", "1.2.3", "1..2", "0x10", "0b1", "0o7", "1_000", "1,000", "NaN", "nan", "-NaN", "inf", "Inf", "+Inf", "-inf", "Infinity", "infinity", "1f", "1d", "1L", "1n", "１", "٣", "½", "1e3.0",
    "3.141592653589793", "2.718281828459045", "6.02214076e23", "1.7976931348623157E+308", "9007199254740993.0", "1e16", "123456789.123456789", "8.41", "0.000001", "1e-7", "100000000000000000000", "1000000000000000000000", "179769313486231570000000000000000000000000000000000000000000000", "1" + "0" * 308, "1" + "0" * 309, "0." + "0" * 400 + "1", "1." + "0" * 400, "1." + "9" * 400,
]
SUFFIXES = ["", "i", "u", "I", "U", "ii", "iu", "i1", " i", ".0i", "e2i", "f", "x"]
BOOLEANS = [
    "t", "T", "f", "F", "true", "True", "TRUE", "false", "False", "FALSE", "tRUE", "TRue", "tru", "truee", "truE", "fALSE", "fals", "falsee", "FALSe", "tf", "ft", "tt", "y", "yes", "no", "on", "1t", "t1", "t ", " t", "true1", "null", "nil", "None", "'t'", "t\t", "TRUEfalse", "t\\", "\\t", "t\\,", "tr\\ ue",
]
TIMES = [
    "0", "-0", "1", "-1", "+1", "0001", "-0001", "999", "1000", "1001", "-999", "-1000", "-1001", "1700000000", "1700000000000", "1700000000000000", "1700000000000000000", "1700000000123456789", "4999999999", "5000000000", "4999999999999", "5000000000000", "4999999999999999", "5000000000000000", "9223372036854775805", "9223372036854775806", "9223372036854775807", "9223372036854775808", "-9223372036854775805", "-9223372036854775806", "-9223372036854775807", "-9223372036854775808", "-9223372036854775809",
    "18446744073709551615", "99999999999999999999", "253402300799", "253402300800", "253402300799999", "253402300800000", "-62135596800", "-62135596801", "9223372036", "9223372037", "-9223372036", "-9223372037", "2562047", "2562048", "153722867", "153722868", "1.0", "1e3", "1i", "1u", "--1", "-", "- 1", "1-", "now", "now()", "0x1", "1_000", '"1"', "1,", "1=", "\\1", "1\\", "1\t", "\t1", "1 ", "1   ", "  1", "1 2", "1 a", "1 #", "１", "1 \t", "2023-11-14T22:13:20Z",
]
PRECISIONS = ["n", "ns", "u", "us", "µ", "ms", "s", "m", "h"]
PLAIN_TIMES = ["0", "1", "-1", "999", "1700000000", "1700000000000", "1700000000123456789", "2562047", "-2562047", "2562048", "9223372036", "9223372037", "9223372036854775806", "99999999999999999999", "1.0", "-", ""]

# Missing, doubled and misplaced parts.
STRUCTURE = """
m
m,
m,t
m,t=
m,t=v
m,t=v,
m,t=v,u
m,t=v,u=
m,=v f=1 1
m,= f=1 1
m,,t=v f=1 1
m,t=v,,u=w f=1 1
m,t=v, f=1 1
m,t=v f
m,t=v f=
m,t=v f= 1
m,t=v =1 1
m,t=v f=1,
m,t=v f=1, 1
m,t=v f=1,,g=2 1
m,t=v ,f=1 1
m,t=v f=1,g 1
m,t=v f=1,g= 1
m,t=v f=1,=2 1
m,t=v f,g=1 1
m,t=v f g=1 1
m,t=v f=1 g=2 1
m,t=v f=1,g=2
m,t=v f=1=2 1
m,t=v f==1 1
m,t=v f=1 =1
m,t=v  f=1 1
m,t=v f=1  1
m,t=v   f=1   1   
 m,t=v f=1 1
   m,t=v f=1 1
m ,t=v f=1 1
m, t=v f=1 1
m,t =v f=1 1
m,t= v f=1 1
m,t=v f =1 1
m,t=v f= 1 1
m,t=v f=1 ,g=2 1
m,t=v f=1, g=2 1
m,t=v=w f=1 1
m,t==v f=1 1
m,t=v==w f=1 1
m,t=v f="a 1
m,t=v f=a" 1
m,t=v f=a 1
m,t=v f='a' 1
m,t=v f="a"b 1
m,t=v f="a"b" 1
m,t=v f="a""b" 1
m,t=v f=""a" 1
m,t=v f=1"a" 1
m,t=v f="a"1 1
m,t=v f="a"i 1
m,t=v f="a",g="b" 1
m,t=v f="a, b=c",g=1 1
m,t=v f="a=b,c=d e=f" 1
m,t=v f="a" g="b" 1
m,t=v f="a"=1 1
m,t=v "f"=1 1
m,t=v "f g"=1 1
m,t="v" f=1 1
m,t="v w" f=1 1
m,t="a,b=c" f=1 1
"m",t=v f=1 1
"m n" f=1 1
,t=v f=1 1
 ,t=v f=1 1
=,t=v f=1 1
= f=1 1
f=1 1
f=1
1
"
""
\\
\\\\
,
,,
=
 =
m =
m =,
m ,
m ,=
m f=1,g=2,h=3i,i="x",j=t 1
m f=t,g=f,h=T,i=F 1
m,a=1,b=2,c=3,d=4,e=5,f=6,g=7,h=8 v=1 1
m,h=8,g=7,f=6,e=5,d=4,c=3,b=2,a=1 v=1 1
m,a=1,a=1 f=1 1
m,a=1,a=2 f=1 1
m,a=1,b=2,a=3 f=1 1
m,a=1,A=2 f=1 1
m,a=1 f=1,f=2 1
m,a=1 f=1,g=3,f=2 1
m,a=1 f=1,f=2i 1
m,a=1 f=1i,f="x" 1
m,a=1 f=1,F=2 1
m,a=1 A=2 1
m,a=1 a=2 1
m,a=1 a="x" 1
m,a=1 a=2,a_value=3 1
m,a=1,a_value=2 a=3 1
m,a=1 a=2,b=3 1
m f=1,time=2 1
m time=2 1
m time="x" 1
m time=2,f=1 1
m,time=1 f=1 1
m,time=1,a=2 f=1 1
m Time=2 1
m,TIME=x f=1 1
m f=1,_time=2 1
m _time=1 1
m time_=1 1
m date=1 1
m hour=2 1
m,date=x f=1 1
m,hour=x f=1 1
m,date=1 date=2 1
m Date=1 1
m date=1,date_value=2 1
m,_measurement=x f=1 1
m,_field=x f=1 1
m _field=1 1
m _measurement=1 1
_m f=1 1
_internal f=1 1
. f=1 1
.. f=1 1
... f=1 1
.m f=1 1
a.b f=1 1
a/b f=1 1
../x f=1 1
a%2Fb f=1 1
m.n,a.b=c.d e.f=1 1
time f=1 1
1 f=1 1
1m,2t=3v 4f=5 6
-m f=1 1
select f=1 1
m,select=from where="group by" 1
M f=1 1
m F=1 1
# comment
 # comment
#m f=1 1
m f=1 1 # comment
m f=1 1#
m f=1 # comment
m# f=1 1
m#x,#t=#v #f="#" 1
m,#t=v f=1 1
## f=1 1
""".strip("\n").split("\n")

# Several lines. `\r` and the like are written out.
BODIES = [
    "", "\n", "\n\n\n", " ", "  \n", "\t\n", "\r\n", "\r", "#", "#\n", "# a\n# b\n", "#\r\n",
    "m f=1 1\n", "m f=1 1\nm f=2 2", "m f=1 1\nm f=2 2\n", "m f=1 1\n\nm f=2 2\n", "\nm f=1 1", "\n\n m f=1 1\n\n", "m f=1 1\n \nm f=2 2\n", "m f=1 1\n\t\nm f=2 2\n",
    "m f=1 1\r\n", "m f=1 1\r\nm f=2 2\r\n", "m f=1i 1\r\nm f=2i 2", "m f=1\r\n", "m f=1i\r\n", "m f=t\r\n", "m f=\"a\"\r\n", "m f=\"a\" 1\r\n", "m f=1 1 \r\n", "m f=1 1\r\r\n", "m f=1 1\r", "m f=1 \r\n", "\r\nm f=1 1\r\n", "m f=1 1\r\n\r\nm f=2 2\r\n",
    "m f=1 1\rm f=2 2", "# c\r\nm f=1 1\r\n", "m,t=v\r\nm f=1 1\r\n", "m f=\"a\r\nb\" 1\r\n", "m,t=v\r f=1 1\n", "m\r f=1 1\n", "m f=1,\r\n",
    "# it's f=\"x\nm f=1 1", "# \"\nm f=1 1", "# a b=\"\nm f=1 1\n", "# a\\\nm f=1 1", "#\\\nm f=1 1\n", "m f=1 1\n# c\nm f=2 2", "m f=1 1\n  # c\nm f=2 2", "m f=1 1\n#\n", "# é\nm f=1 1",
    "bad\nm f=1 1", "m f=1 1\nbad", "m f=1 1\nbad\nm f=2 2", "bad\nworse\nm f=1 1\nworst\n", "bad\nbad\nbad\n", "m f=1 1\nm f=x 2\nm f=3 3\nm f= 4\nm f=5 5",
    "m f=1 1\nm f=1e400 2\nm f=2 3", "m f=1 1\nm,t= f=1 2\nm f=2 3", "m f=1 1\nm f=2 99999999999999999999\nm f=3 3", "m f=1 1\n,t=v f=2 2\nm f=3 3", "m f=1 1\nm f=NaN 2\nm f=3 3", "m f=1 1\nm\nm f=3 3", "m f=1 1\nm,t f=1\nm f=3 3", "m f=1 1\nm f=1 1.5\nm f=3 3",
    "m f=\"a\nb\" 1\nm f=\"c\" 2", "m f=\"a\nb\n\nc\" 1", "m f=\"\n\" 1\nm f=\"x\" 2", "m f=\"a\n# no comment\nb\" 1\nm f=\"x\" 2", "m f=\"m f=1 1\nm f=2 2\" 3", "m f=\"a\n\",g=1 1\nm f=\"b\" 2", "m g=1,f=\"a\nb\",h=t 1\nm f=\"c\" 2", "m,t=v f=\"a,b=c d\ne\" 1",
    "m f=\"a\nb\" x\nm f=\"c\" 2", "m f=\"a\nm f=\\\"q\\\" 5\nb\" x\nm f=\"c\" 2", "m f=x,g=\"a\nm f=\\\"q\\\" 5\nb\" 1\nm f=\"c\" 2", "m f=1,g=\"a\nm f=2 2\n\",=3 1\nm f=4 4",
    "m f=\"a 1\nm f=2 2\n", "m f=1 1\nm f=\"a 2\nm f=3 3\nm f=4 4\n", "m f=\"a 1\nm f=\"b\" 2\nm f=\"c\" 3\n", "m f=\"a 1", "m f=1 1\nm f=\"", "m f=\"a\\\" 1\nm f=2 2\n",
    "m,t=\"a\nm f=1 1", "\"m\nm f=1 1", "m \"f=1 1\nm f=2 2", "m f=a\" 1\nm f=2 2", "m f=1\" 1\nm f=2 2", "m,t=\" f=1 1\nm,t=v f=2 2",
    "a\\\nb f=1 1", "a f=1 1\\\nb f=2 2", "a,t=v\\\nb f=1 1", "a f\\\n=1 1", "a f=1\\\nb f=2 2", "\\\nb f=2 2", "a\\\n\nb f=2 2", "m f=\"a\\\nb\" 1",
    "m f=1 1\nm f=1 1", "m f=1 1\nm f=2 1", "m f=1 1\nm g=2 1", "m,t=a f=1 1\nm,t=b f=2 1", "m f=1 1000\nm f=2 1001", "m,a=1,b=2 f=1 1\nm,b=2,a=1 g=2 1",
    "m f=1 1\nn f=1i 1", "m f=1\nm f=2\nm f=3", "m,t=a f=1\nm,t=b f=2", "m f=1 1\nm,f=x g=1 2", "m,t=a f=1 1\nm t=\"x\" 2", "m,t=a f=1 1\nm t=2 2",
    "a f=1 1\nb f=2 2\nc f=3 3\na g=\"x\" 4\nb g=t 5", "m a=1 1\nm b=2i 2\nm c=\"x\" 3\nm d=t 4\nm,e=f a=5 5", "m,a=1 f=1 1\nm,b=2 f=2 2\nm,c=3 f=3 3\nm f=4 4",
    # Byte-order marks, and a measurement whose name begins like a comment.
    "\ufeffm f=1 1", "\ufeff\ufeffm f=1 1", "m f=1 1\n\ufeffm f=2 2\n", " \ufeff m f=1 1", "\ufeff# comment\nm f=1 1", "\ufeff", "\ufeff\nm f=1 1", "m f=1 1\n\ufeff", "m f=\"a\n\ufeffb\" 1",
    "\\#m f=1 1", "\\#m,t=v f=1 1\n\\#m,t=w f=2 2", "  \\#m f=1 1", "\ufeff\\#m f=1 1", "\\# f=1 1", "\\#\\ m\\,n f=1 1", "\\\\#m f=1 1", "#m f=1 1\n\\#m f=2 2", "m\\#n f=1 1", "m,\\#t=v f=1 1", "\\#",
    # Names with joiners and selectors where real names have them, and where they hide.
    "می\u200cخ f=1 1", "m 👩\u200d💻=1 1", "m ❤\ufe0f=1 1", "m 1\ufe0f\u20e3=1 1", "cpu\u200dx f=1 1", "m \u200cf=1 1", "m f\ufe0f=1 1", "m ❤\ufe0f\ufe0f=1 1", "m,t\\ =v f=1 1", "m\\  f=1 1", "m f\\ =1 1", "m,t=\u200b f=\"\u202e\" 1",
    # Unsigned integers that a column of floats may hold.
    "m f=1.5 1\nm f=9223372036854775808u 2", "m f=1.5 1\nm f=18446744073709551615u 2", "m f=9223372036854775808u 1\nm f=1.5 2", "m f=9223372036854775808u,f=1 1",
    # What stands in a string is no line, also when the line is bad.
    "m f=x,g=\"a\nm f=1 5\nb\" 1\nm f=2 2", "m,t= g=\"a\nm f=1 5\nb\" 1\nm f=2 2", ",t=v g=\"a\nm f=1 5\nb\" 1\nm f=2 2", "m,t g=\"a\nm f=1 5\nb\" 1\nm f=2 2", "m g=\"a\nm f=1 5\nb\" 1 1\nm f=2 2", "m g=\"a\nm f=1 5\nb\" 1e3\nm f=2 2", "m f=1.2.3,g=\"a\nm f=1 5\n\",h=\"\nm f=1 6\n\" 1\nm f=2 2",
    "m time=1,g=\"a\nm f=1 5\nb\" 1\nm f=2 2", "m,a=1,a=2 g=\"a\nm f=1 5\nb\" 1\nm f=2 2", "m f=x,g=\"a\nm f=1 5\nb 1\nm f=2 2", "m g=\"a\nm f=1 5\nb\"x 1\nm f=2 2", "m f=x,g=\"\\\"\nm f=1 5\n\" 1\nm f=2 2", "m,t=\\ g=\"a\nm f=1 5\nb\" 1\nm f=2 2",
]
CONFLICTS = [
    "m f=1 1\nm f=1i 2", "m f=1i 1\nm f=1 2", "m f=1i 1\nm f=1.5 2\nm f=3i 3", "m f=9007199254740993i 1\nm f=1.5 2", "m f=1.5 1\nm f=9007199254740993i 2", "m f=1 1\nm f=\"x\" 2", "m f=\"x\" 1\nm f=1 2", "m f=t 1\nm f=1 2", "m f=1i 1\nm f=t 2\nm f=2i 3", "m f=\"x\" 1\nm f=t 2\nm f=\"y\" 3", "m f=1,g=t 1\nm f=t,g=t 2\nm f=2,g=f 3", "m f=bad 1\nm f=1 2", "m f=t,g= 1\nm f=1 2",
    "m f=t,g=1 1\nm f=1 2\nm g=2 3", "m,t=a f=1 1\nm,t=b f=\"x\" 2\nn f=\"x\" 3",
]

# Bytes that are no UTF-8.
INVALID = [b"\xff", b"\xfe", b"\x80", b"\xbf", b"\xc0\x80", b"\xc1\xbf", b"\xc2", b"\xe2\x82", b"\xe0\x80\x80", b"\xed\xa0\x80", b"\xed\xbf\xbf", b"\xf0\x9f\x98", b"\xf0\x80\x80\x80", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80", b"\xc3\x28"]

LONG = [
    ("measurement", "{} f=1 1", [127, 128, 129, 200, 201, 1000]), ("measurement-escaped", "{}\\ f f=1 1", [126, 127]), ("tag-key", "m,{}=v f=1 1", [255, 256, 257, 1000]), ("tag-value", "m,t={} f=1 1", [255, 257, 5000]),
    ("field-key", "m {}=1 1", [255, 256, 257, 1000]), ("string", 'm f="{}" 1', [255, 5000]), ("digits", "m f=1{} 1", [1000]),
]

MUTATED = [
    'cpu,host=a,region=eu-west usage=1.5,count=3i,up=t,note="ok" 1700000000000000000', "m,t=v f=1 1", 'm f="a b",g=2i 17', "weather\\ x,loc\\,a=b\\=c tem\\ p=82.5 1465839830100400200", 'm,a=1,b=2 s="x\\"y\\\\z",b=false -5', "m f=1", "m f=1i,g=-2i,h=0.5e-3 9", "a.b-c_d,é=ü ñ=t 3",
    'log,lvl=info msg="line one\nline two, with=signs" 12', "m,t=a f=1 1\nm,t=b f=2 2\nm,t=c f=3 3", '# c\nm,k=v s="",n=1 4 ', "disk,path=/,fs=ext4 free=100i,used=7i,pct=6.54 1465839830100400200",
]
INSERTED = list(' ,="\\\n\t#-.+0123456789abeEiutTfFnN') + ["\r\n", "é", "\\\\", '\\"', "\\,", "\\ ", "\\=", "  ", ",,", "==", '""', "\\\n"]


def _random_valid(rng):
    """One valid line with everything that needs an escape escaped, and the spellings varied."""
    letters = ["a", "b", "Z", "é", "日", "😀", "-", "_", ".", "/", "0", "7", "#", "'", ":", "\\x"]

    def text(extra, n=8, start=None):
        parts = [rng.choice(letters + extra) for _ in range(rng.randint(1, n))]
        # An element must not end with a backslash, and "\x" never does.
        return (start or "") + "".join(parts)

    measurement = text(["\\,", "\\ ", "="], start=rng.choice(["m", "w", "é"]))
    tags = {text(["\\,", "\\ ", "\\="], start=f"t{i}"): text(["\\,", "\\ ", "\\=", '"']) for i in range(rng.randint(0, 4))}
    fields = {}
    for i in range(rng.randint(1, 5)):
        kind = rng.randrange(5)
        if kind == 0:
            value = f"{rng.randint(-(1 << 63), (1 << 63) - 1) >> rng.randint(0, 62)}i"
        elif kind == 1:
            value = repr(rng.choice([rng.uniform(-1e6, 1e6), rng.random() * 10 ** rng.randint(-300, 300), rng.randint(-1000, 1000) / 4, float(rng.randint(-99, 99))]))
        elif kind == 2:
            value = rng.choice(["t", "T", "true", "True", "TRUE", "f", "F", "false", "False", "FALSE"])
        elif kind == 3:
            value = str(rng.randint(-10000, 10000))
        else:
            value = '"' + text([",", " ", "=", "\n", '\\"', "\\\\", "\t", "\\n"], 12) + '"'
        fields[text(["\\,", "\\ ", "\\="], start=f"f{i}")] = value
    line = measurement + "".join(f",{k}={v}" for k, v in tags.items()) + " " * rng.choice([1, 1, 1, 2]) + ",".join(f"{k}={v}" for k, v in fields.items())
    if rng.random() < 0.9:
        line += " " * rng.choice([1, 1, 1, 3]) + str(rng.choice([rng.randint(-(10**18), 2 * 10**18), rng.randint(-5000, 5000), 1700000000000000000 + rng.randint(0, 10**9)]))
    return line + rng.choice(["", "", "\n", " ", "\n\n"])


def _mutate(rng, line):
    for _ in range(rng.choice([1, 1, 1, 2])):
        at = rng.randint(0, len(line))
        action = rng.randrange(4)
        if action == 0:
            line = line[:at] + rng.choice(INSERTED) + line[at:]
        elif action == 1:
            line = line[:at] + line[at + 1 :]
        elif action == 2:
            line = line[:at] + rng.choice(INSERTED) + line[at + 1 :]
        elif at + 1 < len(line):
            line = line[:at] + line[at + 1] + line[at] + line[at + 2 :]
    return line


def cases():
    out, seen, count = [], set(), {}

    def add(group, body, precision=""):
        body = body.encode() if isinstance(body, str) else body
        if (body, precision) in seen:
            return
        seen.add((body, precision))
        count[group] = count.get(group, 0) + 1
        out.append(Case(f"{group}-{count[group]:03}", body, precision))

    def at_its_own_time(line):
        """So that cases can share a batch without being one point."""
        return line[:-1] + str(1000 + len(out)) if line.endswith(" 1") else line

    for line in STRUCTURE:
        add("structure", at_its_own_time(line.replace("\\\\", "\\") if set(line) <= {"\\"} else line))
    for group, shape in ELEMENTS.items():
        for s in SPECIAL:
            for place in ("{}ab", "a{}b", "ab{}", "{}"):
                if group in ("measurement-with-tag", "tag-value-first", "field-key-second", "string-second") and place != "ab{}":
                    continue
                if group == "unquoted" and place != "{}":
                    continue
                add(group, at_its_own_time(shape).format(place.format(s)))
    for n in NUMBERS:
        for suffix in SUFFIXES if len(n) < 40 else SUFFIXES[:3]:
            if suffix not in ("", "i", "u") and n not in ("0", "1", "-1", "1.0", "9223372036854775807", "-9223372036854775808", "1e3", "NaN"):
                continue
            add("number", at_its_own_time(f"m f={n}{suffix} 1"))
    for n in ("9223372036854775808i", "1e400", "1.", "t", "1u", "-"):
        add("number", at_its_own_time(f"m f={n},g=1 1"))
        add("number", f"m g=1,f={n}")
    for b in BOOLEANS:
        add("boolean", at_its_own_time(f"m f={b} 1"))
        add("boolean", at_its_own_time(f"m f={b},g=1 1"))
        add("boolean", f"m g=1,f={b}")
    for t in TIMES:
        add("time", f"m f=1 {t}")
        add("time", f"m f=1 1\nm f=2 {t}\nm f=3 3")
    for p in PRECISIONS:
        for t in PLAIN_TIMES:
            add("precision", f"m f=1 {t}", p)
    for body in BODIES:
        add("lines", body)
    for body in CONFLICTS:
        add("conflict", body)
    for bad in INVALID:
        for shape in (b"m%s f=1 1", b"m,t%s=v f=1 1", b"m,t=v%s f=1 1", b"m f%s=1 1", b'm f="a%sb" 1', b"m f=1%s 1", b"# %s\nm f=1 1", b'm g="a" 1\nm f="%s" 2\nm g="b" 3'):
            add("utf8", shape % bad)
    for name, shape, sizes in LONG:
        for n in sizes:
            add("long", shape.format("a" * n))
            if name not in ("digits",):
                add("long", shape.format("é" * (n // 2)))
    add("long", "m " + ",".join(f"f{i}={i}i" for i in range(300)) + " 1")
    add("long", "m," + ",".join(f"t{i}=v{i}" for i in range(300)) + " f=1 1")
    rng = random.Random(20261126)
    for _ in range(250):
        add("valid", _random_valid(rng))
    for i in range(700):
        add("mutated", _mutate(rng, MUTATED[i % len(MUTATED)]))
    return out


if __name__ == "__main__":
    found = {}
    for c in cases():
        group = c.id.rsplit("-", 1)[0]
        found[group] = found.get(group, 0) + 1
    print(sum(found.values()), found)

"""Lines that other programs leave in transcripts, and what each of them is.

By JavaScript (`JSON.stringify` of texts that were cut), Python (`json.dumps`, with `ensure_ascii=False` too), Go
(`encoding/json`), PowerShell (`Out-File`, `Add-Content`), editors, and crashes.
"""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

BLANK, BROKEN = "blank", "broken"
BOM = b"\xef\xbb\xbf"


class Foreign(NamedTuple):
    """A line, without its newline, and the record that it is, or `BLANK`, or `BROKEN`."""

    name: str
    line: bytes
    what: Any


def nested(depth: int) -> Any:
    """A record of so many objects and arrays inside each other, its own included."""
    value: Any = 0
    for level in range(depth - 1):
        value = [value] if level % 2 else {"v": value}
    return {"v": value}


def deep_line(depth: int) -> bytes:
    """Its line, written without recursion."""
    opening, closing = [b'{"v":'], [b"}"]
    for level in reversed(range(depth - 1)):
        opening.append(b"[" if level % 2 else b'{"v":')
        closing.append(b"]" if level % 2 else b"}")
    return b"".join(opening) + b"0" + b"".join(reversed(closing))


LINES = [
    Foreign("JavaScript", b'{"role":"user","content":"hi"}', {"role": "user", "content": "hi"}),
    Foreign("JavaScript cut a pair", b'{"c":"sunny \\ud83d..."}', {"c": "sunny \ufffd..."}),
    Foreign("JavaScript cut a pair, lower half", b'{"c":"\\uDE00!"}', {"c": "\ufffd!"}),
    Foreign("JavaScript cut a pair at the end", b'{"c":"\\ud83d"}', {"c": "\ufffd"}),
    Foreign("halves in the wrong order", b'{"c":"\\ude00\\ud83d"}', {"c": "\ufffd\ufffd"}),
    Foreign("a half before a pair", b'{"c":"\\ud83d\\ud83d\\ude00"}', {"c": "\ufffd\U0001f600"}),
    Foreign("a pair as escapes", b'{"c":"\\uD83D\\uDE00"}', {"c": "\U0001f600"}),
    Foreign("a half in a key", b'{"\\ud83d":1}', {"\ufffd": 1}),
    Foreign("halves in two keys", b'{"\\ud83d":1,"\\ud83e":2}', {"\ufffd": 2}),
    Foreign("an escaped backslash before u", b'{"c":"\\\\ud83d"}', {"c": "\\ud83d"}),
    Foreign("a half as bytes", b'{"c":"\xed\xa0\xbd..."}', {"c": "\ufffd..."}),
    Foreign("a pair as bytes of each half", b'{"c":"\xed\xa0\xbd\xed\xb8\x80"}', {"c": "\U0001f600"}),
    Foreign("Python, NaN", b'{"n": NaN}', {"n": math.nan}),
    Foreign("Python, infinities", b'{"n": [Infinity, -Infinity]}', {"n": [math.inf, -math.inf]}),
    Foreign("a float that is too large", b'{"n":1e999,"m":-1E+999}', {"n": math.inf, "m": -math.inf}),
    Foreign("many digits in a float", b'{"n":' + b"1" * 400 + b".5}", {"n": math.inf}),
    Foreign("a float that is too small", b'{"n":1e-999}', {"n": 0.0}),
    Foreign("minus nought", b'{"n":-0,"m":-0.0}', {"n": 0, "m": -0.0}),
    Foreign("Python, an integer of 65 bits", b'{"n": 18446744073709551616}', {"n": 1 << 64}),
    Foreign("below 64 bits", b'{"n":-9223372036854775809}', {"n": -(1 << 63) - 1}),
    Foreign("an integer of 4300 digits", b'{"n":-' + b"7" * 4300 + b"}", {"n": -int("7" * 4300)}),
    Foreign(
        "the same beside a half", b'{"c":"\\ud83d","n":' + b"7" * 4300 + b"}", {"c": "\ufffd", "n": int("7" * 4300)}
    ),
    Foreign("an integer of 4301 digits", b'{"n":' + b"7" * 4301 + b"}", BROKEN),
    Foreign("the same, negative", b'{"n":-' + b"7" * 4301 + b"}", BROKEN),
    Foreign("keys that stand twice", b'{"a":1,"b":2,"a":{"c":3}}', {"a": {"c": 3}, "b": 2}),
    Foreign("a key that stands twice by an escape", b'{"\\u0061":1,"a":2}', {"a": 2}),
    Foreign("an empty object", b"{}", {}),
    Foreign("Go escapes", b'{"c":"\\u003cb\\u003e \\u2028 \\/"}', {"c": "<b> \u2028 /"}),
    Foreign("separators in a text", '{"c":"a\u2028b\u2029c\x85d\x7f"}'.encode(), {"c": "a\u2028b\u2029c\x85d\x7f"}),
    Foreign("PowerShell, CRLF", b'{"n":1}\r', {"n": 1}),
    Foreign("PowerShell, byte order mark", BOM + b'{"n":1}\r', {"n": 1}),
    Foreign("the mark and a half", BOM + b'{"c":"\\ud83d"}', {"c": "\ufffd"}),
    Foreign("blanks inside and around", b' \t{ "n" :\r[ 1 , 2 ] }\t', {"n": [1, 2]}),
    Foreign("a NUL as an escape", b'{"c":"\\u0000"}', {"c": "\0"}),
    Foreign("700 deep", deep_line(700), nested(700)),
    Foreign("1000 deep", deep_line(1000), nested(1000)),
    Foreign("1000 deep, with a half", b'{"c":"\\ud83d",' + deep_line(1000)[1:], {"c": "\ufffd", **nested(1000)}),
    Foreign("1001 deep", deep_line(1001), BROKEN),
    Foreign("1001 deep, with a half", b'{"c":"\\ud83d",' + deep_line(1001)[1:], BROKEN),
    Foreign("2000 deep", deep_line(2000), BROKEN),
    Foreign("100000 deep", deep_line(100_000), BROKEN),
    Foreign("100000 opened", b"[" * 100_000, BROKEN),
    Foreign("many side by side", b'{"v":[' + b"[]," * 5000 + b"{}]}", {"v": [[] for _ in range(5000)] + [{}]}),
    Foreign("brackets in a text", b'{"v":["' + b"[{" * 5000 + b'"]}', {"v": ["[{" * 5000]}),
    Foreign("nothing", b"", BLANK),
    Foreign("blanks", b" \t ", BLANK),
    Foreign("PowerShell, an empty line", b"\r", BLANK),
    Foreign("the mark alone", BOM, BLANK),
    Foreign("the mark and an empty line", BOM + b"\r", BLANK),
    Foreign("a form feed", b"\x0c", BROKEN),
    Foreign("a no-break space", b"\xc2\xa0", BROKEN),
    Foreign("the mark twice", BOM + BOM + b"{}", BROKEN),
    Foreign("the mark amid a line", b"{}" + BOM, BROKEN),
    Foreign("an array", b"[1,2]", BROKEN),
    Foreign("a number", b"7", BROKEN),
    Foreign("a text", b'"\\ud83d"', BROKEN),
    Foreign("null", b"null", BROKEN),
    Foreign("NaN alone", b"NaN", BROKEN),
    Foreign("two objects", b'{"n":1}{"n":2}', BROKEN),
    Foreign("two objects and a blank", b'{"n":1} {"n":2}', BROKEN),
    Foreign("Mac line ends", b'{"n":1}\r{"n":2}', BROKEN),
    Foreign("a comma behind the object", b'{"n":1},', BROKEN),
    Foreign("a comma behind a value", b'{"n":1,}', BROKEN),
    Foreign("a comma behind an element", b'{"n":[1,]}', BROKEN),
    Foreign("no comma", b'{"n":1 "m":2}', BROKEN),
    Foreign("no colon", b'{"n" 1}', BROKEN),
    Foreign("no value", b'{"n":}', BROKEN),
    Foreign("the wrong bracket", b'{"n":[1}', BROKEN),
    Foreign("half an object", b'{"n":"half', BROKEN),
    Foreign("half an escape", b'{"n":"\\ud8', BROKEN),
    Foreign("Python's repr", b"{'n': None, 'm': True}", BROKEN),
    Foreign("single words", b'{"n":undefined}', BROKEN),
    Foreign("words in another case", b'{"n":nan,"m":True}', BROKEN),
    Foreign("minus NaN", b'{"n":-NaN}', BROKEN),
    Foreign("a number with a plus", b'{"n":+1}', BROKEN),
    Foreign("a number with noughts before it", b'{"n":007}', BROKEN),
    Foreign("a number without digits behind its point", b'{"n":1.}', BROKEN),
    Foreign("digits of another script", '{"n":١}'.encode(), BROKEN),
    Foreign("hexadecimal", b'{"n":0x1f}', BROKEN),
    Foreign("an escape that is none", b'{"c":"\\x41"}', BROKEN),
    Foreign("a tabulator in a text", b'{"c":"a\tb"}', BROKEN),
    Foreign("a return in a text", b'{"c":"a\rb"}', BROKEN),
    Foreign("a NUL in a text", b'{"c":"\0"}', BROKEN),
    Foreign("NULs", b"\0" * 300, BROKEN),
    Foreign("NULs before an object", b"\0\0\0" + b'{"n":1}', BROKEN),
    Foreign("NULs behind an object", b'{"n":1}\0\0', BROKEN),
    Foreign("PowerShell, ANSI", b'{"c":"zw\xf6lf"}', BROKEN),
    Foreign("overlong UTF-8", b'{"c":"\xc0\x80"}', BROKEN),
    Foreign("beyond Unicode", b'{"c":"\xf4\x90\x80\x80"}', BROKEN),
    Foreign("PowerShell, UTF-16", '{"n":1}'.encode("utf-16-le"), BROKEN),
    Foreign("UTF-16 with its mark", '{"n":1}'.encode("utf-16"), BROKEN),
    Foreign("UTF-16 of the other order", '{"n":1}'.encode("utf-16-be"), BROKEN),
    Foreign("a comment", b'// {"n":1}', BROKEN),
    Foreign("a log line", b"2026-01-01 12:00:00 INFO started", BROKEN),
    Foreign("an event stream", b'data: {"n":1}', BROKEN),
]


def plainly(line: bytes) -> Any:
    """What a line is, by Python's `json`: the record, `BLANK` or `BROKEN`. For lines that are not too deep for it."""
    line = line.removeprefix(BOM)
    if not line.strip(b" \t\r"):
        return BLANK
    try:
        value = json.loads(line.decode("utf-8", "surrogatepass"))
    except ValueError:
        return BROKEN
    return mended(value) if isinstance(value, dict) else BROKEN


def mended(value: Any) -> Any:
    """The value with U+FFFD for halves of surrogate pairs, and characters for pairs that bytes have made."""
    if isinstance(value, str):
        whole = value.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")
        return "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in whole)
    if isinstance(value, dict):
        return {mended(key): mended(one) for key, one in value.items()}
    return [mended(one) for one in value] if isinstance(value, list) else value


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types, NaN and minus nought included, however deep they are."""
    waiting = [(one, other)]
    while waiting:
        a, b = waiting.pop()
        if type(a) is not type(b):
            return False
        if isinstance(a, dict):
            if list(a) != list(b):
                return False
            waiting += zip(a.values(), b.values(), strict=True)
        elif isinstance(a, list):
            if len(a) != len(b):
                return False
            waiting += zip(a, b, strict=True)
        elif isinstance(a, float):
            if repr(a) != repr(b):
                return False
        elif a != b:
            return False
    return True

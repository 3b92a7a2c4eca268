"""What is appended comes back equal, or is refused with its place; what nobody has read outlives a compaction."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import math
import uuid
from collections import OrderedDict, namedtuple
from typing import Any

import msgspec
import pytest
from anyio import to_thread

from lanes import SessionLayout
from locks import LockRegistry, Position, TranscriptError
from locks.engines.interface import Right
from locks.transcript import reading, replacing
from locks.transcript.encoding import encode
from locks.transcript.reading import read
from runtime import Supervisor

pytestmark = pytest.mark.backends("asyncio", "trio")  # files and values: what uvloop does otherwise has no part in it


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


class Struct(msgspec.Struct):
    """One of msgspec's."""

    n: Any = 1


@dataclasses.dataclass
class Data:
    """One of Python's."""

    n: Any = 1


class Odd(enum.Enum):
    """Whose value JSON lacks."""

    NAN = math.nan


class Word(enum.StrEnum):
    """A text with a name."""

    A = "a"


class Number(enum.IntEnum):
    """An integer with a name."""

    ONE = 1


Pair = namedtuple("Pair", "a b")
NAN, INF = math.nan, math.inf

LOST: list[tuple[dict[Any, Any], str]] = [
    ({"n": NAN}, "$.n: JSON has no nan"),
    ({"n": INF}, "$.n: JSON has no inf"),
    ({"n": -INF}, "$.n: JSON has no -inf"),
    ({"a": [1, {"b": 2}, {"n": NAN}]}, "$.a[2].n: JSON has no nan"),
    ({"a": None, "b": [None, [[1.5, NAN]]]}, "$.b[1][0][1]: JSON has no nan"),
    ({"a": (1, NAN)}, "$.a[1]: JSON has no nan"),
    ({"odd key": NAN}, "$['odd key']: JSON has no nan"),
    ({"s": Struct(NAN)}, "$.s.n: JSON has no nan"),
    ({"d": [Data({"x": INF})]}, "$.d[0].n.x: JSON has no inf"),
    ({"e": Odd.NAN}, "$.e: JSON has no nan"),
    ({1: 2}, "$: the key 1 is no text"),
    ({"a": {1: 2}}, "$.a: the key 1 is no text"),
    ({"a": [{"1": 1, 1: 2}]}, "$.a[0]: the key 1 is no text"),
    ({"a": {None: 1}}, "$.a: the key None is no text"),
    ({"a": {1.5: 1}}, "$.a: the key 1.5 is no text"),
    ({"a": {NAN: 1}}, "$.a: the key nan is no text"),
    ({"a": {Number.ONE: 1}}, "$.a: the key <Number.ONE: 1> is no text"),
    ({"a": {(1, 2): 3}}, "$.a: the key (1, 2) is no text"),
    ({"a": "x\ud83d"}, "$.a: half of a surrogate pair at 1"),
    ({"a": {"\ud83d": 1}}, "$.a: the key '\\ud83d': half of a surrogate pair at 0"),
    ({"a": {1, 2}}, "$.a: JSON has no set"),
    ({"a": frozenset()}, "$.a: JSON has no frozenset"),
    ({"a": b"x"}, "$.a: JSON has no bytes"),
    ({"a": [bytearray(b"x")]}, "$.a[0]: JSON has no bytearray"),
    ({"a": memoryview(b"x")}, "$.a: JSON has no memoryview"),
    ({"a": msgspec.Raw(b"1\n{}")}, "$.a: JSON has no Raw"),
    ({"b": msgspec.Raw(b"1")}, "$.b: JSON has no Raw"),
    ({"a": object()}, "$.a: Encoding objects of type object is unsupported"),
    ({"a": {"b": 1j}}, "$.a.b: Encoding objects of type complex is unsupported"),
    ({"a": 10**4300}, "$.a: an integer of more than 4300 digits"),
    ({"a": [0, -(10**4300)]}, "$.a[1]: an integer of more than 4300 digits"),
]
STAMP = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
KEPT: list[tuple[dict[str, Any], Any]] = [
    ({}, {}),
    ({"a": None, "b": True, "c": 1.5, "d": -0.0, "e": "\u2028\U0001f600\0", "f": [], "g": {}}, ...),
    ({"a": None, "n": 0.1}, ...),
    ({"a": 1 << 64, "b": -(1 << 63) - 1, "c": 10**4299}, ...),
    ({"a": 5e-324, "b": 1.7976931348623157e308}, ...),
    ({"a": (1, (2, None))}, {"a": [1, [2, None]]}),
    ({"a": Pair(1, 2)}, {"a": [1, 2]}),
    ({"a": OrderedDict(b=1)}, {"a": {"b": 1}}),
    ({"a": Word.A, "b": Number.ONE, Word.A.name: {Word.A: 1}}, {"a": "a", "b": 1, "A": {"a": 1}}),
    ({"a": Struct(2), "b": [Data({"x": None})]}, {"a": {"n": 2}, "b": [{"n": {"x": None}}]}),
    (
        {"a": STAMP, "b": STAMP.date(), "c": datetime.time(1)},
        {"a": "2026-01-02T03:04:05Z", "b": "2026-01-02", "c": "01:00:00"},
    ),
    ({"a": uuid.UUID(int=1), "b": decimal.Decimal("1.50")}, {"a": str(uuid.UUID(int=1)), "b": "1.50"}),
]


def layout_of(root, header):
    """One with such a header, the same for all its sessions; `None` for none."""
    return SessionLayout(root, path=lambda key: f"{key}.jsonl", header=None if header is None else lambda key: header)


# Appending


@pytest.mark.failure("Z7")
@pytest.mark.parametrize("record, place", LOST, ids=lambda value: value if isinstance(value, str) else "")
async def test_what_would_not_come_back_equal_is_refused_by_every_writer_with_its_place(path, record, place):
    registry = LockRegistry()
    await registry.append(path, {"n": 1})
    before = path.read_bytes()
    refused = pytest.raises(TranscriptError)

    def is_said(caught):
        return str(caught.value).startswith(f"record cannot be written as JSON: {place}")

    with refused as caught:
        await registry.append(path, record)
    assert is_said(caught)
    async with registry.lease(path) as lease:
        await lease.read()
        with refused as caught:
            await lease.append(record)
        assert is_said(caught)
        with refused as caught:
            await lease.append_many([{"n": 2}, record])
        assert is_said(caught)
        with refused as caught:
            await to_thread.run_sync(lease.append_sync, record)
        assert is_said(caught)
        with refused as caught:
            await lease.replace([record])
        assert is_said(caught)
    async with registry.turn(path) as turn:
        with refused as caught:
            await turn.append(record)
        assert is_said(caught)
    assert path.read_bytes() == before


@pytest.mark.failure("Z7")
@pytest.mark.parametrize("record, back", KEPT)
async def test_what_json_can_say_comes_back_equal(path, record, back):
    registry = LockRegistry()
    await registry.append(path, record)
    found = await registry.read(path, on_error="raise")
    assert list(found) == [record if back is ... else back]
    async with registry.lease(path) as lease:
        await lease.replace(found, through=found.position)
    assert await registry.read(path, on_error="raise") == found
    assert path.read_bytes().count(b"\n") == 1


@pytest.mark.failure("Z7")
async def test_a_run_and_a_header_are_refused_the_same(virtual, tmp_path):
    async def body(ctx):
        with pytest.raises(TranscriptError, match=r"\$\.a\[0\]: JSON has no nan"):
            await ctx.session.append({"a": [NAN]})
        with pytest.raises(TranscriptError, match=r"\$\.a: JSON has no inf"):
            await to_thread.run_sync(ctx.session.append_sync, {"a": INF})
        return list(await ctx.session.read())

    async with Supervisor(tmp_path) as sup:
        assert await sup.run("session:a", body) == []
    for header, said in (({"n": NAN}, "has no nan"), ({"lanes.session": "x" * 70_000}, "allowed: 65536")):
        layout = layout_of(tmp_path, header)
        async with Supervisor(layout) as sup:
            outcome = await sup.submit("session:a", body).wait()
        assert said in outcome.reason
    assert not (tmp_path / "a.jsonl").exists() or (tmp_path / "a.jsonl").read_bytes() == b""


@pytest.mark.failure("Z7", "Z4")
async def test_a_first_record_that_would_be_read_as_a_header_is_refused(path):
    registry, record = LockRegistry(), {"n": 1, "lanes.session": "a"}
    with pytest.raises(TranscriptError, match="would be read as the header"):
        await registry.append(path, record)
    async with registry.lease(path) as lease:
        end = await lease.append_many([{"text": "lanes.session"}, record])
        with pytest.raises(TranscriptError, match="would be read as the header"):
            await lease.replace([record, record], through=end)
        assert await lease.read() == [{"text": "lanes.session"}, record]
        await lease.replace([{"n": 0}, record])
    assert await registry.read(path) == [{"n": 0}, record]


# What was not read


UNREAD = b'{"role":"tool","content":"half\n'


@pytest.mark.failure("Z3")
@pytest.mark.parametrize("position", ["read", "last", "stream", "append", "none"])
@pytest.mark.parametrize("right", list(Right))
async def test_lines_that_nobody_could_read_are_kept_whatever_the_position_came_from(path, position, right):
    registry = LockRegistry()
    path.write_bytes(b'{"n":1}\n' + UNREAD + b'\n\r\n{"n":2}\n[3]\n')
    async with registry.new_lease(path, right, None) as lease:
        through: Position | None = None
        if position == "append":
            through = await lease.append({"n": 3})
        elif position == "stream":
            async for batch in registry.stream(path):
                through = batch.position
        else:
            through = (await lease.read(last=1 if position == "last" else None)).position
        if position != "none":
            await registry.append(path, {"n": 4}) if right is Right.TURN else await lease.append({"n": 4})
        for summary in (1, 2):
            through = await lease.replace([{"summary": summary}], through=None if position == "none" else through)
            later = b"" if position == "none" else b'{"n":4}\n'
            if summary == 1:
                assert path.read_bytes() == b'{"summary":1}\n' + UNREAD + b"[3]\n" + later
    assert path.read_bytes() == b'{"summary":2}\n' + UNREAD + b"[3]\n"
    found = read(str(path))
    assert found == [{"summary": 2}] and len(found.skipped) == 2
    assert not path.with_name("session.jsonl.torn").exists()


@pytest.mark.failure("Z3")
async def test_a_file_that_becomes_shorter_while_it_is_compacted_stands(path, monkeypatch):
    registry, real = LockRegistry(), reading.broken_lines
    path.write_bytes(b'{"n":1}\n' + UNREAD + b'{"n":2}\n')

    def cut(name, fd, *place):
        with path.open("r+b") as file:
            file.truncate(8)
        return real(name, fd, *place)

    monkeypatch.setattr(replacing, "broken_lines", cut)
    async with registry.lease(path) as lease:
        found = await lease.read()
        with pytest.raises(TranscriptError, match="became shorter"):
            await lease.replace([{"summary": 1}], through=found.position)
    assert path.read_bytes() == b'{"n":1}\n'


@pytest.mark.failure("Z7", "Z1")
async def test_a_nan_of_another_program_is_read_and_kept_but_not_written_by_us(path):
    registry = LockRegistry()
    path.write_bytes(b'{"n":1}\n')
    first = await registry.read(path)
    with path.open("ab") as file:
        file.write(b'{"n": NaN, "c":"\\ud83d"}\n')
    async with registry.lease(path) as lease:
        found = await lease.read()
        with pytest.raises(TranscriptError, match=r"\$\.n: JSON has no nan"):
            await lease.replace(found)
        await lease.replace([{"summary": 1}], through=first.position)
    assert path.read_bytes() == b'{"summary":1}\n{"n": NaN, "c":"\\ud83d"}\n'


# First lines


FOREIGN = b'{"type":"session","id":"42","cwd":"/x"}\n'
HEADERS: list[tuple[str, bytes, dict[str, Any] | None, bool, bool]] = [
    # the first line; what the layout's header is; whether it is read as a record; whether it stays the first
    ("foreign, no header", FOREIGN, None, True, True),
    ("foreign, ours has other fields", FOREIGN, {"type": "session", "id": "a", "mine": 1}, True, True),
    ("foreign, of our fields", FOREIGN, {"type": "session", "id": "a"}, False, True),
    ("foreign, of another type", b'{"kind":"head","v":1}\n', {"kind": "head", "v": 2}, False, True),
    ("foreign, one value like ours", b'{"kind":"head","w":1}\n', {"kind": "head", "v": 2}, True, True),
    ("ours", b'{"kind":"head","v":2}\n', {"kind": "head", "v": 2}, False, True),
    ("an empty one of ours", b"{}\n", {}, False, True),
    ("one that names the session", b'{"lanes.session":"b","x":1}\n', {"kind": "head"}, False, True),
    ("a record", b'{"kind":"message","v":1}\n', {"kind": "head", "v": 2}, True, False),
    ("a record, no header", b'{"kind":"message","v":1}\n', None, True, False),
    ("broken", b"#!jsonl 1.0\n", None, False, True),
    ("broken, ours another", b'["session", 42]\n', {"kind": "head"}, False, True),
    ("blank", b"\r\n", {"kind": "head"}, False, False),
]


@pytest.mark.failure("Z4")
@pytest.mark.parametrize("case", HEADERS, ids=lambda case: case[0])
async def test_a_first_line_of_others_is_never_lost_nor_is_ours_put_in_its_place(virtual, tmp_path, case):
    _, first, header, is_read, stays = case
    path = tmp_path / "a.jsonl"
    path.write_bytes(first + b'{"n":1}\n{"n":2}\n')
    records = [msgspec.json.decode(first)] if is_read else []

    async def body(ctx):
        found = await ctx.session.read()
        assert found == [*records, {"n": 1}, {"n": 2}] == await ctx.session.read(last=9)
        async with ctx.session.lease() as lease:
            assert await lease.read() == found
            await lease.replace([{"sum": 1}], through=found.position)
            assert path.read_bytes() == (first if stays else b"") + b'{"sum":1}\n'
            end = await lease.append({"n": 3})
            await lease.replace([*(records if stays else []), {"sum": 2}], through=end)
            await lease.append({"n": 4})
        return list(await ctx.session.read())

    layout = layout_of(tmp_path, header)
    async with Supervisor(layout) as sup:
        left = await sup.submit("cron", body, session="a").result()
    assert path.read_bytes() == (first if stays else b"") + b'{"sum":2}\n{"n":4}\n'
    assert left == [*(records if stays else []), {"sum": 2}, {"n": 4}]


@pytest.mark.failure("Z4")
async def test_a_new_file_gets_the_layouts_header_which_is_no_record(virtual, tmp_path):
    async def body(ctx):
        await ctx.session.append({"n": 1})
        async with ctx.session.lease() as lease:
            await lease.read()
            await lease.replace([{"n": 2}])
        return list(await ctx.session.read()), list(await ctx.session.read(last=9))

    layout = SessionLayout(tmp_path, path=lambda key: f"{key}.jsonl", header=lambda key: {"type": "session", "id": key})
    async with Supervisor(layout) as sup:
        assert await sup.run("session:a", body) == ([{"n": 2}], [{"n": 2}])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"type":"session","id":"a"}\n{"n":2}\n'


def test_a_record_of_ours_is_written_as_before():
    assert encode({"a": [1, None, "é"], "b": {"c": 1.5}}, "x") == '{"a":[1,null,"é"],"b":{"c":1.5}}\n'.encode()

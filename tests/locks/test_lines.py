"""What counts as a record: the same for all that looks at lines, whoever wrote them, and whatever the stack is like."""

from __future__ import annotations

import ast
import json
import os
import re
import sys
import threading
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lanes import SessionLayout
from lanes.spec_table import SpecTable
from locks import BrokenLine, LockRegistry, TranscriptError, _os
from locks.doctor.inspection import inspect
from locks.doctor.mending import mend
from locks.transcript import lines, prefix, reading, tolerant
from runtime.trial import traffic
from runtime.usage_error import UsageError
from tests import ROOT
from tests.foreign_lines import BLANK, BOM, BROKEN, LINES, deep_line, nested, plainly, same

FIRST, LAST = b'{"at":"first"}\n', b'{"at":"last"}\n'
each = pytest.mark.parametrize("foreign", LINES, ids=lambda foreign: foreign.name)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


@pytest.fixture(scope="module")
def one_path(tmp_path_factory):
    """One path for all examples of a property."""
    return tmp_path_factory.mktemp("lines") / "session.jsonl"


def streamed(path):
    records: list[Any] = []
    skipped: list[BrokenLine] = []
    for batch in reading.stream(path):
        records += batch
        skipped += batch.skipped
    return records, skipped


def ways(path):
    """Records and broken lines by each way to read a whole file."""
    whole, back = reading.read(path), reading.read(path, last=10**9)
    return [(list(whole), list(whole.skipped)), (list(back), list(back.skipped)), streamed(path)]


# Every reader


@pytest.mark.failure("Z1", "Z2")
@each
def test_a_foreign_line_is_the_same_to_every_reader(path, foreign):
    for before in (FIRST, b""):
        path.write_bytes(before + foreign.line + b"\n" + LAST)
        expected = [json.loads(line) for line in before.splitlines()]
        expected += [foreign.what] if foreign.what not in (BLANK, BROKEN) else []
        broken = [(len(before), len(foreign.line))] if foreign.what == BROKEN else []
        for records, skipped in ways(str(path)):
            assert same(records, [*expected, {"at": "last"}])
            assert [(line.offset, line.length) for line in skipped] == broken
        seen = inspect(str(path))
        assert seen is not None and (seen.records, seen.broken_count) == (len(expected) + 1, len(broken))
        assert [(line.offset, line.length) for line in seen.broken] == broken
        assert len(reading.read(str(path), last=2)) == min(2, len(expected) + 1)


@pytest.mark.failure("Z1", "Z2", "Z6")
@each
def test_the_doctor_says_of_a_tail_what_the_next_writer_makes_of_it(path, foreign):
    path.write_bytes(FIRST + foreign.line)
    torn = path.with_name("session.jsonl.torn")
    seen = inspect(str(path))
    assert seen is not None
    assert (seen.tail is None) == (foreign.what == BLANK)
    assert seen.tail is None or seen.tail.whole == (foreign.what != BROKEN)
    assert mend(str(path)).left == []
    if foreign.what == BROKEN:
        assert (path.read_bytes(), torn.read_bytes()) == (FIRST, foreign.line + b"\n")
    else:
        assert path.read_bytes() == FIRST + foreign.line + (b"\n" if foreign.line else b"")
        assert not torn.exists()


@pytest.mark.failure("Z1", "Z2", "Z6")
async def test_an_append_behind_a_foreign_tail_loses_no_record_of_it(path):
    registry = LockRegistry()
    torn = path.with_name("session.jsonl.torn")
    for foreign in LINES:
        path.write_bytes(FIRST + foreign.line)
        torn.unlink(missing_ok=True)
        await registry.append(path, {"at": "last"})
        found = await registry.read(path, on_error="raise")
        between = [] if foreign.what in (BLANK, BROKEN) else [foreign.what]
        assert same(list(found), [{"at": "first"}, *between, {"at": "last"}]), foreign.name
        assert torn.exists() == (foreign.what == BROKEN), foreign.name


@pytest.mark.failure("Z1", "Z2", "Z3")
async def test_a_file_of_foreign_lines_is_read_streamed_and_compacted_without_losing_one(path):
    registry = LockRegistry()
    path.write_bytes(FIRST + b"".join(foreign.line + b"\n" for foreign in LINES))
    records = [foreign.what for foreign in LINES if foreign.what not in (BLANK, BROKEN)]
    broken = [foreign.line for foreign in LINES if foreign.what == BROKEN]
    found = await registry.read(path)
    assert same(list(found), [{"at": "first"}, *records])
    batches = [batch async for batch in registry.stream(path)]
    assert same([record for batch in batches for record in batch], list(found))
    skipped = [line for batch in batches for line in batch.skipped]
    assert skipped == list(found.skipped)
    data = path.read_bytes()
    assert [data[line.offset :][: line.length] for line in skipped] == broken
    assert all(
        line.number is not None and data.split(b"\n")[line.number - 1] == one
        for line, one in zip(skipped, broken, strict=True)
    )
    async with registry.lease(path) as lease:
        await lease.replace([{"summary": 1}], through=found.position)
        assert await lease.append({"n": 2}) is not None
    assert path.read_bytes() == b"".join([b'{"summary":1}\n', *(line + b"\n" for line in broken), b'{"n":2}\n'])


@pytest.mark.failure("Z1")
@pytest.mark.parametrize("before", [b"", BOM])
@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
async def test_a_header_is_one_behind_a_byte_order_mark_too(path, before, end):
    registry, header = LockRegistry(), before + b'{"lanes.session":"a"}' + end
    path.write_bytes(header + b'{"n":1}' + end)
    found = await registry.read(path)
    assert found == await registry.read(path, last=9) == [{"n": 1}]
    seen = inspect(str(path))
    assert seen is not None and seen.key == "a"
    async with registry.lease(path) as lease:
        await lease.replace([{"n": 2}], through=found.position)
    assert path.read_bytes() == header + b'{"n":2}\n'


@pytest.mark.failure("Z1")
@each
def test_a_line_of_a_traffic_file_is_what_it_is_in_a_transcript(path, foreign):
    good = b'{"lane":"main"}\n'
    for content in (good + foreign.line + b"\n" + good, good + foreign.line):
        path.write_bytes(content)
        if foreign.what == BLANK:
            assert len(traffic.read(path, SpecTable((), ()), SessionLayout(path.parent))) == content.count(good)
        else:  # a record is none that could be sent
            with pytest.raises(UsageError, match=r"session\.jsonl, line 2: ") as caught:
                traffic.read(path, SpecTable((), ()), SessionLayout(path.parent))
            assert ("not JSON" in str(caught.value)) == (foreign.what == BROKEN and not is_json(foreign.line))


def is_json(line):
    """Whether a broken line is JSON, though no object."""
    with pytest.raises(lines.NoRecord) as caught:
        lines.decode(line)
    return isinstance(caught.value, lines.NoObject)


def test_a_traffic_file_of_other_programs_is_taken_as_it_is(path):
    path.write_bytes(BOM + b'{"lane":"main","text":"cut \\ud83d"}\r\n\r\n{"lane":"main","at":1e0}')
    found = traffic.read(path, SpecTable((), ()), SessionLayout(path.parent))
    assert [line.text for line in found] == ["cut \ufffd", ""]


def test_a_giant_line_of_a_traffic_file_is_refused_without_reading_it(path, monkeypatch):
    monkeypatch.setattr(traffic, "LONGEST_LINE", 1000)
    monkeypatch.setattr(lines, "LONGEST_LINE", 1000)
    path.write_bytes(b'{"lane":"main"}\n')
    os.truncate(path, 1 << 33)
    with pytest.raises(UsageError, match="line 2: not JSON: longer than 1000 bytes"):
        traffic.read(path, SpecTable((), ()), SessionLayout(path.parent))


# Against Python's json


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 70), 1 << 70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud83d", "a\ude00b", "\ud83d\ud83d\ude00", "\u2028", "\x85", "\0", "[{"]),
    lambda inside: (
        st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=3) | st.just("\ud83d"), inside, max_size=4)
    ),
    max_leaves=8,
)


@st.composite
def texts(draw):
    value = draw(st.dictionaries(st.text(max_size=3), VALUES, max_size=4) | VALUES)
    text = json.dumps(
        value, ensure_ascii=draw(st.booleans()), separators=draw(st.sampled_from([(",", ":"), (", ", " : ")]))
    )
    line = text.encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(line)))
        put = draw(
            st.sampled_from(
                [
                    b"",
                    b",",
                    b"{",
                    b"}",
                    b"[",
                    b'"',
                    b"\\",
                    b"\\ud800",
                    b"\0",
                    b"\r",
                    b" ",
                    BOM,
                    b"\xff",
                    b"1",
                    b"-",
                    b".",
                    b"e9",
                    b"NaN",
                ]
            )
        )
        line = line[:at] + put + line[at + draw(st.integers(0, 2)) :]
    return line.replace(b"\n", b"")


@pytest.mark.failure("Z1")
@settings(deadline=None)
@given(
    found=st.lists(texts() | st.sampled_from([b"", b"\r", BOM, b"\0\0", b"[]"]), max_size=6),
    block=st.integers(1, 200),
    last=st.integers(0, 7),
)
@example(found=[b'{"a":"\\ud800'], block=64, last=1)
@example(found=[b"{}", b"{", b"{}", b"\0"], block=3, last=2)
def test_whatever_json_texts_are_mangled_into_all_readers_agree_with_pythons_json(one_path, found, block, last):
    torn = one_path.with_name("session.jsonl.torn")
    torn.unlink(missing_ok=True)
    *whole, tail = [*found, b""] if len(found) % 2 else found or [b""]
    one_path.write_bytes(b"".join(line + b"\n" for line in whole) + tail)
    kinds = [plainly(line) for line in whole]
    records = [kind for kind in kinds if kind not in (BLANK, BROKEN)]
    if kinds and isinstance(kinds[0], dict) and "lanes.session" in kinds[0]:
        records = records[1:]
    broken = [line for line, kind in zip(whole, kinds, strict=True) if kind == BROKEN]
    data = one_path.read_bytes()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "BLOCK", block)
        patch.setattr(reading, "_FIRST_BLOCK", block)
        for read, skipped in ways(str(one_path)):
            assert same(read, records)
            assert [data[line.offset :][: line.length] for line in skipped] == broken
        assert same(list(reading.read(str(one_path), last=last)), records[max(0, len(records) - last) :])
    seen = inspect(str(one_path))
    assert seen is not None and (seen.records, seen.broken_count) == (len(records), len(broken))
    kind = plainly(tail)
    assert (seen.tail is None) == (kind == BLANK)
    assert seen.tail is None or seen.tail.whole == (kind != BROKEN)
    mend(str(one_path))
    assert torn.exists() == (kind == BROKEN)
    assert same(
        list(reading.read(str(one_path))),
        records + ([kind] if isinstance(kind, dict) and (whole or "lanes.session" not in kind) else []),
    )


# Whoever calls


def deeper(frames, call):
    return call() if frames == 0 else deeper(frames - 1, call)


@pytest.mark.failure("Z2")
@pytest.mark.parametrize("depth", [10, 700, 999, 1000, 1001, 5000])
async def test_the_callers_stack_does_not_decide_what_a_deep_line_is(path, depth):
    registry, line = LockRegistry(), deep_line(depth)
    allowed = depth <= 1000
    path.write_bytes(line + b"\n" + line)
    limit = sys.getrecursionlimit()
    for frames in (0, 300, 600, limit - 350):
        records = deeper(max(0, frames), lambda: reading.read(str(path)))
        assert len(records) == (1 if allowed else 0)
        assert [broken.reason for broken in records.skipped] == ([] if allowed else ["nested more than 1000 deep"])

    async def appends(frames):
        return await (registry.append(path, {"n": 1}) if frames == 0 else appends(frames - 1))

    await appends(limit // 3)
    assert path.with_name("session.jsonl.torn").exists() == (not allowed)
    assert path.read_bytes() == line + b"\n" + (line + b"\n" if allowed else b"") + b'{"n":1}\n'


@pytest.mark.failure("Z2")
@pytest.mark.parametrize("depth", [700, 1000, 1001])
async def test_the_callers_stack_does_not_decide_how_deep_a_record_may_be(path, depth):
    registry, record = LockRegistry(), nested(depth)
    limit, written = sys.getrecursionlimit(), 0

    async def appends(frames):
        return await (registry.append(path, record) if frames == 0 else appends(frames - 1))

    for frames in (0, limit // 3):
        if depth <= 1000:
            await appends(frames)
            written += 1
        else:
            with pytest.raises(TranscriptError, match=r"\$\.v.*nested more than 1000 deep"):
                await appends(frames)
    found = reading.read(str(path), on_error="raise")
    assert len(found) == written and all(same(one, record) for one in found)


@pytest.mark.failure("Z2")
def test_a_thread_and_a_process_that_allow_more_or_less_read_and_write_the_same(path):
    digits = 10**4299 + 7
    path.write_bytes(deep_line(1000) + b"\n" + deep_line(1001) + b"\n" + b'{"n":' + b"7" * 4301 + b"}\n")
    among_usual = path.with_name("usual.jsonl")  # which the parser takes as a whole
    among_usual.write_bytes(FIRST + deep_line(1001) + b"\n")
    found: list[Any] = []

    def work():
        found.append([broken.offset for broken in reading.read(str(path)).skipped])
        found.append([broken.offset for broken in reading.read(str(among_usual)).skipped])
        found.append(lines.decode(b'{"n":1' + b"0" * 4298 + b"7}") == {"n": digits})
        found.append(len(lines_of({"n": digits})) == 4300 + 7)

    limit, most = sys.getrecursionlimit(), sys.get_int_max_str_digits()
    try:
        for recursion, allowed in ((20_000, 0), (limit, 640), (limit, most)):
            sys.setrecursionlimit(recursion)
            sys.set_int_max_str_digits(allowed)
            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
    finally:
        sys.setrecursionlimit(limit)
        sys.set_int_max_str_digits(most)
    start = len(deep_line(1000)) + 1
    assert found == [[start, start + len(deep_line(1001)) + 1], [len(FIRST)], True, True] * 3


def lines_of(record):
    from locks.transcript.encoding import encode

    return encode(record, "a.jsonl")


@pytest.mark.failure("Z2", "Z5")
def test_what_is_too_deep_is_refused_where_it_gets_too_deep_and_not_built_first():
    with pytest.raises(tolerant.Refused, match="nested more than 5 deep"):
        tolerant.parse("[" * 6 + "{no JSON", deepest=5, most_digits=10)
    with pytest.raises(tolerant.Refused, match="malformed"):
        tolerant.parse("[" * 5 + "{no JSON"[1:], deepest=5, most_digits=10)


# Giant lines


@pytest.fixture
def short(monkeypatch):
    """Lines are long early: 1 MiB."""
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 20)
    return 1 << 20


@pytest.fixture
def preads(monkeypatch):
    original, lengths = _os.pread, []

    def pread(fd, length, offset):
        lengths.append(length)
        return original(fd, length, offset)

    monkeypatch.setattr(_os, "pread", pread)
    return lengths


@pytest.mark.failure("Z5")
@pytest.mark.parametrize("first", [FIRST, b""], ids=["amid", "first"])
@pytest.mark.parametrize("size", [(1 << 20) + 1, (1 << 20) + (1 << 18), 40 << 20])
def test_a_giant_line_is_broken_and_is_passed_over_in_blocks(path, short, preads, first, size):
    path.write_bytes(first)
    os.truncate(path, len(first) + size)
    with path.open("ab") as file:
        file.write(b"\n" + LAST + LAST)
    for records, skipped in ways(str(path)):
        assert records[-2:] == [{"at": "last"}] * 2 and len(records) == (3 if first else 2)
        assert [(line.offset, line.length) for line in skipped] == [(len(first), size)]
        assert skipped[0].reason == f"longer than {short} bytes"
    assert reading.read(str(path), last=2).skipped == ()
    seen = inspect(str(path))
    assert seen is not None and seen.broken_count == 1
    assert max(preads) <= short + 2
    assert sum(preads) <= 20 * (size + short)
    assert [line.number for line in reading.read(str(path)).skipped] == [2 if first else 1]


@pytest.mark.failure("Z5")
@pytest.mark.parametrize("tail", [False, True])
async def test_a_sparse_file_without_any_newline_is_no_transcript_and_takes_no_memory(path, short, preads, tail):
    registry = LockRegistry()
    path.write_bytes(FIRST if tail else b"")
    os.truncate(path, 40 << 20)
    assert await registry.read(path) == ([{"at": "first"}] if tail else [])
    assert await registry.read(path, last=5) == ([{"at": "first"}] if tail else [])
    with pytest.raises(TranscriptError, match="without a newline"):
        await registry.append(path, {"n": 1})
    seen = inspect(str(path))
    assert seen is not None and seen.tail is not None and not seen.tail.whole
    assert "without a newline" in mend(str(path)).left[0]
    assert max(preads) <= short + 2
    assert path.stat().st_size == 40 << 20


@pytest.mark.failure("Z5", "Z3")
async def test_a_giant_line_is_kept_by_a_replacement_in_blocks(path, short, preads):
    registry, size = LockRegistry(), 5 << 20
    path.write_bytes(FIRST)
    os.truncate(path, len(FIRST) + size)
    with path.open("ab") as file:
        file.write(b"\n" + LAST)
    found = await registry.read(path)
    async with registry.lease(path) as lease:
        await lease.replace([{"summary": 1}], through=found.position)
    assert path.read_bytes() == b'{"summary":1}\n' + b"\0" * size + b"\n"
    assert max(preads) <= short + 2


@pytest.mark.failure("Z5", "Z6")
async def test_the_longest_record_that_may_be_appended_is_read_sealed_and_streamed_and_no_longer_one(path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 300_000)
    registry = LockRegistry()
    longest, longer = ({"text": "x" * (300_000 - len(b'{"text":""}') + more)} for more in (0, 1))
    await registry.append(path, longest)
    with pytest.raises(TranscriptError, match="longer than 300000 bytes"):
        await registry.append(path, longer)
    line = path.read_bytes()
    assert len(line) == 300_001
    path.write_bytes(line + line[:-1])
    await registry.append(path, {"n": 1})
    assert await registry.read(path, on_error="raise") == [longest, longest, {"n": 1}]
    assert await registry.read(path, last=2, on_error="raise") == [longest, {"n": 1}]
    path.write_bytes(line[:-3] + b'x"}\n')
    assert [broken.length for broken in (await registry.read(path)).skipped] == [300_001]


def test_as_much_as_64_mib_may_be_appended_sealed_and_read():
    assert lines.LONGEST_LINE == 64 << 20


# The list


DOCUMENT = ROOT / "docs" / "locks.md"


def listed():
    text = DOCUMENT.read_text().partition("## What counts as a record\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (record|blank|broken)(.*?) \| (?:`(b'.*')`|–) \|$", text, re.MULTILINE)
    assert len(rows) == text.count("\n| ") - 1
    return [(name, kind, ast.literal_eval(literal) if literal else None) for name, kind, _, literal in rows]


@pytest.mark.failure("Z1")
@pytest.mark.parametrize("name, kind, line", listed(), ids=lambda value: str(value)[:30])
def test_the_list_for_users_says_what_lines_are(name, kind, line):
    if line is None:
        assert re.search(f"{lines.MOST_DIGITS:,} digits|{lines.DEEPEST:,} deep|{lines.LONGEST_LINE >> 20} MiB", name)
    else:
        assert lines.kind_of(line) == kind
        assert kind == ("record" if isinstance(plainly(line), dict) else plainly(line))


NOT_TOO_DEEP = [foreign for foreign in LINES if b"[[" not in foreign.line and b'"v":' not in foreign.line]


@pytest.mark.parametrize("foreign", NOT_TOO_DEEP, ids=lambda foreign: foreign.name)
def test_the_corpus_agrees_with_pythons_json(foreign):
    assert same(plainly(foreign.line), foreign.what)

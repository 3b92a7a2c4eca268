"""Streaming: a whole prefix in batches, from the beginning or from a position on, with one descriptor."""

from __future__ import annotations

import gc
import os
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from locks import LockRegistry, Position, TranscriptError, _os
from locks.transcript import lines, prefix, tolerant
from locks.transcript.reading import read, stream
from tests.leaks import descriptors

LINE = b'{"n":%6d,"text":"' + b"x" * 300 + b'"}\n'
MANY = 5_000  # several batches


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


@pytest.fixture
def long(path):
    path.write_bytes(b"".join(LINE % number for number in range(MANY)))
    return str(path)


def numbers(batches):
    return [record["n"] for batch in batches for record in batch]


def test_a_missing_and_an_empty_file_have_no_batches(path):
    assert list(stream(str(path))) == []
    assert not path.exists()
    path.touch()
    assert list(stream(str(path))) == []


def test_the_batches_together_are_the_file_and_each_knows_where_it_ends(long):
    batches = list(stream(long, on_error="raise"))
    assert numbers(batches) == list(range(MANY))
    assert len(batches) > 3
    end = 0
    for batch in batches:
        assert batch.position is not None
        assert batch.position.offset == end + len(batch) * len(LINE % 0)
        assert batch.position.offset - end <= 256 * 1024
        end = batch.position.offset
    assert batches[-1].position == read(long).position


def test_a_broken_line_is_told_with_its_batch_and_its_number(path):
    path.write_bytes(b'{"n":1}\n' * 100_000 + b"broken\n" + b'{"n":1}\n' * 100_000)
    batches = list(stream(str(path)))
    assert sum(map(len, batches)) == 200_000
    assert [(line.offset, line.number) for batch in batches for line in batch.skipped] == [(800_000, 100_001)]
    told = [batch.skipped != () for batch in batches]
    assert told.count(True) == 1 and not told[0] and not told[-1]


def test_a_broken_line_that_is_an_error_comes_after_the_batches_before_it(path):
    path.write_bytes(b'{"n":1}\n' * 100_000 + b"broken\n")
    batches = stream(str(path), on_error="raise")
    assert {"n": 1} in next(batches)
    with pytest.raises(TranscriptError, match="line 100001"):
        list(batches)


def test_lines_that_are_no_records_make_a_batch_without_records_but_with_a_position(path):
    path.write_bytes(b'{"lanes.session":"a"}\nbroken\n')
    (batch,) = stream(str(path))
    assert batch == []
    assert batch.position is not None and batch.position.offset == path.stat().st_size
    assert [line.number for line in batch.skipped] == [2]


def test_what_is_appended_later_is_not_streamed(long, path):
    batches = stream(long)
    found = [next(batches)]
    with path.open("ab") as file:
        file.write(LINE % MANY)
    found += batches
    assert numbers(found) == list(range(MANY))
    assert numbers(stream(long, after=found[-1].position)) == [MANY]


def test_an_unknown_way_to_treat_errors_is_refused(long):
    with pytest.raises(ValueError, match="on_error"):
        next(stream(long, on_error="ignore"))  # type: ignore[arg-type]  # the refusal is what is tested


# From a position on


@given(st.integers(0, 30), st.integers(0, 30))
def test_a_stream_after_a_position_goes_on_right_behind_it(one_path, before, behind):
    content = [b'{"n":%d}\n' % number for number in range(before + behind)]
    one_path.write_bytes(b"".join(content[:before]))
    position = read(str(one_path)).position
    with one_path.open("ab") as file:
        file.write(b"".join(content[before:]) + b"torn")
    assert numbers(stream(str(one_path), after=position)) == list(range(before, before + behind))


@pytest.fixture(scope="module")
def one_path(tmp_path_factory):
    """One path for all examples of a property."""
    return tmp_path_factory.mktemp("positions") / "session.jsonl"


def test_behind_a_position_the_place_of_a_broken_line_is_known_but_not_its_number(path):
    path.write_bytes(b'{"n":0}\n')
    position = read(str(path)).position
    with path.open("ab") as file:
        file.write(b'broken\n{"lanes.session":"no header"}\n')
    (batch,) = stream(str(path), after=position)
    assert batch == [{"lanes.session": "no header"}]
    assert [(line.offset, line.number) for line in batch.skipped] == [(8, None)]


def test_at_the_end_nothing_is_left(long):
    assert list(stream(long, after=read(long).position)) == []


def replace(path):
    other = path.with_suffix(".new")
    other.write_bytes(LINE % 0 * MANY)
    os.replace(other, path)


def shorten(path):
    os.truncate(path, 10 * len(LINE % 0))


def rewrite(path):
    path.write_bytes(b'{"n":0}\n' + LINE % 0 * MANY)


def remove(path):
    path.unlink()


@pytest.mark.failure("H1")
@pytest.mark.parametrize("change", [replace, shorten, rewrite, remove])
def test_a_position_in_a_file_that_was_replaced_is_refused(long, path, change):
    batches = stream(long)
    position = next(batches).position
    assert position is not None
    batches.close()
    change(path)
    with pytest.raises(TranscriptError, match="was replaced since that position was taken") as caught:
        next(stream(long, after=position))
    assert str(position.offset) in str(caught.value) and str(position.file_id) in str(caught.value)
    assert caught.value.path == long


def test_a_position_inside_a_line_is_refused(long, path):
    found = path.stat()
    with pytest.raises(TranscriptError, match="no line ends there"):
        next(stream(long, after=Position(5, (found.st_dev, found.st_ino))))


# What it holds


def test_one_descriptor_is_open_from_the_first_batch_to_the_last(long, monkeypatch):
    opened = []
    original = _os.open

    def counted(*arguments):
        opened.append(arguments)
        return original(*arguments)

    monkeypatch.setattr(_os, "open", counted)
    before = descriptors()
    batches = stream(long)
    assert descriptors() == before
    for _ in batches:
        assert len(descriptors() - before) == 1
    assert descriptors() == before
    assert len(opened) == 1


@pytest.mark.parametrize("taken", [0, 1, 2])
def test_the_descriptor_is_closed_when_the_stream_is_closed_midway(long, taken):
    before = descriptors()
    batches = stream(long)
    for _ in range(taken):
        next(batches)
    batches.close()
    assert descriptors() == before
    assert list(batches) == []


def test_the_descriptor_is_closed_when_the_stream_is_dropped_midway(long):
    before = descriptors()
    batches = stream(long)
    next(batches)
    del batches
    gc.collect()
    assert descriptors() == before


def test_the_descriptor_is_closed_when_a_broken_line_is_an_error(path):
    path.write_bytes(b"broken\n")
    before = descriptors()
    batches = stream(str(path), on_error="raise")
    with pytest.raises(TranscriptError):
        next(batches)
    assert descriptors() == before


def test_a_stream_holds_one_batch_at_a_time(path):
    path.write_bytes(b"".join(LINE % number for number in range(20_000)))
    size = path.stat().st_size
    tracemalloc.start()
    try:
        for batch in stream(str(path)):
            assert batch
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < size / 2


# On the event loop


async def test_what_takes_long_to_decode_does_not_hold_up_the_event_loop(path, monkeypatch):
    content = [LINE % number for number in range(MANY)]
    content[2_000], content[3_000] = b'{"n":2000,"large":1e999}\n', b'{"n":3000,"text":"' + b"x" * 200_000 + b'"}\n'
    content[4_000] = b"broken\n"
    path.write_bytes(b"".join(content))
    slow: list[int] = []
    quick: list[int] = []
    parse, decode_usual = tolerant.parse, lines.decode_usual

    def noted_parse(*arguments, **bounds):
        slow.append(threading.get_ident())
        return parse(*arguments, **bounds)

    def noted_decode(data):
        if threading.get_ident() == loop:
            quick.append(len(data))
        return decode_usual(data)

    loop = threading.get_ident()
    monkeypatch.setattr(tolerant, "parse", noted_parse)
    monkeypatch.setattr(lines, "decode_usual", noted_decode)
    batches = [batch async for batch in LockRegistry().stream(path)]
    assert len(slow) == 2 and loop not in slow
    assert sum(quick) > 1_000_000 and max(quick) <= prefix.BLOCK
    assert numbers(batches) == [number for number in range(MANY) if number != 4_000]
    (broken,) = (line for batch in batches for line in batch.skipped)
    assert (broken.offset, broken.number) == (sum(map(len, content[:4_000])), 4_001)
    assert [batch.position for batch in batches] == [batch.position for batch in stream(str(path))]


async def test_a_stream_reads_no_more_than_a_few_batches_ahead(path, monkeypatch):
    path.write_bytes(b"".join(LINE % number for number in range(20_000)))
    pread, seen = _os.pread, list[int]()

    def counted(fd, length, offset):
        seen.append(length)
        return pread(fd, length, offset)

    monkeypatch.setattr(_os, "pread", counted)
    batches = LockRegistry().stream(path)
    assert await anext(batches)
    assert sum(seen) < path.stat().st_size / 4
    await batches.aclose()

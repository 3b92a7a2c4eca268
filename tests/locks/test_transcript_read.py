"""Reading: a whole prefix of the records, without a lock; broken lines are skipped, and said."""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest
from anyio import create_task_group, to_thread
from hypothesis import example, given
from hypothesis import strategies as st

from locks import BrokenLine, LockRegistry, Position, Records, TranscriptError, _os
from locks.transcript import prefix, reading
from locks.transcript.lines import NoRecord, decode


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


async def test_a_missing_file_reads_as_empty_and_is_not_made(registry, path):
    records = await registry.read(path)
    assert records == []
    assert isinstance(records, Records)
    assert records.position is None
    assert records.skipped == ()
    assert not path.exists()


async def test_an_empty_file_reads_as_empty_at_its_beginning(registry, path):
    path.touch()
    records = await registry.read(path)
    assert records == []
    assert records.position == Position(0, (path.stat().st_dev, path.stat().st_ino))


@pytest.mark.parametrize("last", [0, 1, 2, 5, 10**9])
async def test_the_last_records_are_the_last_ones_in_order(registry, path, last):
    for number in range(5):
        await registry.append(path, {"n": number})
    records = await registry.read(path, last=last)
    assert [record["n"] for record in records] == list(range(5))[max(0, 5 - last) :]
    assert records.position is not None
    assert records.position.offset == path.stat().st_size


async def test_a_negative_number_of_last_records_is_refused(registry, path):
    with pytest.raises(ValueError, match="last"):
        await registry.read(path, last=-1)
    path.touch()
    with pytest.raises(ValueError, match="last"):
        await registry.read(path, last=-1)


async def test_an_unknown_way_to_treat_errors_is_refused(registry, path):
    path.touch()
    with pytest.raises(ValueError, match="on_error"):
        await registry.read(path, on_error="ignore")


BROKEN = b'{"n":0}\nbroken\n[1]\n{"n":1}\n\n{"n":"\xff"}\n{"n":2}\n'


async def test_broken_lines_are_skipped_and_said_with_their_numbers(registry, path):
    path.write_bytes(BROKEN)
    records = await registry.read(path)
    assert [record["n"] for record in records] == [0, 1, 2]
    assert [line.number for line in records.skipped] == [2, 3, 6]  # the fifth is blank
    assert [(line.offset, line.length) for line in records.skipped] == [(8, 6), (15, 3), (28, 9)]
    assert all(isinstance(line, BrokenLine) and line.reason for line in records.skipped)
    assert path.read_bytes() == BROKEN


async def test_of_the_broken_lines_among_the_last_records_the_place_is_known_but_not_the_number(registry, path):
    path.write_bytes(BROKEN)
    records = await registry.read(path, last=2)
    assert [record["n"] for record in records] == [1, 2]
    assert [(line.offset, line.number) for line in records.skipped] == [(28, None)]


async def test_a_broken_line_can_be_an_error_that_names_it(registry, path):
    path.write_bytes(BROKEN)
    with pytest.raises(TranscriptError, match="line 2"):
        await registry.read(path, on_error="raise")
    assert [record["n"] for record in await registry.read(path, last=1, on_error="raise")] == [2]
    with pytest.raises(TranscriptError, match="byte 28"):
        await registry.read(path, last=2, on_error="raise")


@pytest.mark.parametrize("last", [None, 10])
async def test_a_torn_tail_is_no_record_and_the_position_is_before_it(registry, path, last):
    path.write_bytes(b'{"n":0}\n{"n":1')
    records = await registry.read(path, last=last, on_error="raise")
    assert records == [{"n": 0}]
    assert records.position is not None
    assert records.position.offset == 8
    assert records.skipped == ()


async def test_a_line_nested_too_deeply_is_a_broken_line(registry, path):
    path.write_bytes(b'{"n":0}\n{"deep":' + b"[" * 100_000 + b"]" * 100_000 + b"}\n")
    records = await registry.read(path)
    assert records == [{"n": 0}]
    assert [line.number for line in records.skipped] == [2]


@pytest.mark.parametrize("last", [None, 10])
async def test_the_header_is_no_record_in_the_first_line_only(registry, path, last):
    path.write_bytes(b'{"lanes.session":"a"}\n{"n":1}\n{"lanes.session":"a record that mentions it"}\n')
    records = await registry.read(path, last=last)
    assert records == [{"n": 1}, {"lanes.session": "a record that mentions it"}]


async def test_a_lease_reads_its_own_appends(registry, path):
    async with registry.lease(path) as lease:
        position = await lease.append({"n": 1})
        records = await lease.read()
        assert records == [{"n": 1}]
        assert records.position == position
    async with registry.turn(path) as turn:
        assert await turn.read(last=1) == [{"n": 1}]


async def test_what_is_read_while_others_append_is_a_whole_prefix(registry, path):
    done = False

    async def read():
        seen = 0
        while not done:
            records = await registry.read(path, on_error="raise")
            assert [record["n"] for record in records] == list(range(len(records)))
            assert len(records) >= seen
            seen = len(records)

    async with create_task_group() as group:
        group.start_soon(read)
        async with registry.lease(path) as lease:

            def append():
                for number in range(200):
                    lease.append_sync({"n": number, "text": "x" * 3000})  # long enough to be read in a thread, too

            await to_thread.run_sync(append)
        done = True
    assert len(await registry.read(path)) == 200


async def test_a_long_file_is_read_whole(registry, path):
    line = b'{"text":"%s"}\n' % (b"x" * 10_000)
    path.write_bytes(line * 500)
    records = await registry.read(path, on_error="raise")
    assert len(records) == 500
    assert records.position is not None
    assert records.position.offset == len(line) * 500


# All ways to read: whole, backwards, in batches


def streamed(path, *, on_error="skip"):
    whole = Records()
    skipped: list[BrokenLine] = []
    for batch in reading.stream(path, on_error=on_error):
        whole += batch
        skipped += batch.skipped
        whole.position = batch.position
    whole.skipped = tuple(skipped)
    return whole


def backwards(path, *, on_error="skip"):
    return reading.read(path, last=10**9, on_error=on_error)


WAYS: list[Callable[..., Records]] = [reading.read, backwards, streamed]
all_ways = pytest.mark.parametrize("read", WAYS, ids=["whole", "backwards", "streamed"])


@contextlib.contextmanager
def small_blocks():
    """Blocks so small that a short file has many of them, and lines longer than a block."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prefix, "BLOCK", 64)
        patch.setattr(reading, "_FIRST_BLOCK", 16)
        patch.setattr(prefix, "_WITNESS", 8)
        yield


@contextlib.contextmanager
def watched_preads(after=lambda number: None):
    """The length of each piece that is read; `after` is called with its number, from 1."""
    original = _os.pread
    lengths: list[int] = []

    def pread(fd, length, offset):
        piece = original(fd, length, offset)
        lengths.append(len(piece))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_os, "pread", original)
            after(len(lengths))
        return piece

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_os, "pread", pread)
        yield lengths


LINES = st.one_of(
    st.integers().map(b'{"n":%d}'.__mod__),
    st.integers(0, 200).map(lambda length: b'{"text":"%s"}' % (b"x" * length)),
    st.sampled_from([b"", b"{}", b"[1]", b"broken", b'{"n":1e999}', b'{"n":1,"n":2}', b'{"lanes.session":"a"}', b"\0"]),
    st.binary(max_size=100),
)
CONTENTS = st.builds(lambda lines, tail: b"".join(line + b"\n" for line in lines) + tail, st.lists(LINES), LINES)


@pytest.fixture(scope="module")
def one_path(tmp_path_factory):
    """One path for all examples of a property."""
    return tmp_path_factory.mktemp("contents") / "session.jsonl"


def plainly(content):
    """Records and places of broken lines, as anybody would read them from memory."""
    records, broken, offset = [], [], 0
    for line in content.split(b"\n")[:-1]:
        try:
            record = decode(line)
        except NoRecord:
            broken.append(offset)
        else:
            if record is not None and (offset or "lanes.session" not in record):
                records.append(record)
        offset += len(line) + 1
    return records, broken, offset


@pytest.mark.failure("H1")
@given(content=CONTENTS)
@example(content=b"")
@example(content=b"\n")
@example(content=b"torn")
@example(content=b'{"n":"' + b"x" * 500 + b'"}\n{"lanes.session":1}\n')
@example(content=b'{"lanes.session":"a"}\n' + b"\n" * 100 + b"x" * 300)
def test_whatever_a_file_holds_all_ways_to_read_it_agree(one_path, content):
    one_path.write_bytes(content)
    records, broken, end = plainly(content)
    for read in WAYS:
        with small_blocks():
            found = read(str(one_path))
        assert found == records
        assert [line.offset for line in found.skipped] == broken
        if read is not streamed or end:
            assert found.position is not None and found.position.offset == end


@given(content=CONTENTS, last=st.integers(0, 12))
@example(content=b'{"lanes.session":"a"}\n{"n":1}\n', last=2)
@example(content=b'{"n":1}\nbroken\n{"n":2}\n', last=1)
def test_the_last_records_are_those_that_a_full_read_ends_with(one_path, content, last):
    one_path.write_bytes(content)
    whole = reading.read(str(one_path))
    with small_blocks():
        found = reading.read(str(one_path), last=last)
    assert found == whole[max(0, len(whole) - last) :]
    assert found.position == whole.position
    # Broken lines before the first record that was asked for were not looked at, unless it was the first of all.
    places = [line.offset for line in whole.skipped]
    assert [line.offset for line in found.skipped] == places[len(places) - len(found.skipped) :]


@all_ways
@pytest.mark.parametrize(
    "line",
    [
        b"\0" * 100,
        b'{"n":"\0"}',
        b'{"n":"\xff\xfe"}',
        b'{"\xff":1}',
        b'{"n":' + b"9" * 10_000 + b"}",
        b"[" * 100_000,
        b'{"n":' * 100_000 + b"1" + b"}" * 100_000,
        b"null",
    ],
    ids=lambda line: repr(line[:10])[2:-1],
)
def test_a_line_that_is_no_record_is_broken_whatever_it_holds(path, read, line):
    path.write_bytes(b'{"n":0}\n' + line + b'\n{"n":1}\n')
    records = read(str(path))
    assert records == [{"n": 0}, {"n": 1}]
    assert [broken.offset for broken in records.skipped] == [8]
    with pytest.raises(TranscriptError, match=r"line 2:|byte 8:"):
        read(str(path), on_error="raise")


@all_ways
def test_of_a_key_that_stands_twice_the_last_value_counts(path, read):
    path.write_bytes(b'{"n":1,"n":2}\n')
    assert read(str(path), on_error="raise") == [{"n": 2}]


# Large files


LINE = b'{"n":%6d,"text":"' + b"x" * 300 + b'"}\n'


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A file of 20 MB."""
    path = tmp_path_factory.mktemp("large") / "session.jsonl"
    path.write_bytes(b"".join(LINE % number for number in range(63_000)))
    assert path.stat().st_size > 20e6
    return str(path)


def test_the_last_records_of_a_large_file_are_read_without_reading_it(large):
    with watched_preads() as lengths:
        records = reading.read(large, last=50, on_error="raise")
    assert [record["n"] for record in records] == list(range(62_950, 63_000))
    assert sum(lengths) <= 256 * 1024


@contextlib.contextmanager
def watched_loop():
    """The lengths of what this thread, an event loop's, reads, and what other threads read."""
    here, original = threading.get_ident(), _os.pread
    on_loop: list[int] = []
    elsewhere: list[int] = []

    def pread(fd, length, offset):
        (on_loop if threading.get_ident() == here else elsewhere).append(length)
        return original(fd, length, offset)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_os, "pread", pread)
        yield on_loop, elsewhere


@pytest.mark.parametrize("last", [0, 1, 50, 400])
async def test_the_last_records_of_a_large_file_are_read_on_the_loop_while_they_are_short(registry, large, last):
    with watched_loop() as (on_loop, elsewhere):
        records = await registry.read(large, last=last, on_error="raise")
    assert [record["n"] for record in records] == list(range(63_000 - last, 63_000))
    assert sum(on_loop) <= 256 * 1024 and elsewhere == []


LONG_TEXT = 1_000_000
LONG_ENDS = {
    "lines": (LINE % 7) * 4_000,
    "line": LINE % 7 + b'{"n":7,"text":"%s"}\n' % (b"x" * LONG_TEXT),
    "broken lines": LINE % 7 + (b"broken" * 20 + b"\n") * (LONG_TEXT // 120),
    "tail": LINE % 7 + b"\0" * LONG_TEXT,
    "tail alone": b"\0" * LONG_TEXT,
}


@pytest.mark.parametrize("last", [None, 1, 100, 10_000])
@pytest.mark.parametrize("end", LONG_ENDS)
async def test_whatever_a_large_file_ends_with_no_more_than_256_kib_of_it_are_read_on_the_loop(path, end, last):
    registry = LockRegistry()
    path.write_bytes(LONG_ENDS[end])
    with watched_loop() as (on_loop, elsewhere):
        records = await registry.read(path, last=last)
    assert sum(on_loop) <= 256 * 1024
    assert records == reading.read(str(path), last=last)
    assert (elsewhere == []) == (end == "lines" and last in (1, 100))


async def test_a_line_of_a_large_file_that_is_an_error_is_one_on_the_loop_and_in_a_thread(registry, path):
    for behind in (b"", b'{"text":"%s"}\n' % (b"x" * 1_000_000)):
        path.write_bytes((LINE % 7) * 1_000 + b"broken\n" + behind)
        with pytest.raises(TranscriptError, match="byte"):
            await registry.read(path, last=2, on_error="raise")


@all_ways
def test_a_large_file_is_read_in_blocks(large, read):
    with watched_preads() as lengths:
        records = read(large, on_error="raise")
    assert len(records) == 63_000
    assert records[0]["n"] == 0 and records[-1]["n"] == 62_999
    assert max(lengths) <= 256 * 1024
    assert sum(lengths) <= 1.1 * os.path.getsize(large)


@all_ways
def test_a_very_long_line_is_read_a_bounded_number_of_times(path, read):
    long = b'{"text":"' + b"x" * 20_000_000 + b'"}\n'
    path.write_bytes(b'{"n":0}\n' + long + b'{"n":1}\n')
    with watched_preads() as lengths:
        records = read(str(path), on_error="raise")
    assert len(records) == 3 and len(records[1]["text"]) == 20_000_000
    assert sum(lengths) <= 5 * len(long)
    assert len(lengths) < 50


@all_ways
def test_a_large_file_that_is_one_torn_line_reads_as_empty(path, read):
    path.write_bytes(b"x" * 20_000_000)
    with watched_preads() as lengths:
        records = read(str(path), on_error="raise")
    assert records == []
    assert sum(lengths) <= 20_000_000
    assert max(lengths, default=0) <= 256 * 1024


# While a writer takes back what it wrote


def lines(name, numbers):
    return b"".join(b'{"by":"%s","n":%d,"text":"%s"}\n' % (name, number, name * 60) for number in numbers)


def parsed(data):
    return [decode(line) for line in data.splitlines()]


STANDING = lines(b"a", range(5))
TAKEN_BACK = lines(b"b", range(5))
INSTEAD = lines(b"c", range(9))  # of the same lengths, so that halves of both make a line that can be parsed


def take_back(path):
    os.truncate(path, len(STANDING))


def take_back_and_append(path):
    take_back(path)
    with open(path, "ab") as file:
        file.write(INSTEAD)


@pytest.mark.failure("H1")
@all_ways
@pytest.mark.parametrize("torn", [0, 10, 101], ids=lambda torn: f"torn-{torn}")
@pytest.mark.parametrize("meanwhile", [take_back, take_back_and_append])
def test_no_record_is_read_half_before_and_half_after_its_writer_took_it_back(path, read, meanwhile, torn):
    """After each single `pread`, the end is cut off, and something else is appended in its place."""
    allowed = [
        parsed(STANDING + end[:length])
        for end in (TAKEN_BACK, INSTEAD)
        for length in (i + 1 for i in range(-1, len(end)) if i < 0 or end[i : i + 1] == b"\n")
    ]
    for number in itertools.count(1):
        path.write_bytes(STANDING + TAKEN_BACK[: len(TAKEN_BACK) - torn])
        with small_blocks(), watched_preads(lambda n, at=number: meanwhile(path) if n == at else None) as lengths:
            records = read(str(path), on_error="raise")
        assert records in allowed
        assert records.position is not None
        assert records.position.offset <= len(STANDING + TAKEN_BACK)  # the size that it had at first
        assert records.position.offset == len(STANDING) + sum(
            len(lines(record["by"].encode(), [record["n"]])) for record in records[5:]
        )
        if len(lengths) < number:
            break
    assert number > 10


@pytest.mark.failure("H1")
@all_ways
def test_a_file_that_becomes_empty_while_it_is_read_is_a_shorter_prefix(path, read):
    for number in itertools.count(1):
        path.write_bytes(STANDING)
        with small_blocks(), watched_preads(lambda n, at=number: os.truncate(path, 0) if n == at else None) as lengths:
            records = read(str(path), on_error="raise")
        assert records == parsed(STANDING)[: len(records)]
        if len(lengths) < number:
            break
    assert number > 10


@all_ways
def test_a_file_whose_end_is_rewritten_for_ever_is_an_error_and_not_an_endless_loop(path, read):
    path.write_bytes(STANDING)

    def rewrite(number):
        with open(path, "r+b") as file:
            file.seek(len(STANDING) - 10)
            file.write(b"%06d" % number)

    with watched_preads(rewrite), pytest.raises(TranscriptError, match="rewritten"):
        read(str(path))


WRITER = """
import os, random, sys

fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
chance, size = random.Random(7), 0
for number in range(1500):
    if number % 100 == 0:
        sys.stdin.buffer.read(1)  # so that the reader sees every hundred of them begin
    length = chance.choice([10, 300, 4096, 9000])
    if chance.random() < 0.3:
        fill = chance.choice([10, 300, 4096, 9000])
        taken = b"".join(b'{"taken":%d,"text":"%s"}\\n' % (number, b"t" * fill) for _ in range(3))
        os.write(fd, taken[: chance.choice([len(taken), len(taken) // 2, 7])])
        os.ftruncate(fd, size)
    size += os.write(fd, b'{"n":%d,"text":"%s"}\\n' % (number, b"%d" % (number % 10) * length))
"""


@pytest.mark.failure("H1")
def test_what_is_read_while_another_process_appends_and_takes_back_is_a_whole_prefix(path):
    path.touch()
    last: Callable[..., Records] = functools.partial(reading.read, last=50)
    ways = itertools.cycle([*WAYS, last])
    with subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE) as writer:
        assert writer.stdin is not None
        for look in range(60):
            if look % 4 == 0:
                writer.stdin.write(b".")
                writer.stdin.flush()
            read = next(ways)
            records = list(read(str(path), on_error="raise"))
            while records and "taken" in records[-1]:
                assert set(records.pop()["text"]) == {"t"}
            numbers = [record["n"] for record in records]
            first = numbers[0] if read is last and numbers else 0
            assert numbers == list(range(first, first + len(numbers)))
            for record in records:
                assert set(record["text"]) == {str(record["n"] % 10)}
    assert writer.returncode == 0
    for read in WAYS:
        assert [record["n"] for record in read(str(path), on_error="raise")] == list(range(1500))


# When the operating system refuses


@all_ways
def test_a_read_that_fails_is_a_typed_error_with_the_reason(path, read, monkeypatch):
    original = _os.pread
    for failing in range(1, 4):
        path.write_bytes(STANDING)
        numbers = itertools.count(1)

        def pread(fd, length, offset, numbers=numbers, failing=failing):
            if next(numbers) == failing:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return original(fd, length, offset)

        monkeypatch.setattr(_os, "pread", pread)
        with pytest.raises(TranscriptError, match="cannot read") as caught:
            read(str(path))
        assert (caught.value.path, caught.value.errno) == (str(path), errno.EIO)


@all_ways
def test_a_read_that_comes_up_short_is_continued(path, read, monkeypatch):
    path.write_bytes(STANDING)
    original = _os.pread
    monkeypatch.setattr(_os, "pread", lambda fd, length, offset: original(fd, min(length, 7), offset))
    assert read(str(path), on_error="raise") == parsed(STANDING)


@all_ways
def test_a_close_that_fails_takes_nothing_from_what_was_read(path, read, monkeypatch):
    path.write_bytes(STANDING)
    original = _os.close

    def close(fd):
        original(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(_os, "close", close)
    assert read(str(path), on_error="raise") == parsed(STANDING)

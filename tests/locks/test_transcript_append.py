"""Appending: each record whole or absent, in order; torn tails sealed or moved away; failures rolled back."""

from __future__ import annotations

import errno
import json
import os
import threading

import pytest
from anyio import create_task_group, to_thread

from locks import LockRegistry, Position, TranscriptError, _os
from locks.doctor.inspection import inspect
from locks.transcript import lines


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param, sidecar=False)  # the writes that fail here are those of the transcript


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


@pytest.fixture
def torn(tmp_path):
    return tmp_path / "session.jsonl.torn"


async def test_records_stand_in_order_one_per_line_and_positions_are_behind_them(registry, path):
    first = await registry.append(path, {"n": 1, "text": "zwölf\nlines\u2028 \U0001f600"})
    assert first.offset == path.stat().st_size
    async with registry.lease(path) as lease:
        second = await lease.append({"n": 2})
        third = await lease.append_many([{"n": 3}, {"n": 4}])
        fourth = lease.append_sync({"n": 5})
    assert [first, second, third, fourth] == sorted([first, second, third, fourth], key=lambda p: p.offset)
    assert fourth == Position(path.stat().st_size, (path.stat().st_dev, path.stat().st_ino))
    assert path.read_bytes().count(b"\n") == 5
    assert [json.loads(line)["n"] for line in path.read_bytes().splitlines()] == [1, 2, 3, 4, 5]
    assert json.loads(path.read_bytes().split(b"\n")[0])["text"] == "zwölf\nlines\u2028 \U0001f600"


@pytest.mark.parametrize(
    "record", [[1], "text", None, 1, {"n": object()}, {(1, 2): 3}], ids=lambda record: repr(record)[:12]
)
async def test_what_is_no_json_object_is_refused_and_writes_nothing(registry, path, record):
    await registry.append(path, {"n": 1})
    with pytest.raises(TranscriptError):
        await registry.append(path, record)
    async with registry.lease(path) as lease:
        with pytest.raises(TranscriptError):
            await lease.append(record)
        with pytest.raises(TranscriptError):
            await lease.append_many([{"n": 2}, record, {"n": 3}])
        with pytest.raises(TranscriptError):
            lease.append_sync(record)
    assert await registry.read(path) == [{"n": 1}]


async def test_a_record_that_contains_itself_is_refused(registry, path):
    record: dict = {}
    record["self"] = record
    with pytest.raises(TranscriptError):
        await registry.append(path, record)
    assert not path.exists() or path.read_bytes() == b""


@pytest.mark.parametrize("bad", [{"text": "\ud800"}, {"\udfff": 1}], ids=["value", "key"])
async def test_a_record_with_a_lone_surrogate_is_refused_and_writes_nothing(registry, path, bad):
    with pytest.raises(TranscriptError):
        await registry.append(path, bad)
    assert await registry.read(path) == []


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
async def test_a_number_that_json_does_not_have_never_makes_a_line_that_cannot_be_read(registry, path, number):
    try:
        await registry.append(path, {"n": number})
    except TranscriptError:
        assert await registry.read(path) == []
    else:
        assert len(await registry.read(path, on_error="raise")) == 1
        json.loads(path.read_text(), parse_constant=pytest.fail)


async def test_no_records_at_all_change_nothing(registry, path):
    async with registry.lease(path) as lease:
        await lease.append({"n": 1})
        before = path.read_bytes()
        position = await lease.append_many([])
    assert path.read_bytes() == before
    assert position.offset == len(before)


# Failing writes


def failing_write(code):
    def write(fd, data):
        raise OSError(code, os.strerror(code))

    return write


def torn_write(part, code):
    """Writes the first `part` bytes, then fails for good: what a disk does that becomes full."""
    left = part

    def write(fd, data):
        nonlocal left
        if not left:
            raise OSError(code, os.strerror(code))
        left, written = 0, os.write(fd, data[:left])
        return written

    return write


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
@pytest.mark.parametrize("part", [0, 1, 30])
async def test_a_write_that_fails_is_rolled_back_however_far_it_came(registry, path, code, part, monkeypatch):
    await registry.append(path, {"n": 1})
    before = path.read_bytes()
    async with registry.lease(path) as lease:
        with monkeypatch.context() as patch:
            patch.setattr(_os, "write", torn_write(part, code) if part else failing_write(code))
            with pytest.raises(TranscriptError) as caught:
                await lease.append_many([{"n": 2, "text": "x" * 20}, {"n": 3}])
        assert caught.value.errno == code
        assert caught.value.path == str(path)
        assert path.read_bytes() == before
        await lease.append({"n": 4})  # and the lease is as good as before
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 4}]


async def test_a_short_write_is_completed(registry, path, monkeypatch):
    sizes = []

    def three_bytes(fd, data):
        sizes.append(len(data))
        return os.write(fd, data[:3])

    monkeypatch.setattr(_os, "write", three_bytes)
    await registry.append(path, {"n": 1})
    assert len(sizes) == 3
    assert path.read_bytes() == b'{"n":1}\n'


async def test_a_write_that_takes_nothing_is_an_error_and_no_endless_loop(registry, path, monkeypatch):
    await registry.append(path, {"n": 1})
    monkeypatch.setattr(_os, "write", lambda fd, data: 0)
    with pytest.raises(TranscriptError):
        await registry.append(path, {"n": 2})
    assert path.read_bytes() == b'{"n":1}\n'


async def test_an_append_after_a_roll_back_that_failed_moves_the_torn_tail_away(registry, path, monkeypatch):
    await registry.append(path, {"n": 1})

    def broken(fd, size):
        raise OSError(errno.EIO, "planted")

    with monkeypatch.context() as patch:
        patch.setattr(_os, "write", torn_write(4, errno.ENOSPC))
        patch.setattr(_os, "ftruncate", broken)
        with pytest.raises(TranscriptError) as caught:
            await registry.append(path, {"n": 2})
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b'{"n":1}\n{"n"'
    await registry.append(path, {"n": 3})
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 3}]


async def test_a_seal_that_fails_is_an_error_and_loses_nothing(registry, path, monkeypatch):
    path.write_bytes(b'{"n":1}\n{"n":2')
    with monkeypatch.context() as patch:
        patch.setattr(_os, "write", failing_write(errno.ENOSPC))
        with pytest.raises(TranscriptError):
            await registry.append(path, {"n": 3})
    assert path.read_bytes() == b'{"n":1}\n{"n":2'
    await registry.append(path, {"n": 3})
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 3}]


# Tails


@pytest.mark.failure("H1")
@pytest.mark.parametrize(
    "tail",
    [b'{"n":2', b'{"n":"\xff', b'{"n":2}x', b"[1,2]", b"7", b"\x00\x00\x00", b'{"n":2}\r{', b" " * 70_000 + b"{"],
    ids=["cut", "bytes", "glued", "array", "number", "zeros", "return", "long"],
)
async def test_a_torn_tail_is_moved_aside_before_the_next_append(registry, path, torn, tail):
    path.write_bytes(b'{"n":1}\n' + tail)
    assert await registry.read(path) == [{"n": 1}]
    await registry.append(path, {"n": 3})
    assert path.read_bytes() == b'{"n":1}\n{"n":3}\n'
    assert torn.read_bytes() == tail + b"\n"


@pytest.mark.failure("H1")
@pytest.mark.parametrize("size", [1, 4096, 200_000])
async def test_a_tail_that_is_a_whole_object_is_kept_and_gets_its_newline(registry, path, torn, size):
    path.write_bytes(b'{"n":1}\n' + json.dumps({"n": 2, "text": "x" * size}).encode())
    await registry.append(path, {"n": 3})
    records = await registry.read(path, on_error="raise")
    assert [record["n"] for record in records] == [1, 2, 3]
    assert not torn.exists()


@pytest.mark.failure("H1")
@pytest.mark.parametrize("tail", [b'{"n":1', b'{"n":1}'], ids=["torn", "whole"])
async def test_a_tail_that_is_the_whole_file_is_handled_too(registry, path, tail):
    path.write_bytes(tail)
    await registry.append(path, {"n": 2})
    whole = tail.endswith(b"}")
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 2}] if whole else [{"n": 2}]


@pytest.mark.failure("H1")
async def test_every_torn_tail_is_kept_one_after_the_other(registry, path, torn):
    for number in range(3):
        await registry.append(path, {"n": number})
        with path.open("ab") as file:
            file.write(b'{"torn":%d' % number)
    await registry.append(path, {"n": 3})
    assert [record["n"] for record in await registry.read(path, on_error="raise")] == [0, 1, 2, 3]
    assert torn.read_bytes() == b'{"torn":0\n{"torn":1\n{"torn":2\n'


@pytest.mark.failure("H1")
async def test_a_tail_torn_by_a_foreign_crash_under_the_lease_is_moved_aside_too(registry, path):
    async with registry.lease(path) as lease:
        await lease.append({"n": 1})
        with path.open("ab") as file:
            file.write(b'{"torn')
        await lease.append({"n": 2})
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 2}]


TAILS = [b'{"n":2}', b"{}", b'{"n":2', b"[1,2]", b'{"n":"\xff"}', b"[" * 100_000, b'{"n":"%s"}' % (b"x" * 100), b" \r"]


@pytest.mark.failure("H1")
@pytest.mark.parametrize("tail", TAILS, ids=lambda tail: repr(tail[:8])[2:-1])
async def test_an_inspection_calls_those_tails_whole_that_the_next_append_keeps(
    registry, path, torn, monkeypatch, tail
):
    monkeypatch.setattr(lines, "LONGEST_LINE", 200_000)
    path.write_bytes(b'{"n":1}\n' + tail)
    seen = inspect(str(path))
    assert seen is not None
    await registry.append(path, {"n": 3})
    if tail.strip():
        assert seen.tail is not None and seen.tail.size == len(tail)
        assert seen.tail.whole == (not torn.exists())
        assert seen.tail.whole == (tail in (b'{"n":2}', b"{}", TAILS[-2]))
    else:
        assert seen.tail is None and not torn.exists()


FIRST_LINES = [
    b'{"lanes.session":"a"}\n',
    b'{"lanes.session":1}\n',
    b'{"n":1}\n',
    b"broken\n",
    b'{"lanes.session":"a"}',
]


@pytest.mark.parametrize("first", FIRST_LINES, ids=lambda first: repr(first)[2:-1])
async def test_an_inspection_names_the_session_by_the_header_that_a_replacement_keeps(registry, path, first):
    path.write_bytes(first)
    seen = inspect(str(path))
    assert seen is not None and seen.key == ("a" if first == FIRST_LINES[0] else None)
    async with registry.lease(path) as lease:
        end = await lease.append({"n": 2})
        await lease.replace([{"n": 3}], through=end)
    kept = first if first in FIRST_LINES[:2] else b'{"lanes.session":"a"}\n' if first == FIRST_LINES[4] else b""
    if first == b"broken\n":
        kept = first  # nobody could read it, so nobody has replaced it
    assert path.read_bytes() == kept + b'{"n":3}\n'


@pytest.mark.parametrize("before", [b"", b'{"n":1}\n'], ids=["alone", "behind-a-line"])
@pytest.mark.parametrize("length", [70_000, 70_001])
async def test_a_tail_longer_than_a_crash_leaves_is_refused_and_left_as_it_is(
    registry, path, torn, monkeypatch, before, length
):
    monkeypatch.setattr(lines, "LONGEST_LINE", 70_000)
    path.write_bytes(before + b"x" * length)
    if length <= 70_000:
        await registry.append(path, {"n": 3})
        assert path.read_bytes() == before + b'{"n":3}\n'
        assert torn.read_bytes() == b"x" * length + b"\n"
        return
    with pytest.raises(TranscriptError, match="more than 70000 bytes without a newline"):
        await registry.append(path, {"n": 3})
    assert path.read_bytes() == before + b"x" * length
    assert not torn.exists()


async def test_to_refuse_a_tail_no_more_is_read_than_a_crash_leaves(registry, path, monkeypatch):
    monkeypatch.setattr(lines, "LONGEST_LINE", 1 << 18)
    path.touch()
    os.truncate(path, 1 << 30)
    lengths, original = [], _os.pread

    def pread(fd, length, offset):
        lengths.append(length)
        return original(fd, length, offset)

    monkeypatch.setattr(_os, "pread", pread)
    for _ in range(3):
        lengths.clear()
        with pytest.raises(TranscriptError, match="no transcript"):
            await registry.append(path, {"n": 1})
        assert sum(lengths) <= (1 << 18) + 2


async def test_a_symlink_in_the_place_of_the_torn_file_is_not_followed(registry, path, torn, tmp_path):
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    torn.symlink_to(victim)
    path.write_bytes(b'{"n":1')
    with pytest.raises(TranscriptError):
        await registry.append(path, {"n": 2})
    assert victim.read_bytes() == b"precious"
    assert path.read_bytes() == b'{"n":1'


async def test_a_broken_line_in_the_middle_stays_as_it_is(registry, path):
    path.write_bytes(b'{"n":1}\nbroken\n')
    await registry.append(path, {"n": 2})
    assert path.read_bytes() == b'{"n":1}\nbroken\n{"n":2}\n'


# The header line


async def test_the_header_is_the_first_line_of_an_empty_file_only_and_no_record(registry, path):
    header = b'{"lanes.session":"agent:main"}\n'
    for number in range(2):
        await registry.store.append(str(path), b'{"n":%d}\n' % number, header=header)
    assert path.read_bytes() == header + b'{"n":0}\n{"n":1}\n'
    assert await registry.read(path) == [{"n": 0}, {"n": 1}]


async def test_a_first_write_that_fails_leaves_no_header_behind(registry, path, monkeypatch):
    header = b'{"lanes.session":"agent:main"}\n'
    with monkeypatch.context() as patch:
        patch.setattr(_os, "write", torn_write(len(header) + 2, errno.ENOSPC))
        with pytest.raises(TranscriptError):
            await registry.store.append(str(path), b'{"n":0}\n', header=header)
    assert path.read_bytes() == b""


# Threads


async def test_a_write_lease_appends_from_many_threads_without_interleaving(registry, path):
    async with registry.lease(path) as lease, create_task_group() as group:

        def work(thread):
            for number in range(50):
                lease.append_sync({"thread": thread, "n": number, "text": "x" * 500})

        for thread in range(4):
            group.start_soon(to_thread.run_sync, work, thread)
    records = await registry.read(path, on_error="raise")
    for thread in range(4):
        assert [record["n"] for record in records if record["thread"] == thread] == list(range(50))


async def test_a_turn_appends_from_a_thread_through_the_loop(registry, path):
    def work():
        assert threading.current_thread() is not threading.main_thread()
        return [turn.append_sync({"n": number}).offset for number in range(5)]

    async with registry.turn(path) as turn:
        offsets = await to_thread.run_sync(work)
    assert offsets == [8, 16, 24, 32, 40]
    assert registry.statistics().appended == 5

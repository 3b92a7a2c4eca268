"""Reading: a whole prefix of the records, without a lock; broken lines are skipped, and said."""

from __future__ import annotations

import pytest
from anyio import create_task_group, to_thread

from locks import BrokenLine, LockRegistry, Position, Records, TranscriptError


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
    assert [line.number for line in records.skipped] == [2, 3, 5, 6]
    assert all(isinstance(line, BrokenLine) and line.reason for line in records.skipped)
    assert path.read_bytes() == BROKEN


async def test_the_broken_lines_among_the_last_records_keep_their_numbers(registry, path):
    path.write_bytes(BROKEN)
    records = await registry.read(path, last=2)
    assert [record["n"] for record in records] == [1, 2]
    assert [line.number for line in records.skipped] == [5, 6]


async def test_a_broken_line_can_be_an_error_that_names_it(registry, path):
    path.write_bytes(BROKEN)
    with pytest.raises(TranscriptError, match="line 2"):
        await registry.read(path, on_error="raise")
    assert [record["n"] for record in await registry.read(path, last=1, on_error="raise")] == [2]


async def test_a_torn_tail_is_no_record_and_the_position_is_before_it(registry, path):
    path.write_bytes(b'{"n":0}\n{"n":1')
    records = await registry.read(path, on_error="raise")
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

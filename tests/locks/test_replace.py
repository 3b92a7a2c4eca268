"""Compaction: what came later is kept, everybody who waits moves along, and no step leaves less than a whole file."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import contextlib
import json
import threading

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, from_thread, to_thread

from locks import DeadlockError, Fence, LeaseExpired, LeaseLost, LeaseTimeout, LockRegistry, Position, TranscriptError
from locks import _os as seam
from locks.engines.interface import Right
from runtime.testing.suspensions import Suspensions
from tests import leaks
from tests.poll import eventually, eventually_sync

SUMMARY = {"summary": "all of it"}


@pytest.fixture(params=["kernel", "filelock", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


async def fill(registry, path, numbers):
    for n in numbers:
        await registry.append(path, {"n": n})


def records(path):
    """What a stranger reads, with nothing of ours."""
    *lines, tail = path.read_bytes().split(b"\n")
    assert tail == b"", f"a torn tail: {tail!r}"
    return [json.loads(line) for line in lines]


def numbered(*numbers):
    return [{"n": n} for n in numbers]


def left_beside(path):
    """The files of a session that are neither it nor the left-overs of `filelock`, which stay."""
    return sorted(one.name for one in path.parent.iterdir() if one != path and one.suffix != ".flock")


@contextlib.contextmanager
def stands(path):
    """The block leaves the very same file, with nothing beside it."""
    before, found = path.read_bytes(), path.stat()
    yield
    assert path.read_bytes() == before
    assert path.stat().st_ino == found.st_ino
    assert left_beside(path) == []


# What is kept


@pytest.mark.failure("H2")
async def test_what_arrives_while_a_session_is_summarised_stands_behind_the_summary(registry, path, virtual):
    await fill(registry, path, range(10))
    seen = await registry.read(path)

    async def go_on_talking():
        for n in range(10, 30):
            await anyio.sleep(0.09)
            await registry.append(path, {"n": n})

    async with create_task_group() as group:
        group.start_soon(go_on_talking)
        await anyio.sleep(2.0)  # the model summarises; nobody holds anything
        async with registry.lease(path) as lease:
            end = await lease.replace([SUMMARY], through=seen.position)
    assert records(path) == [SUMMARY, *numbered(*range(10, 30))]
    assert end.offset == path.stat().st_size
    assert left_beside(path) == []


@pytest.mark.failure("H2")
async def test_without_a_position_it_is_refused_unless_it_was_read_under_this_very_lease(registry, path):
    await fill(registry, path, range(3))
    await registry.read(path)
    with stands(path):
        async with registry.lease(path) as lease:
            with pytest.raises(TranscriptError, match="through="):
                await lease.replace([SUMMARY])
        async with registry.lease(path) as lease:
            await lease.read()
        async with registry.lease(path) as lease:
            with pytest.raises(TranscriptError, match="through="):
                await lease.replace([SUMMARY])


@pytest.mark.failure("H2")
async def test_without_a_position_it_is_refused_when_it_grew_since_it_was_read(registry, path):
    await fill(registry, path, range(3))
    async with registry.lease(path) as lease:
        await lease.read()
        await lease.append({"n": 3})
        with pytest.raises(TranscriptError, match="grew from"):
            await lease.replace([SUMMARY])
        assert records(path) == numbered(0, 1, 2, 3)
        await lease.read(last=1)
        await lease.replace([SUMMARY])
        await lease.append({"n": 4})
    assert records(path) == [SUMMARY, {"n": 4}]


async def test_a_turn_that_read_the_session_may_replace_it_and_goes_on(registry, path):
    await fill(registry, path, range(3))
    async with registry.turn(path) as turn:
        await turn.read()
        await turn.replace([SUMMARY])
        await turn.append({"n": 3})
        with pytest.raises(TranscriptError, match="grew from"):
            await turn.replace([SUMMARY])
        seen = await registry.read(path)
        await registry.append(path, {"n": 4})
        await turn.replace([SUMMARY], through=seen.position)
    assert records(path) == [SUMMARY, {"n": 4}]
    assert registry.statistics().sessions == 0


async def test_the_position_that_it_returns_is_one_to_replace_through_the_next_time(registry, path):
    await fill(registry, path, range(3))
    async with registry.lease(path) as lease:
        await lease.read()
        position = await lease.replace([SUMMARY, SUMMARY])
        await lease.append({"n": 3})
        position = await lease.replace([SUMMARY], through=position)
        assert position.offset == path.stat().st_size
        await lease.replace([{"summary": 2}], through=position)
        position = await lease.append({"n": 4})
        await lease.append({"n": 5})
        await lease.replace([{"summary": 3}], through=position)
    assert records(path) == [{"summary": 3}, {"n": 5}]


async def test_a_session_may_be_replaced_by_nothing_and_an_empty_one_by_something(registry, path):
    async with registry.lease(path) as lease:
        await lease.replace([SUMMARY])
        await lease.read()
        await lease.replace([])
    assert path.read_bytes() == b""


@pytest.mark.failure("H2")
async def test_what_threads_of_the_lease_append_while_the_new_file_is_written_is_kept(registry, path, monkeypatch):
    real, late = seam.fdatasync, numbered(3, 4)

    def fdatasync(fd):
        if late:
            lease.append_sync(late.pop(0))
        real(fd)

    await fill(registry, path, range(3))
    async with registry.lease(path) as lease:
        seen = await lease.read()
        monkeypatch.setattr(seam, "fdatasync", fdatasync)
        await lease.replace([SUMMARY], through=seen.position)
        await lease.append({"n": 5})
    assert records(path) == [SUMMARY, *numbered(3, 4, 5)]


@pytest.mark.failure("H2", "H1")
async def test_a_torn_tail_is_no_record_and_a_whole_one_is(registry, path):
    await fill(registry, path, range(3))
    seen = await registry.read(path)
    with path.open("ab") as file:
        file.write(b'{"n":3}')
    async with registry.lease(path) as lease:
        await lease.replace([SUMMARY], through=seen.position)
    assert records(path) == [SUMMARY, {"n": 3}]
    with path.open("ab") as file:
        file.write(b'{"n":')
    async with registry.lease(path) as lease:
        await lease.read()
        await lease.replace([SUMMARY])
    assert records(path) == [SUMMARY]
    assert path.with_name("session.jsonl.torn").read_bytes() == b'{"n":\n'


# What is refused


@pytest.mark.failure("H2")
@pytest.mark.parametrize("case", ["amid a line", "another file", "beyond the end", "other lines"])
async def test_a_place_that_is_not_in_the_file_is_refused(registry, path, tmp_path, case):
    await fill(registry, path, range(3))
    seen = (await registry.read(path)).position
    other = await registry.append(tmp_path / "other.jsonl", {"n": 0})
    (tmp_path / "other.jsonl").unlink()
    if case == "other lines":  # the number of a file that is gone is soon given to another
        path.write_bytes(path.read_bytes().replace(b"n", b"m"))
    through = {
        "amid a line": Position(seen.offset - 1, seen.file_id),
        "another file": Position(other.offset, (seen.file_id[0], 1)),
        "beyond the end": Position(seen.offset + 8, seen.file_id),
        "other lines": seen,
    }[case]
    with stands(path):
        async with registry.lease(path) as lease:
            with pytest.raises(TranscriptError, match="replaced"):
                await lease.replace([SUMMARY], through=through)
            lease.check()


@pytest.mark.failure("H2")
async def test_a_place_in_a_file_that_was_replaced_since_is_refused(registry, path):
    await fill(registry, path, range(3))
    old = (await registry.read(path)).position
    for n in range(3):  # more than once: ext4 gives the number of the first file to the third
        async with registry.lease(path) as lease:
            await lease.read()
            await lease.replace(numbered(7, 8, 9, n))
        with stands(path):
            async with registry.lease(path) as lease:
                with pytest.raises(TranscriptError, match="replaced"):
                    await lease.replace([SUMMARY], through=old)


async def test_a_file_with_a_second_name_is_not_replaced(registry, path, tmp_path, monkeypatch):
    await fill(registry, path, range(3))
    (tmp_path / "other").hardlink_to(path)
    async with registry.lease(path) as lease:
        await lease.read()
        with pytest.raises(TranscriptError, match="hard links"):
            await lease.replace([SUMMARY])
        (tmp_path / "other").unlink()
        real = seam.fdatasync

        def links(fd):
            (tmp_path / "other").hardlink_to(path)
            real(fd)

        with monkeypatch.context() as patch:
            patch.setattr(seam, "fdatasync", links)
            with pytest.raises(TranscriptError, match="hard links"):
                await lease.replace([SUMMARY])
    assert records(path) == numbered(0, 1, 2)
    assert path.samefile(tmp_path / "other")


@pytest.mark.failure("B1")
@pytest.mark.parametrize("how", ["replaced", "removed"])
@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_a_file_that_somebody_else_replaced_or_removed_is_left_alone(
    registry, path, tmp_path, how, when, monkeypatch
):
    def strike():
        if how == "replaced":
            (tmp_path / "another").write_bytes(b'{"other":1}\n')
            (tmp_path / "another").rename(path)
        else:
            path.unlink()

    real = seam.fdatasync

    def fdatasync(fd):
        real(fd)
        strike()

    await fill(registry, path, range(3))
    async with registry.lease(path) as lease:
        seen = await lease.read()
        if when == "before":
            strike()
        else:
            monkeypatch.setattr(seam, "fdatasync", fdatasync)
        # Without locks, a descriptor is first opened here, so what is gone is found out otherwise.
        with pytest.raises(LeaseLost if registry.engine != "none" else (LeaseLost, TranscriptError)):
            await lease.replace([SUMMARY], through=seen.position)
    assert not path.exists() or path.read_bytes() in (b"", b'{"other":1}\n')
    assert left_beside(path) == []


async def test_what_is_no_record_is_refused_before_anything_is_written(registry, path):
    await fill(registry, path, range(3))
    with stands(path):
        async with registry.lease(path) as lease:
            await lease.read()
            with pytest.raises(TranscriptError):
                await lease.replace([{"n": object()}])


@pytest.mark.failure("B0", "B1")
async def test_a_turn_that_was_taken_away_meanwhile_replaces_nothing(path, monkeypatch, virtual):
    registry = LockRegistry(grace=1.0)
    await fill(registry, path, range(3))
    real = seam.fdatasync

    def freezes(fd):
        real(fd)
        virtual.advance(11.5)

    with stands(path), pytest.raises(LeaseLost):
        async with registry.turn(path, max_hold=10.0) as turn:
            await turn.read()
            monkeypatch.setattr(seam, "fdatasync", freezes)
            with CancelScope(shield=True), pytest.raises(LeaseLost):
                await turn.replace([SUMMARY])


# What the new file is like


@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_the_header_line_stays_and_an_empty_file_gets_it(path, right):
    registry, header = LockRegistry(), b'{"lanes.session":"a"}\n'
    fence = Fence(run_id=1)

    def conduct():
        return registry.new_lease(
            path, Right[right.replace("lease", "write").upper()], None, fence=fence, header=header
        )

    async with conduct() as lease:
        await lease.replace([SUMMARY])
    assert path.read_bytes() == header + b'{"summary":"all of it"}\n'
    async with registry.lease(path) as other:
        await other.append({"n": 1})
        seen = await other.read()
        assert seen == [SUMMARY, {"n": 1}]
        await other.replace([{"n": 2}])
        await other.replace([], through=Position(0, (path.stat().st_dev, path.stat().st_ino)))
    assert path.read_bytes() == header + b'{"n":2}\n'


async def test_the_new_file_has_the_mode_of_the_old_one(registry, path):
    await fill(registry, path, range(3))
    path.chmod(0o640)
    async with registry.lease(path) as lease:
        await lease.read()
        await lease.replace([SUMMARY])
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.failure("B4")
async def test_a_symlink_stays_and_its_target_is_replaced(registry, path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.jsonl"
    path.symlink_to(target)
    await fill(registry, path, range(3))
    async with registry.lease(path) as lease:
        await lease.read()
        await lease.replace([SUMMARY])
        await lease.append({"n": 3})
    assert path.is_symlink()
    assert not target.is_symlink()
    assert records(target) == [SUMMARY, {"n": 3}]
    assert left_beside(target) == []


@pytest.mark.failure("B4")
async def test_every_name_of_a_session_leads_to_the_new_file(registry, path, tmp_path, virtual):
    alias = tmp_path / "alias.jsonl"
    alias.symlink_to(path)
    await fill(registry, path, range(3))
    done = []

    async def wait():
        async with registry.lease(path) as lease:
            await lease.append({"n": 3})
            done.append(registry.statistics().sessions)

    async with create_task_group() as group, registry.lease(alias) as lease:
        group.start_soon(wait)
        await virtual.settle()
        await lease.read()
        await lease.replace([SUMMARY])
        assert registry.statistics().sessions == 1
    assert records(path) == records(alias) == [SUMMARY, {"n": 3}]
    assert done == [1]


@pytest.mark.parametrize("what", ["file", "symlink"])
async def test_what_a_crash_left_beside_is_removed_and_never_followed(registry, path, tmp_path, what):
    await fill(registry, path, range(3))
    (tmp_path / "victim").write_bytes(b"precious")
    beside = tmp_path / "session.jsonl.new"
    if what == "file":
        beside.write_bytes(b'{"half":')
    else:
        beside.symlink_to(tmp_path / "victim")
    async with registry.lease(path) as lease:
        await lease.read()
        await lease.replace([SUMMARY])
    assert records(path) == [SUMMARY]
    assert not path.is_symlink()
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not beside.is_symlink()
    assert not beside.exists()


# Who waits, and who reads


@pytest.mark.failure("H2")
async def test_who_waits_in_this_process_and_in_another_notices_and_keeps_the_place(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    served = []

    async def wait(registry, number):
        async with registry.lease(path) as lease:
            served.append(number)
            await lease.append({"n": number})
            await anyio.sleep(1)

    async with create_task_group() as group, here.lease(path) as lease:
        for number in range(6):
            group.start_soon(wait, (here, there)[number % 2], number)
            await anyio.sleep(0.01)
        await lease.read()
        await lease.replace([SUMMARY])
        await lease.append({"n": -1})
        await anyio.sleep(0.1)  # until the other process has looked
        assert served == []
        assert (here.statistics().waiting, there.statistics().waiting) == (3, 3)
    assert served == list(range(6))
    assert records(path) == [SUMMARY, *numbered(-1, *range(6))]


@pytest.mark.failure("B6")
async def test_who_waits_with_the_old_file_in_hand_leaves_the_lock_file_of_the_new_one_alone(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    beside = path.with_name("session.jsonl.lock")

    async def wait():
        async with there.lease(path) as lease:
            await lease.append({"n": 4})

    async with create_task_group() as group, here.lease(path) as lease:
        group.start_soon(wait)
        await anyio.sleep(0.1)
        before, found = beside.read_bytes(), beside.stat()
        await lease.read()
        await lease.replace([SUMMARY])
        await anyio.sleep(0.1)
        assert there.statistics().waiting == 1
        assert (beside.read_bytes(), beside.stat().st_ino) == (before, found.st_ino)
    assert records(path) == [SUMMARY, {"n": 4}]
    assert left_beside(path) == []


async def test_an_append_right_behind_it_goes_to_the_new_file(path):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    async with here.lease(path) as lease:
        await lease.read()
        await lease.replace([SUMMARY])
    await there.append(path, {"n": 3})
    await here.append(path, {"n": 4})
    assert records(path) == [SUMMARY, *numbered(3, 4)]


async def test_who_has_begun_to_read_reads_the_old_file_to_its_end_and_later_ones_the_new(path):
    registry = LockRegistry()
    old = [{"n": n, "text": "x" * 1000} for n in range(1000)]
    async with registry.lease(path) as lease:
        await lease.append_many(old)
        read: list[dict] = []
        async with contextlib.aclosing(registry.stream(path)) as batches:
            async for batch in batches:
                if not read:
                    await lease.replace([SUMMARY], through=await lease.append({"n": 1000}))
                    assert await registry.read(path, on_error="raise") == [SUMMARY]
                read += batch
    assert read == old


# Both rights move along


@pytest.mark.failure("B1")
@pytest.mark.parametrize("turn_is_held", [True, False])
async def test_nobody_gets_in_between_the_rename_and_the_locks(path, monkeypatch, turn_is_held):
    here, there = LockRegistry(sidecar=False), LockRegistry(sidecar=False)
    await fill(here, path, range(3))
    real, got = seam.rename, []

    def rename(source, target):
        real(source, target)
        for right in Right:
            claim = there.arbiter.new_claim()
            got.append(there.arbiter.acquire_nowait(str(path), right, claim))
            there.arbiter.release(claim)

    async with contextlib.AsyncExitStack() as stack:
        if turn_is_held:
            await stack.enter_async_context(here.turn(path))
        lease = await stack.enter_async_context(here.lease(path))
        await lease.read()
        monkeypatch.setattr(seam, "rename", rename)
        await lease.replace([SUMMARY])
        assert got == [False, False]
        with pytest.raises(LeaseTimeout):
            async with there.lease(path, wait_timeout=0):
                pass
        if not turn_is_held:
            async with there.turn(path, wait_timeout=0):
                pass


@pytest.mark.failure("B1")
async def test_the_turn_of_another_run_of_this_process_stays_exclusive(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    order = []

    async def conduct(*, task_status):
        async with here.turn(path) as turn:
            task_status.started()
            await anyio.sleep(10)
            await turn.append({"n": 3})
            order.append("here")

    async def wait():
        async with there.turn(path) as turn:
            order.append("there")
            await turn.append({"n": 4})

    async with create_task_group() as group:
        await group.start(conduct)
        group.start_soon(wait)
        await anyio.sleep(1)
        async with here.lease(path) as lease:
            await lease.read()
            await lease.replace([SUMMARY])
        with pytest.raises(LeaseTimeout):
            async with there.turn(path, wait_timeout=1):
                pass
        assert order == []
    assert order == ["here", "there"]
    assert records(path) == [SUMMARY, *numbered(3, 4)]


@pytest.mark.parametrize("step", ["rename", "follow"])
async def test_when_it_cannot_be_put_in_place_the_turn_stays_free(path, monkeypatch, step):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))

    def fails(*args):
        raise OSError(5, "Input/output error")

    async with here.lease(path) as lease:
        with stands_beside_its_lock_file(path), monkeypatch.context() as patch:
            await lease.read()
            patch.setattr(
                *{"rename": (seam, "rename"), "follow": ("locks.engines.kernel.KernelLock.follow",)}[step], fails
            )
            with pytest.raises(TranscriptError, match="replace"):
                await lease.replace([SUMMARY])
        async with there.turn(path, wait_timeout=0):
            pass
        await lease.replace([SUMMARY])
    assert records(path) == [SUMMARY]


@contextlib.contextmanager
def stands_beside_its_lock_file(path):
    before, found = path.read_bytes(), path.stat()
    yield
    assert path.read_bytes() == before
    assert path.stat().st_ino == found.st_ino
    assert left_beside(path) == ["session.jsonl.lock"]


async def test_when_only_the_directory_cannot_be_synced_the_new_file_stands_and_the_error_says_so(path, monkeypatch):
    registry = LockRegistry()
    await fill(registry, path, range(3))

    def fails(fd):
        raise OSError(5, "Input/output error")

    async with registry.lease(path) as lease:
        await lease.read()
        with monkeypatch.context() as patch:
            patch.setattr(seam, "fsync", fails)
            with pytest.raises(TranscriptError, match="is replaced, but"):
                await lease.replace([SUMMARY])
        await lease.append({"n": 3})
    assert records(path) == [SUMMARY, {"n": 3}]


# While another process conducts the session


@pytest.mark.failure("H2")
async def test_it_waits_for_the_turn_of_another_process_which_may_append_meanwhile(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    seen, order = await here.read(path), []

    async def conduct(*, task_status):
        async with there.turn(path) as turn:
            task_status.started()
            for n in range(3, 6):
                await anyio.sleep(1)
                await turn.append({"n": n})
            order.append("turn")

    async with create_task_group() as group:
        await group.start(conduct)
        async with here.lease(path, max_hold=60.0) as lease:
            ends_at = lease.deadline
            await lease.replace([SUMMARY], through=seen.position)
            order.append("replaced")
            assert lease.deadline == ends_at
            await lease.append({"n": 6})
    assert order == ["turn", "replaced"]
    assert records(path) == [SUMMARY, *numbered(3, 4, 5, 6)]
    assert left_beside(path) == []
    for registry in (here, there):
        assert registry.statistics().sessions == 0


@pytest.mark.failure("A10")
async def test_having_waited_for_a_turn_the_lease_still_ends_at_its_deadline(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    seen, started = await here.read(path), virtual.now()

    async def conduct(*, task_status):
        async with there.turn(path):
            task_status.started()
            await anyio.sleep(5)

    async with create_task_group() as group:
        await group.start(conduct)
        with pytest.raises(LeaseExpired):
            async with here.lease(path, max_hold=9.0, idle_timeout=7.0) as lease:
                await lease.replace([SUMMARY], through=seen.position)
                waited = virtual.now() - started
                assert 5 <= waited < 5.1
                assert lease.deadline == pytest.approx(started + 9.0)
                await anyio.sleep(3)
                assert not lease.progress()  # at its hard limit already
                await anyio.sleep_forever()
        assert virtual.now() == pytest.approx(started + 9.0)
    assert records(path) == [SUMMARY]


@pytest.mark.failure("A6")
async def test_a_turn_of_another_process_that_outlasts_the_lease_leaves_the_old_file(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    seen, started = await here.read(path), virtual.now()
    async with there.turn(path) as turn:
        with pytest.raises(LeaseTimeout):
            async with here.lease(path, max_hold=10.0) as lease:
                await lease.replace([SUMMARY], through=seen.position)
        assert virtual.now() == started + 10.0
        await turn.append({"n": 3})
        assert left_beside(path) == ["session.jsonl.turn"]
    assert records(path) == numbered(0, 1, 2, 3)
    assert here.statistics().sessions == 0


@pytest.mark.failure("A9")
async def test_it_does_not_wait_for_a_turn_that_waits_for_an_outer_block(path, virtual):
    here, there = LockRegistry(), LockRegistry()
    await fill(here, path, range(3))
    async with there.turn(path), here.lease(path) as outer:
        async with here.lease(path) as inner:
            await inner.read()
            with pytest.raises(DeadlockError, match="outer block"):
                await inner.replace([SUMMARY])
        await outer.append({"n": 3})
    assert records(path) == numbered(0, 1, 2, 3)


# Cancelled, and hung


@pytest.mark.suite("C1")
@pytest.mark.failure("A5", "A6")
@pytest.mark.parametrize(
    "right, elsewhere",
    [("lease", False), ("turn", False), ("lease", True)],
    ids=["lease", "turn", "another process has the turn"],
)
async def test_cancelled_at_any_suspension_it_leaves_the_old_file_or_the_new_and_nothing_else(path, right, elsewhere):
    here, there = LockRegistry(), LockRegistry()

    async def compact():
        async with here.turn(path) if right == "turn" else here.lease(path) as lease:
            await lease.replace([SUMMARY], through=seen.position)

    async def conduct(*, task_status):
        async with there.turn(path) as turn:
            task_status.started()
            await anyio.sleep(0.004)
            await turn.append({"n": 2})

    k, acted, outcomes = 0, True, []
    before = leaks.descriptors()
    while acted:
        k += 1
        path.unlink(missing_ok=True)
        await fill(here, path, range(2))
        seen = await here.read(path)
        async with create_task_group() as group:
            if elsewhere:
                await group.start(conduct)
            with CancelScope() as scope:
                driver = Suspensions(k, scope.cancel)
                await driver.run(compact())
            assert here.statistics().sessions == 0, f"cancelled at {k}"
        acted = driver.acted
        await eventually(lambda: leaks.descriptors() == before)
        late = numbered(2) if elsewhere else []
        outcomes.append(records(path) == [SUMMARY, *late])
        assert outcomes[-1] or records(path) == [*numbered(0, 1), *late], f"cancelled at {k}"
        assert left_beside(path) == [], f"cancelled at {k}"
        with fail_after(60):
            async with here.turn(path, wait_timeout=0.5), here.lease(path, wait_timeout=0.5) as lease:
                await lease.append({"k": k})
        assert records(path)[-1] == {"k": k}
    assert k > 3
    assert outcomes[0] is False
    assert outcomes[-1] is True


class Hung:
    """A call of the seam that hangs in the first thread that makes it, until it is let go; time passes meanwhile."""

    def __init__(self, monkeypatch, name, clock):
        self.go = threading.Event()
        self.begun = False
        self._clock, self._real, self._loop = clock, getattr(seam, name), threading.get_ident()
        monkeypatch.setattr(seam, name, self)

    def __call__(self, *args):
        if threading.get_ident() != self._loop and not self.begun:
            self.begun = True
            from_thread.run_sync(setattr, self._clock, "threads_hold", False)
            assert self.go.wait(120)
        return self._real(*args)


@pytest.mark.failure("A6")
async def test_a_compaction_whose_body_never_settles_ends_at_its_deadline_and_the_foreground_passes(path, virtual):
    registry = LockRegistry(grace=2.0)
    await fill(registry, path, range(3))
    started = virtual.now()
    passed = []

    async def compact(*, task_status):
        with pytest.raises(LeaseLost):
            async with registry.lease(path, max_hold=10.0) as lease:
                await lease.read()
                task_status.started()
                with CancelScope(shield=True):
                    await anyio.sleep(100)
                with pytest.raises(LeaseLost):
                    await lease.replace([SUMMARY])

    async with create_task_group() as group:
        await group.start(compact)
        await registry.append(path, {"n": 3})
        passed.append(virtual.now() - started)
    assert passed == [12.0]  # deadline + grace
    assert records(path) == numbered(0, 1, 2, 3)
    assert left_beside(path) == []


@pytest.mark.failure("A6", "F7")
@pytest.mark.parametrize("call", ["write", "fdatasync", "fsync"])
async def test_a_compaction_whose_disk_hangs_ends_at_its_deadline_and_the_foreground_passes(
    path, virtual, monkeypatch, call
):
    registry = LockRegistry()
    await fill(registry, path, range(3))
    before = leaks.descriptors()
    hung, started = Hung(monkeypatch, call, virtual), virtual.now()
    with pytest.raises(LeaseExpired):
        async with registry.lease(path, max_hold=10.0) as lease:
            await lease.read()
            await lease.replace([SUMMARY])
    assert hung.begun
    assert virtual.now() == started + 10.0
    first = [SUMMARY] if call == "fsync" else numbered(0, 1, 2)
    assert records(path) == first
    assert left_beside(path) == []
    await registry.append(path, {"n": 3})
    virtual.threads_hold = True
    async with registry.lease(path) as lease:  # another one overtakes the one that hangs
        seen = await lease.read()
        await lease.replace([{"summary": 2}], through=seen.position)
        await lease.append({"n": 4})
    hung.go.set()
    await to_thread.run_sync(until, lambda: leaks.descriptors() == before)
    assert records(path) == [{"summary": 2}, {"n": 4}]
    assert left_beside(path) == []


def until(predicate):
    """On a worker thread, which holds virtual time still."""
    eventually_sync(predicate)

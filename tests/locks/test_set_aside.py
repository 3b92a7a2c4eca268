"""A session's file is set aside by the run that conducts it, and earlier runs write nothing to what comes after."""

from __future__ import annotations

import contextlib
import errno
import json
import os

import anyio
import pytest
from anyio import create_task_group, fail_after, to_thread

from locks import Fence, LeaseLost, LeaseTimeout, LockRegistry, RunEnded, TranscriptError
from locks import _os as seam
from locks.engines.interface import Right
from runtime.testing.suspensions import sweep
from tests import leaks
from tests.faults import Fault, FaultySeam
from tests.peers import peer
from tests.poll import eventually

pytestmark = pytest.mark.backends("asyncio", "trio")  # files and values: what uvloop does otherwise has no part in it

HEADER = b'{"lanes.session":"a"}\n'


@pytest.fixture(params=["kernel", "filelock", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.fixture
def archive(path):
    return path + ".archived"


@pytest.fixture
def run():
    """The run that conducts the session."""
    return Fence(lane="main", run_id=1)


def conducts(registry, path, run):
    """The turn of a session, for a run."""
    return registry.new_lease(path, Right.TURN, None, fence=run)


async def note(registry, path, *numbers):
    for n in numbers:
        await registry.store.append(path, b'{"n":%d}\n' % n, header=HEADER)


def lines(path):
    """What a stranger reads: the numbers of the records, behind the header."""
    with open(path, "rb") as file:
        header, *records = file.read().splitlines(keepends=True)
    assert header == HEADER
    assert all(record.endswith(b"\n") for record in records)
    return [json.loads(record)["n"] for record in records]


def names(tmp_path):
    """The files there, without the left-overs of `filelock`, which stay."""
    return sorted(one.name for one in tmp_path.iterdir() if one.suffix != ".flock")


def nothing_is_held(*registries):
    return all((now.sessions, now.held, now.waiting) == (0, 0, 0) for now in (one.statistics() for one in registries))


# A run that may no longer write to a session


@pytest.mark.failure("E14", "B0")
async def test_a_late_write_of_a_barred_run_is_refused_whichever_way_it_comes_and_other_files_are_open(path, tmp_path):
    registry = LockRegistry()
    refused: list[None] = []
    old = Fence(lane="main", run_id=5, on_refused=lambda: refused.append(None))
    other = str(tmp_path / "other.jsonl")
    async with registry.lease_for(old, path) as lease:
        await lease.append({"n": 1})
        old.bar(path, "the session was reset")
        with pytest.raises(RunEnded) as caught:
            await lease.append({"n": 2})
        with pytest.raises(RunEnded):
            await to_thread.run_sync(lease.append_sync, {"n": 3})
        with pytest.raises(RunEnded):
            await lease.replace([])
    with pytest.raises(RunEnded):
        async with registry.lease_for(old, path):
            pytest.fail("entered")
    with pytest.raises(RunEnded):
        async with conducts(registry, path, old):
            pytest.fail("entered")
    with pytest.raises(RunEnded):
        await registry.store.append(path, b'{"n":4}\n', under=old)
    with pytest.raises(RunEnded):
        await to_thread.run_sync(lambda: registry.store.append_sync(path, b'{"n":5}\n', under=old))
    error = caught.value
    assert str(error) == f"{old.holder} may no longer write to {path}: the session was reset"
    assert (error.path, error.holder) == (path, old.holder)
    assert len(refused) >= 7
    assert not old.closed
    async with registry.lease_for(old, other) as lease:
        await lease.append({"n": 6})
    await registry.store.append(other, b'{"n":7}\n', under=old)
    assert await registry.read(path) == [{"n": 1}]
    assert await registry.read(other) == [{"n": 6}, {"n": 7}]
    assert nothing_is_held(registry)


@pytest.mark.failure("E14")
async def test_a_run_that_is_barred_while_it_waits_gets_nothing_and_the_queue_moves_on(registry, path, virtual):
    old, told, written = Fence(run_id=5), [], []

    async def late():
        try:
            async with registry.lease_for(old, path):
                pytest.fail("entered")
        except RunEnded as error:
            told.append(str(error))

    async def next_one():
        await note(registry, path, 6)
        written.append(6)

    async with create_task_group() as group, registry.lease(path):
        group.start_soon(late)
        await virtual.settle()
        group.start_soon(next_one)
        await virtual.settle()
        old.bar(path, "reset")
    assert told == [f"{old.holder} may no longer write to {path}: reset"]
    assert (written, lines(path)) == ([6], [6])
    assert nothing_is_held(registry)


@pytest.mark.failure("E14")
async def test_what_a_barred_run_holds_it_may_give_back_and_the_end_of_the_run_is_still_told_as_such(path):
    registry, old = LockRegistry(), Fence(run_id=5)
    async with conducts(registry, path, old) as turn:
        old.bar(path, "reset")
        old.bar("/another", "gone")
        old.bar(path, "reset again")
        with pytest.raises(RunEnded, match=r"may no longer write to .*: reset again$"):
            await turn.append({"n": 1})
        old.close()
        with pytest.raises(RunEnded, match="has ended"):
            await turn.append({"n": 2})
    assert nothing_is_held(registry)


# The file


@pytest.mark.failure("E14")
@pytest.mark.parametrize("kept", [True, False], ids=["renamed", "removed"])
async def test_the_next_append_by_anyone_begins_a_new_file(registry, path, archive, tmp_path, run, kept):
    await note(registry, path, 1, 2)
    (tmp_path / "session.jsonl.torn").write_bytes(b"torn\n")
    async with conducts(registry, path, run):
        assert await registry.store.set_aside(path, archive if kept else None, under=run)
        beside = ["session.jsonl.archived"] * kept + ["session.jsonl.torn"]
        assert names(tmp_path) == beside
        await note(registry, path, 3)
        assert lines(path) == [3]
    await note(registry, path, 4)
    assert lines(path) == [3, 4]
    if kept:
        assert lines(archive) == [1, 2]
    assert names(tmp_path) == ["session.jsonl", *beside]
    assert nothing_is_held(registry)


async def test_where_there_is_no_file_none_is_made(registry, path, archive, tmp_path, run):
    assert not await registry.store.set_aside(path, archive, under=run)
    assert not await registry.store.set_aside(str(tmp_path / "nowhere" / "s"), None, under=run)
    async with conducts(registry, path, run):
        assert await registry.store.set_aside(path, archive, under=run)
        assert not await registry.store.set_aside(path, None, under=run)
    assert names(tmp_path) == ["session.jsonl.archived"]
    assert nothing_is_held(registry)


async def test_a_session_may_be_reset_again_and_again_within_one_turn(registry, path, archive, run):
    async with conducts(registry, path, run):
        assert await registry.store.set_aside(path, archive, under=run)
    for n in range(5):
        async with conducts(registry, path, run):
            await note(registry, path, n)
            assert await registry.store.set_aside(path, f"{archive}-{n}", under=run)
            assert lines(f"{archive}-{n}") == [n]
    assert nothing_is_held(registry)


@pytest.mark.failure("B4")
async def test_of_a_symlink_the_target_is_set_aside_and_all_names_lead_to_the_new_file(registry, path, tmp_path, run):
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "target.jsonl"
    (tmp_path / "session.jsonl").symlink_to(target)
    await note(registry, path, 1)
    async with conducts(registry, path, run):
        assert await registry.store.set_aside(path, str(target) + ".old", under=run)
    assert not target.exists()
    await note(registry, path, 2)
    await note(registry, str(target), 3)
    assert lines(target) == lines(path) == [2, 3]
    assert lines(str(target) + ".old") == [1]


# What is refused


@contextlib.contextmanager
def stands(path):
    """The block leaves the very same file."""
    with open(path, "rb") as file:
        before = file.read()
        yield
        with open(path, "rb") as again:
            assert again.read() == before
            assert seam.fstat(again.fileno()).st_ino == seam.fstat(file.fileno()).st_ino


@pytest.mark.parametrize("what", ["file", "symlink to nowhere", "directory"])
async def test_nothing_is_overwritten(registry, path, archive, tmp_path, run, what):
    await note(registry, path, 1)
    there = tmp_path / "session.jsonl.archived"
    if what == "file":
        there.write_bytes(b"precious")
    elif what == "directory":
        there.mkdir()
    else:
        there.symlink_to(tmp_path / "nowhere")
    async with conducts(registry, path, run) as turn:
        with stands(path), pytest.raises(TranscriptError, match=r"archived: that is there already") as caught:
            await registry.store.set_aside(path, archive, under=run)
        await turn.append({"n": 2})
    assert caught.value.path == path
    assert lines(path) == [1, 2]
    assert what != "file" or there.read_bytes() == b"precious"
    assert names(tmp_path) == ["session.jsonl", "session.jsonl.archived"]
    assert nothing_is_held(registry)


@pytest.mark.parametrize("who", ["nobody", "another run", "another process"])
async def test_who_does_not_conduct_the_session_sets_nothing_aside(path, archive, tmp_path, run, who):
    registry, there = LockRegistry(), LockRegistry()
    await note(registry, path, 1)
    async with contextlib.AsyncExitStack() as stack:
        if who != "nobody":
            where = registry if who == "another run" else there
            await stack.enter_async_context(conducts(where, path, Fence(run_id=2)))
        with stands(path), pytest.raises(LeaseLost, match="does not conduct"):
            await registry.store.set_aside(path, archive, under=run)
    assert names(tmp_path) == ["session.jsonl"]
    assert nothing_is_held(registry, there)


@pytest.mark.failure("B0", "E14")
@pytest.mark.parametrize("how", ["ended", "barred", "turn revoked", "turn being revoked", "lease revoked"])
async def test_a_run_that_may_not_write_sets_nothing_aside(registry, path, archive, tmp_path, run, how, virtual):
    await note(registry, path, 1)
    raised = []

    async def reset():
        with contextlib.suppress(LeaseLost):
            async with conducts(registry, path, run):
                with anyio.CancelScope(shield=True):
                    try:
                        await registry.store.set_aside(path, archive, under=run)
                    except LeaseLost as error:
                        raised.append(error)

    def revoke(right):
        (claim,) = [one for one in run.claims if one.queue.right is right]
        registry.arbiter.grants.steward.revoke(claim, LeaseLost("by hand", path=path, holder=run.holder))

    async with create_task_group() as group:
        async with registry.lease(path):
            group.start_soon(reset)
            await virtual.settle()
            if how == "ended":
                run.close()
            elif how == "barred":
                run.bar(path, "reset")
            elif how == "turn revoked":
                revoke(Right.TURN)
            elif how == "turn being revoked":
                (turn,) = run.claims
                with turn.queue.mutex:  # a thread has it, so this is only noted
                    revoke(Right.TURN)
        if how == "lease revoked":
            revoke(Right.WRITE)  # granted by now, and its task has not run since
    assert len(raised) == 1
    assert lines(path) == [1]
    assert names(tmp_path) == ["session.jsonl"]
    assert nothing_is_held(registry)


@pytest.mark.failure("B1")
async def test_a_file_that_somebody_else_put_there_is_left_alone(registry, path, archive, tmp_path, run):
    await note(registry, path, 1)
    async with conducts(registry, path, run):
        (tmp_path / "another").write_bytes(HEADER)
        (tmp_path / "another").rename(path)
        with stands(path), pytest.raises(LeaseLost):
            await registry.store.set_aside(path, archive, under=run)
    assert names(tmp_path) == ["session.jsonl"]
    assert nothing_is_held(registry)


@pytest.mark.failure("B1")
async def test_nor_is_one_that_was_put_there_in_the_last_instant(path, archive, tmp_path, run, monkeypatch):
    registry, real = LockRegistry(), seam.realpath

    def realpath(name):
        (tmp_path / "another").rename(path)
        return real(name)

    await note(registry, path, 1)
    (tmp_path / "another").write_bytes(HEADER)
    async with conducts(registry, path, run):
        monkeypatch.setattr(seam, "realpath", realpath)
        with pytest.raises(LeaseLost, match="replaced or removed"):
            await registry.store.set_aside(path, archive, under=run)
    assert lines(path) == []
    assert names(tmp_path) == ["session.jsonl"]
    assert nothing_is_held(registry)


@pytest.mark.failure("B4")
async def test_a_file_with_a_second_name_is_not_set_aside(registry, path, archive, tmp_path, run):
    await note(registry, path, 1)
    (tmp_path / "other").hardlink_to(path)
    async with conducts(registry, path, run):
        with stands(path), pytest.raises(TranscriptError, match="hard links"):
            await registry.store.set_aside(path, archive, under=run)
    assert names(tmp_path) == ["other", "session.jsonl"]
    assert nothing_is_held(registry)


@pytest.mark.usefixtures("notes_at_once")
async def test_inside_a_lease_of_the_same_run_it_is_refused_and_the_lease_goes_on(path, archive, tmp_path, run):
    registry = LockRegistry()
    await note(registry, path, 1)
    async with conducts(registry, path, run), registry.lease_for(run, path) as lease:
        with stands(path), pytest.raises(TranscriptError, match="holds its lease as well"):
            await registry.store.set_aside(path, archive, under=run)
        await lease.append({"n": 2})
        assert names(tmp_path) == ["session.jsonl", "session.jsonl.lock", "session.jsonl.turn"]
        assert len(lease.claim.tasks) == 1
    assert names(tmp_path) == ["session.jsonl"]
    assert nothing_is_held(registry)


# Who waits, and who comes


@pytest.mark.failure("E14")
async def test_it_waits_in_order_of_arrival_and_who_came_later_writes_to_the_new_file_in_order(path, archive, virtual):
    here, there, run = LockRegistry(), LockRegistry(), Fence(run_id=1)
    served = []

    async def wait(registry, n):
        async with registry.lease_for(Fence(run_id=n), path, header=HEADER) as lease:
            await lease.append({"n": n})
            served.append(n)
            await anyio.sleep(1)

    async def reset():
        served.append(await here.store.set_aside(path, archive, under=run))

    async with create_task_group() as group, conducts(here, path, run):
        async with here.lease(path):
            for n in range(10, 14):
                group.start_soon(wait, (here, there)[n % 2], n)
                await anyio.sleep(0.01)
            group.start_soon(reset)
            await anyio.sleep(0.01)
            for n in range(20, 26):
                group.start_soon(wait, (here, there)[n % 2], n)
                await anyio.sleep(0.01)
        while len(served) < 11:
            await anyio.sleep(1)
    assert served == [*range(10, 14), True, *range(20, 26)]
    assert (lines(archive), lines(path)) == ([*range(10, 14)], [*range(20, 26)])
    assert nothing_is_held(here, there)


@pytest.mark.failure("E14")
async def test_who_waits_for_the_turn_here_or_elsewhere_conducts_the_new_file_afterwards(path, archive, run, virtual):
    here, there = LockRegistry(), LockRegistry()
    await note(here, path, 1)
    served = []

    async def wait(registry, n):
        async with registry.turn(path) as turn:
            served.append(n)
            await turn.append({"n": n})
            await anyio.sleep(1)

    async with create_task_group() as group, conducts(here, path, run):
        for n in range(4):
            group.start_soon(wait, (here, there)[n % 2], n)
            await anyio.sleep(0.01)
        assert await here.store.set_aside(path, archive, under=run)
        await note(here, path, 9)
        await anyio.sleep(1)
        assert served == []
    assert served == [0, 1, 2, 3]
    assert (lines(archive), lines(path)) == ([1], [9, 0, 1, 2, 3])
    assert nothing_is_held(here, there)


@pytest.mark.failure("B6")
@pytest.mark.usefixtures("notes_at_once")
async def test_another_process_conducts_the_new_file_at_once_and_what_stands_beside_it_is_left_alone(
    path, archive, tmp_path, run, monkeypatch
):
    """It comes in the very instant in which the name is free, before anything of ours is given back."""
    here, there = LockRegistry(), LockRegistry()
    real, theirs = seam.rename, Fence(run_id=2)
    claims = []

    def rename(source, target):
        real(source, target)
        for right in Right:
            claim = there.arbiter.new_claim(fence=theirs)
            assert there.arbiter.acquire_nowait(path, right, claim)
            claims.append(claim)

    beside = [tmp_path / "session.jsonl.lock", tmp_path / "session.jsonl.turn"]
    await note(here, path, 1)
    async with conducts(here, path, run):
        with monkeypatch.context() as patch:
            patch.setattr(seam, "rename", rename)
            assert await here.store.set_aside(path, archive, under=run)
        their_files = [one.read_bytes() for one in beside]
        assert here.statistics().held == 1
    assert [one.read_bytes() for one in beside] == their_files
    assert here.statistics().sessions == 0
    there.store.write(claims[0], path, b'{"n":2}\n', HEADER)
    for claim in claims:
        there.arbiter.release(claim)
    assert (lines(archive), lines(path)) == ([1], [2])
    assert names(tmp_path) == ["session.jsonl", "session.jsonl.archived"]
    assert nothing_is_held(here, there)


@pytest.mark.failure("E14")
async def test_a_process_that_waits_for_the_turn_of_the_old_file_conducts_the_new_one(
    path, archive, run, anyio_backend_name
):
    registry = LockRegistry()
    await note(registry, path, 1)
    with fail_after(60):
        async with conducts(registry, path, run):
            with contextlib.ExitStack() as stack:
                other = stack.enter_context(peer("holder", path, "turn", anyio_backend_name))
                await eventually(lambda: other.said("waiting"), within=30)
                assert await registry.store.set_aside(path, archive, under=run)
                await note(registry, path, 2)
                kept = stack.pop_all()
        with kept:
            await eventually(lambda: other.said("held"), within=30)
            with pytest.raises(LeaseTimeout):
                async with registry.turn(path, wait_timeout=0):
                    pytest.fail("entered")
            assert [record.get("n") for record in await registry.read(path)] == [2, None]
            other.tell("leave")
            async with registry.turn(path):
                assert other.said("held")
            await eventually(lambda: other.said("left"), within=30)
    assert lines(archive) == [1]
    assert nothing_is_held(registry)


# Cancelled, refused by the system, and the disk


@pytest.mark.suite("C1")
@pytest.mark.parametrize("durability", ["process", "sync"])
async def test_cancelled_at_any_suspension_the_file_has_its_name_or_is_set_aside(path, archive, tmp_path, durability):
    registry, run = LockRegistry(durability=durability), Fence(run_id=1)
    before, outcomes = leaks.descriptors(), []

    async def prepare():
        for name in names(tmp_path):
            (tmp_path / name).unlink()
        await note(registry, path, 1)

    async def reset():
        async with conducts(registry, path, run):
            await registry.store.set_aside(path, archive, under=run)

    async def check(k):
        await eventually(lambda: leaks.descriptors() == before)
        assert nothing_is_held(registry), f"cancelled at {k}"
        (name,) = names(tmp_path)
        assert lines(tmp_path / name) == [1]
        outcomes.append(name != "session.jsonl")

    await sweep(reset, check, least=2, prepare=prepare)
    assert outcomes == sorted(outcomes)
    assert (outcomes[0], outcomes[-1]) == (False, True)
    assert (durability == "sync") == (outcomes.count(True) > 1)


@pytest.mark.suite("F1")
@pytest.mark.backends("asyncio", "trio")
@pytest.mark.parametrize("kept", [True, False], ids=["renamed", "removed"])
@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES], ids=["EIO", "EACCES"])
@pytest.mark.usefixtures("notes_at_once")
async def test_whatever_call_of_the_system_fails_the_session_is_there_once_and_the_error_is_typed(
    path, archive, tmp_path, run, monkeypatch, code, kept
):
    registry = LockRegistry(durability="sync")
    faulty, before, fired = FaultySeam(monkeypatch), leaks.descriptors(), set()
    for n in range(1, 200):
        for name in names(tmp_path):
            (tmp_path / name).unlink()
        await note(registry, path, 1)
        async with conducts(registry, path, run):
            with faulty.fails(Fault(code), n):
                done, failed = False, None
                try:
                    done = await registry.store.set_aside(path, archive if kept else None, under=run)
                except TranscriptError as error:
                    failed = error
            assert done == (failed is None)
            if failed is not None:
                assert failed.path.startswith(path)
                done = "is set aside, but" in str(failed)
            left = names(tmp_path)
            assert ("session.jsonl" in left) != done, f"{n}: {faulty.fired}"
            assert done or left == ["session.jsonl", "session.jsonl.turn"], f"{n}: {faulty.fired}"
            assert lines(archive if done else path) == [1] if kept or not done else True
            assert registry.statistics().held == 1
            assert done or await registry.store.set_aside(path, archive, under=run)
        assert not {"session.jsonl.lock", "session.jsonl.turn"} & set(names(tmp_path)) or faulty.fired == "unlink"
        assert leaks.descriptors() == before
        assert nothing_is_held(registry)
        if faulty.fired is None:
            break
        fired.add(faulty.fired)
    assert fired >= {"stat", "fstat", "open", "fsync", *(["rename"] if kept else ["unlink"])}


@pytest.mark.parametrize("kept", [True, False], ids=["renamed", "removed"])
async def test_with_sync_the_directory_reaches_the_disk(path, archive, run, monkeypatch, kept):
    registry, synced, real = LockRegistry(durability="sync"), [], seam.fsync

    def fsync(fd):
        synced.append(os.path.exists(path))
        real(fd)

    await note(registry, path, 1)
    async with conducts(registry, path, run):
        monkeypatch.setattr(seam, "fsync", fsync)
        assert await registry.store.set_aside(path, archive if kept else None, under=run)
    assert synced == [False]
    assert nothing_is_held(registry)

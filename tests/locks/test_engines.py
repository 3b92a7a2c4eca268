"""What every engine promises, asked of each: the kernel's locks, `filelock`, none at all, and one that a user brings.

`EVERY` engine orders a registry's own tasks; `SHARED` ones exclude other registries and processes as well; only
`ORDERED` ones serve those in order of arrival, too. At the end, what is particular to `filelock`, and what becomes of
engines that fail.
"""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import errno
import fcntl
import json
import signal
from contextlib import ExitStack

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread
from anyio.lowlevel import checkpoint

from locks import LeaseExpired, LeaseTimeout, LockRegistry, Revoked, Right, TranscriptError
from locks.engines.interface import Unordered
from tests import blocking
from tests.cancel_sweep import OPERATIONS, sweep
from tests.children.engine_contender import OwnEngine, OwnLock, engine_called
from tests.contention import overlaps
from tests.leaks import descriptors
from tests.peers import peer
from tests.poll import eventually, eventually_sync

EVERY = ["kernel", "filelock", "none", "own"]
SHARED = ["kernel", "filelock", "own"]
ORDERED = ["kernel"]
RIGHTS = ["lease", "turn"]

every_engine = pytest.mark.parametrize("engine", EVERY)
shared_engines = pytest.mark.parametrize("engine", SHARED)
ordered_engines = pytest.mark.parametrize("engine", ORDERED)
both_rights = pytest.mark.parametrize("right", RIGHTS)


def a_registry(engine, **options):
    return LockRegistry(engine=engine_called(engine) if isinstance(engine, str) else engine, **options)


async def is_free(registry, path, right="lease"):
    """Whether the right can be had at once; it is given back."""
    try:
        async with getattr(registry, right)(path, wait_timeout=0):
            return True
    except LeaseTimeout:
        return False


def nothing_left(*registries):
    return all(registry.statistics().sessions == 0 for registry in registries)


class Boom(Exception):
    pass


# Every engine, inside one registry


@every_engine
async def test_its_name_is_the_registrys(engine):
    assert a_registry(engine).engine == engine


@every_engine
@both_rights
async def test_tasks_of_a_registry_are_served_one_at_a_time_in_order_of_arrival(engine, right, path):
    registry = a_registry(engine)
    served: list[int] = []
    inside = 0

    async def wait(number):
        nonlocal inside
        async with getattr(registry, right)(path):
            inside += 1
            assert inside == 1
            await checkpoint()
            served.append(number)
            inside -= 1

    with fail_after(60):
        async with create_task_group() as group, getattr(registry, right)(path):
            for number in range(20):
                group.start_soon(wait, number)
                await eventually(lambda: registry.statistics().waiting == number + 1)  # noqa: B023 -- in this round
    assert served == list(range(20))
    assert nothing_left(registry)


@every_engine
@both_rights
async def test_a_task_that_asks_again_shares_its_right(engine, right, path):
    registry = a_registry(engine)
    with fail_after(60):
        async with getattr(registry, right)(path) as outer:
            async with getattr(registry, right)(path) as inner:
                assert inner.epoch == outer.epoch
            await outer.append({"n": 1})
            assert registry.statistics().held == 1 or right == "turn"
    assert nothing_left(registry)


@every_engine
async def test_turn_and_write_lease_are_two_rights(engine, path):
    registry = a_registry(engine)
    with fail_after(60):
        async with registry.turn(path):
            assert await is_free(registry, path, "lease")
            await registry.append(path, {"n": 1})
        async with registry.lease(path):
            assert await is_free(registry, path, "turn")


@every_engine
async def test_who_waits_too_long_gets_a_lease_timeout_and_leaves_nothing(engine, path, virtual):
    registry = a_registry(engine)
    async with create_task_group() as group:

        async def wait():
            started = virtual.now()
            with pytest.raises(LeaseTimeout) as caught:
                async with registry.lease(path, wait_timeout=3):
                    raise AssertionError("it is held")
            assert virtual.now() - started == pytest.approx(3)
            assert caught.value.path == path
            assert registry.statistics().waiting == 0

        async with registry.lease(path):
            group.start_soon(wait)
            await anyio.sleep(5)
    assert nothing_left(registry)


@every_engine
@both_rights
async def test_a_block_that_fails_gives_its_right_back(engine, right, path):
    registry = a_registry(engine)
    with pytest.raises(Boom):
        async with getattr(registry, right)(path):
            raise Boom
    assert nothing_left(registry)
    assert await is_free(registry, path, right)


@every_engine
@both_rights
async def test_a_block_is_cancelled_at_its_deadline_and_its_right_is_free(engine, right, path, virtual):
    registry = a_registry(engine, max_hold=7.0, grace=2.0)
    started = virtual.now()
    with pytest.raises(LeaseExpired):
        async with getattr(registry, right)(path):
            await anyio.sleep(100)
    assert virtual.now() == started + 7.0
    assert await is_free(registry, path, right)


@every_engine
@both_rights
async def test_a_block_that_ignores_its_deadline_loses_its_right_after_the_grace(engine, right, path, virtual):
    registry = a_registry(engine, max_hold=7.0, grace=2.0)
    others = [registry] if engine == "none" else [registry, a_registry(engine)]
    started, served = virtual.now(), []

    async def wait(other):
        async with getattr(other, right)(path):
            served.append(virtual.now())

    async with create_task_group() as group:
        with pytest.raises(Revoked):
            async with getattr(registry, right)(path):
                for other in others:
                    group.start_soon(wait, other)
                with CancelScope(shield=True):
                    await anyio.sleep(20)
    assert len(served) == len(others)
    assert all(started + 9.0 <= at < started + 10.0 for at in served)
    assert nothing_left(*others)


@every_engine
async def test_what_is_revoked_is_free_at_once_and_its_holder_writes_nothing_more(engine, path):
    registry = a_registry(engine)
    other = registry if engine == "none" else a_registry(engine)
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            await lease.append({"n": 1})
            assert registry.revoke(path, "by hand") == 1
            with CancelScope(shield=True), fail_after(60):
                async with create_task_group() as group:
                    group.start_soon(other.append, path, {"n": 2})
            lease.append_sync({"n": 3})
    assert await registry.read(path, on_error="raise") == [{"n": 1}, {"n": 2}]
    assert nothing_left(registry, other)


@every_engine
async def test_no_descriptor_stays_open(engine, path):
    registry = a_registry(engine)
    await registry.append(path, {"n": 0})
    before = descriptors()
    with fail_after(60):
        for number in range(20):
            async with registry.turn(path), registry.lease(path) as lease:
                await lease.append({"n": number})
    assert descriptors() == before
    assert nothing_left(registry)


@pytest.mark.suite("C1")
@pytest.mark.failure("A5")
@pytest.mark.parametrize("engine", ["filelock", "own"])  # the others: `test_cancel_sweep.py`
@pytest.mark.parametrize("others", ["alone", "contended"])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
async def test_cancelled_at_any_suspension_it_leaves_nothing(operation, others, engine, path, virtual):
    holders = [a_registry(engine)] if others == "contended" else []
    assert await sweep(operation, path, holders, a_registry(engine)) >= 1


# Engines that exclude others: registries


async def exclude_each_other(engine, path, right):
    """Fails unless two registries of one process have a right one after the other."""
    one, other = a_registry(engine), a_registry(engine)
    order = []

    async def wait():
        async with getattr(other, right)(path):
            order.append("other")

    async with getattr(one, right)(path):
        assert not await is_free(other, path, right), "two registries have the same right"
    with fail_after(60):
        async with create_task_group() as group, getattr(one, right)(path):
            group.start_soon(wait)
            await eventually(lambda: other.statistics().competing == 1)
            for _ in range(10):
                await checkpoint()
            order.append("one")
    assert order == ["one", "other"]
    assert await is_free(one, path, right)
    assert nothing_left(one, other)


@shared_engines
@both_rights
async def test_registries_exclude_each_other(engine, right, path):
    await exclude_each_other(engine, path, right)


@both_rights
async def test_an_engine_that_only_says_so_does_not_pass(right, path):
    class Liar(Unordered):
        def try_lock(self):
            return True

        def unlock(self):
            pass

    class Lies:
        name = "lies"

        def lock(self, path, fd, file_id, right):
            return Liar()

    with pytest.raises(AssertionError, match="two registries have the same right"):
        await exclude_each_other(Lies(), path, right)


@shared_engines
async def test_registries_exclude_each_other_under_a_symlink(engine, path, tmp_path):
    one, other = a_registry(engine), a_registry(engine)
    await one.append(path, {"n": 1})
    (tmp_path / "alias.jsonl").symlink_to(path)
    (tmp_path / "door").symlink_to(tmp_path)
    for alias in (tmp_path / "alias.jsonl", tmp_path / "door" / "session.jsonl"):
        async with one.lease(path):
            assert not await is_free(other, alias)
        async with one.lease(alias):
            assert not await is_free(other, path)
    assert nothing_left(one, other)


@shared_engines
async def test_a_waiter_finds_the_file_that_was_renamed_into_place_meanwhile(engine, path, tmp_path):
    one, other = a_registry(engine), a_registry(engine)
    await one.append(path, {"n": "old"})

    async def wait():
        await other.append(path, {"n": "late"})

    with fail_after(60):
        async with create_task_group() as group, one.lease(path):
            group.start_soon(wait)
            await eventually(lambda: other.statistics().competing == 1)
            (tmp_path / "new").write_text('{"n":"new"}\n')
            (tmp_path / "new").rename(path)
    assert await one.read(path, on_error="raise") == [{"n": "new"}, {"n": "late"}]
    assert nothing_left(one, other)


@ordered_engines
@both_rights
async def test_registries_are_served_in_order_of_arrival(engine, right, path):
    registries = [a_registry(engine) for _ in range(4)]
    served = []

    async def wait(number):
        async with getattr(registries[number % 4], right)(path):
            served.append(number)

    with fail_after(60):
        async with create_task_group() as group, getattr(registries[0], right)(path):
            for number in range(12):
                group.start_soon(wait, number)
                await eventually(lambda: sum(one.statistics().waiting for one in registries) == number + 1)  # noqa: B023
    assert served == list(range(12))


# Engines that exclude others: processes


@shared_engines
@both_rights
@pytest.mark.backends("asyncio", "trio")
async def test_processes_exclude_each_other(engine, right, path):
    registry = a_registry(engine)
    with peer("engine_contender", path, engine, right, "trio") as other, fail_after(60):
        other.tell("keep")
        await eventually(lambda: other.said("held"), within=30)
        assert not await is_free(registry, path, right)
        other.tell("leave")
        async with getattr(registry, right)(path):
            other.tell("keep")
            await eventually(lambda: other.said("waiting"), within=30)
            assert other.lines.count("held") == 1
        await eventually(lambda: other.lines.count("held") == 2, within=30)
        other.tell("leave")
        await eventually(lambda: other.lines.count("left") == 2, within=30)
        assert await is_free(registry, path, right)


@shared_engines
@both_rights
@pytest.mark.failure("C1")
@pytest.mark.backends("asyncio")
async def test_the_right_of_a_killed_process_is_free(engine, right, path):
    registry, order = a_registry(engine), []

    async def wait():
        async with getattr(registry, right)(path):
            order.append("granted")

    with peer("engine_contender", path, engine, right, "asyncio") as other, fail_after(60):
        other.tell("keep")
        await eventually(lambda: other.said("held"), within=30)
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: registry.statistics().competing == 1)
            order.append("killed")
            other.signal(signal.SIGKILL)
        await eventually(other.ended)
    assert order == ["killed", "granted"]


@pytest.mark.parametrize("engine", ["kernel", "filelock"])  # the simple one of our own does not think of it
@both_rights
@pytest.mark.backends("asyncio")
async def test_a_forked_child_does_not_unlock_what_its_parent_holds(engine, right, path):
    registry = a_registry(engine)
    with peer("engine_contender", path, engine, right, "asyncio") as other, fail_after(60):
        other.tell("keep")
        await eventually(lambda: other.said("held"), within=30)
        other.tell("fork")
        await eventually(lambda: other.said("forked"), within=30)
        assert not await is_free(registry, path, right)
        other.tell("leave")
        await eventually(lambda: other.said("left"), within=30)
        assert await is_free(registry, path, right)


@shared_engines
@both_rights
@pytest.mark.backends("asyncio")
async def test_what_is_revoked_here_is_free_for_another_process(engine, right, path):
    registry = a_registry(engine)
    with peer("engine_contender", path, engine, right, "asyncio") as other, fail_after(60):
        with pytest.raises(Revoked):
            async with getattr(registry, right)(path):
                other.tell("keep")
                await eventually(lambda: other.said("waiting"), within=30)
                assert not other.said("held")
                registry.revoke(path, "by hand")
                with CancelScope(shield=True):
                    await eventually(lambda: other.said("held"), within=30)
        assert not await is_free(registry, path, right)
        other.tell("leave")
        await eventually(lambda: other.said("left"), within=30)


@shared_engines
@both_rights
@pytest.mark.failure("A3")
@pytest.mark.backends("asyncio", "trio")
async def test_a_process_whose_loop_is_frozen_loses_its_right_to_another_one(engine, right, path):
    registry = a_registry(engine, max_hold=0.05, grace=0.05)
    with peer("engine_contender", path, engine, right, "asyncio") as other, fail_after(60):
        await eventually(lambda: other.said("ready"), within=30)
        with pytest.raises(Revoked):
            async with getattr(registry, right)(path):
                other.tell("keep")
                with blocking.permitted("the loop stands still until the other process has the right"):
                    eventually_sync(lambda: other.said("held"), within=30)
        assert not await is_free(registry, path, right)
        other.tell("leave")
        await eventually(lambda: other.said("left"), within=30)


@shared_engines
@both_rights
@pytest.mark.suite("X1")
def test_the_holds_of_several_processes_never_overlap_and_every_process_finishes(engine, right, path):
    with ExitStack() as stack:
        backends = ["asyncio", "trio", "asyncio", "trio"]
        peers = [stack.enter_context(peer("engine_contender", path, engine, right, backend)) for backend in backends]
        for one in peers:
            eventually_sync(lambda: one.said("ready"), within=60)  # noqa: B023 -- awaited in this round
        for one in peers:
            one.tell("compete 60")
        for one in peers:
            eventually_sync(lambda: len(one.lines) == 2, within=60)  # noqa: B023 -- awaited in this round
        results = [json.loads(one.lines[1]) for one in peers]
    assert [len(intervals) for intervals in results] == [60] * 4
    assert overlaps([tuple(interval) for intervals in results for interval in intervals]) == []


# filelock


async def test_filelock_leaves_two_files_of_its_own_beside_a_session_and_keeps_them(path, tmp_path):
    registry = a_registry("filelock")
    seen = []
    for _ in range(3):
        async with registry.turn(path) as turn:
            await turn.append({"n": 1})
        seen.append({file.name: file.stat().st_ino for file in tmp_path.iterdir()})
    assert set(seen[0]) == {"session.jsonl", "session.jsonl.turn.flock", "session.jsonl.write.flock"}
    assert seen == [seen[0]] * 3  # removing one would split those who wait for it
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}


async def test_filelock_does_not_tell_two_hard_links_between_registries(path, tmp_path):
    """It is the documented weakness; in one registry they are one."""
    one, other = a_registry("filelock"), a_registry("filelock")
    await one.append(path, {"n": 1})
    (tmp_path / "hard.jsonl").hardlink_to(path)
    async with one.lease(path):
        assert await is_free(other, tmp_path / "hard.jsonl")
        async with create_task_group() as group:

            async def ask():
                assert not await is_free(one, tmp_path / "hard.jsonl")

            group.start_soon(ask)


async def test_filelock_is_unlocked_by_whichever_thread_revokes(path):
    lock = a_registry("filelock").arbiter.files._engine.lock(path, -1, (0, 0), Right.WRITE)
    other = a_registry("filelock").arbiter.files._engine.lock(path, -1, (0, 0), Right.WRITE)
    assert lock.try_lock()
    assert not other.try_lock()
    await to_thread.run_sync(lock.unlock)
    await to_thread.run_sync(lock.unlock)  # nothing happens
    assert other.try_lock()
    assert other.try_lock()  # had already: it is had once
    other.unlock()
    assert lock.try_lock()
    lock.unlock()


async def test_a_file_system_without_such_locks_is_an_error_and_nothing_takes_their_place(path, tmp_path, monkeypatch):
    def flock(fd, operation):
        raise OSError(errno.ENOSYS, "no such locks here")

    monkeypatch.setattr(fcntl, "flock", flock)
    registry = a_registry("filelock")
    with pytest.raises(TranscriptError, match=rf"cannot lock {path}: no such locks here") as caught:
        async with registry.lease(path):
            raise AssertionError("nothing was locked")
    assert (caught.value.path, caught.value.errno) == (path, errno.ENOSYS)
    assert nothing_left(registry)
    monkeypatch.undo()
    assert await is_free(registry, path)  # no marker was left that would now count as a holder


async def test_a_lock_file_that_cannot_be_opened_is_an_error_with_the_path(path, tmp_path):
    (tmp_path / "session.jsonl.write.flock").mkdir()
    registry = a_registry("filelock")
    with pytest.raises(TranscriptError, match=f"cannot lock {path}"):
        async with registry.lease(path):
            raise AssertionError("nothing was locked")
    assert nothing_left(registry)


async def test_filelock_does_not_make_a_directory_anew_that_was_removed(path, tmp_path):
    directory = tmp_path / "sessions"
    directory.mkdir()
    lock = a_registry("filelock").arbiter.files._engine.lock(str(directory / "a.jsonl"), -1, (0, 0), Right.WRITE)
    assert lock.try_lock()
    lock.unlock()
    (directory / "a.jsonl.write.flock").unlink()
    directory.rmdir()
    with pytest.raises(FileNotFoundError):
        lock.try_lock()
    assert not directory.exists()


# Engines that fail


class Failing(OwnLock):
    """Fails in the named method, from its `after`-th call on."""

    method, after, calls, closed = "try_lock", 0, 0, 0

    def _call(self, method):
        if method == Failing.method:
            Failing.calls += 1
            if Failing.calls > Failing.after:
                raise OSError(errno.EIO, "planted")

    def try_lock(self):
        self._call("try_lock")
        return super().try_lock()

    def unlock(self):
        self._call("unlock")
        super().unlock()

    def close(self):
        Failing.closed += 1
        super().close()


class FailingEngine(OwnEngine):
    name = "failing"

    def lock(self, path, fd, file_id, right):
        if Failing.method == "lock":
            raise OSError(errno.EIO, "planted")
        return Failing(f"{path}.{right}.own")


@pytest.fixture
def failing(monkeypatch):
    """Makes registries whose engine fails in a method."""

    def make(method, after=0):
        for name, value in (("method", method), ("after", after), ("calls", 0), ("closed", 0)):
            monkeypatch.setattr(Failing, name, value)
        return a_registry(FailingEngine())

    return make


@both_rights
async def test_an_engine_that_fails_to_lock_is_an_error_with_the_path_and_leaves_nothing(failing, right, path):
    registry, before = failing("try_lock"), descriptors()
    with pytest.raises(TranscriptError, match=f"cannot lock {path}: planted") as caught:
        async with getattr(registry, right)(path):
            raise AssertionError("nothing was locked")
    assert (caught.value.path, caught.value.errno) == (path, errno.EIO)
    assert not isinstance(caught.value, OSError)
    assert nothing_left(registry)
    assert descriptors() == before


async def test_an_engine_that_fails_while_one_waits_is_that_ones_error(failing, path):
    holder, registry = a_registry("own"), failing("try_lock", after=2)
    before = descriptors()
    with fail_after(60):
        async with holder.lease(path):
            with pytest.raises(TranscriptError, match=f"cannot lock {path}: planted"):
                async with registry.lease(path):
                    raise AssertionError("it is held")
    assert nothing_left(holder, registry)
    assert descriptors() == before


async def test_an_engine_whose_lock_cannot_be_made_is_an_error_with_the_path_and_leaves_nothing(failing, path):
    registry, before = failing("lock"), descriptors()
    with pytest.raises(TranscriptError, match=f"cannot lock {path}: planted"):
        async with registry.lease(path):
            raise AssertionError("nothing was locked")
    assert nothing_left(registry)
    assert descriptors() == before


async def test_an_engine_that_fails_to_unlock_stops_no_release_and_is_closed(failing, path):
    registry, before = failing("unlock"), descriptors()
    async with registry.lease(path) as lease:
        await lease.append({"n": 1})
    assert Failing.closed == 1
    assert nothing_left(registry)
    assert descriptors() == before
    assert await is_free(a_registry(OwnEngine()), path)


@pytest.mark.parametrize("thing", [object(), OwnEngine, None, 7])
async def test_what_is_no_engine_is_refused(thing):
    class Nameless:
        def lock(self, path, fd, file_id, right):
            raise NotImplementedError

    for one in (thing, Nameless()):
        with pytest.raises(ValueError, match=r"engine: .* allowed: auto, kernel, filelock, none or a LeaseEngine"):
            LockRegistry(engine=one)  # type: ignore[arg-type]  # what is tested

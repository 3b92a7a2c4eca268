"""Waiting for a right: order, hand-over, wait budgets, and what the statistics say meanwhile."""

from __future__ import annotations

import math
import os

import anyio
import pytest
from anyio import create_task_group

from locks import HeldRight, Holder, LeaseTimeout, LockRegistry, Right
from locks.engines.kernel import KernelLock
from locks.lowlevel import FileClaim
from locks.rights.open_file import open_file
from locks.rights.queue import RightQueue
from locks.sidecar import turn_note


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=300.0, grace=2.0, engine=request.param)


@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_waiters_are_served_in_order_of_arrival(registry, path, right, virtual):
    served = []

    async def wait(number):
        async with getattr(registry, right)(path):
            served.append(number)

    async with create_task_group() as group, getattr(registry, right)(path):
        for number in range(10):
            group.start_soon(wait, number)
            await virtual.settle()
        assert registry.statistics().waiting == 10
    assert served == list(range(10))


async def test_the_right_goes_over_to_the_next_waiter_in_the_instant_of_the_release(registry, path, virtual):
    granted_at = []

    async def wait():
        async with registry.lease(path) as lease:
            granted_at.append(lease.acquired_at)
            await anyio.sleep(5)

    async with create_task_group() as group:
        async with registry.lease(path):
            group.start_soon(wait)
            group.start_soon(wait)
            await anyio.sleep(3)
        released_at = virtual.now()
    assert granted_at == [released_at, released_at + 5]


async def test_turn_and_write_lease_are_held_by_different_tasks_at_once(registry, path, virtual):
    async def write():
        async with registry.lease(path):
            assert {held.right for held in registry.holders()} == {"turn", "write"}

    async with registry.turn(path), create_task_group() as group:
        group.start_soon(write)


async def test_files_do_not_wait_for_each_other(registry, tmp_path, virtual):
    started = virtual.now()
    async with create_task_group() as group:

        async def hold(number):
            async with registry.lease(tmp_path / f"{number}.jsonl"):
                await anyio.sleep(1)

        for number in range(20):
            group.start_soon(hold, number)
    assert virtual.now() == started + 1


async def test_epochs_rise_with_each_lease_over_all_rights_files_and_registries(registry, tmp_path, virtual):
    epochs = []
    for one in (registry, LockRegistry(), registry):
        for name in ("a", "b"):
            async with one.lease(tmp_path / name) as lease, one.turn(tmp_path / name) as turn:
                epochs += [lease.epoch, turn.epoch]
    assert epochs == sorted(set(epochs))


# Wait budgets


async def test_the_wait_budget_passes_with_an_error_that_names_the_holder_and_its_remaining_time(
    registry, path, virtual
):
    async def wait():
        with pytest.raises(LeaseTimeout) as caught:
            async with registry.lease(path, wait_timeout=1.5):
                pytest.fail("entered")
        error = caught.value
        assert error.path == path
        assert error.waited_s == pytest.approx(1.5)
        assert error.holder == holder
        assert error.remaining_s == pytest.approx(10 + 2 - 1.5)  # max_hold + grace - what has passed
        assert error.retryable
        assert path in str(error) and "run 7 on lane main" in str(error)

    holder = Holder(lane="main", run_id=7)
    async with registry.lease(path, holder=holder, max_hold=10), create_task_group() as group:
        group.start_soon(wait)
    assert registry.statistics().waiting == 0


async def test_a_wait_budget_of_zero_takes_what_is_free_and_nothing_else(registry, path, virtual):
    started = virtual.now()

    async def wait():
        with pytest.raises(LeaseTimeout):
            async with registry.lease(path, wait_timeout=0):
                pytest.fail("entered")

    async with registry.lease(path, wait_timeout=0) as lease, create_task_group() as group:
        assert lease.lost is None
        group.start_soon(wait)
    assert virtual.now() == started


async def test_asking_with_a_wait_budget_of_zero_for_ever_lets_others_run(registry, path, virtual):
    attempts = 0

    async def insist():
        nonlocal attempts
        while attempts < 100:
            attempts += 1
            try:
                async with registry.lease(path, wait_timeout=0):
                    return
            except LeaseTimeout:
                continue

    async with registry.lease(path) as lease, create_task_group() as group:
        group.start_soon(insist)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        seen = attempts
        group.cancel_scope.cancel()
    assert lease.lost is None
    assert seen < 100  # otherwise such a loop would freeze the event loop


async def test_a_waiter_that_timed_out_is_passed_by(registry, path, virtual):
    served = []

    async def impatient():
        with pytest.raises(LeaseTimeout):
            async with registry.lease(path, wait_timeout=1):
                pytest.fail("entered")

    async def patient():
        async with registry.lease(path):
            served.append(virtual.now())

    async with create_task_group() as group:
        async with registry.lease(path):
            group.start_soon(impatient)
            await virtual.settle()
            group.start_soon(patient)
            await anyio.sleep(2)
        released_at = virtual.now()
    assert served == [released_at]


async def test_without_a_lock_file_a_holder_in_another_process_is_unknown_by_name(path, virtual):
    # Two descriptions of the file exclude each other as processes do.
    here, elsewhere = LockRegistry(sidecar=False), LockRegistry(sidecar=False)
    async with elsewhere.lease(path):
        with pytest.raises(LeaseTimeout) as caught:
            async with here.lease(path, wait_timeout=1):
                pytest.fail("entered")
    assert caught.value.holder is None
    assert caught.value.remaining_s is None
    assert here.statistics().competing == 0


@pytest.mark.failure("D3", "C6")
async def test_a_holder_in_another_process_is_named_by_its_lock_file(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    async with elsewhere.lease(path, holder=Holder("session:a", 18), max_hold=10):
        with pytest.raises(LeaseTimeout, match=r"run 18 on lane session:a\) holds it.*at most 1[0-2]\.\d+ s") as caught:
            async with here.lease(path, wait_timeout=1):
                pytest.fail("entered")
    assert caught.value.holder == Holder("session:a", 18)
    assert caught.value.remaining_s == pytest.approx(12.0, abs=2.0)  # its 10 s and the grace, by real time


@pytest.mark.failure("D3", "C6")
async def test_who_conducts_in_another_process_is_named_by_its_note(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    async with elsewhere.turn(path, holder=Holder("session:a", 18)):
        with pytest.raises(LeaseTimeout, match="run 18 on lane session:a") as caught:
            async with here.turn(path, wait_timeout=1):
                pytest.fail("entered")
    assert caught.value.holder == Holder("session:a", 18)
    assert turn_note.read(path) is None


@pytest.mark.failure("D5")
async def test_the_wait_budget_counts_from_asking_and_the_hold_budget_from_the_grant(registry, path, virtual):
    asked_at = virtual.now()

    async def wait():
        async with registry.lease(path, wait_timeout=6, max_hold=10) as lease:
            assert lease.acquired_at == asked_at + 5
            assert lease.deadline == asked_at + 5 + 10  # the wait has eaten nothing of it
            await anyio.sleep(9.5)
            lease.check()

    async def give_up():
        with pytest.raises(LeaseTimeout) as caught:
            async with registry.lease(path, wait_timeout=6):
                pytest.fail("entered")
        assert virtual.now() == asked_at + 6  # the grants to others in between have renewed nothing
        assert caught.value.waited_s == pytest.approx(6)

    async with create_task_group() as group, registry.lease(path):
        group.start_soon(wait)
        await virtual.settle()
        group.start_soon(give_up)
        await anyio.sleep(5)


# Between processes, played by two registries


async def test_while_a_turn_is_held_here_other_processes_may_write(path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    started = virtual.now()
    async with here.turn(path, max_hold=3) as turn:
        for number in range(3):
            await turn.append({"by": "here", "n": number})
            await elsewhere.append(path, {"by": "elsewhere", "n": number})
    assert virtual.now() == started  # nobody has waited
    assert [record["by"] for record in await here.read(path)] == ["here", "elsewhere"] * 3


async def test_registries_take_turns_in_order_of_arrival(path, virtual):
    registries = [LockRegistry(), LockRegistry(), LockRegistry()]
    served = []

    async def wait(number):
        async with registries[number % 3].lease(path):
            served.append(number)
            await anyio.sleep(0.1)

    async with create_task_group() as group, registries[0].lease(path):
        for number in range(12):
            group.start_soon(wait, number)
            await anyio.sleep(0.001)
    assert served == list(range(12))
    for registry in registries:
        assert registry.statistics().sessions == 0


async def test_many_files_that_another_process_holds_are_waited_for_at_once(tmp_path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    paths = [tmp_path / f"{number}.jsonl" for number in range(20)]
    got = []

    async def hold(path, seconds):
        async with elsewhere.lease(path):
            await anyio.sleep(seconds)

    async def wait(path):
        async with here.lease(path):
            got.append(path)

    async with create_task_group() as group:
        for number, path in enumerate(paths):
            group.start_soon(hold, path, 1 + number * 0.1)
        await virtual.settle()
        for path in reversed(paths):
            group.start_soon(wait, path)
        await virtual.settle()
        assert here.statistics().competing == 20
    assert got == paths


async def test_waiters_go_on_when_the_one_who_looks_after_the_files_is_cancelled(tmp_path, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    got = []

    async def wait(name, scope):
        with scope:
            async with here.lease(tmp_path / name):
                got.append(name)

    scopes = {name: anyio.CancelScope() for name in "abcd"}
    async with (
        create_task_group() as group,
        elsewhere.lease(tmp_path / "a"),
        elsewhere.lease(tmp_path / "b"),
        elsewhere.lease(tmp_path / "c"),
    ):
        for name in "abc":
            group.start_soon(wait, name, scopes[name])
            await virtual.settle()
        scopes["a"].cancel()
        await anyio.sleep(0.1)
        scopes["b"].cancel()
        await anyio.sleep(0.1)
        assert here.statistics().waiting == 1
    assert got == ["c"]


# Statistics


async def test_statistics_and_holders_show_what_is_held_and_waited_for_and_return_to_zero(registry, path, virtual):
    async def wait():
        async with registry.lease(path) as lease:
            await lease.append({"n": 1})

    async with (
        create_task_group() as group,
        registry.lease(path, holder=Holder(lane="cron", run_id=3), max_hold=60) as lease,
    ):
        group.start_soon(wait)
        group.start_soon(wait)
        await anyio.sleep(4)
        now = registry.statistics()
        assert (now.sessions, now.held, now.waiting, now.granted, now.revoked, now.appended) == (1, 1, 2, 1, 0, 0)
        (held,) = registry.holders()
        assert held == HeldRight(
            path=path, right="write", holder=lease.holder, epoch=lease.epoch, held_s=4, remaining_s=58, waiting=2
        )
        assert "1 held, 2 waiting" in repr(registry)
    after = registry.statistics()
    assert (after.sessions, after.held, after.waiting, after.competing) == (0, 0, 0, 0)
    assert (after.granted, after.revoked, after.appended) == (3, 0, 2)
    assert registry.holders() == []


async def test_a_lease_shows_its_state_to_an_operator(registry, path, virtual):
    lease = registry.lease(path, holder=Holder(lane="main", run_id=7))
    assert "not entered" in repr(lease)
    async with lease:
        assert "held" in repr(lease) and "run 7 on lane main" in repr(lease)
    assert "over" in repr(lease)


async def test_acquire_nowait_takes_what_is_free_and_leaves_no_trace_otherwise(registry, path, virtual):
    first, second = registry.arbiter.new_claim(), registry.arbiter.new_claim()
    assert registry.arbiter.acquire_nowait(path, Right.WRITE, first)
    assert not registry.arbiter.acquire_nowait(path, Right.WRITE, second)
    assert registry.statistics().waiting == 0
    registry.arbiter.release(first)
    registry.arbiter.release(first)  # again: nothing happens
    assert registry.statistics().sessions == 0


async def test_a_lease_is_entered_once(registry, path, virtual):
    lease = registry.lease(path)
    with pytest.raises(RuntimeError, match="async with"):
        lease.check()
    async with lease:
        pass
    with pytest.raises(RuntimeError, match="entered already"):
        async with lease:
            pytest.fail("entered")


def test_a_registry_serves_one_event_loop_after_another(tmp_path):
    registry = LockRegistry()

    async def use():
        async with registry.lease(tmp_path / "a") as lease:
            return (await lease.append({"n": 1})).offset

    offsets = [anyio.run(use, backend="asyncio"), anyio.run(use, backend="trio"), anyio.run(use, backend="asyncio")]
    assert offsets == [8, 16, 24]


def test_a_ticket_that_was_not_looked_after_is_renewed_at_the_first_look(tmp_path, virtual):
    """Its process was stopped before that look, so others may have passed the old number over for good."""
    path = str(tmp_path / "session.jsonl")
    (ours, file_id), (theirs, _) = open_file(path), open_file(path)
    try:
        elsewhere = KernelLock(theirs, file_id, Right.WRITE)
        assert elsewhere.try_lock()
        queue: RightQueue[FileClaim] = RightQueue(Right.WRITE, KernelLock(ours, file_id, Right.WRITE), 2.0)
        claim = queue.ask(FileClaim(virtual.now(), object(), None, None, 300.0, math.inf))
        old = queue.ticket
        virtual.advance(1.0)
        assert queue.poll() is None
        assert old is not None and queue.ticket is not None and queue.ticket > old
        assert elsewhere.lowest({old}) == queue.ticket  # it counts for who ignores the old one
        queue.withdraw(claim)
        assert elsewhere.lowest(()) is None
    finally:
        os.close(ours)
        os.close(theirs)

"""A right is taken away: the block is told, nothing more is written, the next one goes on."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import threading
from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread

from locks import Fence, LeaseLost, LockRegistry, Revoked, Right, RunEnded, Superseded, _os
from locks.lowlevel import current_fence
from tests.poll import eventually


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.mark.failure("B1")
async def test_a_revoked_holder_is_cancelled_refused_and_followed_and_the_file_is_not_interleaved(registry, path):
    lines = []

    async def robbed():
        with pytest.raises(Revoked, match="an operator said so"):
            async with registry.lease(path) as lease:
                try:
                    for number in range(1_000_000):
                        await lease.append({"by": "robbed", "n": number})
                        lines.append(number)
                finally:
                    with pytest.raises(Revoked):
                        lease.append_sync({"by": "robbed", "n": "late"})
                    with CancelScope(shield=True), pytest.raises(Revoked):
                        await lease.append({"by": "robbed", "n": "late"})

    async def successor():
        async with registry.lease(path) as lease:
            for number in range(10):
                await lease.append({"by": "successor", "n": number})

    async with create_task_group() as group:
        group.start_soon(robbed)
        await eventually(lambda: len(lines) > 3)
        group.start_soon(successor)
        await eventually(lambda: registry.statistics().waiting == 1)
        assert registry.revoke(path, "an operator said so") == 1

    records = await registry.read(path, on_error="raise")
    assert [record["by"] for record in records] == ["robbed"] * len(lines) + ["successor"] * 10
    assert registry.statistics().revoked == 1


async def test_revoke_takes_both_rights_and_says_how_many(registry, path):
    with pytest.raises(Revoked):
        async with registry.turn(path) as turn, registry.lease(path) as lease:
            assert registry.revoke(path, "both") == 2
            assert isinstance(turn.lost, Revoked) and isinstance(lease.lost, Revoked)
            await anyio.sleep_forever()
    assert registry.statistics().sessions == 0


async def test_revoking_what_nobody_holds_does_nothing(registry, path, tmp_path):
    assert registry.revoke(path, "nobody") == 0
    assert registry.revoke(tmp_path / "no" / "such" / "directory", "nobody") == 0
    assert not (tmp_path / "session.jsonl").exists()
    async with registry.lease(path):
        assert registry.revoke(tmp_path / "other.jsonl", "another file") == 0


async def test_revoking_twice_counts_once(registry, path):
    with pytest.raises(Revoked, match="first"):
        async with registry.lease(path):
            assert registry.revoke(path, "first") == 1
            assert registry.revoke(path, "second") == 0
            await anyio.sleep_forever()
    assert registry.statistics().revoked == 1


async def test_revoking_does_not_touch_the_waiters(registry, path):
    epochs = []

    async def wait():
        async with registry.lease(path) as lease:
            epochs.append(lease.epoch)

    async with create_task_group() as group:
        with pytest.raises(Revoked):
            async with registry.lease(path) as lease:
                for _ in range(3):
                    group.start_soon(wait)
                await eventually(lambda: registry.statistics().waiting == 3)
                registry.revoke(path, "the holder only")
                await anyio.sleep_forever()
    assert len(epochs) == 3
    assert min(epochs) > lease.epoch


async def test_a_right_revoked_between_its_grant_and_its_entry_cancels_the_block(registry, path, virtual):
    entered = []

    async def wait():
        with pytest.raises(Revoked):
            async with registry.lease(path):
                entered.append(True)
                await anyio.sleep_forever()

    async with create_task_group() as group:
        first = registry.arbiter.new_claim()
        assert registry.arbiter.acquire_nowait(path, Right.WRITE, first)
        group.start_soon(wait)
        await virtual.settle()
        registry.arbiter.release(first)  # the waiter holds it now, and has not run yet
        assert registry.statistics().held == 1
        assert registry.revoke(path, "early") == 1
    assert len(entered) <= 1
    assert registry.statistics().sessions == 0


async def test_a_claim_without_a_block_hears_of_its_loss(registry, path):
    heard: list[LeaseLost] = []
    claim = registry.arbiter.new_claim()
    claim.on_lost = heard.append
    assert registry.arbiter.acquire_nowait(path, Right.TURN, claim)
    registry.revoke(path, "by hand")
    await eventually(lambda: heard)
    assert isinstance(heard[0], Revoked)
    registry.arbiter.release(claim)
    assert registry.statistics().sessions == 0


# The write under way


async def test_a_revocation_during_a_write_waits_for_it_without_waiting(registry, path, monkeypatch):
    """A write that hangs in the kernel must not hang who revokes; it is finished, and then the right is gone."""
    writing, go_on = threading.Event(), threading.Event()
    write = _os.write

    def slow_write(fd, data):
        if b"slow" in data:
            writing.set()
            assert go_on.wait(120)
        return write(fd, data)

    monkeypatch.setattr(_os, "write", slow_write)
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease, create_task_group() as group:
            group.start_soon(partial(to_thread.run_sync, lease.append_sync, {"n": "slow"}, abandon_on_cancel=False))
            await eventually(writing.is_set)
            assert registry.revoke(path, "meanwhile") == 1  # returns although the write hangs
            assert lease.lost is None
            go_on.set()
            await anyio.sleep_forever()
    assert isinstance(lease.lost, Revoked)
    assert await registry.read(path) == [{"n": "slow"}]


async def test_an_append_that_comes_after_a_revocation_in_a_thread_writes_nothing(registry, path):
    results: list[object] = []

    def work(lease):
        for number in range(50_000):
            try:
                lease.append_sync({"n": number})
            except LeaseLost as error:
                results.append(error)
                return
            results.append(None)

    with pytest.raises(Revoked), fail_after(30):
        async with registry.lease(path) as lease, create_task_group() as group:
            group.start_soon(to_thread.run_sync, work, lease)
            await eventually(lambda: len(results) > 20)
            registry.revoke(path, "enough")
            await anyio.sleep_forever()
    assert isinstance(results[-1], Revoked)
    assert [record["n"] for record in await registry.read(path, on_error="raise")] == list(range(len(results) - 1))


async def test_a_late_look_of_the_steward_does_not_unlock_the_next_holder(path):
    """The steward compares the claim inside the mutex; a look that was delayed before it must change nothing."""
    here, elsewhere = LockRegistry(), LockRegistry()
    async with here.lease(path) as first:
        stale = first.claim
    async with here.lease(path) as second:
        here.arbiter.grants.steward.revoke(stale, Revoked("late", path=path, holder=stale.holder))
        second.check()
        assert not elsewhere.arbiter.acquire_nowait(path, Right.WRITE, elsewhere.arbiter.new_claim())
    assert here.statistics().revoked == 0


# Fences: the permission of a run


@pytest.mark.failure("B0")
@pytest.mark.parametrize("kind", [RunEnded, Superseded])
async def test_a_run_that_was_fenced_writes_nothing_more_from_tasks_and_threads(registry, path, kind):
    refused = []
    fence = Fence(run_id=1, on_refused=lambda: refused.append(threading.current_thread()))
    token = current_fence.set(fence)
    async with registry.turn(path) as turn, registry.lease(path) as lease:
        await lease.append({"n": 1})
        await turn.append({"n": 2})
        await registry.append(path, {"n": 3})
        fence.close(kind)
        for attempt in (
            lambda: lease.append({"n": 4}),
            lambda: turn.append({"n": 4}),
            lambda: registry.append(path, {"n": 4}),
            lambda: to_thread.run_sync(lease.append_sync, {"n": 4}),
            lambda: to_thread.run_sync(turn.append_sync, {"n": 4}),
        ):
            with pytest.raises(kind):
                await attempt()
        with pytest.raises(kind):
            lease.check()
    current_fence.reset(token)
    assert [record["n"] for record in await registry.read(path)] == [1, 2, 3]
    assert len(refused) >= 6


async def test_a_run_that_is_fenced_while_it_waits_to_append_writes_nothing(registry, path, virtual):
    fence = Fence(run_id=1)

    async def append():
        current_fence.set(fence)
        with pytest.raises(RunEnded):
            await registry.append(path, {"n": 1})

    async with create_task_group() as group, registry.lease(path):
        group.start_soon(append)
        await virtual.settle()
        assert registry.statistics().waiting == 1
        fence.close()
    assert await registry.read(path) == []


async def test_a_fence_stands_by_its_first_cause_and_never_moves_later():
    fence = Fence(lane="main", run_id=1)
    fence.end_by(5.0)
    fence.end_by(9.0)
    assert fence.end_at == 5.0
    refused = []
    fence = Fence(lane="main", run_id=1, on_refused=lambda: refused.append(True))
    fence.check("path")
    fence.close(Superseded)
    fence.close(RunEnded)
    assert fence.closed
    with pytest.raises(Superseded):
        fence.check("path")
    assert refused == [True]
    assert "run 1 on lane main" in repr(fence)


async def test_a_turn_that_is_lost_while_its_append_waits_writes_nothing(registry, path, virtual):
    async def conduct():
        with pytest.raises(Revoked):
            async with registry.turn(path, max_hold=1) as turn:
                with CancelScope(shield=True):
                    await turn.append({"by": "a turn that was lost"})

    async with create_task_group() as group, registry.lease(path) as lease:
        group.start_soon(conduct)
        await anyio.sleep(1 + registry.grace + 1)
        assert registry.statistics().revoked == 1
        await lease.append({"by": "the writer"})
    assert await registry.read(path) == [{"by": "the writer"}]

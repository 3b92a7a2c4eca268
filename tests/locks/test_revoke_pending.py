"""A right is taken away while a write under it hangs: nobody waits for the write, and nothing is written after it."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import threading
from contextlib import AsyncExitStack
from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, move_on_after, to_thread

from locks import Fence, Holder, LeaseLost, LeaseTimeout, LockRegistry, Revoked, Right, RunEnded, _os
from locks.lowlevel import current_fence
from tests import blocking


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=10.0, grace=2.0, engine=request.param)


class Disk:
    """Writes of records that say `slow` hang until `thaw`."""

    def __init__(self, monkeypatch):
        self.writing, self.go_on = threading.Event(), threading.Event()
        self._write = _os.write
        monkeypatch.setattr(_os, "write", self.write)

    def write(self, fd, data):
        if b"slow" in data:
            self.writing.set()
            assert self.go_on.wait(120)
        return self._write(fd, data)


@pytest.fixture
def disk(monkeypatch, virtual):
    virtual.threads_hold = False  # they hang on purpose
    disk = Disk(monkeypatch)
    yield disk
    disk.go_on.set()


async def hangs(disk, virtual):
    """Return once the write hangs. Time stands still meanwhile."""
    with virtual.held():
        while not disk.writing.is_set():
            await anyio.lowlevel.checkpoint()


async def over(virtual, thread):
    """Return once a thread has ended, cancelled or not. Time stands still meanwhile."""
    with virtual.held(), CancelScope(shield=True):
        while thread.is_alive():
            await anyio.lowlevel.checkpoint()


def write_in_thread(lease, records, said):
    def write():
        for record in records:
            try:
                lease.append_sync(record)
            except LeaseLost as error:
                said.append(error)
            else:
                said.append(record["n"])

    thread = threading.Thread(target=write)
    thread.start()
    return thread


@pytest.mark.failure("A10")
async def test_past_deadline_and_grace_the_steward_leaves_a_note_and_the_writer_finishes_it(
    registry, path, virtual, disk
):
    said: list[object] = []
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            thread = write_in_thread(lease, [{"n": "slow"}, {"n": "late"}], said)
            await hangs(disk, virtual)
            with CancelScope(shield=True):
                await anyio.sleep(12)
                assert lease.lost is None  # the write is under way, and other processes must not see half of it
                assert registry.statistics().held == 1
                with pytest.raises(Revoked):
                    lease.check()
                await anyio.sleep(60)
                assert lease.lost is None
                disk.go_on.set()
                await over(virtual, thread)
                assert isinstance(lease.lost, Revoked)
    assert said[0] == "slow"
    assert [type(error) for error in said[1:]] == [Revoked]
    assert await registry.read(path, on_error="raise") == [{"n": "slow"}]
    assert registry.statistics().revoked == 1
    assert registry.statistics().sessions == 0


@pytest.mark.parametrize("left", ["lease", "turn"])
async def test_leaving_a_block_does_not_wait_for_a_write_of_its_thread_that_hangs(
    registry, path, tmp_path, virtual, disk, left
):
    """The loop serves the other sessions meanwhile; the one that hangs is free when the write is over."""
    said: list[object] = []
    async with AsyncExitStack() as stack:
        if left == "turn":
            await stack.enter_async_context(registry.turn(path))
        lease = await stack.enter_async_context(registry.lease(path))
        thread = write_in_thread(lease, [{"n": "slow"}, {"n": "late"}], said)
        await hangs(disk, virtual)
    async with registry.lease(tmp_path / "other.jsonl") as other:
        await other.append({"n": 1})
    assert registry.statistics().held == 1  # a turn has a mutex of its own
    with move_on_after(5.0) as scope:
        async with registry.lease(path):
            pytest.fail("two at once")
    assert scope.cancelled_caught
    disk.go_on.set()
    await over(virtual, thread)
    async with registry.lease(path, wait_timeout=1), registry.turn(path, wait_timeout=1):
        pass
    assert said[0] == "slow"
    assert [type(error) for error in said[1:]] == [LeaseLost]
    assert await registry.read(path, on_error="raise") == [{"n": "slow"}]
    assert registry.statistics().sessions == 0


async def test_while_a_write_hangs_the_turn_of_its_session_comes_and_goes(path, virtual, disk):
    """Each right has a mutex of its own, so what hangs in the one does not stop the loop at the other."""
    said: list[object] = []
    here, elsewhere = LockRegistry(max_hold=10.0), LockRegistry()
    async with here.lease(path) as lease:
        thread = write_in_thread(lease, [{"n": "slow"}], said)
        await hangs(disk, virtual)
        async with here.turn(path):
            pass
        async with elsewhere.turn(path, max_hold=3.0), create_task_group() as group:

            async def wait():
                async with here.turn(path, wait_timeout=2.0):
                    pytest.fail("two at once")

            async def give_up():
                with pytest.raises(LeaseTimeout):
                    await wait()

            group.start_soon(give_up)
        disk.go_on.set()
        await over(virtual, thread)
    assert said == ["slow"]


async def test_an_append_beside_a_write_of_the_same_lease_that_hangs_waits_off_the_loop(
    registry, path, tmp_path, virtual, disk
):
    said: list[object] = []
    async with registry.lease(path) as lease:
        thread = write_in_thread(lease, [{"n": "slow"}], said)
        await hangs(disk, virtual)
        with move_on_after(3.0) as scope:
            await lease.append({"n": "cancelled"})
        assert scope.cancelled_caught
        async with registry.lease(tmp_path / "other.jsonl") as other:
            await other.append({"n": 1})
        with virtual.held():
            async with create_task_group() as group:
                group.start_soon(lease.append, {"n": "behind"})
                await anyio.lowlevel.checkpoint()
                disk.go_on.set()
                await over(virtual, thread)
    assert said == ["slow"]
    names = [record["n"] for record in await registry.read(path, on_error="raise")]
    assert names[0] == "slow"
    assert sorted(set(names[1:]) - {"cancelled"}) == ["behind"]  # what was cancelled is there once or not at all
    assert len(names) == len(set(names))


async def test_the_next_one_goes_on_when_the_write_is_over_and_not_before(path, virtual, disk):
    here, elsewhere, served = LockRegistry(max_hold=10.0, grace=2.0), LockRegistry(), []

    async def wait():
        async with elsewhere.lease(path) as lease:
            served.append("elsewhere")
            await lease.append({"n": "elsewhere"})

    async with create_task_group() as group:
        with pytest.raises(Revoked):
            async with here.lease(path) as lease:
                thread = write_in_thread(lease, [{"n": "slow"}], [])
                await hangs(disk, virtual)
                group.start_soon(wait)
                with CancelScope(shield=True):
                    await anyio.sleep(30)
                    assert not served
                    disk.go_on.set()
                    await over(virtual, thread)
                    await anyio.sleep(1)
                    assert served == ["elsewhere"]
    assert await here.read(path, on_error="raise") == [{"n": "slow"}, {"n": "elsewhere"}]


async def test_other_sessions_are_revoked_in_time_while_a_write_hangs(registry, path, tmp_path, virtual, disk):
    started, revoked_at = virtual.now(), []

    async def overstay(name):
        with pytest.raises(Revoked):
            async with registry.lease(tmp_path / name) as lease:
                with CancelScope(shield=True):
                    while lease.lost is None:
                        await anyio.sleep(0.5)
                revoked_at.append(virtual.now() - started)

    with pytest.raises(Revoked):
        async with registry.lease(path) as lease, create_task_group() as group:
            thread = write_in_thread(lease, [{"n": "slow"}], [])
            await hangs(disk, virtual)
            for name in "abc":
                group.start_soon(overstay, name)
            with CancelScope(shield=True):
                await anyio.sleep(30)
                assert revoked_at == [12, 12, 12]
                disk.go_on.set()
                await over(virtual, thread)
    assert registry.statistics().revoked == 4


async def test_a_frozen_loop_does_not_keep_the_writer_from_finishing_the_revocation(path, virtual, disk):
    here, elsewhere = LockRegistry(max_hold=10.0, grace=2.0), LockRegistry()
    with pytest.raises(Revoked):
        async with here.lease(path) as lease:
            thread = write_in_thread(lease, [{"n": "slow"}], [])
            await hangs(disk, virtual)
            virtual.advance(13)
            assert lease.lost is None
            disk.go_on.set()
            with blocking.permitted("this loop is frozen"):
                thread.join(20)
            claim = elsewhere.arbiter.new_claim()
            assert elsewhere.arbiter.acquire_nowait(path, Right.WRITE, claim)
            elsewhere.arbiter.release(claim)


async def test_a_turn_is_revoked_in_time_while_a_write_of_its_session_hangs(registry, path, virtual, disk):
    """Each right has a mutex of its own, so the one who writes keeps the steward from nothing but the write right."""
    with pytest.raises(Revoked):
        async with registry.turn(path, max_hold=10) as turn:
            with CancelScope(shield=True):
                async with registry.lease(path, max_hold=1000) as lease:
                    thread = write_in_thread(lease, [{"n": "slow"}], [])
                    await hangs(disk, virtual)
                    await anyio.sleep(12)
                    assert isinstance(turn.lost, Revoked)
                    with pytest.raises(Revoked):
                        await turn.append({"n": "late"})
                    disk.go_on.set()
                    await over(virtual, thread)
                    lease.check()
    assert await registry.read(path) == [{"n": "slow"}]


async def test_a_run_that_ends_during_its_write_writes_nothing_more(registry, path, virtual, disk):
    fence = Fence(run_id=1)
    said: list[object] = []
    token = current_fence.set(fence)
    with pytest.raises(LeaseLost):
        async with registry.lease(path) as lease:
            thread = write_in_thread(lease, [{"n": "slow"}, {"n": "late"}], said)
            await hangs(disk, virtual)
            registry.arbiter.end(fence)
            assert lease.lost is None
            disk.go_on.set()
            await over(virtual, thread)
            await anyio.sleep_forever()
    current_fence.reset(token)
    assert said[0] == "slow"
    assert isinstance(said[1], RunEnded)
    assert await registry.read(path) == [{"n": "slow"}]


async def test_a_turn_goes_with_its_run_although_a_write_of_the_session_hangs(registry, path, virtual, disk):
    fence = Fence(run_id=1)
    heard: list[LeaseLost] = []
    claim = registry.arbiter.new_claim(max_hold=1e9, fence=fence)
    claim.on_lost = heard.append
    assert registry.arbiter.acquire_nowait(path, Right.TURN, claim)
    async with registry.lease(path, max_hold=1e9) as lease:
        thread = write_in_thread(lease, [{"n": "slow"}], [])
        await hangs(disk, virtual)
        registry.arbiter.end(fence)
        await virtual.settle()
        assert [type(error) for error in heard] == [RunEnded]
        disk.go_on.set()
        await over(virtual, thread)
        lease.check()
    registry.arbiter.release(claim)
    assert registry.statistics().sessions == 0


# Who took over


async def test_an_overstaying_block_is_told_who_took_over_in_its_process(registry, path, virtual):
    async def successor():
        async with registry.lease(path, holder=Holder("session:a", 2)):
            await anyio.sleep(5)

    async with create_task_group() as group:
        with pytest.raises(Revoked, match=r"now run 2 on lane session:a .*holds it") as caught:
            async with registry.lease(path) as lease:
                group.start_soon(successor)
                with CancelScope(shield=True):
                    await anyio.sleep(12.5)
                    with pytest.raises(Revoked) as refused:
                        await lease.append({"n": 1})
                    assert refused.value.by == Holder("session:a", 2)
    assert caught.value is refused.value


async def test_an_overstaying_block_is_told_who_took_over_in_another_process(path, virtual):
    here, elsewhere = LockRegistry(max_hold=10.0, grace=2.0), LockRegistry()

    async def successor():
        async with elsewhere.lease(path, holder=Holder("session:a", 2)):
            await anyio.sleep(5)

    async with create_task_group() as group:
        with pytest.raises(Revoked, match=r"now .*run 2 on lane session:a.* holds it") as caught:
            async with here.lease(path, holder=Holder("session:a", 1)):
                group.start_soon(successor)
                with CancelScope(shield=True):
                    await anyio.sleep(14)
    assert caught.value.by is not None
    assert (caught.value.by.lane, caught.value.by.run_id) == ("session:a", 2)


async def test_an_overstaying_block_that_nobody_follows_is_told_of_nobody(registry, path, virtual):
    with pytest.raises(Revoked) as caught:
        async with registry.lease(path):
            with CancelScope(shield=True):
                await anyio.sleep(14)
    assert caught.value.by is None


# Races


async def test_appends_of_many_threads_end_with_the_revocation_and_none_lands_after_it(path):
    registry = LockRegistry()
    landed, refused = [], []

    def work(lease, number):
        for n in range(20_000):
            try:
                lease.append_sync({"by": number, "n": n})
            except LeaseLost:
                refused.append(number)
                return
            landed.append((number, n))

    with pytest.raises(Revoked), fail_after(30):
        async with registry.lease(path) as lease, create_task_group() as group:
            for number in range(4):
                group.start_soon(partial(to_thread.run_sync, work, lease, number))
            while len(landed) < 100:
                await anyio.sleep(0.001)
            registry.revoke(path, "enough")
            await anyio.sleep_forever()
    assert sorted(refused) == [0, 1, 2, 3]
    records = await registry.read(path, on_error="raise")
    assert sorted((record["by"], record["n"]) for record in records) == sorted(landed)
    assert registry.statistics().sessions == 0


async def test_a_refusal_that_is_raised_again_and_again_gathers_no_frames(registry, path, virtual):
    def depth(error):
        frames, traceback = 0, error.__traceback__
        while traceback is not None:
            frames, traceback = frames + 1, traceback.tb_next
        return frames

    depths = set()
    with pytest.raises(Revoked):
        async with registry.lease(path) as lease:
            registry.revoke(path, "by hand")
            for _ in range(5):
                try:
                    lease.check()
                except Revoked as error:
                    depths.add(depth(error))
            await anyio.sleep_forever()
    assert len(depths) == 1

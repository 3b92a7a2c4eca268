"""Superseding: the newcomer takes over now, the loser is told by whom, and nobody else slips in between."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import threading
from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group, fail_after, to_thread

from lanes import RunState
from locks import Fence, Holder, Lease, LeaseLost, LockRegistry, Right, Superseded, _os
from locks.engines.kernel import _BASES
from locks.lowlevel import current_fence
from runtime import Supervisor
from runtime.testing.suspensions import Suspensions
from tests import blocking
from tests.poll import eventually

OLD, NEW = Holder("session:a", 1), Holder("session:a", 2)


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(max_hold=300.0, grace=2.0, engine=request.param)


@pytest.fixture(params=[True, False], ids=["lock file", "no lock file"])
def sidecar(request):
    return request.param


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "session.jsonl")


@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_the_newcomer_takes_over_now_and_the_loser_is_cancelled_refused_and_told_by_whom(
    registry, path, right, virtual
):
    started, told_at = virtual.now(), []

    async def lose():
        with pytest.raises(
            Superseded, match=r"run 1 on lane session:a .*superseded by run 2 on lane session:a"
        ) as caught:
            async with getattr(registry, right)(path, holder=OLD) as lease:
                await lease.append({"by": "the loser"})
                try:
                    await anyio.sleep_forever()
                finally:
                    told_at.append(virtual.now())
                    with CancelScope(shield=True):
                        with pytest.raises(Superseded) as refused:
                            await lease.append({"by": "the loser, late"})
                        with pytest.raises(Superseded):
                            await to_thread.run_sync(lease.append_sync, {"by": "the loser, late"})
        assert refused.value.by == caught.value.by == NEW
        assert caught.value.holder == OLD
        assert caught.value.path == path

    async with create_task_group() as group:
        group.start_soon(lose)
        await virtual.settle()
        async with getattr(registry, right)(path, holder=NEW, supersede=True) as lease:
            await lease.append({"by": "the winner"})
            await anyio.sleep(1)
    assert told_at == [started]
    assert await registry.read(path) == [{"by": "the loser"}, {"by": "the winner"}]
    assert registry.statistics().revoked == 1
    assert registry.statistics().sessions == 0


async def test_a_free_right_is_simply_taken(path, sidecar, virtual):
    registry = LockRegistry(sidecar=sidecar)
    async with registry.lease(path, supersede=True) as lease:
        await lease.append({"n": 1})
    assert registry.statistics().revoked == 0
    assert virtual.now() == 1000.0


async def test_who_waited_stays_queued_behind_the_newcomer_in_order(registry, path, virtual):
    served = []

    async def wait(number):
        async with registry.lease(path):
            served.append(number)

    async def lose():
        with pytest.raises(Superseded):
            async with registry.lease(path):
                await anyio.sleep_forever()

    async with create_task_group() as group:
        group.start_soon(lose)
        await virtual.settle()
        for number in range(3):
            group.start_soon(wait, number)
            await virtual.settle()
        async with registry.lease(path, supersede=True):
            served.append("newcomer")
            await anyio.sleep(1)
            assert registry.statistics().waiting == 3
    assert served == ["newcomer", 0, 1, 2]


@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_nobody_of_another_process_slips_in_and_those_who_wait_there_do_not_hold_it_up(
    path, right, sidecar, monkeypatch, virtual
):
    here, elsewhere = LockRegistry(sidecar=sidecar), LockRegistry(sidecar=sidecar)
    served, unlocked = [], []

    async def lose():
        with pytest.raises(Superseded):
            async with getattr(here, right)(path):
                await anyio.sleep_forever()

    async def wait():
        async with getattr(elsewhere, right)(path):
            served.append("elsewhere")

    async with create_task_group() as group:
        group.start_soon(lose)
        await virtual.settle()
        group.start_soon(wait)
        await anyio.sleep(1)
        assert elsewhere.statistics().competing == 1
        asked_at, ofd_unlock = virtual.now(), _os.ofd_unlock

        def unlock(fd, start):
            unlocked.append(start)
            ofd_unlock(fd, start)

        monkeypatch.setattr(_os, "ofd_unlock", unlock)
        async with getattr(here, right)(path, supersede=True) as lease:
            assert virtual.now() == asked_at
            assert not unlocked
            served.append("newcomer")
            await anyio.sleep(1)
            lease.check()
    assert served == ["newcomer", "elsewhere"]


async def test_a_holder_in_another_process_is_waited_for_and_local_waiters_are_passed(path, sidecar, virtual):
    here, elsewhere = LockRegistry(sidecar=sidecar), LockRegistry(sidecar=sidecar)
    served = []

    async def wait(name, supersede):
        async with here.lease(path, supersede=supersede):
            served.append(name)

    async with create_task_group() as group, elsewhere.lease(path) as lease:
        for name, supersede in (("first", False), ("second", False), ("newcomer", True)):
            group.start_soon(wait, name, supersede)
            await virtual.settle()
        await anyio.sleep(1)
        lease.check()
        assert not served
    assert served == ["newcomer", "first", "second"]


async def test_superseding_what_one_holds_oneself_shares_it(registry, path, virtual):
    async with registry.lease(path) as outer, registry.lease(path, supersede=True) as inner:
        assert inner.epoch == outer.epoch
        await inner.append({"n": 1})
        outer.check()
    assert registry.statistics().revoked == 0


async def test_several_newcomers_each_supersede_the_one_before(registry, path, virtual):
    ended = []

    async def come(number):
        try:
            async with registry.lease(path, holder=Holder("session:a", number), supersede=True) as lease:
                await lease.append({"by": number})
                await anyio.sleep(number)
        except Superseded as error:
            ended.append((number, error.by and error.by.run_id))
        else:
            ended.append((number, None))

    async with create_task_group() as group:
        for number in range(1, 5):
            group.start_soon(come, number)
            await virtual.settle()
    assert ended == [(1, 2), (2, 3), (3, 4), (4, None)]
    assert registry.statistics().revoked == 3


async def test_newcomers_of_one_tick_supersede_each_other_before_they_have_entered(registry, path, virtual):
    ended = []

    async def come(number):
        try:
            async with registry.lease(path, holder=Holder("session:a", number), supersede=True) as lease:
                await lease.append({"by": number})
                await anyio.sleep(1)
        except Superseded:
            ended.append("superseded")
        else:
            ended.append("done")

    async with create_task_group() as group:
        for number in range(5):
            group.start_soon(come, number)
    assert sorted(ended) == ["done"] + ["superseded"] * 4
    assert ended[-1] == "done"
    assert len(await registry.read(path)) == 1
    assert registry.statistics().sessions == 0


async def test_a_newcomer_that_is_cancelled_in_its_wait_leaves_the_queue_as_it_was(path, sidecar, virtual):
    here, elsewhere = LockRegistry(sidecar=sidecar), LockRegistry(sidecar=sidecar)
    served, scope = [], CancelScope()

    async def wait(name):
        async with here.lease(path):
            served.append(name)

    async def newcomer():
        with scope:
            async with here.lease(path, supersede=True):
                served.append("newcomer")

    async with create_task_group() as group, elsewhere.lease(path):
        for name in ("first", "second"):
            group.start_soon(wait, name)
            await virtual.settle()
        group.start_soon(newcomer)
        await anyio.sleep(1)
        scope.cancel()
        await virtual.settle()
        assert here.statistics().waiting == 2
    assert served == ["first", "second"]
    assert here.statistics().competing == 0


async def test_a_newcomer_that_is_cancelled_as_it_takes_over_passes_the_right_on(registry, path, virtual):
    served = []

    async def lose():
        with pytest.raises(Superseded):
            async with registry.lease(path):
                await anyio.sleep_forever()

    async def wait():
        async with registry.lease(path):
            served.append(virtual.now())

    async with create_task_group() as group:
        group.start_soon(lose)
        await virtual.settle()
        group.start_soon(wait)
        await virtual.settle()
        taken_at = virtual.now()
        with CancelScope() as scope:
            await Suspensions(1, scope.cancel).run(registry.lease(path, supersede=True).__aenter__())
        assert scope.cancelled_caught
        assert registry.statistics().revoked == 1
    assert served == [taken_at]
    assert registry.statistics().sessions == 0


async def test_a_run_that_supersedes_while_another_of_its_tasks_waits_takes_over_for_both(registry, path, virtual):
    fence, served = Fence(lane="session:a", run_id=2), []

    async def lose():
        with pytest.raises(Superseded, match="superseded by run 2 on lane session:a"):
            async with registry.lease(path):
                await anyio.sleep_forever()

    async def wait(name, of=None, **options):
        current_fence.set(of)
        async with registry.lease(path, **options):
            served.append(name)
            await anyio.sleep(1)

    async with create_task_group() as group:
        group.start_soon(lose)
        await virtual.settle()
        for name, of in (("bystander", None), ("patient task", fence)):
            group.start_soon(wait, name, of)
            await virtual.settle()
        group.start_soon(partial(wait, "pressing task", fence, supersede=True))
    assert sorted(served[:2]) == ["patient task", "pressing task"]
    assert served[2:] == ["bystander"]
    assert registry.statistics().sessions == 0


async def test_waiters_of_other_files_go_on_after_one_who_was_passed_while_it_looked_after_them(tmp_path, virtual):
    """The first to wait looks after all files; it is passed by a newcomer, and gets its right from that one."""
    here, elsewhere = LockRegistry(), LockRegistry()
    got, leave = [], {name: anyio.Event() for name in ("a", "b", "newcomer")}

    async def hold(name):
        async with elsewhere.lease(tmp_path / name):
            await leave[name].wait()

    async def wait(name):
        async with here.lease(tmp_path / name):
            got.append(name)

    async def newcomer():
        async with here.lease(tmp_path / "a", supersede=True):
            got.append("newcomer")
            await leave["newcomer"].wait()

    async with create_task_group() as group:
        for name in ("a", "b"):
            group.start_soon(hold, name)
            await virtual.settle()
        for name in ("a", "b"):
            group.start_soon(wait, name)
            await virtual.settle()
        group.start_soon(newcomer)
        await anyio.sleep(1)
        leave["a"].set()
        await anyio.sleep(1)
        assert got == ["newcomer"]
        leave["newcomer"].set()
        await anyio.sleep(1)
        assert got == ["newcomer", "a"]
        leave["b"].set()
        with fail_after(10):
            while "b" not in got:
                await anyio.sleep(0.1)


async def test_who_was_passed_while_it_looked_after_its_file_goes_on_when_foreign_gateways_are_left_a_gap(
    path, virtual
):
    here, elsewhere = LockRegistry(yield_to_foreign=True), LockRegistry()
    served = []

    async def wait(name, supersede):
        async with here.lease(path, supersede=supersede):
            served.append(name)
            await anyio.sleep(1)

    with fail_after(10):
        async with create_task_group() as group, elsewhere.lease(path):
            for name, supersede in (("passed", False), ("newcomer", True)):
                group.start_soon(wait, name, supersede)
                await virtual.settle()
    assert served == ["newcomer", "passed"]
    assert here.statistics().competing == 0


async def test_who_listens_for_a_ticket_looks_again_at_once_when_the_ticket_is_given_up(path, virtual):
    """Its socket is closed, and the number may be another one's by the time it would wake."""
    here, elsewhere = LockRegistry(), LockRegistry()
    scope = CancelScope()

    async def wait():
        async with here.lease(path):
            pass

    async def newcomer():
        with scope:
            async with here.lease(path, supersede=True):
                pytest.fail("entered")

    def bell():
        entry = here.arbiter.files.find(path)
        assert entry is not None
        return entry.queue(Right.WRITE).bell

    async with create_task_group() as group, elsewhere.lease(path):
        group.start_soon(wait)
        await virtual.settle()
        first = bell()
        assert first is not None
        group.start_soon(newcomer)
        await virtual.settle()
        second = bell()
        assert second not in (None, first)
        scope.cancel()
        await virtual.settle()
        assert bell() not in (None, first, second)
    assert here.statistics().competing == 0


# The write under way


async def test_a_write_of_the_loser_that_hangs_lands_whole_and_nobody_of_another_process_slips_in(path, monkeypatch):
    here, elsewhere = LockRegistry(), LockRegistry()
    writing, go_on = threading.Event(), threading.Event()
    served, write = [], _os.write

    def slow_write(fd, data):
        if b"slow" in data:
            writing.set()
            assert go_on.wait(120)
        return write(fd, data)

    async def lose():
        with pytest.raises(Superseded) as caught:
            async with here.lease(path, holder=OLD) as lease:
                held.append(lease)
                started.set()
                await anyio.sleep_forever()
        assert caught.value.by == NEW

    async def wait_elsewhere():
        async with elsewhere.lease(path):
            served.append("elsewhere")

    async def newcomer():
        async with here.lease(path, holder=NEW, supersede=True) as lease:
            served.append("newcomer")
            await lease.append({"n": "newcomer"})
            await anyio.sleep(0.02)
            lease.check()

    supersede = here.arbiter.grants.supersede

    def supersede_during_the_write(queue, winner):
        # The loser's thread begins to write in the one moment in which its right is not looked at.
        thread = threading.Thread(target=append)
        threads.append(thread)
        thread.start()
        assert writing.wait(120)
        supersede(queue, winner)

    def append():
        try:
            held[0].append_sync({"n": "slow"})
            held[0].append_sync({"n": "late"})
        except LeaseLost as error:
            refused.append(error)

    lock_byte, unlocked, ofd_unlock = _BASES[Right.WRITE], [], _os.ofd_unlock

    def unlock(fd, start):
        if start == lock_byte:
            unlocked.append("before" if not served else "after")
        ofd_unlock(fd, start)

    monkeypatch.setattr(_os, "ofd_unlock", unlock)
    held: list[Lease] = []
    threads: list[threading.Thread] = []
    refused: list[LeaseLost] = []
    started = anyio.Event()
    monkeypatch.setattr(_os, "write", slow_write)
    monkeypatch.setattr(here.arbiter.grants, "supersede", supersede_during_the_write)
    with fail_after(30):
        async with create_task_group() as group:
            group.start_soon(lose)
            await started.wait()
            group.start_soon(wait_elsewhere)
            await eventually(lambda: elsewhere.statistics().competing == 1)
            with blocking.permitted("the write begins while the loop's thread is about to take the right away"):
                group.start_soon(newcomer)
                await eventually(writing.is_set)
            assert held[0].lost is None  # nobody waits for the write
            with pytest.raises(Superseded):
                held[0].check()
            go_on.set()
            await eventually(lambda: "newcomer" in served)
        threads[0].join(20)
    assert served == ["newcomer", "elsewhere"]
    assert "before" not in unlocked
    assert [error.by for error in refused] == [NEW]
    assert await here.read(path) == [{"n": "slow"}, {"n": "newcomer"}]


@pytest.fixture
def disk(monkeypatch, virtual):
    """Writes of records that say `slow` hang until it goes on."""
    virtual.threads_hold = False  # they hang on purpose
    writing, go_on, write = threading.Event(), threading.Event(), _os.write

    def slow_write(fd, data):
        if b"slow" in data:
            writing.set()
            assert go_on.wait(120)
        return write(fd, data)

    monkeypatch.setattr(_os, "write", slow_write)
    yield writing, go_on
    go_on.set()


async def happens(virtual, predicate):
    """Return once a thread has come so far. Time stands still meanwhile."""
    with virtual.held():
        while not predicate():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("what", ["all wait", "the last one is cancelled", "all are cancelled"])
async def test_newcomers_wait_for_a_write_that_hangs_while_the_loop_goes_on(registry, path, virtual, disk, what):
    writing, go_on = disk
    served, refused, scopes = [], [], [CancelScope(), CancelScope()]
    threads: list[threading.Thread] = []

    def append(lease):
        try:
            lease.append_sync({"n": "slow"})
            lease.append_sync({"n": "late"})
        except Superseded as error:
            refused.append(error)

    async def lose():
        with pytest.raises(Superseded):
            async with registry.lease(path) as lease:
                threads.append(threading.Thread(target=append, args=(lease,)))
                threads[0].start()
                await anyio.sleep_forever()

    async def wait():
        async with registry.lease(path):
            served.append("waiter")

    async def come(number):
        with scopes[number]:
            async with registry.lease(path, holder=Holder("session:a", number), supersede=True):
                served.append(number)

    async with create_task_group() as group:
        group.start_soon(lose)
        await happens(virtual, writing.is_set)
        group.start_soon(wait)
        await virtual.settle()
        for number in range(2):
            group.start_soon(come, number)
            await virtual.settle()
        await anyio.sleep(5)  # the loop goes on
        assert not served
        for number in {"all wait": [], "the last one is cancelled": [1]}.get(what, [0, 1]):
            scopes[number].cancel()
        await anyio.sleep(5)
        go_on.set()
        await happens(virtual, lambda: not threads[0].is_alive())
    assert served == {"all wait": [1, 0, "waiter"], "the last one is cancelled": [0, "waiter"]}.get(what, ["waiter"])
    assert [error.by for error in refused] == [Holder("session:a", 1)]
    assert await registry.read(path) == [{"n": "slow"}]
    assert registry.statistics().sessions == 0


async def test_superseding_a_holder_that_waits_for_oneself_is_no_deadlock_while_its_write_hangs(
    registry, path, tmp_path, virtual, disk
):
    writing, go_on = disk
    threads: list[threading.Thread] = []

    async def lose():
        with pytest.raises(Superseded):
            async with registry.lease(path) as lease:
                threads.append(threading.Thread(target=lease.append_sync, args=({"n": "slow"},)))
                threads[0].start()
                async with registry.lease(tmp_path / "other.jsonl"):
                    pytest.fail("entered")

    async def thaw():
        await anyio.sleep(1)
        go_on.set()
        await happens(virtual, lambda: not threads[0].is_alive())

    async with create_task_group() as group, registry.lease(tmp_path / "other.jsonl"):
        group.start_soon(lose)
        await happens(virtual, writing.is_set)
        await virtual.settle()
        group.start_soon(thaw)
        async with registry.lease(path, supersede=True) as lease:
            await lease.append({"n": "newcomer"})
    assert await registry.read(path) == [{"n": "slow"}, {"n": "newcomer"}]


# Runs


async def test_a_run_whose_turn_is_superseded_writes_nothing_more_and_is_told_by_whom(registry, path, virtual):
    fence = Fence(lane="session:a", run_id=1)
    heard: list[LeaseLost] = []
    claim = registry.arbiter.new_claim(fence=fence)
    claim.on_lost = heard.append
    assert registry.arbiter.acquire_nowait(path, Right.TURN, claim)
    async with registry.turn(path, holder=NEW, supersede=True):
        for attempt in (
            registry.lease_for(fence, path).__aenter__,
            partial(registry.store.append, path, b"{}\n", under=fence),
        ):
            with pytest.raises(Superseded, match=r"run 1 .* was superseded by run 2 on lane session:a") as caught:
                await attempt()
            assert caught.value.by == NEW
    assert [type(error) for error in heard] == [Superseded]
    assert heard[0].by == NEW
    registry.arbiter.release(claim)
    assert await registry.read(path) == []


async def test_a_run_of_the_supervisor_whose_turn_is_superseded_ends(tmp_path, virtual):
    async def body(ctx):
        await ctx.session.append({"n": 1})
        await anyio.sleep_forever()

    async with Supervisor(tmp_path) as sup:
        run = sup.submit("session:a", body)
        await anyio.sleep(1)
        (path,) = [str(one) for one in tmp_path.glob("*.jsonl")]
        async with sup.registry.turn(path, holder=NEW, supersede=True):
            outcome = await run.wait()
        assert outcome.state is RunState.CANCELLED
        assert "superseded by run 2 on lane session:a" in outcome.reason

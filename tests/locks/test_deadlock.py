"""Waits that can never end are refused, and no others."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

from functools import partial

import anyio
import pytest
from anyio import CancelScope, create_task_group

from locks import DeadlockError, Fence, Holder, LeaseTimeout, LockRegistry, Revoked, Right, Superseded
from locks.lowlevel import current_fence
from runtime import Supervisor


@pytest.fixture(params=["kernel", "none"])
def registry(request, virtual):
    return LockRegistry(max_hold=300.0, grace=2.0, engine=request.param)


@pytest.fixture
def file(tmp_path):
    return lambda number: str(tmp_path / f"{number}.jsonl")


def nobody_waits(registry):
    now = registry.statistics()
    return (now.sessions, now.held, now.waiting, len(registry.arbiter.graph)) == (0, 0, 0, 0)


@pytest.mark.failure("A9", "E4")
@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_who_closes_a_ring_of_two_is_refused_at_once_and_the_other_goes_on(registry, file, right, virtual):
    started = virtual.now()
    served: list[str] = []

    async def patient():
        async with getattr(registry, right)(file(1), holder=Holder(task="A")):
            await both.wait()
            async with getattr(registry, right)(file(2), holder=Holder(task="A")):
                served.append("A")

    both = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(patient)
        await virtual.settle()
        async with getattr(registry, right)(file(2), holder=Holder(task="B")):
            both.set()
            await virtual.settle()
            with pytest.raises(DeadlockError) as caught:
                async with getattr(registry, right)(file(1), holder=Holder(task="B")):
                    pytest.fail("entered")
            assert virtual.now() == started
            assert registry.statistics().waiting == 1
    error = caught.value
    assert error.path == file(1)
    assert [(waiter.task, path, holder.task) for waiter, path, holder in error.chain] == [
        ("B", file(1), "A"),
        ("A", file(2), "B"),
    ]
    for words in ("task B", f"waits for {file(1)}", "task A", f"waits for {file(2)}"):
        assert words in str(error)
    assert not error.retryable
    assert served == ["A"]
    assert nobody_waits(registry)


@pytest.mark.failure("E4")
async def test_a_ring_of_three_over_both_rights_is_told_from_end_to_end(registry, file, virtual):
    goes = [anyio.Event() for _ in range(3)]
    rights = [registry.lease, registry.turn, registry.lease]
    refused = []

    async def hold(number):
        further = (number + 1) % 3
        async with rights[number](file(number), holder=Holder(task=f"T{number}")):
            await goes[number].wait()
            try:
                async with rights[further](file(further), holder=Holder(task=f"T{number}")):
                    pass
            except DeadlockError as error:
                refused.append(error)

    async with create_task_group() as group:
        for number in range(3):
            group.start_soon(hold, number)
        for go in goes:
            await virtual.settle()
            assert not refused
            go.set()
    (error,) = refused
    assert [waiter.task for waiter, _, _ in error.chain] == ["T2", "T0", "T1"]
    assert [holder.task for _, _, holder in error.chain] == ["T0", "T1", "T2"]
    assert nobody_waits(registry)


@pytest.mark.failure("E4")
async def test_runs_that_want_each_others_turns_do_not_both_wait(virtual, tmp_path):
    ended: dict[str, object] = {}

    async def body(ctx, other):
        await ctx.session.append({"n": 1})
        await anyio.sleep(1)
        (path,) = tmp_path.glob(f"{other}-*.jsonl")
        try:
            async with sup.registry.turn(path):
                ended[ctx.run.session] = "got it"
        except DeadlockError as error:
            ended[ctx.run.session] = [waiter.run_id for waiter, _, _ in error.chain]

    started = virtual.now()
    async with Supervisor(tmp_path) as sup:
        runs = [sup.submit(f"session:{one}", body, other) for one, other in (("a", "b"), ("b", "a"))]
        for run in runs:
            await run.result()
        assert virtual.now() < started + 2  # nobody has waited for a deadline
        assert sorted(map(str, ended.values())) in (
            sorted(["got it", str([runs[0].id, runs[1].id])]),
            sorted(["got it", str([runs[1].id, runs[0].id])]),
        )


async def test_what_runs_a_body_is_forgotten_with_it(virtual, tmp_path):
    fences: list[Fence] = []

    async def body(ctx):
        fence = current_fence.get()
        assert fence is not None
        assert fence.task is not None
        fences.append(fence)

    async with Supervisor(tmp_path) as sup:
        await sup.submit("session:a", body).result()
    assert [fence.task for fence in fences] == [None]


@pytest.mark.failure("A9")
async def test_a_lease_of_ones_run_inside_ones_own_bare_lease_is_refused(registry, file, virtual):
    async with registry.lease(file(1)) as outer:
        with pytest.raises(DeadlockError):
            async with registry.lease_for(Fence(run_id=1), file(1)):
                pytest.fail("entered")
        with pytest.raises(DeadlockError):
            await registry.store.append(file(1), b"{}\n", under=Fence(run_id=1))
        await outer.append({"n": 1})
        assert registry.statistics().waiting == 0
    assert nobody_waits(registry)


@pytest.mark.failure("A9")
async def test_a_nested_bare_lease_of_the_same_task_shares(registry, file, virtual):
    async with registry.lease(file(1)) as outer, registry.lease(file(1)) as inner:
        assert inner.epoch == outer.epoch
        assert len(inner.claim.tasks) == 2
    assert inner.claim.tasks == ()
    assert nobody_waits(registry)


async def test_a_ring_through_a_second_task_of_the_holding_run_is_refused(registry, file, virtual):
    """The right goes back when all blocks that share it are left: one of them that can never be is enough."""
    fence, caught = Fence(run_id=1), []

    async def task_of_run(*, waits):
        current_fence.set(fence)
        async with registry.lease(file(1)):
            await go.wait()
            if waits:
                async with registry.lease(file(2)):
                    pass

    go = anyio.Event()
    async with create_task_group() as group:
        group.start_soon(partial(task_of_run, waits=False))
        group.start_soon(partial(task_of_run, waits=True))
        async with registry.lease(file(2)):
            await virtual.settle()
            go.set()
            await virtual.settle()
            try:
                async with registry.lease(file(1)):
                    pass
            except DeadlockError as error:
                caught.append(error)
    assert len(caught) == 1
    assert nobody_waits(registry)


# No false alarms


async def test_a_run_of_two_tasks_of_which_one_waits_is_no_deadlock(registry, file, virtual):
    """The task that holds does not wait, so it will leave its block, whatever its sibling waits for."""
    fence, served = Fence(run_id=1), []

    async def holds():
        current_fence.set(fence)
        async with registry.lease(file(1)):
            await anyio.sleep(5)
        served.append("the first file is left")

    async def waits():
        current_fence.set(fence)
        async with registry.lease(file(2)):
            served.append("the run has the second file")

    async with create_task_group() as group:
        group.start_soon(holds)
        async with registry.lease(file(2)):
            await virtual.settle()
            group.start_soon(waits)
            await virtual.settle()
            async with registry.lease(file(1)):
                served.append("we have the first file")
    assert served == ["the first file is left", "we have the first file", "the run has the second file"]
    assert nobody_waits(registry)


async def test_a_holder_whose_own_wait_has_been_granted_is_no_deadlock(registry, file, virtual):
    served = []

    async def other():
        async with registry.lease(file(1)):
            go.set()
            async with registry.lease(file(2)):
                served.append("other")

    go = anyio.Event()
    async with create_task_group() as group:
        async with registry.lease(file(2)):
            group.start_soon(other)
            await go.wait()
            await virtual.settle()
        # The other one holds both now and has not run since: it is still noted as waiting.
        assert len(registry.arbiter.graph) == 1
        async with registry.lease(file(1)):
            served.append("we")
    assert served == ["other", "we"]
    assert nobody_waits(registry)


async def test_a_sibling_whose_shared_wait_has_been_granted_is_no_deadlock(registry, file, virtual):
    """Both tasks of the run have the second file now. One of them has not run since, and will leave what it holds."""
    fence, served = Fence(run_id=1), []

    async def with_a_file_of_its_own():
        async with registry.lease(file(1)):
            current_fence.set(fence)
            async with registry.lease(file(2)):
                served.append("sibling")

    async def quick():
        current_fence.set(fence)
        async with registry.lease(file(2)), registry.lease(file(1)):
            served.append("quick")

    async with create_task_group() as group, registry.lease(file(2)):
        group.start_soon(quick)
        await virtual.settle()
        group.start_soon(with_a_file_of_its_own)
        await virtual.settle()
        assert registry.statistics().waiting == 1
    assert served == ["sibling", "quick"]
    assert nobody_waits(registry)


async def test_waiting_for_another_process_is_no_deadlock_that_could_be_known(file, virtual):
    here, elsewhere = LockRegistry(), LockRegistry()
    async with here.lease(file(1)):
        with pytest.raises(LeaseTimeout):
            async with elsewhere.lease(file(1), wait_timeout=1):
                pytest.fail("entered")
    assert nobody_waits(here)
    assert nobody_waits(elsewhere)


@pytest.mark.parametrize("how", ["cancelled", "timed out", "refused"])
async def test_who_waits_no_more_is_in_nobodys_way(registry, file, how, virtual):
    scope, left, served = CancelScope(), anyio.Event(), []

    async def other():
        async with registry.lease(file(1)):
            async with create_task_group() as own:
                own.start_soon(cancel_soon)
                with scope:
                    try:
                        async with registry.lease(file(2), wait_timeout=1 if how == "timed out" else None):
                            pytest.fail("entered")
                    except LeaseTimeout:
                        served.append("timed out")
            left.set()
            await anyio.sleep(5)

    async def cancel_soon():
        await anyio.sleep(0.5)
        if how != "timed out":
            scope.cancel()

    async with create_task_group() as group, registry.lease(file(2)):
        group.start_soon(other)
        await virtual.settle()
        if how == "refused":
            with pytest.raises(DeadlockError):
                async with registry.lease(file(1)):
                    pytest.fail("entered")
            assert len(registry.arbiter.graph) == 1
        await left.wait()
        assert len(registry.arbiter.graph) == 0
        async with registry.lease(file(1)):
            served.append("we")
    assert served[-1] == "we"
    assert nobody_waits(registry)


async def test_who_has_lost_its_right_already_is_waited_for_by_nobody(registry, file, virtual):
    """Between the loss and its settling on the loop, the loser still stands as the holder."""
    served = []

    async def loser():
        with pytest.raises(Revoked):
            async with registry.lease(file(1)), registry.lease(file(2)):
                pytest.fail("entered")

    async with create_task_group() as group, registry.lease(file(2)):
        group.start_soon(loser)
        await virtual.settle()
        registry.revoke(file(1), "by hand")
        async with registry.lease(file(1)):
            served.append("we")
    assert served == ["we"]
    assert nobody_waits(registry)


async def test_a_task_that_asks_again_for_what_it_has_just_lost_queues_up_for_it(registry, file, virtual):
    with pytest.raises(Revoked):
        async with registry.lease(file(1)) as outer:
            registry.revoke(file(1), "by hand")
            with CancelScope(shield=True):
                async with registry.lease(file(1)) as inner:
                    assert inner.epoch > outer.epoch
                    await inner.append({"n": 1})
    assert nobody_waits(registry)


async def test_superseding_a_holder_that_waits_for_oneself_is_no_deadlock(registry, file, virtual):
    """A newcomer waits for no block to be left, so a ring of blocks is none of its business."""

    async def loser():
        with pytest.raises(Superseded):
            async with registry.lease(file(1)), registry.lease(file(2)):
                pytest.fail("entered")

    async with create_task_group() as group, registry.lease(file(2)):
        group.start_soon(loser)
        await virtual.settle()
        async with registry.lease(file(1), supersede=True) as lease:
            await lease.append({"n": 1})
    assert nobody_waits(registry)


async def test_a_claim_without_a_task_is_no_edge(registry, file, virtual):
    claim = registry.arbiter.new_claim()
    assert registry.arbiter.acquire_nowait(file(1), Right.WRITE, claim)
    claim.identity = object()
    with pytest.raises(LeaseTimeout):
        async with registry.lease(file(1), wait_timeout=1):
            pytest.fail("entered")
    registry.arbiter.release(claim)
    assert nobody_waits(registry)

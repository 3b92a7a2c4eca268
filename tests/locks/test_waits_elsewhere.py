"""Rings of waits that pass through waits for something that is no right, such as a run that awaits another."""

from __future__ import annotations

import pickle
from functools import partial

import anyio
import pytest
from anyio import create_task_group, fail_after

from locks import DeadlockError, Fence, Holder, LockRegistry, Right
from locks._loop import current_task
from tests.poll import eventually


class Awaited:
    """A host's own waits: who awaits whom, by task, told to a registry while somebody waits."""

    def __init__(self, registry):
        self._waits: dict[object, object] = {}
        registry.arbiter.wait_sources.append(self.of)

    def of(self, task):
        """A `WaitSource`."""
        return (self._waits[task],) if task in self._waits else ()

    async def wait(self, other, ended):
        """Wait until `other` has ended, as the caller's task."""
        self._waits[current_task()] = other
        try:
            await ended.wait()
        finally:
            del self._waits[current_task()]


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


@pytest.fixture
def awaited(registry):
    return Awaited(registry)


@pytest.fixture
def file(tmp_path):
    return lambda number: str(tmp_path / f"{number}.jsonl")


def nobody_waits(registry):
    now = registry.statistics()
    return (now.sessions, now.held, now.waiting, len(registry.arbiter.graph)) == (0, 0, 0, 0)


@pytest.mark.failure("E4")
@pytest.mark.parametrize("right", ["lease", "turn"])
async def test_who_asks_for_what_the_one_that_awaits_it_holds_is_refused_at_once(
    registry, awaited, file, right, virtual
):
    started, ended, child = virtual.now(), anyio.Event(), current_task()

    async def parent():
        async with getattr(registry, right)(file(1), holder=Holder("main", 1)) as lease:
            await awaited.wait(child, ended)
            await lease.append({"n": 1})

    async with create_task_group() as group:
        group.start_soon(parent)
        await virtual.settle()
        with pytest.raises(DeadlockError) as caught:
            async with getattr(registry, right)(file(1), holder=Holder("subagent", 2)):
                pytest.fail("entered")
        ended.set()
    assert virtual.now() == started
    error = caught.value
    parent_, child_ = Holder("main", 1), Holder("subagent", 2)
    assert error.path == file(1)
    assert error.chain == ((child_, file(1), parent_), (parent_, "", child_))
    words = str(error)
    epoch = words.partition(" [epoch ")[2].partition("]")[0]
    assert words == (
        f"waiting for {file(1)} would never end: {child_} waits for {file(1)}, which {parent_} [epoch {epoch}] holds; "
        f"{parent_} [epoch {epoch}] waits for {child_}"
    )
    assert pickle.loads(pickle.dumps(error)).chain == error.chain
    assert not error.retryable
    assert await registry.read(file(1)) == [{"n": 1}]
    assert nobody_waits(registry)


@pytest.mark.failure("E4")
async def test_an_append_is_refused_as_well_and_the_run_that_holds_is_told_by_its_own_task(
    registry, awaited, file, virtual
):
    """The turn of a run is a claim without a block: its scheduler gives it back when the run's body has ended."""
    run, ended, child = Fence(lane="main", run_id=1), anyio.Event(), current_task()

    async def body():
        run.task = current_task()
        await awaited.wait(child, ended)
        run.task = None

    claim = registry.arbiter.new_claim(fence=run)
    assert registry.arbiter.acquire_nowait(file(1), Right.WRITE, claim)
    async with create_task_group() as group:
        group.start_soon(body)
        await virtual.settle()
        with pytest.raises(DeadlockError) as caught:
            await registry.store.append(file(1), b"{}\n", under=Fence(lane="subagent", run_id=2))
        ended.set()
    registry.arbiter.release(claim)
    assert [(waiter.run_id, other.run_id) for waiter, _, other in caught.value.chain] == [(2, 1), (1, 2)]
    assert await registry.read(file(1)) == []
    assert nobody_waits(registry)


@pytest.mark.failure("E4")
async def test_a_ring_of_both_kinds_of_waits_is_told_from_end_to_end(registry, awaited, file, virtual):
    """We ask for what A holds; A awaits B, which awaits C, which waits for what D holds; D awaits us."""
    ended, tasks, me = anyio.Event(), {}, current_task()

    async def run(name, *, holds=None, awaits=None, asks=None):
        tasks[name] = current_task()
        if asks is not None:
            async with registry.lease(file(asks), holder=Holder(task=name)):
                return
        if holds is None:
            await awaited.wait(awaits(), ended)
            return
        async with registry.lease(file(holds), holder=Holder(task=name)):
            await awaited.wait(awaits(), ended)

    async with create_task_group() as group:
        group.start_soon(partial(run, "D", holds=2, awaits=lambda: me))
        await virtual.settle()
        group.start_soon(partial(run, "C", asks=2))
        await virtual.settle()
        group.start_soon(partial(run, "B", awaits=lambda: tasks["C"]), name="B by name")
        await virtual.settle()
        group.start_soon(partial(run, "A", holds=1, awaits=lambda: tasks["B"]))
        await virtual.settle()
        assert registry.statistics().waiting == 1
        with pytest.raises(DeadlockError) as caught:
            async with registry.lease(file(1), holder=Holder(task="we")):
                pytest.fail("entered")
        ended.set()
    assert [(waiter.task, path, other.task) for waiter, path, other in caught.value.chain] == [
        ("we", file(1), "A"),
        ("A", "", "B by name"),
        ("B by name", "", "C"),
        ("C", file(2), "D"),
        ("D", "", "we"),
    ]
    assert "task B by name (pid" in str(caught.value)
    assert nobody_waits(registry)


@pytest.mark.failure("E4")
async def test_all_sources_are_asked_and_every_task_that_they_name(registry, file, virtual):
    ended, me, holder = anyio.Event(), current_task(), []
    idle = object()
    registry.arbiter.wait_sources.append(lambda task: ())
    registry.arbiter.wait_sources.append(lambda task: (idle, me) if task in holder else ())

    async def hold():
        holder.append(current_task())
        async with registry.lease(file(1)):
            await ended.wait()

    async with create_task_group() as group:
        group.start_soon(hold)
        await virtual.settle()
        with pytest.raises(DeadlockError):
            async with registry.lease(file(1)):
                pytest.fail("entered")
        ended.set()
    assert nobody_waits(registry)


# No false alarms


async def test_who_is_awaited_by_nobody_that_it_waits_for_waits(registry, awaited, file, virtual):
    """The holder awaits a third one, that goes on; and we are awaited by a fourth, that holds nothing."""
    ended, us_ended, served, tasks, me = anyio.Event(), anyio.Event(), [], [], current_task()

    async def third():
        tasks.append(current_task())
        await anyio.sleep(5)
        served.append("third")
        ended.set()

    async def holder():
        async with registry.lease(file(1)):
            await awaited.wait(tasks[0], ended)
            served.append("holder")

    async with create_task_group() as group:
        group.start_soon(third)
        await virtual.settle()
        group.start_soon(holder)
        group.start_soon(awaited.wait, me, us_ended)
        await virtual.settle()
        async with registry.lease(file(1)):
            served.append("we")
        us_ended.set()
    assert served == ["third", "holder", "we"]
    assert nobody_waits(registry)


async def test_tasks_that_await_each_other_in_a_ring_of_their_own_stop_no_search(registry, awaited, file, virtual):
    """That ring is the business of whoever awaits; ours ends when the holder is let go."""
    ended, tasks = anyio.Event(), {}

    async def one(name, other, *, holds):
        tasks[name] = current_task()
        await virtual.settle()
        if holds:
            async with registry.lease(file(1)):
                await awaited.wait(tasks[other], ended)
        else:
            await awaited.wait(tasks[other], ended)

    async with create_task_group() as group:
        group.start_soon(partial(one, "a", "b", holds=True))
        group.start_soon(partial(one, "b", "a", holds=False))
        await virtual.settle()
        await anyio.sleep(1)
        group.start_soon(_later, ended)
        async with registry.lease(file(1)):
            pass
    assert nobody_waits(registry)


async def _later(event):
    await anyio.sleep(1)
    event.set()


async def test_a_source_that_was_taken_out_is_not_asked(registry, awaited, file, virtual):
    ended, child = anyio.Event(), current_task()

    async def parent():
        async with registry.lease(file(1)):
            await awaited.wait(child, ended)

    async with create_task_group() as group:
        group.start_soon(parent)
        await virtual.settle()
        registry.arbiter.wait_sources.remove(awaited.of)
        group.start_soon(_later, ended)
        async with registry.lease(file(1)):
            pass
    assert nobody_waits(registry)


# Who is in the way


def in_the_way(registry, task):
    """The tasks that a task waits for, and for what whoever waits at all waits, behind whom."""
    waiting = [(waiter.path, waiter.behind) for waiter in registry.statistics().waiters]
    return tuple(registry.arbiter.graph.rights_of(task)), waiting


async def test_a_scheduler_can_ask_who_is_in_the_way_of_a_task_before_it_awaits_it(registry, file, virtual):
    me, asking = current_task(), []

    async def ask():
        asking.append(current_task())
        async with registry.lease(file(1)):
            pass

    assert in_the_way(registry, me) == ((), [])
    async with create_task_group() as group:
        async with registry.lease(file(1), holder=Holder("main", 7)):
            group.start_soon(ask)
            await virtual.settle()
            assert in_the_way(registry, asking[0]) == ((me,), [(file(1), Holder("main", 7))])
            assert tuple(registry.arbiter.graph.rights_of(me)) == ()
        # It holds now, and has not run since.
        assert in_the_way(registry, asking[0]) == ((), [])
    assert in_the_way(registry, asking[0]) == ((), [])
    assert nobody_waits(registry)


async def test_the_turn_of_a_run_is_in_the_way_as_the_task_of_its_body(registry, file, virtual):
    run, asking = Fence(lane="main", run_id=7), []
    run.task = current_task()

    async def ask():
        asking.append(current_task())
        async with registry.turn(file(1)):
            pass

    claim = registry.arbiter.new_claim(fence=run)
    assert registry.arbiter.acquire_nowait(file(1), Right.TURN, claim)
    async with create_task_group() as group:
        group.start_soon(ask)
        await virtual.settle()
        assert in_the_way(registry, asking[0]) == ((run.task,), [(file(1), run.holder)])
        registry.arbiter.release(claim)
    assert nobody_waits(registry)


async def test_another_process_is_nobody_that_could_be_named(file):
    here, there = LockRegistry(), LockRegistry()
    asking = []

    async def ask():
        asking.append(current_task())
        async with here.lease(file(1)):
            pass

    with fail_after(60):
        async with create_task_group() as group, there.lease(file(1)):
            group.start_soon(ask)
            await eventually(lambda: here.statistics().waiting)
            assert in_the_way(here, asking[0]) == ((), [(file(1), None)])
    assert nobody_waits(here)
    assert nobody_waits(there)

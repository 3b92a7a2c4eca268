"""The turn of a session goes from run to run while its file stays open and locked, unless another process is before."""

from __future__ import annotations

import inspect
import itertools
import os
import sys

import anyio
import pytest

from lanes import GroupSpec, LaneSpec
from locks import Fence, LockRegistry, Right, _os
from locks.rights.arbiter import Arbiter
from locks.rights.queue import RightQueue
from runtime import Supervisor
from tests.poll import eventually
from tests.supervised import assert_empty, path_of

LANES = [LaneSpec("session:*"), LaneSpec("narrow", capacity=1, group="narrow")]
GROUPS = [GroupSpec("narrow", slots=1)]


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, groups=GROUPS) as sup:
        yield sup
        assert_empty(sup)


@pytest.fixture
def order():
    return []


@pytest.fixture
def conduct(order):
    """A body that notes its name when it begins, and then holds the turn for a second."""

    async def body(ctx, name):
        order.append(name)
        await anyio.sleep(1)

    return body


async def elsewhere(sup, order, name):
    """Conduct session `a` as another process would."""
    registry = LockRegistry()
    async with registry.turn(path_of(sup, "a")):
        order.append(name)
        await anyio.sleep(1)


async def test_runs_that_follow_each_other_open_and_lock_the_file_once(sup, order, conduct, monkeypatch):
    real_open, real_lock, calls = _os.open, _os.ofd_lock, []

    def open_(path, *args):
        calls.append(os.path.basename(path))
        return real_open(path, *args)

    def lock(fd, position):
        calls.append("lock")
        return real_lock(fd, position)

    monkeypatch.setattr(_os, "open", open_)
    monkeypatch.setattr(_os, "ofd_lock", lock)
    name = path_of(sup, "a").name
    runs = [sup.submit("session:a", conduct, number) for number in range(5)]
    await runs[-1].result()
    assert order == [0, 1, 2, 3, 4]
    assert (calls.count(name), calls.count("lock")) == (2, 1)  # opened again to create it
    assert sup.statistics().leases.held == 0


@pytest.mark.failure("E1")
async def test_another_process_that_came_before_the_next_run_goes_before_it(sup, order, conduct):
    async with anyio.create_task_group() as group:
        first = sup.submit("session:a", conduct, "first")
        await anyio.sleep(0.1)
        group.start_soon(elsewhere, sup, order, "elsewhere")
        await anyio.sleep(0.1)
        last = sup.submit("session:a", conduct, "last")
        await first.result()
        await last.result()
    assert order == ["first", "elsewhere", "last"]


async def test_a_run_that_cannot_start_yet_keeps_no_other_process_waiting(sup, order, conduct):
    async with anyio.create_task_group() as group:
        blocking = sup.submit("narrow", conduct, "blocks its slot", timeout=100)
        other = sup.submit("narrow", conduct, "too", session="b")
        first = sup.submit("session:a", conduct, "first")
        await anyio.sleep(0.1)
        last = sup.submit("narrow", conduct, "last", session="a")
        group.start_soon(elsewhere, sup, order, "elsewhere")
        await first.result()
        assert not [one for one in sup.registry.holders() if one.path == str(path_of(sup, "a"))]
        for run in (blocking, other, last):
            await run.result()
    assert order.index("elsewhere") < order.index("last")


async def test_a_file_that_was_replaced_meanwhile_is_conducted_anew(sup, order, conduct, tmp_path):
    runs = [sup.submit("session:a", conduct, number) for number in range(2)]
    await anyio.sleep(0.5)
    (tmp_path / "new").write_bytes(b"")
    (tmp_path / "new").rename(path_of(sup, "a"))
    await runs[0].result()
    entry = sup.registry.arbiter.files.find(str(path_of(sup, "a")))
    assert entry is not None and entry.is_at(str(path_of(sup, "a")))
    assert entry.queues[Right.TURN].holder.fence.run_id == runs[1].id
    await runs[1].result()


async def test_a_next_run_that_is_cancelled_as_the_turn_comes_leaves_it_to_the_one_behind(sup, order, conduct):
    runs = [sup.submit("session:a", conduct, number) for number in range(3)]
    await anyio.sleep(0.5)
    runs[1].cancel("by hand")
    await runs[2].result()
    assert order == [0, 2]


class Interrupt(BaseException):
    """What a signal handler raises."""


def interrupting(at, *functions):
    """A trace function that raises at the line of that number, of those that the functions run."""
    codes, passed = {function.__code__ for function in functions}, itertools.count(1)

    def line(_frame, event, _):
        if event == "line" and next(passed) == at:
            raise Interrupt
        return line

    return lambda frame, _event, _: line if frame.f_code in codes else None


@pytest.mark.backends("asyncio", "trio")
@pytest.mark.parametrize("contended", [False, True])
async def test_an_exception_at_any_line_of_handing_over_leaves_nothing_held_by_nobody(tmp_path, contended):
    path, steps = str(tmp_path / "a.jsonl"), (RightQueue.ask, RightQueue.withdraw, RightQueue.pass_on)
    for number in range(1, 200):
        here, there, raised = LockRegistry(), LockRegistry(), False
        old = here.arbiter.new_claim(fence=Fence(run_id=1))
        assert here.arbiter.acquire_nowait(path, Right.TURN, old)
        async with anyio.create_task_group() as group:
            if contended:
                group.start_soon(_take, there, path)
                await eventually(lambda: there.statistics().waiting == 1)  # noqa: B023 -- awaited in this round
            new = here.arbiter.new_claim(fence=Fence(run_id=2))
            sys.settrace(interrupting(number, inspect.unwrap(Arbiter.hand_over), *steps))
            try:
                here.arbiter.hand_over(old, new)
            except Interrupt:
                raised = True
            finally:
                sys.settrace(None)
            if not raised:
                assert (here.statistics().held, here.statistics().waiting) == (0 if contended else 1, 0)
            for claim in (old, new):  # as their owners do, whatever has come of them
                here.arbiter.release(claim)
        assert here.statistics().sessions == there.statistics().sessions == 0, number
        if not raised:
            break
    assert number > 20


async def _take(registry, path):
    with anyio.fail_after(60):
        async with registry.turn(path):
            pass

"""Between processes: one writer per file whatever it is called, dead and stopped ones stand in nobody's way."""

from __future__ import annotations

import signal
from contextlib import ExitStack

import anyio
import pytest
from anyio import create_task_group, fail_after

from locks import LockRegistry, Right
from tests.peers import peer
from tests.poll import eventually


@pytest.fixture
def path(tmp_path):
    return tmp_path / "session.jsonl"


def free(registry, path, right=Right.WRITE):
    """Whether the right can be had at once; it is given back."""
    claim = registry.arbiter.new_claim()
    taken = registry.arbiter.acquire_nowait(str(path), right, claim)
    registry.arbiter.release(claim)
    return taken


@pytest.mark.failure("B4")
@pytest.mark.parametrize("alias", ["symlink", "relative", "dots", "hard link", "directory symlink"])
async def test_two_processes_exclude_each_other_under_every_name_of_the_file(path, tmp_path, alias, monkeypatch):
    path.touch()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    names = {
        "symlink": tmp_path / "alias.jsonl",
        "relative": "session.jsonl",
        "dots": tmp_path / "sub" / ".." / "session.jsonl",
        "hard link": tmp_path / "hard.jsonl",
        "directory symlink": tmp_path / "door" / "session.jsonl",
    }
    (tmp_path / "alias.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    (tmp_path / "door").symlink_to(tmp_path)
    registry, served = LockRegistry(), []

    async def wait():
        async with registry.lease(names[alias]) as lease:
            served.append(other.said("left") or "while held")
            await lease.append({"by": "us"})

    with peer("holder", path, "lease", "asyncio") as other, fail_after(30):
        await eventually(lambda: other.said("held"), within=60)
        assert not free(registry, names[alias])
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: registry.statistics().competing == 1)
            for _ in range(20):
                await anyio.lowlevel.checkpoint()
            assert not served
            other.tell("leave")
        await eventually(lambda: other.said("left"))
    assert len(served) == 1
    assert [record["by"] for record in await registry.read(path, on_error="raise")][1:] == ["us"]


@pytest.mark.failure("C1", "C8")
@pytest.mark.parametrize("right", ["lease", "turn"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGHUP, signal.SIGABRT])
@pytest.mark.backends("asyncio", "trio")
async def test_the_right_of_a_killed_process_is_free(path, right, how):
    registry, order = LockRegistry(), []

    async def wait():
        async with getattr(registry, right)(path):
            order.append("granted")

    with peer("holder", path, right, "trio") as other, fail_after(30):
        await eventually(lambda: other.said("held"), within=60)
        async with create_task_group() as group:
            group.start_soon(wait)
            await eventually(lambda: registry.statistics().competing == 1)
            order.append("killed")
            other.signal(how)
        await eventually(other.ended)
    assert order == ["killed", "granted"]


@pytest.mark.failure("C1")
async def test_a_killed_waiter_leaves_no_ticket(path):
    registry = LockRegistry()
    with ExitStack() as stack, fail_after(30):
        async with registry.lease(path) as lease:
            waiter = stack.enter_context(peer("holder", path, "lease", "asyncio"))
            await eventually(lambda: waiter.said("waiting"), within=60)
            waiter.signal(signal.SIGKILL)
            await eventually(waiter.ended)
            await lease.append({"n": 1})
        assert free(registry, path)  # its ticket would have been lower


@pytest.mark.failure("D7")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_stopped_process_at_the_head_of_the_queue_is_passed_and_gets_its_turn_later(path, backend):
    first, second = LockRegistry(), LockRegistry()
    inside = 0

    async def hold(registry):
        nonlocal inside
        async with registry.lease(path) as lease:
            inside += 1
            assert inside == 1
            assert not stopped.said("held")
            await lease.append({"by": "passer-by"})
            inside -= 1

    with ExitStack() as stack, fail_after(30):
        async with create_task_group() as group, first.lease(path):
            stopped = stack.enter_context(peer("holder", path, "lease", backend))
            await eventually(lambda: stopped.said("waiting"), within=60)
            for registry in (second, first, second):
                group.start_soon(hold, registry)
            await eventually(lambda: second.statistics().waiting == 2)
            stopped.signal(signal.SIGSTOP)
            await eventually(stopped.stopped)
        for registry in (first, second):  # and those who come new pass it, too
            async with registry.lease(path, wait_timeout=20):
                pass
        async with first.lease(path) as lease:
            stopped.signal(signal.SIGCONT)
            await lease.append({"by": "the last one"})
            assert not stopped.said("held")
        await eventually(lambda: stopped.said("held"), within=60)
        assert not free(first, path)
        stopped.tell("leave")
        await eventually(lambda: stopped.said("left"))
    records = [record["by"] for record in await first.read(path, on_error="raise")]
    assert records[:4] == ["passer-by"] * 3 + ["the last one"]
    assert len(records) == 5


@pytest.mark.failure("A3", "A10")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
async def test_a_process_with_a_frozen_loop_loses_its_session_to_another_one(path, backend):
    registry = LockRegistry()
    with peer("frozen", path, backend) as frozen, fail_after(30):
        await eventually(lambda: frozen.said("frozen"), within=60)
        async with registry.lease(path) as lease:  # it does not thaw until we say so
            await lease.append({"by": "us"})
            frozen.tell("thaw")
            await eventually(lambda: frozen.said("held=0 revoked=1"))
            await lease.append({"by": "us"})
        assert frozen.lines == ["frozen", "append: Revoked", "block: Revoked", "held=0 revoked=1"]
    assert [record["by"] for record in await registry.read(path, on_error="raise")] == ["frozen", "us", "us"]


@pytest.mark.backends("asyncio", "trio")
async def test_processes_are_served_in_order_of_arrival(path):
    registry = LockRegistry()
    with ExitStack() as stack, fail_after(60):
        async with registry.lease(path):
            queue = []
            for number in range(3):
                queue.append(stack.enter_context(peer("holder", path, "lease", ["asyncio", "trio"][number % 2])))
                await eventually(lambda: queue[-1].said("waiting"), within=60)
        for number, other in enumerate(queue):
            await eventually(lambda: other.said("held"), within=60)  # noqa: B023 -- awaited in this round
            assert not any(later.said("held") for later in queue[number + 1 :])
            other.tell("leave")


@pytest.mark.failure("C1")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.backends("asyncio", "trio")
async def test_a_forked_child_may_not_write_under_its_parents_lease_and_keeps_nobody_out(path, backend):
    registry = LockRegistry()
    with peer("forking", path, backend) as parent, fail_after(30):
        await eventually(lambda: any(line.startswith("child: ") for line in parent.lines), within=60)
        assert parent.said("child: Revoked")
        assert not free(registry, path)  # the child has not let go of what is its parent's
        parent.signal(signal.SIGKILL)
        await eventually(parent.ended)
        async with registry.lease(path) as lease:  # the child lives on
            await lease.append({"by": "us"})
    assert await registry.read(path, on_error="raise") == [{"by": "us"}]

"""The same task, or the same run, asks again for what it has."""

# ruff: noqa: PT012 -- leaving the block is what raises, so the block stands inside `raises`

from __future__ import annotations

import anyio
import pytest
from anyio import create_task_group, to_thread

from locks import Fence, LockRegistry, Revoked
from locks.lowlevel import current_fence


@pytest.fixture(params=["kernel", "none"])
def registry(request):
    return LockRegistry(engine=request.param)


def a_run(number=1):
    return Fence(lane="main", run_id=number)


@pytest.mark.failure("A9")
async def test_a_task_that_asks_again_shares_its_right(registry, path):
    with anyio.fail_after(60):
        async with registry.lease(path) as outer:
            async with registry.lease(path) as inner:
                assert inner is not outer
                assert inner.epoch == outer.epoch
                assert registry.statistics().held == 1
                await inner.append({"n": 1})
            await outer.append({"n": 2})  # leaving the inner block has released nothing
            assert registry.statistics().held == 1
        assert await registry.read(path) == [{"n": 1}, {"n": 2}]
    assert registry.statistics().sessions == 0


async def test_handles_may_be_left_in_any_order(registry, path):
    outer, inner = registry.lease(path), registry.lease(path)
    await outer.__aenter__()
    await inner.__aenter__()
    await inner.__aexit__(None, None, None)
    outer.check()
    await outer.__aexit__(None, None, None)
    assert registry.statistics().held == 0


async def test_a_task_of_the_same_run_shares_the_right_and_one_of_another_run_waits(registry, path):
    epochs = {}
    order = []

    async def ask(name, fence):
        current_fence.set(fence)
        async with registry.lease(path) as lease:
            epochs[name] = lease.epoch
            order.append(name)

    mine, other = a_run(1), a_run(2)
    async with create_task_group() as group:
        token = current_fence.set(mine)
        async with registry.lease(path) as lease:
            current_fence.reset(token)
            group.start_soon(ask, "other", other)
            while not registry.statistics().waiting:
                await anyio.lowlevel.checkpoint()
            group.start_soon(ask, "mine", mine)
            while "mine" not in epochs:
                await anyio.lowlevel.checkpoint()
            assert epochs["mine"] == lease.epoch
            assert "other" not in epochs
            order.append("left")
    assert order == ["mine", "left", "other"]
    assert epochs["other"] > epochs["mine"]


async def test_the_right_stays_while_any_task_of_the_run_holds_it(registry, path):
    mine = a_run()
    entered, leave = anyio.Event(), anyio.Event()

    async def child():
        async with registry.lease(path) as lease:
            entered.set()
            await leave.wait()
            await lease.append({"by": "child"})

    token = current_fence.set(mine)
    async with create_task_group() as group:
        async with registry.lease(path):
            group.start_soon(child)
            await entered.wait()
        assert registry.statistics().held == 1
        leave.set()
    current_fence.reset(token)
    assert await registry.read(path) == [{"by": "child"}]
    assert registry.statistics().sessions == 0


async def test_a_second_task_of_a_run_that_asked_while_both_waited_shares_the_grant(registry, path, virtual):
    mine = a_run()
    inside = anyio.Event()

    async def first():
        current_fence.set(mine)
        async with registry.lease(path):
            await inside.wait()  # the other task of this run: it would wait for us, and we for it

    async def second():
        current_fence.set(mine)
        async with registry.lease(path):
            inside.set()

    started = virtual.now()
    async with create_task_group() as group, registry.lease(path):
        group.start_soon(first)
        await virtual.settle()
        group.start_soon(second)
        await virtual.settle()
    assert virtual.now() < started + 1


async def test_an_append_of_the_registry_inside_ones_own_lease_goes_through_it(registry, path):
    with anyio.fail_after(60):
        async with registry.lease(path) as lease:
            await registry.append(path, {"n": 1})
            await lease.append({"n": 2})
    assert await registry.read(path) == [{"n": 1}, {"n": 2}]


async def test_a_turn_appends_through_the_write_lease_that_its_task_holds(registry, path):
    with anyio.fail_after(60):
        async with registry.turn(path) as turn, registry.lease(path) as lease:
            await turn.append({"n": 1})
            await lease.append({"n": 2})
            await turn.append({"n": 3})
    assert [record["n"] for record in await registry.read(path)] == [1, 2, 3]


async def test_a_turn_appends_from_a_thread_while_its_task_holds_the_write_lease(registry, path, virtual):
    started = virtual.now()
    async with registry.turn(path) as turn, registry.lease(path):
        await to_thread.run_sync(turn.append_sync, {"n": 1})
    assert virtual.now() < started + 1
    assert await registry.read(path) == [{"n": 1}]


async def test_a_shared_right_that_is_lost_is_lost_for_every_handle(registry, path):
    with pytest.raises(Revoked):
        async with registry.lease(path) as outer:
            with pytest.raises(Revoked):
                async with registry.lease(path) as inner:
                    assert registry.revoke(path, "by hand") == 1
                    await anyio.sleep_forever()
            assert isinstance(outer.lost, Revoked) and inner.lost is outer.lost
            outer.check()
    assert registry.statistics().sessions == 0

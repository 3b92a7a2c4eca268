"""trio as a guest of an asyncio program: two event loops on one thread. Which of them runs is asked, never guessed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio

import lanes
import locks
import runtime
from lanes import LaneSpec, WrongThread
from locks import LockRegistry
from runtime import Supervisor
from tests.poll import eventually


async def as_guest(main: Callable[[], Awaitable[Any]]) -> Any:
    """Run a trio program as a guest of the asyncio loop that runs now."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()
    trio.lowlevel.start_guest_run(
        main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        done_callback=done.set_result,
        host_uses_signal_set_wakeup_fd=True,
    )
    return (await done).unwrap()


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s.jsonl")


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
@pytest.mark.parametrize("engine", ["kernel", "none"])
async def test_tasks_of_a_guest_exclude_each_other(path, engine):
    registry, names, inside, most = LockRegistry(engine=engine), set(), 0, 0

    async def one() -> None:
        nonlocal inside, most
        async with registry.lease(path) as lease:
            inside += 1
            most = max(most, inside)
            names.add(lease.holder.task)
            await trio.sleep(0.01)
            await lease.append({"n": 1})
            inside -= 1

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(one)

    await as_guest(main)
    assert most == 1
    assert len(await registry.read(path)) == 3
    assert all("one" in str(name) for name in names)


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
async def test_host_and_guest_exclude_each_other_by_registries_of_their_own(path):
    hosts, guests, inside, most = LockRegistry(), LockRegistry(), 0, 0

    async def hold(registry: LockRegistry, times: int) -> None:
        nonlocal inside, most
        for _ in range(times):
            async with registry.lease(path, wait_timeout=60):
                inside += 1
                most = max(most, inside)
                await anyio.sleep(0.002)
                inside -= 1

    async def main() -> None:
        await hold(guests, 20)

    async with anyio.create_task_group() as group:
        group.start_soon(hold, hosts, 20)
        await as_guest(main)
    assert most == 1


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
async def test_one_registry_is_refused_to_the_other_loop_while_it_is_in_use(path):
    registry = LockRegistry()

    async def main() -> None:
        with pytest.raises(RuntimeError, match="one event loop at a time"):
            await registry.append(path, {"by": "guest"})

    async with registry.lease(path):
        await as_guest(main)

    async def later() -> None:
        await registry.append(path, {"by": "guest"})

    await as_guest(later)
    await registry.append(path, {"by": "host"})
    assert [record["by"] for record in await registry.read(path)] == ["guest", "host"]


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
async def test_a_deadline_and_a_thread_reach_the_guest(path):
    registry = LockRegistry(max_hold=0.05, grace=0.05)

    async def main() -> str:
        try:
            async with registry.lease(path) as lease:
                await trio.to_thread.run_sync(lease.append_sync, {"n": 1})
                await trio.sleep(10)
        except Exception as error:
            return type(error).__name__
        return "went on"

    assert await as_guest(main) == "LeaseExpired"
    assert registry.statistics().sessions == 0


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
async def test_a_supervisor_works_as_a_guest_and_refuses_its_host(tmp_path):
    refused: list[str] = []

    async def handle(ctx, messages):
        await ctx.session.append({"n": messages[0].body})
        await trio.to_thread.run_sync(ctx.session.append_sync, {"n": "thread"})
        return messages[0].body

    async def main() -> list[Any]:
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handle)]) as sup:

            def from_the_host() -> None:
                try:
                    sup.post("session:x", 0)
                except WrongThread as error:
                    refused.append(str(error))

            host.call_soon_threadsafe(from_the_host)
            first = await sup.post("session:x", 1).result()
            second = await trio.to_thread.run_sync(lambda: sup.post_threadsafe("session:x", 2).result_sync(5))
            await eventually(lambda: refused)
            return [first, second, [one["n"] for one in await sup.registry.read(sup.layout.file_of("x"))]]

    host = asyncio.get_running_loop()
    assert await as_guest(main) == [1, 2, [1, "thread", 2, "thread"]]
    assert "run_sync_soon" in refused[0]


@pytest.mark.failure("Y1")
@pytest.mark.backends("asyncio", "uvloop")
async def test_a_callback_of_asyncio_is_no_holder(path):
    registry, raised = LockRegistry(), asyncio.get_running_loop().create_future()

    def ask() -> None:
        try:
            registry.arbiter.new_claim()
        except RuntimeError as error:
            raised.set_result(str(error))

    asyncio.get_running_loop().call_soon(ask)
    assert "in a task" in await raised


@pytest.mark.failure("Y1")
def test_which_loop_runs_is_asked_in_one_place():
    """Asking asyncio alone takes every guest of it for asyncio: `locks._loop` asks for the library first."""
    packages = [Path(package.__file__ or "").parent for package in (lanes, locks, runtime)]
    asking = [
        str(file.relative_to(file.parents[1]))
        for package in packages
        for file in package.rglob("*.py")
        if "_get_running_loop" in file.read_text()
    ]
    assert asking == [str(Path("locks", "_loop.py"))]

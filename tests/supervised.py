"""What tests of the supervisor share: its files read by other means, bodies that ignore cancellation, and "empty"."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread

from lanes import LaneSpec, RunContext
from lanes.core.execution import Execution
from runtime import Supervisor
from tests import on_store

TICK = 1e-6
"""Less than anything that is configured, more than the rounding of an instant."""

LANES = [LaneSpec(pattern, timeout=10.0, grace=2.0) for pattern in ("session:*", "side:*")]
"""The lanes of the fixture `sup`, unless a module has `LANES` of its own."""


async def sleeps(ctx: RunContext) -> None:
    """A body that only its deadline or a cancellation ends."""
    await anyio.sleep_forever()


def on_trio() -> bool:
    """Whether the running event loop is trio's."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return True
    return False


def about(expected: Any) -> Any:
    """Equal but for the nanosecond by which asyncio rings its timers early, and the rounding of a sum."""
    return pytest.approx(expected, rel=0, abs=TICK)


def attempt_of(ctx: RunContext) -> Execution:
    """The attempt that a context belongs to."""
    assert isinstance(ctx._permit, Execution)
    return ctx._permit


def path_of(sup: Supervisor, key: str) -> Path:
    """The transcript of a session."""
    return Path(sup.layout.file_of(key))


def lines_of(path: Path) -> list[dict[str, Any]]:
    """Every line of a transcript but the one that names the key, by plain `json`; fails for a torn or glued one."""
    if kept := on_store.current():
        return [json.loads(line) for line in kept.lines(path)]
    text = path.read_text()
    assert text == "" or text.endswith("\n"), f"torn tail: {text[-80:]!r}"
    return [record for line in text.splitlines() if "lanes.session" not in (record := json.loads(line))]


def texts(sup: Supervisor, key: str) -> list[Any]:
    """The `text` of each record of a session."""
    return [record["text"] for record in lines_of(path_of(sup, key))]


def assert_empty(sup: Supervisor) -> None:
    """Nothing runs, waits, is held, or will ring; only lanes with exact names remain."""
    now, scheduler = sup.statistics(), sup._scheduler
    assert sup.runs() == [] and sup.sessions() == []
    assert (now.runs["queued"], now.runs["running"], now.abandoned) == (0, 0, 0)
    assert (now.leases.sessions, now.leases.held, now.leases.waiting) == (0, 0, 0)
    assert {name: group.running for name, group in now.groups.items()} == dict.fromkeys(now.groups, 0)
    assert all((lane.running, lane.queued) == (0, 0) for lane in now.lanes.values())
    assert set(now.lanes) <= {spec.pattern for spec in scheduler.board.specs.lanes.values()}
    assert (len(scheduler.board.turns), len(scheduler.board.timers)) == (0, 0)


class Stubborn:
    """A body that swallows every cancellation until it is released."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self.released = False
        self.swallowed = 0

    async def __call__(self, ctx: RunContext) -> None:
        self.started.set()
        while not self.released:
            try:
                await anyio.sleep(0.1)
            except get_cancelled_exc_class():
                self.swallowed += 1

    def release(self) -> None:
        """Let the body return."""
        self.released = True


class Shielded:
    """A body that waits under a shield until it is released."""

    def __init__(self) -> None:
        self.started = anyio.Event()
        self._released = anyio.Event()

    async def __call__(self, ctx: RunContext) -> None:
        self.started.set()
        with anyio.CancelScope(shield=True):
            await self._released.wait()

    def release(self) -> None:
        """Let the body return."""
        self._released.set()


class HungThread:
    """A body that waits for a worker thread, which hangs until it is released."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self._released = threading.Event()

    async def __call__(self, ctx: RunContext) -> None:
        await to_thread.run_sync(self._hang)

    def _hang(self) -> None:
        self.started.set()
        self._released.wait(30)

    def release(self) -> None:
        """Let the thread go on."""
        self._released.set()


async def gone(sup: Supervisor) -> None:
    """Wait until no abandoned body is left. They must have been released."""
    with anyio.fail_after(30):
        while sup.statistics().abandoned:
            await anyio.sleep(0.01)

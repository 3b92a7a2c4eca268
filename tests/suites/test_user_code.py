"""User code calls anything at any instant: never between two halves of a change, and never to the scheduler's harm.

`World` plays a host whose every callback (hooks, `on_drop`, log processors, finalizers, texts and properties of its
exceptions, its own `path=`, comparisons of routes, futures, a task factory, readers of events, waiters) calls public
methods by chance. Each call of a callback looks whether the scheduler is in a change, and whether its invariants hold;
so does each call that it makes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
from collections import Counter
from typing import Any, get_args

import anyio
import pytest
import sniffio
import structlog
import trio
from anyio import get_cancelled_exc_class

from lanes import GroupSpec, LaneError, LaneSpec, Message, RetrySpec, RunError, RunState, SessionLayout
from lanes.spec import WhenBusy
from locks import LockError
from runtime import Supervisor
from tests.invariants import complaints, in_a_change

pytestmark = pytest.mark.backends("asyncio", "trio")

POLICIES = get_args(WhenBusy)
SEEDS = range(400 if os.environ.get("LANES_LONG") else 8)
STEPS = 60
MOST_ACTS = 600


class Mishap(Exception):
    """What bodies raise: each question to it calls the world."""

    world: Any = None

    def __str__(self):
        self.world.called("text of an exception")
        return "a mishap"

    @property
    def retryable(self):
        self.world.called("property of an exception")
        return True


class Owned:
    """Something of the user's, whose finalizer calls the world."""

    def __init__(self, world, what):
        self.world, self.what = world, what

    def __del__(self):
        self.world.called(f"finalizer of {self.what}")


class Route:
    """Where an answer goes; comparing two of them calls the world."""

    def __init__(self, world, number):
        self.world, self.number = world, number

    def __eq__(self, other):
        self.world.called("route")
        return isinstance(other, Route) and self.number == other.number

    def __hash__(self):
        return self.number


class Odd(asyncio.Future[None]):
    """A future of the user's; cancelling it calls the world."""

    def __init__(self, world):
        super().__init__()
        self.world = world

    def cancel(self, *args, **kwargs):
        self.world.called("cancel of a future")
        return super().cancel(*args, **kwargs)


class World:
    """A host that calls back at every occasion."""

    def __init__(self, seed, root):
        self.chance = random.Random(seed)
        self.faults = []
        self.called_by: Counter[str] = Counter()
        self.acts_done: Counter[str] = Counter()
        self.runs = []
        self.open = True
        self._within = 0
        self._number = 0
        layout = SessionLayout(root, path=self.path)
        self.sup = Supervisor(
            layout, lanes=self.lanes(), groups=[GroupSpec("main", slots=3, reserve=1)], **self.hooks()
        )
        self.tasks: Any = None

    def hooks(self) -> dict[str, Any]:
        def hook(kind):
            return lambda run: self.called(kind)

        return {
            **{name: hook(name) for name in ("on_run_start", "on_run_end", "on_wait")},
            "keep_outcomes": 5,
            "drain_timeout": 1.0,
        }

    def lanes(self):
        common: dict[str, Any] = {"handler": self.handle, "timeout": 3.0, "grace": 0.5, "queue_limit": 3}
        again = RetrySpec(3, wait=0.1, max_wait=0.2, timeouts=True)
        return [
            LaneSpec(
                "session:*", **common, when_full="summarize", on_drop=self.on_drop, retry=again, queue_timeout=2.0
            ),
            LaneSpec(
                "talk:*", **common, capacity=2, when_full="drop_oldest", on_drop=self.on_drop, when_busy="collect"
            ),
            LaneSpec("quiet", **common, capacity=1, debounce=0.1, when_busy="steer", priority="normal"),
            LaneSpec("kid", capacity=1, timeout=2.0, grace=0.2, priority="background", retry=again),
        ]

    # What calls back

    def path(self, key):
        self.called("path")
        return f"{key}.jsonl"

    def on_drop(self, run, messages):
        self.called("on_drop")
        return Owned(self, "a summary")

    def log(self, logger, name, event):
        self.called("log processor")
        raise structlog.DropEvent

    async def read_along(self, run):
        async for _ in run.events():
            self.called("reader of events")

    async def wait_for(self, run):
        await run.wait()
        self.called("waiter")

    def called(self, kind):
        """User code of some kind runs: look, and do something by chance."""
        if not self.open:
            return
        self.called_by[kind] += 1
        if in_a_change():
            self.faults.append(f"{kind}: within a change")
        self.look(kind)
        if self._within < 3 and self.chance.random() < 0.3 and self.acts_done.total() < MOST_ACTS:
            self._within += 1
            try:
                self.act(kind)
            finally:
                self._within -= 1

    def look(self, where):
        self.faults += [f"{where}: {what}" for what in complaints(self.sup._scheduler)]

    # What is called

    def act(self, kind):
        """Call some public method."""
        act = self.chance.choice(
            [
                *(self.post,) * 6,
                *(self.submit,) * 3,
                *(self.cancel, self.cancel_one, self.look_around, self.decide, self.revoke),
                *((self.reset, self.restart) if self.chance.random() < 0.3 else ()),
            ]
        )
        try:
            act()
        except (LaneError, LockError, RecursionError) as error:
            self.acts_done[type(error).__name__] += 1
        except Exception as error:
            self.faults.append(f"{act.__name__} in {kind}: {error!r}")
        self.acts_done[act.__name__] += 1
        self.look(f"{act.__name__} in {kind}")

    def key(self):
        return self.chance.choice("ab")

    def note(self, run):
        self.runs.append(run)
        if self.tasks is not None and self.chance.random() < 0.3:
            self.tasks.start_soon(self.chance.choice((self.read_along, self.wait_for)), run)

    def post(self):
        lane = self.chance.choice(["session:a", "session:b", "talk:a", "talk:b", "quiet"])
        self._number += 1
        session = self.key() if lane.startswith("talk") and self.chance.random() < 0.7 else None
        message = Message(Owned(self, "a message"), Route(self, self.chance.randrange(2)))
        policy = self.chance.choice([None, *POLICIES])
        dedupe = f"key {self._number}" if self.chance.random() < 0.2 else None
        self.note(self.sup.post(lane, message, session=session, when_busy=policy, dedupe=dedupe))

    def submit(self):
        if self.chance.random() < 0.5:
            self.note(self.sup.submit("kid", self.body))
        else:
            self.note(self.sup.submit("main", self.body, session=self.key(), turn=self.chance.random() < 0.7))

    def cancel(self):
        which = self.chance.choice([{"session": self.key()}, {"lane": "kid"}, {"queued": False}])
        self.sup.cancel(**which, reason="by chance")

    def cancel_one(self):
        if runs := self.sup.runs():
            self.chance.choice(runs).cancel("this one")

    def look_around(self):
        self.sup.statistics()
        self.sup.registry.statistics()
        self.sup.registry.holders()
        assert all(self.sup.find(run.id) is run for run in self.sup.runs())
        assert (self.sup.sessions(), self.sup.abandoned(), repr(self.sup)) is not None

    def decide(self):
        if parked := self.sup.parked():
            one = self.chance.choice(parked).run.id
            if self.chance.random() < 0.7:
                self.note(self.sup.resubmit(one))
            else:
                self.sup.discard(one)

    def revoke(self):
        self.sup.registry.revoke(self.sup.layout.file_of(self.key()), "by chance")

    def reset(self):
        if self.tasks is not None:
            self.tasks.start_soon(self._reset, self.key())

    async def _reset(self, key):
        with contextlib.suppress(LaneError, LockError, RunError):
            await self.sup.reset(key)

    def restart(self):
        if self.acts_done["restart"] < 3:
            self.sup.request_restart("by chance")

    # What runs

    async def handle(self, ctx, messages):
        return await self.body(ctx)

    async def body(self, ctx):
        held = Owned(self, "what a frame held")
        what = self.chance.choice(
            ["return", "sleep", "raise", "raise", "inbox", "children", "clean up", "ignore", "emit"]
        )
        if what == "sleep":
            await anyio.sleep(self.chance.random())
        elif what == "raise":
            await anyio.sleep(0.05)
            raise Mishap
        elif what == "inbox":
            with anyio.move_on_after(0.3):
                await ctx.inbox.receive()
        elif what == "children":
            await self.with_children(ctx)
        elif what == "clean up":
            try:
                await anyio.sleep(5)
            except get_cancelled_exc_class():
                async with ctx.cleanup():
                    await anyio.sleep(0.1)
                raise
        elif what == "ignore":
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4)
        elif what == "odd":
            await self.wait_oddly()
        elif what == "emit":
            ctx.emit(Owned(self, "an event"))
            await anyio.sleep(0.1)
        del held
        return Owned(self, "a value")

    async def wait_oddly(self):
        """Wait for something of the user's own making, until cancelled."""
        if sniffio.current_async_library() == "asyncio":
            await Odd(self)
        else:
            await trio.lowlevel.wait_task_rescheduled(self.aborted)

    def aborted(self, _raise_cancel):
        self.called("abort of a wait")
        return trio.lowlevel.Abort.SUCCEEDED

    def new_task(self, loop, coroutine, **options):
        self.called("task factory")
        return asyncio.Task(coroutine, loop=loop, **options)

    async def with_children(self, ctx):
        with contextlib.suppress(LaneError, LockError):
            children = [ctx.submit("kid", self.body) for _ in range(2)]
            self.runs += children
            if self.chance.random() < 0.5:
                await children[0].wait()
            else:
                await anyio.sleep(0.1)
                raise Mishap

    async def play(self):
        if sniffio.current_async_library() == "asyncio":
            asyncio.get_running_loop().set_task_factory(self.new_task)
        async with self.sup, anyio.create_task_group() as self.tasks:
            for _ in range(STEPS):
                self.act("driver")
                await anyio.sleep(self.chance.choice((0, 0, 0.01, 0.1, 0.7)))
            while self.sup.runs() or self.sup.state != "running":
                self.acts_done["the end is near"] = MOST_ACTS
                self.sup.cancel(reason="the end")
                await anyio.sleep(0.5)
            await anyio.sleep(5)
        self.tasks = None


@pytest.fixture
def world_of(virtual, tmp_path):
    before = structlog.get_config()
    worlds = []

    def make(seed):
        world = Mishap.world = World(seed, tmp_path / str(seed))
        structlog.configure(processors=[world.log])
        worlds.append(world)
        return world

    gc.disable()  # a finalizer that the collector calls comes at any instant
    yield make
    gc.enable()
    structlog.configure(**before)
    for world in worlds:
        world.open = False


@pytest.mark.failure("X1", "X2")
@pytest.mark.suite("U1")
@pytest.mark.parametrize("seed", SEEDS)
async def test_whatever_user_code_calls_and_whenever_the_invariants_hold(world_of, seed):
    world = world_of(seed)
    with anyio.fail_after(1000):
        await world.play()
    assert world.faults == []
    assert [run for run in world.runs if run.outcome is None or not run.outcome.state.ended] == []
    assert world.called_by.total() > 50
    states = Counter(run.outcome.state for run in world.runs)
    assert len(states) >= 3 and states[RunState.CANCELLED]

"""Suite H2: random steps, taken with a real scheduler and with `lanes_model`, and compared.

A seed draws the lanes of a walk, and a list of steps. A step is an operation and a few numbers, which choose among what
is there at that moment, so each shorter list means something too: a walk that fails can be shrunk. Every step has an
instant of its own. After each one, both sides are compared: what the caller was told; which runs live, in which state,
in which order in each session and on each lane; which started and ended since, in which order and at which instant;
with which messages; what was counted, parked and kept.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio
import structlog
from anyio import get_cancelled_exc_class

from lanes import (
    GroupSpec,
    LaneError,
    LaneSpec,
    Message,
    RetrySpec,
    Run,
    RunContext,
    SessionLayout,
)
from lanes.core.board import Board
from lanes.core.hooks import Hooks
from lanes.core.reset import begin
from lanes.core.scheduler import Scheduler
from lanes.spec_table import SpecTable
from locks import LockRegistry
from runtime.testing.virtual import VirtualClock, virtual_time
from tests.lanes_model import CLASSES, Job, Model, Note, Program, Refused, Unpromised
from tests.schedules import INTERNAL_ERRORS, Host

STEPS = 240
REPLAYS = 250
"""So often a walk that fails is tried again, to find a shorter one."""

SESSIONS = ("a", "b", "c")
LANES = ("session:a", "session:b", "session:c", "work", "work", "cron")
POLICIES = ("queue", "reject", "interrupt", "replace", "collect", "steer")
WEIGHTS = {
    "post": 28,
    "burst": 3,
    "submit": 8,
    "again": 5,
    "cancel": 6,
    "cancel_session": 1,
    "cancel_lane": 1,
    "reset": 1,
    "revoke": 2,
    "shut": 1,
    "reopen": 8,
    "resubmit": 2,
    "discard": 1,
    "wait": 6,
}

Step = tuple[str, float, int]
"""An operation, how long after the one before it, and what else is drawn from."""


class Mishap(Exception):
    """What a body raises on purpose."""


class Differs(AssertionError):
    """The two sides can be told apart."""


def seconds(rng: random.Random, most: float) -> float:
    """A time that hardly any other one equals, and that is exact in binary."""
    return (1 + rng.randrange(int(most * 2**20))) / 2**20


def program(rng: random.Random, number: int, kids: int = 1) -> Program:
    """What a body does."""
    end = ("end", seconds(rng, rng.choice((1.0, 6.0, 12.0))), rng.choice(("return", "return", "return", "raise")))
    if rng.random() < 0.08:
        return Program(number, (end,), 0.0, stubborn=True)
    steps: list[tuple[str, float, Any]] = []
    for _ in range(rng.choice((0, 0, 1, 2))):
        if kids and rng.random() < 0.5:
            kid = program(rng, -1, kids=0)
            steps.append(("kid", seconds(rng, 2.0), (kid, rng.choice((None, 0, 1, 2)), rng.random() < 0.7)))
        else:
            steps.append(("read", seconds(rng, 3.0), None))
    return Program(number, (*steps, end), seconds(rng, 0.4))


def summary(run: Run, messages: Sequence[Message]) -> str:
    """What is passed on of dropped messages."""
    return f"summary of {len(messages)}"


class Walk:
    """What a seed draws."""

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        rng = self._rng = random.Random(f"lanes {seed}")
        self.seed = seed
        slots = rng.randrange(1, 4)
        self.groups = (
            GroupSpec("main", slots=slots, reserve=rng.randrange(slots)),
            GroupSpec("background", slots=rng.randrange(1, 3)),
            GroupSpec("control", slots=64),
        )
        self.lanes = (
            LaneSpec("session:*", **self._lane(), priority=rng.choice(CLASSES)),
            LaneSpec("work", **self._lane(), capacity=rng.randrange(1, 4), priority=rng.choice(CLASSES)),
            LaneSpec(
                "cron",
                **self._lane(),
                capacity=rng.randrange(1, 3),
                group=rng.choice(("main", "background")),
                priority="background",
            ),
            LaneSpec("kids", capacity=50, queue_limit=None, timeout=9.0, grace=1.0, priority=rng.choice(CLASSES)),
            LaneSpec("control", capacity=64, group="control", priority="foreground", queue_limit=1000, grace=1.0),
        )
        self.keep = rng.choice((0, 4, 30))
        names = rng.choices(list(WEIGHTS), list(WEIGHTS.values()), k=steps)
        self.steps: list[Step] = [
            (name, seconds(rng, rng.choice((0.01, 1.0, 4.0))), rng.randrange(2**32)) for name in names
        ]

    def _lane(self) -> dict[str, Any]:
        rng = self._rng
        full = rng.choice(("reject", "drop_oldest", "summarize"))
        busy = rng.choice(POLICIES)
        debounce = rng.choice((0.0, 0.0, 1.5))
        limits = (1, 2, 5) if full != "reject" else (1, 3, None, 0)
        limit = rng.choice(limits)
        if limit == 0 and (busy not in ("queue", "reject") or debounce):
            limit = 1
        retry = RetrySpec(rng.choice((2, 3)), wait=1.0, max_wait=1.0, timeouts=rng.random() < 0.5)
        return {
            "when_busy": busy,
            "when_full": full,
            "queue_limit": limit,
            "on_drop": None if full == "reject" else summary,
            "debounce": debounce,
            "queue_timeout": rng.choice((None, None, 12.0)),
            "timeout": rng.choice((5.0, 9.0, 30.0)),
            "grace": rng.choice((1.0, 2.0)),
            "retry": rng.choice((None, None, retry)),
            "dedupe_keeps": rng.choice(("done", "ended")),
        }


class Play:
    """A walk, here and there."""

    def __init__(self, walk: Walk, root: Path, clock: VirtualClock) -> None:
        self.walk, self.clock = walk, clock
        clock.busy_limit = 200  # asyncio's timers reach an instant a moment early
        self.taken = Counter[str]()
        self.seen = Counter[str]()
        self.trace: list[str] = []
        self._root = root
        self._runs: dict[int, Run] = {}
        self._posted: list[tuple[str, Note, Any, str | None, str]] = []
        self._started: list[tuple[str, int, float]] = []
        self._ended: list[tuple[float, int, str]] = []
        self._given: dict[tuple[int, float], list[Any]] = {}

    # The real side

    async def run(self) -> None:
        """Take every step, and see that nothing is left.

        Raises:
            Differs: the two sides can be told apart.
        """
        walk = self.walk
        registry = LockRegistry(engine="none", sidecar=False, grace=1.0)
        specs = [
            LaneSpec(
                **{name: getattr(spec, name) for name in LaneSpec.__slots__ if name != "handler"},
                handler=self._handler,
            )
            for spec in walk.lanes
        ]
        hooks = Hooks(self._on_start, self._on_end, None)
        self.scheduler = scheduler = Scheduler(
            Board(
                SpecTable(specs, walk.groups), registry, SessionLayout(self._root), keep_outcomes=walk.keep, hooks=hooks
            )
        )
        self.host = Host(scheduler)
        self._files = {session: scheduler.board.layout.file_of(session) for session in SESSIONS}
        async with anyio.create_task_group() as group:
            await group.start(scheduler.serve)
            scheduler.open()
            self.model = Model(specs, walk.groups, walk.keep, self.clock.now())
            try:
                await self._take_steps()
                await self._come_to_rest()
            except Unpromised as error:
                self.seen[str(error)] += 1
            finally:
                for totals in self.model.totals().values():
                    self.seen.update(totals)
                group.cancel_scope.cancel()

    async def _take_steps(self) -> None:
        for number, (name, after, drawn) in enumerate(self.walk.steps):
            await anyio.sleep_until(self.model.now + after)
            self.model.advance(self.clock.now())
            await self.clock.settle()
            self._compare(f"before step {number}")
            rng = random.Random(drawn)
            self.taken[name] += 1
            await getattr(self, f"_{name}")(rng)
            self.model.settle()
            await self.clock.settle()
            self._compare_all(f"step {number}, {name}")

    async def _come_to_rest(self) -> None:
        self._both(self.scheduler.open, self.model.reopen)
        self.model.settle()
        for _ in range(400):
            if not self.scheduler.board.live and not self.model.live and not self.scheduler.board.abandoned:
                break
            await anyio.sleep_until(self.model.now + 5.0 + 2**-19)
            self.model.advance(self.clock.now())
            await self.clock.settle()
            self._compare_all("at the end")
        else:
            raise Differs(
                f"still there after 2000 s: {list(self.scheduler.board.live.values())} {list(self.model.live)}"
            )
        scheduler = self.scheduler
        left = {
            "turns": len(scheduler.board.turns),
            "bodies": len(scheduler.board.bodies),
            "waits": len(scheduler.waits),
            "slots": sum(group.running + group.others + group.returning for group in scheduler.board.groups.values()),
            "work": sum(group.has_work for group in scheduler.board.groups.values()),
            "lanes": sum(lane.spec.wild for lane in scheduler.board.lanes.values()),
            "queued": sum(lane.waiting + len(lane.running) for lane in scheduler.board.lanes.values()),
            "held": scheduler.board.registry.statistics().held,
            "keys": sum(run not in scheduler.board.history._finished for run in scheduler.board.history._keys),
        }
        if any(left.values()):
            raise Differs(f"left behind: {left}")

    async def _handler(self, ctx: RunContext, messages: Sequence[Message]) -> str:
        note = next(m.body for m in messages if isinstance(m.body, Note))
        return await self._body(ctx, note.program, [m.body for m in messages])

    async def _body(self, ctx: RunContext, will: Program, given: list[Any] | None = None) -> str:
        assert ctx.run.started_at is not None
        if given is not None:
            self._given[ctx.run.id, round(ctx.run.started_at, 6)] = given
        try:
            with anyio.CancelScope(shield=will.stubborn):
                for kind, after, what in will.steps:
                    await anyio.sleep(after)
                    if kind == "read":
                        ctx.inbox.take()
                    elif kind == "kid":
                        kid, cls, waits = what
                        priority = None if cls is None else CLASSES[cls]
                        run = ctx.submit("kids", self._body, kid, priority=priority)
                        if waits:
                            await run.wait()
                    elif what == "raise":
                        raise Mishap(ctx.run.id)
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await anyio.sleep(will.cleans_s)
            raise
        return "done"

    def _on_start(self, run: Run) -> None:
        self._runs[run.id] = run
        assert run.started_at is not None
        self._started.append((self.scheduler.board.specs.find(run.lane).group, run.id, run.started_at))

    def _on_end(self, run: Run) -> None:
        self._runs[run.id] = run
        self._ended.append((self.clock.now(), run.id, run.state))

    # Steps

    def _both(self, real: Any, model: Any) -> tuple[Any, Job | None]:
        told: list[str] = []
        run = job = None
        try:
            run = real()
        except LaneError as error:
            told.append(type(error).__name__)
        else:
            told.append("taken" if run is None else f"run {run.id}" if isinstance(run, Run) else "taken")
        try:
            job = model()
        except Refused as error:
            told.append(str(error))
        else:
            told.append("taken" if job is None else f"run {job.number}")
        self.trace.append(f"{self.model.now:.6f} told {told[0]}")
        if told[0] != told[1]:
            raise Differs(f"told {told[0]}, to be told {told[1]}")
        self.seen[told[0].split()[0]] += 1
        if isinstance(run, Run):
            self._runs[run.id] = run
        return run, job

    async def _post(self, rng: random.Random) -> None:
        lane = rng.choice(LANES)
        session = None if lane.startswith("session:") else rng.choice((None, None, *SESSIONS))
        policy = rng.choice((None, None, *POLICIES))
        cls = rng.choice((None, None, None, 0, 1, 2))
        key = rng.choice((None, None, "x", "y", "z"))
        route = rng.choice(("r", "r", "r", "s"))
        number = len(self._posted) + 1
        note = Note(number, program(rng, number))
        if key is not None:
            self._posted.append((lane, note, route, session, key))
        else:
            self._posted.append((lane, note, route, session, f"own {number}"))
            key = f"own {number}" if rng.random() < 0.5 else None
        self._do_post(lane, note, route, session, cls, policy, key)

    async def _burst(self, rng: random.Random) -> None:
        """Several messages of the same kind at one instant."""
        lane = rng.choice(LANES)
        session = None if lane.startswith("session:") else rng.choice((None, *SESSIONS))
        policy = rng.choice((None, *POLICIES))
        for _ in range(rng.choice((2, 3))):
            number = len(self._posted) + 1
            note = Note(number, program(rng, number))
            self._posted.append((lane, note, "r", session, f"own {number}"))
            self._do_post(lane, note, "r", session, None, policy, f"own {number}")

    async def _again(self, rng: random.Random) -> None:
        """The same message once more."""
        if self._posted:
            lane, note, route, session, key = rng.choice(self._posted[-12:])
            self._do_post(lane, note, route, session, None, None, key)

    def _do_post(
        self, lane: str, note: Note, route: Any, session: str | None, cls: int | None, policy: Any, key: str | None
    ) -> None:
        priority = None if cls is None else CLASSES[cls]
        self._both(
            lambda: self.host.post(
                lane, Message(note, route), session=session, priority=priority, when_busy=policy, dedupe=key
            ),
            lambda: self.model.post(lane, note, route, session, cls=cls, policy=policy, key=key),
        )

    async def _submit(self, rng: random.Random) -> None:
        lane = rng.choice(LANES)
        session = None if lane.startswith("session:") else rng.choice((None, *SESSIONS))
        turn = session is None or rng.random() < 0.7
        cls = rng.choice((None, None, 0, 1, 2))
        will = program(rng, -1)
        priority = None if cls is None else CLASSES[cls]
        self._both(
            lambda: self.host.submit(lane, self._body, will, session=session, turn=turn, priority=priority),
            lambda: self.model.submit(lane, will, session, turn=turn, cls=cls),
        )

    async def _cancel(self, rng: random.Random) -> None:
        if self.model.live:
            number = rng.choice(list(self.model.live))
            run, job = self._runs.get(number), self.model.live[number]
            if run is not None:
                self._both(lambda: self._done(run.cancel("on purpose")), lambda: self.model.cancel([job]))

    async def _cancel_session(self, rng: random.Random) -> None:
        session = rng.choice(SESSIONS)
        chosen = [job for job in self.model.live.values() if job.session == session]
        self._both(lambda: self._done(self.host.cancel(session=session)), lambda: self.model.cancel(chosen))

    async def _cancel_lane(self, rng: random.Random) -> None:
        lane = rng.choice(LANES)
        chosen = [job for job in self.model.live.values() if job.lane.name == lane]
        self._both(lambda: self._done(self.host.cancel(lane=lane)), lambda: self.model.cancel(chosen))

    @staticmethod
    def _done(_: object) -> None:
        return None

    async def _reset(self, rng: random.Random) -> None:
        session = rng.choice(SESSIONS)
        nothing = Program(-1, (("end", 0.0, "return"),), 0.0)
        self._both(lambda: begin(self.scheduler, session, archive=False), lambda: self.model.reset(session, nothing))

    async def _revoke(self, rng: random.Random) -> None:
        session = rng.choice(SESSIONS)
        file = self._files[session]
        self._both(
            lambda: self._done(self.scheduler.board.registry.revoke(file, "on purpose")),
            lambda: self.model.revoke(session),
        )

    async def _shut(self, rng: random.Random) -> None:
        self._both(self.scheduler.shut, self.model.shut)

    async def _reopen(self, rng: random.Random) -> None:
        self._both(self.scheduler.open, self.model.reopen)

    async def _resubmit(self, rng: random.Random) -> None:
        if self.model.parked:
            job = rng.choice(self.model.parked)
            self._both(lambda: self.host.resubmit(job.number), lambda: self.model.resubmit(job))

    async def _discard(self, rng: random.Random) -> None:
        if self.model.parked:
            job = rng.choice(self.model.parked)
            self._both(lambda: self.host.discard(job.number), lambda: self.model.parked.remove(job))

    async def _wait(self, rng: random.Random) -> None:
        """Let time pass."""

    # Compared

    def _compare(self, when: str) -> None:
        """What has happened since, and what is there now."""
        scheduler, model = self.scheduler, self.model
        journal, model.journal = model.journal, []
        started, self._started = self._started, []
        ended, self._ended = self._ended, []
        for group, number, at in started:
            self.trace.append(f"{at:.6f} run {number} started in group {group}")
        for at, number, state in ended:
            self.trace.append(f"{at:.6f} run {number} {state}")
        live = {number: execution.run.state.value for number, execution in scheduler.board.live.items()}
        self._equal(when, "live", live, {number: job.state for number, job in model.live.items()})
        for name in model.groups if started or journal else ():
            real = [(number, round(at, 6)) for group, number, at in started if group == name]
            here = [
                (j.number, round(at, 6)) for what, j, at in journal if what == "start" and j.lane.spec.group == name
            ]
            self._equal(when, f"started in {name}", real, here)
        ends = sorted((number, round(at, 6), state) for at, number, state in ended)
        ended_here = sorted((job.number, round(at, 6), job.state) for what, job, at in journal if what == "end")
        self._equal(when, "ended", ends, ended_here)

    def _compare_all(self, when: str) -> None:
        """And who stands where, what was counted, and what is kept."""
        self._compare(when)
        scheduler, model = self.scheduler, self.model
        for session, file in self._files.items():
            real = [one.run.id for one in scheduler.board.turns.of(file)]
            self._equal(when, f"line of {session}", real, [job.number for job in model.lines.get(session, [])])
        for name, group in model.groups.items():
            real_group = scheduler.board.groups[name]
            self._equal(when, f"slots of {name}", list(real_group.holders), group.holders, number_of)
            tally = real_group.tally
            totals = {state.value: n for state, n in (tally.outcomes or {}).items()}
            totals |= {what: n for what in ("dropped", "retries") if (n := getattr(tally, what))}
            self._equal(when, f"totals of {name}", totals, dict(group.totals))
        self._equal(
            when,
            "lanes",
            {n for n in scheduler.board.lanes if n not in model.specs},
            {n for n in model.lanes if n not in model.specs},
        )
        for name, lane in model.lanes.items():
            real_lane = scheduler.board.lanes[name]
            self._equal(when, f"queue of {name}", list(real_lane.queued), lane.queued, number_of)
            self._equal(when, f"limit of {name}", real_lane.waiting, lane.waiting)
            self._equal(when, f"places of {name}", list(real_lane.running), lane.running, number_of)
        self._equal(when, "kept", list(scheduler.board.history._order), [job.number for job in model.history])
        self._equal(when, "parked", list(scheduler.board.history.parked), [job.number for job in model.parked])
        for job in model.live.values():
            if job.state == "running" and job.given is not None and not job.read and job.started != self.clock.now():
                assert job.started is not None
                given = self._given.get((job.number, round(job.started, 6)))
                self._equal(when, f"messages of run {job.number}", given, job.given)

    def _equal(self, when: str, what: str, real: Any, model: Any, key: Any = None) -> None:
        if key is not None:
            real, model = [key(one) for one in real], [key(one) for one in model]
        if real != model:
            raise Differs(f"{when}, at {self.clock.now():.6f}: {what}: {real}, should be {model}")


def number_of(one: Any) -> int:
    """Of a run, on either side."""
    return one.number if isinstance(one, Job) else one.run.id


def play(walk: Walk, backend: str, root: Path) -> Play:
    """Play a walk on one event loop. Raises `Differs`."""
    with virtual_time() as clock, structlog.testing.capture_logs() as logs:
        played = Play(walk, root, clock)
        try:
            clock.run(backend, played.run)
        except BaseExceptionGroup as group:
            raise _first(group) from None
    wrong = [line for line in logs if line["event"] in INTERNAL_ERRORS]
    if wrong:
        raise Differs(f"logged: {wrong[0]}")
    return played


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def shrunk(walk: Walk, backend: str, root: Path) -> tuple[list[Step], BaseException]:
    """A short list of steps of a walk that still fails, and how."""
    last: BaseException = AssertionError("it fails no more")
    replays = 0

    def fails(steps: list[Step]) -> bool:
        nonlocal last, replays
        replays += 1
        walk.steps = steps
        try:
            play(walk, backend, root)
        except Exception as error:
            last = error
            return True
        return False

    steps = walk.steps
    fails(steps)
    size = len(steps) // 2
    while size and replays < REPLAYS:
        at = 0
        while at < len(steps) and replays < REPLAYS:
            shorter = steps[:at] + steps[at + size :]
            if fails(shorter):
                steps = shorter
            else:
                at += size
        size //= 2
    fails(steps)
    return steps, last

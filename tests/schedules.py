"""Suite S1: random schedules of everything that a host may ask of lanes, played in virtual time and judged.

A seed makes a schedule: what three senders do, when, with how many yields in between; and what each body does. All of
it is drawn before anything runs, so the order in which tasks happen to go decides nothing but what it is to decide.
asyncio's loop stays as it is: its order is a promise, and the yields are what bends it. trio shuffles each batch of
ready tasks itself, from the seed.

Many schedules share one event loop and one scheduler, as months of work do: what one leaves behind, the next one trips
over. Between two of them everything must be empty.

What is judged, at each step of each body and after each act: one body with a turn per session; the sums of groups and
lanes. At every end: nobody outlives deadline and grace, nobody who was told to wait so long waits longer. At the end of
a schedule: every sender has an outcome, told once; what is done was handled; who was to go first went first.
"""

from __future__ import annotations

import random
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import trio
from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from lanes import GroupSpec, LaneError, LaneSpec, Message, RetrySpec, Run, RunContext, RunError, RunState, SessionLayout
from lanes.core.board import Board
from lanes.core.execution import Execution
from lanes.core.hooks import Hooks
from lanes.core.scheduler import Scheduler
from lanes.queues.groups import Group
from lanes.queues.throttle import INTERVAL_S
from lanes.run import Body
from lanes.spec_table import SpecTable
from locks import LeaseLost, LockError, LockRegistry
from runtime.calls import Calls
from runtime.drain import Drain
from runtime.phase import Standing
from runtime.services import Services
from runtime.testing.virtual import VirtualClock
from tests.invariants import complaints
from tests.supervised import TICK, attempt_of

SENDERS, ACTS = 3, 3
SESSIONS = ("a", "b")
TIMEOUT, GRACE = 2.0, 0.5
UNIT = 1 / 16
"""All times are multiples of it, and exact in binary: sums are equal where they should be."""
LEAST_GRACE = 0.02
PAUSE = 64
"""Seconds between two schedules: more than any limit of theirs."""
INTERNAL_ERRORS = {"timer_failed", "hook_failed", "retryable_failed"}
"""Log lines that mean a defect: in these schedules no hook raises."""

PLAIN = ("queue", "collect", "reject")
"""Policies under which messages of a session are handled in the order in which they were posted."""

EXPECTED = (LaneError, LockError, RunError)
"""What a host or a body may be told."""

Step = tuple[str, Any]


class Mishap(Exception):
    """What a body raises on purpose."""


@dataclass(frozen=True)
class Note:
    """What is posted: a message's number, and what its body is to do."""

    number: int
    steps: tuple[Step, ...]
    plain: bool


@dataclass(frozen=True)
class Scenario:
    """What schedules are drawn from. `acts` and `steps` are names with weights."""

    name: str
    acts: Mapping[str, int] = field(default_factory=lambda: {"post": 1})
    steps: Mapping[str, int] = field(default_factory=lambda: {"sleep": 4, "yields": 2})
    policies: Sequence[str] = ("queue",)
    spec: Mapping[str, Any] = field(default_factory=dict)
    """What all its lanes say besides their names."""
    slots: int = 2
    reserve: int = 1
    writes: bool = False
    """Whether bodies append to real files."""

    def lanes(self, handler: Callable[..., Awaitable[Any]], on_drop: Callable[..., Any]) -> list[LaneSpec]:
        """Its lanes: one per session, one shared, and one of the background."""
        spec: dict[str, Any] = {
            "timeout": TIMEOUT,
            "grace": GRACE,
            "queue_limit": None,
            "handler": handler,
            **self.spec,
        }
        if spec.get("when_full", "reject") != "reject":
            spec["on_drop"] = on_drop
        return [
            LaneSpec("session:*", **spec, priority="foreground"),
            LaneSpec("main", **spec, capacity=2),
            LaneSpec("cron", **spec, group="background", priority="background"),
        ]


class Host(Calls):
    """The host's calls, without a supervisor's lag meter, which would wake fifty times per second of virtual time."""

    def __init__(self, scheduler: Scheduler) -> None:
        super().__init__(scheduler, Standing(Services({}), 60.0))

    def submit(self, lane: str, fn: Body, *args: Any, **options: Any) -> Run:
        return self._scheduler.intake.submit(lane, fn, args, **options)

    async def run(self, lane: str, fn: Body, *args: Any, **options: Any) -> Any:
        return await self.result_of(self.submit(lane, fn, *args, **options))

    def post(self, lane: str, message: Any, **options: Any) -> Run:
        return self._scheduler.intake.post(lane, message, **options)

    def cancel(self, *, lane: str | None = None, session: str | None = None, queued: bool = True, **_: Any) -> int:
        return super().cancel(lane=lane, session=session, reason="cancelled", queued=queued)

    def resubmit(self, run_id: int) -> Run:
        return self.parked(run_id).again()


class World:
    """One scheduler, and the schedule that is played on it now."""

    def __init__(self, scenario: Scenario, root: Path, clock: VirtualClock) -> None:
        self.scenario, self.clock = scenario, clock
        self.registry = LockRegistry(engine="none", sidecar=False, grace=GRACE)
        groups = (
            GroupSpec("main", slots=scenario.slots, reserve=scenario.reserve),
            GroupSpec("background", slots=1),
        )
        table = SpecTable(scenario.lanes(self._handler, self._dropped), groups)
        hooks = Hooks(self._started, self._ended, None)
        self.scheduler = Scheduler(Board(table, self.registry, SessionLayout(root), keep_outcomes=20, hooks=hooks))
        self.host = Host(self.scheduler)
        self.now: Schedule | None = None

    async def play(self, seeds: Sequence[int]) -> list[Schedule]:
        """Play a schedule for each seed. Raises `AssertionError` for the first one that breaks a promise."""
        played = []
        async with anyio.create_task_group() as group:
            await group.start(self.scheduler.serve)
            self.scheduler.open()
            for seed in seeds:
                # At a whole second, and past every timer of the one before: a cancelled one still wakes the loop.
                await anyio.sleep(self.clock.now() // 1 + PAUSE - self.clock.now())
                # Groups remember whom they have served; all else is empty by now.
                groups = self.scheduler.board.groups
                groups.update({name: Group(group.spec) for name, group in groups.items()})
                random.seed(seed)
                trio._core._run._r.seed(seed)
                schedule = self.now = Schedule(self, seed)
                await schedule.play()
                assert not schedule.violations, f"{self.scenario.name}, seed {seed}: {schedule.violations[0]}"
                played.append(schedule)
            self.scheduler.shut()
            group.cancel_scope.cancel()
        return played

    @property
    def playing(self) -> Schedule:
        """The schedule that is played."""
        assert self.now is not None
        return self.now

    async def _handler(self, ctx: RunContext, messages: Sequence[Message]) -> tuple[int, ...]:
        notes = [m.body for m in messages if isinstance(m.body, Note)]
        return await self.playing.body(ctx, notes, [step for note in notes for step in note.steps])

    def _dropped(self, run: Run, messages: Sequence[Message]) -> str:
        return self.playing.dropped(run, messages)

    def _started(self, run: Run) -> None:
        self.playing.started(run)

    def _ended(self, run: Run) -> None:
        self.playing.ended(run)


class Schedule:
    """One seed's schedule: what it does, what has come of it, and what was wrong with that."""

    def __init__(self, world: World, seed: int) -> None:
        self.world, self.scheduler, self.host = world, world.scheduler, world.host
        self.scenario = world.scenario
        self.violations: list[str] = []
        self.trace: list[tuple[Any, ...]] = []
        self._rng = random.Random(f"{self.scenario.name} {seed}")
        self._began = world.clock.now()
        self._first_id = self.scheduler.intake._next_id
        self._plans = [self._plan() for _ in range(SENDERS)]
        self._runs: dict[int, Run] = {}
        self._posted: dict[int, Run] = {}
        self._handled: Counter[int] = Counter()
        self._told: Counter[int] = Counter()
        self._dropped: Counter[int] = Counter()
        self._limits: dict[int, float] = {}
        self._contexts: list[RunContext] = []
        self._stubborn: set[int] = set()
        self._resubmitted: set[int] = set()
        self._inside: dict[str, list[Execution]] = {}
        self._latest: Counter[str] = Counter()
        self._numbers = 0
        self._drains = 0
        self._retries = self.scenario.spec.get("retry") is not None

    # Drawn before it begins

    def _plan(self) -> list[tuple[int, float, str, Any]]:
        return [
            (rng.randrange(4), rng.choice((0, 0, 1, 3, 8)) * UNIT, *self._act())
            for rng in (self._rng,)
            for _ in range(ACTS)
        ]

    def _act(self) -> tuple[str, Any]:
        rng = self._rng
        act = rng.choices(list(self.scenario.acts), list(self.scenario.acts.values()))[0]
        if act in ("post", "submit", "ask"):
            session, lane = rng.choice(SESSIONS), rng.choice(("session", "session", "main", "cron"))
            options = {
                "lane": f"session:{session}" if lane == "session" else lane,
                "session": None if lane != "session" and rng.random() < 0.3 else session,
                "when_busy": rng.choice(self.scenario.policies),
                "priority": rng.choice((None, None, "foreground", "normal", "background")),
                "timeout": rng.choice((None, None, 0.5, 1.0)) if "idle_timeout" not in self.scenario.spec else None,
                "route": rng.choice(("x", "x", "x", "y")),
                "steps": self._steps(2),
                "patience": rng.randrange(1, 16) * UNIT,
            }
            return act, options
        return act, (rng.randrange(100), rng.choice(SESSIONS), rng.randrange(1, 16) * UNIT, rng.random() < 0.5)

    def _steps(self, depth: int) -> tuple[Step, ...]:
        weights = self.scenario.steps
        names = self._rng.choices(list(weights), list(weights.values()), k=self._rng.randrange(1, 4))
        return tuple((name, self._step(name, depth)) for name in names)

    def _step(self, name: str, depth: int) -> Any:
        rng = self._rng
        if name == "child":
            if not depth:
                return None
            lane = rng.choice(("main", "cron", "session:c"))
            return lane, self._steps(depth - 1), rng.random() < 0.2, rng.random() < 0.7
        if name in ("stubborn", "overrun"):
            return rng.randrange(8, 60) * UNIT
        if name == "note":
            return rng.choice(SESSIONS)
        return rng.randrange(1, 4) if name == "yields" else rng.randrange(16) * UNIT

    # Played

    async def play(self) -> None:
        """Do what was drawn, wait until all is over, and judge."""
        async with anyio.create_task_group() as group:
            for plan in self._plans:
                group.start_soon(self._send, plan)
        while self.scheduler.board.live:
            await next(iter(self.scheduler.board.live.values())).run.wait()
        await self.scheduler.board.wait_abandoned()
        if self.scheduler.board.throttle.restore() or "pace" in self.scenario.acts:
            await anyio.sleep(max(INTERVAL_S.values()))  # until admission has looked again
        await self.world.clock.settle()
        self._judge()

    async def _send(self, plan: list[tuple[int, float, str, Any]]) -> None:
        for yields, pause, act, given in plan:
            if pause:
                await anyio.sleep(pause)
            for _ in range(yields):
                await checkpoint()
            with suppress(*EXPECTED):
                await getattr(self, f"_{act}")(given)
            self._check()

    async def _post(self, given: Mapping[str, Any]) -> Run | None:
        self._numbers += 1
        number, policy = self._numbers, given["when_busy"]
        note = Note(number, given["steps"], policy in PLAIN)
        options = {name: given[name] for name in ("session", "when_busy", "priority", "timeout")}
        try:
            run = self.host.post(given["lane"], Message(note, given["route"]), **options)
        except LaneError as refused:
            self._note("refused", number, type(refused).__name__)
            return None
        self._posted[number] = run
        self._know(run, given["timeout"])
        return run

    async def _submit(self, given: Mapping[str, Any]) -> None:
        turn = given["session"] is None or given["patience"] > 0.3
        options = {name: given[name] for name in ("session", "priority", "timeout")}
        run = self.host.submit(given["lane"], self._work, given["steps"], turn=turn, **options)
        self._know(run, given["timeout"])

    async def _ask(self, given: Mapping[str, Any]) -> None:
        """Submit, and wait for it, but not for long."""
        options = {name: given[name] for name in ("session", "priority", "timeout")}
        with anyio.move_on_after(given["patience"]), suppress(Mishap):
            await self.host.run(given["lane"], self._work, given["steps"], **options)

    async def _dedupe(self, given: tuple[int, str, float, bool]) -> None:
        number, session, _, _ = given
        self._numbers += 1
        note = Message(Note(self._numbers, (("sleep", UNIT),), True), "x")
        run = self.host.post(f"session:{session}", note, dedupe=f"{self._began} {number % 2}")
        if run.id not in self._runs:
            self._posted[self._numbers] = run
            self._know(run, None)

    async def _wait(self, given: tuple[int, str, float, bool]) -> None:
        if run := self._some(given[0]):
            with anyio.move_on_after(given[2]):
                await run.wait()

    async def _follow(self, given: tuple[int, str, float, bool]) -> None:
        """Read a run's events until it has ended."""
        if run := self._some(given[0]):
            async for _ in run.events(buffer=2):
                await checkpoint()
            assert run.outcome is not None

    async def _cancel(self, given: tuple[int, str, float, bool]) -> None:
        if run := self._some(given[0]):
            run.cancel("on purpose")

    async def _cancel_session(self, given: tuple[int, str, float, bool]) -> None:
        self.host.cancel(session=given[1], queued=given[3])

    async def _cancel_lane(self, given: tuple[int, str, float, bool]) -> None:
        self.host.cancel(lane="main" if given[3] else f"session:{given[1]}")

    async def _reset(self, given: tuple[int, str, float, bool]) -> None:
        with anyio.move_on_after(given[2] * 4):
            await self.host.reset(given[1], archive=False)

    async def _drain(self, given: tuple[int, str, float, bool]) -> None:
        """Come to rest, and take work again."""
        self._drains += 1
        self.scheduler.shut()
        await Drain(self.scheduler).finish_or_cancel(given[2])
        self._drains -= 1
        if not self._drains:
            self.scheduler.open()

    async def _revoke(self, given: tuple[int, str, float, bool]) -> None:
        self.world.registry.revoke(self.scheduler.board.layout.file_of(given[1]), "on purpose")

    async def _pace(self, given: tuple[int, str, float, bool]) -> None:
        """Slow admission down, or no more."""
        if given[3]:
            self.scheduler.board.throttle.slow("on purpose")
        else:
            self.scheduler.board.throttle.restore()

    async def _resubmit(self, given: tuple[int, str, float, bool]) -> None:
        parked = list(self.scheduler.board.history.parked)
        if parked:
            run = self.host.resubmit(parked[given[0] % len(parked)])
            self._know(run, None)
            self._resubmitted.add(run.id)

    def _some(self, number: int) -> Run | None:
        runs = list(self._runs.values())
        return runs[number % len(runs)] if runs else None

    def _know(self, run: Run, timeout: float | None) -> None:
        self._runs[run.id] = run
        self._limits.setdefault(run.id, TIMEOUT if timeout is None else timeout)

    # Bodies

    async def _work(self, ctx: RunContext, steps: Sequence[Step]) -> tuple[int, ...]:
        return await self.body(ctx, [], steps)

    async def body(self, ctx: RunContext, notes: Sequence[Note], steps: Sequence[Step]) -> tuple[int, ...]:
        """The body of every run. Returns the numbers of the messages that it has answered."""
        answered = [note.number for note in notes]
        self._enter(ctx, notes)
        try:
            for name, given in steps:
                await getattr(self, f"_do_{name}")(ctx, given, answered)
                self._check()
        except get_cancelled_exc_class():
            if "cleanup" in self.scenario.steps:
                async with ctx.cleanup():
                    with suppress(LeaseLost):
                        await self._do_write(ctx, None, answered)
                    await anyio.sleep(GRACE / 2)
            raise
        finally:
            self._leave(ctx)
        return tuple(answered)

    async def _do_sleep(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        await anyio.sleep(given)

    async def _do_cleanup(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        await anyio.sleep(given * 4)

    async def _do_overrun(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        await anyio.sleep(given)

    async def _do_yields(self, ctx: RunContext, given: int, answered: list[int]) -> None:
        for _ in range(given):
            await checkpoint()

    async def _do_fail(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        await anyio.sleep(given)
        raise Mishap(ctx.run.id)

    async def _do_progress(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        ctx.progress()
        await anyio.sleep(given)

    async def _do_emit(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        for number in range(4):
            ctx.emit(number)
            await checkpoint()

    async def _do_stubborn(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        """Ignore every cancellation for a while, and try to write behind one's end."""
        self._stubborn.add(ctx.run.id)
        with anyio.CancelScope(shield=True):
            await anyio.sleep(given)
            if ctx._permit.is_over() and ctx.run.session is not None:
                try:
                    await ctx.session.append({"late": ctx.run.id})
                except LeaseLost:
                    pass
                else:
                    self.violations.append(f"{ctx.run!r} is over and has written")

    async def _do_read(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        """Take what comes to the inbox within a while."""
        with anyio.move_on_after(given), suppress(anyio.EndOfStream):
            while True:
                message = await ctx.inbox.receive()
                self._handled[message.body.number] += 1
                answered.append(message.body.number)
                self._note("read", message.body.number)

    async def _do_write(self, ctx: RunContext, given: Any, answered: list[int]) -> None:
        if self.scenario.writes and ctx.run.session is not None:
            await ctx.session.append({"run": ctx.run.id, "turn": ctx.run.turn})

    async def _do_lease(self, ctx: RunContext, given: float, answered: list[int]) -> None:
        if ctx.run.session is not None:
            async with ctx.session.lease() as lease:
                await anyio.sleep(given)
                lease.check()

    async def _do_note(self, ctx: RunContext, given: str, answered: list[int]) -> None:
        """Write to some session, conducting it or not."""
        if self.scenario.writes:
            with suppress(LeaseLost):
                await ctx.session_of(given).append({"run": ctx.run.id, "turn": False})

    async def _do_child(self, ctx: RunContext, given: Any, answered: list[int]) -> None:
        if given is None:
            return
        lane, steps, detached, waits = given
        try:
            run = ctx.submit(lane, self._work, steps, detached=detached)
        except (LaneError, LeaseLost) as refused:
            self._note("child refused", type(refused).__name__)
            return
        self._know(run, None)
        if waits:
            with suppress(Mishap, *EXPECTED):
                await run.result()

    def _enter(self, ctx: RunContext, notes: Sequence[Note]) -> None:
        execution, key = attempt_of(ctx), ctx.run.session
        self._note("body", self._name(ctx.run), ctx.run.attempt, tuple(note.number for note in notes))
        self._handled.update(note.number for note in notes)
        if not ctx.run.turn or key is None:
            return
        others = [one for one in self._inside.get(key, ()) if not one.over]
        if others:
            self.violations.append(f"{ctx.run!r} conducts {key!r} beside {others[0]!r}")
        self._inside.setdefault(key, []).append(execution)
        for note in notes:
            if note.plain and ctx.run.attempt == 1 and ctx.run.id not in self._resubmitted:
                if note.number <= self._latest[key]:
                    self.violations.append(f"message {note.number} of {key!r} after {self._latest[key]}")
                self._latest[key] = note.number

    def _leave(self, ctx: RunContext) -> None:
        self._note("left", self._name(ctx.run))
        self._contexts.append(ctx)
        if ctx.run.turn and ctx.run.session is not None:
            self._inside[ctx.run.session].remove(attempt_of(ctx))

    # Judged

    def _name(self, run: Run) -> int:
        return run.id - self._first_id

    def _note(self, what: str, *fields: Any) -> None:
        self.trace.append((round(self.world.clock.now() - self._began, 6), what, *fields))

    def started(self, run: Run) -> None:
        """A run has started."""
        self._know(run, None)
        self._note("start", self._name(run), run.lane)

    def dropped(self, run: Run, messages: Sequence[Message]) -> str:
        """A run was dropped."""
        self._dropped[run.id] += 1
        return f"{len(messages)} dropped"

    def ended(self, run: Run) -> None:
        """A run has its outcome."""
        outcome = run.outcome
        assert outcome is not None
        self._runs.setdefault(run.id, run)
        self._told[run.id] += 1
        self._note("end", self._name(run), outcome.state.value)
        now = self.world.clock.now()
        if run.started_at is None:
            limit = self.scenario.spec.get("queue_timeout")
            if limit is not None and run.lane != "control" and run.attempt == 1 and outcome.waited_s > limit + TICK:
                self.violations.append(f"{run!r} has waited {outcome.waited_s} s")
        elif run.lane != "control":
            most = run.started_at + self._limits.get(run.id, TIMEOUT) + max(GRACE, LEAST_GRACE)
            if run.answered_by is None and now > most + TICK:
                self.violations.append(f"{run!r} has outlived its deadline and grace by {now - most} s")
        if outcome.state is RunState.ABANDONED and run.id not in self._stubborn and run.answered_by is None:
            self.violations.append(f"{run!r} was abandoned, and its body did obey")
        if outcome.state is RunState.FAILED and not isinstance(outcome.error, (Mishap, *EXPECTED)):
            self.violations.append(f"{run!r} has failed: {outcome.traceback}")

    def _check(self) -> None:
        """What holds whenever a task of ours runs."""
        self.violations += complaints(self.scheduler)

    def _judge(self) -> None:
        """What holds when all is over."""
        self._check()
        wrong = self.violations
        for run in self._runs.values():
            outcome = run.outcome
            if outcome is None or self._told[run.id] != 1:
                wrong.append(f"{run!r} was told {self._told[run.id]} times")
            elif outcome.state not in (RunState.DONE, RunState.FAILED) and not outcome.reason:
                wrong.append(f"{run!r} was not told why")
            elif self._dropped[run.id] != outcome.reason.startswith("dropped") and "on_drop" in outcome.reason:
                wrong.append(f"{run!r} was dropped {self._dropped[run.id]} times")
        for number, run in self._posted.items():
            outcome = run.outcome
            done = outcome is not None and outcome.state is RunState.DONE
            if outcome is not None and done and (not self._handled[number] or number not in outcome.value):
                wrong.append(f"message {number} is lost: {run!r} is done with {outcome.value}")
            if self._handled[number] > 1 and not self._retries:
                wrong.append(f"message {number} was handled {self._handled[number]} times")
        for ctx in self._contexts:
            with suppress(LeaseLost):
                wrong.append(f"{ctx.submit('main', self._work, ())!r} comes from {ctx.run!r}, which is over")
        wrong += left_behind(self.scheduler)
        self.scheduler.board.history.parked.clear()


class Plain:
    """A `traceback` that looks at no source and marks no columns: in a schedule every other run ends by an exception,
    and a quarter of its time went into the texts."""

    @staticmethod
    def format_exception(error: BaseException, *, limit: int) -> list[str]:
        """Where an exception came from, innermost last, and what it is."""
        frames = [f"{frame.f_code.co_filename}:{line}\n" for frame, line in traceback.walk_tb(error.__traceback__)]
        return [*frames[limit:], f"{error!r}\n"]


def left_behind(scheduler: Scheduler) -> list[str]:
    """What a scheduler at rest still holds, in words."""
    registry = scheduler.board.registry.statistics()
    counts = {
        "live": len(scheduler.board.live),
        "bodies": len(scheduler.board.bodies),
        "abandoned": len(scheduler.board.abandoned),
        "turns": len(scheduler.board.turns),
        "timers": len(scheduler.board.timers),
        "waits": len(scheduler.waits),
        "lanes": len(set(scheduler.board.lanes) - set(scheduler.board.specs.lanes)),
        "tasks": len(scheduler.board.tasks or ()),
        "sessions": registry.sessions,
        "held": registry.held,
        "waiting": registry.waiting,
        **{f"{lane.name} queued": lane.waiting for lane in scheduler.board.lanes.values()},
        **{f"{lane.name} running": len(lane.running) for lane in scheduler.board.lanes.values()},
        **{f"{name} slots": group.running + group.others for name, group in scheduler.board.groups.items()},
        **{f"{name} work": int(group.has_work) for name, group in scheduler.board.groups.items()},
    }
    return [f"left behind: {what} {count}" for what, count in counts.items() if count]


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario("queue", acts={"post": 8, "submit": 3, "ask": 2, "wait": 1, "dedupe": 2}),
        Scenario("reject", policies=("reject", "queue"), acts={"post": 6, "cancel": 1, "follow": 1}),
        Scenario("interrupt", policies=("interrupt", "queue"), acts={"post": 8, "cancel": 1, "wait": 1}),
        Scenario("replace", policies=("replace", "replace", "queue", "interrupt"), acts={"post": 8, "cancel": 1}),
        Scenario(
            "collect", policies=("collect", "collect", "queue"), acts={"post": 8, "cancel": 1}, spec={"debounce": 0.25}
        ),
        Scenario(
            "steer",
            policies=("steer", "steer", "queue", "interrupt"),
            acts={"post": 8, "cancel": 1, "wait": 1},
            steps={"read": 4, "sleep": 2, "fail": 1},
        ),
        Scenario(
            "drop oldest",
            acts={"post": 9, "cancel": 1},
            policies=("queue", "collect"),
            spec={"queue_limit": 1, "when_full": "drop_oldest"},
        ),
        Scenario(
            "summarize",
            acts={"post": 9, "submit": 1},
            policies=("queue", "collect", "steer"),
            steps={"read": 1, "sleep": 3},
            spec={"queue_limit": 2, "when_full": "summarize"},
        ),
        Scenario(
            "deadlines",
            acts={"post": 8, "ask": 2, "wait": 1},
            steps={"overrun": 3, "progress": 3, "cleanup": 2, "sleep": 1},
            spec={"queue_timeout": 1.0, "idle_timeout": 0.75, "when_busy": "queue"},
        ),
        Scenario(
            "abandonment",
            acts={"post": 8, "cancel": 2, "cancel_session": 1, "follow": 1},
            policies=("queue", "interrupt"),
            steps={"stubborn": 3, "sleep": 2, "emit": 1, "fail": 1},
        ),
        Scenario(
            "retry",
            acts={"post": 8, "cancel": 2, "resubmit": 1, "cancel_session": 1},
            policies=("queue", "steer"),
            steps={"fail": 3, "sleep": 2, "overrun": 1, "read": 2, "lease": 1},
            spec={"retry": RetrySpec(3, wait=0.25, max_wait=0.25, timeouts=True)},
        ),
        Scenario(
            "children",
            acts={"post": 6, "ask": 3, "cancel": 2, "cancel_lane": 1},
            steps={"child": 5, "sleep": 2, "fail": 1, "cleanup": 1},
            slots=1,
            reserve=0,
        ),
        Scenario(
            "reset",
            acts={"post": 8, "reset": 3, "cancel": 1, "submit": 2},
            policies=("queue", "interrupt", "steer", "collect"),
            steps={"sleep": 3, "read": 1, "stubborn": 1},
        ),
        Scenario(
            "drain",
            acts={"post": 8, "drain": 2, "cancel": 1, "ask": 1},
            steps={"sleep": 4, "child": 3, "fail": 1},
            spec={"retry": RetrySpec(2, wait=0.25, max_wait=0.25)},
        ),
        Scenario("priorities", acts={"post": 4, "submit": 4, "cancel": 1}, slots=3, reserve=1),
        Scenario("pace", acts={"post": 6, "submit": 2, "pace": 4, "cancel": 2, "cancel_session": 1}),
        Scenario(
            "writes",
            acts={"post": 6, "submit": 2, "revoke": 1, "reset": 1, "cancel": 1},
            steps={"write": 4, "lease": 2, "note": 2, "sleep": 2, "stubborn": 1, "cleanup": 1},
            writes=True,
        ),
        Scenario(
            "everything",
            acts={
                "post": 14,
                "submit": 2,
                "ask": 2,
                "wait": 1,
                "follow": 1,
                "cancel": 2,
                "cancel_session": 1,
                "cancel_lane": 1,
                "reset": 1,
                "drain": 1,
                "revoke": 1,
                "resubmit": 1,
            },
            policies=("queue", "interrupt", "steer", "collect", "reject"),
            steps={"sleep": 4, "read": 2, "child": 2, "fail": 1, "stubborn": 1, "cleanup": 1, "lease": 1, "emit": 1},
            spec={
                "queue_limit": 3,
                "when_full": "drop_oldest",
                "queue_timeout": 3.0,
                "debounce": 0.125,
                "retry": RetrySpec(2, wait=0.25, max_wait=0.25, timeouts=True),
            },
        ),
    )
}

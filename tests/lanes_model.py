"""Suite H2: what lanes should do, as a model without loops, tasks, locks or files, made of `docs/lanes.md`.

An instant is a float, a session a name, a job one piece of work with the program of its body. What is asked for happens
at one instant, in one call; `advance` lets time pass. What has become of each job stands in it, and `journal` says in
which order jobs started and ended, and when.

- A session's line is a FIFO over all lanes; its front conducts it, or will. A lane has places, a group has slots.
- Who could start stands on its lane by rank: by age, or before all others if it was put there. Lanes that could start
  something stand in a ring for each class; the classes share the slots by strides, once they have waited long enough.
- A body is a program: steps at fixed distances, and what it does when it is cancelled.

Where the order of two things that are due at the same instant is nobody's promise, `Unpromised` is raised.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lanes import GroupSpec, LaneSpec
from lanes.spec import PriorityName

LEAST_GRACE = 0.02
"""However short the grace: so long a body may take to end."""
HANDICAP = (0.0, 1.0, 5.0)
"""Seconds that foreground, normal and background work waits before it gets its share."""
STRIDE = (1, 2, 3)
APART = 3e-6
"""Things that are due closer to each other than this have no order."""
NEWEST = ("interrupt", "replace")
CLASSES: tuple[PriorityName, ...] = ("foreground", "normal", "background")


class Unpromised(Exception):
    """What comes next is not promised, or not modelled."""


class Refused(Exception):
    """Nothing was taken: the name of the error is what the sender is told."""


@dataclass(frozen=True)
class Program:
    """What a body does: steps (`read`, `kid`, `end`), each so long after the one before it."""

    number: int
    steps: tuple[tuple[str, float, Any], ...]
    cleans_s: float
    """Seconds that it takes to end when it is cancelled."""
    stubborn: bool = False
    """Whether it does not hear of its cancellation at all."""


@dataclass(frozen=True)
class Note:
    """A message's body."""

    number: int
    program: Program


@dataclass(eq=False)
class Lane:
    """A named queue with places."""

    name: str
    spec: LaneSpec
    queued: list[Job] = field(default_factory=list)
    running: list[Job] = field(default_factory=list)
    ring: int | None = None
    totals: Counter[str] = field(default_factory=Counter)

    @property
    def waiting(self) -> int:
        """What counts for its limit."""
        return sum(1 + job.joined for job in self.queued)

    @property
    def full(self) -> bool:
        """Whether it has no place."""
        return len(self.running) >= self.spec.capacity

    def next(self) -> Job | None:
        """Who would start next."""
        ready = [job for job in self.queued if job.ready]
        return min(ready, key=lambda job: (job.rank, job.number)) if ready and not self.full else None


@dataclass(eq=False)
class Group:
    """Slots, and the rings of the lanes that could take one."""

    spec: GroupSpec
    holders: list[Job] = field(default_factory=list)
    returning: list[Job] = field(default_factory=list)
    rings: tuple[list[Lane], list[Lane], list[Lane]] = field(default_factory=lambda: ([], [], []))
    got: list[int] = field(default_factory=lambda: [0, 0, 0])
    passed: int = 0
    totals: Counter[str] = field(default_factory=Counter)

    def free(self, cls: int) -> bool:
        """Whether there is a slot for that class."""
        others = sum(job.slot_cls != 0 for job in self.holders)
        return len(self.holders) < self.spec.slots and (cls == 0 or others < self.spec.slots - self.spec.reserve)

    def busy(self) -> bool:
        """Whether anybody waits for a slot."""
        return bool(any(self.rings) or self.returning)


@dataclass(eq=False)
class Job:
    """One run."""

    number: int
    lane: Lane
    session: str | None
    conducts: bool
    cls: int
    timeout: float
    arrived: float
    program: Program | None
    """Of work that is no message."""
    messages: list[tuple[Any, Any]] | None
    """Body and route."""
    policy: str = "queue"
    first: bool = False
    """Whether it resets its session."""
    parent: Job | None = None
    kids: list[Job] = field(default_factory=list)
    urgency: int = 0
    slot_cls: int = 0
    rank: int = 0
    state: str = "queued"
    attempt: int = 1
    started: float | None = None
    hard: float = math.inf
    cause: str | None = None
    in_line: bool = False
    ready: bool = False
    held_until: float | None = None
    hold_most: float = math.inf
    joined: int = 0
    into: Job | None = None
    read: bool = False
    """Whether the body of `into` has read it."""
    answered_by: Job | None = None
    inbox: list[Job] = field(default_factory=list)
    answering: list[Job] = field(default_factory=list)
    given: list[Any] | None = None
    """What its body was started with."""
    step: int = 0
    body_over: bool = True
    awaited: Job | None = None
    timer: int = 0
    hold_timer: int = 0
    body_timer: int = 0

    def __post_init__(self) -> None:
        self.urgency, self.rank = self.cls, self.number

    @property
    def over(self) -> bool:
        """Whether it has an outcome."""
        return self.state not in ("queued", "running")

    @property
    def route(self) -> Any:
        """Where its answer goes."""
        return self.messages[0][1] if self.messages else None

    @property
    def underway(self) -> bool:
        """Whether it may be interrupted or told something."""
        return not self.first and self.state == "running" and self.cause is None and not self.read

    @property
    def will(self) -> Program:
        """What its body does."""
        if self.program is not None:
            return self.program
        return next(body.program for body, _ in self.messages or () if isinstance(body, Note))


class Model:
    """Lanes, groups, lines and jobs at one instant."""

    def __init__(self, lanes: Iterable[LaneSpec], groups: Iterable[GroupSpec], keep: int, now: float) -> None:
        self.specs = {spec.pattern: spec for spec in lanes}
        self.groups = {spec.name: Group(spec) for spec in groups}
        self.lanes: dict[str, Lane] = {}
        self.lines: dict[str, list[Job]] = {}
        self.live: dict[int, Job] = {}
        self.history: list[Job] = []
        self.parked: list[Job] = []
        self.keys: dict[tuple[str, str | None, str], tuple[Job, int]] = {}
        self.journal: list[tuple[str, Job, float]] = []
        self.now = now
        self.open = True
        self._keep = keep
        self._numbers = 0
        self._ranks = 0
        self._due: list[tuple[float, int, Callable[..., None], Job]] = []
        self._timers = 0
        self._last_due: tuple[float, bool] = (-math.inf, False)
        self._soon: list[Job] = []

    # Time

    def advance(self, to: float) -> None:
        """Let time pass; ends before `to` where nothing is due."""
        while self._due and self._due[0][0] <= to + APART:
            due, number, call, job = heapq.heappop(self._due)
            if number not in (job.timer, job.hold_timer, job.body_timer):
                continue
            of_body = number == job.body_timer
            last, last_of_body = self._last_due
            if due > to - APART or (due - last < APART and (of_body or last_of_body or due != last)):
                raise Unpromised("at the same instant")
            self._last_due = due, of_body
            self.now = due
            call(job)
            self.settle()
        self.now = to

    def settle(self) -> None:
        """End what ends at the instant at which it began; to be called when all calls of an instant are made."""
        while self._soon:
            if len(self._soon) > 1:
                raise Unpromised("several end in the instant in which they began")
            job = self._soon.pop()
            self._body_ended(job, "cancelled" if job.cause is not None else None)

    def _at(self, due: float, call: Callable[[Job], None], job: Job) -> int:
        self._timers += 1
        heapq.heappush(self._due, (due, self._timers, call, job))
        return self._timers

    # Taking in

    def lane(self, name: str) -> Lane:
        """The lane of a name; a new one is kept when something is queued on it."""
        spec = self.specs.get(name) or self.specs["session:*"]
        return self.lanes.get(name) or Lane(name, spec)

    def submit(
        self,
        name: str,
        program: Program,
        session: str | None = None,
        *,
        turn: bool = True,
        cls: int | None = None,
        parent: Job | None = None,
        first: bool = False,
    ) -> Job:
        """Work that is no message."""
        job = self._new(name, session, turn, cls, parent)
        job.program, job.first = program, first
        return self._admitted(job, "queue" if first else job.lane.spec.when_busy)

    def post(
        self,
        name: str,
        body: Note,
        route: Any,
        session: str | None = None,
        *,
        cls: int | None = None,
        policy: str | None = None,
        key: str | None = None,
    ) -> Job:
        """A message."""
        job = self._new(name, session, True, cls, None)
        job.messages = [(body, route)]
        known = (job.lane.name, job.session, key) if key is not None else None
        if known is not None and (said := self.said(known, job.lane.spec)) is not None:
            if said[1] != body.number:
                raise Refused("DedupeConflict")
            return said[0]
        taken = self._admitted(job, policy or job.lane.spec.when_busy)
        if known is not None and (not taken.over or taken in self.history):
            self.keys[known] = taken, body.number
        return taken

    def said(self, key: tuple[str, str | None, str], spec: LaneSpec) -> tuple[Job, int] | None:
        """What was sent under a key, if it is done or under way, or somebody is to decide."""
        job, number = self.keys.get(key, (None, 0))
        if job is None or (job.over and job not in self.history):
            return None
        reader = job.into if job.read and job.into is not None else job
        overran = reader.cause == "timed_out" and spec.retry is not None and spec.retry.timeouts
        alive = not job.over and (reader.cause is None or overran)
        decided = job in self.parked or job.answered_by in self.parked
        stands = spec.dedupe_keeps == "ended" or job.state == "done" or alive or decided
        return (job, number) if stands else None

    def resubmit(self, job: Job) -> Job:
        """Try what is parked once more, as a new job."""
        name = job.lane.name
        again = self._new(name, job.session, job.conducts or job.session is None, job.cls, None)
        again.program, again.timeout = job.program, job.timeout
        if job.messages is not None:
            again.messages = list(job.messages)
            again.joined = len(job.messages) - 1
        taken = self._admitted(again, "queue")
        self.parked.remove(job)
        for key, (known, number) in list(self.keys.items()):
            if job in (known, known.answered_by) and (not known.over or known in self.history):
                self.keys[key] = taken, number
        return taken

    def _new(self, name: str, session: str | None, turn: bool, cls: int | None, parent: Job | None) -> Job:
        if not self.open and parent is None:
            raise Refused("Draining")
        lane = self.lane(name)
        if name.startswith("session:"):
            session = name.removeprefix("session:")
        own = CLASSES.index(lane.spec.priority) if cls is None else cls
        number = self._numbers + 1  # counted when it is taken
        conducts = turn and session is not None
        job = Job(number, lane, session, conducts, own, lane.spec.timeout, self.now, None, None)
        job.parent = parent
        return job

    def _admitted(self, job: Job, policy: str) -> Job:
        lane, spec = job.lane, job.lane.spec
        line = self.lines.get(job.session or "", []) if job.conducts else []
        busy = bool(line) if job.conducts else lane.full
        moves = job.conducts or job.session is None  # a mere note has no policy
        older = [
            one
            for one in (line if job.conducts else [one for one in lane.queued if one.session is None])
            if moves and policy in NEWEST and one.policy == policy and one.state == "queued" and one.into is None
        ]
        target = self._target(job, policy, line, busy, older) if moves else None
        if target is None and job.messages and (policy == "collect" or spec.debounce):
            last = (line[-1] if line else None) if job.conducts else (lane.queued[-1] if lane.queued else None)
            if last is not None and self._may_join(job, policy, last, line, busy):
                last.messages = [*(last.messages or ()), *job.messages]
                last.joined += len(job.messages)
                if spec.debounce:
                    last.held_until = min(self.now + spec.debounce, last.hold_most)
                return last
        if policy == "reject" and busy:
            raise Refused("LaneBusy")
        before = lane.waiting - sum(1 + one.joined for one in older if one.lane is lane)
        limit = math.inf if spec.queue_limit is None else spec.queue_limit
        drops = before >= limit and not self._starts_at_once(
            job, line, held=bool(spec.debounce and job.messages), rings=True
        )
        if drops and (spec.when_full == "reject" or not lane.queued):
            raise Refused("LaneFull")
        self._numbers += 1
        self.live[job.number] = job
        if job.parent is not None:
            job.parent.kids.append(job)
        if policy == "steer" and target is not None:
            self._keep_lane(lane)
            lane.queued.append(job)
            self._give_up_waiting(job)
            job.into = job.answered_by = target
            target.inbox.append(job)
        else:
            if spec.debounce and job.messages:
                most = 10 * spec.debounce
                if spec.queue_timeout is not None:
                    most = max(spec.debounce, min(most, spec.queue_timeout / 2))
                job.held_until, job.hold_most = self.now + spec.debounce, self.now + most
            if moves:
                job.policy = policy
            self._queue(job, line, first=moves and policy == "interrupt" and (bool(older) or busy))
            for one in [*older, *([target] if target is not None else [])]:
                self.end(one, "superseded")
        while drops and lane.waiting > max(limit, before) and self._drop(lane, job):
            pass
        return job

    def _target(self, job: Job, policy: str, line: list[Job], busy: bool, older: list[Job]) -> Job | None:
        if policy == "steer" and not job.messages:
            return None
        if policy not in ("steer", "interrupt") or (policy == "interrupt" and not job.conducts and older):
            return None
        if job.conducts:
            found = line[0] if line and line[0].underway else None
        else:
            found = next((one for one in job.lane.running if one.underway), None) if busy else None
        if policy == "interrupt" or found is None:
            return found
        return found if found.session == job.session and found.route == job.route else None

    def _may_join(self, job: Job, policy: str, last: Job, line: list[Job], busy: bool) -> bool:
        limit = job.lane.spec.queue_limit
        if last.policy in NEWEST:
            shares = policy == last.policy
        elif policy in ("reject", "interrupt"):
            shares = line[0] is last if job.conducts else not busy
        else:
            shares = True
        quiet = last.held_until is not None and last.held_until > self.now
        return (
            last.state == "queued"
            and last.lane is job.lane
            and last.messages is not None
            and last.into is None
            and last.attempt == 1
            and last.session == job.session
            and (last.cls, last.timeout) == (job.cls, job.timeout)
            and last.route == job.route
            and (policy == "collect" or quiet)
            and shares
            and (limit is None or job.lane.waiting < max(limit, 1))
        )

    def _starts_at_once(self, job: Job, line: list[Job], *, held: bool, rings: bool = False) -> bool:
        group, lane = self.groups[job.lane.spec.group], job.lane
        nobody = lane.next() is None if rings else not lane.queued
        return (
            self.open
            and nobody
            and not lane.full
            and not line
            and not held
            and group.free(job.cls)
            and not group.busy()
        )

    def _drop(self, lane: Lane, newest: Job) -> bool:
        victim = next((one for one in lane.queued if one is not newest), None)
        if victim is None:
            return False
        self.groups[lane.spec.group].totals["dropped"] += 1
        messages, route = victim.messages, victim.route
        self.end(victim, "cancelled")
        if lane.spec.when_full == "summarize" and messages:
            for one in [*lane.running, *lane.queued, newest]:
                if (
                    one.messages is not None
                    and one.number > victim.number
                    and (one.started is None or one.given is None or one.started == self.now)
                    and not one.over
                    and one.into is None
                    and (one.session, one.route) == (victim.session, route)
                ):
                    one.messages.insert(0, (f"summary of {len(messages)}", route))
                    if one.state == "running":
                        one.given = [body for body, _ in one.messages]
                    break
        return True

    # Queueing

    def _keep_lane(self, lane: Lane) -> None:
        self.lanes[lane.name] = lane

    def _give_up_waiting(self, job: Job) -> None:
        if job.lane.spec.queue_timeout is not None:
            job.timer = self._at(job.arrived + job.lane.spec.queue_timeout, self._overdue, job)

    def _overdue(self, job: Job) -> None:
        self.end(job, "timed_out")

    def _queue(self, job: Job, line: list[Job], *, first: bool) -> None:
        self._keep_lane(job.lane)
        if self._starts_at_once(job, line, held=job.held_until is not None):
            if job.conducts:
                self._line(job).append(job)
                job.in_line = True
            self._take_slot(job)
            job.lane.running.append(job)
            self._start(job)
            return
        job.lane.queued.append(job)
        self._give_up_waiting(job)
        self._stand_in_line(job, first=first or not self.open)

    def _line(self, job: Job) -> list[Job]:
        assert job.session is not None
        return self.lines.setdefault(job.session, [])

    def _front_rank(self) -> int:
        self._ranks -= 1
        return self._ranks

    def _stand_in_line(self, job: Job, *, first: bool) -> None:
        if first:
            job.rank = self._front_rank()
        if not job.conducts:
            self._make_ready(job)
            return
        job.in_line = True
        line = self._line(job)
        if first and line:
            resets = [one for one in line if one.first]
            if resets:
                line.insert(line.index(resets[-1]) + 1, job)
            elif line[0].state == "queued":
                line.insert(0, job)
                self._hold_back(line[1])
            else:
                line.insert(1, job)
        else:
            line.append(job)
        if line[0] is job:
            self._make_ready(job)
        else:
            self._lend(line)

    def _hold_back(self, job: Job) -> None:
        job.ready, job.urgency, job.hold_timer = False, job.cls, 0
        self._offer(job.lane)

    def _lend(self, line: list[Job]) -> None:
        front, cls = line[0], min(one.cls for one in line)
        if cls >= front.urgency:
            return
        group = self.groups[front.lane.spec.group]
        if front.state != "queued":
            if front not in group.holders:
                front.urgency = cls
                self._let_return(group)
            return
        front.urgency, front.rank = cls, self._front_rank()
        if front.ready:
            self._admit(front.lane)

    def may_start(self, job: Job) -> bool:
        """While draining, only children start."""
        return self.open or (job.parent is not None and not job.parent.over)

    def _make_ready(self, job: Job) -> None:
        if job.over or not self.may_start(job):
            return
        if job.in_line:
            cls = min(one.cls for one in self._line(job))
            if cls < job.urgency:
                job.urgency, job.rank = cls, self._front_rank()
        if job.held_until is not None and job.held_until > self.now:
            job.hold_timer = self._at(job.held_until, self._let_go, job)
            return
        job.ready = True
        self._admit(job.lane)

    def _let_go(self, job: Job) -> None:
        job.hold_timer = 0
        if job.state == "queued" and self._is_next(job):
            self._make_ready(job)

    def _is_next(self, job: Job) -> bool:
        return self._line(job)[0] is job if job.in_line else job.into is None

    # Slots

    def _offer(self, lane: Lane) -> None:
        job = lane.next()
        rings = self.groups[lane.spec.group].rings
        cls = None if job is None else job.urgency
        if lane.ring is not None and lane.ring != cls:
            rings[lane.ring].remove(lane)
            lane.ring = None
        if cls is not None and lane.ring is None:
            rings[cls].append(lane)
            lane.ring = cls

    def _admit(self, lane: Lane) -> None:
        self._offer(lane)
        self._admit_group(self.groups[lane.spec.group])

    def _admit_group(self, group: Group) -> None:
        self._let_return(group)
        while (cls := self._next_class(group)) is not None:
            group.passed = max(group.passed, group.got[cls])
            group.got[cls] = group.passed + STRIDE[cls]
            lane = group.rings[cls].pop(0)
            lane.ring = None
            job = lane.next()
            assert job is not None
            lane.queued.remove(job)
            lane.running.append(job)
            job.ready = False
            self._take_slot(job)
            self._offer(lane)
            self._start(job)

    def _next_class(self, group: Group) -> int | None:
        able = [cls for cls in range(3) if group.rings[cls] and group.free(cls)]
        due = [cls for cls in able if cls == 0 or self._oldest(group.rings[cls]) + HANDICAP[cls] <= self.now]
        if len(able) < 2:
            return able[0] if able else None
        return min(due, key=group.got.__getitem__) if due else able[0]

    def _oldest(self, ring: list[Lane]) -> float:
        return min(job.arrived for lane in ring if (job := lane.next()) is not None)

    def _take_slot(self, job: Job) -> None:
        job.slot_cls = job.urgency
        self.groups[job.lane.spec.group].holders.append(job)

    def _give_slot(self, job: Job) -> None:
        group = self.groups[job.lane.spec.group]
        for some in (group.holders, group.returning):
            if job in some:
                some.remove(job)

    def _let_return(self, group: Group) -> None:
        for job in list(group.returning):
            if group.free(job.urgency):
                group.returning.remove(job)
                self._take_slot(job)
                if job.cause is None:
                    self._next_step(job)

    # Bodies

    def _start(self, job: Job) -> None:
        job.state, job.started, job.ready = "running", self.now, False
        job.hard = self.now + job.timeout
        if job.parent is not None:
            job.hard = min(job.hard, job.parent.hard)
        job.timer = self._at(job.hard, self._overdue, job)
        job.hold_timer = 0
        job.step, job.body_over = 0, False
        job.given = None if job.messages is None else [body for body, _ in job.messages]
        self.journal.append(("start", job, self.now))
        self._next_step(job)

    def _next_step(self, job: Job) -> None:
        if job.first:
            self._soon.append(job)  # a reset: moving a file takes no time
            return
        after = job.will.steps[job.step][1]
        job.body_timer = self._at(self.now + after, self._stepped, job)

    def _stepped(self, job: Job) -> None:
        job.body_timer = 0
        kind, _, given = job.will.steps[job.step]
        job.step += 1
        if kind == "end":
            self._body_ended(job, given)
            return
        if kind == "read":
            self._read(job)
        elif kind == "kid":
            program, cls, waits = given
            kid = self.submit("kids", program, cls=cls, parent=job)
            if waits and not kid.over:
                job.awaited = kid
                self._give_slot(job)
                self._admit_group(self.groups[job.lane.spec.group])
                return
        self._next_step(job)

    def _read(self, job: Job) -> None:
        unread, job.inbox = job.inbox, []
        for one in unread:
            one.timer = 0
            one.lane.queued.remove(one)
            self._offer(one.lane)
            one.state, one.read, one.started = "running", True, self.now
            job.answering.append(one)

    def _wake(self, kid: Job) -> None:
        """Whoever waits for a job that has ended goes on."""
        parent = kid.parent
        if parent is None or parent.awaited is not kid:
            return
        parent.awaited = None
        if not parent.underway:
            return
        if parent.in_line:
            parent.urgency = min(one.cls for one in self._line(parent))
        group = self.groups[parent.lane.spec.group]
        group.returning.append(parent)
        self._let_return(group)

    # Ending

    def cancel(self, chosen: Iterable[Job]) -> None:
        """End jobs, the latest first."""
        for job in reversed(list(chosen)):
            self.end(job, "cancelled")

    def end(self, job: Job, state: str) -> bool:
        """Have a job end for a cause, unless it has one."""
        if job.cause is not None or job.over:
            return False
        if job.state == "queued":
            job.cause = state
            self._finish(job, state)
            return True
        if job.read:
            assert job.into is not None
            return self.end(job.into, state)
        job.cause = state
        job.timer = self._at(self.now + max(job.lane.spec.grace, LEAST_GRACE), self._abandon, job)
        self._end_kids(job)
        if job in self.groups[job.lane.spec.group].returning:
            raise Unpromised("cancelled while it waits for its slot")
        job.awaited = None
        if job.started == self.now:
            job.body_timer = 0
            self._soon.append(job)  # before its first step: there is nothing to clean up
        elif not job.will.stubborn:
            job.body_timer = self._at(self.now + job.will.cleans_s, self._cleaned, job)
        return True

    def _end_kids(self, job: Job) -> None:
        for kid in reversed(list(job.kids)):
            self.end(kid, "cancelled")

    def _cleaned(self, job: Job) -> None:
        job.body_timer = 0
        self._body_ended(job, "cancelled")

    def _body_ended(self, job: Job, how: str | None) -> None:
        job.body_over = True
        if job.over:
            return
        state = job.cause or ("failed" if how == "raise" else "done")
        if not self._try_again(job, state, how):
            self._finish(job, state)

    def _abandon(self, job: Job) -> None:
        self._finish(job, "abandoned")

    def _try_again(self, job: Job, state: str, how: str | None) -> bool:
        retry = job.lane.spec.retry
        if retry is None or job.attempt >= retry.attempts or not self.may_start(job):
            return False
        if not (state == "failed" or (state == "timed_out" and retry.timeouts)):
            return False
        if job.parent is not None and (job.parent.over or job.parent.cause is not None):
            return False
        job.attempt += 1
        job.timer = job.body_timer = 0
        job.state, job.cause, job.started, job.policy = "queued", None, None, "queue"
        self._end_kids(job)
        lane = job.lane
        self._give_slot(job)
        lane.running.remove(job)
        self._offer(lane)
        lane.queued.insert(0, job)
        job.urgency, job.rank, job.held_until, job.hold_most = job.cls, job.number, self.now + retry.wait, math.inf
        again, job.answering = job.answering, []
        for one in again:
            one.lane = self.lanes.setdefault(one.lane.name, one.lane)
            one.state, one.read, one.started = "queued", False, None
            one.lane.queued.append(one)
        unread, job.inbox = job.inbox, []
        job.inbox = [*again, *unread]
        self.groups[lane.spec.group].totals["retries"] += 1
        self._make_ready(job)
        self._admit(lane)
        return True

    def _finish(self, job: Job, state: str) -> None:
        reached_body = job.started is not None
        if job.ready:
            job.ready = False
            self._offer(job.lane)
        job.timer = job.hold_timer = 0
        if job.body_over or state != "abandoned":
            job.body_timer = 0
        if job.into is not None and not job.read:
            job.into.inbox.remove(job)
        self.groups[job.lane.spec.group].totals[state] += 1
        del self.live[job.number]
        self.history.append(job)
        if len(self.history) > self._keep:
            self.history.pop(0)
        if job.parent is not None and job in job.parent.kids:
            job.parent.kids.remove(job)
        self._park(job, state, reached_body)
        job.state = state
        self.journal.append(("end", job, self.now))
        self._wake(job)
        self._end_kids(job)
        answering, job.answering = job.answering, []
        for one in answering:
            one.cause = job.cause
            self._finish(one, state)
        self._leave(job)

    def _park(self, job: Job, state: str, started: bool) -> None:
        retry = job.lane.spec.retry
        if retry is None or job.into is not None:
            return
        overran = job.cause == "timed_out" and retry.timeouts and started
        if state == "failed" or overran:
            if job.messages is None:
                for one in job.answering:
                    self.parked.append(one)
            else:
                job.messages = [*job.messages, *(m for one in job.answering for m in one.messages or ())]
            self.parked.append(job)
            del self.parked[: -max(self._keep, 1)]

    def _leave(self, job: Job) -> None:
        lane = job.lane
        group = self.groups[lane.spec.group]
        self._give_slot(job)
        for some in (lane.running, lane.queued):
            if job in some:
                some.remove(job)
        self._offer(lane)
        self._queue_unread(job)
        if job.in_line:
            line = self._line(job)
            front = line[0] is job
            line.remove(job)
            if not line:
                del self.lines[job.session or ""]
            elif front:
                self._make_ready(line[0])
        if group.busy():
            self._admit_group(group)
        if lane.spec.wild and not lane.queued and not lane.running and self.lanes.get(lane.name) is lane:
            del self.lanes[lane.name]

    def _queue_unread(self, job: Job) -> None:
        unread, job.inbox = job.inbox, []
        for one in unread:
            one.into = one.answered_by = None
        if not unread:
            return
        if not job.conducts:
            ahead = sorted((one for one in job.lane.queued if one.policy == "interrupt"), key=lambda one: one.rank)
            for one in reversed([*ahead, *unread]):
                one.rank = self._front_rank()
            for one in unread:
                self._make_ready(one)
            return
        line = self._line(job)
        others = [one for one in line if one is not job]
        before = 0
        while before < len(others) and (others[before].policy == "interrupt" or others[before].first):
            before += 1
        for one in reversed(unread):
            if before:
                one.in_line = True
                line.insert(line.index(others[before - 1]) + 1, one)
                self._lend(line)
            else:
                self._stand_in_line(one, first=True)

    # Draining

    def shut(self) -> None:
        """Take nothing, start nothing but children."""
        self.open = False
        for lane in list(self.lanes.values()):
            for job in lane.queued:
                if job.ready and not self.may_start(job):
                    job.ready = False
            self._offer(lane)

    def reopen(self) -> None:
        """Take work, and start what waits."""
        self.open = True
        for job in sorted(self.live.values(), key=lambda job: job.number):
            if job.state == "queued" and not job.ready and self._is_next(job):
                self._make_ready(job)

    def reset(self, session: str, program: Program) -> Job:
        """End every job of a session; the reset goes before all that comes later."""
        older = list(self.live.values())
        reset = self.submit("control", program, session, first=True)
        for job in reversed(older):
            if job.session == session and not job.first:
                self.end(job, "cancelled")
        return reset

    def revoke(self, session: str) -> None:
        """Take the session from whoever conducts it."""
        line = self.lines.get(session)
        if line and line[0].state == "running" and not line[0].first:
            self.end(line[0], "cancelled")

    def totals(self) -> Mapping[str, Mapping[str, int]]:
        """What has ended, by group."""
        return {name: dict(group.totals) for name, group in self.groups.items()}

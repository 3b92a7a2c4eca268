"""Small systems of runs that wait for each other, as data; and by brute force, whether a wait in one can ever end.

A `System` is drawn from a seed: lanes and groups with few places and slots, over one or two supervisors that share a
registry, and scripts of runs that take rights, wait, submit, read and return. The harness plays it with the real
product. Before each wait it draws a `Picture` of who holds what and who waits for what, from what the scripts do, and
`able_to_end` searches all that may happen from there on.

What may happen: a run that does not wait may end, and gives back all that it has; so may one whose wait has a time
limit of its own. A run that waits goes on when it has what it waits for. A queued run starts when nobody is before it
in its session and on its lane, and there is a turn, a place and a slot. In any order. Nobody is cancelled, no budget
passes, and nobody comes.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from lanes.spec import PriorityName

Step = tuple[Any, ...]
"""`("sleep", ticks)`, `("wait", run)`, `("give", run, how)`, `("read",)`, `("cancel", run)`; and blocks, whose last
member is a list of steps: `("lease", session, wait_timeout, steps)`, `("turn", session, wait_timeout, steps)`, and
`("limit", ticks, steps)`."""

PRIORITIES: tuple[PriorityName, ...] = ("foreground", "background")


@dataclass(frozen=True)
class Lane:
    """A lane of a system."""

    supervisor: int
    group: int
    capacity: int
    priority: PriorityName


@dataclass
class Script:
    """What one run does."""

    lane: int
    session: int | None
    priority: PriorityName
    steps: list[Step]
    last_words: list[Step]
    """What it does in its clean-up, if it is cancelled."""
    message: bool
    """Whether it is posted, into the inbox of whoever runs in its session if that can be."""
    given_at: int | None
    """The tick at which it is given from outside; `None` for one that another run gives."""


@dataclass
class System:
    """Runs, and what they share."""

    seed: int
    groups: list[tuple[int, int, int]]
    """Supervisor, slots and reserve of each."""
    lanes: list[Lane]
    scripts: list[Script]


def system_of(seed: int) -> System:
    """The system of a seed."""
    chance = random.Random(seed)
    temper = chance.choice(_TEMPERS)
    supervisors = 2 if temper is _ANY and chance.random() < 0.4 else 1
    groups, lanes = [], []
    for supervisor in range(supervisors):
        for _ in range(chance.choice([1, 1, 2])):
            slots = chance.choice(temper.slots)
            groups.append((supervisor, slots, chance.randrange(temper is _RESERVED, slots)))
    for group, (supervisor, _, _) in enumerate(groups):
        lanes += [
            Lane(supervisor, group, chance.choice(temper.places), chance.choice(PRIORITIES))
            for _ in range(chance.choice([1, 2]))
        ]
    if temper is _TIGHT:
        groups.append((0, 9, 0))
        lanes.append(Lane(0, len(groups) - 1, 9, "foreground"))
    count = chance.randrange(3, 7)
    draw = _Draw(chance, temper, count)
    scripts = [draw.script(number, lanes) for number in range(count)]
    scripts[0].given_at = 0
    return System(seed, groups, lanes, scripts)


@dataclass(frozen=True)
class _Temper:
    """What a system has much of: rings of each kind are rare among systems that have a little of everything."""

    slots: tuple[int, ...] = (1, 1, 2, 2, 3)
    places: tuple[int, ...] = (1, 2, 3, 9)
    conducting: tuple[float, ...] = (0.2, 0.5, 0.9)
    last_words: float = 0.3
    sessions: tuple[int, ...] = (0, 0, 1)
    weights: tuple[tuple[str, float], ...] = ()


_ANY = _Temper()
_TIGHT = _Temper((1,), (9,), (0.0,), 0.1, (0,), (("lease", 8), ("turn", 0), ("sleep", 6), ("read", 0), ("give", 5)))
_RESERVED = _Temper((2, 2, 3), (3, 9), (0.2, 0.6), 0.1, (0,), (("lease", 6), ("limit", 1), ("read", 0)))
_CANCELLED = _Temper(conducting=(0.2,), last_words=0.9, sessions=(0, 1), weights=(("cancel", 4), ("lease", 8)))
_TEMPERS = (_ANY, _ANY, _ANY, _TIGHT, _TIGHT, _RESERVED, _RESERVED, _CANCELLED)
_WEIGHTS = {"sleep": 4, "wait": 5, "give": 3, "read": 1, "cancel": 1, "lease": 4, "turn": 2, "limit": 2}


class _Draw:
    """Draws the scripts of one system."""

    def __init__(self, chance: random.Random, temper: _Temper, count: int) -> None:
        self.chance = chance
        self.count = count
        self.conducting = chance.choice(temper.conducting)
        self.last_words = temper.last_words
        weights = {**_WEIGHTS, **dict(temper.weights)}
        self.weights = {kind: weight * chance.choice([0.5, 1, 2]) for kind, weight in weights.items()}
        self.sessions = temper.sessions if chance.random() < 0.7 else (0,)

    def script(self, number: int, lanes: list[Lane]) -> Script:
        chance = self.chance
        session = chance.choice(self.sessions) if chance.random() < self.conducting else None
        return Script(
            chance.randrange(len(lanes)),
            session,
            chance.choice(PRIORITIES),
            self.steps(number, 3),
            last_words=self.steps(number, 1) if chance.random() < self.last_words else [],
            message=session is not None and chance.random() < 0.3,
            given_at=chance.choice([0, 0, 1, 2, 3]) if chance.random() < 0.75 else None,
        )

    def steps(self, me: int, depth: int) -> list[Step]:
        chance, steps = self.chance, list[Step]()
        kinds = [kind for kind in self.weights if depth or kind not in ("lease", "turn", "limit")]
        for _ in range(chance.choice([1, 1, 2, 2, 3])):
            other = (me + chance.randrange(self.count)) % self.count
            kind = chance.choices(kinds, [self.weights[kind] for kind in kinds])[0]
            if kind == "sleep":
                steps.append(("sleep", chance.choice([0, 1, 1, 2])))
            elif kind == "wait":
                steps.append(("wait", other))
            elif kind == "cancel":
                steps += [("sleep", chance.choice([1, 2])), ("cancel", other)]
            elif kind == "give":
                steps += [("give", other, chance.choice(["child", "child", "detached", "submit"])), ("wait", other)]
            elif kind == "read":
                steps.append(("read",))
            elif kind == "limit":
                steps.append(("limit", chance.choice([1, 2]), self.steps(me, depth - 1)))
            else:
                limit = chance.choice([None, None, None, 0, 1, 2])
                steps.append((kind, chance.choice(self.sessions), limit, self.steps(me, depth - 1)))
        return steps


# The reference

Right = tuple[str, int]
"""`("lease", session)` or `("turn", session)`."""


@dataclass
class Seen:
    """One run, at one instant."""

    phase: str
    """`queued`, `unread` (its message is in an inbox), `runs`, `waits`, `returns` (waits for its slot) or `ended`."""
    group: int
    lane: int
    session: int | None
    """The session that it conducts."""
    supervisor: int
    quiet: bool
    """Whether it may not have a reserved slot, as things are."""
    given_quiet: bool
    rank: float
    """Its place on its lane."""
    has_slot: bool
    target: int | Right | None = None
    """The run or right that it waits for, or whose inbox has its message."""
    holds_quietly: bool | None = None
    """Whether the slot that it has counts as one of those that are not reserved; else as it would now."""
    limited: bool = False
    """Whether a time limit of its own ends what it waits for."""


@dataclass
class Picture:
    """A system at one instant."""

    system: System
    runs: dict[int, Seen]
    owners: dict[Right, int] = field(default_factory=dict)
    """Who has which right, but for the turns that runs have for being run."""
    lines: dict[tuple[int, int], list[int]] = field(default_factory=dict)
    """Who conducts a session or waits for it, in order, by supervisor and session."""


_State = tuple[tuple[str, ...], frozenset[int], frozenset[tuple[Right, int]]]
"""The phase of each run, those with a slot, and who has which right."""


def able_to_end(picture: Picture) -> set[int]:
    """The runs that may come to their end. Looks at everything that may happen, if it has to."""
    names = list(picture.runs)
    at = {name: number for number, name in enumerate(names)}
    first: _State = (
        tuple(seen.phase for seen in picture.runs.values()),
        frozenset(name for name, seen in picture.runs.items() if seen.has_slot),
        frozenset(picture.owners.items()),
    )
    able: set[int] = set()
    seen, todo = {first}, [first]
    while todo and len(able) < len(names):
        phases, slots, rights = todo.pop()
        able |= {name for name in names if phases[at[name]] == "ended"}
        for name in names:
            step = _next(picture, name, at, phases, slots, rights)
            if step is not None and step not in seen:
                seen.add(step)
                todo.append(step)
    return able


def _next(
    picture: Picture,
    name: int,
    at: dict[int, int],
    phases: tuple[str, ...],
    slots: frozenset[int],
    rights: frozenset[tuple[Right, int]],
) -> _State | None:
    """What may happen to one run."""
    run, phase = picture.runs[name], phases[at[name]]

    def becomes(phase: str, slots: frozenset[int] = slots, rights: frozenset[tuple[Right, int]] = rights) -> _State:
        return (*phases[: at[name]], phase, *phases[at[name] + 1 :]), slots, rights

    if phase == "runs" or (phase in ("waits", "returns") and run.limited):
        return becomes("ended", slots - {name}, frozenset(one for one in rights if one[1] != name))
    if phase == "unread":
        reader = run.target
        return becomes("ended") if isinstance(reader, int) and phases[at[reader]] == "ended" else None
    if phase == "waits":
        if isinstance(run.target, int):
            return becomes("runs") if phases[at[run.target]] == "ended" else None
        assert run.target is not None
        owner = _owner(picture, run.target, at, phases, rights)
        return becomes("runs", rights=rights | {(run.target, name)}) if owner in (None, name) else None
    if phase == "returns":
        return becomes("runs", slots | {name}) if _slot_free(picture, run.group, run.quiet, slots) else None
    if phase == "queued" and _may_start(picture, name, at, phases, slots, rights):
        return becomes("runs", slots | {name})
    return None


def _owner(
    picture: Picture,
    right: Right,
    at: dict[int, int],
    phases: tuple[str, ...],
    rights: frozenset[tuple[Right, int]],
) -> int | None:
    """Who has a right: by a block, or as the turn of a run that runs."""
    for one, owner in rights:
        if one == right:
            return owner
    if right[0] == "turn":
        for name, run in picture.runs.items():
            if run.session == right[1] and phases[at[name]] in ("runs", "waits", "returns"):
                return name
    return None


def _slot_free(picture: Picture, group: int, quiet: bool, slots: frozenset[int]) -> bool:
    _, most, reserve = picture.system.groups[group]
    taken = [name for name in slots if picture.runs[name].group == group]
    if len(taken) >= most:
        return False
    if not quiet:
        return True
    counted = [
        one.quiet if one.holds_quietly is None else one.holds_quietly for one in map(picture.runs.get, taken) if one
    ]
    return sum(counted) < most - reserve


def _may_start(
    picture: Picture,
    name: int,
    at: dict[int, int],
    phases: tuple[str, ...],
    slots: frozenset[int],
    rights: frozenset[tuple[Right, int]],
) -> bool:
    run = picture.runs[name]
    ready = _ready(picture, name, at, phases, rights)
    if ready is None:
        return False
    quiet, rank = ready
    on_lane = [other for other, one in picture.runs.items() if one.lane == run.lane and other != name]
    running = [other for other in on_lane if phases[at[other]] in ("runs", "waits", "returns")]
    if len(running) >= picture.system.lanes[run.lane].capacity:
        return False
    for other in on_lane:
        if phases[at[other]] == "queued":
            before = _ready(picture, other, at, phases, rights)
            if before is not None and before[1] < rank:
                return False
    return _slot_free(picture, run.group, quiet, slots)


def _ready(
    picture: Picture, name: int, at: dict[int, int], phases: tuple[str, ...], rights: frozenset[tuple[Right, int]]
) -> tuple[bool, float] | None:
    """If a queued run has its turn before it: whether it is quiet then, and its place on its lane."""
    run = picture.runs[name]
    if run.session is None:
        return run.quiet, run.rank
    line = [one for one in picture.lines[run.supervisor, run.session] if phases[at[one]] != "ended"]
    if line[0] != name or _owner(picture, ("turn", run.session), at, phases, rights) is not None:
        return None
    if run.quiet and any(not picture.runs[one].given_quiet for one in line):
        return False, run.rank - 1e9  # who waits behind it lends it its class, and it goes before all others
    return run.quiet, run.rank

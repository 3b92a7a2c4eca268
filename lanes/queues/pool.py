"""A pool: who holds its grants, and who gets the next one.

Of the classes with waiting claims the next one is chosen as in a group (`groups`): by stride, among those that are due,
so that a class with less urgency gets its share once its oldest claim has waited for the class's handicap.

Within a class the sessions take turns (runs without a session: their lanes), a call each; the calls of a session go
first come first served. A session that comes, or comes back, goes behind those that wait. Rejected: turns by cost, so
that a session with large calls gets fewer of them (fair queueing by tags of virtual time). A session that comes starts
at the tag of the last grant there, so a stream of ever new sessions would hold up the second call of an old one for
ever.

The next claim is waited for, whatever it needs: a claim of few tokens behind it does not overtake it. Else large claims
would starve. `docs/pools.md` derives from this how long a claim waits at most.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection
from enum import Enum, auto
from typing import Generic

from locks._loop import Signal

from ..checks import Priority
from ..pool_spec import PoolSpec
from .allowance import Allowance
from .groups import HANDICAP_S, STRIDE
from .waiter import W


class Standing(Enum):
    """Where a claim stands. It moves down this list."""

    NEW = auto()
    WAITS = auto()
    HELD = auto()
    OVER = auto()


class Claim(Generic[W]):
    """One grant of a pool that a run asks for, or has."""

    # Defaults live on the class: most claims are granted at once, and given back soon.
    standing = Standing.NEW
    urgency = Priority.FOREGROUND
    """Its class, while it waits."""
    asked_at = 0.0
    granted_at = 0.0
    by_body = True
    """Whether the task of the run's body has entered it: then it is given back no sooner than the body goes on."""
    event: Signal | None = None
    """Set when it is granted; there while it waits."""
    settled = False
    lowered = 0
    """How often the limits had been lowered when it was granted."""

    def __init__(self, pool: Pool[W], waiter: W, tokens: int) -> None:
        self.pool = pool
        self.waiter = waiter
        """The attempt that asks."""
        self.tokens = tokens

    @property
    def session(self) -> str:
        """By what it takes turns: its session, or its lane without one."""
        run = self.waiter.run
        return run.lane if run.session is None else run.session


class _Line(Generic[W]):
    """The claims of one class that wait.

    Invariant: the claims in `_turns` are those in `order`; no session is in it without a claim.
    """

    __slots__ = ("_turns", "order")

    def __init__(self) -> None:
        self.order: OrderedDict[Claim[W], None] = OrderedDict()
        """All of them, the oldest first."""
        self._turns: OrderedDict[str, OrderedDict[Claim[W], None]] = OrderedDict()
        """By session, in the order of their turns."""

    def join(self, claim: Claim[W]) -> None:
        """Wait, last of its session."""
        self.order[claim] = None
        self._turns.setdefault(claim.session, OrderedDict())[claim] = None

    def leave(self, claim: Claim[W]) -> None:
        """Wait no more. The session keeps its place, if others of it wait."""
        del self.order[claim]
        of_session = self._turns[claim.session]
        del of_session[claim]
        if not of_session:
            del self._turns[claim.session]

    def front(self) -> Claim[W]:
        """The claim that is next in a line that has one."""
        return next(iter(next(iter(self._turns.values()))))

    def take(self) -> Claim[W]:
        """Take out the claim that is next; its session goes behind the others."""
        claim = self.front()
        self.leave(claim)
        if claim.session in self._turns:
            self._turns.move_to_end(claim.session)
        return claim


class Pool(Generic[W]):
    """The claims on one pool, and the order in which they are granted.

    Invariants: a claim is in `held` exactly while it is `HELD`, and in the line of its class exactly while it `WAITS`;
    `waiting` counts those in all lines.
    """

    __slots__ = (
        "_got",
        "_lines",
        "_passed",
        "allowance",
        "granted",
        "held",
        "longest_wait_s",
        "throttled",
        "used",
        "waited_s",
        "waiting",
    )

    def __init__(self, spec: PoolSpec) -> None:
        self.allowance = Allowance(spec)
        self.held: dict[Claim[W], None] = {}
        self.waiting = 0
        self._lines: dict[Priority, _Line[W]] = {urgency: _Line() for urgency in Priority}
        self._got = dict.fromkeys(Priority, 0)
        """How far each class has come."""
        self._passed = 0
        """How far the class was that got the last grant that was waited for."""
        self.granted = 0
        self.used = 0
        """Tokens that were settled."""
        self.throttled = 0
        self.waited_s = 0.0
        self.longest_wait_s = 0.0

    def __repr__(self) -> str:
        return f"<Pool {self.spec.name}: {len(self.held)} held, {self.waiting} waiting>"

    @property
    def spec(self) -> PoolSpec:
        """Its limits."""
        return self.allowance.spec

    def oldest_at(self) -> float:
        """When the oldest claim that waits was asked for; infinity when none waits."""
        return min((next(iter(line.order)).asked_at for line in self._lines.values() if line.order), default=math.inf)

    def largest(self) -> Claim[W] | None:
        """The claim that waits for the most tokens."""
        waiting = (claim for line in self._lines.values() for claim in line.order)
        return max(waiting, key=lambda claim: claim.tokens, default=None)

    def ask(self, claim: Claim[W], now: float) -> bool:
        """Grant a claim at once, if no other one waits and the limits allow it; returns whether they do."""
        if self.waiting or self.allowance.ready_at(claim.tokens, now) > now:
            return False
        claim.asked_at = now
        self._grant(claim, now)
        return True

    def wait(self, claim: Claim[W], urgency: Priority, now: float) -> None:
        """Have a claim wait, in the line of a class."""
        claim.standing, claim.urgency, claim.asked_at = Standing.WAITS, urgency, now
        self._lines[urgency].join(claim)
        self.waiting += 1

    def next(self, now: float) -> tuple[Claim[W] | None, float]:
        """Grant the claim that is next, or say when to look again: infinity, when a claim has ended."""
        urgency = self._next_class(now)
        if urgency is None:
            return None, math.inf
        line = self._lines[urgency]
        claim = line.front()
        ready_at = self.allowance.ready_at(claim.tokens, now)
        if ready_at > now:
            return None, ready_at
        self._passed = max(self._passed, self._got[urgency])
        self._got[urgency] = self._passed + STRIDE[urgency]
        line.take()
        self.waiting -= 1
        self.waited_s += now - claim.asked_at
        self.longest_wait_s = max(self.longest_wait_s, now - claim.asked_at)
        self._grant(claim, now)
        return claim, now

    def could_grant(self, now: float) -> bool:
        """Whether a claim waits that may be granted: never, but until the timer rings whose instant has come."""
        urgency = self._next_class(now)
        return urgency is not None and self.allowance.ready_at(self._lines[urgency].front().tokens, now) <= now

    def _next_class(self, now: float) -> Priority | None:
        able = [urgency for urgency, line in self._lines.items() if line.order]
        if len(able) < 2:
            return able[0] if able else None
        due = [urgency for urgency in able if self._is_due(urgency, now)]
        return min(due, key=self._got.__getitem__) if due else able[0]

    def _is_due(self, urgency: Priority, now: float) -> bool:
        return next(iter(self._lines[urgency].order)).asked_at + HANDICAP_S[urgency] <= now

    def _grant(self, claim: Claim[W], now: float) -> None:
        allowance = self.allowance
        allowance.take(claim.tokens, now)
        claim.standing, claim.granted_at, claim.lowered = Standing.HELD, now, allowance.lowered
        self.held[claim] = None
        self.granted += 1

    def settle(self, claim: Claim[W], used: int, now: float) -> None:
        """Count what a grant has used, once."""
        claim.settled = True
        self.used += used
        self.allowance.settle(claim.tokens, used, now)

    def throttle(self, claim: Claim[W], pause_s: float, now: float) -> None:
        """Grant nothing for a while, and less afterwards.

        Grants that had begun when the limits were lowered do not lower them further: several of them are refused for
        one and the same reason.
        """
        self.throttled += 1
        self.allowance.lower(pause_s, now, further=claim.lowered == self.allowance.lowered)

    def move_up(self, waiter: W, urgency: Priority) -> None:
        """Have the claims of a run that wait go on in a more urgent class."""
        for less in Priority:
            if less > urgency:
                line = self._lines[less]
                for claim in [claim for claim in line.order if claim.waiter is waiter]:
                    line.leave(claim)
                    claim.urgency = urgency
                    self._lines[urgency].join(claim)

    def end(self, claim: Claim[W], now: float) -> None:
        """Give a claim back, from wherever it stands. Calling it again does nothing."""
        if claim.standing is Standing.WAITS:
            self._lines[claim.urgency].leave(claim)
            self.waiting -= 1
        elif claim.standing is Standing.HELD:
            if claim.tokens and not claim.settled:
                self.settle(claim, claim.tokens, now)
            del self.held[claim]
            self.allowance.give_back()
        claim.standing = Standing.OVER

    def respec(self, spec: PoolSpec) -> None:
        """Go on with other limits."""
        self.allowance.respec(spec)

    def reason(self, claim: Claim[W], now: float) -> str:
        """Why a claim waits, in words."""
        return self.allowance.lacks(claim.tokens, now) or "claims before it go first"

    def blockers(self, claim: Claim[W]) -> tuple[W, ...]:
        """The runs, one of which has to give something back before a claim can be granted.

        None where time brings it, or another task than that of a run's body, which goes on while the body waits. Only
        what its own needs are in the way of is seen, and not that another claim goes before it.
        """
        spec, allowance = self.spec, self.allowance
        if claim.standing is not Standing.WAITS:
            return ()
        if spec.slots is not None and allowance.held >= spec.slots:
            return _runs_of(self.held)
        if spec.tokens is not None and claim.tokens and allowance.reserved + claim.tokens > spec.tokens[0]:
            return _runs_of([one for one in self.held if one.tokens and not one.settled])
        return ()


def _runs_of(claims: Collection[Claim[W]]) -> tuple[W, ...]:
    """The runs, one of which has to go on before one of some claims is given back; none where a child task does it."""
    if not all(claim.by_body for claim in claims):
        return ()
    return tuple(dict.fromkeys(claim.waiter for claim in claims))

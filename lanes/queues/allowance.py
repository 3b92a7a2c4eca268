"""What a pool has left: its slots, and how much of its rate and its tokens is used in the stretch that ends now.

A rate is kept exactly, by the instants of the grants in the stretch: with `n` per `s` seconds, a grant comes no earlier
than `s` seconds after the `n`-th one before it. Rejected: a bucket that fills up. It lets through nearly `2 * n` in a
stretch that begins while it is full, and a provider that counts in stretches of its own refuses those.

The tokens of a grant are known when it is settled. Until then what was asked for counts; from then on what was used,
for the length of the stretch. So the tokens of all grants that were under way at any instant of a stretch are within
the limit, whether the provider counts them at the beginning of a call, at its end or meanwhile; but for what a grant
has used beyond what it had asked for: later grants wait for that.

A limit that was lowered comes back as a straight line, a function of the time alone. However low it is, one grant may
be held, begin or have tokens while no other does.
"""

from __future__ import annotations

import math
from collections import deque

from ..pool_spec import PoolSpec

LEAST = 1 / 16
"""The part of a limit to which it is lowered at most."""


class Allowance:
    """The limits of one pool, and what is used of them. No I/O and no clock: callers say what time it is.

    Invariants: `_used` is the sum of `_settled`; both deques are in order of time.
    """

    __slots__ = (
        "_begun",
        "_came_back",
        "_low",
        "_settled",
        "_used",
        "held",
        "lowered",
        "paused_until",
        "reserved",
        "spec",
    )

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.held = 0
        """Grants that are held."""
        self.reserved = 0
        """Tokens of the grants that are not settled."""
        self.paused_until = -math.inf
        """Before that, nothing is granted."""
        self.lowered = 0
        """How often the limits were lowered."""
        self._low = 1.0
        self._came_back = -math.inf
        """Until then the limits are lowered to `_low`; from then on they rise."""
        self._begun: deque[float] = deque()
        self._settled: deque[tuple[float, int]] = deque()
        self._used = 0

    def ready_at(self, tokens: int, now: float) -> float:
        """When a grant of so many tokens may come, or is to be looked at again; infinity: when another has ended."""
        spec, at = self.spec, self.paused_until
        if spec.slots is not None and (self.held >= spec.slots or self._low < 1.0):  # mostly it need not be asked
            at = max(at, self._comes_at(spec.slots, self.held, 1))
        if spec.rate is not None:
            comes_at = self._comes_at(spec.rate[0], self.begun(now), 1)
            if comes_at > now:
                at = max(at, min(comes_at, self._begun[0] + spec.rate[1]))
        if spec.tokens is not None and tokens:
            comes_at = self._comes_at(spec.tokens[0], self.tokens(now), tokens)
            if comes_at > now:
                free_at = self._settled[0][0] + spec.tokens[1] if self._settled else math.inf
                at = max(at, min(comes_at, free_at))
        return at

    def lacks(self, tokens: int, now: float) -> str:
        """What keeps a grant of so many tokens from coming now, in words; empty when nothing does."""
        spec, share = self.spec, self.share(now)
        lowered = f", lowered to {share:.0%}" if share < 1.0 else ""
        if self.paused_until > now:
            return f"paused for {self.paused_until - now:.1f} s more, as the provider asked"
        if spec.slots is not None and self._comes_at(spec.slots, self.held, 1) > now:
            return f"{self.held} of {spec.slots} slots held{lowered}"
        if spec.rate is not None and self._comes_at(spec.rate[0], self.begun(now), 1) > now:
            return f"{self.begun(now)} of {spec.rate[0]} begun in {spec.rate[1]:g} s{lowered}"
        if spec.tokens is not None and tokens and self._comes_at(spec.tokens[0], self.tokens(now), tokens) > now:
            used = f"{self.tokens(now)} of {spec.tokens[0]} tokens used in {spec.tokens[1]:g} s"
            return f"{used}, {tokens} asked for{lowered}"
        return ""

    def begun(self, now: float) -> int:
        """Grants that have begun in the stretch of the rate that ends now."""
        begun = self._begun
        if self.spec.rate is not None:
            while begun and begun[0] + self.spec.rate[1] <= now:
                begun.popleft()
        return len(begun)

    def tokens(self, now: float) -> int:
        """Tokens of the grants that are not settled, or were in the stretch of the tokens that ends now."""
        settled = self._settled
        if self.spec.tokens is not None:
            while settled and settled[0][0] + self.spec.tokens[1] <= now:
                self._used -= settled.popleft()[1]
        return self.reserved + self._used

    def share(self, now: float) -> float:
        """The part of the limits that is in force: 1 unless they were lowered."""
        if now <= self._came_back:
            return self._low
        return min(1.0, self._low + (now - self._came_back) / self.spec.recovery)

    def _comes_at(self, limit: int, used: int, more: int) -> float:
        """When the limit allows so much more: minus infinity if it does, infinity if only others' end helps."""
        needed = used + more
        if needed > limit:
            return math.inf
        if self._low >= 1.0 or used == 0 or needed <= limit * self._low:
            return -math.inf
        return self._came_back + (needed / limit - self._low) * self.spec.recovery

    def take(self, tokens: int, now: float) -> None:
        """Begin a grant."""
        self.held += 1
        self.reserved += tokens
        if self.spec.rate is not None:
            self._begun.append(now)

    def settle(self, tokens: int, used: int, now: float) -> None:
        """Count what a grant has used instead of what it has asked for."""
        self.reserved -= tokens
        if used and self.spec.tokens is not None:
            self.tokens(now)
            self._settled.append((now, used))
            self._used += used

    def give_back(self) -> None:
        """End a grant, which is settled."""
        self.held -= 1

    def lower(self, pause_s: float, now: float, *, further: bool) -> None:
        """Grant nothing for a while.

        Args:
            further: whether half of the limits is taken away, too.
        """
        self._low = self.share(now)
        if further:
            self._low = max(LEAST, self._low / 2)
            self.lowered += 1
        self.paused_until = max(self.paused_until, now + pause_s)
        self._came_back = self.paused_until

    def respec(self, spec: PoolSpec) -> None:
        """Go on with other limits, whole again. What was not counted yet counts from now on.

        A pause goes on: it is what the provider has asked for, whatever the limits are. A stretch that becomes longer
        begins with what the shorter one still had.
        """
        self.spec = spec
        self._low = 1.0
        if spec.rate is None:
            self._begun.clear()
        if spec.tokens is None:
            self._settled.clear()
            self._used = 0

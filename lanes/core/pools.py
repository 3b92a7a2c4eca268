"""Grants of pools: asked for by bodies, waited for, and given back whatever ends the run.

Which claim is next, and when the limits allow it, is what `queues.pool` and `queues.allowance` decide, without I/O.
Here is what has to follow: the event of a claim that is granted is set, and a timer looks again when time alone brings
the next grant. Each change is one synchronous method; cancelled, a wait calls the same one as a block that is left.

A run that waits for a grant keeps its slot of the group, as a run does that waits for a right. Rejected: lending it, as
a run does that waits for another run. Then a pool that is slow would have every queued run of the group started, each
with its deadline running, only to wait in the pool; now they wait in the queue, whose order and limits are known.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Any

from locks import _clock, _effects
from locks._events import log
from locks._loop import current_task, running_loop

from .. import checks
from ..body.grant import PoolGrant
from ..checks import Priority
from ..errors import InvalidLane, wrong_loop
from ..pool_spec import PoolSpec
from ..queues.pool import Claim, Pool, Standing
from ..queues.timers import Timer
from .board import Board
from .deadlock import Waits
from .execution import Execution


class Pools:
    """The grants of one scheduler. On the event loop's thread."""

    def __init__(self, board: Board, waits: Waits) -> None:
        self._board = board
        self._waits = waits
        self._timers: dict[Pool[Execution], Timer] = {}
        """What looks again at pools in which time alone brings the next grant."""

    def grant(self, execution: Execution, name: str, tokens: int | None) -> PoolGrant:
        """What a body enters.

        Raises:
            InvalidLane: there is no such pool, or it never has so many tokens.
            WrongThread: on another thread than the event loop's.
        """
        board = self._board
        if running_loop() is not board.loop:
            raise wrong_loop("pool belongs to the event loop's thread")
        given: object = name
        pool = board.pools.get(given) if isinstance(given, str) else None
        if pool is None:
            known = ", ".join(sorted(board.pools)) or "none; Supervisor(pools=[PoolSpec(...)]) defines them"
            raise InvalidLane(f"pool: {checks.shown(name)} is unknown; allowed: {known}")
        return PoolGrant(Claim(pool, execution, _tokens_of(pool.spec, tokens)), self)

    def check_thread(self, call: str) -> None:
        """Refuse a call of a grant on another thread than the event loop's.

        Raises:
            WrongThread: it is on one.
        """
        if running_loop() is not self._board.loop:
            raise wrong_loop(
                f"{call} belongs to the event loop's thread; use anyio.from_thread.run_sync(grant.{call}, …)"
            )

    def checkpoint(self) -> Awaitable[None]:
        """Let other tasks go on."""
        return self._board.checkpoint()

    @_effects.change
    def ask(self, claim: Claim[Execution]) -> bool:
        """Grant a claim at once, or have it wait; returns whether it is granted.

        Raises:
            InvalidLane: it was entered before, perhaps by another task meanwhile; or the limits were changed since it
                was made, and never allow it any more. Nothing has changed.
            RunEnded, Superseded: its run is over. Nothing has changed.
        """
        one, pool = claim.waiter, claim.pool
        if claim.standing is not Standing.NEW:  # asked here: two tasks may come out of the checkpoint before
            raise InvalidLane(
                f"pool {pool.spec.name!r}: a grant was entered twice; allowed: once, and `ctx.pool` for each call"
            )
        if claim.tokens:
            _tokens_of(pool.spec, claim.tokens)  # else it would hold up all behind it, for as long as its run lasts
        one.check_may_begin(f"granted by pool {pool.spec.name!r}")
        if one.claims is None:
            one.claims = {}
        one.claims[claim] = None
        claim.by_body = current_task() is one.fence.task
        now = _clock.clock.now()
        if pool.ask(claim, now):
            return True
        claim.event = self._board.new_event()
        pool.wait(claim, self._board.turns.most_urgent(one.file) if one.in_line and one.file else one.urgency, now)
        self._look(pool)
        return False

    async def wait(self, claim: Claim[Execution]) -> None:
        """Wait for a claim that was not granted at once. A checkpoint; cancelled or failed, nothing is held.

        Raises:
            DeadlockError: only the end of the asking run would bring it.
            RunEnded, Superseded: its run was abandoned meanwhile.
        """
        assert claim.event is not None
        asking, task = claim.waiter, None
        try:
            task = self._waits.begin_claim(asking, claim)
            await claim.event.wait()
            if claim.standing is Standing.OVER:  # its run was abandoned meanwhile: no cancellation reaches its body
                asking.check_may_begin(f"granted by pool {claim.pool.spec.name!r}")
        except BaseException:
            self.end(claim)
            raise
        finally:
            self._waits.end_claim(asking, task)

    @_effects.change
    def end(self, claim: Claim[Execution]) -> None:
        """Give a claim back, from wherever it stands. Calling it again does nothing."""
        if claim.standing is Standing.OVER:
            return
        claim.pool.end(claim, _clock.clock.now())
        if claim.event is not None:
            claim.event.set()
        if claim.waiter.claims is not None:
            claim.waiter.claims.pop(claim, None)
        self._look(claim.pool)

    def end_all(self, execution: Execution) -> None:
        """Give back what an attempt still has, or asks for, of pools: it is over. A part of a change."""
        for claim in list(execution.claims or ()):
            self.end(claim)

    @_effects.change
    def settle(self, claim: Claim[Execution], used: int) -> None:
        """Count what a grant has used."""
        claim.pool.settle(claim, used, _clock.clock.now())
        self._look(claim.pool)

    @_effects.change
    def throttle(self, claim: Claim[Execution], retry_after: float) -> None:
        """The provider has refused a call."""
        pool, now = claim.pool, _clock.clock.now()
        pool.throttle(claim, retry_after, now)
        log(
            "pool_throttled",
            level="warning",
            pool=pool.spec.name,
            run=claim.waiter.run.id,
            retry_after_s=retry_after,
            share=round(pool.allowance.share(now), 3),
        )
        self._look(pool)

    @_effects.change
    def lent(self, execution: Execution, urgency: Priority) -> None:
        """A more urgent run waits for the session of a run: what that waits for is as urgent."""
        for pool in {claim.pool for claim in execution.claims or () if claim.standing is Standing.WAITS}:
            pool.move_up(execution, urgency)
            self._look(pool)

    @_effects.change
    def look_at_all(self) -> None:
        """Grant what may be granted, in all pools."""
        for pool in self._board.pools.values():
            self._look(pool)

    @_effects.change
    def look_again(self, pool: Pool[Execution]) -> None:
        """Time has passed, or the limits are others: grant what may be granted."""
        self._look(pool)

    def _look(self, pool: Pool[Execution]) -> None:
        """Grant what may be granted, and see that a timer comes when time alone brings the next grant."""
        timers = self._board.timers
        if self._timers:
            timers.cancel(self._timers.pop(pool, None))
        if not pool.waiting:
            return
        now = _clock.clock.now()
        while True:
            claim, look_at = pool.next(now)
            if claim is None:
                break
            if claim.event is not None:
                claim.event.set()
        if look_at < math.inf:
            self._timers[pool] = timers.at(look_at, self._ring, pool)

    def _ring(self, pool: Pool[Execution]) -> None:
        self._timers.pop(pool, None)
        self._look(pool)


def _tokens_of(spec: PoolSpec, given: Any) -> int:
    """The tokens of a claim.

    Raises:
        InvalidLane: they are no whole number, more than the pool ever has, or left out where the pool has a limit.
    """
    field = f"pool {spec.name!r}, tokens"
    if given is None:
        if spec.tokens is not None:
            raise InvalidLane(f"{field}: are missing, and the pool limits them; allowed: 0 to {spec.tokens[0]}")
        return 0
    tokens = checks.whole(field, given, 0)
    if spec.tokens is not None and tokens > spec.tokens[0]:
        most, per_s = spec.tokens
        raise InvalidLane(f"{field}: {tokens} are more than the pool has in any {per_s:g} s; allowed: 0 to {most}")
    return tokens

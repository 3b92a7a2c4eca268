"""What a body is given of a pool."""

from __future__ import annotations

from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Protocol, Self

from .. import checks
from ..errors import InvalidLane
from ..queues.pool import Claim, Standing


class Granting(Protocol):
    """What a grant needs of the scheduler."""

    def checkpoint(self) -> Awaitable[None]:
        """Let other tasks go on."""

    def check_thread(self, call: str) -> None:
        """Refuse a call on another thread than the event loop's."""

    def ask(self, claim: Claim[Any]) -> bool:
        """Grant it at once, or have it wait; returns whether it is granted."""

    async def wait(self, claim: Claim[Any]) -> None:
        """Wait for one that is not. A checkpoint; cancelled or failed, nothing is held."""

    def end(self, claim: Claim[Any]) -> None:
        """Give it back."""

    def settle(self, claim: Claim[Any], used: int) -> None:
        """Count what it has used."""

    def throttle(self, claim: Claim[Any], retry_after: float) -> None:
        """The provider refuses."""


class PoolGrant:
    """One call that a pool lets through, for as long as its block lasts. Made by `RunContext.pool`, entered once.

        async with ctx.pool("anthropic", tokens=1200) as grant:
            answer = await call(...)
            grant.settle(answer.tokens)

    Entering it is a checkpoint, and waits until the pool's limits allow the call; the run keeps its slot and its turn
    meanwhile, and its deadline goes on. Cancelled, nothing is held. Leaving it is no checkpoint and gives the slot
    back, whatever ends the block; what was not settled counts as it was asked for. When the run ends, or is abandoned,
    with the block still open, its slot is given back then.

    On the event loop's thread.

    Raises on entering:
        DeadlockError: the call could only begin after this run has ended. Nothing has changed.
        InvalidLane: it was entered before.
        RunEnded, Superseded: the run has ended; nothing was granted.
    """

    __slots__ = ("_claim", "_granting")

    def __init__(self, claim: Claim[Any], granting: Granting) -> None:
        self._claim = claim
        self._granting = granting

    def __repr__(self) -> str:
        claim = self._claim
        return f"<PoolGrant of pool {claim.pool.spec.name}: {claim.standing.name.lower()}, {claim.tokens} tokens>"

    async def __aenter__(self) -> Self:
        claim, granting = self._claim, self._granting
        await granting.checkpoint()  # before it is asked for: a cancellation that is due finds nothing to give back
        if not granting.ask(claim):
            await granting.wait(claim)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._granting.end(self._claim)

    @property
    def pool(self) -> str:
        """The name of the pool."""
        return self._claim.pool.spec.name

    @property
    def tokens(self) -> int:
        """The tokens that were asked for."""
        return self._claim.tokens

    @property
    def waited_s(self) -> float:
        """Seconds that it has waited for."""
        claim = self._claim
        return max(0.0, claim.granted_at - claim.asked_at)

    def settle(self, used: int) -> None:
        """Count the tokens that were really used, from now on, instead of those that were asked for. Once.

        What was asked for and not used is free for others at once. What was used beyond that counts as well, and later
        grants wait for it. As soon as it is known is best: the tokens count until so long afterwards.

        Raises:
            InvalidLane: `used` is no whole number from 0; the grant is not held, or was settled. Nothing has changed.
            WrongThread: on another thread than the event loop's. Nothing has changed.
        """
        checks.whole(f"pool {self.pool!r}, used", used, 0)
        self._check_held("settle")
        if self._claim.settled:
            raise InvalidLane(f"pool {self.pool!r}, used: {used} comes after the grant was settled; allowed: once")
        self._granting.settle(self._claim, used)

    def throttled(self, *, retry_after: float = 1.0) -> None:
        """Report that the provider has refused the call (HTTP 429): nothing is granted for `retry_after` seconds.

        From then on half of each limit is in force, and it rises again (`PoolSpec.recovery`); at least a sixteenth, and
        one call at a time, always is. Calls that had begun before the limits were lowered do not lower them further.
        The call itself is not repeated: leave the block, and enter another one.

        Args:
            retry_after: seconds, as in the provider's `Retry-After`.

        Raises:
            InvalidLane: `retry_after` is no duration; the grant is not held. Nothing has changed.
            WrongThread: on another thread than the event loop's. Nothing has changed.
        """
        pause_s = checks.seconds(f"pool {self.pool!r}, retry_after", retry_after, zero=True)
        self._check_held("throttled")
        self._granting.throttle(self._claim, pause_s)

    def _check_held(self, call: str) -> None:
        self._granting.check_thread(call)
        standing = self._claim.standing
        if standing is not Standing.HELD:
            why = "is not entered yet" if standing in (Standing.NEW, Standing.WAITS) else "was given back"
            raise InvalidLane(f"pool {self.pool!r}, {call}: the grant {why}; allowed: within its block")

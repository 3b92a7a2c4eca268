"""Do something where an operation suspends for the k-th time, for every k, until it ends before the k-th.

Suspensions are counted where the event loop sees them, so those inside a library count, too, and their number differs
between the loops. What is done at a suspension is done just before the loop takes over, as if it came from elsewhere in
the same tick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio

MOST = 500
"""More suspensions than any operation that is swept has: past that, it never ends."""


class Suspensions:
    """Calls `act` where the operation that it runs suspends for the `k`-th time, counted from 1."""

    def __init__(self, k: int, act: Callable[[], object]) -> None:
        self.count = 0
        """How often the operation has suspended."""
        self._k = k
        self._act = act

    @property
    def acted(self) -> bool:
        """Whether `act` was called."""
        return self.count >= self._k

    async def run(self, operation: Awaitable[Any]) -> Any:
        """Await the operation and return what it returns."""
        return await Watched(operation, self._suspends)

    def _suspends(self) -> None:
        self.count += 1
        if self.count == self._k:
            self._act()


class Watched:
    """Awaits an operation, and reports where it suspends, and what the event loop raises in it.

    Args:
        suspends: called just before the event loop takes over.
        thrown: called with what the event loop raises where the operation has suspended.
    """

    def __init__(
        self,
        operation: Awaitable[Any],
        suspends: Callable[[], object],
        thrown: Callable[[BaseException], object] = bool,
    ) -> None:
        self._operation = operation
        self._suspends = suspends
        self._thrown = thrown

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._operation.__await__()
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                asked = _go_on(inner, value, error)
            except StopIteration as stop:
                return stop.value
            value = error = None
            self._suspends()
            try:
                value = yield asked
            except BaseException as raised:
                error = raised
            # trio sends what is to be raised, and raises it inside.
            raising = getattr(value, "error", None) if error is None else error
            if isinstance(raising, BaseException):
                self._thrown(raising)


def _go_on(inner: Any, value: Any, error: BaseException | None) -> Any:
    if error is not None:
        return inner.throw(error)
    return next(inner) if value is None else inner.send(value)


async def sweep(
    operation: Callable[[], Awaitable[Any]],
    check: Callable[[int], Awaitable[Any]],
    *,
    least: int = 1,
    prepare: Callable[[], Awaitable[Any]] | None = None,
) -> int:
    """Cancel `operation()` at its k-th suspension, for every k; call `check(k)` after each and the uncancelled one.

    Each run is prepared by `prepare()`. Returns the number of suspensions; fails if it is less than `least`, because
    then the sweep has shown less than its author believed.
    """
    for k in range(1, MOST):
        if prepare is not None:
            await prepare()
        with anyio.CancelScope() as scope:
            driver = Suspensions(k, scope.cancel)
            await driver.run(operation())
        await check(k)
        if not driver.acted:
            assert k > least, f"only {k - 1} suspensions; expected {least} at least"
            return k - 1
    raise AssertionError(f"it has not ended after {MOST} suspensions")

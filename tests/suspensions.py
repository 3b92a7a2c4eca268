"""Suite C1: do something where an operation suspends for the k-th time, for every k, until it ends without getting there.

Suspensions are counted where the event loop sees them, so those inside a library count, too, and their number differs
between the loops. `sweep` runs an operation once per suspension, cancelling it there, and looks afterwards:

    await sweep(lambda: registry.append(path, record), check=nothing_is_left)

What is done at a suspension is done just before the loop takes over, as if it came from elsewhere in the same tick.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from typing import Any

import anyio

MOST = 500
"""More suspensions than any operation that is swept has: past that, `k` is not reached because it never ends."""


class At:
    """An awaitable that awaits another one and calls `then` where that suspends for the `k`-th time, counted from 1."""

    def __init__(self, operation: Awaitable[Any], k: int, then: Callable[[], object]) -> None:
        self._operation = operation
        self._k = k
        self._then = then
        self.suspended = 0
        """How often it has suspended."""

    @property
    def reached(self) -> bool:
        """Whether `then` was called."""
        return self.suspended >= self._k

    def __await__(self) -> Generator[Any, Any, Any]:
        inner = self._operation.__await__()
        send: Callable[[], Any] = lambda: next(inner)  # noqa: E731 -- it is replaced below
        while True:
            try:
                asked = send()
            except StopIteration as stop:
                return stop.value
            self.suspended += 1
            if self.suspended == self._k:
                self._then()
            try:
                value = yield asked
            except BaseException as error:  # noqa: BLE001 -- passed on as it is
                send = _thrower(inner, error)
            else:
                send = _sender(inner, value)


def _sender(inner: Generator[Any, Any, Any], value: Any) -> Callable[[], Any]:
    return lambda: inner.send(value)


def _thrower(inner: Generator[Any, Any, Any], error: BaseException) -> Callable[[], Any]:
    return lambda: inner.throw(error)


async def sweep(
    operation: Callable[[], Awaitable[Any]],
    check: Callable[[int], Awaitable[Any]],
    *,
    least: int = 1,
    prepare: Callable[[], Awaitable[Any]] | None = None,
) -> int:
    """Cancel `operation()` at its k-th suspension, for every k; call `check(k)` after each, the uncancelled one included.

    Each run is prepared by `prepare()`. Returns the number of suspensions; fails if it is less than `least`, because
    then the sweep has shown less than its author believed.
    """
    for k in range(1, MOST):
        if prepare is not None:
            await prepare()
        with anyio.CancelScope() as scope:
            at = At(operation(), k, scope.cancel)
            await at
        await check(k)
        if not at.reached:
            assert k > least, f"only {k - 1} suspensions; expected {least} at least"
            return k - 1
    raise AssertionError(f"it has not ended after {MOST} suspensions")

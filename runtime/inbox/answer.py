"""A report of a store that a task waits for."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import anyio

_T = TypeVar("_T")


class Answer(Generic[_T]):
    """A report that a task waits for. The first one stands: what is said later, when a store ends, is no answer."""

    def __init__(self) -> None:
        self._came = anyio.Event()
        self._error: BaseException | None = None
        self._result: Any = None

    def __call__(self, result: Any, error: BaseException | None) -> None:
        if self._came.is_set():
            return
        self._result, self._error = result, error
        self._came.set()

    async def wait(self) -> _T:
        """Wait for it. A checkpoint; cancelled, the step is done all the same."""
        await self._came.wait()
        if self._error is not None:
            raise self._error
        result: _T = self._result
        return result

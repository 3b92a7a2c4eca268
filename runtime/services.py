"""One generation of services: entered in order before work is accepted, left in reverse order when it has ended.

`restart` and `ending` decide when a generation is left, and what a service that does not end means.

They live in a background task of their own, because an async context manager must be left in the task in which it was
entered, and a supervisor may be started and stopped in different tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any

import anyio

from locks._events import described, log

from .background import Background

ServiceFactory = Callable[[], AbstractAsyncContextManager[Any]]


class ServicesStuck(RuntimeError):
    """A service did not start, or did not leave, within its time, not even when it was cancelled."""


class Services:
    """The services of one generation."""

    def __init__(self, factories: dict[str, ServiceFactory]) -> None:
        self._factories = factories
        self.made: dict[str, Any] = {}
        """What the services gave, by name; complete when `enter` has returned."""
        self.name = ""
        """Of the background task."""
        self._task = Background()
        self._ready, self._leave = anyio.Event(), anyio.Event()
        self._life: anyio.CancelScope | None = None
        self._at = ""
        """The service that is being entered, for the error."""

    def again(self) -> Services:
        """The services of the next generation, which are not entered yet."""
        return Services(self._factories)

    def _cancel(self) -> None:
        if self._life is not None:
            self._life.cancel()

    async def enter(self, name: str, timeout: float) -> None:
        """Enter them all. A checkpoint; cancelled or failed, those that were entered are left again.

        Args:
            name: of the background task.
            timeout: seconds that this may take.

        Raises:
            Exception: what a service raised; a note says which one.
            ServicesStuck: it took too long.
        """
        self.name = name
        self._life = anyio.CancelScope()  # not earlier: a supervisor may be made before any event loop runs
        self._task.start(self._serve, name, ready=self._ready)
        try:
            with anyio.move_on_after(timeout):
                await self._ready.wait()
            if not self._ready.is_set():
                log("service_failed", level="error", service=self._at, error=f"not started within {timeout:g} s")
                raise ServicesStuck(
                    f"service {self._at!r} did not start within {timeout:g} s (services_timeout): admission is closed"
                )
            self._raise_failure()
            if self._task.over.is_set():  # without an error of its own: it was cancelled from outside, or by itself
                log("service_failed", level="error", service=self._at, error="cancelled while it started")
                raise ServicesStuck(f"service {self._at!r} was cancelled while it started: admission is closed")
        except BaseException:
            self._cancel()
            await self.leave(timeout)
            raise

    async def leave(self, timeout: float) -> bool:
        """Leave them in reverse order; not interrupted by cancellation. A checkpoint.

        Args:
            timeout: seconds that this may take; after it they are cancelled, and have as much again.

        Returns:
            Whether they have left; if not, what hangs goes on in the background.
        """
        self._leave.set()
        if not self._task.started:
            return True
        with anyio.CancelScope(shield=True):
            for _ in range(2):
                with anyio.move_on_after(timeout):
                    await self._task.over.wait()
                if self._task.over.is_set():
                    return True
                self._cancel()
        log("services_stuck", level="error", waited_s=2 * timeout)
        return False

    @property
    def error(self) -> BaseException | None:
        """What a service raised on entering or leaving."""
        error = self._task.error
        return None if error is None or isinstance(error, anyio.get_cancelled_exc_class()) else error

    def _raise_failure(self) -> None:
        if (error := self.error) is not None:
            raise error

    async def _serve(self) -> None:
        """A background task: enter, wait, leave."""
        life = self._life
        assert life is not None
        try:
            with life:
                async with AsyncExitStack() as stack:
                    for name, factory in self._factories.items():
                        self._at = name
                        try:
                            self.made[name] = await stack.enter_async_context(factory())
                        except Exception as error:
                            error.add_note(f"service {name!r} failed to start; admission stays closed")
                            log("service_failed", level="error", service=name, error=described(error))
                            raise
                    self._ready.set()
                    await self._leave.wait()
        except Exception as error:
            if self._ready.is_set() and not self._leave.is_set():  # a task group of a service has ended this task
                log("service_failed", level="error", service="", error=f"while it was used: {described(error)}")
            raise
        except anyio.get_cancelled_exc_class():
            if self._ready.is_set() and not self._leave.is_set():
                log("service_failed", level="error", service="", error="cancelled from outside while they were used")
            raise

"""A health check, asked again and again from outside of the loop: a frozen loop shows as an answer that is late."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import anyio
from anyio import to_thread

from lanes import Draining, RunContext
from lanes.errors import LaneError
from lanes.spec import CONTROL
from runtime.supervisor import Supervisor

EVERY_S = 0.1
_PATIENCE_S = 30.0

Answered = Callable[[float, str], object]


class Probe:
    """Asks as a health endpoint would: a run on the lane that waits behind nothing looks at the statistics.

    Args:
        answered: called on a thread of the probe's own with the seconds that an answer took and what it was: `ok`,
            `draining`, or `none` when it did not come.
    """

    def __init__(self, sup: Supervisor, answered: Answered) -> None:
        self._sup, self._answered = sup, answered
        self._stop = threading.Event()

    async def serve(self) -> None:
        """Ask until cancelled; the thread has ended then. A checkpoint."""
        thread = threading.Thread(target=self._ask_on, name="lanes-probe", daemon=True)
        thread.start()
        try:
            await anyio.sleep_forever()
        finally:
            self._stop.set()
            with anyio.CancelScope(shield=True):
                await to_thread.run_sync(thread.join)

    def _ask_on(self) -> None:
        due = time.monotonic()
        while not self._stop.wait(max(0.0, due - time.monotonic())):
            began = time.monotonic()
            answer = self._ask()
            if not self._stop.is_set():  # what is asked of a supervisor that has stopped is no finding
                self._answered(time.monotonic() - began, answer)
            due = max(due + EVERY_S, time.monotonic())

    def _ask(self) -> str:
        try:
            run = self._sup.submit_threadsafe(CONTROL, self._look)
            run.result_sync(_PATIENCE_S)
        except Draining:
            return "draining"
        except (LaneError, TimeoutError):
            return "none"
        return "ok"

    async def _look(self, ctx: RunContext) -> bool:  # noqa: ARG002 -- the shape of a body
        return self._sup.statistics().healthy

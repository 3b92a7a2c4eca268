"""SIGUSR1 under `lanes run`: the next generation in this process, or the end of it where only a new one helps."""

from __future__ import annotations

import anyio

from lanes import Draining
from locks import _clock
from locks._events import described, log
from runtime.supervisor import Supervisor
from runtime.zombies import AbandonedBodies

from .report import Result


class Restarting:
    """Restarts one supervisor when it is asked to, one restart at a time. On the event loop's thread.

    Args:
        result: what came of it is noted there.
        leave: called when the process has to be replaced: bodies that ignored their cancellation cannot be taken along.
    """

    def __init__(self, sup: Supervisor, result: Result, leave: anyio.CancelScope) -> None:
        self._sup, self._result, self._leave = sup, result, leave
        self._asked = anyio.Event()
        self._life = anyio.CancelScope()
        self._over = anyio.Event()
        self._serving = False

    def ask(self) -> None:
        """Begin a restart soon, unless one is under way. Returns at once."""
        log("restart_requested", reason="SIGUSR1")
        self._asked.set()

    async def serve(self) -> None:
        """Restart whenever asked, until `give_up`, or until the process has to be replaced. A checkpoint."""
        self._serving = True
        try:
            with self._life:
                while not self._result.new_process:
                    await self._asked.wait()
                    await self._restart()
                    self._asked = anyio.Event()
        finally:
            self._over.set()

    async def give_up(self) -> None:
        """Restart no more. A restart that is past taking back is waited for. A checkpoint."""
        self._life.cancel()
        if self._serving:
            with anyio.CancelScope(shield=True):
                await self._over.wait()

    async def _restart(self) -> None:
        began = _clock.clock.now()
        try:
            await self._sup.restart()
        except AbandonedBodies:
            self._result.new_process = True
            self._leave.cancel()
        except Draining as error:
            log("signal_ignored", signal="SIGUSR1", reason=str(error))
        except Exception as error:
            # The supervisor has ended by itself, and raises it where its block is left.
            log("harness_failed", level="error", error=described(error))
        else:
            took_s = _clock.clock.now() - began
            self._result.restarts_s.append(took_s)
            if self._result.on_restart is not None:
                self._result.on_restart(took_s)

"""Abandoned bodies at the end of a supervisor (`on_zombie`): an error, or the end of the process with its exit code."""

from __future__ import annotations

from typing import Literal

from lanes import Run

from .watch.watchdog import Watchdog

OnZombie = Literal["raise", "exit"]


class AbandonedBodies(RuntimeError):
    """A supervisor came to rest, but bodies that ignored their cancellation still run. They are fenced."""

    def __init__(self, runs: tuple[Run, ...]) -> None:
        super().__init__(f"{len(runs)} abandoned: " + "; ".join(repr(run) for run in runs[:10]))
        self.runs = runs

    def __reduce__(self) -> tuple[type[AbandonedBodies], tuple[tuple[Run, ...]]]:
        return type(self), (self.runs,)


class Exits:
    """Ends the process where nothing else helps; with `on_zombie="raise"`, does nothing.

    Args:
        exits: whether `on_zombie` is `"exit"`.
    """

    def __init__(self, watchdog: Watchdog, exits: bool) -> None:
        self.wanted = exits
        self._watchdog = watchdog

    def limit(self, at: float, code: int, why: str) -> None:
        """End the process at an instant, if it is still there then; `math.inf` takes that back."""
        if self.wanted:
            self._watchdog.exit_by(at, code, why)

    def for_runs(self, zombies: tuple[Run, ...], code: int) -> None:
        """End the process because the bodies of some runs ignore their cancellation."""
        self.now(code, f"{len(zombies)} bodies ignore their cancellation: " + "; ".join(map(repr, zombies[:10])))

    def now(self, code: int, why: str) -> None:
        """End the process at once."""
        if self.wanted:
            self._watchdog.end_process(code, why)

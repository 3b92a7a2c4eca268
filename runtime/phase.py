"""Where a supervisor stands: the phases of its life, the legal moves between them, and what its parts share of it."""

from __future__ import annotations

from enum import Enum, auto
from typing import Literal

import anyio

from locks._loop import Post

from .services import Services

State = Literal["new", "running", "draining", "restarting", "stopped"]


class Phase(Enum):
    """Where a supervisor stands."""

    NEW = auto()
    STARTING = auto()
    """Services are being entered; admission is closed."""
    RUNNING = auto()
    DRAINING = auto()
    """Only children of running runs are started. A restart that is past taking back may be under way."""
    RESTARTING = auto()
    """As DRAINING; admission opens again when the restart is through or given up."""
    STOPPING = auto()
    """The end has begun, and nothing opens admission again."""
    STOPPED = auto()


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.NEW: frozenset({Phase.STARTING, Phase.STOPPED}),
    Phase.STARTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED}),
    Phase.RUNNING: frozenset({Phase.DRAINING, Phase.RESTARTING, Phase.STOPPING, Phase.STOPPED}),
    Phase.DRAINING: frozenset({Phase.RESTARTING, Phase.STOPPING, Phase.STOPPED}),
    Phase.RESTARTING: frozenset({Phase.RUNNING, Phase.DRAINING, Phase.STOPPING, Phase.STOPPED}),
    Phase.STOPPING: frozenset({Phase.STOPPED}),
    Phase.STOPPED: frozenset(),
}
"""From each phase, those that may follow. STOPPED follows without STOPPING where a start fails, where the lanes end by
themselves, and where the event loop is gone."""
STATES: dict[Phase, State] = {
    Phase.NEW: "new",
    Phase.STARTING: "running",
    Phase.RUNNING: "running",
    Phase.DRAINING: "draining",
    Phase.RESTARTING: "restarting",
    Phase.STOPPING: "draining",
    Phase.STOPPED: "stopped",
}
"""What users see of them."""


class Standing:
    """Where one supervisor stands, for the parts that start, restart and end it. On the event loop's thread."""

    def __init__(self, services: Services, services_timeout: float) -> None:
        self.phase = Phase.NEW
        """Changed by `move` alone."""
        self.generation = 0
        """Counts the restarts in this process, from 1 for the first start."""
        self.services = services
        """Those of the present generation."""
        self.services_timeout = services_timeout
        """Seconds that they get to be entered, and to leave; twice that, when they have to be cancelled."""
        self.to_loop: Post | None = None
        """Calls a function on the event loop, from any thread; `None` before the start."""
        self.stop_asked = anyio.Event()
        """Set once the code that uses the supervisor should end: a signal has come, or the supervisor has failed."""
        self.block: anyio.CancelScope | None = None
        """Around the body of the `async with` block, while that runs."""
        self.failure: BaseException | None = None
        """Why the supervisor has ended by itself, to be raised where its block is left, or by `stop`."""

    def is_in(self, *phases: Phase) -> bool:
        """Whether it stands in one of these."""
        return self.phase in phases

    def move(self, phase: Phase) -> None:
        """Enter a phase; to enter the present one again changes nothing."""
        assert phase is self.phase or phase in MOVES[self.phase], f"a supervisor moved from {self.phase} to {phase}"
        self.phase = phase

    def end_use(self) -> None:
        """Have the code that uses the supervisor go no further: its block is cancelled, `stop_requested` returns."""
        self.stop_asked.set()
        if self.block is not None:
            self.block.cancel()

    def take_failure(self) -> BaseException | None:
        """The failure, which the caller raises: it is raised once."""
        failure, self.failure = self.failure, None
        return failure

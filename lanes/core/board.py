"""What a scheduler holds, and how to look at it.

The scheduler is one object in four layers, each a file with one subject: what it holds (here), how work starts
(`starting`), what is said to a run that is under way (`steering`), and how it ends or is tried again (`finishing`).
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from itertools import count
from typing import TYPE_CHECKING, Any

import anyio

from locks import Fence, LeaseLost, LockRegistry

from ..layout import SessionLayout
from ..queues.groups import Group
from ..queues.lane import Lane
from ..queues.throttle import Pace
from ..queues.timers import Timer, Timers
from ..queues.turns import Turns
from ..run import Run, RunState
from ..spec_table import SpecTable
from .execution import Execution
from .history import History
from .hooks import Hooks
from .loop_lag import Lateness, Unwatched
from .outcomes import Raised
from .task_host import TaskHost

if TYPE_CHECKING:
    from .deadlock import Waits
    from .intake import Intake


def _ignored(_error: BaseException | None, _raised: bool) -> None:
    """Nobody wants to know."""


class State(ABC):
    """Lanes, groups, turns and runs. To be used on the event loop's thread."""

    intake: Intake
    waits: Waits

    def __init__(
        self,
        specs: SpecTable,
        registry: LockRegistry,
        layout: SessionLayout,
        *,
        keep_outcomes: int = 1000,
        hooks: Hooks | None = None,
    ) -> None:
        self.specs = specs
        self.registry = registry
        self.layout = layout
        self.services: Mapping[str, Any] = {}
        self.new_scope: Callable[..., anyio.CancelScope] = anyio.CancelScope
        self.new_event: Callable[[], anyio.Event] = anyio.Event
        self.accepting = False
        """Whether work is taken from outside."""
        self.starting = False
        """Whether queued work is started. While it is not, children of running runs are."""
        self.lanes: dict[str, Lane] = {}
        self.groups = {name: Group(spec) for name, spec in specs.groups.items()}
        self.turns = Turns()
        self.live: dict[int, Execution] = {}
        self.bodies: dict[Execution, None] = {}
        """Those that hold a place, in the order in which they started."""
        self.history = History(keep_outcomes)
        self.abandoned: dict[Execution, tuple[float, str]] = {}
        """Bodies that ignored their cancellation and still run: since when, and where they stood then."""
        self.scope_ends = math.inf
        """When the scope that the supervisor lives in ends, on the loop's clock: not a limit of any body's own."""
        self.late_writes_refused = 0
        self.late_events_dropped = 0
        self._refusals = threading.Lock()
        self.timers = Timers()
        self.lateness: Lateness = Unwatched()
        self.pace = Pace()
        self.hooks = hooks or Hooks(None, None, None)
        self.tasks: TaskHost | None = None
        """Where bodies are started; there while `serve` runs."""
        self._task: Any = None
        """The task of `serve`."""
        self.on_failure: Callable[[BaseException | None, bool], object] = _ignored
        """Told when the scheduler ends everything by itself: for what, `None` for a cancellation from outside, and
        whether that is raised out of the loop anyway."""
        self._to_admit: dict[Group, None] = {}
        """Groups in which something may start."""
        self._admitting = False
        self._paced: dict[Group, Timer] = {}
        """Groups that a timer will look at again, since admission is slowed."""
        self._calm: anyio.Event | None = None
        self._gone: anyio.Event | None = None
        self._front_ranks = count(-1, -1)

    @property
    def serving(self) -> bool:
        """Whether anything can start."""
        return self.tasks is not None

    def find(self, run_id: int) -> Run | None:
        """A live run, or one that is over and still kept."""
        execution = self.live.get(run_id)
        return execution.run if execution is not None else self.history.find(run_id)

    def running(self) -> list[Execution]:
        """The executions whose bodies run and are not abandoned."""
        return list(self.bodies)

    def is_calm(self) -> bool:
        """Whether no body runs that is not abandoned."""
        return not self.bodies

    async def calm(self) -> None:
        """Wait until no body runs that is not abandoned. A checkpoint."""
        while not self.is_calm():
            if self._calm is None:
                self._calm = anyio.Event()
            await self._calm.wait()
        await anyio.lowlevel.checkpoint()

    async def gone(self) -> None:
        """Wait until no abandoned body runs any more. A checkpoint."""
        while self.abandoned:
            if self._gone is None:
                self._gone = anyio.Event()
            await self._gone.wait()
        await anyio.lowlevel.checkpoint()

    def _settle(self) -> None:
        if self._calm is not None and self.is_calm():
            self._calm.set()
            self._calm = None

    def new_fence(self, lane: str, run_id: int) -> Fence:
        """A run's permission to write."""
        return Fence(lane=lane, run_id=run_id, on_refused=self._refused, scope_ends=self.scope_ends)

    def _refused(self) -> None:
        with self._refusals:  # late writes come from threads
            self.late_writes_refused += 1

    # What starting needs of ending

    @abstractmethod
    def _finish(
        self,
        execution: Execution,
        state: RunState,
        reason: str,
        *,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """End a run, in whatever state it was, and let its successors go on."""

    @abstractmethod
    def body_ended(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        """Turn what the body did into the run's outcome, or into its next attempt."""

    @abstractmethod
    def _queue_timeout(self, execution: Execution) -> None:
        """A run has waited for as long as it may."""

    @abstractmethod
    def _deadline(self, execution: Execution) -> None:
        """The deadline of a run has come, unless `progress()` has moved it."""

    @abstractmethod
    def _body_died(self, execution: Execution, error: BaseException | None) -> None:
        """The task of a body has ended."""

    @abstractmethod
    def _wait_died(self, execution: Execution, scope: anyio.CancelScope, error: BaseException | None) -> None:
        """The task that waits for another process's turn has ended."""

    @abstractmethod
    def _turn_lost(self, execution: Execution, error: LeaseLost) -> None:
        """The session was taken from a run."""

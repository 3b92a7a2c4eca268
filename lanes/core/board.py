"""What a scheduler holds, and questions that are answered from it. Nothing here starts, ends or changes a run."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from locks import Fence, LockRegistry
from locks._loop import Signal

from ..body.session import Sessions
from ..layout import Layout, is_own_name
from ..queues.groups import Group
from ..queues.lane import Lane
from ..queues.pool import Pool
from ..queues.throttle import Throttle
from ..queues.timers import Timers
from ..queues.turns import Turns
from ..run import Run
from ..spec_table import SpecTable
from .execution import Execution
from .history import History
from .hooks import Hooks
from .journal import Journal
from .loop_lag import Lateness, Unwatched
from .ownership import Ownership
from .phase import OVER
from .task_host import TaskHost


def _ignored(_error: BaseException | None, _raised: bool) -> None:
    """Nothing is to be done."""


class Board:
    """Lanes, groups, pools, turns and runs. Only the scheduler changes it. To be used on the event loop's thread."""

    def __init__(
        self,
        specs: SpecTable,
        registry: LockRegistry,
        layout: Layout,
        *,
        keep_outcomes: int = 1000,
        hooks: Hooks | None = None,
    ) -> None:
        self.specs = specs
        self.registry = registry
        if layout.is_own:
            registry.leave_out(os.path.dirname(os.path.join(layout.root, "name")), is_own_name)
        self.layout = layout
        self.services: Mapping[str, Any] = {}
        self.new_scope: Callable[..., anyio.CancelScope] = anyio.CancelScope
        self.new_event: Callable[[], Signal] = anyio.Event
        self.checkpoint: Callable[[], Awaitable[None]] = checkpoint
        self.accepting = False
        """Whether work is taken from outside."""
        self.starting = False
        """Whether queued work is started. While it is not, children of running runs are."""
        self.lanes: dict[str, Lane[Execution]] = {}
        self.groups: dict[str, Group[Execution]] = {name: Group(spec) for name, spec in specs.groups.items()}
        self.pools: dict[str, Pool[Execution]] = {name: Pool(spec) for name, spec in specs.pools.items()}
        self.turns: Turns[Execution] = Turns()
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
        self.throttle = Throttle()
        self.hooks = hooks or Hooks(None, None, None)
        self.journal: Journal | None = None
        """What keeps messages on disk, where there is an inbox."""
        self.ownership: Ownership | None = None
        """Which sessions this process conducts, where they are in a store that other machines share."""
        self.sessions: Sessions = registry
        """Where transcripts are read and written."""
        self.tasks: TaskHost | None = None
        """Where bodies are started; there while `serve` runs."""
        self.task: Any = None
        """The task of `serve`."""
        self.loop: object = None
        """The event loop that serves; on a thread of its own, or sharing one as host or guest."""
        self.on_failure: Callable[[BaseException | None, bool], object] = _ignored
        """Called when the scheduler ends everything by itself: for what, `None` for a cancellation from outside, and
        whether that is raised out of the loop anyway."""
        self._idle: anyio.Event | None = None
        self._none_abandoned: anyio.Event | None = None

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

    def may_start(self, execution: Execution) -> bool:
        """Whether a run may be started at all: draining starts nothing but children of what runs."""
        return self.starting or (execution.parent is not None and execution.parent.phase not in OVER)

    def is_idle(self) -> bool:
        """Whether no body runs that is not abandoned."""
        return not self.bodies

    async def wait_idle(self) -> None:
        """Wait until no body runs that is not abandoned. A checkpoint."""
        while self.bodies:
            if self._idle is None:
                self._idle = anyio.Event()
            await self._idle.wait()
        await anyio.lowlevel.checkpoint()

    async def wait_abandoned(self) -> None:
        """Wait until no abandoned body runs any more. A checkpoint."""
        while self.abandoned:
            if self._none_abandoned is None:
                self._none_abandoned = anyio.Event()
            await self._none_abandoned.wait()
        await anyio.lowlevel.checkpoint()

    def wake_waiters(self) -> None:
        """End the waits for a state that has come; to be called when a body has left."""
        if self._idle is not None and not self.bodies:
            self._idle.set()
            self._idle = None
        if self._none_abandoned is not None and not self.abandoned:
            self._none_abandoned.set()
            self._none_abandoned = None

    def new_fence(self, lane: str, run_id: int) -> Fence:
        """A run's permission to write."""
        return Fence(lane=lane, run_id=run_id, on_refused=self._refused, scope_ends=self.scope_ends)

    def _refused(self) -> None:
        with self._refusals:  # late writes come from threads
            self.late_writes_refused += 1

"""What an execution needs of its scheduler, stated from the side of the execution.

`Scheduler` implements it. `execution` imports this module, so the class of executions is a type parameter here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Unpack

import anyio

from locks import LeaseLost, LockRegistry
from locks._loop import Signal

from ..body.grant import PoolGrant
from ..body.session import Sessions
from ..layout import Layout
from ..queues.groups import Group
from ..queues.throttle import Throttle
from ..queues.turns import Turns
from ..queues.waiter import W
from ..run import Body, Options, Run, RunState
from .journal import Journal
from .ownership import Ownership
from .raised import Raised
from .task_host import TaskHost


class World(Protocol[W]):
    """What an execution, its body and `needs` read of the board."""

    registry: LockRegistry
    tasks: TaskHost | None
    starting: bool
    """Whether queued work is started."""
    groups: dict[str, Group[W]]
    turns: Turns[W]
    throttle: Throttle
    journal: Journal | None
    ownership: Ownership | None
    sessions: Sessions
    services: Mapping[str, Any]
    layout: Layout
    loop: object
    new_scope: Callable[..., anyio.CancelScope]
    """Makes a cancel scope on the running loop."""
    new_event: Callable[[], Signal]
    late_events_dropped: int

    def may_start(self, execution: W) -> bool:
        """Whether it may be started at all."""


class Owner(Protocol[W]):
    """What an execution reports to: its scheduler."""

    @property
    def board(self) -> World[W]:
        """What its scheduler holds."""

    def submit(
        self,
        lane: str,
        body: Body,
        args: tuple[Any, ...],
        *,
        bound_to: W | None = None,
        **options: Unpack[Options],
    ) -> Run:
        """Queue a piece of work; see `Intake.submit`."""

    def end(self, execution: W, state: RunState, reason: str) -> bool:
        """End a queued or running execution for the given cause; returns whether this is the cause now."""

    def finish(
        self,
        execution: W,
        state: RunState,
        reason: str,
        *,
        value: Any = None,
        raised: Raised | None = None,
    ) -> None:
        """Give it its outcome, now."""

    def park_if_failed(self, execution: W, state: RunState) -> None:
        """Keep its work, if it ends in a way that its lane would have tried again."""

    def queue_timeout(self, execution: W) -> None:
        """It has waited for as long as it may."""

    def deadline_came(self, execution: W) -> None:
        """Its deadline has come, unless `progress()` has moved it."""

    def turn_lost(self, execution: W, error: LeaseLost) -> None:
        """Its session was taken from it."""

    def body_ended(self, execution: W, value: Any, error: BaseException | None) -> None:
        """Its body has returned or raised."""

    def body_died(self, execution: W, error: BaseException | None) -> None:
        """The task of its body has ended."""

    def wait_died(self, execution: W, scope: anyio.CancelScope, error: BaseException | None) -> None:
        """The task that waits for another process's turn has ended."""

    def interrupted(self, by: W, error: KeyboardInterrupt) -> bool:
        """The process is to end: end everything else; returns whether to raise that out of the loop."""

    def message_read(self, execution: W, taken: W) -> None:
        """Its body has read a message that was handed to it."""

    def extend(self, execution: W, seconds: float, reason: str) -> None:
        """Move its hard deadline, within what its lane allows."""

    def pool(self, execution: W, name: str, tokens: int | None) -> PoolGrant:
        """A grant of a pool; see `Pools.grant`."""

    async def wait_for(self, asking: W, run: Run, ended: Signal) -> None:
        """Wait for a run on behalf of another one; see `Waits.wait`."""

"""A request for work: the checked arguments of a `post` or `submit`, from which `intake` makes a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..checks import Priority
from ..message import Message, answer_in
from ..queues.lane import Lane
from ..run import Body, Run
from ..spec import LaneSpec
from .execution import Execution
from .history import DedupeKey


@dataclass(slots=True)
class Request:
    """Work that is asked for, checked."""

    lane: Lane[Execution]
    spec: LaneSpec
    """The lane's."""
    session: str | None
    session_file: str | None
    """That session's transcript."""
    file: str | None
    """The transcript whose turn it needs."""
    timeout: float
    urgency: Priority
    body: Body
    args: tuple[Any, ...] = ()
    messages: list[Message] | None = None
    key: DedupeKey | None = None
    digest: bytes = b""
    """Of the message's body, if it has a key."""
    parent: Run | None = None
    bound_to: Execution | None = None
    """The run that it ends with."""
    goes_first: bool = False
    goes_next: bool = False
    """Whether it is put before what waits in its session."""
    beyond_limit: bool = False
    """Whether it is taken on a full lane, too: a run that was cut off had its slot, and comes back."""
    waited_s: float = 0.0
    """Seconds that it has waited before: in a process that is gone."""
    attempt: int = 1
    """Which attempt at it this is."""
    same_route: set[Execution] = field(default_factory=set)
    """Runs whose messages have a route that equals this one's."""

    def shares_route(self, one: Execution) -> bool:
        """Whether a run's answer goes where this one's would."""
        return one.route is self.route or one in self.same_route

    @property
    def debounce(self) -> float:
        """Seconds for which it waits for more to be answered with it: an answer, which is alone in its run, for none.

        Ask the spec first: on most lanes no message waits, and this is a call for each that is posted.
        """
        return 0.0 if self.messages is None or answer_in(self.messages) else self.spec.debounce

    @property
    def route(self) -> Any:
        """Where the answer goes."""
        return self.messages[0].route if self.messages else None

    def conducts(self) -> bool:
        """Whether it conducts the session that it names, if it names one: a mere note interrupts no run."""
        return self.session is None or self.file is not None

    def is_below(self, one: Execution) -> bool:
        """Whether it comes from a child, at whatever depth, of that run, with which it would end."""
        above = self.bound_to
        while above is not None and above is not one:
            above = above.parent
        return above is not None

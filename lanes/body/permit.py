"""What a body's context needs of the scheduler, stated from the side of the body."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, Unpack

from locks import Fence

from ..asking import NewQuestion, Question
from ..run import Body, Options, Run
from .grant import PoolGrant
from .inbox import Inbox
from .session import Session


class Permit(Protocol):
    """One attempt at a run, as its body may use it. Each further attempt has another one."""

    run: Run
    fence: Fence
    """Its permission to write."""
    killers: set[Callable[[], None]] | None
    """What ends the processes that it runs."""

    @property
    def inbox(self) -> Inbox: ...
    @property
    def ending(self) -> bool: ...
    def is_over(self) -> bool:
        """Whether it has an outcome, or another attempt has taken its place."""

    def grace_left(self) -> float:
        """Seconds that a clean-up may take from now."""

    def check_may_begin(self, what: str) -> None:
        """Raise unless it may still begin something."""

    def progress(self) -> None: ...
    def may_extend(self, seconds: float, reason: str) -> None:
        """Move its hard deadline, if its lane allows that."""

    def emit(self, event: Any) -> None: ...
    def session(self, key: str) -> Session: ...
    def pool(self, name: str, tokens: int | None) -> PoolGrant:
        """A grant of a pool, to be entered."""

    def message_ids(self) -> list[int]:
        """The ids of the messages that it answers and that an inbox keeps."""

    async def finish(self, session: Session, record: Mapping[str, Any], result: Any) -> None:
        """Append the answer to its messages, and keep that they are answered. A checkpoint."""

    async def ask(self, new: NewQuestion) -> Question:
        """Keep a question to a person."""

    def submit(self, lane: str, fn: Body, args: tuple[Any, ...], *, detached: bool, **options: Unpack[Options]) -> Run:
        """Queue a child of its run, or a run that goes on by itself."""

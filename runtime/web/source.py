"""Where the pages get what they show: a supervisor in this process, or one in another process, through its socket."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import anyio

from ..status import protocol
from ..status.client import Client, NoAnswer, NoProcess, locate, successor
from ..status.handlers import Handlers
from ..threads import Threads

if TYPE_CHECKING:
    from ..supervisor import Supervisor

_MOST_AT_A_TIME = 8


class Unreachable(Exception):
    """Nothing answers. The message is one line."""


class Source(Protocol):
    """Answers the questions of the status socket."""

    async def ask(self, question: protocol.Question, by: str) -> protocol.Answer:
        """Answer. A checkpoint.

        Args:
            by: who asks, for the log of what is done.

        Raises:
            Unreachable: nothing answers; what was asked for may have been done.
        """


class Inside:
    """A supervisor of this process. On its event loop's thread.

    Args:
        sup: the supervisor, or a function that returns it, and `None` while there is none.
    """

    def __init__(self, sup: Supervisor | Callable[[], Supervisor | None]) -> None:
        self._find = sup if callable(sup) else lambda: sup
        self._handlers: Handlers | None = None
        self._sup: Supervisor | None = None

    async def ask(self, question: protocol.Question, by: str) -> protocol.Answer:
        """Answer. A checkpoint."""
        await anyio.lowlevel.checkpoint()
        sup = self._find()
        if sup is None:
            raise Unreachable("no supervisor runs")
        if self._handlers is None or self._sup is not sup:
            self._sup, self._handlers = sup, Handlers(sup)
        if isinstance(question, protocol.Slow):
            return await self._handlers.work.see_to(question, by)
        return self._handlers.answer(question, by)


class Outside:
    """A process that has a status socket; and after its end, the process that takes its place.

    Each question has a connection of its own, on a worker thread: a process that answers late delays no other page.

    Args:
        path: its socket; `None` to look for the only process of this user at each question, until one is found.
    """

    def __init__(self, path: str | None) -> None:
        self._given = path
        self._path: str | None = None
        self._last: protocol.Pong | None = None
        self._threads = Threads(_MOST_AT_A_TIME)

    async def ask(self, question: protocol.Question, by: str) -> protocol.Answer:  # noqa: ARG002 -- the process logs ours
        """Answer. A checkpoint; cancelled, what was asked for may have been done."""
        return await self._threads.run(partial(self._ask, question))

    def _ask(self, question: protocol.Question) -> protocol.Answer:
        try:
            with self._connected() as client:
                answer = client.ask(question)
        except (NoProcess, NoAnswer) as error:
            # Without the words for a command line.
            why = str(error).removeprefix("--socket: ").partition("; allowed: ")[0]
            raise Unreachable(why) from error
        if (seen := answer.status or answer.frozen) is not None:
            self._last = protocol.Pong(pid=seen.pid, sessions=seen.sessions)
        return answer

    def _connected(self) -> Client:
        path = self._path or locate(self._given)
        try:
            client = Client(path)
        except NoProcess:
            after = successor(self._last, path) if self._last is not None else None
            if after is None:
                self._path = None if self._last is None else path
                raise
            path = after.path
            client = Client(path)
        self._path = path
        return client

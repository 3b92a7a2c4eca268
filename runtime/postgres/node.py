"""One process on a shared store: its parts put together, opened and closed."""

from __future__ import annotations

import socket
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread

from lanes import InvalidLane
from lanes.checks import is_utf8, shown
from lanes.core.scheduler import Scheduler
from locks._events import described, log
from locks._loop import poster

from ..inbox.answer import Answer
from ..inbox.asks import SHARED_LOOK_S
from ..inbox.service import InboxService
from ..inbox.settings import Inbox
from ..statistics import NodeStatistics
from . import life as lives
from .commands import Commands
from .errors import NodeLost, StoreDown
from .life import Life
from .link import Link
from .messages import PostgresMessages
from .ownership import Ownership
from .settings import PostgresStore
from .transcripts import PostgresTranscripts

CLOSE_WITHIN_S = 15.0
KEEP_AT_LEAST_S = 60.0
"""Longer than others need to see how a message that they wait for has ended, and than an instant of a schedule can be
late: its key keeps a node that was slow, and is not lost, from sending it again."""
_RUNS_OF_A_PROCESS = 10_000_000_000
"""So run 30,000,000,017 is the 17th one of the third process that used the schema."""


class Node:
    """A process that shares the sessions of a store. On the program's loop."""

    def __init__(self, store: PostgresStore, scheduler: Scheduler, settings: Inbox, name: str | None) -> None:
        given: list[tuple[str, object]] = [("node", name)]
        given += [("schedule, name", one.called) for one in settings.schedules]
        for field, text in given:
            if text is not None and (not isinstance(text, str) or "\0" in text or not is_utf8(text)):
                raise InvalidLane(f"{field}: {shown(text)} is not allowed; allowed: UTF-8 without NUL")
        self._scheduler = scheduler
        self.link = Link(store)
        self.ownership = Ownership(scheduler, self.link, store.name)
        self.life = Life(
            self.link,
            name or socket.gethostname(),
            lost=self._lost,
            joined=self._joined,
            inherited=self.ownership.inherited,
        )
        self.on_joined: Callable[[], None] = lambda: None
        """Called each time that it has joined."""
        self.commands = Commands(self.link, self.ownership.take)
        self.transcripts = PostgresTranscripts(self.link, self.life, store.name)
        self.messages = PostgresMessages(self.link, self, scheduler.board.specs)
        self.service = service = InboxService(scheduler, self.messages, settings)
        self.messages.room, self.messages.under_way = self.ownership.room, self.ownership.under_way
        self.messages.owned, self.messages.knows = self.ownership.take, self.ownership.knows
        self.messages.in_memory = service.door.in_memory
        self.ownership.on_more = self.messages.more = self._more
        self.ownership.on_lost = service.door.forsake
        self.ownership.on_handed_on = service.door.hand_on
        self.ownership.on_untold = service.replay.look_for_untold
        self.link.on_hint = self._hint
        service.journal.cut_by = (StoreDown, NodeLost)
        service.journal.conduct, service.journal.answer = self.ownership.begin, self.transcripts.finish
        service.journal.on_end = partial(self._run_ended, service.journal.on_end)
        service.tasks += [self.ownership.serve, self.commands.serve]
        service.replay.comes_first_here = True
        service.asks.look_s = SHARED_LOOK_S
        service.keep_s = max(service.keep_s, KEEP_AT_LEAST_S + store.ttl + store.grace_s)
        service.door.behind = lambda: True  # what other nodes have accepted, this one need not know of
        board = scheduler.board
        board.ownership, board.sessions = self.ownership, self.transcripts

    @property
    def clock_ahead_s(self) -> float:
        """How far the server's clock is ahead of this machine's."""
        return self.life.clock_ahead_s

    def statistics(self) -> NodeStatistics:
        """What an operator sees. Nothing is asked of the database."""
        return NodeStatistics(
            id=self.link.node,
            name=self.life.name,
            lease_left_s=self.life.left_s(),
            sessions=self.ownership.count,
            claimed=self.ownership.claimed,
            given_back=self.ownership.given_back,
            beats=self.life.beats,
            reconnects=self.link.reconnects,
        )

    async def open(self) -> None:
        """Join the others. A checkpoint; failed or cancelled, nothing is left.

        Raises:
            StoreDown, InboxInvalid: the database cannot be used.
        """
        post, ready = poster(), Answer[None]()

        def told(error: BaseException | None) -> None:
            post(partial(ready, None, error))

        def ended(error: BaseException | None) -> None:
            told(error or StoreDown(f"store {self.link.name} was closed", path=self.link.name))
            if error is not None:  # a fault of our own
                post(partial(self._failed, error))

        self.transcripts.bind(post)
        self.link.start(post, partial(lives.serve, self.link, self.life, told), ended)
        try:
            await ready.wait()
        except BaseException:
            self.link.stop()
            raise
        self._scheduler.intake.number_from(self.life.number * _RUNS_OF_A_PROCESS)

    async def close(self) -> None:
        """Commit what was handed over, give everything back, and leave. A checkpoint that is not interrupted."""
        self.link.stop()
        with anyio.CancelScope(shield=True):
            mine = anyio.CapacityLimiter(1)  # those of others may be taken by threads that hang
            await anyio.to_thread.run_sync(self.link.join, CLOSE_WITHIN_S, limiter=mine)

    def let_go(self) -> None:
        """As `close`, without waiting: the program's loop is gone."""
        self.link.stop()

    def _failed(self, error: BaseException) -> None:
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        log("store_failed", level="error", store=self.link.name, error=described(error))
        self.ownership.lost(NodeLost(f"store {self.link.name} has failed: {described(error)}", path=self.link.name))
        self._scheduler.board.on_failure(error, False)

    def _run_ended(self, then: Callable[[str], None], lane: str) -> None:
        then(lane)
        self.ownership.run_ended()

    def _more(self) -> None:
        self.messages.hints += 1
        self.service.replay.look_again()

    def _hint(self, node: int) -> None:
        if node < 0:
            self.commands.look()
            return
        self.ownership.look(node)
        self.service.watch.look()

    def _joined(self, node: int) -> None:
        self.ownership.look(node)
        self.on_joined()

    def _lost(self, error: NodeLost) -> None:
        self.ownership.lost(error)

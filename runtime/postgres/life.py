"""The life of a node: it joins, beats, reaps nodes that are silent, and gives itself up before others may.

    join ► beat every ttl / 3 ► … ► leave
             └ silent for 0.9 ttl: lost ► its runs end ► join again, with another id

All by the clock of the server but the node's own deadline: 0.9 ttl after the last answered beat was *sent*, by the
monotonic clock of this machine. Lost for itself, a node writes nothing more, and only later do others take over.
"""

from __future__ import annotations

import asyncio
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import psycopg
from psycopg import errors

from locks._events import described, log

from .connection import SETTINGS, one_line
from .errors import NodeLost, StoreDown
from .link import LATEST_RETRY_S, SOONEST_RETRY_S, Link
from .listening import listen
from .pooler import check_pooler
from .schema import check, make
from .step import Rows

_JOIN = "insert into {s}.node (id, name, host, pid, ttl, grace) values (%s, %s, %s, %s, %s, %s) returning number"
_JOIN_AGAIN = "insert into {s}.node (id, name, host, pid, ttl, grace, number) values (%s, %s, %s, %s, %s, %s, %s)"
_NOW = "select extract(epoch from clock_timestamp())::float8"
BEAT = (
    "update {s}.node set beat_at = clock_timestamp(), figures = coalesce(%s, figures) where id = %s "
    "returning extract(epoch from clock_timestamp())::float8"
)
REAP = "select place, name, pending from {s}.reaped(%s)"
_GONE = "select {s}.gone(%s)"
_MARGIN = 0.9
_BEATS = 3
"""In each ttl."""
_WAITS_FOR_LOCKS = 0.15
"""For how much of the ttl: no life of another node is worth one's own."""
_LOOK_AGAIN_S = 0.1
"""When sessions of a dead node are looked at again that were just being changed."""
LEAVE_WITHIN_S = 5.0


class Inherited(NamedTuple):
    """A session of a dead node, which is this node's now."""

    place: str
    pending: int


class Life:
    """One node after the other, of one process. In the link's thread, but for what is said otherwise.

    Args:
        joined: called on the program's loop with the id of a new node.
        lost: called there when the node is lost.
        inherited: called there with what dead nodes have left.
    """

    def __init__(
        self,
        link: Link,
        name: str,
        *,
        joined: Callable[[int], None],
        lost: Callable[[NodeLost], None],
        inherited: Callable[[list[Inherited]], None],
    ) -> None:
        self._link, self._store, self.name = link, link.store, name
        self._joined, self._lost, self._inherited = joined, lost, inherited
        self.figures: Callable[[], str | None] = lambda: None
        """What each beat leaves for operators; called in the link's thread."""
        self.deadline = float("-inf")
        """When this node gives itself up (`time.monotonic`). Read from any thread."""
        self.clock_ahead_s = 0.0
        """How far the server's clock is ahead of this machine's."""
        self.beats = 0
        self._next_s = math.inf
        """After how many seconds it beats again at the latest."""
        self.number = 0
        """Of this process among all that ever used the schema; it is kept over the loss of a node."""

    def alive(self) -> bool:
        """Whether this node may write. From any thread."""
        return time.monotonic() < self.deadline

    def left_s(self) -> float:
        """For how many seconds it may be silent from now on. From any thread."""
        return max(0.0, self.deadline - time.monotonic())

    async def begin(self) -> psycopg.AsyncConnection:
        """Connect, see that the database can be used, and join.

        Raises:
            StoreDown, InboxInvalid: it cannot.
        """
        link = self._link
        try:
            connection = await link.connect(" lives")
        except (psycopg.Error, OSError) as error:
            why = "no answer in time" if isinstance(error, TimeoutError) else one_line(error)
            raise StoreDown(
                f"store: {link.name} cannot be reached ({why}); allowed: the URL of a PostgreSQL that answers",
                path=link.name,
            ) from error
        try:
            await check_pooler(connection, self._store)
            if self._store.create:
                await make(connection, self._store.schema)
            await check(connection, link.name, self._store.schema)
            await self._join(connection)
        except (psycopg.Error, OSError) as error:
            await connection.close()
            raise StoreDown(
                f"store: {link.name} cannot be used ({one_line(error)}); allowed: a role that may use the "
                f"schema {self._store.schema!r}",
                path=link.name,
            ) from error
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _join(self, connection: psycopg.AsyncConnection) -> None:
        node, sent = secrets.randbits(62) + 1, time.monotonic()
        row = (node, self.name, socket.gethostname(), os.getpid(), self._store.ttl, self._store.grace_s)
        if self.number:
            await connection.execute(self._link.statement(_JOIN_AGAIN), (*row, self.number))
        else:
            numbered = await (await connection.execute(self._link.statement(_JOIN), row)).fetchone()
            assert numbered is not None
            self.number = numbered[0]
        found = await (await connection.execute(self._link.statement(_NOW))).fetchone()
        assert found is not None
        await self._waits_shortly(connection)
        self.clock_ahead_s = found[0] - time.time()
        self.deadline = sent + _MARGIN * self._store.ttl
        self._link.node, self._link.trouble = node, None
        log("node_joined", store=self._link.name, node=node, name=self.name)
        self._link.post(partial(self._joined, node))

    async def live(self, connection: psycopg.AsyncConnection) -> None:
        """Beat and reap until the link is told to stop, or the node is lost."""
        link, every_s = self._link, self._store.ttl / _BEATS
        wait_s, retry_s = every_s, SOONEST_RETRY_S
        current: psycopg.AsyncConnection | None = connection
        try:
            while True:
                for _ in range(20):
                    if link.over and link.idle:
                        return
                    await asyncio.sleep(wait_s / 20)
                try:
                    async with asyncio.timeout_at(asyncio.get_running_loop().time() + self.left_s()):
                        if current is None or current.closed:
                            current = await self._waits_shortly(await link.connect(" lives"))
                        await self._beat(current)
                    wait_s, retry_s = min(every_s, self._next_s), SOONEST_RETRY_S
                except (psycopg.Error, OSError) as error:  # a `TimeoutError` is one of those
                    if not self.alive():
                        why = "no answer in time" if isinstance(error, TimeoutError) else described(error)
                        raise self._lost_error(why) from error
                    link.troubled(error)
                    await _dropped(current)
                    current = None
                    wait_s, retry_s = retry_s, min(2 * retry_s, LATEST_RETRY_S, every_s)
        finally:
            if not link.over:
                await _dropped(current)
            elif current is not None:
                await self._leave(current)

    async def _waits_shortly(self, connection: psycopg.AsyncConnection) -> psycopg.AsyncConnection:
        """From now on, a lock that others hold costs no beat."""
        text = f"set lock_timeout = {max(1, int(_WAITS_FOR_LOCKS * self._store.ttl * 1000))}"
        try:
            await connection.execute(text.encode())
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _beat(self, connection: psycopg.AsyncConnection) -> None:
        link = self._link
        sent = time.monotonic()
        found = await connection.execute(link.statement(BEAT), (self.figures(), link.node))
        row = await found.fetchone()
        if row is None:
            self.deadline = float("-inf")
            raise self._lost_error("other nodes have taken it for dead")
        self.deadline = sent + _MARGIN * self._store.ttl
        self.clock_ahead_s = row[0] - (time.time() - (time.monotonic() - sent) / 2)
        self.beats += 1
        rows: Rows = []
        self._next_s = math.inf
        with suppress(errors.LockNotAvailable, errors.DeadlockDetected):  # the next beat tries again
            rows = await (await connection.execute(link.statement(REAP), (link.node,))).fetchall()
        if rows:
            self._heirs(rows)

    def _heirs(self, rows: Rows) -> None:
        inherited = [Inherited(place, pending) for place, _, pending in rows if place is not None]
        _, names, left_over = rows[-1]
        if left_over:  # of what a dead node had; the next beat takes the next part
            self._next_s = SOONEST_RETRY_S if inherited else _LOOK_AGAIN_S
        log("node_reaped", level="warning", store=self._link.name, names=names, sessions=len(inherited))
        self._link.post(partial(self._inherited, inherited))

    def _lost_error(self, why: str) -> NodeLost:
        return NodeLost(f"node {self._link.node} of {self._link.name} is lost: {why}", path=self._link.name)

    def lose(self, error: NodeLost) -> None:
        """Give everything up."""
        self.deadline = float("-inf")
        log("node_lost", level="error", store=self._link.name, node=self._link.node, error=described(error))
        self._link.lose(error)
        self._link.post(partial(self._lost, error))

    async def _leave(self, connection: psycopg.AsyncConnection) -> None:
        """Give back what it has, so that nobody waits for it."""
        with suppress(psycopg.Error, OSError):  # then it is reaped
            async with asyncio.timeout(LEAVE_WITHIN_S):
                if not connection.closed:
                    await connection.execute(SETTINGS)  # now it may wait for locks: no beat follows
                    await connection.execute(self._link.statement(_GONE), (self._link.node,))
                    log("node_left", store=self._link.name, node=self._link.node)
        self.deadline, self._link.node = float("-inf"), 0
        await _dropped(connection)


async def _dropped(connection: psycopg.AsyncConnection | None) -> None:
    if connection is not None:
        with suppress(psycopg.Error, OSError):
            await connection.close()


async def serve(link: Link, life: Life, ready: Callable[[BaseException | None], None]) -> None:
    """What the link's thread does from start to stop.

    Args:
        ready: called in the thread when the first node has joined, or cannot.
    """
    try:
        connection = await life.begin()
    except Exception as error:
        ready(error)
        return
    ready(None)
    while True:
        readers = max(1, link.store.connections - 2 - int(link.store.notify))
        serving: list[Callable[[], Coroutine[Any, Any, None]]] = [link.write, *[link.answer] * readers]
        if link.store.notify:
            serving.append(partial(listen, link))
        lost: NodeLost | None = None
        async with asyncio.TaskGroup() as group:  # what none of them expects ends the thread, with that error
            tasks = [group.create_task(serve()) for serve in serving]
            try:
                await life.live(connection)
            except NodeLost as error:
                lost = error
                life.lose(lost)  # at once: to cancel the others may take a moment
            for task in tasks:
                task.cancel()
        if lost is None:
            return
        link.lose(lost)  # what was on its way
        retry_s = 0.05
        while not link.over:
            try:
                connection = await life.begin()
                break
            except Exception as error:
                link.trouble = error
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, 1.0)
        else:
            return

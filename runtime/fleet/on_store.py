"""The processes that share the sessions of a store, on any machines: looked at by SQL, and asked through the database.

To look costs them nothing: each leaves its figures with its beats. A question goes the way of what nodes ask each other
(`postgres.commands`): a row in `command`, answered in the same row. The one who asks is no node and joins nothing, so
the row says that the node asks itself: its answer stays until it is taken, and goes with the node at the latest.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from typing import Any, TypeVar

import msgspec
import psycopg

from ..inbox.errors import InboxInvalid
from ..postgres import by_hand
from ..postgres.connection import cancellation_kept
from ..postgres.errors import StoreDown
from ..postgres.schema import filled
from ..postgres.settings import PostgresStore
from ..status import protocol
from ..status.figures import Figures
from .answering import KIND
from .seen import MOST_SESSIONS, FleetError, FleetSeen, ProcessSeen, SessionSeen

ANSWERS_WITHIN_S = 8.0
_WHY_LATE = "its event loop is blocked, or it is gone"
_SOONEST_S, _LATEST_S = 0.01, 0.2
_LOOK_WITHIN_S = 10.0
_ASK = (
    "with asked as (insert into {s}.command (token, target, asker, kind, arguments, upto) "
    "select %s, n.id, n.id, %s, %s, 0 from (select id from {s}.node where id = %s for key share) n "
    "returning target) select {s}.tell(-target) from asked"
)
_ANSWER = "select answer, failed from {s}.command where token = %s"
_figures = msgspec.json.Decoder(Figures)

Result = TypeVar("Result")


class OnStore:
    """The processes on a store. On an asyncio loop; it has one connection at most, made when it is needed.

    Args:
        store: where they are. What a node needs besides, such as `ttl`, has no effect.
    """

    def __init__(self, store: PostgresStore) -> None:
        self.name = f"on {store.name}"
        self._store, self._schema = store, store.schema
        self._connection: by_hand.Connection | None = None
        self._holding = AsyncExitStack()
        self._lock = asyncio.Lock()
        self._forgetting = set[asyncio.Task[None]]()

    async def look(self) -> FleetSeen:
        """All processes, as they have last reported: one query. A checkpoint.

        Raises:
            FleetError: the database does not answer, refuses, or has no schema of ours.
        """
        nodes, totals = await self._on(lambda connection: by_hand.fleet(connection, self._schema))
        return FleetSeen(
            processes=[_seen(one, self._store.name) for one in nodes],
            sessions=totals.sessions,
            conducted=totals.owned,
            unowned=totals.unowned,
        )

    async def sessions(self, *, process: str | None = None, at_most: int = MOST_SESSIONS) -> list[SessionSeen]:
        """Sessions with open messages, the one that has waited longest first. A checkpoint.

        Raises:
            FleetError: as `look`.
        """
        rows = await self._on(
            lambda connection: by_hand.sessions(
                connection, self._schema, key=None, node=process, only_open=True, at_most=at_most
            )
        )
        return [
            SessionSeen(
                session=row.session,
                process=row.owner if row.owner is not None or row.node is None else f"node {row.node}, which is gone",
                open=row.open,
                oldest_s=row.oldest_s,
                wanted=row.wanted,
            )
            for row in rows
        ]

    async def ask(self, key: str, question: protocol.Question, by: str) -> protocol.Answer:
        """What one process answers. A checkpoint; cancelled, it may have done it.

        Raises:
            FleetError: it has gone, or does not answer within 8 seconds; what was asked for may be done.
        """
        token = secrets.randbits(62)
        arguments = msgspec.json.encode({"question": protocol.encoded(question).decode(), "by": by[:200]}).decode()
        target = int(key) if key.isascii() and key.isdigit() and len(key) < 20 else 0
        late = f"{self._store.name} has not answered within {ANSWERS_WITHIN_S:g} s"
        clock = asyncio.get_running_loop().time
        deadline = clock() + ANSWERS_WITHIN_S
        try:
            async with asyncio.timeout_at(deadline):
                if not await self._rows(_ASK, (token, KIND, arguments, target)):
                    raise FleetError(f"node {key} has gone")
                late = f"node {key} does not answer within {ANSWERS_WITHIN_S:g} s: {_WHY_LATE}"
                answer, failed = await self._answered(key, token)
        except TimeoutError as error:
            raise FleetError(late) from error
        finally:
            forgetting = self._forget(token)
        await asyncio.wait({forgetting}, timeout=max(0.0, deadline - clock()))
        if failed:
            value = msgspec.json.decode(answer)
            raise FleetError(f"node {key} has gone" if value is None else f"node {key} could not answer: {value}")
        try:
            return protocol.answer_of(answer.encode())
        except ValueError as error:
            raise FleetError(f"node {key} answers something else: {error}") from error

    async def aclose(self) -> None:
        """Close the connection."""
        if self._forgetting:
            await asyncio.wait(self._forgetting)
        async with self._lock:
            await self._drop()

    async def _answered(self, key: str, token: int) -> tuple[str, bool]:
        pause_s = _SOONEST_S
        while True:
            rows = await self._rows(_ANSWER, (token,))
            if not rows:
                raise FleetError(f"node {key} has gone")
            if rows[0][0] is not None:
                return rows[0][0], rows[0][1]
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LATEST_S)

    def _forget(self, token: int) -> asyncio.Task[None]:
        """Take the row away soon, or have it go once it is answered. What cannot be done goes with the node."""
        task = asyncio.create_task(self._forgotten(token))
        self._forgetting.add(task)
        task.add_done_callback(self._forgetting.discard)
        return task

    async def _forgotten(self, token: int) -> None:
        with suppress(FleetError):
            await self._rows("select {s}.forgotten(%s)", (token,))

    async def _rows(self, text: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        async def ask(connection: by_hand.Connection) -> list[tuple[Any, ...]]:
            return await (await connection.execute(filled(text, self._schema), values)).fetchall()

        return await self._on(ask)

    async def _on(self, look: Callable[[by_hand.Connection], Awaitable[Result]]) -> Result:
        """Have something asked on the connection, which is made anew after a failure."""
        try:
            async with asyncio.timeout(_LOOK_WITHIN_S), self._lock:
                with cancellation_kept():
                    return await look(await self._connected())  # cancelled, the connection is closed
        except TimeoutError as error:
            raise FleetError(f"{self._store.name} has not answered within {_LOOK_WITHIN_S:g} s") from error
        except (StoreDown, InboxInvalid) as error:
            raise FleetError(str(error)) from error
        except (psycopg.Error, OSError) as error:
            raise FleetError(f"{self._store.name} refuses ({by_hand.said(error)})") from error

    async def _connected(self) -> by_hand.Connection:
        if self._connection is None or self._connection.closed:
            await self._drop()
            connection = await self._holding.enter_async_context(by_hand.connected(self._store))
            await by_hand.see_form(connection, self._store)
            self._connection = connection
        return self._connection

    async def _drop(self) -> None:
        self._connection = None
        await self._holding.aclose()
        self._holding = AsyncExitStack()


def _seen(node: by_hand.NodeRow, place: str) -> ProcessSeen:
    figures = None
    if node.figures:
        try:
            figures = _figures.decode(node.figures)
        except (msgspec.ValidationError, ValueError):  # of a version that reports others
            figures = None
    frozen = figures is not None and figures.frozen_s > 0
    return ProcessSeen(
        key=str(node.id),
        name=node.name,
        host=node.host,
        pid=node.pid,
        place=place,
        state="frozen" if frozen and node.state == "alive" else node.state,
        silent_s=node.silent_s,
        sessions=node.sessions,
        open=node.open,
        figures=figures,
        why="" if figures is not None else "it has not reported any figures yet",
    )

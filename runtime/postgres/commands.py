"""What a node asks of the others: to cancel, to end what a reset ends, to say what runs there.

    asked ──► a row for each other node ──► each does it, and writes its answer ──► the asker takes all answers
                 └── the node dies or leaves: whoever takes its sessions writes "gone", and the asker asks all again

A command is done by each node once, or not at all where the node is gone. It is asked again as long as some node went
meanwhile, or a session was handed over in between with something that it concerns. Answers are waited for with a
bound: a node whose event loop stands still lives on, and answers late.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import anyio
import msgspec
from anyio.abc import TaskGroup

from locks._events import described, log

from ..inbox.answer import Answer
from .errors import StoreDown
from .link import Link
from .step import Rows, Step

_LOOK_S = 0.5
_MOST_ROUNDS = 5
_MARGIN_S = 5.0
_REMEMBERED = 1_000
_ASKED = "select id, name, upto, held from {s}.asked(%s, %s::bigint, %s, %s, %s, %s::bigint, %s::bigint)"
Handler = Callable[[Mapping[str, Any], int], Awaitable[Any]]
"""Does a command here; called with its arguments, and the newest message that it concerns. What it returns has JSON."""
Here = Callable[[int], Awaitable[Any]]
Left = Callable[[int], Awaitable[bool]]


class Told(NamedTuple):
    """Who was asked, and what about."""

    token: int
    nodes: dict[int, str]
    """By command, the name of the node."""
    upto: int
    alone: bool
    """Whether one node was asked only."""


class Commands:
    """Commands of this node and for this node. On the program's loop.

    Args:
        came: called with a place that this node conducts since it has asked.
    """

    def __init__(self, link: Link, came: Callable[[str], None]) -> None:
        self._link, self._came = link, came
        self.within_s = link.store.ttl + link.store.grace_s + _MARGIN_S
        """For how long answers are waited for: a node that is gone is noticed by then."""
        self.handlers: dict[str, Handler] = {}
        self.slow: set[str] = set()
        """Kinds whose answers may take a while: others do not wait for them."""
        self._busy: set[int] = set()
        """Commands that are being done."""
        self._done: deque[int] = deque(maxlen=_REMEMBERED)
        """Commands that were done: a question that was asked before may still bring one."""
        self._more = anyio.Event()

    def look(self) -> None:
        """There may be a command, or an answer."""
        self._more.set()
        self._more = anyio.Event()

    # Asking

    async def tell_all(
        self, kind: str, arguments: Mapping[str, Any], *, here: Here, left: Left | None = None, wants: str | None = None
    ) -> list[Any]:
        """Have all nodes do something, this one included; returns their answers. A checkpoint. Cancelled, they do it
        all the same, if they were asked.

        Args:
            here: does it on this node, once the others are asked.
            left: whether something of it is left to do, by the newest message that it concerns.
            wants: a place that this node is to conduct, once nothing older is left of it: noted as it is asked.

        Raises:
            StoreDown: the database cannot be reached, or a node could not do it, or has not answered in time; others
                may have done it, and a late one does it when it can.
        """
        answers, upto, names = list[Any](), None, ""
        with anyio.move_on_after(self.within_s) as scope:
            for _ in range(_MOST_ROUNDS):
                told = await self._tell(kind, arguments, wants, upto)
                upto, names = told.upto, ", ".join(sorted(told.nodes.values()))
                try:
                    answers.append(await here(upto))
                    found, gone = await self.answers(told)
                finally:
                    self.forget(told.token)
                answers += found
                if not gone and (left is None or not await left(upto)):
                    break
        if scope.cancelled_caught:
            raise StoreDown(
                f"store {self._link.name}: {kind}: not all of its nodes ({names}) have answered in {self.within_s:g} "
                "s; they do it when they can",
                path=self._link.name,
            )
        return answers

    def _asked(
        self,
        token: int,
        kind: str,
        arguments: Mapping[str, Any],
        wants: str | None,
        upto: int | None,
        node: int | None = None,
    ) -> tuple[Any, ...]:
        return self._link.node, token, kind, msgspec.json.encode(arguments).decode(), wants, upto, node

    async def _tell(
        self,
        kind: str,
        arguments: Mapping[str, Any],
        wants: str | None,
        upto: int | None,
        node: int | None = None,
        token: int | None = None,
    ) -> Told:
        known = token is not None
        token = secrets.randbits(62) if token is None else token
        values = self._asked(token, kind, arguments, wants, upto, node)
        answer = Answer[Rows]()

        def told(rows: Rows | None, error: BaseException | None) -> None:
            if rows and wants is not None and rows[0][3]:
                self._came(wants)
            answer(rows, error)

        self._link.do(Step(_ASKED, values, lambda rows: rows, wants or ""), told)
        try:
            rows = await answer.wait()
        except BaseException:
            if not known:
                self.forget(token)
            raise
        return Told(token, {row[0]: row[1] for row in rows if row[0] is not None}, rows[0][2], node is not None)

    async def answers(self, told: Told) -> tuple[list[Any], bool]:
        """The answers of all that were asked, and whether one of them has gone. A checkpoint.

        Raises:
            StoreDown: the database cannot be reached, or a node could not do it.
        """
        while told.nodes:
            more = self._more
            rows = await self._ask("select id, answer, failed from {s}.command where token = %s", (told.token,))
            if {row[0] for row in rows} != set(told.nodes):
                raise StoreDown(
                    f"store {self._link.name}: this node was lost while others were asked; they may have done it",
                    path=self._link.name,
                )
            if all(answer is not None for _, answer, _ in rows):
                return self._judged(told, rows)
            with anyio.move_on_after(_LOOK_S):
                await more.wait()
        return [], told.alone

    def _judged(self, told: Told, rows: Rows) -> tuple[list[Any], bool]:
        found, gone = list[Any](), False
        for command, answer, failed in rows:
            value = msgspec.json.decode(answer)
            if failed and value is not None:
                raise StoreDown(
                    f"store {self._link.name}: node {told.nodes[command]} could not do it: {value}; others may have",
                    path=self._link.name,
                )
            gone |= failed
            if not failed:
                found.append(value)
        return found, gone

    async def waits(self, lane: str | None, session: str | None, message: int | None, upto: int) -> bool:
        """Whether a message of a lane, of a session, that one, or any waits on some node, up to an id. A checkpoint."""
        text = (
            "select exists (select from {s}.message m where m.state = 'accepted' and m.id <= %s "
            "and (%s::text is null or m.lane = %s) and (%s::text is null or m.session = %s) "
            "and (%s::bigint is null or m.id = %s))"
        )
        rows = await self._ask(text, (upto, lane, lane, session, session, message, message))
        found: bool = rows[0][0]
        return found

    # One node

    @property
    def node(self) -> int:
        """The id of this node; 0 while it has none."""
        return self._link.node

    async def where(self, message: int) -> tuple[bool, int | None]:
        """Whether a message is kept and has not ended, and which node has it. A checkpoint."""
        text = (
            "select m.state in ('accepted', 'started'), t.owner from {s}.message m left join {s}.session t "
            "on t.place = m.place where m.id = %s"
        )
        rows = await self._ask(text, (message,))
        return rows[0] if rows else (False, None)

    async def tell_one(self, node: int, kind: str, arguments: Mapping[str, Any], token: int) -> Told:
        """Have another node do something. A checkpoint; `answers` has what comes of it, and `forget` ends that.

        Args:
            token: names this command: cancelled, it may have been asked, and the same token asks for the same.
        """
        return await self._tell(kind, arguments, None, None, node, token)

    def tell_only(self, node: int, kind: str, arguments: Mapping[str, Any]) -> None:
        """As `tell_one`, for no answer. Never blocks; it may get lost."""
        token = secrets.randbits(62)
        self._do(_ASKED, self._asked(token, kind, arguments, None, 0, node))
        self.forget(token)

    def forget(self, token: int) -> None:
        """No answer is waited for any more."""
        self._do("select {s}.forgotten(%s)", (token,))

    # Being asked

    async def serve(self) -> None:
        """Do what others ask, until cancelled.

        Raises:
            StoreDown: the database cannot be reached.
        """
        failure: StoreDown | None = None
        async with anyio.create_task_group() as group:
            try:
                await self._serve(group)
            except StoreDown as error:
                failure = error  # raised by the group, it would be one of several
                group.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _serve(self, group: TaskGroup) -> None:
        while True:
            more = self._more
            text = "select id, kind, arguments, upto from {s}.command where target = %s and answer is null order by id"
            for command, kind, arguments, upto in await self._ask(text, (self._link.node,)):
                if command in self._busy or command in self._done:
                    continue
                self._busy.add(command)
                if kind in self.slow:
                    group.start_soon(self._obey, command, kind, arguments, upto)
                else:
                    await self._obey(command, kind, arguments, upto)
            with anyio.move_on_after(_LOOK_S):
                await more.wait()

    async def _obey(self, command: int, kind: str, arguments: str, upto: int) -> None:
        failed = False
        try:
            value = await self.handlers[kind](msgspec.json.decode(arguments), upto)
        except Exception as error:  # a kind that only newer versions know, say: the asker is told
            failed, value = True, described(error)
            log("command_failed", level="error", store=self._link.name, kind=kind, error=value)
        finally:
            self._busy.discard(command)
        self._done.append(command)
        self._do("select {s}.said(%s::bigint, %s, %s)", (command, msgspec.json.encode(value).decode(), failed))

    def _do(self, text: str, values: tuple[Any, ...]) -> None:
        self._link.do(Step(text, values, lambda _: None), lambda _result, _error: None)

    async def _ask(self, text: str, values: tuple[Any, ...]) -> Rows:
        answer = Answer[Rows]()
        self._link.ask(Step(text, values, lambda rows: rows), answer)
        return await answer.wait()

"""What a node does for an operator: it leaves its figures with its beats, and answers questions through the database.

The figures are taken on the event loop, at most once a second, and are left by the node's own thread, which goes on
while that loop is blocked: then they say so, and where.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from ..postgres.node import Node
from ..status import protocol
from ..status.figures import Figures, figures_of, frozen_figures
from ..status.handlers import Handlers, Supervised, directory_of, refused

KIND = "question"
"""Of the commands that bring a question of the status socket."""
_EVERY_S = 1.0
_EACH = 50


class _Taken(NamedTuple):
    """Figures, and when they were taken."""

    figures: Figures
    at: float


class Answering:
    """The part of a supervisor on a store that operators see through the database."""

    def __init__(self, sup: Supervised, node: Node) -> None:
        self._sup, self._node = sup, node
        self._handlers = Handlers(sup)
        # Shared by the event loop and the node's thread; each is a single step.
        self._taken: _Taken | None = None
        self._asked = False
        node.life.figures, node.on_joined = self._figures, self._take
        node.commands.handlers[KIND] = self._answer
        node.commands.slow.add(KIND)

    async def _answer(self, arguments: Mapping[str, Any], _upto: int) -> Any:
        """On the event loop."""
        try:
            question = protocol.question_of(str(arguments["question"]).encode())
        except protocol.BadQuestion as error:
            return refused("bad_question", str(error), error.field)
        by = protocol.text(arguments["by"], 200)
        if isinstance(question, protocol.Slow):
            return await self._handlers.work.see_to(question, by)
        return self._handlers.answer(question, by)

    def _take(self) -> None:
        """On the event loop."""
        self._asked = False
        picture = self._handlers.answer(
            protocol.Status(each=_EACH), ""
        ).status  # a fault is logged, and goes no further
        if picture is not None:
            self._taken = _Taken(figures_of(picture), time.monotonic())

    def _figures(self) -> str | None:
        """What a beat leaves; on the node's thread."""
        taken, now = self._taken, time.monotonic()
        if not self._asked and (taken is None or now - taken.at >= _EVERY_S):
            self._asked = True
            self._node.link.post(self._take)
        if taken is None:
            return None
        figures, blocked = taken.figures, self._sup.watchdog.blocked()
        if blocked is not None:
            frozen = protocol.Frozen(
                pid=0,
                sessions=directory_of(self._sup),
                for_s=blocked.for_s,
                place=blocked.place,
                stack="",
                run=blocked.run,
            )
            figures = frozen_figures(figures, frozen)
        return msgspec.json.encode(msgspec.structs.replace(figures, age_s=now - taken.at)).decode()

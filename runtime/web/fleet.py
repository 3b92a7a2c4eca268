"""The dashboard of several processes: a page of all of them, and below it the pages of each.

    /            the nodes
    /node/KEY/   what the dashboard of that process alone would show

The pages of a node are the same application, asked for below another path: what they show, the fleet asks for.
"""

from __future__ import annotations

import re
import time
from collections import OrderedDict
from collections.abc import Mapping

from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.types import Receive, Scope, Send

from ..fleet.seen import Fleet, FleetError, FleetSeen, SessionSeen
from ..status import protocol
from .app import Dashboard, path_of
from .guard import HEADERS, Guard
from .live import Feeds
from .pages import MOST_ROWS, Page, Seen
from .source import Unreachable
from .views import Link, View, Views

_MOST_NODES = 200
_MOST_KEPT = 32
_NODE = re.compile(r"/node/([0-9]{1,20})(/|$)")


class OneOf:
    """One process of a fleet, as a source."""

    def __init__(self, fleet: Fleet, key: str) -> None:
        self._fleet, self._key = fleet, key

    async def ask(self, question: protocol.Question, by: str) -> protocol.Answer:
        """Answer. A checkpoint; cancelled, what was asked for may have been done.

        Raises:
            Unreachable: it does not answer; what was asked for may have been done.
        """
        try:
            return await self._fleet.ask(self._key, question, by)
        except FleetError as error:
            raise Unreachable(str(error)) from error


class FleetViews:
    """The page of all processes. It only shows."""

    nav: tuple[Link, ...] = (("./", "nodes", "Nodes"),)
    show_content = False

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._last: tuple[FleetSeen, list[SessionSeen]] | None = None
        self._heard_at = time.monotonic()
        self.by_path: Mapping[str, View] = {"/": self._nodes}

    async def asked(self, question: protocol.Question, by: str) -> protocol.Answer:  # noqa: ARG002 -- the shape of a site
        """Refuse: orders are for one process."""
        return protocol.Answer(error=protocol.Refused(kind="not_allowed", message="orders are given to one node"))

    async def _nodes(self, request: Request) -> Page:  # noqa: ARG002 -- the shape of a view
        gone = ""
        try:
            self._last = await self._fleet.look(), await self._fleet.sessions(at_most=MOST_ROWS)
            self._heard_at = time.monotonic()
        except FleetError as error:
            gone = str(error)
        values = {
            "name": self._fleet.name,
            "found": self._last[0] if self._last is not None else None,
            "nodes": self._last[0].processes[:_MOST_NODES] if self._last is not None else [],
            "sessions": self._last[1] if self._last is not None else [],
        }
        seen = Seen(gone=gone, silent_s=time.monotonic() - self._heard_at)
        return Page("nodes.html", "Nodes", values, seen)


class FleetDashboard:
    """The application. On the event loop that the fleet wants; it closes the fleet at its shutdown."""

    def __init__(self, fleet: Fleet, guard: Guard, *, show_content: bool) -> None:
        self._fleet, self._guard, self._show_content = fleet, guard, show_content
        self._feeds = Feeds()
        self._top = Dashboard(FleetViews(fleet), guard, feeds=self._feeds)
        self._nodes: OrderedDict[str, Dashboard] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope, as the ASGI protocol has it. A checkpoint."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        found = _NODE.match(path_of(scope)) if scope["type"] == "http" else None
        if found is None:
            await self._top(scope, receive, send)
            return
        request = Request(scope, receive)
        if (refusal := self._guard.refusal(request)) is not None:
            if refusal.status_code == 401 and request.method == "GET":  # the form for a token is at the top
                refusal = RedirectResponse("../../", 303)
            refusal.headers.update(HEADERS)
            await refusal(scope, receive, send)
        elif not found[2]:
            await RedirectResponse(f"{found[1]}/", 307, HEADERS)(scope, receive, send)
        else:
            root = f"{scope.get('root_path', '')}/node/{found[1]}"
            await self._node(found[1])({**scope, "root_path": root}, receive, send)

    def _node(self, key: str) -> Dashboard:
        if key not in self._nodes:
            views = Views(OneOf(self._fleet, key), show_content=self._show_content)
            self._nodes[key] = Dashboard(views, self._guard, above="../../", feeds=self._feeds)
            while len(self._nodes) > _MOST_KEPT:
                self._nodes.popitem(last=False)
        self._nodes.move_to_end(key)
        return self._nodes[key]

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.shutdown":
                await self._fleet.aclose()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return

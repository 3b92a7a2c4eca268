"""The pages by their paths: what each asks, and how that becomes a page."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from starlette.requests import Request

from ..status import protocol
from . import pages, timeline
from .orders import BadForm, number_of
from .pages import Page, Seen
from .source import Source, Unreachable

View = Callable[[Request], Awaitable[Page]]
Link = tuple[str, str, str]
"""Where it leads to, the page's template, and how it is called."""
_STATES = ("accepted", "started", "waiting", "parked", "unknown", "failed", "dropped", "cancelled", "done")


class Site(Protocol):
    """Some pages that belong together."""

    by_path: Mapping[str, View]
    nav: tuple[Link, ...]
    show_content: bool
    """Whether what people have written is shown."""

    async def asked(self, question: protocol.Question, by: str) -> protocol.Answer:
        """What becomes of an order; that nothing answers is an answer, too. A checkpoint."""


class Views:
    """The pages of one process. Asks a source. On one event loop.

    Args:
        show_content: whether what people have written is asked for.
    """

    nav: tuple[Link, ...] = (
        ("./", "now", "Now"),
        ("timeline", "timeline", "Timeline"),
        ("inbox", "inbox", "Inbox"),
        ("asks", "asks", "Questions"),
        ("parked", "parked", "Parked"),
        ("abandoned", "abandoned", "Abandoned"),
    )

    def __init__(self, source: Source, *, show_content: bool) -> None:
        self._source, self.show_content = source, show_content
        self._last: protocol.Picture | None = None
        self._heard_at = time.monotonic()
        self.by_path: Mapping[str, View] = {
            "/": self._now,
            "/run": self._run,
            "/session": self._session,
            "/timeline": self._timeline,
            "/inbox": self._inbox,
            "/asks": self._asks,
            "/parked": self._parked,
            "/abandoned": self._abandoned,
        }

    async def asked(self, question: protocol.Question, by: str = "dashboard") -> protocol.Answer:
        """The answer to a question; that nothing answers is one too. A checkpoint."""
        try:
            return await self._source.ask(question, by)
        except Unreachable as error:
            return protocol.Answer(error=protocol.Refused(kind="failed", message=str(error)))

    async def _look(self) -> Seen:
        """What the process does now; or what is known of it, if it does not answer."""
        answer = await self.asked(protocol.Status(each=pages.MOST_ROWS))
        if answer.status is not None:
            self._last, self._heard_at = answer.status, time.monotonic()
            return Seen(answer.status)
        gone = answer.error.message if answer.error is not None else ""
        return Seen(self._last, answer.frozen, gone, time.monotonic() - self._heard_at)

    async def _about(self, question: protocol.Question) -> tuple[Seen, protocol.Answer, str]:
        """What the process does, its answer, and why it has none."""
        seen = await self._look()
        answer = await self.asked(question) if seen.is_live else protocol.Answer()
        return seen, answer, answer.error.message if answer.error is not None else ""

    async def _now(self, request: Request) -> Page:  # noqa: ARG002 -- the shape of a view
        seen, answer, _ = await self._about(protocol.Trends())
        return pages.now(seen, answer.trends)

    async def _run(self, request: Request) -> Page:
        try:
            number = number_of(request.query_params, "id")
            question = protocol.question_of(protocol.encoded(protocol.Stack(run=number)))
        except (BadForm, protocol.BadQuestion) as wrong:
            return pages.refusal("Run", str(wrong), 422)
        seen, answer, error = await self._about(question)
        life = protocol.Answer()
        if answer.stack is not None:
            life = await self.asked(protocol.Life(run=number, content=self.show_content))
        return pages.run(seen, number, answer.stack, life.life, error)

    async def _session(self, request: Request) -> Page:
        key = request.query_params.get("key", "")
        question = protocol.Session(key=protocol.text(key, 1025), content=self.show_content)
        try:
            protocol.question_of(protocol.encoded(question))
        except protocol.BadQuestion as wrong:
            return pages.refusal("Session", str(wrong), 422)
        seen, answer, error = await self._about(question)
        values = {"key": key, "found": answer.session, "error": error}
        return Page("session.html", f"Session {key}", values, seen, 404 if error else 200)

    async def _timeline(self, request: Request) -> Page:
        window = timeline.window_of(request.query_params.get("window", ""))
        seen, answer, error = await self._about(protocol.Timeline(window_s=window))
        rows = timeline.rows_of(answer.timeline) if answer.timeline is not None else []
        zoom = timeline.zoom(window)
        values = {"found": answer.timeline, "rows": rows, "window": window, "zoom": zoom, "error": error}
        return Page("timeline.html", "Timeline", values, seen)

    async def _inbox(self, request: Request) -> Page:
        state = request.query_params.get("state", "") or "accepted"
        if state not in _STATES:
            return pages.refusal("Inbox", f"state: not allowed; allowed: {', '.join(_STATES)}", 422)
        seen, answer, error = await self._about(protocol.Messages(state=state, content=self.show_content))
        values = {"state": state, "states": _STATES, "found": answer.messages or [], "error": error}
        return Page("inbox.html", "Inbox", values, seen)

    async def _asks(self, request: Request) -> Page:  # noqa: ARG002 -- the shape of a view
        seen, answer, error = await self._about(protocol.Asks(content=self.show_content))
        return Page("asks.html", "Questions to a person", {"found": answer.asks or [], "error": error}, seen)

    async def _parked(self, request: Request) -> Page:  # noqa: ARG002 -- the shape of a view
        seen, answer, error = await self._about(protocol.Parked(content=self.show_content))
        return Page("parked.html", "Parked", {"found": answer.parked or [], "error": error}, seen)

    async def _abandoned(self, request: Request) -> Page:  # noqa: ARG002 -- the shape of a view
        seen = await self._look()
        return Page("abandoned.html", "Abandoned", {"picture": seen.picture}, seen)

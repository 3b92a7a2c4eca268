"""The application: routes, orders, and what all pages share."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable, Collection
from contextlib import aclosing
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from ..status import protocol
from ..threads import Threads
from . import pages, render
from .guard import HEADERS, Guard, foreign
from .live import MOST_READERS, Feeds, wants_stream
from .orders import BadForm, order_of
from .pages import Page
from .source import Inside
from .views import Site, View, Views

if TYPE_CHECKING:
    from ..supervisor import Supervisor

_MOST_NOTICES = 50
_LONGEST_FORM = 64 * 1024
_FORM_WITHIN_S = 10.0
_HTTP = {"unknown_run": 404, "run_ended": 409, "not_now": 409, "refused": 409, "bad_question": 422, "not_allowed": 403}


def dashboard(
    sup: Supervisor | Callable[[], Supervisor | None],
    *,
    allow_control: bool = False,
    show_content: bool = False,
    token: str | None = None,
    hosts: Collection[str] = (),
) -> ASGIApp:
    """An ASGI application that shows what a supervisor does, to be mounted into one that runs on the same event loop.

    Args:
        sup: the supervisor, or a function that returns it, or `None` while there is none.
        allow_control: whether runs can be stopped, and whatever else changes something; each order is logged.
        show_content: whether what people have written is shown: transcripts, messages, questions.
        token: what a visitor has to have. Without one, pages are for this machine alone: for its own addresses, under
            its own names.
        hosts: further names that pages may be asked for under without a token; what answers to these names has to know
            its visitors itself.

    Raises:
        ValueError: the token is too short.
    """
    views = Views(Inside(sup), show_content=show_content)
    return Dashboard(views, Guard(token, hosts, allow_control=allow_control))


class Dashboard:
    """The application. On one event loop.

    Args:
        views: its pages.
        guard: who may see them, and whose orders count.
        above: where the pages are that lead to these, relative to them.
        feeds: those of a dashboard that this one is a part of, so that all its readers are counted together.
    """

    def __init__(self, views: Site, guard: Guard, *, above: str = "", feeds: Feeds | None = None) -> None:
        self._views, self._guard = views, guard
        self._nav = (*(((above, "", "Nodes"),) if above else ()), *views.nav)
        self._feeds = feeds if feeds is not None else Feeds()
        self._notices: OrderedDict[str, str] = OrderedDict()
        self._threads = Threads(2)
        """Those that render: a page of some hundred rows takes longer than an event loop should stand still."""
        routes = [Route(path, partial(self._show, view), methods=["GET"]) for path, view in views.by_path.items()]
        routes += [
            Route("/act", self._act, methods=["POST"]),
            Route("/login", self._login, methods=["POST"]),
            Route("/static/{name}", self._static, methods=["GET"]),
        ]
        self._app = Starlette(routes=routes, exception_handlers={404: self._not_found})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope, as the ASGI protocol has it. A checkpoint."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        path = path_of(scope)
        if not path:  # its pages name each other beside where they are, so it needs the slash
            await RedirectResponse(f"{request.url.path}/", 307)(scope, receive, send)
            return
        refusal = None if path.startswith("/static/") or path == "/login" else self._guard.refusal(request)
        if refusal is not None and refusal.status_code == HTTPStatus.UNAUTHORIZED and request.method == "GET":
            refusal = await self._page(request, Page("login.html", "Token", {"error": ""}, status=401))
        if refusal is not None:
            refusal.headers.update(HEADERS)
            await refusal(scope, receive, send)
        elif request.method == "GET" and wants_stream(scope) and path in self._views.by_path:
            await self._stream(request, path, receive, send)
        else:
            await self._app(scope, receive, send)

    # Pages

    async def _show(self, view: View, request: Request) -> Response:
        return await self._page(request, await view(request))

    async def _page(self, request: Request, page: Page) -> Response:
        notice = self._notices.pop(request.query_params.get("notice", ""), "")
        values = self._values(page) | {"notice": notice}
        text = await self._threads.run(partial(render.page, page.template, values))
        return HTMLResponse(text, page.status, HEADERS)

    def _values(self, page: Page) -> dict[str, Any]:
        return {
            "seen": page.seen,
            "title": page.title,
            "page": page.template.removesuffix(".html"),
            "allow_control": self._guard.allow_control and page.seen.is_live,
            "form_secret": self._guard.form_secret,
            "show_content": self._views.show_content,
            "nav": self._nav,
            **page.values,
        }

    async def _stream(self, request: Request, path: str, receive: Receive, send: Send) -> None:
        if self._feeds.readers >= MOST_READERS:
            await PlainTextResponse("too many pages are open\n", 503, HEADERS)(request.scope, receive, send)
            return
        query = "&".join(f"{name}={value}" for name, value in request.query_params.multi_items() if name != "notice")
        make = partial(self._parts, self._views.by_path[path], request)
        await self._feeds.serve((request.scope.get("root_path"), path, query), make, receive, send, HEADERS)

    async def _parts(self, view: View, request: Request) -> dict[str, str]:
        page = await view(request)
        values = self._values(page)
        return await self._threads.run(partial(render.parts, page.template, values))

    async def _static(self, request: Request) -> Response:
        name = request.path_params["name"]
        try:
            body = await self._threads.run(partial(render.static, name))
        except KeyError:
            return PlainTextResponse("there is no such file\n", 404, HEADERS)
        headers = HEADERS | {"Cache-Control": "max-age=86400"}
        return Response(body, headers=headers, media_type=render.STATIC[name])

    async def _not_found(self, request: Request, error: Exception) -> Response:  # noqa: ARG002 -- the shape of a handler
        return await self._page(request, pages.refusal("No such page", "There is no such page.", 404))

    # Orders

    async def _act(self, request: Request) -> Response:
        form = await _form(request)
        if form is None:
            return await self._refused(request, "the form is too long, too slow, or no form", 422)
        if why := self._guard.disorder(request, form.get("secret", "")):
            return await self._refused(request, why, 403)
        by = f"dashboard, {request.client.host if request.client is not None else 'this machine'}"
        try:
            question, to = order_of(form, by)
        except BadForm as error:
            return await self._refused(request, str(error), 422)
        return await self._told(request, await self._views.asked(question, by), to)

    async def _told(self, request: Request, answer: protocol.Answer, to: str) -> Response:
        """Show what came of an order, on the page that it is about."""
        if answer.frozen is not None:
            return await self._refused(request, "the event loop is frozen: nothing was done", 503)
        if answer.error is not None:
            return await self._refused(request, answer.error.message, _HTTP.get(answer.error.kind, 503))
        key = secrets.token_urlsafe(6)
        self._notices[key] = answer.done.text if answer.done is not None else _stopped(answer)
        while len(self._notices) > _MOST_NOTICES:
            self._notices.popitem(last=False)
        return RedirectResponse(f"./{to}{'&' if '?' in to else '?'}notice={key}", 303, HEADERS)

    async def _login(self, request: Request) -> Response:
        form = await _form(request)
        if form is not None and not foreign(request) and self._guard.is_token(form.get("token", "")):
            response = self._guard.admit(request, "./")
            response.headers.update(HEADERS)
            return response
        return await self._page(request, Page("login.html", "Token", {"error": "That is not the token."}, status=403))

    async def _refused(self, request: Request, message: str, status: int) -> Response:
        return await self._page(request, pages.refusal("Not done", message, status))


def path_of(scope: Scope) -> str:
    """The path below where the application is mounted."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path.removeprefix(root) if path == root or path.startswith(f"{root}/") else path


def _stopped(answer: protocol.Answer) -> str:
    found = answer.stopped
    assert found is not None
    before = "" if found.asked else " before"
    return f"run {found.run} on lane {found.lane}, {found.state}, was asked to end{before}: {found.reason}"


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a form, the last of each name; `None` if it cannot be read."""
    body = bytearray()
    with anyio.move_on_after(_FORM_WITHIN_S) as reading:
        async with aclosing(request.stream()) as chunks:
            async for chunk in chunks:
                body += chunk[: _LONGEST_FORM + 1 - len(body)]
    if reading.cancelled_caught or len(body) > _LONGEST_FORM:
        return None
    try:
        fields = parse_qs(body.decode("ascii"), keep_blank_values=True, max_num_fields=50, errors="strict")
    except ValueError:
        return None
    return {name: values[-1] for name, values in fields.items()}

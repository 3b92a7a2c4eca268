"""A supervisor in an ASGI application: the server's side of the protocol is played by hand."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from structlog.testing import capture_logs

from lanes import Draining, LaneSpec, RunContext
from runtime import Supervisor
from runtime.asgi import Supervised
from tests.supervised import Stubborn, gone

pytestmark = pytest.mark.backends("asyncio", "trio")


class Server:
    """One lifespan as a server sees it."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.state: dict[str, Any] = {}
        self.heard: list[dict[str, Any]] = []
        self.told: list[dict[str, Any]] = []
        self._news = anyio.Event()

    def tell(self, kind: str) -> None:
        self.told.append({"type": kind})
        self._wake()

    async def answer(self, count: int) -> dict[str, Any]:
        """The application's answer of that number."""
        with anyio.fail_after(60):
            while len(self.heard) < count:
                await self._news.wait()
        return self.heard[count - 1]

    async def serve(self) -> None:
        await self.app({"type": "lifespan", "state": self.state}, self._receive, self._send)

    async def _receive(self) -> dict[str, Any]:
        while not self.told:
            await self._news.wait()
        return self.told.pop(0)

    async def _send(self, message: dict[str, Any]) -> None:
        assert message["type"].startswith("lifespan."), message
        self.heard.append(message)
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._news = anyio.Event()


async def request(app: Any, kind: str = "http", **more: Any) -> None:
    """One request for an application that neither reads nor answers."""
    await app({"type": kind, **more}, None, None)


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[Server]:
    """An application between its start and its shutdown, both of which must succeed."""
    server = Server(app)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        server.tell("lifespan.startup")
        assert await server.answer(1) == {"type": "lifespan.startup.complete"}
        yield server
        server.tell("lifespan.shutdown")
        assert await server.answer(2) == {"type": "lifespan.shutdown.complete"}


async def failing_start(app: Any) -> str:
    """The reason of a start that fails, after which the lifespan is over."""
    server = Server(app)
    server.tell("lifespan.startup")
    with anyio.fail_after(60):
        await server.serve()
    (answer,) = server.heard
    assert answer["type"] == "lifespan.startup.failed"
    return str(answer["message"])


class Application:
    """An inner application: notes what it is told, and has a lifespan that answers as it is set up to."""

    def __init__(self, notes: list[str], *, startup: str = "complete", shutdown: str = "complete") -> None:
        self.notes = notes
        self.answers = {"startup": startup, "shutdown": shutdown}
        self.scopes: list[Any] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] != "lifespan":
            return
        for phase in ("startup", "shutdown"):
            assert await receive() == {"type": f"lifespan.{phase}"}
            self.notes.append(f"application: {phase}")
            if self.answers[phase] == "raise":
                raise LookupError(f"no {phase}")
            answer = {"type": f"lifespan.{phase}.{self.answers[phase]}"}
            await send(answer | ({"message": f"no {phase}"} if self.answers[phase] == "failed" else {}))
            if answer["type"] == "lifespan.startup.failed":
                return


@asynccontextmanager
async def noting(notes: list[str]) -> AsyncIterator[None]:
    """A service of the supervisor: notes when the supervisor starts and stops."""
    notes.append("supervisor: start")
    yield
    notes.append("supervisor: stop")


@asynccontextmanager
async def broken() -> AsyncIterator[None]:
    """A service that does not start."""
    await anyio.Path("/no/such/secret").stat()
    yield


async def test_the_supervisor_starts_before_the_application_and_stops_after_it(tmp_path):
    notes: list[str] = []
    make = partial(Supervisor, tmp_path, services={"notes": partial(noting, notes)})
    async with served(Supervised(Application(notes), make)):
        pass
    assert notes == ["supervisor: start", "application: startup", "application: shutdown", "supervisor: stop"]


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_each_request_finds_it_in_a_state_of_its_own(tmp_path, kind):
    app = Supervised(inner := Application([]), partial(Supervisor, tmp_path))
    async with served(app) as server:
        given = {"shared": "by the server"}
        await request(app, kind, state=given)
        await request(app, kind)
        assert inner.scopes[1]["state"] == given | {"lanes": app.supervisor}
        assert inner.scopes[2]["state"] == {"lanes": app.supervisor}
        assert given == {"shared": "by the server"}
        assert server.state["lanes"].state == "running"


async def test_the_key_can_be_chosen(tmp_path):
    app = Supervised(inner := Application([]), partial(Supervisor, tmp_path), key="sessions")
    async with served(app):
        await request(app)
        assert inner.scopes[1]["state"] == {"sessions": app.supervisor}


async def raises(scope: Any, receive: Any, send: Any) -> None:
    assert scope["type"] == "http"


async def returns(scope: Any, receive: Any, send: Any) -> None:
    return


async def answers_everything_alike(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})


@pytest.mark.parametrize("app", [raises, returns, answers_everything_alike])
async def test_an_application_without_a_lifespan_will_do(tmp_path, app):
    supervised = Supervised(app, partial(Supervisor, tmp_path))
    async with served(supervised):
        assert supervised.supervisor is not None and supervised.supervisor.state == "running"
    assert supervised.supervisor is None


async def test_runs_under_way_finish_before_the_shutdown_is_over(tmp_path):
    async def work(ctx: RunContext) -> str:
        began.set()
        await may_end.wait()
        return "done"

    notes: list[str] = []
    began, may_end = anyio.Event(), anyio.Event()
    app = Supervised(Application(notes), partial(Supervisor, tmp_path))
    async with served(app) as server:
        assert app.supervisor is not None
        sup, run = app.supervisor, app.supervisor.submit("main", work)
        await began.wait()
        server.tell("lifespan.shutdown")
        with anyio.fail_after(60):
            while sup.state == "running":
                await anyio.sleep(0.001)
        assert notes == ["application: startup", "application: shutdown"]
        assert len(server.heard) == 1, "the shutdown was over before the run"
        await request(app)  # a late request still finds it, and is refused by name
        with pytest.raises(Draining):
            sup.submit("main", work)
        may_end.set()
    assert await run.result() == "done"


async def test_a_service_that_fails_is_the_reason_of_the_failed_start(tmp_path):
    app = Supervised(inner := Application([]), partial(Supervisor, tmp_path, services={"secrets": broken}))
    reason = await failing_start(app)
    assert "/no/such/secret" in reason and "service 'secrets' failed to start" in reason
    assert inner.scopes == [], "the application was called although the supervisor did not start"
    with pytest.raises(RuntimeError, match="no supervisor runs"):
        await request(app)


async def test_settings_that_are_not_allowed_are_the_reason_of_the_failed_start(tmp_path):
    def make() -> Supervisor:
        return Supervisor(tmp_path, lanes=[LaneSpec("job", capacity=0)])

    assert "capacity: 0" in await failing_start(Supervised(Application([]), make))


async def test_an_application_that_does_not_start_stops_the_supervisor(tmp_path):
    notes: list[str] = []
    make = partial(Supervisor, tmp_path, services={"notes": partial(noting, notes)})
    assert await failing_start(Supervised(Application(notes, startup="failed"), make)) == "no startup"
    assert notes == ["supervisor: start", "application: startup", "supervisor: stop"]


@pytest.mark.parametrize("how", ["failed", "raise"])
async def test_an_application_that_does_not_end_well_stops_the_supervisor_and_is_reported(tmp_path, how):
    notes: list[str] = []
    make = partial(Supervisor, tmp_path, services={"notes": partial(noting, notes)})
    server = Server(Supervised(Application(notes, shutdown=how), make))
    server.tell("lifespan.startup")
    server.tell("lifespan.shutdown")
    with anyio.fail_after(60):
        await server.serve()
    assert server.heard[1]["type"] == "lifespan.shutdown.failed" and "no shutdown" in server.heard[1]["message"]
    assert notes[-1] == "supervisor: stop"


async def test_abandoned_bodies_are_logged_and_fail_the_shutdown(tmp_path):
    stubborn = Stubborn()
    lane = LaneSpec("job", grace=0.01)
    app = Supervised(Application([]), partial(Supervisor, tmp_path, lanes=[lane], drain_timeout=0.0))
    server = Server(app)
    async with anyio.create_task_group() as group:
        group.start_soon(server.serve)
        server.tell("lifespan.startup")
        await server.answer(1)
        assert app.supervisor is not None
        sup = app.supervisor
        sup.submit("job", stubborn)
        await stubborn.started.wait()
        with capture_logs() as logs:
            server.tell("lifespan.shutdown")
            answer = await server.answer(2)
    stubborn.release()
    await gone(sup)
    assert answer["type"] == "lifespan.shutdown.failed" and "1 abandoned" in answer["message"]
    assert [line["abandoned"] for line in logs if line["event"] == "abandoned_bodies_left"] == [1]


async def hang(ctx: RunContext) -> None:
    await anyio.sleep_forever()


async def test_a_cancelled_lifespan_stops_the_supervisor_at_once(tmp_path):
    notes: list[str] = []
    make = partial(Supervisor, tmp_path, services={"notes": partial(noting, notes)}, drain_timeout=1000.0)
    app = Supervised(Application(notes), make)
    server = Server(app)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(server.serve)
            server.tell("lifespan.startup")
            await server.answer(1)
            assert app.supervisor is not None
            run = app.supervisor.submit("main", hang)
            group.cancel_scope.cancel()
    assert (run.state, app.supervisor) == ("cancelled", None)
    assert notes == ["supervisor: start", "application: startup", "supervisor: stop"]
    assert len(server.heard) == 1


async def test_it_can_be_served_again_with_a_new_supervisor(tmp_path):
    app, seen = Supervised(returns, partial(Supervisor, tmp_path)), []
    for _ in range(2):
        async with served(app):
            seen.append(app.supervisor)
    assert seen[0] is not seen[1]


async def test_signals_are_left_to_the_host(tmp_path):
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    async with served(Supervised(returns, partial(Supervisor, tmp_path))):
        now = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
        assert now == before


async def test_it_is_a_middleware_and_leaves_the_applications_own_state_alone(tmp_path):
    @asynccontextmanager
    async def own(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"own": "state"}

    async def say(request: Request) -> PlainTextResponse:
        return PlainTextResponse(f"{request.state.own} {request.state.lanes.state}")

    async def receive() -> dict[str, Any]:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        sent.append(message)

    sent: list[dict[str, Any]] = []
    supervised = Middleware(Supervised, make=partial(Supervisor, tmp_path))
    app = Starlette(routes=[Route("/", say)], middleware=[supervised], lifespan=own)
    async with served(app) as server:
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "state": dict(server.state)}
        await app(scope, receive, send)
    assert sent[1]["body"] == b"state running"

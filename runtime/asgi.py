"""A supervisor inside an ASGI application: started and stopped by the server's lifespan events, signals left to it.

    app = Supervised(Starlette(routes=[...]), lambda: Supervisor("sessions/", lanes=[...]))

and in a request `request.state.lanes.post(...)`. The class takes the application first, so it is a middleware too:
`Middleware(Supervised, make=make)`. It is plain ASGI, for any server and either event loop.

Everything of a lifespan happens in the one task that the server gives it: the inner application's own lifespan is run
there, between the supervisor's start and its stop, by handing it the server's events when it is their turn. There is no
second task whose failure would have to be passed on, and cancelling that task ends everything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import anyio

from locks._events import described, log

from .supervisor import Supervisor
from .zombies import AbandonedBodies

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]


class Supervised:
    """An ASGI application with a supervisor that lives as long as it serves.

        app = Supervised(Starlette(routes=[...]), lambda: Supervisor("sessions/", lanes=[...]))

    or, as a middleware, `app.add_middleware(Supervised, make=make)`; in a request, `request.state.lanes.post(...)`.

    At `lifespan.startup` the supervisor is made and started, then the inner application starts; at `lifespan.shutdown`
    the application ends first, then the supervisor, which drains for its `drain_timeout`. What fails on the way is
    reported to the server as `lifespan.startup.failed` or `lifespan.shutdown.failed`, and nothing is left running.
    A lifespan task that is cancelled stops the supervisor without a drain.

    Each request and each WebSocket finds the supervisor in `scope["state"][key]`; so does the inner lifespan, where the
    server has a state for it. One lifespan at a time; after its end there may be another.

    Args:
        app: the application; one without a lifespan of its own will do.
        make: called at each start, on the event loop; returns a supervisor that is not started yet.
        key: its name in the state.
    """

    def __init__(self, app: Application, make: Callable[[], Supervisor], *, key: str = "lanes") -> None:
        self.app = app
        self.supervisor: Supervisor | None = None
        """The one that runs; `None` before the start and after the stop."""
        self._make = make
        self._key = key

    def __repr__(self) -> str:
        return f"<Supervised {self.app!r}: {self.supervisor!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope, as the ASGI protocol has it. A checkpoint.

        Raises:
            RuntimeError: a request came though nothing was started: the server runs no lifespan, or its start failed.
            Exception: what the application raises for a request.
        """
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif self.supervisor is None:
            raise RuntimeError("no supervisor runs: the server must run the lifespan of this application first")
        else:
            await self.app(self._with_supervisor(scope, self.supervisor), receive, send)

    def _with_supervisor(self, scope: Scope, supervisor: Supervisor) -> Scope:
        return {**scope, "state": {**scope.get("state", {}), self._key: supervisor}}

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        startup = await receive()
        try:
            supervisor = self._make()
            await supervisor.start()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": _reason("the supervisor did not start", error)})
            return
        inner = _Inner(startup, receive, send)
        self.supervisor = supervisor
        try:
            if "state" in scope:
                scope["state"][self._key] = supervisor  # in the server's own: what the application adds is handed out
            await inner.live(self.app, scope)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self._stop(supervisor, drain_timeout=0.0)
            raise
        drain = None if inner.started else 0.0
        failures = [*inner.failures, *await self._stop(supervisor, drain_timeout=drain)]
        phase = "shutdown" if inner.started else "startup"
        if failures or not inner.started:
            await send({"type": f"lifespan.{phase}.failed", "message": "; ".join(failures)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _stop(self, supervisor: Supervisor, *, drain_timeout: float | None) -> list[str]:
        """Stop it; returns what went wrong. Requests find it until it has stopped, and get `Draining`."""
        try:
            await supervisor.stop(drain_timeout=drain_timeout)
        except AbandonedBodies as error:
            log("abandoned_bodies_left", level="error", abandoned=len(error.runs))
            return [_reason("the supervisor has stopped", error)]
        except Exception as error:
            return [_reason("the supervisor did not stop well", error)]
        finally:
            self.supervisor = None
        return []


class _Inner:
    """The inner application's lifespan: what it gets from the server, and what it reports."""

    def __init__(self, startup: Message, receive: Receive, send: Send) -> None:
        self.started = False
        """Whether it was reported to the server that it may send requests."""
        self.failures: list[str] = []
        """What the application reports as wrong, in words; not empty when it has not started."""
        self._startup: Message | None = startup
        self._shut_down = False
        self._from_server, self._to_server = receive, send

    async def live(self, app: Application, scope: Scope) -> None:
        """Run it until the server shuts down, or until its start has failed. A checkpoint.

        An application that raises or returns before it has answered has no lifespan, as the protocol has it.
        """
        try:
            await app(scope, self._receive, self._send)
        except Exception as error:
            if self.started and not self.failures:
                log("asgi_lifespan_failed", level="error", error=described(error))
                self.failures.append(_reason("the application's lifespan has failed", error))
            elif not self.started and not self.failures:
                log("asgi_lifespan_unsupported", error=described(error))
        self._startup = None  # it may have ended without asking
        if not self.started and not self.failures:
            await self._send({"type": "lifespan.startup.complete"})
        if self.started and not self._shut_down:
            await self._receive()  # it ended early; the supervisor lives on for the requests

    async def _receive(self) -> Message:
        if self._startup is not None:
            message, self._startup = self._startup, None
            return message
        message = await self._from_server()
        self._shut_down = True
        return message

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind in ("lifespan.startup.failed", "lifespan.shutdown.failed"):
            self.failures.append(message.get("message") or f"the application says {kind}")
        elif kind != "lifespan.shutdown.complete":  # held back: the supervisor has to stop first
            await self._to_server(message)
            self.started = self.started or kind == "lifespan.startup.complete"


def _reason(what: str, error: Exception) -> str:
    """What failed, with the notes of the error."""
    return "; ".join((f"{what}: {described(error)}", *getattr(error, "__notes__", ())))

"""A chat gateway: sessions over HTTP and WebSocket, Starlette under uvicorn. `examples/agent.py` has their bodies.

    pip install 'session-lanes[gateway]'
    python -m examples.gateway --sessions sessions/     # each option is a variable too, such as GATEWAY_SESSIONS, for
    uvicorn --factory examples.gateway:create_app --timeout-graceful-shutdown 30

With `--store` or `LANES_STORE`, any number of gateways on any machines share their sessions in a PostgreSQL database
(`lanes db init` makes its schema): each request may come to each of them. See docs/cluster.md and examples/cluster/.

`POST /sessions/{key}/messages`: `{"text": ..., "when_busy"?: ..., "wait"?: seconds or false}`. The message is on disk
    before it is answered: 200 with the reply, or 202 with a message to poll, when it takes longer than `wait` (at most
    `--wait`) or when a person has to be asked first. A request with an `Idempotency-Key` that was sent before gets the
    same message for 7 days, whatever became of it: after one that gave no answer, send another key.
`GET /messages/{id}`: where a message stands, also after the process was killed, and its reply or question.
`GET /asks`, `GET /asks?session=...`: the questions that wait for a person. The agent asks before it deletes a file:
    send the text `/delete notes.txt`.
`POST /asks/{id}`: `{"value": ..., "by"?: ..., "wait"?: ...}` answers one; the response is that to a message. 409 it has
    an answer already, or has expired; 404 it was never asked.
`WebSocket /sessions/{key}/stream`: accepts the same objects, waits for no answer, and sends events of the types
    `accepted`, `token`, `end` and `error`. A client that reads too slowly misses tokens; a client that reads nothing is
    disconnected.
`POST /sessions/{key}/stop`, `POST /sessions/{key}/reset`: end the session's runs; `reset` also moves its file aside.
`GET /runs/{id}`: the state of a run, and its reply, if it is one of this process.
`GET /healthz`, `GET /readyz`, `GET /metrics`: whether the process is healthy, whether it accepts work, Prometheus.
`POST /admin/restart`: a new generation in the same process. From this machine only.

A key is the percent-decoded part of the path: 1 byte to 1 KiB of UTF-8. Other bytes are refused, not replaced.

A refusal gives the reason: 408 and 413 the body arrives too slowly, or is too long; 409 the session is busy (the body
names the run that has it), the run was stopped, reset or superseded, or the `Idempotency-Key` is that of another text;
422 a field, its value and what is allowed; 429 the queue is full; 503 draining or restarting, or the disk is full; 504
the run timed out. A response to a request that may be tried again has `Retry-After`. A client that disconnects ends no
run: its message is kept, and the answer will be.

What waits when the process ends is answered by the next process. What was being answered when it was killed is not
repeated: the session says so, and asks to ask again. uvicorn handles SIGTERM: requests under way are answered, which
takes `--wait` at most, WebSockets are closed, then the supervisor drains. SIGHUP does the same; SIGUSR1 restarts.
"""

from __future__ import annotations

import asyncio
import ipaddress
import os
import signal
import socket
import sys
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import anyio
import click
import msgspec
import uvicorn
from anyio.abc import TaskGroup
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from examples.agent import Agent, Model, clock
from examples.wire import (
    MAX_BODY,
    AsSent,
    Decided,
    Posted,
    Refusal,
    answered,
    body_of,
    kept,
    key_in,
    parsed,
    problem,
    refused,
    reply,
    shown,
)
from lanes import LaneError, LaneSpec, RunError
from locks import LockError
from runtime import Accepted, OutcomeUnknown, PostgresStore, Supervisor
from runtime.asgi import Supervised
from runtime.log import configure
from runtime.metrics import SupervisorCollector


@dataclass(frozen=True)
class Settings:
    """The values of the options."""

    sessions: str
    wait: float
    timeout: float
    model_delay: float
    model_tokens: int
    cron_every: float
    heartbeat_every: float
    compact_above: int
    client_timeout: float
    store: str | None = None
    node: str | None = None
    ttl: float = 10.0


# The routes


class Gateway:
    """The routes, and the supervisor to which they submit work."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.recent: deque[str] = deque(maxlen=100)
        """The sessions that get cron jobs and heartbeats."""

    def supervisor(self) -> Supervisor:
        """What `Supervised` starts."""
        s = self.settings
        agent = Agent(s.compact_above)
        chat = LaneSpec("session:*", handler=agent, timeout=s.timeout, on_unknown=agent.interrupted)
        model = Model(s.model_delay, s.model_tokens)
        sup = Supervisor(
            s.sessions if s.store is None else PostgresStore(s.store, ttl=s.ttl),
            lanes=[chat],
            inbox=True,
            node=s.node,
            status_socket=True,
            notify=True,
            services={
                "model": lambda: nullcontext(model),
                "clock": lambda: clock(sup, self.recent, s.cron_every, s.heartbeat_every),
            },
        )
        if sys.platform != "win32":  # without a handler, SIGUSR1 would end the process at once
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, sup.request_restart, "SIGUSR1")
        return sup

    async def take(self, connection: Request | WebSocket, posted: Posted) -> Accepted:
        """Accept a message for the session that the path names: returns when it is on disk."""
        key, sup = key_in(connection), connection.state.lanes
        dedupe = connection.headers.get("idempotency-key")
        accepted: Accepted = await sup.accept(f"session:{key}", posted.text, when_busy=posted.when_busy, dedupe=dedupe)
        if key not in self.recent:
            self.recent.append(key)
        return accepted

    async def post(self, request: Request) -> Response:
        """Accept a message, and wait for the answer, for a bounded time."""
        posted = parsed(await body_of(request, within=self.settings.client_timeout), Posted)
        return await self.response(request, await self.take(request, posted), posted.wait)

    async def response(self, request: Request, accepted: Accepted, wait: float | None) -> Response:
        """Wait for what becomes of a message, at most as long as client and gateway want to."""
        longest = self.settings.wait
        with anyio.move_on_after(longest if wait is None else min(wait, longest)):
            await accepted.wait()
        return await answered(request, accepted)

    async def message(self, request: Request) -> Response:
        """Where a message stands."""
        number = request.path_params["id"]
        found = await request.state.lanes.find_message(number)
        if found is None:
            raise Refusal(f"message {number} is not kept: it never was, or ended too long ago", status=404)
        return reply(kept(found))

    async def asks(self, request: Request) -> Response:
        """The questions that wait for a person."""
        return reply({"asks": await request.state.lanes.asks(session=request.query_params.get("session"))})

    async def answer(self, request: Request) -> Response:
        """Answer a question, and wait for what the agent says to that, as for a message."""
        decided = parsed(await body_of(request, within=self.settings.client_timeout), Decided)
        accepted = await request.state.lanes.answer(request.path_params["id"], decided.value, by=decided.by)
        return await self.response(request, accepted, decided.wait)

    async def stream(self, socket: WebSocket) -> None:
        """Accept messages, and send the events of their runs. Ends with the connection; the runs go on."""
        await socket.accept()
        async with anyio.create_task_group() as tasks:
            while (frame := await socket.receive())["type"] == "websocket.receive":
                try:
                    posted = parsed(frame.get("text") or frame.get("bytes") or b"", Posted)
                    accepted = await self.take(socket, posted)
                except (LaneError, LockError) as error:
                    await self.send(socket, tasks, {"type": "error"} | problem(error, socket.state.lanes))
                else:
                    tasks.start_soon(self.relay, socket, tasks, accepted)
            tasks.cancel_scope.cancel()

    async def relay(self, socket: WebSocket, tasks: TaskGroup, accepted: Accepted) -> None:
        """Send the events of a message's run, and what became of the message."""
        run = accepted.run  # none yet: older messages of the session are on disk only, or another process has it
        # A slow client misses the oldest events, and costs no more memory.
        events = socket.state.lanes.everywhere.events(accepted.id, buffer=256)
        number = run and run.id
        await self.send(socket, tasks, {"type": "accepted", "id": accepted.id, "run": number})
        told: dict[str, Any] = {"type": "end"}
        try:
            async for token in events:
                await self.send(socket, tasks, {"type": "token", "id": accepted.id, "run": number, "token": token})
            await accepted.wait()
        except LaneError as error:  # how it ended cannot be kept
            told |= problem(error, socket.state.lanes) | {"type": "error"}
        told = {"missed": events.dropped} | (shown(run) if run is not None else {}) | told
        await self.send(socket, tasks, told | kept(accepted))

    async def send(self, socket: WebSocket, tasks: TaskGroup, event: dict[str, Any]) -> None:
        """Send an event; a client that reads none for too long counts as disconnected."""
        try:
            with anyio.fail_after(self.settings.client_timeout):
                await socket.send_text(msgspec.json.encode(event, enc_hook=str).decode())
        except (TimeoutError, WebSocketDisconnect):
            tasks.cancel_scope.cancel()

    async def stop(self, request: Request) -> Response:
        """End the running and the queued runs of a session."""
        stopped = await request.state.lanes.everywhere.cancel(session=key_in(request), reason="stopped")
        return reply({"stopped": stopped})

    async def reset(self, request: Request) -> Response:
        """End the session's runs, and give the session a new file."""
        moved = await request.state.lanes.reset(key_in(request))
        return reply({"archived": moved and os.path.basename(moved)})

    async def run(self, request: Request) -> Response:
        """The state of a run."""
        number = request.path_params["id"]
        found = request.state.lanes.find(number)
        if found is not None:
            return reply(shown(found))
        seen = await request.state.lanes.everywhere.find(number)  # another gateway has it, on a shared store
        if seen is None:
            raise Refusal(f"run {number} is not known: it never was, or ended too long ago", status=404)
        return reply({"run": number} | {name: getattr(seen, name) for name in ("lane", "session", "state", "reason")})


async def healthz(request: Request) -> Response:
    """Whether the process is healthy; otherwise it should be restarted."""
    now = request.state.lanes.statistics()
    told = {"problems": now.problems, "slowed": now.admission_slowed, "abandoned": now.abandoned}
    return reply(told | {"loop_lag_s": now.loop_lag}, 200 if now.healthy else 503)


async def readyz(request: Request) -> Response:
    """Whether it accepts work: not while it drains, restarts, or cannot write what it would accept."""
    state, inbox = request.state.lanes.state, request.state.lanes.statistics().inbox
    if state == "running" and not inbox.error:
        return reply({"state": state})
    return reply({"state": state, "inbox": inbox.error}, 503, Retry_After="1")


async def metrics(request: Request) -> Response:
    """The metrics, for Prometheus."""
    registry = CollectorRegistry()
    registry.register(SupervisorCollector(request.state.lanes))
    return Response(generate_latest(registry), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def restart(request: Request) -> Response:
    """Begin a restart within the process; `GET /readyz` shows when it is over."""
    if request.client is None or not ipaddress.ip_address(request.client.host).is_loopback:
        raise Refusal("a restart is asked for on the machine itself", status=403)
    request.state.lanes.request_restart(f"asked for by {request.client.host}")
    return reply({"state": request.state.lanes.state}, 202)


# The process


def application(settings: Settings) -> Supervised:
    """The ASGI application."""
    gateway = Gateway(settings)
    routes = [
        Route("/sessions/{key:key}/messages", gateway.post, methods=["POST"]),
        Route("/sessions/{key:key}/stop", gateway.stop, methods=["POST"]),
        Route("/sessions/{key:key}/reset", gateway.reset, methods=["POST"]),
        WebSocketRoute("/sessions/{key:key}/stream", gateway.stream),
        Route("/messages/{id:int}", gateway.message),
        Route("/asks", gateway.asks),
        Route("/asks/{id}", gateway.answer, methods=["POST"]),
        Route("/runs/{id:int}", gateway.run),
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", metrics),
        Route("/admin/restart", restart, methods=["POST"]),
    ]
    errors: Any = dict.fromkeys((LaneError, LockError, RunError, OutcomeUnknown, TimeoutError), refused)
    return Supervised(AsSent(Starlette(routes=routes, exception_handlers=errors)), gateway.supervisor)


def create_app() -> Supervised:
    """The ASGI application, with settings from the environment: for `uvicorn --factory`."""
    options = main.make_context("gateway", []).params
    return application(Settings(**{name: options[name] for name in Settings.__dataclass_fields__}))


def option(name: str, default: Any, text: str, **more: Any) -> Any:
    """An option, and its environment variable."""
    variable = more.pop("envvar", "GATEWAY_" + name.lstrip("-").replace("-", "_").upper())
    return click.option(name, default=default, envvar=variable, show_default=True, show_envvar=True, help=text, **more)


SECONDS = click.FloatRange(min=0)
PERIOD = click.FloatRange(min=0, min_open=True)


@click.command()
@option("--host", "127.0.0.1", "Where to listen.")
@option("--port", 8000, "0 for a free one.", type=click.IntRange(0, 65535))
@option("--sessions", "sessions", "The directory of the transcripts.")
@option("--store", None, "The PostgreSQL database that has them instead, shared.", envvar="LANES_STORE")
@option("--node", None, "What this process is called among those that share the store; by default after its host.")
@option("--ttl", 10.0, "Seconds for which a process that shares the store may be silent.", type=PERIOD)
@option("--wait", 20.0, "Seconds until a POST is answered 202.", type=SECONDS)
@option("--timeout", 300.0, "Seconds that an answer may take.", type=PERIOD)
@option("--model-delay", 0.02, "Seconds per token.", type=SECONDS)
@option("--model-tokens", 10, "How many an answer has at least.", type=click.IntRange(min=1))
@option("--cron-every", 3600.0, "Seconds between two cron jobs.", type=PERIOD)
@option("--heartbeat-every", 60.0, "Seconds between two heartbeats.", type=PERIOD)
@option("--compact-above", 200, "Records of a transcript.", type=click.IntRange(min=2))
@option("--client-timeout", 20.0, "Seconds that a client may stop sending a body, or reading.", type=PERIOD)
def main(host: str, port: int, **settings: Any) -> None:
    """Serve sessions over HTTP and WebSocket."""
    configure("console")
    # uvicorn raises the signal that ended it once more. Then, and before uvicorn listens, no run needs saving.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit(0))
    if sys.platform != "win32" and signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: signal.raise_signal(signal.SIGTERM))  # uvicorn does not handle SIGHUP
    config = uvicorn.Config(
        application(Settings(**settings)),
        host,
        port,
        lifespan="on",
        access_log=False,
        ws_max_size=MAX_BODY,
        timeout_graceful_shutdown=int(settings["wait"]) + 10,
    )
    listening = config.bind_socket()
    if sys.platform == "linux":
        # uvicorn never aborts a connection: one with data left to send would stay while its peer reads nothing.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(settings["client_timeout"] * 1000))
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    main()

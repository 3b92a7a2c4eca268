"""The example gateway as a whole: against the same Starlette application without lanes, and with many WebSockets.

Both are processes of their own, under uvicorn with the same settings. The same client sends requests to each in turn,
over raw keep-alive connections. The peer does by hand what the gateway's agent does: it reads the transcript, appends
the question, asks the same model, which answers at once, and appends the answer, without order, bounds or deadlines.
Before that it keeps the message in SQLite, and afterwards the answer, as the gateway does: on the event loop, a commit
for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from websockets.asyncio.client import ClientConnection, connect

from examples.agent import Model
from examples.gateway import Settings, application
from examples.wire import Posted, body_of, parsed, reply
from lanes import SessionLayout

from .measure import CHILD_S, ROUNDS, Figure, quiet

CONNECTIONS, REQUESTS, KEYS = 16, 2000, 64
WEBSOCKETS, AT_A_TIME = 1000, 50
LIMIT_S = 120.0
TOKENS = 10


def figures() -> list[Figure]:
    """Requests, then WebSockets."""
    with (
        tempfile.TemporaryDirectory() as directory,
        _serving("lanes", f"{directory}/lanes") as ours,
        _serving("plain", f"{directory}/plain") as peer,
    ):
        return [*asyncio.run(_requests(ours, peer)), *asyncio.run(_websockets(*ours))]


@contextmanager
def _serving(kind: str, directory: str) -> Iterator[tuple[psutil.Process, int]]:
    """A server as a process, and the port that it listens on."""
    # A thousand connections need as many descriptors; the child inherits the limit.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    child = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gateway", kind, directory], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        yield psutil.Process(child.pid), int(child.stdout.readline())
    finally:
        child.terminate()  # SIGTERM: the server then removes its status socket
        try:
            child.communicate(timeout=CHILD_S)
        finally:
            child.kill()
            child.wait()


# Requests


Server = tuple[psutil.Process, int]


async def _requests(ours: Server, peer: Server) -> list[Figure]:
    await _round(ours, "warm"), await _round(peer, "warm")
    rounds = [(await _round(ours, f"r{n}"), await _round(peer, f"r{n}")) for n in range(ROUNDS)]
    name = "POST /sessions/{key}/messages"
    rates = [REQUESTS / median(one[side][0] for one in rounds) for side in (0, 1)]
    late = [median(one[side][1] for one in rounds) * 1e3 for side in (0, 1)]
    cpu = [median(one[side][2] for one in rounds) / REQUESTS * 1e6 for side in (0, 1)]
    return [
        Figure(
            f"{name}: requests/s / the same application without lanes",
            median(without[0] / with_lanes[0] for with_lanes, without in rounds),
            "×",
            0.6,
            at_least=True,
            detail=f"{rates[0]:,.0f}/s against {rates[1]:,.0f}/s, {CONNECTIONS} connections",
        ),
        Figure(
            f"{name}: CPU of the server / without lanes",
            median(with_lanes[2] / without[2] for with_lanes, without in rounds),
            "×",
            1.3,
            detail=f"{cpu[0]:.0f} against {cpu[1]:.0f} µs a request",
        ),
        Figure(f"{name}: p99", late[0], "ms", detail=f"without lanes {late[1]:.1f} ms"),
    ]


async def _round(server: Server, name: str) -> tuple[float, float, float]:
    """Send all requests; returns the seconds for all of them, the p99 of one, and the server's CPU seconds."""
    process, port = server
    took: list[float] = []
    began, used = time.perf_counter(), sum(process.cpu_times()[:2])
    async with asyncio.timeout(LIMIT_S), asyncio.TaskGroup() as clients:
        for number in range(CONNECTIONS):
            clients.create_task(_client(port, name, range(number, REQUESTS, CONNECTIONS), took))
    cpu = sum(process.cpu_times()[:2]) - used
    return time.perf_counter() - began, sorted(took)[int(len(took) * 0.99)], cpu


async def _client(port: int, name: str, numbers: range, took: list[float]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"text":"hello from the other side"}'
    for number in numbers:
        began = time.perf_counter()
        path = f"/sessions/{name}:{number % KEYS}/messages"
        writer.write(f"POST {path} HTTP/1.1\r\nHost: here\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        answer = await reader.readexactly(int(head.partition(b"content-length: ")[2].split()[0]))
        assert head.startswith(b"http/1.1 200 "), head + answer
        took.append(time.perf_counter() - began)
    writer.close()
    await writer.wait_closed()


# WebSockets


async def _websockets(server: psutil.Process, port: int) -> list[Figure]:
    """Open all WebSockets, hold them, and stream one run on each."""
    before = server.memory_info().rss
    turnstile = asyncio.Semaphore(AT_A_TIME)

    async def opened(number: int) -> ClientConnection:
        async with turnstile:
            return await connect(
                f"ws://127.0.0.1:{port}/sessions/ws:{number}/stream", ping_interval=None, open_timeout=LIMIT_S
            )

    async def streamed(connection: ClientConnection) -> int:
        await connection.send('{"text": "hello"}')
        events = 0
        while True:
            event: dict[str, Any] = json.loads(await connection.recv())
            events += event["type"] == "token"
            if event["type"] == "end":
                return events if event["state"] == "done" else 0

    async with asyncio.timeout(LIMIT_S):
        held = await asyncio.gather(*(opened(number) for number in range(WEBSOCKETS)))
        idle = server.memory_info().rss
        began = time.perf_counter()
        tokens = await asyncio.gather(*map(streamed, held))
        took = time.perf_counter() - began
        await asyncio.gather(*(connection.close() for connection in held))
    name = f"{WEBSOCKETS:,} WebSockets held open"
    whole = sum(count == TOKENS for count in tokens)
    detail = f"{TOKENS} tokens each, {took:.1f} s for all"
    return [
        Figure(f"{name}: a run streamed whole on each", whole, "", WEBSOCKETS, at_least=True, detail=detail),
        Figure(f"{name}: memory of the server for each", (idle - before) / WEBSOCKETS / 1024, "KiB"),
    ]


# The servers


def _plain(directory: str) -> Starlette:
    """The peer."""
    model, layout = Model(0.0, TOKENS), SessionLayout(directory)
    os.makedirs(directory)
    inbox = sqlite3.connect(f"{directory}/inbox.db", isolation_level=None)
    inbox.execute("PRAGMA journal_mode = WAL")
    inbox.execute("PRAGMA synchronous = NORMAL")
    inbox.execute("CREATE TABLE message (id INTEGER PRIMARY KEY, key TEXT, body TEXT, state TEXT, result TEXT)")

    async def post(request: Request) -> Response:
        asked = parsed(await body_of(request, within=20.0), Posted)
        key = request.path_params["key"]
        path = Path(layout.file_of(key))
        insert = "INSERT INTO message (key, body, state) VALUES (?, ?, 'started')"
        message = inbox.execute(insert, (key, asked.text)).lastrowid
        with path.open("a+b", buffering=0) as file:  # noqa: ASYNC230 -- on the loop, as the gateway appends too
            file.seek(0)
            _ = [json.loads(line) for line in file.read().splitlines()]
            file.write(json.dumps({"role": "user", "content": asked.text}).encode() + b"\n")
            answer = "".join([token async for token in model.answer(asked.text)])
            file.write(json.dumps({"role": "assistant", "content": answer}).encode() + b"\n")
        inbox.execute("UPDATE message SET state = 'done', result = ? WHERE id = ?", (answer, message))
        return reply({"reply": answer})

    return Starlette(routes=[Route("/sessions/{key:path}/messages", post, methods=["POST"])])


def _serve(kind: str, directory: str) -> None:
    quiet()
    settings = Settings(
        sessions=directory,
        wait=20.0,
        timeout=300.0,
        model_delay=0.0,
        model_tokens=TOKENS,
        cron_every=3600.0,
        heartbeat_every=3600.0,
        compact_above=1_000_000,
        client_timeout=20.0,
    )
    app: Any = application(settings) if kind == "lanes" else _plain(directory)
    config = uvicorn.Config(app, port=0, access_log=False, log_level="error")
    listening = config.bind_socket()
    listening.listen(WEBSOCKETS)  # clients that come before the server has started wait for it
    print(listening.getsockname()[1], flush=True)
    uvicorn.Server(config).run([listening])


if __name__ == "__main__":
    _serve(*sys.argv[1:])

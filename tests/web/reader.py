"""A browser, as far as the tests of the dashboard need one: requests, forms, and a stream that is read or is not."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from html.parser import HTMLParser
from typing import Any

import anyio
import httpx

from runtime import Supervisor
from tests.poll import eventually
from tests.supervised import Shielded

HERE = "http://127.0.0.1:8765"


def browser(app: Any, base: str = HERE, client: str = "127.0.0.1", **options: Any) -> httpx.AsyncClient:
    """A client of an application, on this machine if nothing else is said."""
    transport = httpx.ASGITransport(app=app, client=(client, 50000))
    return httpx.AsyncClient(transport=transport, base_url=base, **options)


async def ended(sup: Supervisor) -> None:
    """Wait until nothing runs or waits any more."""
    sup.cancel()
    await eventually(lambda: not sup.runs())


async def abandoned(sup: Supervisor, *lanes: str) -> list[Shielded]:
    """Bodies that ignore their cancellation, one on each lane, abandoned; to be released.

    They are cancelled once they have begun: a run whose time is up before that leaves nothing.
    """
    bodies = [Shielded() for _ in lanes]
    for lane, body in zip(lanes, bodies, strict=True):
        run = sup.submit(lane, body)
        await body.started.wait()
        run.cancel()
    await eventually(lambda: sup.statistics().abandoned == len(lanes))
    return bodies


def secret_of(page: str) -> str:
    """What stands in the forms of a page."""
    found = re.search(r'name="secret" value="([^"]+)"', page)
    assert found is not None, page
    return found[1]


async def order(web: httpx.AsyncClient, secret: str, **fields: Any) -> httpx.Response:
    """Send a form, as a page of the dashboard does."""
    origin = str(web.base_url).rstrip("/").removesuffix("/lanes")
    headers = {"Sec-Fetch-Site": "same-origin", "Origin": origin}
    return await web.post("/act", data={"secret": secret, **fields}, headers=headers)


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("td", "th", "li", "p", "dd", "dt", "h2"):
            self.text.append(" ")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def tags_of(page: str) -> list[tuple[str, dict[str, str | None]]]:
    """Its elements, as a browser sees them."""
    parsed = _Page()
    parsed.feed(page)
    return parsed.tags


def text_of(page: str) -> str:
    """What a reader sees, in one line."""
    parsed = _Page()
    parsed.feed(page)
    return " ".join("".join(parsed.text).split())


class Stream:
    """The events of a page, as they came."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.chunks: list[bytes] = []
        self.over = False

    def parts(self) -> list[dict[str, str]]:
        """What was sent, part by part."""
        lines = b"".join(self.chunks).split(b"\n")
        return [json.loads(line.removeprefix(b"data: ")) for line in lines if line.startswith(b"data: ")]

    def latest(self) -> str:
        """What a reader sees."""
        return " ".join({one["id"]: one["html"] for one in self.parts()}.values())


@asynccontextmanager
async def streaming(app: Any, path: str = "/", *, reads: Callable[[], bool] = lambda: True) -> AsyncIterator[Stream]:
    """Read a page's stream beside the block; the reader goes when the block ends. One that does not read is stuck."""
    stream, gone = Stream(), anyio.Event()
    headers = [(b"host", b"127.0.0.1:8765"), (b"accept", b"text/event-stream")]
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "scheme": "http",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8765),
    }

    async def receive() -> dict[str, Any]:
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        await anyio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            stream.status = message["status"]
            stream.headers = {name.decode(): value.decode() for name, value in message["headers"]}
            return
        while not reads():
            await anyio.sleep(0.01)
        stream.chunks.append(message["body"])

    async def serve() -> None:
        await app(scope, receive, send)
        stream.over = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        yield stream
        gone.set()

"""`examples/bot.py` against a small server that is polled for updates."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import anyio
import pytest

from examples.bot import Bot, poll
from tests import ROOT, blocking
from tests.poll import eventually
from tests.supervised import lines_of, path_of

pytestmark = pytest.mark.backends("asyncio", "trio")

LIMIT_S = 30.0


class Chats(ThreadingHTTPServer):
    """Has updates for whoever polls, and takes what is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.updates: list[dict[str, Any]] = []
        self.sent: list[dict[str, Any]] = []
        self.polls: list[int] = []
        self.forgetful = False
        """Whether it delivers everything again, confirmed or not."""
        self.held = threading.Event()
        """What is sent is not answered before this is set."""
        self.held.set()

    def say(self, chat: str, text: str) -> None:
        """Somebody writes."""
        self.updates.append({"id": len(self.updates) + 1, "chat": chat, "text": text})

    def press(self, chat: str, button: dict[str, Any]) -> None:
        """Somebody presses a button that was sent."""
        self.updates.append({"id": len(self.updates) + 1, "chat": chat, "button": button})

    def told(self, chat: str) -> list[str]:
        """What was sent to a chat."""
        return [one["text"] for one in list(self.sent) if one["chat"] == chat]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    server: Chats

    def do_GET(self) -> None:
        offset = int(parse_qs(urlsplit(self.path).query)["offset"][0])
        self.server.polls.append(offset)
        self._reply([one for one in list(self.server.updates) if one["id"] >= offset or self.server.forgetful])

    def do_POST(self) -> None:
        message = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.sent.append(message)
        self.server.held.wait(LIMIT_S)
        self._reply({})

    def _reply(self, content: Any) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
        """Into no test's output."""


@pytest.fixture
def chats() -> Iterator[Chats]:
    """A server that runs."""
    with Chats() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.held.set()
        server.shutdown()
        thread.join()


@asynccontextmanager
async def polling(chats: Chats, bot: Bot) -> AsyncIterator[None]:
    """The framework runs; left, it stops the bot."""
    with anyio.fail_after(LIMIT_S):
        async with anyio.create_task_group() as framework:
            framework.start_soon(poll, chats.url, bot)
            yield
            framework.cancel_scope.cancel()


@contextmanager
def started(chats: Chats, directory: Path) -> Iterator[None]:
    """The bot as a process of its own; left, it is killed."""
    with blocking.permitted("starts a child"):
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "examples" / "bot.py"), chats.url],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
    try:
        yield
    finally:
        process.kill()
        process.wait()


async def test_each_update_is_answered_in_its_chat_and_in_order(chats, tmp_path):
    for chat, text in (("ann", "one"), ("bob", "hello"), ("ann", "two")):
        chats.say(chat, text)
    async with polling(chats, Bot(chats.url, str(tmp_path))):
        await eventually(lambda: len(chats.sent) == 3, within=LIMIT_S)
        chats.say("ann", "three")
        await eventually(lambda: len(chats.sent) == 4, within=LIMIT_S)
    told = [(one["chat"], one["text"]) for one in chats.sent]
    assert [text for chat, text in told if chat == "ann"] == ["You said: one", "You said: two", "You said: three"]
    assert [text for chat, text in told if chat == "bob"] == ["You said: hello"]
    assert chats.polls[-1] == 5


async def test_an_update_that_comes_again_is_answered_once(chats, tmp_path):
    chats.forgetful = True
    chats.say("ann", "hello")
    bot = Bot(chats.url, str(tmp_path))
    async with polling(chats, bot):
        await eventually(lambda: len(chats.polls) > 5, within=LIMIT_S)
    assert len(chats.sent) == 1
    assert [one["role"] for one in lines_of(path_of(bot.sup, "ann"))] == ["user", "assistant"]


async def test_an_update_that_can_never_be_taken_is_passed_over(chats, tmp_path):
    chats.say("\x00", "hello")
    chats.say("ann", "hello")
    async with polling(chats, Bot(chats.url, str(tmp_path))):
        await eventually(lambda: len(chats.sent) == 1, within=LIMIT_S)
    assert chats.sent[0]["chat"] == "ann"


async def test_stopped_it_sends_the_answer_that_is_under_way(chats, tmp_path):
    chats.held.clear()
    chats.say("ann", "hello")
    bot = Bot(chats.url, str(tmp_path))
    async with anyio.create_task_group() as others, polling(chats, bot):
        await eventually(lambda: len(chats.sent) == 1, within=LIMIT_S)

        async def release() -> None:
            await eventually(lambda: bot.sup.state == "draining", within=LIMIT_S)
            chats.held.set()

        others.start_soon(release)
    assert [one["role"] for one in lines_of(path_of(bot.sup, "ann"))] == ["user", "assistant"]
    assert bot.sup.state == "stopped"


async def test_a_button_answers_the_question_once_in_the_next_process_too(chats, tmp_path):
    chats.say("ann", "/delete notes.txt")
    async with polling(chats, Bot(chats.url, str(tmp_path))):
        await eventually(lambda: chats.sent, within=LIMIT_S)
    (asked,) = chats.sent
    assert (asked["text"], [one["text"] for one in asked["buttons"]]) == ("Delete notes.txt?", ["yes", "no"])
    chats.press("ann", asked["buttons"][0])
    chats.press("ann", asked["buttons"][1])
    chats.press("ann", {"ask": "nothing", "value": "yes"})
    chats.say("ann", "hello")
    bot = Bot(chats.url, str(tmp_path))
    async with polling(chats, bot):
        await eventually(lambda: len(chats.sent) == 3, within=LIMIT_S)
    assert chats.told("ann") == ["Delete notes.txt?", "Deleted notes.txt", "You said: hello"]
    said = [(one["role"], one["content"]) for one in lines_of(path_of(bot.sup, "ann")) if "role" in one]
    assert ("tool", "deleted notes.txt") in said


@pytest.mark.failure("G9")
@pytest.mark.backends("asyncio")
async def test_after_kill_9_each_update_is_answered_asked_about_or_named(chats, tmp_path):
    chats.say("ann", "/delete notes.txt")
    with started(chats, tmp_path):
        await eventually(lambda: chats.told("ann"), within=LIMIT_S)
        chats.held.clear()
        for chat, text in (("bob", "first"), ("bob", "second"), ("ann", "meanwhile")):
            chats.say(chat, text)
        await eventually(lambda: chats.polls[-1] == 5 and chats.told("bob") == ["You said: first"], within=LIMIT_S)
        await eventually(lambda: "You said: meanwhile" in chats.told("ann"), within=LIMIT_S)
    chats.held.set()
    with started(chats, tmp_path):
        interrupted = "I was interrupted. Please ask again."
        await eventually(lambda: interrupted in chats.told("ann"), within=LIMIT_S)
        await eventually(lambda: chats.told("bob")[1:] == [interrupted, "You said: second"], within=LIMIT_S)
        chats.press("ann", chats.sent[0]["buttons"][1])
        await eventually(lambda: chats.told("ann")[-1] == "I keep notes.txt", within=LIMIT_S)
    assert chats.told("ann") == ["Delete notes.txt?", "You said: meanwhile", interrupted, "I keep notes.txt"]

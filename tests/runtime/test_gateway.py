"""`examples/gateway.py` as a process of its own, spoken to by a real HTTP and a real WebSocket client."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import httpx
import psutil
import pytest
from click.testing import CliRunner
from starlette.routing import Route, Router, WebSocketRoute
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.frames import Frame, Opcode

from examples.agent import INTERRUPTED
from examples.gateway import Settings, main
from examples.wire import MAX_BODY, AsSent, key_in, problem, reply
from lanes import (
    Draining,
    InvalidLane,
    LaneBusy,
    LaneFull,
    RunAbandoned,
    RunAbandonedAfterTimeout,
    RunCancelled,
    RunSuperseded,
    RunTimedOut,
    SessionLayout,
)
from locks import DeadlockError, Holder, InvalidSession, LeaseTimeout, RunEnded, TranscriptError
from tests import ROOT, blocking, forks
from tests.poll import eventually, eventually_sync

pytestmark = pytest.mark.backends("asyncio")

LIMIT_S = 30.0
TOKEN_S = 0.01
TIMEOUT_S = 2.0
SLOW = "word " * 40
"""Takes the model a while."""
ENDLESS = "word " * 1000
"""Takes the model longer than a run may."""
KEYED: dict[str, Any] = {"json": {"text": "keyed", "wait": False}, "headers": {"Idempotency-Key": "update 19"}}
OPTIONS = {
    "--port": 0,
    "--wait": 20,
    "--timeout": TIMEOUT_S,
    "--model-delay": TOKEN_S,
    "--model-tokens": 3,
    "--client-timeout": 1,
}


@dataclass
class Gateway:
    """A gateway that runs, and what it writes."""

    process: subprocess.Popen[bytes]
    sessions: Path
    log: Path
    url: str = ""
    keys: Iterator[str] = field(default_factory=lambda: (f"test:{number}" for number in range(1000)))

    def ready(self) -> bool:
        """Whether it serves."""
        text = self.log.read_text()
        assert self.process.poll() is None, text
        found = re.search(r"running on (http://\S+)", text)
        self.url = found[1] if found else ""
        return found is not None and "startup complete" in text

    def kill(self) -> None:
        """End it, if it has not ended yet."""
        self.process.kill()
        self.process.wait()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self.url.rpartition(":")[2])

    def records(self, key: str) -> list[dict[str, Any]]:
        """The whole lines of a transcript so far, by plain `json`."""
        path = Path(SessionLayout(self.sessions).file_of(key))
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def said(self, key: str, *roles: str) -> list[str]:
        """What those have said in a session."""
        return [one["content"] for one in self.records(key) if one.get("role") in (roles or ("user", "assistant"))]

    def is_connected_to(self, port: int) -> bool:
        """Whether it has a connection to a client at that port."""
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return any(one.raddr[1:] == (port,) for one in found)

    def peak(self) -> int:
        """The most bytes that it ever had resident."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def launched(directory: Path, **options: Any) -> Gateway:
    """A process that starts to serve a directory."""
    log = directory / "log"
    given = OPTIONS | {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    command = ["-m", "examples.gateway", "--sessions", str(directory / "sessions")]
    with log.open("wb") as out, blocking.permitted("starts a child"):
        process = forks.python(
            [*command, *(str(part) for pair in given.items() for part in pair)],
            cwd=ROOT,
            env=os.environ | {"XDG_RUNTIME_DIR": str(directory)},  # the status socket of one that is killed stays
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    return Gateway(process, directory / "sessions", log)


@asynccontextmanager
async def serving(directory: Path, **options: Any) -> AsyncIterator[Gateway]:
    """A gateway that serves a directory; killed at the latest when the block is left."""
    gateway = launched(directory, **options)
    try:
        await eventually(gateway.ready, within=LIMIT_S)
        yield gateway
    finally:
        gateway.kill()


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One for all tests that do not end it; each has sessions of its own."""
    one = launched(tmp_path_factory.mktemp("gateway"), cron_every=0.5, heartbeat_every=0.3, compact_above=12)
    try:
        eventually_sync(one.ready, within=LIMIT_S)
        yield one
        assert "Traceback" not in one.log.read_text()
    finally:
        one.kill()


@pytest.fixture
def key(gateway: Gateway) -> str:
    """A session that no other test has."""
    return next(gateway.keys)


@pytest.fixture
async def http(gateway: Gateway) -> Any:
    """A client of the gateway."""
    async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as client:
        yield client


async def post(http: httpx.AsyncClient, key: str, text: str = "hello", **more: Any) -> httpx.Response:
    """A message."""
    return await http.post(f"/sessions/{key}/messages", json={"text": text} | more)


async def started(http: httpx.AsyncClient, key: str, text: str = SLOW) -> int:
    """The id of a run that is under way."""
    run = int((await post(http, key, text, wait=False)).json()["run"])
    with anyio.fail_after(LIMIT_S):
        while (await http.get(f"/runs/{run}")).json()["state"] == "queued":
            await anyio.sleep(0.01)
    return run


async def ended(http: httpx.AsyncClient, run: int) -> dict[str, Any]:
    """How a run has ended."""
    with anyio.fail_after(LIMIT_S):
        while (found := (await http.get(f"/runs/{run}")).json())["state"] in ("queued", "running"):
            await anyio.sleep(0.01)
    return dict(found)


async def settled(http: httpx.AsyncClient, message: int) -> dict[str, Any]:
    """What has become of a message."""
    with anyio.fail_after(LIMIT_S):
        while (found := (await http.get(f"/messages/{message}")).json())["state"] in ("accepted", "started"):
            await anyio.sleep(0.01)
    return dict(found)


# Messages


async def test_a_message_is_answered_and_both_are_in_the_transcript(gateway, http, key):
    response = await post(http, key)
    assert response.status_code == 200 and response.json()["reply"] == "hello hello hello "
    assert gateway.said(key) == ["hello", "hello hello hello "]


@pytest.mark.parametrize("wait", [False, 0, 0.01])
async def test_an_answer_that_takes_longer_than_the_client_waits_can_be_polled(http, key, wait):
    response = await post(http, key, SLOW, wait=wait)
    run, message = response.json()["run"], response.json()["id"]
    assert (response.status_code, response.headers["location"]) == (202, f"/messages/{message}")
    assert (await http.get(response.headers["location"])).json()["state"] in ("accepted", "started")
    found = await ended(http, run)
    assert (found["state"], found["session"], found["reply"]) == ("done", key, SLOW)
    kept = await settled(http, message)
    assert (kept["state"], kept["run"], kept["reply"]) == ("done", None, SLOW)


async def test_a_message_that_is_sent_twice_under_one_idempotency_key_is_answered_once(gateway, http, key):
    again = {"headers": {"Idempotency-Key": "update 17"}, "json": {"text": SLOW}}
    replies = []
    async with anyio.create_task_group() as clients:

        async def send() -> None:
            replies.append((await http.post(f"/sessions/{key}/messages", **again)).json())

        clients.start_soon(send)
        clients.start_soon(send)
    replies.append((await http.post(f"/sessions/{key}/messages", **again)).json())
    assert len({(one["id"], one["reply"]) for one in replies}) == 1
    assert gateway.said(key, "user") == [SLOW]


@pytest.mark.failure("T5")
async def test_an_idempotency_key_that_was_sent_with_another_text_is_409(gateway, http, key):
    headers = {"Idempotency-Key": "update 18"}
    first = (await http.post(f"/sessions/{key}/messages", json={"text": "a"}, headers=headers)).json()
    response = await http.post(f"/sessions/{key}/messages", json={"text": "b"}, headers=headers)
    told = response.json()
    assert (response.status_code, told["error"], told["id"]) == (409, "DedupeConflict", first["id"])
    assert "retry-after" not in response.headers and gateway.said(key, "user") == ["a"]


async def test_a_client_that_goes_away_finds_the_answer_in_the_transcript(gateway, key):
    async with httpx.AsyncClient(base_url=gateway.url) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(
                f"/sessions/{key}/messages", json={"text": SLOW}, timeout=httpx.Timeout(LIMIT_S, read=0.1)
            )
    assert await eventually(lambda: gateway.said(key, "assistant"), within=LIMIT_S) == [SLOW]


async def test_keys_may_be_any_text(gateway, http):
    key = "agent/ä b%:🐝"
    assert (await http.post("/sessions/agent%2F%C3%A4%20b%25%3A%F0%9F%90%9D/messages", json={"text": "a"})).is_success
    assert gateway.said(key, "user") == ["a"]


# A busy session


async def test_reject_names_who_has_the_session_and_for_how_long(gateway, http, key):
    run = await started(http, key)
    response = await post(http, key, when_busy="reject")
    told = response.json()
    assert (response.status_code, told["error"]) == (409, "LaneBusy")
    assert response.headers["retry-after"] == "1"
    holder = told["holder"]
    assert (holder["run"], holder["lane"], holder["pid"]) == (run, f"session:{key}", gateway.process.pid)
    assert 0 <= holder["held_s"] < TIMEOUT_S and 0 < holder["remaining_s"] <= TIMEOUT_S


async def test_interrupt_ends_the_run_under_way_whose_client_is_told(gateway, http, key):
    answers = {}

    async def ask(text: str, **more: Any) -> None:
        answers[text] = await post(http, key, text, **more)

    async with anyio.create_task_group() as clients:
        clients.start_soon(ask, SLOW)
        await eventually(lambda: gateway.said(key, "user"), within=LIMIT_S)
        clients.start_soon(lambda: ask("no, this", when_busy="interrupt"))
    assert (answers[SLOW].status_code, answers[SLOW].json()["error"]) == (409, "RunSuperseded")
    assert answers["no, this"].status_code == 200
    assert gateway.said(key, "user") == [SLOW, "no, this"]


async def test_collect_answers_what_is_queued_together(http, key):
    await started(http, key, ENDLESS)  # or it may be over, on a busy machine, before both have come
    responses = [await post(http, key, text, when_busy="collect", wait=False) for text in ("one", "two")]
    first, second = (response.json()["run"] for response in responses)
    assert first == second
    assert (await ended(http, first))["reply"] == "one one one two two two "


async def test_steer_is_answered_by_the_run_under_way(gateway, http, key):
    run = await started(http, key)
    steered = await post(http, key, "and this", when_busy="steer")
    assert steered.json()["reply"] == (await ended(http, run))["reply"] == SLOW + "and this and "
    assert gateway.said(key, "user") == [SLOW, "and this"]


async def test_a_full_queue_is_429_with_the_limit(http, key):
    await started(http, key, ENDLESS)
    refusals = [answer for _ in range(21) if (answer := await post(http, key, wait=False)).status_code != 202]
    assert [one.status_code for one in refusals] == [429]
    told = refusals[0].json()
    assert (told["error"], told["queued"], told["limit"]) == ("LaneFull", 20, 20)
    assert refusals[0].headers["retry-after"] == "1"
    await http.post(f"/sessions/{key}/stop")


async def test_a_run_past_its_deadline_is_504(gateway, http, key):
    response = await post(http, key, ENDLESS)
    told = response.json()
    assert (response.status_code, told["error"]) == (504, "RunTimedOut") and "timed out after 2 s" in told["message"]
    assert (await http.get(f"/runs/{told['run']}")).json()["state"] == "timed_out"
    (last,) = [one for one in gateway.records(key) if one.get("role") == "assistant"]
    assert last["stopped"] == "timed out after 2 s" and last["content"].startswith("word ")


# Stop and reset


async def test_stop_ends_what_runs_and_what_is_queued(gateway, http, key):
    answers = []

    async def ask() -> None:
        answers.append(await post(http, key, ENDLESS))

    async with anyio.create_task_group() as clients:
        clients.start_soon(ask)
        await eventually(lambda: gateway.said(key, "user"), within=LIMIT_S)
        queued = (await post(http, key, "next", wait=False)).json()["run"]
        assert (await http.post(f"/sessions/{key}/stop")).json()["stopped"] >= 2
    assert (answers[0].status_code, answers[0].json()["error"]) == (409, "RunCancelled")
    assert (await ended(http, queued))["state"] == "cancelled"
    (last,) = [one for one in gateway.records(key) if one.get("role") == "assistant"]
    assert last["stopped"] == "stopped"


async def test_reset_puts_the_transcript_away(gateway, http, key):
    await post(http, key, "long ago")
    moved = (await http.post(f"/sessions/{key}/reset")).json()["archived"]
    await post(http, key, "afresh")
    assert gateway.said(key, "user") == ["afresh"]
    assert b"long ago" in (gateway.sessions / moved).read_bytes()


# Asking a person


async def test_the_agent_asks_before_it_deletes_and_does_as_a_person_says_once(gateway, http, key):
    response = await post(http, key, "/delete notes.txt")
    told = response.json()
    assert (response.status_code, response.headers["location"]) == (202, f"/messages/{told['id']}")
    assert (told["state"], told["ask"]["question"], told["ask"]["options"]) == (
        "waiting",
        "Delete notes.txt?",
        ["yes", "no"],
    )
    assert (await post(http, key)).status_code == 200, "the session waits with it"
    (ask,) = (await http.get("/asks", params={"session": key})).json()["asks"]
    assert ask == told["ask"] == (await settled(http, told["id"]))["ask"]
    refused = await http.post(f"/asks/{ask['id']}", json={"value": "maybe"})
    assert (refused.status_code, refused.json()["error"]) == (422, "InvalidLane") and "'yes', 'no'" in refused.text
    answered = await http.post(f"/asks/{ask['id']}", json={"value": "yes", "by": "ann"})
    assert (answered.status_code, answered.json()["reply"]) == (200, "I have deleted notes.txt. ")
    again = await http.post(f"/asks/{ask['id']}", json={"value": "no"})
    assert (again.status_code, again.json()["error"], again.json()["state"]) == (409, "AskClosed", "answered")
    assert (await http.get("/asks", params={"session": key})).json() == {"asks": []}
    assert gateway.said(key, "tool") == ["deleted notes.txt"]
    first = await settled(http, told["id"])
    assert (first["state"], first["ask"]["state"]) == ("done", "answered")
    assert first["reason"] == f"answered by message {answered.json()['id']}"


@pytest.mark.parametrize(
    "path, body, status, says",
    [
        ("nothing", b'{"value": 1}', 404, "ask: 'nothing' was never asked"),
        ("%FF%00", b'{"value": 1}', 404, "ask: '\\udcff\\x00' was never asked"),
        ("x", b"{}", 422, "value: None is not allowed; allowed: one of the question's options"),
        ("x", b'{"value": 1, "by": 2}', 422, "by: 2 is not allowed; allowed: text"),
        ("x", b'{"value": 1, "text": "a"}', 422, "text: 'a' is not allowed; allowed: the fields value, by, wait"),
    ],
    ids=range(5),
)
async def test_an_answer_that_is_none_is_refused_by_field_and_value(http, path, body, status, says):
    response = await http.post(f"/asks/{path}", content=body)
    assert response.status_code == status and response.json()["message"].startswith(says)


# What cannot be used


@pytest.mark.parametrize(
    "body, status, says",
    [
        (b"", 400, "body: no JSON"),
        (b"{", 400, "body: no JSON"),
        (b"\xff", 400, "body: no JSON"),
        (b'{"text": "\xff"}', 400, "body: no JSON"),
        (b"[" * 100_000, 400, "body: no JSON"),
        (b"[1]", 422, "body: [1]; allowed: a JSON object"),
        (b"{}", 422, "text: None is not allowed; allowed: text of one character or more"),
        (b'{"text": 1}', 422, "text: 1 is not allowed"),
        (b'{"text": ""}', 422, "text: '' is not allowed"),
        (b'{"text": "a", "when_busy": "later"}', 422, "when_busy: 'later' is not allowed; allowed: queue, reject,"),
        (b'{"text": "a", "wait": true}', 422, "wait: True is not allowed; allowed: seconds, 0 and more, or false"),
        (b'{"text": "a", "wait": -1}', 422, "wait: -1 is not allowed"),
        (b'{"text": "a", "sesion": 1}', 422, "sesion: 1 is not allowed; allowed: the fields text, when_busy, wait"),
    ],
    ids=range(13),
)
async def test_a_body_that_is_no_message_is_refused_by_field_and_value(gateway, http, key, body, status, says):
    response = await http.post(f"/sessions/{key}/messages", content=body)
    assert response.status_code == status and response.json()["message"].startswith(says)
    assert gateway.records(key) == []


async def test_the_field_the_value_and_what_is_allowed_stand_by_themselves_too(http, key):
    told = (await post(http, key, when_busy="later")).json()
    assert (told["field"], told["value"]) == ("when_busy", "later") and "interrupt" in told["allowed"]
    huge = (await post(http, key, wait=["x" * 100_000])).json()
    assert len(json.dumps(huge)) < 1000


NO_KEYS = {
    "byte": "%FF",
    "another byte": "%FE",
    "byte in text": "a%80b",
    "overlong": "%C0%AF",
    "half pair": "%ED%A0%80",
    "cut off": "%F0%9F%90",
    "line break": "%0A",
    "line break at the end": "a%0A",
    "nul": "%00",
    "delete": "%7F",
    "control": "%C2%85",
    "empty": "",
    "long": "a" * 2000,
    "long when encoded": "%C3%A4" * 513,
}


@pytest.mark.failure("T6")
@pytest.mark.parametrize("path", NO_KEYS.values(), ids=NO_KEYS)
@pytest.mark.parametrize("what", ["messages", "stop", "reset"])
async def test_a_path_that_names_no_session_is_422_and_says_what_was_sent(gateway, http, path, what):
    before = os.listdir(gateway.sessions)
    response = await http.post(f"/sessions/{path}/{what}", json={"text": "a"})
    told = response.json()
    assert (response.status_code, told["error"], told["field"]) == (422, "InvalidSession", "key")
    assert told["value"] == (path if len(path) <= 80 else path[:77] + "...")
    assert told["message"] == f"key: {told['value']!r} is not allowed; allowed: {told['allowed']}"
    assert os.listdir(gateway.sessions) == before


@pytest.mark.failure("T6")
@pytest.mark.parametrize("path", NO_KEYS.values(), ids=NO_KEYS)
async def test_a_stream_of_no_session_says_so_too(gateway, path):
    async with connect(f"{gateway.url.replace('http', 'ws')}/sessions/{path}/stream") as stream:
        await stream.send(json.dumps({"text": "a"}))
        told = json.loads(await stream.recv())
    assert (told["type"], told["status"], told["error"], told["field"]) == ("error", 422, "InvalidSession", "key")


@pytest.mark.failure("T6")
async def test_two_paths_share_a_session_exactly_if_they_stand_for_the_same_text(gateway, http, key):
    spellings = {
        f"{key}": key,
        f"{key.replace('t', '%74')}": key,
        f"{key}%EF%BF%BD": f"{key}\ufffd",
        f"{key}%2F..": f"{key}/..",
        f"{key}/%2e%2e": f"{key}/..",
        f"{key}%2fmessages": f"{key}/messages",
        f"{key}%E2%80%A8": f"{key}\u2028",
        f"{key}%3F%23": f"{key}?#",
        f"{key}%2500": f"{key}%00",
    }
    for path in spellings:
        assert (await http.post(f"/sessions/{path}/messages", json={"text": path})).is_success, path
    for text in set(spellings.values()):
        assert gateway.said(text, "user") == [path for path, key in spellings.items() if key == text]


@pytest.mark.failure("T6")
@pytest.mark.parametrize("kind", ["http", "websocket"])
@pytest.mark.parametrize(
    "raw, path, key",
    [
        (b"/sessions/%FF/x", "/sessions/\ufffd/x", None),
        (b"/sessions/%EF%BF%BD/x", "/sessions/\ufffd/x", "\ufffd"),
        (b"/sessions/a%2Fb/x?q=%FF", "/sessions/a/b/x", "a/b"),
        (b"/sessions/\xc3\xa4/x", "/sessions/\xe4/x", "\xe4"),
        (None, "/sessions/a/x", "a"),
        (None, "/sessions/\ufffd/x", None),
        (None, "/sessions/\n/x", None),
    ],
)
async def test_a_server_that_does_not_say_what_was_sent_is_believed_only_where_nothing_can_be_lost(
    raw, path, key, kind
):
    found: list[str | None] = []

    async def endpoint(connection):
        try:
            found.append(key_in(connection))
        except InvalidSession:
            found.append(None)
        if kind == "http":
            return reply({})
        await connection.close()
        return None

    async def nothing(_message=None):
        return {"type": "websocket.connect"}

    route = (
        Route("/sessions/{key:key}/x", endpoint)
        if kind == "http"
        else WebSocketRoute("/sessions/{key:key}/x", endpoint)
    )
    scope = {"type": kind, "method": "GET", "path": path, "headers": [], "query_string": b""}
    await AsSent(Router([route]))(scope | ({} if raw is None else {"raw_path": raw}), nothing, nothing)
    assert found == [key]


@pytest.mark.parametrize("size", [0, 2000], ids=["empty", "long"])
async def test_an_idempotency_key_that_is_not_allowed_is_422(http, key, size):
    headers = {"Idempotency-Key": "k" * size}
    response = await http.post(f"/sessions/{key}/messages", json={"text": "a"}, headers=headers)
    assert response.status_code == 422 and response.json()["message"].startswith("dedupe: ")


@pytest.mark.parametrize("number", ["0", "99999999999999999999999", "x"])
@pytest.mark.parametrize("path", ["/runs/", "/messages/", "/nowhere/"])
async def test_what_is_not_there_is_404(http, path, number):
    assert (await http.get(path + number)).status_code == 404


async def test_a_body_that_is_too_long_is_413_and_kept_nowhere(gateway, http, key):
    async def long() -> AsyncIterator[bytes]:
        for _ in range(64):
            yield bytes(MAX_BODY)

    before = gateway.peak()
    response = await http.post(f"/sessions/{key}/messages", content=long())
    assert response.status_code == 413 and response.json()["message"].endswith("allowed: 1048576 bytes")
    assert gateway.peak() - before < 32 * MAX_BODY
    assert gateway.records(key) == []


async def test_a_body_of_the_longest_size_is_taken(gateway, http, key):
    text = "x" * (MAX_BODY - len('{"text":"","wait":false}'))
    response = await http.post(f"/sessions/{key}/messages", content=f'{{"text":"{text}","wait":false}}')
    assert response.status_code == 202
    assert (await ended(http, response.json()["run"]))["state"] == "done"
    assert gateway.said(key, "user") == [text]


async def test_a_body_that_does_not_come_is_408_and_the_connection_is_closed(gateway, http, key):
    head = f"POST /sessions/{key}/messages HTTP/1.1\r\nHost: here\r\nContent-Length: 100\r\n\r\n"
    with anyio.fail_after(LIMIT_S):
        async with await anyio.connect_tcp("127.0.0.1", gateway.port) as client:
            await client.send(head.encode() + b'{"text": "half')
            received = b"".join([part async for part in client])
    assert received.startswith(b"HTTP/1.1 408 ") and b"14 bytes came within 1 s" in received
    assert gateway.records(key) == []
    assert (await post(http, key)).status_code == 200


# WebSockets


def streaming(gateway: Gateway, key: str) -> connect:
    """A WebSocket to a session."""
    return connect(f"{gateway.url.replace('http', 'ws')}/sessions/{key}/stream")


async def heard(connection: ClientConnection, until: Callable[[dict[str, Any]], object]) -> list[dict[str, Any]]:
    """What comes, up to the first event that `until` is true of."""
    found: list[dict[str, Any]] = []
    with anyio.fail_after(LIMIT_S):
        while not found or not until(found[-1]):
            found.append(json.loads(await connection.recv()))
    return found


def is_end(event: dict[str, Any]) -> bool:
    return bool(event["type"] == "end")


async def test_a_websocket_is_told_each_token_and_the_end(gateway, key):
    async with streaming(gateway, key) as connection:
        for text in ("one two three four", "again"):
            await connection.send(json.dumps({"text": text}))
            events = await heard(connection, is_end)
            message, run, end = events[0]["id"], events[0]["run"], events[-1]
            assert events[0] == {"type": "accepted", "id": message, "run": run}
            assert {event["type"] for event in events[1:-1]} == {"token"}
            assert "".join(event["token"] for event in events[1:-1]) == end["reply"]
            assert (end["id"], end["run"], end["state"], end["missed"]) == (message, run, "done", 0)
    assert gateway.said(key, "user") == ["one two three four", "again"]


async def test_a_websocket_that_speaks_while_it_listens_is_heard(gateway, key):
    async with streaming(gateway, key) as connection:
        await connection.send(json.dumps({"text": ENDLESS}))
        await heard(connection, lambda event: event["type"] == "token")
        await connection.send(json.dumps({"text": "stop that", "when_busy": "interrupt"}).encode())
        first = await heard(connection, is_end)
        second = await heard(connection, is_end)
    assert (first[-1]["state"], second[-1]["state"]) == ("superseded", "done")


async def test_a_websocket_is_told_what_is_refused_and_goes_on(gateway, key):
    async with streaming(gateway, key) as connection:
        await connection.send("no json")
        await connection.send(json.dumps({"text": "a", "when_busy": "later"}))
        refusals = await heard(connection, lambda event: "when_busy" in event["message"])
        assert [(event["type"], event["status"]) for event in refusals] == [("error", 400), ("error", 422)]
        await connection.send(json.dumps({"text": "hello"}))
        assert (await heard(connection, is_end))[-1]["state"] == "done"


async def test_a_message_that_is_too_long_closes_the_websocket(gateway, key):
    async with streaming(gateway, key) as connection:
        with anyio.fail_after(LIMIT_S), suppress(ConnectionClosed):
            await connection.send("x" * (MAX_BODY + 1))
        with anyio.fail_after(LIMIT_S):
            await connection.wait_closed()
        assert connection.close_code == 1009
    assert gateway.records(key) == []


async def test_a_websocket_that_leaves_ends_no_run(gateway, key):
    async with streaming(gateway, key) as connection:
        await connection.send(json.dumps({"text": SLOW}))
        await heard(connection, lambda event: event["type"] == "token")
    assert await eventually(lambda: gateway.said(key, "assistant"), within=LIMIT_S) == [SLOW]


DEAF_MESSAGES = 6


async def shake_hands(client: socket.socket, key: str) -> None:
    """Ask for a WebSocket, and hear that it is one: uvicorn drops what comes with the request that asks for it."""
    loop = asyncio.get_running_loop()
    asked = (
        f"GET /sessions/{key}/stream HTTP/1.1\r\nHost: here\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(client, asked.encode())
    heard = b""
    while not heard.endswith(b"\r\n\r\n"):
        heard += await loop.sock_recv(client, 4096)
    assert heard.startswith(b"HTTP/1.1 101 "), heard


def to_a_deaf_client() -> Iterator[bytes]:
    """Messages whose answers fill every buffer between here and there."""
    text = " ".join(["x" * 50_000] * 20)
    for _ in range(DEAF_MESSAGES):
        yield Frame(Opcode.TEXT, json.dumps({"text": text}).encode()).serialize(mask=True)


async def test_a_websocket_that_never_reads_is_cut_off_and_holds_nothing(gateway, http, key):
    loop = asyncio.get_running_loop()
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        with anyio.fail_after(LIMIT_S):
            await loop.sock_connect(deaf, ("127.0.0.1", gateway.port))
            await shake_hands(deaf, key)
            with suppress(ConnectionError):  # cut off early is cut off as well
                for frame in to_a_deaf_client():
                    await loop.sock_sendall(deaf, frame)
        await eventually(lambda: gateway.records(key), within=LIMIT_S)
        assert (await post(http, key)).status_code == 200, "it holds its session"
        port = deaf.getsockname()[1]
        await eventually(lambda: not gateway.is_connected_to(port), within=LIMIT_S, awaited="its socket is gone")


# By themselves


async def test_cron_heartbeat_and_sub_agent_speak_in_the_same_session(gateway, http, key):
    await post(http, key, "/research bees")
    wanted = {"user", "assistant", "announcement", "cron", "heartbeat"}
    await eventually(lambda: wanted <= {one.get("role") for one in gateway.records(key)}, within=LIMIT_S)
    assert gateway.said(key, "announcement") == ["about bees: bees bees bees "]


async def test_a_long_transcript_is_compacted_and_keeps_what_comes_meanwhile(gateway, http, key):
    last = {}
    with anyio.fail_after(LIMIT_S):
        while not gateway.said(key, "system"):
            last = (await post(http, key)).json()
    header, summary, *later = gateway.records(key)
    assert (header["lanes.session"], summary["role"]) == (key, "system")
    assert re.match(r"\d+ records, the last one: ", summary["content"])
    assert [one["content"] for one in later if one["role"] in ("user", "assistant")] == ["hello", last["reply"]]


# The process


async def test_health_readiness_and_metrics_can_be_asked(http, key):
    await post(http, key)
    health = await http.get("/healthz")
    assert health.status_code == 200 and health.json()["problems"] == []
    ready = await http.get("/readyz")
    assert (ready.status_code, ready.json()) == (200, {"state": "running"})
    metrics = await http.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain") and "# TYPE lanes_" in metrics.text


async def test_a_restart_is_only_for_the_machine_itself(http):
    far = await http.post("/admin/restart", headers={"X-Forwarded-For": "203.0.113.7"})
    assert far.status_code == 403
    assert (await http.get("/readyz")).status_code == 200


def more_than(answers: list[Any], count: int) -> bool:
    return len(answers) > count


async def test_every_message_during_a_restart_is_answered_or_refused_with_a_reason(gateway, http):
    answers: list[tuple[str, str, httpx.Response]] = []
    done = anyio.Event()

    async def ask(key: str) -> None:
        number = 0
        while not done.is_set():
            number += 1
            answers.append((f"{key}:{number}", "hello", await post(http, f"{key}:{number}")))

    async with anyio.create_task_group() as clients:
        for _ in range(8):
            clients.start_soon(ask, next(gateway.keys))
        for _ in range(2):
            assert (await http.post("/admin/restart")).status_code == 202
            with anyio.fail_after(LIMIT_S):
                while (await http.get("/readyz")).status_code != 200:
                    await anyio.sleep(0.005)
            await eventually(partial(more_than, answers, len(answers) + 20), within=LIMIT_S)
        done.set()
    statuses = {answer.status_code for _, _, answer in answers}
    assert 200 in statuses and statuses <= {200, 503}, statuses
    for key, text, answer in answers:
        if answer.status_code == 200:
            assert text in gateway.said(key, "user")
        else:
            assert answer.json()["error"] == "Draining" and answer.headers["retry-after"] == "1"


async def test_sigusr1_restarts_it(gateway, http):
    before = gateway.log.read_text().count("restart_finished")
    gateway.process.send_signal(signal.SIGUSR1)
    await eventually(lambda: gateway.log.read_text().count("restart_finished") > before, within=LIMIT_S)
    assert (await post(http, next(gateway.keys))).status_code == 200


@pytest.mark.parametrize("sent_signal", [signal.SIGTERM, signal.SIGHUP], ids=["SIGTERM", "SIGHUP"])
async def test_a_signal_under_load_answers_or_refuses_everything_and_exits_well(tmp_path, sent_signal):
    async with serving(tmp_path) as gateway:
        sent, answers = 0, list[tuple[str, str, Any]]()
        async with httpx.AsyncClient(base_url=gateway.url, timeout=LIMIT_S) as http, anyio.create_task_group() as group:

            async def ask(key: str) -> None:
                nonlocal sent
                with anyio.move_on_after(LIMIT_S):
                    for number in range(10_000):
                        text = f"{number}: {SLOW}"
                        sent += 1
                        try:
                            answers.append((key, text, await post(http, key, text)))
                        except httpx.TransportError as error:
                            answers.append((key, text, error))
                            return

            for client in range(8):
                group.start_soon(ask, f"client {client}")
            await eventually(lambda: len(answers) > 8, within=LIMIT_S)
            gateway.process.send_signal(sent_signal)
        assert await anyio.to_thread.run_sync(gateway.process.wait, LIMIT_S) == 0, gateway.log.read_text()
        assert len(answers) == sent
        for key, text, answer in answers:
            if isinstance(answer, httpx.Response):
                assert answer.status_code == 200
                assert text in gateway.said(key, "user")
        assert "supervisor_stopped" in gateway.log.read_text()
        assert "Traceback" not in gateway.log.read_text()


async def test_after_kill_9_the_next_one_goes_on_with_all_that_was_acknowledged(tmp_path):
    async with serving(tmp_path) as first:
        async with httpx.AsyncClient(base_url=first.url, timeout=LIMIT_S) as http:
            await post(http, "ann", "answered")
            await started(http, "ann")
            await eventually(lambda: len(first.said("ann", "user")) == 2, within=LIMIT_S)
            second = launched(tmp_path)
            try:
                assert await anyio.to_thread.run_sync(second.process.wait, LIMIT_S) != 0
            finally:
                second.kill()
            assert str(first.process.pid) in second.log.read_text(), "the second one does not name the first"
        first.process.kill()
    async with serving(tmp_path) as again:
        async with httpx.AsyncClient(base_url=again.url, timeout=LIMIT_S) as http:
            assert (await post(http, "ann", "afterwards")).status_code == 200
        assert again.said("ann", "user") == ["answered", SLOW, "afterwards"]


@pytest.mark.failure("G9")
async def test_after_kill_9_each_message_is_answered_asked_about_or_named(tmp_path):
    sent = {}
    async with serving(tmp_path, timeout=60) as first:
        async with httpx.AsyncClient(base_url=first.url, timeout=LIMIT_S) as http:
            for key, text in (("ann", "/delete notes.txt"), ("bob", ENDLESS), ("bob", "second"), ("bob", "third")):
                sent[text] = (await post(http, key, text, wait=False)).json()["id"]
            sent["keyed"] = (await http.post("/sessions/bob/messages", **KEYED)).json()["id"]
            asked = (await settled(http, sent["/delete notes.txt"]))["ask"]
            await eventually(lambda: first.said("bob", "user"), within=LIMIT_S)
        first.process.kill()
    async with serving(tmp_path) as again:
        async with httpx.AsyncClient(base_url=again.url, timeout=LIMIT_S) as http:
            found = {text: await settled(http, message) for text, message in sent.items()}
            assert {text: one["state"] for text, one in found.items()} == {
                "/delete notes.txt": "waiting",
                ENDLESS: "unknown",
                "second": "done",
                "third": "done",
                "keyed": "done",
            }
            repeated = await http.post("/sessions/bob/messages", **KEYED | {"json": {"text": "keyed"}})
            assert (repeated.status_code, repeated.json()["id"]) == (200, sent["keyed"])
            assert repeated.json()["reply"] == found["keyed"]["reply"] == "keyed keyed keyed "
            assert (await http.get("/asks")).json() == {"asks": [asked]} and found["/delete notes.txt"]["ask"] == asked
            answered = await http.post(f"/asks/{asked['id']}", json={"value": "no"})
            assert answered.json()["reply"] == "I keep notes.txt. "
            assert (await http.get("/asks")).json() == {"asks": []}
        assert again.said("bob") == [
            *(ENDLESS, INTERRUPTED),
            *("second", "second second second "),
            *("third", "third third third "),
            *("keyed", "keyed keyed keyed "),
        ]
    assert [one["answers"] for one in again.records("bob") if one.get("role") == "assistant"] == [
        [sent[text]] for text in (ENDLESS, "second", "third", "keyed")
    ]


# Without a process


NOBODY: Any = None
"""No supervisor has to be asked."""
HOLDER = Holder(lane="main", run_id=7, pid=123)


@pytest.mark.parametrize(
    "error, status",
    [
        (LaneBusy("busy", lane="a", session="b", holder=None), 409),
        (LaneFull("full", lane="a", queued=1, limit=1), 429),
        (Draining("draining"), 503),
        (InvalidLane("lane"), 422),
        (InvalidSession("session"), 422),
        (DeadlockError("ring"), 409),
        (RunEnded("ended", path="/a", holder=HOLDER), 409),
        (RunTimedOut("late"), 504),
        (RunAbandonedAfterTimeout("late"), 504),
        (RunAbandoned("stuck"), 500),
        (RunCancelled("stopped"), 409),
        (RunSuperseded("newer"), 409),
        (TranscriptError("disk", path="/a"), 500),
        (ZeroDivisionError("ours"), 500),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_error_has_a_status(error, status):
    told = problem(error, NOBODY)
    assert (told["error"], told["status"], told["message"]) == (type(error).__name__, status, str(error))
    assert "path" not in told, "paths are for the log"


def test_a_lease_that_was_not_granted_names_who_has_it_for_how_long():
    told = problem(LeaseTimeout("waited", path="/a", waited_s=5.0, holder=HOLDER, remaining_s=12.5), NOBODY)
    assert told["status"] == 409
    assert (told["holder"], told["waited_s"], told["remaining_s"]) == (HOLDER, 5.0, 12.5)


@pytest.mark.parametrize("option", ["--port=-1", "--timeout=0", "--model-delay=soon", "--compact-above=1"])
def test_an_option_that_is_not_allowed_is_named_and_nothing_starts(option):
    done = CliRunner().invoke(main, [option])
    name, _, value = option.partition("=")
    assert done.exit_code == 2 and name in done.output and value in done.output


def test_every_setting_is_an_option_with_a_variable():
    for name in Settings.__dataclass_fields__:
        (option,) = [one for one in main.params if one.name == name]
        variable = "LANES_STORE" if name == "store" else f"GATEWAY_{name.upper()}"
        assert getattr(option, "envvar", None) == variable

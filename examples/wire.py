"""The wire format of `examples/gateway.py`: incoming messages, outgoing runs and errors."""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import quote, unquote_to_bytes

import anyio
import msgspec
from starlette.convertors import Convertor, register_url_convertor
from starlette.requests import ClientDisconnect, HTTPConnection, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from lanes import (
    DedupeConflict,
    Draining,
    InvalidLane,
    LaneBusy,
    LaneError,
    LaneFull,
    Question,
    Run,
    RunCancelled,
    RunError,
    RunSuperseded,
    RunTimedOut,
)
from lanes.layout import check_key
from lanes.spec import WhenBusy
from locks import DeadlockError, InvalidSession, LeaseLost, LeaseTimeout
from runtime import Accepted, AskClosed, InboxDown, MessageState, OutcomeUnknown, Supervisor

MAX_BODY = 1 << 20
STATUS: dict[type[BaseException], int] = {
    InvalidLane: 422,
    InvalidSession: 422,
    **dict.fromkeys((LaneBusy, DedupeConflict, LeaseTimeout, LeaseLost), 409),
    **dict.fromkeys((DeadlockError, RunCancelled, RunSuperseded, OutcomeUnknown, AskClosed), 409),
    LaneFull: 429,
    **dict.fromkeys((Draining, InboxDown), 503),
    RunTimedOut: 504,
    TimeoutError: 504,
}
"""By class; the most specific class counts. Every other exception is an error of ours: 500."""


class Refusal(LaneError):
    """A refusal by the gateway itself; `status` and further facts for the client are fields."""


KEYS = "1 byte to 1 KiB of UTF-8 without control characters, percent-encoded"


class AnyKey(Convertor[str]):
    """A key in a route. It matches line breaks too, so that such a key is a 422 with the reason, and not a 404."""

    regex = "(?s:.*)"

    def convert(self, value: str) -> str:
        """The key as it is in the path."""
        return value

    def to_string(self, value: str) -> str:
        """The key, encoded for a path."""
        return quote(value, safe="")


register_url_convertor("key", AnyKey())


class AsSent:
    """Passes the application the path that was sent, if the server reports it.

    A server replaces bytes that are not UTF-8 by U+FFFD, and so makes one session of many. Here each such byte becomes
    a lone surrogate, which no key may have; UTF-8 is left as the server has it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one scope. A checkpoint."""
        raw = scope.get("raw_path")
        if raw is not None:
            path = unquote_to_bytes(raw.partition(b"?")[0]).decode(errors="surrogateescape")
            scope = {**scope, "path": path}
        await self.app(scope, receive, send)


def key_in(connection: HTTPConnection) -> str:
    """The session that a path names.

    Raises:
        InvalidSession: the path names no session, or perhaps not the one that was sent; the error has field, value and
            what is allowed.
    """
    key: str = connection.path_params["key"]
    why = "is not allowed"
    try:
        if connection.scope.get("raw_path") is not None or "\ufffd" not in key:
            return check_key(key)
        why = "is perhaps not what was sent, and this server does not say"
    except InvalidSession:
        pass  # that error shows the decoded text; a client needs to see the path that it has sent
    sent = quote(key, safe="", errors="surrogateescape")
    sent = sent if len(sent) <= 80 else f"{sent:.77}..."
    raise InvalidSession(f"key: {sent!r} {why}; allowed: {KEYS}", field="key", value=sent, allowed=KEYS)


class Posted(msgspec.Struct, forbid_unknown_fields=True):
    """A message from a client."""

    text: Annotated[str, msgspec.Meta(min_length=1)]
    when_busy: WhenBusy | None = None
    """`None`: the lane's policy."""
    wait: Annotated[float, msgspec.Meta(ge=0)] | bool | None = None


class Decided(msgspec.Struct, forbid_unknown_fields=True):
    """An answer to a question that the agent has asked."""

    value: Any
    by: str = ""
    wait: Annotated[float, msgspec.Meta(ge=0)] | bool | None = None


ALLOWED = {
    "text": "text of one character or more",
    "when_busy": ", ".join(get_args(WhenBusy)),
    "value": "one of the question's options",
    "by": "text",
    "wait": "seconds, 0 and more, or false",
}
Body = TypeVar("Body", Posted, Decided)


def parsed(raw: str | bytes, kind: type[Body]) -> Body:
    """The message or the answer in a body or a frame.

    Raises:
        Refusal: the data is none; the error has the field, its value and what is allowed.
    """
    fields = kind.__struct_fields__
    if len(raw) > MAX_BODY:
        raise Refusal(f"body: {len(raw)} bytes; allowed: {MAX_BODY} bytes", status=413)
    try:
        given = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refusal(f"body: no JSON ({error}); allowed: a JSON object", status=400) from None
    if not isinstance(given, dict):
        raise Refusal(f"body: {given!r:.80}; allowed: a JSON object", status=422)
    try:
        posted = msgspec.convert(given, kind)
        if posted.wait is True:
            raise msgspec.ValidationError("`wait`")
    except msgspec.ValidationError as error:
        unknown = [name for name in given if name not in fields]
        field = unknown[0] if unknown else re.findall(r"`[$.]*(\w+)", str(error))[-1]
        value, allowed = given.get(field), ALLOWED[field] if field in fields else f"the fields {', '.join(fields)}"
        value = value if len(repr(value)) <= 80 else f"{value!r:.80}"  # do not send a megabyte back
        message = f"{field:.80}: {value!r:.80} is not allowed; allowed: {allowed}"
        raise Refusal(message, status=422, field=field[:80], value=value, allowed=allowed) from None
    return posted


async def body_of(request: Request, within: float) -> bytes:
    """The body of a request: at most `MAX_BODY` bytes, within `within` seconds. A checkpoint.

    Raises:
        Refusal: the body is too long, or takes too long.
    """
    body = bytearray()
    with anyio.move_on_after(within), suppress(ClientDisconnect):
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise Refusal(f"body: more than {MAX_BODY} bytes; allowed: {MAX_BODY} bytes", status=413)
        return bytes(body)
    raise Refusal(f"body: {len(body)} bytes came within {within:g} s; allowed: all of it", status=408)


def reply(content: Any, status: int = 200, **headers: str) -> Response:
    """A JSON response."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(msgspec.json.encode(content, enc_hook=str), status, named, "application/json")


def problem(error: BaseException, sup: Supervisor) -> dict[str, Any]:
    """An error for a client: its class, its status, its message, its fields."""
    status = next((STATUS[kind] for kind in type(error).__mro__ if kind in STATUS), 500)
    if isinstance(error, AskClosed) and error.state is None:
        status = 404
    fields = {name: printable(value) for name, value in vars(error).items() if name[0] != "_" and name != "path"}
    if isinstance(error, DedupeConflict):
        fields["id"] = fields.pop("run")  # in an inbox, a message has the key
    holder = sup.find(fields["holder"]) if isinstance(fields.get("holder"), int) else None
    if holder is not None:
        fields["holder"] = held_by(holder)
    if isinstance(error, RunError) and error.run is not None:
        fields["run"] = error.run.id
    return {"error": type(error).__name__, "status": status, "message": printable(str(error)), **fields}


def printable(value: Any) -> Any:
    """A field of an error as JSON can have it: a path may have bytes that are no UTF-8."""
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def held_by(run: Run) -> dict[str, Any]:
    """The run that has a session, how long it has held it, and how long it still may."""
    now, at_most = time.monotonic(), run.deadline or run.wait_deadline
    return {
        "run": run.id,
        "lane": run.lane,
        "pid": os.getpid(),
        "held_s": now - (run.started_at or now),
        "remaining_s": at_most and at_most - now,
    }


async def refused(request: Request, error: BaseException, **fields: Any) -> Response:
    """The response to an error."""
    told = problem(error, request.state.lanes) | fields
    headers = {"Retry_After": "1"} if getattr(error, "retryable", False) else {}
    if told["status"] == 408:
        headers["Connection"] = "close"
    return reply(told, told["status"], **headers)


def shown(run: Run) -> dict[str, Any]:
    """A run, for a client that polls it."""
    told = {"run": run.id, "lane": run.lane, "session": run.session, "state": run.state}
    told["reason"] = printable(run.reason)
    if (outcome := run.outcome) is None:
        return told
    times = {"waited_s": outcome.waited_s, "ran_s": outcome.ran_s, "late_s": outcome.late_s}
    return (
        told | times | ({"reply": outcome.value} if outcome.error is None else {"error": printable(str(outcome.error))})
    )


def kept(accepted: Accepted) -> dict[str, Any]:
    """An accepted message, for a client that polls it: its state, and what came of it."""
    told = {"id": accepted.id, "run": accepted.run and accepted.run.id, "state": accepted.state}
    outcome = accepted.outcome
    if outcome is None or accepted.state is MessageState.ACCEPTED:  # cut off by a restart, it goes on
        return told
    told["reason"] = printable(outcome.reason)
    if isinstance(outcome.value, Question):
        return told | {"ask": outcome.value}
    return told | ({"reply": outcome.value} if outcome.error is None else {"error": printable(str(outcome.error))})


async def answered(request: Request, accepted: Accepted) -> Response:
    """The response to a message: 200 with the reply, 202 with where to ask for it, or why there will be none."""
    told = kept(accepted)
    if "error" in told:
        assert accepted.outcome is not None and accepted.outcome.error is not None
        return await refused(request, accepted.outcome.error, id=accepted.id)
    if accepted.state.open or accepted.state is MessageState.WAITING:
        return reply(told, 202, Location=f"/messages/{accepted.id}")
    return reply(told)

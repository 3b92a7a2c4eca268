"""A chat over HTTP with server-sent events: FastAPI under uvicorn.

    pip install session-lanes fastapi uvicorn
    python -m examples.fastapi_sse 8000        # sessions in $CHAT_SESSIONS, by default sessions/

    curl -N localhost:8000/sessions/alice/messages -H 'content-type: application/json' -d '{"text": "hello"}'
    curl localhost:8000/messages/1

The answer streams as events: `accepted` with the message's id, `token` for each word, `end` with what became of it. The
message is on disk before the first event. A client that goes away ends no run: the answer is in the session, and
`GET /messages/{id}` says where it stands, also in the next process. A request with an `Idempotency-Key` that was sent
before gets the same message.

Ctrl-C and SIGTERM are uvicorn's: it takes no new request, gives open responses `timeout_graceful_shutdown` seconds, and
then ends the lifespan, where the supervisor drains. One process for one directory: an inbox has one owner. For several
workers give them a database, see docs/frameworks.md.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Any

import anyio
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

from lanes import LaneError, LaneFull, LaneSpec, Message, RunContext
from locks import LockError
from runtime import Accepted, Supervisor
from runtime.asgi import Supervised


async def handle(ctx: RunContext, messages: Sequence[Message]) -> str:
    """Answer a message; the sleep stands for a model."""
    await ctx.session.append({"role": "user", "content": messages[-1].body})
    answer = ""
    for word in f"You said: {messages[-1].body}".split():
        await anyio.sleep(0.05)
        ctx.emit(word)
        answer += f"{word} "
    await ctx.finish({"role": "assistant", "content": answer.strip()}, answer.strip())
    return answer.strip()


async def interrupted(ctx: RunContext, messages: Sequence[Message]) -> None:
    """Tell a session of messages that a process was answering when it was killed."""
    await ctx.session.append({"role": "assistant", "content": "I was interrupted. Please ask again."})


def make() -> Supervisor:
    """What each start of the application makes; the server's lifespan starts and stops it."""
    lane = LaneSpec("session:*", handler=handle, timeout=120, on_unknown=interrupted)
    return Supervisor(os.environ.get("CHAT_SESSIONS", "sessions"), lanes=[lane], inbox=True, drain_timeout=10)


app = FastAPI(title="chat")
app.add_middleware(Supervised, make=make)


class Posted(BaseModel):
    """A message of a user."""

    text: str


@app.post("/sessions/{key}/messages")
async def post(key: str, posted: Posted, request: Request) -> StreamingResponse:
    """Accept a message, and stream its answer."""
    sup: Supervisor = request.state.lanes
    accepted = await sup.accept(f"session:{key}", posted.text, dedupe=request.headers.get("idempotency-key"))
    return StreamingResponse(events_of(sup, accepted), media_type="text/event-stream")


async def events_of(sup: Supervisor, accepted: Accepted) -> AsyncIterator[str]:
    """What a client reads: cancelled when it goes away, and the run goes on."""
    yield event("accepted", {"id": accepted.id})
    async for token in sup.everywhere.events(accepted.id):
        yield event("token", token)
    outcome = await accepted.wait()
    yield event("end", {"state": accepted.state, "reply": outcome.value, "reason": outcome.reason})


def event(name: str, data: Any) -> str:
    """One server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n"


@app.get("/messages/{number}")
async def message(number: int, request: Request) -> dict[str, Any]:
    """Where a message stands."""
    found = await request.state.lanes.find_message(number)
    if found is None:
        raise HTTPException(404, f"message {number} is not kept")
    return {"id": found.id, "state": found.state, "reply": found.outcome and found.outcome.value}


@app.post("/sessions/{key}/stop")
async def stop(key: str, request: Request) -> dict[str, int]:
    """End what runs and waits in a session."""
    return {"stopped": await request.state.lanes.everywhere.cancel(session=key, reason="stopped")}


@app.exception_handler(LaneError)
@app.exception_handler(LockError)
async def refused(_: Request, error: Exception) -> JSONResponse:
    """What the supervisor refuses: a full queue, a drain, a name that is not allowed."""
    again = bool(getattr(error, "retryable", False))
    status = 429 if isinstance(error, LaneFull) else 503 if again else 422
    return JSONResponse({"error": str(error)}, status, {"Retry-After": "1"} if again else None)


if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]) if sys.argv[1:] else 8000, timeout_graceful_shutdown=30)

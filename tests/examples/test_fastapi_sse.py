"""`examples/fastapi_sse.py` under uvicorn."""

from __future__ import annotations

import json
import socket

import httpx

from tests.examples.conftest import LIMIT_S, needs, program, said
from tests.poll import eventually_sync

needs("fastapi")


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def events_in(text):
    return [
        (name.removeprefix("event: "), json.loads(data.removeprefix("data: ")))
        for name, data in (block.split("\n") for block in text.strip().split("\n\n"))
    ]


def test_answers_stream_and_ctrl_c_lets_the_last_one_end(tmp_path):
    port = free_port()
    with program("fastapi_sse", tmp_path, str(port)) as process:
        eventually_sync(lambda: "Uvicorn running" in said(tmp_path), within=LIMIT_S)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=LIMIT_S) as client:
            place, key = "/sessions/alice/messages", {"Idempotency-Key": "a"}
            first = client.post(place, json={"text": "hello"}, headers=key)
            again = client.post(place, json={"text": "hello"}, headers=key)
            refused = client.post("/sessions/%00/messages", json={"text": "hello"})
            with client.stream("POST", place, json={"text": "one two three four five"}) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: accepted"
                process.send_signal(2)  # Ctrl-C: the open response gets time to end
                rest = list(lines)
        assert process.wait(LIMIT_S) in (0, -2)
    got = events_in(first.text)
    end = {"state": "done", "reply": "You said: hello", "reason": ""}
    assert (got[0], got[-1]) == (("accepted", {"id": 1}), ("end", end))
    tokens = [one for name, one in got if name == "token"]  # the first may be emitted before the client reads
    assert tokens == ["You", "said:", "hello"][3 - len(tokens) :]
    assert (events_in(again.text)[0], events_in(again.text)[-1]) == (got[0], got[-1])
    assert refused.status_code == 422 and "\\x00" in refused.text
    assert json.loads(rest[-2].removeprefix("data: "))["reply"] == "You said: one two three four five"
    assert "supervisor_stopped" in said(tmp_path) and "Traceback" not in said(tmp_path)

"""`examples/mcp_server.py`, by messages as a client sends them."""

from __future__ import annotations

import json

from tests.examples.conftest import LIMIT_S, interrupted, needs, program, said
from tests.poll import eventually_sync

needs("mcp")


def test_calls_report_progress_can_be_cancelled_and_end_by_ctrl_c(tmp_path):
    def answers():
        lines = [line for line in said(tmp_path).splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines]

    def answer_to(number):
        return next((one for one in answers() if one.get("id") == number), None)

    with program("mcp_server", tmp_path) as process:
        assert process.stdin is not None
        stdin = process.stdin

        def send(method, number=None, **params):
            told = {"jsonrpc": "2.0", "method": method, "params": params} | ({} if number is None else {"id": number})
            stdin.write(json.dumps(told).encode() + b"\n")
            stdin.flush()

        def call(number, topic, pause_s):
            arguments = {"topic": topic, "pause_s": pause_s}
            send("tools/call", number, name="research", arguments=arguments, _meta={"progressToken": number})

        client = {"name": "test", "version": "1"}
        send("initialize", 1, protocolVersion="2025-06-18", capabilities={}, clientInfo=client)
        eventually_sync(lambda: answer_to(1), within=LIMIT_S)
        send("notifications/initialized")
        call(2, "otters", 0.01)
        eventually_sync(lambda: answer_to(2), within=LIMIT_S)
        call(3, "for ever", 3600)
        call(4, "for ever", 0.01)  # the same topic waits for its turn
        eventually_sync(lambda: "waits for a free place" in said(tmp_path), within=LIMIT_S)
        send("notifications/cancelled", requestId=3)
        eventually_sync(lambda: answer_to(4), within=LIMIT_S)
        call(5, "for ever", 3600)
        send("ping", 6)
        eventually_sync(lambda: answer_to(6), within=LIMIT_S)
        assert interrupted(process) == 0
    assert answer_to(2)["result"]["content"][0]["text"] == "otters: found in encyclopedia, archive, library"
    progress = [one["params"] for one in answers() if one.get("method") == "notifications/progress"]
    assert [one["progress"] for one in progress if one["progressToken"] == 2] == [1, 2, 3]
    assert answer_to(4)["result"]["content"][0]["text"].startswith("for ever: found")
    assert "supervisor_stopped" in said(tmp_path) and "Traceback" not in said(tmp_path)

"""`examples/slack_bot.py`, with the real library, against servers that stand for Slack's: its API, and its socket."""

from __future__ import annotations

import json
import threading
from contextlib import contextmanager
from typing import Any

from websockets.sync.server import serve

from tests.examples.conftest import LIMIT_S, Api, interrupted, needs, program, said
from tests.poll import eventually_sync

needs("slack_bolt")


class Slack:
    """Delivers events over a socket, and sees what is acknowledged."""

    def __init__(self):
        self.acknowledged = []
        self.connection: Any = None

    def __call__(self, method, fields):
        match method:
            case "apps.connections.open":
                return {"ok": True, "url": f"ws://127.0.0.1:{self.port}"}
            case "auth.test":
                return {"ok": True, "bot_id": "B1", "user_id": "U1", "team_id": "T1", "url": "https://x", "user": "bot"}
            case _:
                return {"ok": True, "channel": "C1", "ts": "9", "message": {}}

    def socket(self, connection):
        connection.send(json.dumps({"type": "hello", "num_connections": 1, "connection_info": {"app_id": "A1"}}))
        self.connection = connection
        for frame in connection:
            if (told := json.loads(frame)).get("envelope_id"):
                self.acknowledged.append(told["envelope_id"])

    def event(self, envelope, event_id, text, **more):
        event = {"type": "message", "channel": "C1", "user": "U7", "text": text, "ts": "1.1", **more}
        payload = {"type": "event_callback", "team_id": "T1", "event_id": event_id, "event": event}
        self.connection.send(
            json.dumps(
                {"type": "events_api", "envelope_id": envelope, "accepts_response_payload": False, "payload": payload}
            )
        )

    @contextmanager
    def running(self):
        with serve(self.socket, "127.0.0.1", 0) as sockets, Api(self).running() as api:
            self.port = sockets.socket.getsockname()[1]
            thread = threading.Thread(target=sockets.serve_forever)
            thread.start()
            try:
                yield api
            finally:
                sockets.shutdown()
                thread.join()


def test_events_are_kept_before_they_are_acknowledged_and_answered_in_their_thread(tmp_path):
    slack = Slack()
    with slack.running() as api:
        tokens = {"SLACK_APP_TOKEN": "xapp-1", "SLACK_BOT_TOKEN": "xoxb-1", "SLACK_API": f"{api.url}/api/"}
        with program("slack_bot", tmp_path, **tokens) as process:
            eventually_sync(lambda: slack.connection, within=LIMIT_S)
            slack.event("e1", "Ev1", "hello")
            slack.event("e2", "Ev1", "hello")  # delivered again
            slack.event("e3", "Ev2", "changed", subtype="message_changed")
            slack.event("e4", "Ev3", "elsewhere", ts="2.2", thread_ts="2.1")
            eventually_sync(lambda: len(slack.acknowledged) == 4, within=LIMIT_S)
            eventually_sync(lambda: len(api.called("chat.postMessage")) == 2, within=LIMIT_S)
            assert interrupted(process) == 0
        sent = sorted((one["thread_ts"], one["text"]) for one in api.called("chat.postMessage"))
    assert sent == [("1.1", "You said: hello"), ("2.1", "You said: elsewhere")]
    assert len(list((tmp_path / "sessions").glob("*.jsonl"))) == 2
    assert "supervisor_stopped" in said(tmp_path) and "Traceback" not in said(tmp_path)

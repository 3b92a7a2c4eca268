"""`examples/telegram_bot.py`, with the real library, against a server that stands for Telegram's."""

from __future__ import annotations

import json
import time
from typing import Any

from tests.examples.conftest import LIMIT_S, Api, interrupted, needs, program, said
from tests.poll import eventually_sync

needs("telegram")

PERSON = {"id": 7, "is_bot": False, "first_name": "Ann", "last_name": "Lee"}
CHAT = {"id": 7, "type": "private"}


class Telegram:
    """Delivers updates until a later call confirms them."""

    def __init__(self):
        self.updates = []
        self.sent = 0

    def message(self, number, text):
        message = {"message_id": number, "date": 1, "chat": CHAT, "from": PERSON, "text": text}
        self.updates.append({"update_id": number, "message": message})

    def edit(self, number, text):
        message = {"message_id": 1, "date": 1, "edit_date": 2, "chat": CHAT, "from": PERSON, "text": text}
        self.updates.append({"update_id": number, "edited_message": message})

    def press(self, number, data):
        query = {"id": str(number), "from": PERSON, "chat_instance": "1", "data": data}
        self.updates.append({"update_id": number, "callback_query": query})

    def __call__(self, method, fields):
        result: Any
        match method:
            case "getMe":
                result = PERSON | {"is_bot": True, "username": "bot"}
            case "getUpdates":
                offset = int(fields.get("offset", 0))
                result = [one for one in self.updates if one["update_id"] >= offset]
                if not result:
                    time.sleep(0.02)  # the long poll
            case "sendMessage":
                self.sent += 1
                result = {"message_id": self.sent, "date": 1, "chat": CHAT, "text": fields["text"]}
            case _:
                result = True
        return {"ok": True, "result": result}


def test_a_chat_is_answered_asked_by_buttons_and_stopped_by_ctrl_c(tmp_path):
    telegram = Telegram()
    with Api(telegram).running() as api:
        token = {"TELEGRAM_TOKEN": "1:a", "TELEGRAM_API": api.url}

        def texts():
            return [one["text"] for one in api.called("sendMessage")]

        telegram.message(1, "hello")
        telegram.message(2, "/delete notes.txt")
        telegram.edit(3, "hello again")
        with program("telegram_bot", tmp_path, **token) as process:
            eventually_sync(lambda: len(texts()) == 2, within=LIMIT_S)
            assert texts() == ["You said: hello", "Delete notes.txt?"]
            ((yes, no),) = json.loads(api.called("sendMessage")[1]["reply_markup"])["inline_keyboard"]
            assert (yes["text"], no["text"]) == ("yes", "no")
            telegram.press(4, yes["callback_data"])
            telegram.press(5, no["callback_data"])  # too late
            eventually_sync(lambda: len(texts()) == 3 and len(api.called("answerCallbackQuery")) == 2, within=LIMIT_S)
            assert interrupted(process) == 0
    assert texts()[2] == "Deleted notes.txt"
    assert [one.get("text") for one in api.called("answerCallbackQuery")] == [None, "This has been decided."]
    assert said(tmp_path).count("supervisor_stopped") == 1 and "Traceback" not in said(tmp_path)

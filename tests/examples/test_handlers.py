"""The handlers of the examples with a framework, cancelled and killed at each of their suspensions.

No framework runs: what the handlers send goes nowhere, in its time.
"""

from __future__ import annotations

import anyio
import pytest

from lanes import Message
from lanes.testing import Played, cancel_everywhere, crash_everywhere
from tests.examples.conftest import needs


async def nowhere(*_: object) -> None:
    await anyio.sleep(0.1)


def somebody_was_told(played: Played) -> None:
    assert played.records[-1]["role"] == "assistant", played.records


def slack(monkeypatch):
    needs("slack_bolt")
    from examples.slack_bot import Bot

    bot = Bot("xoxb-1", "/nowhere")
    monkeypatch.setattr(bot, "send", nowhere)
    return bot.handle, Message("hi", route={"channel": "C1", "thread_ts": "1.0"}), bot.interrupted


def telegram(monkeypatch):
    needs("telegram")
    from examples.telegram_bot import Bot

    bot = Bot("1:token", "/nowhere")
    monkeypatch.setattr(bot, "send", nowhere)
    return bot.handle, "hi", bot.interrupted


def fastapi(_):
    needs("fastapi")
    from examples.fastapi_sse import handle, interrupted

    return handle, "hi", interrupted


@pytest.mark.virtual_time_loops("asyncio")
@pytest.mark.parametrize("example", [slack, telegram, fastapi])
async def test_wherever_it_is_cancelled_the_next_message_is_answered_and_wherever_killed_somebody_is_told(
    virtual_time, example, monkeypatch
):
    handler, message, interrupted = example(monkeypatch)
    count = await cancel_everywhere(handler, message, session="1")
    assert count > 2
    check = somebody_was_told
    assert await crash_everywhere(handler, message, session="1", on_unknown=interrupted, check=check) == count

"""Values that the inbox cannot keep are refused by name, and keep nothing else from being kept."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from lanes import InvalidLane, LaneSpec, RunState
from runtime import AskClosed, InboxDown, MessageState, Supervisor
from runtime.testing.inline import inline
from tests.inboxes import rows, service_of, writer_of

HALF = "\udcff"
"""Half of a surrogate pair, as Python has it for the byte 0xff in a file name."""


@pytest.fixture(autouse=True)
def writer():
    with inline() as writer:
        yield writer


async def handle(ctx: Any, messages: Any) -> Any:
    if messages[0].body == "raise":
        raise ValueError(f"no file {HALF}")
    if messages[0].body == "return":
        return HALF
    if messages[0].body == "ask":
        raise await ctx.ask("?", key=HALF)
    return messages[0].body


LANES = [LaneSpec("session:*", handler=handle), LaneSpec("job:*", handler=handle)]


@pytest.mark.failure("G15")
@pytest.mark.parametrize(
    "call, error, says",
    [
        (lambda sup: sup.accept("session:a", 1, dedupe=HALF), InvalidLane, "dedupe: "),
        (lambda sup: sup.accept(f"job:{HALF}", 1), InvalidLane, "lane: "),
        (lambda sup: sup.answer(HALF, 1), AskClosed, "was never asked"),
        (lambda sup: sup.asks(session=HALF), InvalidLane, "session: "),
        (lambda sup: sup.asks(lane=[]), InvalidLane, "lane: "),
        (lambda sup: sup.asks(at_most=-1), InvalidLane, "at_most: "),
        (lambda sup: sup.requeue(10**30), InvalidLane, "message: "),
        (lambda sup: sup.requeue([]), InvalidLane, "message: "),
        (lambda sup: sup.requeue(True), InvalidLane, "message: "),
    ],
    ids=range(9),
)
async def test_what_cannot_be_kept_is_refused_by_name(virtual, tmp_path, call, error, says):
    async with Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        with pytest.raises(error, match=says):
            await call(sup)
        assert await sup.asks(at_most=10**30) == []
        assert (await (await sup.accept("session:a", 1)).wait()).value == 1, "the inbox takes nothing any more"


@pytest.mark.parametrize("body, state", [("raise", "failed"), ("return", "done"), ("ask", "failed")])
async def test_what_a_handler_raises_or_returns_may_be_any_text(virtual, tmp_path, body, state):
    async with Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        accepted = await sup.accept("session:a", body)
        await accepted.wait()
        assert accepted.state == state
        assert rows(tmp_path) == [(accepted.id, state)]
        assert "\\udcff" in rows(tmp_path, "reason")[0][0] or state == "done"
        assert (await (await sup.accept("session:a", 1)).wait()).state is RunState.DONE


@pytest.mark.failure("G15")
async def test_a_step_that_cannot_be_done_fails_alone_and_is_not_half_done(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, inbox=True) as sup:
        writer, told = writer_of(sup), []
        writer.held = []

        def half_done(connection):
            connection.execute("UPDATE message SET reason = 'half done'")
            connection.execute("UPDATE message SET reason = ?", (HALF,))

        async with anyio.create_task_group() as senders:
            accepted = []

            async def send(text: str) -> None:
                accepted.append(await sup.accept("session:a", text))

            senders.start_soon(send, "before")
            await anyio.sleep(1)
            writer.do(half_done, lambda _, error: told.append(error))
            senders.start_soon(send, "after")
            await anyio.sleep(1)
            writer.release()
        assert [type(one) for one in told] == [UnicodeEncodeError]
        assert not any(isinstance(one, InboxDown) for one in told) and service_of(sup).store.failure is None
        for one in accepted:
            assert (await one.wait()).state is RunState.DONE
        assert rows(tmp_path, "state, reason") == [(MessageState.DONE, ""), (MessageState.DONE, "")]

"""Ctrl-C in a process with an inbox: it ends, and the next process has all that was accepted."""

from __future__ import annotations

import threading

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import LaneSpec
from runtime import Supervisor
from tests.inboxes import rows

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def _quiet():
    with capture_logs():
        yield


def kept_from_ending():
    """The threads that the interpreter waits for when it ends."""
    return [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]


@pytest.mark.failure("G14")
@BACKENDS
def test_an_interrupt_in_a_body_leaves_its_message_to_the_next_process(backend, tmp_path):
    given: list[int] = []

    async def handle(ctx, messages):
        given.append(messages[0].id)
        if len(given) == 1:
            raise KeyboardInterrupt

    async def main():
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handle, repeat=True)], inbox=True) as sup:
            if not given:
                await sup.accept("session:a", 1)
            with anyio.fail_after(60):
                while len(given) < 2:
                    await anyio.sleep(0.01)

    with pytest.raises((KeyboardInterrupt, BaseExceptionGroup)):
        anyio.run(main, backend=backend)
    assert rows(tmp_path) == [(1, "started")]
    anyio.run(main, backend=backend)
    assert given == [1, 1]


@pytest.mark.failure("G14")
@BACKENDS
def test_no_thread_of_an_inbox_keeps_an_interrupted_interpreter_from_ending(backend, tmp_path):
    before, found = kept_from_ending(), []

    async def main():
        sup = Supervisor(tmp_path, inbox=True)
        await sup.start()
        await sup.stop()
        found.append(kept_from_ending())  # the event loop would end them in time, were it not interrupted

    anyio.run(main, backend=backend)
    assert found == [before]

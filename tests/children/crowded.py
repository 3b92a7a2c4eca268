"""A host with 1,000 lanes on which 100,000 runs wait, and its dashboard on the same event loop: `crowded DIRECTORY`.

Says the dashboard's address once all of them wait. When it hears a line, it says how much CPU the loop needed for the
dearest answer, in seconds, and ends without a word to anybody.
"""

from __future__ import annotations

import gc
import os
import sys
import time

import anyio
import anyio.lowlevel
import structlog
import uvicorn
from anyio import to_thread

from lanes import LaneSpec
from runtime import Supervisor
from runtime.web import serve
from runtime.web.app import Dashboard
from runtime.web.guard import Guard
from runtime.web.source import Inside
from runtime.web.views import Views

LANES, RUNS = 1000, 100_000


def say(line: object) -> None:
    os.write(1, f"{line}\n".encode())


class Timed(Inside):
    """Knows how long its dearest answer took the event loop."""

    dearest_s = 0.0

    async def ask(self, question, by):
        began = time.thread_time()
        answer = await super().ask(question, by)
        self.dearest_s = max(self.dearest_s, time.thread_time() - began)
        return answer


async def waits(ctx) -> None:
    await anyio.sleep_forever()


async def main(directory: str) -> None:
    async with (
        Supervisor(directory, lanes=[LaneSpec("*", queue_limit=None)]) as sup,
        anyio.create_task_group() as tasks,
    ):
        gc.disable()  # each collection would look through all that wait
        for number in range(RUNS):
            sup.submit(f"lane {number % LANES}", waits)
            if number % LANES == 0:
                await anyio.lowlevel.checkpoint()
        source = Timed(sup)
        app = Dashboard(Views(source, show_content=True), Guard(None, (), allow_control=True))
        listener = serve.listening("127.0.0.1", 0, "--port")
        tasks.start_soon(uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="off")).serve, [listener])
        say(serve.url_of(listener, "127.0.0.1"))
        await to_thread.run_sync(sys.stdin.readline)
        say(source.dearest_s)
        os._exit(0)


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))  # standard output is for the parent
    anyio.run(main, sys.argv[1])

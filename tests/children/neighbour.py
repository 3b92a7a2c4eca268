"""A supervisor beside others on a directory: `neighbour DIRECTORY BACKEND SOCKET`, where `-` is none.

Says what its handler gets, and how each run ends. For each line on standard input it conducts the session again.
"""

from __future__ import annotations

import sys

import anyio
import anyio.to_thread

from lanes import LaneSpec
from runtime import Supervisor

KEY = "s" * 600


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


async def _answer(ctx, messages):
    texts = [message.body for message in messages]
    while texts[-1] == "hold":
        texts += [message.body for message in ctx.inbox.take()]
        await anyio.sleep(0.01)
    await ctx.session.append({"text": "+".join(texts)})
    return {"answered": texts}


LANES = [LaneSpec("talk", handler=_answer, when_busy="steer")]


def _ended(run):
    _say("ended", run.outcome.state.value, run.outcome.reason)


async def _main(directory: str, socket: str) -> None:
    given = None if socket == "-" else socket
    async with Supervisor(directory, lanes=LANES, status_socket=given, on_run_end=_ended) as sup:
        for number in range(100):
            run = sup.post("talk", "hold", session=KEY)
            while run.state != "running":
                await anyio.sleep(0.01)
            _say("holds", number)
            await anyio.to_thread.run_sync(sys.stdin.readline)


if __name__ == "__main__":
    anyio.run(_main, sys.argv[1], sys.argv[3], backend=sys.argv[2])

"""What suite K2 has served, and struck down: `lanes run tests.children.struck:main --sessions DIRECTORY`.

Three sessions are conducted without end. Their turns append records of 170 B to 64 kB, some start a program that would
run for ever. The variable `STRUCK` says who this is, as JSON: `fd`, a pipe on which it is told what has happened;
`writer`, a number that nobody else has; `mark`, an argument by which its programs are found; `planted`, the defects
that it is to have.

What it says, a line each, with the time of a clock that all processes share:

- `entered FILE NS`, first thing in a turn; `left FILE NS`, last thing in it;
- `kept NUMBER FILE`, when an append has returned.

Planted defects: `early` says `kept` before the append; `turnless` conducts without the turn; `deaf` starts, in the
last session, programs that do not notice the end of whoever reads their output.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from pathlib import Path
from typing import Any

from anyio import create_task_group, move_on_after, sleep

from lanes import RunContext
from runtime import Supervisor

KEYS = ("a", "b", "c")
SIZES = (170, 1_000, 5_000, 20_000, 64_000)
TALKS = "while echo; do sleep 0.02; done"
DEAF = "while :; do sleep 0.5; done"


async def main(sup: Supervisor) -> None:
    told: dict[str, Any] = json.loads(os.environ["STRUCK"])
    writer, planted = told["writer"], told["planted"]
    numbers, choice = itertools.count(), random.Random(writer)

    def say(*words: object) -> None:
        os.write(told["fd"], (" ".join(map(str, words)) + "\n").encode())  # whole: it is shorter than PIPE_BUF

    async def append(ctx: RunContext, file: str) -> None:
        number, length = next(numbers), choice.choice(SIZES)
        record = {"writer": writer, "number": number, "text": chr(97 + writer % 26) * length, "length": length}
        if "early" in planted:
            say("kept", number, file)
            await sleep(0.05)
        await ctx.session.append(record)
        if "early" not in planted:
            say("kept", number, file)

    async def talk(ctx: RunContext) -> None:
        file = Path(ctx.session.path).name
        say("entered", file, time.monotonic_ns())
        for _ in range(choice.randrange(2, 8)):
            await append(ctx, file)
            await sleep(0.002)
        if "deaf" in planted and ctx.session.key == KEYS[-1]:
            with move_on_after(5):
                await ctx.run_process(["sh", "-c", DEAF, told["mark"]])
        elif choice.random() < 0.5:
            with move_on_after(0.05):
                await ctx.run_process(["sh", "-c", TALKS, told["mark"]])
        say("left", file, time.monotonic_ns())

    async def conduct(key: str) -> None:
        while True:
            await sup.run(f"session:{key}", talk, session=key, turn="turnless" not in planted)

    async with create_task_group() as group:
        for key in KEYS:
            group.start_soon(conduct, key)

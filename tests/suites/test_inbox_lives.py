"""Suite H4: random lives of a supervisor with an inbox, ended by kills, stops and restarts, against a small model.

The model knows what senders were told, what bodies were given and which of them ended, in processes that lived at that
moment. From that alone it says how each message, question and key must stand in the end.

`LANES_LONG=1` plays 4,000 seeds instead of 8 on each event loop.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

from lanes import LaneSpec
from lanes.message import ids_of
from locks import process
from runtime import AskClosed, Supervisor
from runtime.testing.inline import inline
from tests.inboxes import copy_of, rows

pytestmark = pytest.mark.suite("H4")
EXAMPLES = 8
PARTS = 500 if os.environ.get("LANES_LONG") else 1
KINDS = ("once", "again", "asks")
REPEATS = 3


class World:
    """What is known outside of all processes."""

    def __init__(self, root: Path) -> None:
        self.root, self.life = root, 0
        self.accepted: dict[int, tuple[str, Any]] = {}
        """Lane and body, by id, as senders were told."""
        self.keys: dict[str, int] = {}
        self.begun: Counter[int] = Counter()
        self.ended: Counter[int] = Counter()
        self.order: list[tuple[str, int]] = []
        """Lane and id, each time that a body was given a message that is no answer."""
        self.questions: dict[str, list[Any]] = {}
        """What bodies were told of each."""
        self.answered: dict[str, int] = {}
        """What was answered, as the person was told that it counts."""

    @property
    def folder(self) -> Path:
        return self.root / str(self.life)

    def lanes(self) -> list[LaneSpec]:
        life = self.life

        async def handle(ctx: Any, messages: Any) -> None:
            (message,) = messages
            (one,) = ids_of(messages)
            self.begun[one] += 1
            if message.answer is None:
                self.order.append((ctx.run.lane, one))
            else:
                self.questions[message.answer.ask].append((message.answer.outcome, message.answer.value))
            await anyio.sleep(2.2)  # never at the instant of a step
            asks = message.answer is None and ctx.run.lane.startswith("asks")
            question = await ctx.ask(message.body, expires=20.0) if asks else None
            if self.life == life:
                self.ended[one] += 1
                if question is not None:
                    self.questions[question.id] = []
            if question is not None:
                raise question

        return [LaneSpec(f"{kind}:*", handler=handle, repeat=kind == "again", grace=0) for kind in KINDS]

    async def live(self, steps: list[tuple[str, int, int]], *, last: bool) -> None:
        """One process: takes its steps, and then it is killed, or stops."""
        async with Supervisor(self.folder, lanes=self.lanes(), inbox=True) as sup:
            for step, n, m in steps:
                await getattr(self, step)(sup, n, m)
                await anyio.sleep(0.5)
            if last:
                await anyio.sleep(60)
                assert await sup.asks() == []
                return
            copy_of(self.folder, self.root / str(self.life + 1))
            self.life += 1  # from here on, what the process does has not happened
            sup.cancel()

    async def accept(self, sup: Supervisor, n: int, m: int) -> None:
        lane, body = f"{KINDS[n % 3]}:{m % 2}", n % 2
        key = f"{lane} {body} {m % 7}" if n % 4 == 0 else None
        accepted = await sup.accept(lane, body, dedupe=key)
        assert accepted.new == (key is None or key not in self.keys)
        if key is not None:
            assert self.keys.setdefault(key, accepted.id) == accepted.id
        self.accepted.setdefault(accepted.id, (lane, body))

    async def answer(self, sup: Supervisor, n: int, m: int) -> None:
        for asked in list(self.questions)[n % 3 : n % 3 + 1]:
            try:
                accepted = await sup.answer(asked, m)
            except AskClosed:
                assert asked in self.answered or asked not in {one.id for one in await sup.asks()}
            else:
                assert asked not in self.answered
                self.answered[asked] = m
                self.accepted[accepted.id] = ("answer", m)

    async def restart(self, sup: Supervisor, n: int, m: int) -> None:
        await sup.restart(drain_timeout=0)

    async def wait(self, sup: Supervisor, n: int, m: int) -> None:
        await anyio.sleep(n)

    def judge(self) -> None:
        """Compare what is kept with what must have become of it."""
        kept = {one: (lane, state) for one, lane, state in rows(self.folder, "id, lane, state")}
        assert self.accepted.keys() <= kept.keys(), "an accepted message is lost"
        for one, (lane, state) in kept.items():
            begun, ended = self.begun[one], self.ended[one]
            assert begun and state in ("done", "unknown"), f"message {one} is {state}, and was begun {begun} times"
            assert ended == (state == "done"), f"message {one} is {state}, and its body has ended {ended} times"
            if not lane.startswith("again"):
                assert begun == 1, f"message {one} was begun {begun} times"
            elif state == "unknown":
                assert begun == REPEATS, f"message {one} was given up after {begun}"
        for lane in {lane for lane, _ in self.order}:
            firsts = list(dict.fromkeys(one for where, one in self.order if where == lane))
            assert firsts == sorted(firsts), f"{lane} began out of order: {firsts}"
        for asked, told in self.questions.items():
            expected = ("answered", self.answered[asked]) if asked in self.answered else ("expired", None)
            assert told == [expected], f"question {asked} was told of as {told}"


def lives_of(seed: int) -> list[list[tuple[str, int, int]]]:
    """Steps of two to four processes."""
    chance = random.Random(seed)
    steps = ("accept", "accept", "accept", "accept", "answer", "answer", "restart", "wait")
    return [
        [(chance.choice(steps), chance.randint(0, 8), chance.randint(0, 20)) for _ in range(chance.randint(4, 14))]
        for _ in range(chance.randint(2, 4))
    ]


@pytest.mark.parametrize("part", range(PARTS))
async def test_random_lives_leave_what_the_model_says(virtual, tmp_path, monkeypatch, part):
    monkeypatch.setattr(process, "wall", lambda: 1_800_000_000.0 + virtual.now())
    for look in ("service", "asks", "schedules"):
        monkeypatch.setattr(f"runtime.inbox.{look}._LOOK_S", 600.0)
    for seed in range(part * EXAMPLES, (part + 1) * EXAMPLES):
        world, lives = World(tmp_path / str(seed)), lives_of(seed)
        try:
            with inline():
                for n, steps in enumerate(lives):
                    await world.live(steps, last=n == len(lives) - 1)
            world.judge()
        except Exception as error:
            error.add_note(f"seed {seed}: " + "\n".join(map(str, lives)))
            raise

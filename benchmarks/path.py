"""The way of one message: which functions of ours run between a post and its answer, and how often the file changes.

A call is a function of ours that begins. One that goes on after an `await`, and a comprehension or a generator
expression, is a part of the function that it stands in. A call changes the file when the code that makes it lies in
another file, which may be a library's. Counted is one message of a session that nothing else uses, with all that goes
with it: the turn and its note, one append with its lock file, the answer. The counts are the same on every machine.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import anyio

from lanes import LaneSpec, Message, RunContext
from runtime import Supervisor

from .measure import Figure

WARM_UP = 50
LIMIT_S = 60.0
MOST_CALLS, MOST_CHANGES = 240, 130
_ROOT = Path(__file__).parents[1]
_OURS = tuple(f"{_ROOT / floor}/" for floor in ("locks", "lanes", "runtime"))
_RESUMED = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


class Calls:
    """What `sys.setprofile` reports of one message, as counts."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        """By function."""
        self.changes: Counter[str] = Counter()
        """Of those, the ones out of another file."""
        self._begun: list[FrameType] = []

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """One event of the interpreter."""
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(_OURS) or code.co_name.startswith("<"):
            return
        if code.co_flags & _RESUMED:
            if frame in self._begun:
                return
            self._begun.append(frame)
        name = f"{Path(code.co_filename).relative_to(_ROOT)}  {code.co_qualname}"
        self.made[name] += 1
        if frame.f_back is None or frame.f_back.f_code.co_filename != code.co_filename:
            self.changes[name] += 1

    def stop(self) -> None:
        """Count no more, and let go of the frames."""
        sys.setprofile(None)
        self._begun.clear()


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> str:
    await ctx.session.append({"text": messages[0].body})
    return "answered"


async def count() -> Calls:
    """The calls of one message, when all that is made once has been made."""
    with tempfile.TemporaryDirectory() as directory, anyio.fail_after(LIMIT_S):
        async with Supervisor(directory, lanes=[LaneSpec("main", handler=_answer)]) as sup:
            message = Message("hello")
            for _ in range(WARM_UP):
                await sup.post("main", message, session="ann").result()
            calls = Calls()
            sys.setprofile(calls.note)
            try:
                await sup.post("main", message, session="ann").result()
            finally:
                calls.stop()
            return calls


def figures() -> list[Figure]:
    """The totals of both event loops, then the functions, those that are called from elsewhere first."""
    found: list[Figure] = []
    functions: list[Figure] = []
    for backend in ("asyncio", "trio"):
        calls = anyio.run(partial(count), backend=backend)
        found += [
            Figure(f"calls of ours for a message and its answer ({backend})", calls.made.total(), "", MOST_CALLS),
            Figure(f"  of those, out of another file ({backend})", calls.changes.total(), "", MOST_CHANGES),
        ]
        if backend == "asyncio":
            order = sorted(calls.made, key=lambda name: (name.split("  ")[0], -calls.changes[name], name))
            functions = [
                Figure(name, calls.made[name], "", detail=f"{calls.changes[name]} out of another file")
                for name in order
            ]
    return found + functions

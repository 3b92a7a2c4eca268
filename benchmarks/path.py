"""The path of one message: the functions of ours between a post and its answer, and how often the file changes.

A call is the start of a function of ours. A function that goes on after an `await` is not counted again, and a
comprehension or generator expression belongs to the function that it stands in. A call changes the file when its
caller's code lies in another file, which may be a library's. One message of an otherwise unused session is counted,
with the turn, one append, and the answer. The counts are the same on every machine.
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
    """The calls that `sys.setprofile` reports for one message, counted."""

    def __init__(self) -> None:
        self.made: Counter[str] = Counter()
        """Calls by function."""
        self.changes: Counter[str] = Counter()
        """The calls of these that come from another file."""
        self._begun: list[FrameType] = []

    def note(self, frame: FrameType, event: str, _: Any) -> None:
        """Count one event of the interpreter."""
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
        """Stop counting, and release the frames."""
        sys.setprofile(None)
        self._begun.clear()


async def _answer(ctx: RunContext, messages: Sequence[Message]) -> str:
    await ctx.session.append({"text": messages[0].body})
    return "answered"


async def count() -> Calls:
    """The calls of one message, after messages that warm up."""
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
    """The totals of both event loops, then the functions, those that are called from other files first."""
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

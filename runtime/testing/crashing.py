"""Kills the process of a handler at each of its suspensions, and has the next process put right what is left."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import anyio

from lanes import LaneSpec, Message, RunContext, RunState, checks
from locks import TranscriptError, _clock

from ..inbox.rows import MessageState
from .folders import copy_of, temporary
from .handlers import Handler, accept, of_handler, options_of, resolved
from .places import place_in
from .played import Check, Fault, HandlerFault, Played, counted, judged, name_of
from .supervisor import SupervisorUnderTest
from .suspensions import MOST, Watched
from .virtual import jumps_seen

_LOOK_S, _MOST_PAUSE_S = 0.05, 10.0
_PATIENCE_S = 3600.0
"""For so long the next process may take to put right what is left."""


async def crash_everywhere(handler: Handler, *messages: Any, check: Check | None = None, **given: Any) -> int:
    """Kill the process of a handler at each of its suspensions, and play the next process. A checkpoint.

    Nothing is really killed: what is on the disk at each suspension is copied, and a supervisor of the same lane takes
    each copy over. It is tried before the first step too, when tasks of the handler have written while it waits for
    them, and when the handler has returned and that is not kept yet.
    These are faults wherever they are found:

    - The message stays `unknown`, and nobody is told: its lane says neither `repeat=True` nor `on_unknown=`.
    - It fails in the next process, or `on_unknown` does.
    - A record is there more often than without a crash: what was done before it is done again.
    - A line of the transcript is broken.
    - The next message of the session, which is the same once more, is not answered.

    Args:
        messages: what the handler is given, in one run.
        check: what else must hold of the session and its message, after each crash and the next process.
        given: as for `cancel_everywhere`. `services` that are no function are shared by all processes, as what is
            outside of them is.

    Returns:
        At how many places it was tried, not counting the first and the last.

    Raises:
        HandlerFault: naming each place and what is wrong there; or the handler fails without any crash.
        InvalidLane: an argument is not allowed.
    """
    checks.handler("handler", handler)
    with temporary() as folder:
        first = _FirstLife(handler, Path(folder))
        await first.live(messages, resolved(given))
        faults: list[Fault] = []
        for at, (where, left) in enumerate(first.crashes):
            life = _NextLife(handler, at, where, left, first)
            found = await life.live(messages, check, resolved(given), first.message)
            faults += [Fault(life.played(), what) for what in found]
        if faults:
            killed = counted(len(first.crashes), "crash").replace("crashs", "crashes")
            raise HandlerFault(f"{name_of(handler)} has {counted(len(faults), 'fault')} in {killed}:", faults)
        return len(first.crashes) - 2


class _FirstLife:
    """The process that is killed, which in truth goes on: each crash is a copy of what it has on the disk."""

    def __init__(self, handler: Handler, folder: Path) -> None:
        self._handler, self._folder = handler, folder
        self._root = Path()
        self._began = False
        self._since = 0.0
        """When the handler was suspended last."""
        self._sizes: dict[str, int] = {}
        """Of the files, at the last crash."""
        self.crashes: list[tuple[str, Path]] = []
        """Where the handler was suspended, and what is left, at each crash."""
        self.records: list[dict[str, Any]] = []
        """The records of the session in the end."""
        self.message = 0
        """The id of the first message."""
        self.failed: set[str] = set()
        """How runs besides the handler's have failed."""

    async def live(self, messages: Sequence[Any], given: Mapping[str, Any]) -> None:
        """Have the messages answered, undisturbed."""
        async with of_handler(self._handle, **given) as sup:
            self._root = Path(sup.layout.root)
            accepted = await accept(sup, given["session"], messages)
            self.message = accepted.id
            outcome = await accepted.wait()
            with anyio.move_on_after(_PATIENCE_S):
                for run in sup.runs():
                    await run.wait()
            self.failed = set(_failed(sup))
            wrong = "" if outcome.state is RunState.DONE else f"ends as {outcome.state}: {outcome.reason}"
            try:
                self.records = await sup.transcript(given["session"])
            except TranscriptError as error:
                wrong = f"leaves a broken transcript: {error}"
            if wrong:
                fault = Fault(Played(0, "without a crash"), wrong)
                raise HandlerFault(f"{name_of(self._handler)} fails without any crash:", [fault])

    async def _handle(self, ctx: RunContext, messages: Sequence[Message]) -> Any:
        if self._began:
            return await self._handler(ctx, messages)
        self._began = True
        answering = self._handler(ctx, messages)
        self._crash("before its first step")

        def suspends() -> None:
            self._since = _clock.clock.now()
            self._crash(place_in(answering))

        def jumps(_to: float) -> None:
            if self._sizes != _sizes_in(self._root):  # tasks of the handler have written, and wait again
                self._crash(f"{place_in(answering)}, {_clock.clock.now() - self._since:g} s later")

        try:
            with jumps_seen(jumps):
                return await Watched(answering, suspends)
        finally:
            self._crash("behind its last step")

    def _crash(self, where: str) -> None:
        if len(self.crashes) > MOST:
            raise RuntimeError(f"{name_of(self._handler)} has not ended after {MOST} suspensions")
        self._sizes = _sizes_in(self._root)
        self.crashes.append((where, copy_of(self._root, self._folder / f"{len(self.crashes)}")))


class _NextLife:
    """The next process."""

    def __init__(self, handler: Handler, at: int, where: str, left: Path, first: _FirstLife) -> None:
        self._handler, self._at, self._where, self._left = handler, at, where, left
        self._first = first
        self._records: list[dict[str, Any]] = []
        self._events: list[Any] = []
        self._state: MessageState | None = None

    def played(self) -> Played:
        """What was seen."""
        return Played(self._at, self._where, self._records, None, self._state, self._events)

    async def live(
        self, messages: Sequence[Any], check: Check | None, given: Mapping[str, Any], message: int
    ) -> list[str]:
        """Take over what is left; returns what is wrong."""
        options, session = options_of(self._handler, **given), given["session"]
        (lane,) = options["lanes"]
        wrong: list[str] = []
        async with SupervisorUnderTest(self._left, **options) as sup:
            if not await self._put_right(sup, lane, message):
                return [f"is still {self._state} after {_PATIENCE_S:g} s of the next process"]
            wrong += [f"the next process: a run {how}" for how in _failed(sup) if how not in self._first.failed]
            if self._state is MessageState.UNKNOWN and lane.on_unknown is None:
                wrong.append("the message stays unknown; allowed: a lane with repeat=True, or with on_unknown=")
            self._events = sup.recorder.events(session=session)
            try:
                self._records = await sup.transcript(session)
            except TranscriptError as error:
                wrong.append(f"the transcript is broken: {error}")
            wrong += self._of_repeated()
            wrong += judged(check, self.played())
            again = await (await accept(sup, session, messages)).wait()
            if again.state is not RunState.DONE:
                wrong.append(f"the next message of the session ends as {again.state}: {again.reason}")
        return wrong

    async def _put_right(self, sup: SupervisorUnderTest, lane: LaneSpec, message: int) -> bool:
        """Wait until nothing more becomes of the message by itself; returns whether that came."""
        pause_s = _LOOK_S
        with anyio.move_on_after(_PATIENCE_S):
            while True:
                found = await sup.find_message(message)
                self._state = None if found is None else found.state
                if not (self._state is not None and self._state.open) and not sup.runs():
                    waits = lane.on_unknown is not None and self._state is MessageState.UNKNOWN
                    if not waits or _failed(sup) or not await sup.untold():
                        return True
                await anyio.sleep(pause_s)
                pause_s = min(2 * pause_s, _MOST_PAUSE_S)
        return False

    def _of_repeated(self) -> list[str]:
        once, now = _counts(self._first.records), _counts(self._records)
        return [
            f"{text:.120} is there {now[text]} times, and {once[text]} without a crash"
            for text in now
            if once[text] and now[text] > once[text]
        ]


def _failed(sup: SupervisorUnderTest) -> list[str]:
    """How runs have ended other than well; one that ends with its parent is for the parent to judge."""
    return [
        f"ends as {one.value.state}: {one.value.reason}"
        for one in sup.recorder.entries
        if one.what == "ends" and one.value.state is not RunState.DONE and not one.run.lineage
    ]


def _sizes_in(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_size for one in os.scandir(folder) if one.is_file()}


def _counts(records: Sequence[Any]) -> Counter[str]:
    return Counter(json.dumps(record, sort_keys=True) for record in records)

"""Cancels a handler at each of its suspensions, and looks at what is left each time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import anyio
from anyio import get_cancelled_exc_class

from lanes import Message, Outcome, RunContext, RunState, WaitsForAnswer, checks
from locks import TranscriptError, _clock
from locks._loop import on_trio

from ..zombies import AbandonedBodies
from .handlers import Handler, accept, of_handler, resolved
from .models import let_all_go
from .places import place_in
from .played import Check, Fault, HandlerFault, Played, counted, judged, name_of
from .shields import innermost_scope, shielded_within
from .supervisor import SupervisorUnderTest
from .suspensions import MOST, Watched
from .tasks import leaked_tasks, tasks
from .virtual import jumps_seen


async def cancel_everywhere(handler: Handler, *messages: Any, check: Check | None = None, **given: Any) -> int:
    """Cancel a handler at each of its suspensions in turn, each time in a session of its own. A checkpoint.

    A suspension is where the handler really waits: an `await` that returns at once is none. Where it waits for tasks
    that it has started, it is also cancelled between their steps, as far as virtual time passes between them. These are
    faults wherever they are found:

    - The handler swallows its cancellation and returns, or raises something else instead.
    - It still runs when its grace is over. The sweep ends there.
    - A task that it has started still runs when its run has ended, and those of its children. Nobody looks while a
      detached run that it has submitted goes on.
    - A line of the transcript is broken.
    - The next message of the session, which is the same once more, is not answered.

    Args:
        messages: what the handler is given, in one run.
        check: what else must hold after each cancellation.
        given: `session`, `records`, `services`, `groups`, `pools` and fields of a `LaneSpec`, as for `run_handler`;
            `services` may also be a function that makes them, called for each play.

    Returns:
        How many suspensions there were.

    Raises:
        HandlerFault: naming each place and what is wrong there; or the handler fails without any cancellation.
        InvalidLane: an argument is not allowed.
    """
    checks.handler("handler", handler)
    name, faults, cancellations = name_of(handler), list[Fault](), 0
    undisturbed = _Play(handler, 0)
    if found := await undisturbed.through(messages, check, resolved(given)):
        what = f"{name} fails without any cancellation:"
        raise HandlerFault(what, [Fault(undisturbed.played(), one) for one in found])
    for at, after_s in undisturbed.places():
        play = _Play(handler, at, after_s)
        found = await play.through(messages, check, resolved(given))
        faults += [Fault(play.played(), one) for one in found]
        cancellations += play.acted
        if play.abandoned or not (play.acted or after_s):
            count = at - 1
            break
    else:
        raise HandlerFault(f"{name} has not ended after {MOST} suspensions", faults)
    if faults:
        cancelled = counted(cancellations, "cancellation")
        raise HandlerFault(f"{name} has {counted(len(faults), 'fault')} in {cancelled}:", faults)
    return count


class _Play:
    """One play: the handler is cancelled at one suspension, or so many seconds after it, or at none (`at` is 0)."""

    def __init__(self, handler: Handler, at: int, after_s: float = 0.0) -> None:
        self._handler, self._at, self._after_s = handler, at, after_s
        self._suspensions = 0
        self._reached = anyio.Event()
        """The handler has come to the suspension; only where it is cancelled some time after it."""
        self._cancel: Callable[[], object] = bool
        self._jumps: dict[int, list[float]] = {}
        """The instants to which time has jumped while the handler was suspended, by suspension."""
        self._since: dict[int, float] = {}
        """When it was suspended."""
        self.acted = False
        """Whether the handler was cancelled."""
        self._began = self._thrown = False
        self.abandoned = False
        """Whether the handler still runs, long after its cancellation."""
        self._said = ""
        """What the handler did instead of ending by its cancellation."""
        self._where = "without a cancellation"
        self._records: list[dict[str, Any]] = []
        self._events: list[Any] = []
        self._outcome: Outcome | None = None
        self._tasks: dict[object, str] = {}
        """The tasks that exist when the handler begins."""

    def places(self) -> Iterator[tuple[int, float]]:
        """Each suspension, and the seconds after it at which to cancel: at once, and between two jumps of time."""
        for at in range(1, MOST):
            yield at, 0.0
            for one, other in pairwise(self._jumps.get(at, ())):
                if one < other:
                    yield at, (one + other) / 2 - self._since[at]

    def played(self) -> Played:
        """What was seen."""
        return Played(self._at, self._where, self._records, self._outcome, None, self._events)

    async def through(self, messages: Sequence[Any], check: Check | None, given: Mapping[str, Any]) -> list[str]:
        """Play it; returns what is wrong."""
        wrong: list[str] = []
        try:
            async with of_handler(self._handle, **given) as sup:
                wrong += await self._handled(sup, given["session"], messages, check)
        except AbandonedBodies:
            self.abandoned = True
        return wrong

    async def _handled(
        self, sup: SupervisorUnderTest, session: str, messages: Sequence[Any], check: Check | None
    ) -> list[str]:
        async with anyio.create_task_group() as beside:
            beside.start_soon(self._cancel_later)
            self._outcome = outcome = await (await accept(sup, session, messages)).wait()
            beside.cancel_scope.cancel()
        self._events = sup.recorder.events(session=session)
        wrong = [self._said] if self._said else []
        if outcome.state is RunState.ABANDONED:
            self.abandoned = True
            let_all_go(abandoned=True)
            return [f"still runs when its grace is over: {outcome.reason}"]
        await _ends_of_children(sup)
        if not sup.runs():  # a detached run goes on, and which tasks are its own cannot be told
            wrong += [f"leaves a task behind: {name}" for name in await leaked_tasks(self._tasks)]
        if not self.acted and outcome.state is not RunState.DONE and not wrong:
            wrong.append(f"ends as {outcome.state}: {outcome.reason}")
        try:
            self._records = await sup.transcript(session)
        except TranscriptError as error:
            wrong.append(f"leaves a broken transcript: {error}")
        if self.acted:
            wrong += judged(check, self.played())
            again = await (await accept(sup, session, messages)).wait()
            if again.state is not RunState.DONE:
                wrong.append(f"the next message of the session ends as {again.state}: {again.reason}")
        return wrong

    def _jumped(self, to: float) -> None:
        if not self._at:
            self._jumps.setdefault(self._suspensions, []).append(to)

    async def _cancel_later(self) -> None:
        await self._reached.wait()
        await anyio.sleep(self._after_s)
        self._cancel()

    async def _handle(self, ctx: RunContext, messages: Sequence[Message]) -> Any:
        """The handler of the lane: the one that is tried, watched the first time."""
        if self._began:
            return await self._handler(ctx, messages)
        self._began, self._tasks = True, tasks()
        around = innermost_scope()
        answering = self._handler(ctx, messages)

        def cancel() -> None:
            later = f", {self._after_s:g} s later" if self._after_s else ""
            self._where, self.acted = place_in(answering) + later, True
            ctx.run.cancel(f"cancelled at suspension {self._at} by the test")

        def suspends() -> None:
            self._suspensions += 1
            self._since[self._suspensions] = _clock.clock.now()
            if self._suspensions != self._at:
                return
            if self._after_s:
                self._cancel = cancel
                self._reached.set()
            elif on_trio():
                cancel()
            else:
                # anyio cancels no task of asyncio's in its own step: the end of a child run, which is cancelled with
                # it, would come first. This comes after the step, and before whatever could have the handler go on.
                asyncio.get_running_loop().call_soon(cancel)

        def thrown(error: BaseException) -> None:
            # Behind a shield it is a cancellation of the handler's own, by a limit of time, say.
            if self.acted and isinstance(error, get_cancelled_exc_class()) and not shielded_within(around):
                self._thrown = True

        try:
            with jumps_seen(self._jumped):
                value = await Watched(answering, suspends, thrown)
        except WaitsForAnswer:
            self._said = "swallows its cancellation and asks a person" if self._thrown else ""
            raise
        except Exception as error:
            when = " when it is cancelled" if self.acted else ""
            self._said = f"raises {type(error).__name__}{when}: {error}"
            raise
        if self._thrown:
            self._said = f"swallows its cancellation and returns {value!r:.80}"
        return value


async def _ends_of_children(sup: SupervisorUnderTest) -> None:
    """Wait for the runs that end with a parent: they may be cleaning up when that has ended."""
    for run in sup.runs():
        if run.lineage:
            await run.wait()

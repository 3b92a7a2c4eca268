"""A recording of a running process: the trace of its supervisor for some seconds, fetched in parts (`lanes trace`)."""

from __future__ import annotations

from functools import partial
from typing import Protocol

import anyio
import msgspec

from lanes import RunState
from lanes.core.scheduler import Scheduler
from locks import _clock

from ..background import Background
from ..export.event_buffer import EventBuffer
from ..export.trace import Trace
from . import protocol
from .protocol import Answer, Refused

_UNFETCHED_S = 10.0
"""After so long nobody seems to want it."""
_LOOK_S = 0.5


class Recorded(Protocol):
    """What is needed of a supervisor."""

    @property
    def _scheduler(self) -> Scheduler: ...
    @property
    def state(self) -> str: ...


class Recorder:
    """Records one supervisor, once at a time. On the event loop's thread.

    What it costs: a call for each run that waits, starts and ends, a kilobyte for a run until it is fetched, and no
    more than 20,000 events. Nothing while nobody records.
    """

    def __init__(self, sup: Recorded) -> None:
        self._sup = sup
        self._last = 0
        self._now: _Recording | None = None

    def begin(self, question: protocol.Record) -> Answer:
        """Record from now on, unless that is done already."""
        now = _clock.clock.now()
        if self._now is not None:
            left = max(0.0, self._now.until - now)
            return _no("not_now", f"it is being recorded already, for {left:.1f} s more; allowed: one at a time")
        self._last += 1
        self._now = recording = _Recording(self._last, self._sup._scheduler, now, now + question.seconds)
        context = self._sup._scheduler.board.hooks.context.copy()
        Background().start(partial(self._see_through, recording), f"recording {recording.id}", context=context)
        return Answer(recording=protocol.Recording(id=recording.id, left_s=question.seconds))

    def fetch(self, question: protocol.Recorded) -> Answer:
        """The next part."""
        recording, now = self._now, _clock.clock.now()
        if recording is None or recording.id != question.recording:
            return _no("refused", f"recording: {question.recording} is not there any more")
        recording.fetched_at = now
        events = msgspec.Raw(recording.buffer.take())
        over = recording.buffer.over
        if over:
            self.close()
        part = protocol.Recording(
            id=recording.id,
            left_s=max(0.0, recording.until - now),
            events=events,
            over=over,
            error=recording.buffer.error,
        )
        return Answer(recording=part)

    def close(self) -> None:
        """Record no more; what was recorded is gone. Calling it again does nothing."""
        recording, self._now = self._now, None
        if recording is not None:
            recording.end()
            recording.gone.set()

    async def _see_through(self, recording: _Recording) -> None:
        """A background task: it ends with the recording, or when nobody fetches it."""
        try:
            while self._now is recording and self._sup.state != "stopped":
                now = _clock.clock.now()
                if now >= recording.until:
                    recording.end()
                if now - recording.fetched_at >= _UNFETCHED_S:
                    self.close()
                with anyio.move_on_after(_LOOK_S if now >= recording.until else min(_LOOK_S, recording.until - now)):
                    await recording.gone.wait()
        finally:
            recording.end()


class _Recording:
    """One recording, and what it is attached to."""

    def __init__(self, number: int, scheduler: Scheduler, now: float, until: float) -> None:
        self.id, self.until, self.fetched_at = number, until, now
        self.buffer = EventBuffer()
        self.gone = anyio.Event()
        """Set when it is fetched, or nobody wants it any more."""
        self._hooks = scheduler.board.hooks
        self._trace = Trace(self.buffer)
        self._trace.watch(scheduler.board.registry)
        for execution in list(scheduler.board.live.values()):
            if execution.run.state is RunState.RUNNING:
                self._trace.run_started(execution.run)
            else:
                self._trace.run_waits(execution.run)
        self._hooks.observers += (self._trace,)

    def end(self) -> None:
        """Let go of the supervisor; what was recorded can still be fetched. Calling it again does nothing."""
        self._hooks.observers = tuple(one for one in self._hooks.observers if one is not self._trace)
        self._trace.close()


def _no(kind: protocol.Kind, message: str) -> Answer:
    return Answer(error=Refused(kind=kind, message=message))

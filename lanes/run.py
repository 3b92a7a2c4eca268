"""One run, as everybody outside its body sees it, and how it ended."""

from __future__ import annotations

import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import anyio
from anyio.lowlevel import checkpoint

if TYPE_CHECKING:
    from .execution import Execution

_current: ContextVar[Run | None] = ContextVar("lanes.current_run", default=None)
_TRACEBACK_CHARS = 20_000


def current_run() -> Run | None:
    """The run that the calling code belongs to, in its tasks and its worker threads; `None` outside any."""
    return _current.get()


class RunState(StrEnum):
    """Where a run stands; it moves down this list, never up."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    ABANDONED = "abandoned"

    @property
    def ended(self) -> bool:
        """Whether it is one of the last six."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


@dataclass(frozen=True, slots=True)
class Message:
    """What is posted to a session."""

    body: Any
    route: Any = None
    """Where the answer goes; messages of different routes are never answered together."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended. Holds no frames of its body."""

    state: RunState
    value: Any = None
    """What the body returned, if it did."""
    error: BaseException | None = None
    """What `Run.result` raises: the body's exception, or a `RunError`."""
    reason: str = ""
    """Why, in words: `timed out after 300 s`."""
    waited_s: float = 0.0
    """From being submitted to the start, or to the end if it never started."""
    ran_s: float = 0.0
    """From the start to the end, or to being abandoned."""
    late_s: float = 0.0
    """How long after the deadline the deadline was acted upon; more than a few ms means that the loop was blocked."""
    traceback: str | None = None
    """The body's traceback, as text."""


class Run:
    """A piece of work on a lane. Made by `submit` and `post`; all its fields are for reading.

    To be used on the event loop's thread.
    """

    __slots__ = (
        "__weakref__",
        "_dropped_events",
        "_ended",
        "_execution",
        "_streams",
        "deadline",
        "enqueued_at",
        "id",
        "lane",
        "outcome",
        "parent",
        "reason",
        "session",
        "started_at",
        "state",
        "turn",
    )

    def __init__(
        self, run_id: int, lane: str, session: str | None, turn: bool, parent: int | None, enqueued_at: float
    ) -> None:
        self.id = run_id
        """Counts up within a supervisor."""
        self.lane = lane
        self.session = session
        """The session that it conducts (`turn`) or may append to."""
        self.turn = turn
        self.parent = parent
        """The id of the run that submitted it."""
        self.state = RunState.QUEUED
        self.reason = ""
        """Why it was asked to end, once it was."""
        self.enqueued_at = enqueued_at
        self.started_at: float | None = None
        self.deadline: float | None = None
        """When it is cancelled at the latest (`time.monotonic`); set at the start, moved by `progress()`."""
        self.outcome: Outcome | None = None
        self._execution: Execution | None = None
        self._ended: anyio.Event | None = None
        self._streams: list[_EventStream] = []
        self._dropped_events = 0

    def __repr__(self) -> str:
        session = f", session {self.session!r}" if self.session is not None else ""
        reason = f", {self.reason}" if self.reason else ""
        return f"<Run {self.id} on lane {self.lane}{session}: {self.state.value}{reason}>"

    async def wait(self) -> Outcome:
        """Wait until the run has ended, or was abandoned; never raises what the run raised. A checkpoint.

        Cancelling the waiter leaves the run as it is.
        """
        if self.outcome is None:
            if self._ended is None:
                self._ended = anyio.Event()
            await self._ended.wait()
            assert self.outcome is not None
        else:
            await checkpoint()
        return self.outcome

    async def result(self) -> Any:
        """Wait for the run and return what its body returned. A checkpoint.

        Raises:
            RunError: it timed out, was cancelled, superseded or abandoned.
            Exception: whatever the body raised.
        """
        outcome = await self.wait()
        if outcome.error is None:
            return outcome.value
        raise _copy(outcome.error)

    def cancel(self, reason: str = "cancelled") -> bool:
        """Ask the run to end; returns whether it could still be asked. It ends within its lane's grace.

        A queued one ends at once and never starts.
        """
        execution = self._execution
        return execution is not None and execution.ask_to_end(RunState.CANCELLED, reason)

    def events(self, buffer: int = 256) -> AsyncIterator[Any]:
        """What the body emits from now on, until the run has ended.

        A reader that falls more than `buffer` events behind misses the oldest; it never slows the run.
        """
        stream = _EventStream(self, buffer)
        if self.outcome is None:
            self._streams.append(stream)
        return stream.read()

    def _emit(self, event: Any) -> None:
        if self.outcome is not None:
            self._dropped_events += 1
            return
        for stream in self._streams:
            stream.put(event)

    def _end(self, outcome: Outcome) -> None:
        """Record how it ended and wake whoever waits. Called once."""
        assert self.outcome is None, "a run ends once"
        self.state, self.reason, self.outcome = outcome.state, outcome.reason, outcome
        self._execution = None
        if self._ended is not None:
            self._ended.set()
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.wake()


class _EventStream:
    """One reader's buffer."""

    __slots__ = ("_buffer", "_more", "_run", "dropped")

    def __init__(self, run: Run, buffer: int) -> None:
        if buffer < 1:
            raise ValueError(f"buffer: {buffer!r} is not allowed; allowed: 1 and more")
        self._run = run
        self._buffer: deque[Any] = deque(maxlen=buffer)
        self._more = anyio.Event()
        self.dropped = 0

    def put(self, event: Any) -> None:
        self.dropped += len(self._buffer) == self._buffer.maxlen
        self._buffer.append(event)
        self.wake()

    def wake(self) -> None:
        self._more.set()

    async def read(self) -> AsyncIterator[Any]:
        """Yield what is emitted until the run has ended; closing it takes the buffer off the run."""
        try:
            while True:
                while self._buffer:
                    yield self._buffer.popleft()
                if self._run.outcome is not None:
                    return
                self._more = anyio.Event()
                await self._more.wait()
        finally:
            if self in self._run._streams:
                self._run._streams.remove(self)


def _copy(error: BaseException) -> BaseException:
    """An exception of its own for each who waits: raising the outcome's would hang the waiter's frames on it.

    Made without the class's `__init__`, whose arguments nobody knows.
    """
    kind = type(error)
    try:
        if isinstance(error, BaseExceptionGroup):
            again: BaseException = error.derive(error.exceptions)
        else:
            again = kind.__new__(kind, *error.args)
            again.args = error.args
        again.__dict__.update(error.__dict__)
    except Exception:
        return error.with_traceback(None)  # cannot be copied; better the same one than none
    again.__cause__, again.__suppress_context__ = error.__cause__, error.__suppress_context__
    return again


def scrub(error: BaseException) -> str:
    """Take the frames off an exception and all it refers to; returns its traceback as text."""
    try:
        text = "".join(traceback.format_exception(error, limit=-30))[-_TRACEBACK_CHARS:]
    except Exception as second:
        text = f"{type(error).__name__} (its traceback cannot be written: {second!r})"
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        if isinstance(one, AttributeError):
            one.obj = None  # it may be the whole context of the run
        todo += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
    return text


Body = Callable[..., Any]

"""A run as it is seen from outside its body, and how it ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import ContextVar
from enum import StrEnum
from typing import Any, Protocol, TypedDict
from weakref import WeakSet

import msgspec
from anyio.lowlevel import checkpoint

from locks._loop import Signal, on_loop_thread

from . import checks
from .errors import WrongThread
from .events import EventStream
from .tracebacks import copied

_waiting_threads = threading.Lock()
"""Guards the lists of threads that wait for a run: several may come at once."""

_current: ContextVar[Run | None] = ContextVar("lanes.current_run", default=None)

Body = Callable[..., Any]


def current_run() -> Run | None:
    """The run that the calling code belongs to, in its tasks and its worker threads; `None` outside any."""
    return _current.get()


class RunState(StrEnum):
    """Where a run stands. It moves down this list; only a run that is tried again is queued again."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"
    SUPERSEDED = "superseded"
    ABANDONED = "abandoned"

    __hash__ = str.__hash__  # `Enum`'s own is Python code, and a state is looked up for each run

    @property
    def ended(self) -> bool:
        """Whether it is one of the last six."""
        return self not in (RunState.QUEUED, RunState.RUNNING)


class Outcome(msgspec.Struct, frozen=True, kw_only=True, weakref=True):
    """How a run ended. Holds no frames of its body."""

    state: RunState
    value: Any = None
    """What the body returned, if it did."""
    error: BaseException | None = None
    """What `Run.result` raises: the body's exception, or a `RunError`."""
    reason: str = ""
    """Why, in words: `timed out after 300 s`."""
    waited_s: float = 0.0
    """Seconds in the queue: from being submitted to the start, or to the end without one; and between attempts."""
    ran_s: float = 0.0
    """Seconds running, to the end or to being abandoned; over all attempts."""
    late_s: float = 0.0
    """How long after the deadline the deadline was acted upon; more than a few ms means that the loop was blocked."""
    traceback: str | None = None
    """The body's traceback, as text."""
    attempts: int = 1
    """How often the body was called at most: more than one where the lane has a `retry`."""


class Options(TypedDict, total=False):
    """What a piece of work may be submitted with; see `Supervisor.submit`."""

    session: str | None
    turn: bool
    timeout: float | None
    priority: str | None


class Conductor(Protocol):
    """What a run needs of the scheduler until it has ended."""

    def new_event(self) -> Signal: ...
    async def wait_for(self, run: Run, ended: Signal) -> None:
        """Wait for another run, in a task of this one. A checkpoint."""

    def ask_to_end(self, state: RunState, reason: str) -> bool:
        """Ask this run to end; returns whether this is the cause now."""


class Run:
    """A piece of work on a lane. Made by `submit` and `post`; all its fields are for reading.

    To be used on the event loop's thread, but for `result_sync`.
    """

    __slots__ = (
        "__weakref__",
        "_ended",
        "_execution",
        "_streams",
        "_threads",
        "answered_by",
        "attempt",
        "deadline",
        "enqueued_at",
        "id",
        "lane",
        "lineage",
        "outcome",
        "parent",
        "reason",
        "session",
        "started_at",
        "state",
        "turn",
        "wait_deadline",
    )

    def __init__(
        self, run_id: int, lane: str, session: str | None, turn: bool, parent: Run | None, enqueued_at: float
    ) -> None:
        self.id = run_id
        """Counts up within a supervisor. On a store that processes share it is one of all: the number of this process
        times 10,000,000,000, and the number of the run."""
        self.lane = lane
        self.session = session
        """The session that it conducts (`turn`) or may append to."""
        self.turn = turn
        self.parent: int | None = None
        """The id of the run that submitted it."""
        self.lineage: tuple[int, ...] = ()
        """The ids of the runs that it ends with, outermost first; empty for a run that goes on by itself."""
        if parent is not None:
            self.parent = parent.id
        self.state = RunState.QUEUED
        self.reason = ""
        """Why it was asked to end, once it was; why it waits to be tried again."""
        self.attempt = 1
        """Which call of its body this is, from 1."""
        self.answered_by: int | None = None
        """The id of the run into whose inbox its message went, while that run may answer it (`when_busy="steer"`)."""
        self.enqueued_at = enqueued_at
        self.wait_deadline: float | None = None
        """When it gives up waiting (`time.monotonic`): the wait budget, from being submitted."""
        self.started_at: float | None = None
        self.deadline: float | None = None
        """When it is cancelled at the latest (`time.monotonic`): the run budget; set at the start, moved by
        `progress()` and `extend()`."""
        self.outcome: Outcome | None = None
        self._execution: Conductor | None = None
        self._ended: Signal | None = None
        self._streams: WeakSet[EventStream] | None = None
        self._threads: list[threading.Event] | None = None

    def __repr__(self) -> str:
        session = f", session {self.session!r}" if self.session is not None else ""
        reason = f", {self.reason}" if self.reason else ""
        return f"<Run {self.id} on lane {self.lane}{session}: {self.state.value}{reason}>"

    async def wait(self) -> Outcome:
        """Wait until the run has ended, or was abandoned; never raises what the run raised. A checkpoint.

        Cancelling the waiter leaves the run as it is. A run that waits for another one in its own task (not in a child
        task) lends its group slot meanwhile, and takes one again before it goes on.

        Raises:
            DeadlockError: the run can only end after the run that wants to wait for it, and no cancel scope with a
                deadline, inside the waiting body, ends the wait. Nothing has changed.
        """
        if self.outcome is None:
            if self._ended is None:
                assert self._execution is not None
                self._ended = self._execution.new_event()
            waiter = _current.get()
            asking = waiter._execution if waiter is not None else None
            if asking is None:
                await self._ended.wait()
            else:
                await asking.wait_for(self, self._ended)
            assert self.outcome is not None
        else:
            await checkpoint()
        return self.outcome

    async def result(self) -> Any:
        """Wait for the run and return what its body returned. A checkpoint; waits as `wait` does.

        Raises:
            RunError: it timed out, was cancelled, superseded or abandoned.
            Exception: whatever the body raised.
            DeadlockError: as `wait`.
        """
        return _value_of(await self.wait())

    def result_sync(self, timeout: float | None = None) -> Any:
        """As `result`, from another thread, which it blocks.

        Args:
            timeout: seconds to wait at most; `None`: until the run has ended, which its own deadline bounds.

        Raises what `result` raises, and besides:
            WrongThread: on an event loop's thread, which it would block.
            InvalidLane: `timeout` is no duration.
            TimeoutError: the run goes on.
        """
        if on_loop_thread():
            raise WrongThread("result_sync would block the event loop; use `await run.result()` there")
        if timeout is not None:
            timeout = min(checks.seconds("timeout", timeout, zero=True), threading.TIMEOUT_MAX)
        ended = threading.Event()
        with _waiting_threads:
            if self._threads is None:
                self._threads = []
            self._threads.append(ended)
        try:
            if self.outcome is None and not ended.wait(timeout):  # looked at after the append: `_end` misses no thread
                raise TimeoutError(f"run {self.id} on lane {self.lane} has not ended within {timeout:g} s")
        finally:
            with _waiting_threads:
                self._threads.remove(ended)
        assert self.outcome is not None
        return _value_of(self.outcome)

    def cancel(self, reason: str = "cancelled") -> bool:
        """Ask the run to end; returns whether it could still be asked. It ends within its lane's grace.

        A queued run ends at once and never starts. If another run has taken its message (`answered_by`), that run is
        asked to end.
        """
        execution = self._execution
        return execution is not None and execution.ask_to_end(RunState.CANCELLED, reason)

    def events(self, buffer: int = 256) -> EventStream:
        """What the body emits from now on, until the run has ended.

        Args:
            buffer: events that are kept for this reader, which misses the oldest if it falls further behind. It never
                slows the run.

        Raises:
            InvalidLane: `buffer` is no whole number from 1.
        """
        stream = EventStream(self, buffer)
        self._add_stream(stream)
        return stream

    def _add_stream(self, stream: EventStream) -> None:
        if self.outcome is None:
            if self._streams is None:
                self._streams = WeakSet()
            self._streams.add(stream)

    def _emit(self, event: Any) -> None:
        if self._streams is not None:
            for stream in self._streams:
                stream.put(event)

    def _forget_stream(self, stream: EventStream) -> None:
        if self._streams is not None:
            self._streams.discard(stream)

    def _end(self, outcome: Outcome) -> None:
        """Record how the run ended and wake its waiters. Called once."""
        assert self.outcome is None, "a run ends once"
        self.state, self.reason, self.outcome = outcome.state, outcome.reason, outcome
        self._execution = None
        if self._ended is not None:
            self._ended.set()
        if self._streams is not None:
            streams, self._streams = self._streams, None
            for stream in streams:
                stream.wake()
        if self._threads is not None:
            with _waiting_threads:
                for waiter in self._threads:
                    waiter.set()


def _value_of(outcome: Outcome) -> Any:
    if outcome.error is None:
        return outcome.value
    raise copied(outcome.error)

"""A model that answers as a test says: token by token, and badly where it is told to."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal, Self, get_args
from weakref import WeakSet

import anyio
from anyio import get_cancelled_exc_class, to_thread
from anyio.lowlevel import checkpoint

from lanes import InvalidLane, checks
from locks import _clock
from locks._loop import current_loop, running_loop

from .clock import LoopClock

Hang = Literal["hang", "swallow", "thread"]
_HANGS = get_args(Hang)
_made: WeakSet[FakeModel] = WeakSet()
_given_up: WeakSet[Any] = WeakSet()
"""Event loops on which a body was abandoned: it may ask again, and nobody would be there to let it go on."""


class FakeModel:
    """Stands for a model: `async for token in model(question)`, or `await model.complete(question)`.

    Args:
        tokens: what each answer consists of: its tokens, a text that is split into words, or a function that is called
            with what the model was called with and returns either.
        delay: seconds before each token.
        at: what goes wrong, and before which token, counted from 1. An exception is raised. `"hang"` waits until it is
            cancelled. `"swallow"` waits, and takes no notice of any cancellation. `"thread"` waits in a worker thread,
            which no cancellation reaches. All three go on when `release` is called.
        times: in how many calls that goes wrong; those after them go well.

    Raises:
        InvalidLane: naming the argument, its value and what is allowed.
    """

    def __init__(
        self,
        tokens: str | Iterable[str] | Callable[..., str | Iterable[str]] = "all is well",
        *,
        delay: float = 0.0,
        at: Mapping[int, Hang | BaseException] | None = None,
        times: int | None = None,
    ) -> None:
        given: object = tokens
        if not callable(given) and not isinstance(given, Iterable):
            raise InvalidLane(f"tokens: {checks.shown(given)} is not allowed; allowed: a text, tokens, or a function")
        self._tokens = tokens if callable(tokens) or isinstance(tokens, str) else list(tokens)
        self._delay = checks.seconds("delay", delay, zero=True)
        if at is not None and not isinstance(at, Mapping):
            raise InvalidLane(f"at: {checks.shown(at)} is not allowed; allowed: what goes wrong, by token")
        self._at = dict(at or {})
        for number, wrong in self._at.items():
            checks.whole("at", number, 1)
            if not isinstance(wrong, BaseException):
                checks.choice(f"at[{number}]", wrong, _HANGS)
        self._times = math.inf if times is None else checks.whole("times", times, 0)
        self.calls: list[tuple[Any, ...]] = []
        """What it was called with, each time."""
        self.given = 0
        """Tokens that it has given, in all calls."""
        self.cancelled = 0
        """Cancellations that have reached it."""
        self._hold = _Hold()
        _made.add(self)

    def __repr__(self) -> str:
        return f"<FakeModel: {len(self.calls)} calls, {self.given} tokens given>"

    def __call__(self, *args: Any) -> Stream:
        """Begin an answer: an async iterator of its tokens. Each token is a checkpoint."""
        self.calls.append(args)
        tokens = self._tokens(*args) if callable(self._tokens) else self._tokens
        wrong = self._at if len(self.calls) <= self._times else {}
        answer = [f"{word} " for word in tokens.split()] if isinstance(tokens, str) else list(tokens)
        return Stream(self, answer, wrong, _Hold(over=True) if running_loop() in _given_up else self._hold)

    async def complete(self, *args: Any) -> str:
        """The whole answer. A checkpoint."""
        return "".join([token async for token in self(*args)])

    def release(self) -> None:
        """Let everything go on that hangs, now or later. On the event loop's thread."""
        self._hold.end()

    def __enter__(self) -> Self:
        """A block: when it is left, everything goes on that hangs."""
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    # For the streams

    async def _wait(self, wrong: Hang | BaseException | None, hold: _Hold) -> None:
        """What comes before a token."""
        try:
            await (anyio.sleep(self._delay) if self._delay else checkpoint())
            if isinstance(wrong, BaseException):
                raise wrong
            if wrong == "hang":
                go_on = anyio.Event()
                with hold.until(go_on.set):
                    await go_on.wait()
            elif wrong == "thread":
                await _hang_in_thread(hold)
        except get_cancelled_exc_class():
            self.cancelled += 1
            raise
        if wrong == "swallow":
            await self._swallow(hold)

    async def _swallow(self, hold: _Hold) -> None:
        clock, go_on = _clock.clock, anyio.Event()
        with hold.until(go_on.set):
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except get_cancelled_exc_class():
                    self.cancelled += 1
                    if isinstance(clock, LoopClock):
                        clock.spins()  # in reality each round of the loop takes time, too

    def _let_go(self) -> None:
        """Let go on what hangs in the answers begun so far; those begun later hang again, unless it was released."""
        if not self._hold.over:
            self._hold.end()
            self._hold = _Hold()


class _Hold:
    """What makes answers hang: those that were begun in its time, until it ends."""

    def __init__(self, *, over: bool = False) -> None:
        self.over = over
        self._hanging: list[Callable[[], object]] = []
        """What lets each of them go on."""

    def end(self) -> None:
        """Let them go on, and hang no more. On the event loop's thread."""
        self.over = True
        for let_go in list(self._hanging):
            let_go()

    @contextlib.contextmanager
    def until(self, let_go: Callable[[], object]) -> Iterator[None]:
        """A block that hangs until `let_go` is called, which is at once when the time is over."""
        if self.over:
            let_go()
        self._hanging.append(let_go)
        try:
            yield
        finally:
            self._hanging.remove(let_go)


async def _hang_in_thread(hold: _Hold) -> None:
    clock, go_on = _clock.clock, threading.Event()
    if not isinstance(clock, LoopClock):
        with hold.until(go_on.set):
            await to_thread.run_sync(go_on.wait)
        return
    with clock.resting(go_on) as resting, hold.until(resting.wake):
        await to_thread.run_sync(go_on.wait)


class Stream:
    """One answer: an async iterator of tokens."""

    def __init__(
        self, model: FakeModel, tokens: list[str], wrong: Mapping[int, Hang | BaseException], hold: _Hold
    ) -> None:
        self._model, self._tokens, self._wrong, self._hold, self._at = model, tokens, wrong, hold, 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        """The next token. A checkpoint; cancelled, it was not given."""
        if self._at >= len(self._tokens) and self._at + 1 not in self._wrong:
            await checkpoint()
            raise StopAsyncIteration
        await self._model._wait(self._wrong.get(self._at + 1), self._hold)
        self._at += 1
        if self._at > len(self._tokens):
            raise StopAsyncIteration
        self._model.given += 1
        return self._tokens[self._at - 1]

    async def aclose(self) -> None:
        """Give no more tokens. A checkpoint."""
        self._at = len(self._tokens) + len(self._wrong) + 1
        await checkpoint()


def let_all_go(*, abandoned: bool = False) -> None:
    """Let everything go on that hangs by now, of all models: no thread may be left behind. They hang again later.

    Args:
        abandoned: whether a body was abandoned; from then on nothing hangs on this event loop.
    """
    if abandoned:
        _given_up.add(current_loop())
    for one in list(_made):
        one._let_go()

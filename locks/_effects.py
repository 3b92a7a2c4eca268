"""What a change of state sets off: user code, log lines, and letting go of users' objects. All of it runs after it.

A *change* is one synchronous call that takes the registry or the scheduler from one valid state to another. Nothing of
a user's may run between its first and its last step: a hook that submits, cancels or resets would find half of it. So
the steps only note what has to follow, and the outermost change of the thread runs that when it is complete, in the
order in which it was noted. User code may then change things itself: what its changes set off goes to the end of the
same queue, so effects never nest, and a hook that sets off a hook does not recurse.

Three kinds of user code are noted: calls (hooks, `on_drop`), log lines (a processor of the host's logging set-up is
user code) and last references (`release`: the finalizer of a message or a value is user code). Finalizers that the
garbage collector calls come at any instant, and are not covered.

Each thread has a queue of its own: threads log, and only the event loop's thread changes things.

Rejected: calling hooks from a task of their own. Then a hook hears of a run some rounds of the loop later, and what
`on_drop` makes of dropped messages comes too late for the run that answers them.
"""

from __future__ import annotations

import functools
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

_Effect = tuple[int, frozenset[object], Callable[..., object], tuple[Any, ...]]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_MOST_GENERATIONS = 100


class _Effects:
    """What one thread has to run after its change.

    Invariants: `depth` is the number of changes that the thread is in; while it is 0 and `running` is false, `noted` is
    empty, but for what an interrupt has kept from running: the next change does that.
    """

    __slots__ = ("depth", "generation", "marks", "noted", "running")

    def __init__(self) -> None:
        self.depth = 0
        self.running = False
        self.generation = 0
        """How many effects led to the one that runs now, each by a change of user code; 0 outside of them."""
        self.marks: frozenset[object] = frozenset()
        """What the present change, or the one that has set off the present effect, was marked with."""
        self.noted: deque[_Effect] = deque()


class _Local(threading.local):
    """One attribute, looked up once per call: an attribute of a `threading.local` is slow to get at."""

    def __init__(self) -> None:
        self.effects = _Effects()


_local = _Local()


def change(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a synchronous function a change, or a part of the one that it is called in."""

    @functools.wraps(method)
    def changing(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        here = _local.effects
        before = here.depth
        try:
            here.depth = before + 1
            return method(*args, **kwargs)
        finally:
            here.depth = before
            if not before and here.noted:
                _run(here)

    return changing


def after(call: Callable[..., object], *args: Any) -> None:
    """Have something called when the change is complete: at once, outside of one.

    It contains its own errors. What it raises all the same, such as a `KeyboardInterrupt`, leaves the outermost change
    when everything else that was noted has run.
    """
    here = _local.effects
    if here.depth:
        here.noted.append((here.generation + 1, here.marks, call, args))
    else:
        call(*args)


def release(*kept: Any) -> None:
    """Let go of objects when the change is complete: what finalizes them is user code."""
    here = _local.effects
    if here.depth:
        here.noted.append((here.generation + 1, here.marks, _let_go, kept))


@contextmanager
def marked(mark: object) -> Iterator[None]:
    """Mark what the block sets off, and what that sets off in turn, over however many changes."""
    here = _local.effects
    before = here.marks
    here.marks = before | {mark}
    try:
        yield
    finally:
        here.marks = before


def is_marked(mark: object) -> bool:
    """Whether the present change or effect goes back to a block of `marked`."""
    return mark in _local.effects.marks


def refuse_endless(what: str) -> None:
    """Raise where effects have set off effects too often: for ever, as it seems.

    Raises:
        RecursionError: nothing has changed.
    """
    if _local.effects.generation >= _MOST_GENERATIONS:
        raise RecursionError(f"{what} from a hook that was called for what a hook did, {_MOST_GENERATIONS} times over")


def recover() -> None:
    """Run what an interrupt has left, from a place that is in no change and no effect: a task that was just resumed.

    An exception that comes in the very steps that end a change, or a run of effects, leaves this thread marked as if it
    were still in one.
    """
    here = _local.effects
    here.depth, here.running, here.generation, here.marks = 0, False, 0, frozenset()
    if here.noted:
        _run(here)


def _run(here: _Effects) -> None:
    """Run everything that was noted, and what that notes."""
    if here.running:
        return  # the change was made by an effect: what it has noted waits for its turn
    before = here.generation, here.marks
    here.running = True
    raised: BaseException | None = None
    try:
        while here.noted:
            here.generation, here.marks, call, args = here.noted.popleft()
            try:
                call(*args)
            except BaseException as error:
                raised = raised or error
            del call, args  # the last reference may be this one, and its finalizer belongs to this effect
    finally:
        here.running = False
        here.generation, here.marks = before
    if raised is not None:
        raise raised


def _let_go(*_kept: Any) -> None:
    """The references end with this call."""

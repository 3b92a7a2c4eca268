"""Where a body stands, as text: for bodies that ignore their cancellation, and for `lanes stack`.

A task that waits has no stack. It has a coroutine, which names the coroutine that it awaits, and so on; what names
nothing (a step of an async generator, a foreign awaitable) the garbage collector can look into. Variables come from the
garbage collector too: `f_locals` would leave a copy of them in the frame, and so keep what the body has long let go of.
"""

from __future__ import annotations

import gc
import linecache
import os
import sys
import sysconfig
from collections import deque
from collections.abc import Iterable, Iterator
from types import FrameType
from typing import Any, NamedTuple

_KEPT_FRAMES = 30
_MOST_FRAMES = 10_000
_KINDS = (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom"), ("ag_frame", "ag_await"))


class Place(NamedTuple):
    """A line of code."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{os.path.basename(self.file)}:{self.line} in {self.function}"

    def as_traceback(self) -> str:
        """As in a traceback, with its source."""
        text = linecache.getline(self.file, self.line).strip()
        return f'  File "{self.file}", line {self.line}, in {self.function}' + (f"\n    {text}" if text else "")


class Places(NamedTuple):
    """A stack, outermost call first; of a deep one its inner end, which says what is waited for."""

    kept: tuple[Place, ...]
    left_out: int
    """Outer calls that are not in `kept`."""

    def as_traceback(self) -> str:
        """As in a traceback."""
        lines = [f"  … {self.left_out} outer calls …"] if self.left_out else []
        return "\n".join(lines + [place.as_traceback() for place in self.kept])

    def inner(self) -> Places:
        """Without the outermost calls, those of the event library and ours that every task begins with."""
        begins = next((n for n, place in enumerate(self.kept) if distance(place.file) not in (_OURS, _EVENTS)), 0)
        return Places(self.kept[begins:], self.left_out) if not self.left_out else self

    @property
    def guilty(self) -> Place | None:
        """The innermost line of the user's own code, or else of what is nearest to it."""
        return min(reversed(self.kept), key=lambda place: distance(place.file), default=None)


def stack_of(task: Any) -> str:
    """The stack of a task, outermost call first; of a deep one its inner end, which says what it waits for.

    The frames themselves are not kept.
    """
    return places_of(coroutine_of(task)).as_traceback()


def coroutine_of(task: Any) -> Any:
    """What a task of asyncio or trio runs; `None` for no task."""
    return task.get_coro() if hasattr(task, "get_coro") else getattr(task, "coro", None)


def places_of(coroutine: Any, *, unseen: str = "") -> Places:
    """Where a coroutine stands: suspended, or running on the calling thread. Keeps no frame, and never raises.

    Args:
        unseen: the name of the calling module, whose own calls are left out.
    """
    places: deque[Place] = deque(maxlen=_KEPT_FRAMES)
    depth = 0
    if is_running(coroutine):
        inside = _running_places(coroutine, unseen)
        places.extend(inside)
        depth = len(inside)
    for step in () if depth else steps(coroutine):
        places.append(_place(step))
        depth += 1
    return Places(tuple(places), depth - len(places))


def is_running(coroutine: Any) -> bool:
    """Whether a coroutine runs right now, rather than waits."""
    return _asked(coroutine, "cr_running") is True or _asked(coroutine, "gi_running") is True


def steps(coroutine: Any) -> Iterator[Any]:
    """A coroutine, what it awaits, and so on down to what waits: coroutines, generators and async generators."""
    seen: set[int] = set()
    while coroutine is not None and len(seen) < _MOST_FRAMES:
        step = coroutine if _is_step(coroutine) else _wrapped(coroutine)
        if step is None or id(step) in seen:
            return
        seen.add(id(step))
        yield step
        coroutine = next((_asked(step, awaited) for _, awaited in _KINDS if hasattr(type(step), awaited)), None)


def variables(coroutine: Any) -> list[Any]:
    """What the local variables of a suspended coroutine hold, and what waits on its stack, such as a block's exit."""
    return gc.get_referents(coroutine)


def _is_step(one: Any) -> bool:
    """Whether it is a coroutine or a generator that has not ended. Compiled ones may have no frame."""
    kind = type(one)
    for frame, awaited in _KINDS:
        if hasattr(kind, awaited):
            return _asked(one, frame) is not None or _asked(one, awaited) is not None
    return False


def _asked(one: Any, name: str) -> Any:
    """An attribute of a foreign object, which may raise anything."""
    try:
        return getattr(one, name, None)
    except Exception:
        return None


def _wrapped(awaitable: Any) -> Any:
    """The coroutine in an awaitable that does not name it: the first coroutine that waits."""
    found = gc.get_referents(awaitable)
    found += [one for inside in found if type(inside) is dict for one in inside.values()]
    # Of a step of an async generator this is the generator, which comes before the value that it is sent.
    return next((one for one in found if _is_step(one) and not is_running(one)), None)


def place_in(frame: FrameType) -> Place:
    """Where a frame stands; in line 0 between two lines, where Python knows of none."""
    return Place(frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name)


def _place(step: Any) -> Place:
    for name, _ in _KINDS:
        frame = _asked(step, name)
        if isinstance(frame, FrameType):
            return place_in(frame)
    return Place("compiled", 0, str(getattr(step, "__qualname__", type(step).__qualname__)))


def _running_places(coroutine: Any, unseen: str) -> list[Place]:
    """The calling thread's stack from a coroutine inwards; nothing when it runs on another thread."""
    outermost = getattr(coroutine, "cr_frame", None) or getattr(coroutine, "gi_frame", None)
    places: list[Place] = []
    frame: FrameType | None = sys._getframe(1)
    try:
        while frame is not None and len(places) < _MOST_FRAMES:
            if places or frame.f_globals.get("__name__") not in (__name__, unseen):
                places.append(place_in(frame))
            if frame is outermost:
                return places[::-1]
            frame = frame.f_back
        return []
    finally:
        del frame, outermost  # a frame that a local variable names would need the garbage collector


_PATHS = sysconfig.get_paths()
_PACKAGES = {_PATHS[name] for name in ("purelib", "platlib")}
_HERE = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))


def _inside(folders: Iterable[str], *names: str) -> tuple[str, ...]:
    return tuple(os.path.join(folder, name, "") for folder in folders for name in names or ("",))


_OURS, _LIBRARY, _EVENTS = 2, 3, 4
_DISTANCES = (
    (_EVENTS, ("<frozen", *_inside(_PACKAGES, "anyio", "trio", "outcome", "sniffio"))),
    (_OURS, _inside([_HERE], "locks", "lanes", "runtime")),
    (1, _inside(_PACKAGES)),
    (_LIBRARY, _inside({_PATHS[name] for name in ("stdlib", "platstdlib")})),
)
"""The first that fits: packages lie inside of the standard library's folder, and we may lie among them."""


def distance(file: str) -> int:
    """How far code is from the user's own, which is 0: what a task begins and ends with is farthest.

    A program that is installed lies among the packages, so those come next. The standard library is where the program
    waits, and never what can be mended.
    """
    return next((far for far, folders in _DISTANCES if file.startswith(folders)), 0)

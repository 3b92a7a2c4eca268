"""A supervisor for tests: over a directory of its own, with a recorder, and with a hand on the clock."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from lanes import InvalidLane, LaneSpec, Run, SessionLayout
from lanes.checks import callback, seconds
from lanes.core.hooks import Hook
from locks.lowlevel import encode_all

from ..supervisor import Supervisor
from ..zombies import AbandonedBodies
from .errors import NotVirtual
from .folders import copy_of, temporary
from .models import let_all_go
from .recorder import Recorder
from .virtual import VirtualClock, current

_open: set[object] = set()
"""The blocks of `supervisor` that are entered: when the last one is left, what hangs in a fake model is let go."""


class SupervisorUnderTest(Supervisor):
    """A `Supervisor` over files that also records, moves virtual time, and can be killed.

    Args:
        sessions: the directory of the transcripts, or a `SessionLayout`.
        on_run_start: called with each run when it starts, after the recorder.
        on_run_end: called with each run when it has its outcome, likewise.
        on_wait: called with each run that does not start at once, likewise.
        options: the other arguments of a `Supervisor`.
    """

    def __init__(
        self,
        sessions: str | os.PathLike[str] | SessionLayout,
        *,
        on_run_start: Hook | None = None,
        on_run_end: Hook | None = None,
        on_wait: Hook | None = None,
        **options: Any,
    ) -> None:
        self.recorder = Recorder()
        """What has become of its runs."""
        self._hooks = {"on_run_start": on_run_start, "on_run_end": on_run_end, "on_wait": on_wait}
        self._options = options = {name: _again(given) for name, given in options.items()}
        super().__init__(
            sessions,
            on_run_start=_both("on_run_start", self.recorder.starts, on_run_start),
            on_run_end=_both("on_run_end", self.recorder.ends, on_run_end),
            on_wait=_both("on_wait", self.recorder.waits, on_wait),
            **options,
        )

    async def advance(self, seconds: float) -> None:
        """Let virtual time pass, and return when all that was due by then is done. A checkpoint.

        Args:
            seconds: from 0.

        Raises:
            NotVirtual: time is real here.
            InvalidLane: that is no duration.
        """
        await advance(seconds)

    async def transcript(self, key: str) -> list[dict[str, Any]]:
        """The records of a session, oldest first. A checkpoint.

        Raises:
            TranscriptError: a line of it is broken.
        """
        return [dict(one) for one in await self.registry.read(self.layout.file_of(key), on_error="raise")]

    async def untold(self) -> bool:
        """Whether a lane is still to be told of messages whose end is unknown. A checkpoint."""
        return self._inbox is not None and bool(await self._inbox.store.untold(0, 1))

    @asynccontextmanager
    async def killed(self) -> AsyncIterator[SupervisorUnderTest]:
        """Inside, the supervisor of the next process, if this one were killed with SIGKILL at this instant.

        It has the same lanes and options, and a copy of all that is on the disk now. What runs here goes on here, and
        changes nothing of that copy.

        Raises:
            InvalidLane: its files have a layout of their own; or its options name a file or socket that both would use.
        """
        if not isinstance(self.layout, SessionLayout) or self.layout.path is not None:
            raise InvalidLane("killed: the sessions have a layout of their own; allowed: a directory")
        shared = [name for name in ("status_socket", "registry") if self._options.get(name) not in (None, False)]
        if getattr(self._options.get("inbox"), "path", None) is not None:
            shared.append("inbox, path")
        if shared:
            raise InvalidLane(f"killed: {', '.join(shared)} would be the same for both; allowed: none")
        with temporary() as folder:
            copy = copy_of(Path(self.layout.root), Path(folder))
            async with SupervisorUnderTest(copy, **self._hooks, **self._options) as after:
                yield after


@asynccontextmanager
async def supervisor(
    lanes: Iterable[LaneSpec] = (),
    *,
    records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
    **options: Any,
) -> AsyncIterator[SupervisorUnderTest]:
    """A running supervisor over a directory of its own, which is removed afterwards.

    In virtual time, what runs may sleep, wait and time out without taking any real time.

    Args:
        lanes: as for `Supervisor`.
        records: what sessions have already, by key.
        options: the other arguments of `Supervisor`, but for `sessions`.

    Raises:
        AbandonedBodies: at the end of the block, a body is still running that has ignored its cancellation.
        NotVirtual: a virtual clock is installed, and this event loop does not go by it.
    """
    here = object()
    _open.add(here)
    try:
        if isinstance(clock := virtual_clock(), VirtualClock):
            _check_loop(clock)
        with temporary() as folder:
            made = SupervisorUnderTest(folder, lanes=lanes, **options)
            for key, before in (records or {}).items():
                path = made.layout.file_of(key)
                data = encode_all(before, path)
                _ = await made.registry.store.append(path, data, header=made.layout.first_line_of(key, path))
            async with made as sup:
                yield sup
    except AbandonedBodies:
        let_all_go(abandoned=True)
        raise
    finally:
        _open.discard(here)
        if not _open:
            let_all_go()


async def advance(seconds_: float) -> None:
    """Let virtual time pass, and return when all that was due by then is done. A checkpoint.

    Raises:
        NotVirtual: time is real here.
        InvalidLane: that is no duration from 0.
    """
    clock = current()
    _check_loop(clock)
    await anyio.sleep(seconds("seconds", seconds_, zero=True))
    await clock.settle()


def virtual_clock() -> VirtualClock | None:
    """The virtual clock that is installed, if one is."""
    try:
        return current()
    except NotVirtual:
        return None


def _check_loop(clock: VirtualClock) -> None:
    if anyio.current_time() != clock.now():
        raise NotVirtual(
            "this event loop goes by real time, and the clock of lanes by virtual time; allowed: a test that requests "
            "the fixture `virtual_time` and is run by anyio's plugin (pytest-asyncio leaves it to that one with "
            "asyncio_mode = strict), or `lanes.testing.run`"
        )


def _again(given: Any) -> Any:
    """An argument that can be given twice: lanes and groups may be anything that can be iterated once."""
    return tuple(given) if isinstance(given, Iterator) else given


def _both(name: str, mine: Callable[[Run], None], theirs: Hook | None) -> Hook:
    if theirs is None:
        return mine
    callback(name, theirs, f"{name}(run)", 1)

    def both(run: Run) -> None:
        mine(run)
        theirs(run)

    return both

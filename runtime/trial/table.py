"""Progress for a terminal: a live table of the lanes, and of the holder of each session's turn."""

from __future__ import annotations

import io
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO, cast

import anyio
import psutil
from anyio import to_thread
from rich.box import SIMPLE
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lanes import Run, RunState
from locks import _clock
from runtime.supervisor import Supervisor

from .harness import Display
from .ledger import Ledger
from .lines import progress

_EVERY_S = 0.5
_WIDEST = 60
_FRAME = 12
"""Lines of the terminal that are not rows of the two tables."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session."""

    key: str
    conductor: str
    """The run that has its turn."""
    since_s: float
    remaining_s: float | None
    queued: int


@dataclass(frozen=True, slots=True)
class LaneRow:
    """One lane."""

    name: str
    running: str
    """What runs."""
    queued: int
    oldest_wait_s: float


class _Held(io.TextIOBase):
    """Takes the place of standard error: what is written to it waits for the next picture.

    Rich would draw the whole table again for every line, and on the event loop's thread.
    """

    def __init__(self) -> None:
        self._parts: deque[str] = deque()

    def write(self, text: str) -> int:
        self._parts.append(text)
        return len(text)

    def isatty(self) -> bool:
        return True

    def take(self) -> str:
        """Everything since the last time."""
        return "".join(self._parts.popleft() for _ in range(len(self._parts)))


@contextmanager
def _holding_back() -> Iterator[_Held]:
    """Standard error is held back while the block runs, if it is the terminal that the table is on."""
    held, before = _Held(), sys.stderr
    if not before.isatty():
        yield held
        return
    sys.stderr = cast(TextIO, held)
    try:
        yield held
    finally:
        sys.stderr = before
        before.write(held.take())
        before.flush()


def live(ledger: Ledger) -> Display:
    """A display that redraws itself twice a second."""

    async def serve(sup: Supervisor) -> None:
        console = Console()
        started, process = time.monotonic(), psutil.Process()
        # Drawn in a thread: a terminal that is held (Ctrl-S) must not hold the event loop.
        thread = anyio.CapacityLimiter(1)
        with _holding_back() as held, Live(console=console, auto_refresh=False, transient=True) as shown:
            while True:
                elapsed_s = time.monotonic() - started
                title = f"{progress(sup, ledger, elapsed_s)}, {process.memory_info().rss / 1e6:.0f} MB"
                picture = draw(title, lane_rows(sup), session_rows(sup.runs()), console.height - _FRAME)
                await to_thread.run_sync(_show, shown, picture, held, limiter=thread, abandon_on_cancel=True)
                await anyio.sleep(_EVERY_S)

    return serve


def _show(shown: Live, picture: Group, held: _Held) -> None:
    shown.update(picture)
    if text := held.take().rstrip("\n"):
        # Printing draws the picture as well.
        shown.console.print(Text.from_ansi(text), no_wrap=True, overflow="ellipsis", highlight=False)
    else:
        shown.refresh()


def lane_rows(sup: Supervisor) -> list[LaneRow]:
    """The lanes with something on them, the longest queues first."""
    now = sup.statistics()
    running: dict[str, list[str]] = {}
    for run in sup.runs():
        if run.state is RunState.RUNNING and run.answered_by is None:
            running.setdefault(run.lane, []).append(str(run.id))
    rows = [
        LaneRow(
            name,
            f"{lane.running}/{lane.capacity}"
            + (f"  run {', '.join(running.get(name, [])[:6])}" if lane.running else ""),
            lane.queued,
            lane.oldest_wait_s,
        )
        for name, lane in now.lanes.items()
        if lane.running or lane.queued
    ]
    return sorted(rows, key=lambda row: (-row.queued, -row.oldest_wait_s, row.name))


def session_rows(runs: Iterable[Run]) -> list[SessionRow]:
    """The sessions that runs conduct or wait for, the longest queues first."""
    now = _clock.clock.now()
    conductors: dict[str, Run] = {}
    queued: dict[str, int] = {}
    for run in runs:
        if run.session is None or not run.turn:
            continue
        if run.state is RunState.RUNNING and run.answered_by is not None:
            continue  # another run has read its message, and conducts the session
        if run.state is RunState.RUNNING:
            conductors[run.session] = run
        else:
            queued[run.session] = queued.get(run.session, 0) + 1
    rows = []
    for key in conductors.keys() | queued.keys():
        conductor = conductors.get(key)
        since, remaining, who = 0.0, None, "nobody yet"
        if conductor is not None and conductor.started_at is not None and conductor.deadline is not None:
            since, remaining = now - conductor.started_at, conductor.deadline - now
            who = f"run {conductor.id} on {conductor.lane}"
        rows.append(SessionRow(key, who, since, remaining, queued.get(key, 0)))
    return sorted(rows, key=lambda row: (-row.queued, -row.since_s, row.key))


def draw(title: str, lanes: list[LaneRow], sessions: list[SessionRow], height: int) -> Group:
    """Both tables, cut to the height there is."""
    most = max(3, height // 2)
    lane_cells = [(row.name, row.running, str(row.queued), f"{row.oldest_wait_s:.1f} s") for row in lanes[:most]]
    session_cells = [
        (row.key, row.conductor, f"{row.since_s:.1f} s", _rest(row.remaining_s), str(row.queued))
        for row in sessions[:most]
    ]
    hidden = max(0, len(lanes) - most), max(0, len(sessions) - most)
    more = f"… {hidden[0]} more lanes, {hidden[1]} more sessions" if any(hidden) else ""
    return Group(
        Text(title, overflow="ellipsis", no_wrap=True),
        _table(("lane", "running", "queued", "waits"), lane_cells),
        _table(("session", "turn", "for", "at most", "queued"), session_cells),
        Text(more),
    )


def _rest(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return f"{seconds:.1f} s" if seconds > 0 else "grace"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table whose widths are known: letting rich measure every cell twice takes most of the time."""
    table = Table(box=SIMPLE)
    for index, title in enumerate(titles):
        width = min(_WIDEST, max(len(row[index]) for row in (titles, *rows)))
        table.add_column(title, width=width, no_wrap=True, overflow="ellipsis")
    for row in rows:
        table.add_row(*map(_cell, row))
    return table


def _cell(text: str) -> Text:
    """Text of the user's, of which nothing is taken for markup."""
    return Text(text, overflow="ellipsis", no_wrap=True)

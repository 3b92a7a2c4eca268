"""Progress for a terminal: a live table of the lanes, and of whose turn it is in each session."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

import anyio
import psutil
from anyio import to_thread
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

_EVERY_S = 0.25
_FRAME = 12
"""Lines of the terminal that are not rows of the two tables."""


@dataclass(frozen=True, slots=True)
class SessionRow:
    """One session."""

    key: str
    conductor: str
    """Whose turn it is."""
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


def live(ledger: Ledger) -> Display:
    """A display that redraws itself four times a second."""

    async def serve(sup: Supervisor) -> None:
        console = Console()
        started = time.monotonic()
        process = psutil.Process()
        # Drawn in a thread of its own kind: a terminal that is held (Ctrl-S) must not hold the event loop.
        thread = anyio.CapacityLimiter(1)
        with Live(console=console, auto_refresh=False, transient=True) as shown:
            while True:
                title = f"{progress(sup, ledger, time.monotonic() - started)}, {process.memory_info().rss / 1e6:.0f} MB"
                picture = draw(title, lane_rows(sup), session_rows(sup.runs()), console.height - _FRAME)

                def refresh(picture: Group = picture) -> None:
                    shown.update(picture, refresh=True)

                await to_thread.run_sync(refresh, limiter=thread, abandon_on_cancel=True)
                await anyio.sleep(_EVERY_S)

    return serve


def lane_rows(sup: Supervisor) -> list[LaneRow]:
    """The lanes with something on them, the longest queues first."""
    now = sup.statistics()
    running: dict[str, list[str]] = {}
    for run in sup.runs():
        if run.state is RunState.RUNNING:
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
    """The sessions that somebody conducts or waits for, the longest queues first."""
    now = _clock.clock.now()
    conductors: dict[str, Run] = {}
    queued: dict[str, int] = {}
    for run in runs:
        if run.session is None or not run.turn:
            continue
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
    left = Table("lane", "running", "queued", "waits", title_justify="left", expand=True)
    for lane in lanes[:most]:
        left.add_row(_cell(lane.name), _cell(lane.running), str(lane.queued), f"{lane.oldest_wait_s:.1f} s")
    right = Table("session", "turn", "for", "at most", "queued", expand=True)
    for row in sessions[:most]:
        rest = "" if row.remaining_s is None else f"{row.remaining_s:.1f} s" if row.remaining_s > 0 else "grace"
        right.add_row(_cell(row.key), _cell(row.conductor), f"{row.since_s:.1f} s", rest, str(row.queued))
    hidden = max(0, len(lanes) - most), max(0, len(sessions) - most)
    more = f"… {hidden[0]} more lanes, {hidden[1]} more sessions" if any(hidden) else ""
    return Group(Text(title, overflow="ellipsis", no_wrap=True), left, right, Text(more))


def _cell(text: str) -> Text:
    """Text of somebody else's, of which nothing is taken for markup."""
    return Text(text, overflow="ellipsis", no_wrap=True)

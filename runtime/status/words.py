"""What a picture of a process means in words: for `lanes status`, `lanes top`, and the dashboard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from .protocol import AbandonedRow, Picture, RunRow
from .rows import Bar


def is_stuck(run: RunRow) -> bool:
    """Whether a running run should have ended by now."""
    return run.ending or (run.deadline_in_s is not None and run.deadline_in_s < 0)


def by_state(picture: Picture) -> tuple[list[RunRow], list[RunRow], list[RunRow]]:
    """The stuck runs, the other running ones, and those that wait; of each those that take longest first."""
    running = sorted((run for run in picture.runs if run.ran_s is not None), key=lambda run: -(run.ran_s or 0.0))
    waiting = sorted((run for run in picture.runs if run.ran_s is None), key=lambda run: -run.waited_s)
    return [run for run in running if is_stuck(run)], [run for run in running if not is_stuck(run)], waiting


def held_up(runs: Iterable[RunRow]) -> Counter[int | None]:
    """How many runs wait for each run, by its id."""
    return Counter(run.holder_run for run in runs if run.holder_run is not None)


def holds_up(run: int, waiting: Counter[int | None]) -> str:
    """How many wait for a run, to be put behind another text."""
    return f"; {waiting[run]} wait for it" if waiting[run] > 1 else "; 1 waits for it" if waiting[run] else ""


def abandoned(row: AbandonedRow) -> str:
    """A body that ignored its cancellation."""
    return f"abandoned {lasting(row.abandoned_for_s)} ago, and still runs; {row.reason}"


def stuck(run: RunRow) -> str:
    """A run that should have ended."""
    report = f"ran {lasting(run.ran_s or 0.0)}"
    if run.deadline_in_s is not None and run.deadline_in_s < 0:
        report += f", {lasting(-run.deadline_in_s)} past its deadline"
    return f"{report}; asked to end: {run.reason}" if run.ending and run.reason else report


def runs(run: RunRow) -> str:
    """A run that runs."""
    report = f"ran {lasting(run.ran_s or 0.0)}"
    if run.deadline_in_s is not None:
        report += f", {lasting(run.deadline_in_s)} left"
    if run.extended_s:
        report += f", extended by {lasting(run.extended_s)}: {run.extended_for}"
    return f"{report}; waits for {for_whom(run)}" if run.waits_for else report


def waits(run: RunRow) -> str:
    """A run that waits to be started."""
    report = f"waited {lasting(run.waited_s)}"
    if run.waits_for:
        report += f" for {for_whom(run)}"
    return f"{report}; {run.reason}" if run.reason else report


def for_whom(run: RunRow) -> str:
    """What a run waits for, and what has that."""
    if not run.holder or run.holder.startswith(f"{run.waits_for} "):
        return run.holder or run.waits_for
    return f"{run.waits_for}: {run.holder}"


def life(bar: Bar) -> str:
    """When a run waited and ran."""
    ended = bar.ended or 0.0
    waited = bar.submitted - (ended if bar.started is None else bar.started)
    report = f"submitted {lasting(bar.submitted)} ago, waited {lasting(waited)}"
    if bar.started is not None:
        report += f", ran {lasting(bar.started - ended)}"
    return report if bar.ended is None else f"{report}, ended {lasting(ended)} ago"


def lasting(seconds: float) -> str:
    """A duration for people."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"

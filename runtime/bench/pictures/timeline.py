"""A story: what became of each piece of work on both sides, and how their memory grew."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..stories.journal import Lifeline, Played
from ..stories.story import STORIES
from ..stories.verdict import LATE, LOST, MEMORY, STUCK
from .style import WIDTH_IN, framed, is_own, look_of, quantity

_PANEL_IN, _MEMORY_IN, _FRAME_IN = 2.9, 1.9, 0.5
_LEGEND = "thin: waits · thick: runs · ×: gave up, its text is not in the session · dashed: the first run's deadline"


def timeline(title: str, sides: Sequence[tuple[str, Played]]) -> Figure:
    """The picture of a story; `sides` are its peers, the first on top."""
    heights = [*[_PANEL_IN for _ in sides], _MEMORY_IN]
    figure = Figure(figsize=(WIDTH_IN, _FRAME_IN + sum(heights)), layout="constrained")
    grid = figure.subplots(len(heights), sharex=True, gridspec_kw={"height_ratios": heights})
    for axes, (peer, played) in zip(grid, sides, strict=False):
        _work(axes, peer, played)
    _memory(grid[-1], sides)
    return framed(figure, f"{title} (openclaw#{STORIES[sides[0][1].story].report.rpartition('/')[2]})", _LEGEND)


def _work(axes: Axes, peer: str, played: Played) -> None:
    story = STORIES[played.story]
    ends_at_s = story.ends_at_s
    for place, line in enumerate(played.lifelines):
        _lifeline(axes, place, line, ends_at_s)
    axes.axvline(story.timeout_s, color="0.5", linewidth=0.8, linestyle=(0, (4, 3)))
    if played.restarted_s is not None:
        axes.axvline(played.restarted_s, color="0.5", linewidth=0.8, linestyle=":")
        axes.annotate("soft restart", (played.restarted_s, 0), (4, 2), textcoords="offset points", fontsize=8)
    axes.set_ylim(len(played.lifelines), -1)
    axes.set_yticks([])
    axes.set_ylabel("work, in order of arrival", fontsize=8.5)
    figures = played.figures
    parts = [
        f"{figures[LOST]:.0f} of {len(played.lifelines)} lost",
        f"stuck for {quantity(figures[STUCK])} s",
        f"late writes: {figures[LATE]:.0f}",
        f"{quantity(figures[MEMORY])} MB grown",
    ]
    name = "lanes" if is_own(peer) else "Legacy model"
    axes.set_title(f"{name}: {', '.join(parts)}", fontweight="bold" if is_own(peer) else "normal")


def _lifeline(axes: Axes, place: int, line: Lifeline, ends_at_s: float) -> None:
    over = ends_at_s if line.over_s is None else line.over_s
    begun = over if line.begun_s is None else min(line.begun_s, over)
    axes.plot([line.sent_s, begun], [place, place], color="0.65", linewidth=1.1)
    if line.begun_s is not None:
        axes.barh(place, max(over - begun, ends_at_s / 400), 0.8, begun, color="black")
        if line.over_s is not None and line.how != "done":
            axes.annotate(line.how, (over, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    elif line.over_s is not None:
        axes.plot([over], [place], color="black", marker="x", markersize=4.5, markeredgewidth=1.3)
    if line.late_s is not None:
        _annotated(axes, place, line.late_s, "v", "late write")
    if line.refused_s is not None:
        _annotated(axes, place, line.refused_s, "o", "refused")


def _annotated(axes: Axes, place: int, at_s: float, marker: str, text: str) -> None:
    axes.plot([at_s], [place], color="black", marker=marker, markersize=8, markerfacecolor="white", clip_on=False)
    axes.annotate(text, (at_s, place), (7, 0), textcoords="offset points", va="center", fontsize=8.5, fontweight="bold")


def _memory(axes: Axes, sides: Sequence[tuple[str, Played]]) -> None:
    for peer, played in sides:
        look = look_of(peer, None)
        seconds, grown = zip(*played.memory, strict=True)
        axes.plot(seconds, grown, color="black", linewidth=look.width, linestyle="-" if is_own(peer) else (0, (5, 2)))
        axes.annotate(peer, (seconds[-1], grown[-1]), (5, 0), textcoords="offset points", va="center", fontsize=8.5)
    axes.set_ylabel("MB grown", fontsize=8.5)
    scale = sides[0][1].scale
    axes.set_xlabel(f"seconds of production (played {scale:.0f} times as fast)", fontsize=8.5)
    axes.set_xlim(0, STORIES[sides[0][1].story].ends_at_s)

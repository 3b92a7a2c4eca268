"""Lines: a question that is asked at several sizes. Both axes are logarithmic, so a straight line is a power."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results import Answer, Row
from .style import OWN, WIDTH_IN, framed, is_own, look_of, named, plain_ticks, quantity

_MARKERS = "D^vP*Xhp<>d8"
_OWN_MARKERS = "so"
"""Of a variant, and of the peer as shipped; filled on asyncio, hollow on trio."""
_LEGEND = "black: this project, filled on asyncio, hollow on trio · dashed: the floor · dotted: the legacy model"
_LABEL_GAP = 0.052
"""Least distance of two labels, as a share of the panel's height."""

Line = tuple[str, str, list[Row]]


def growth(answer: Answer) -> Figure:
    """The picture of a question."""
    metrics = list(dict.fromkeys(row.metric for row in answer.rows if row.samples))
    figure = Figure(figsize=(WIDTH_IN, 0.55 + 4.2 * len(metrics)), layout="constrained")
    for axes, metric in zip(figure.subplots(len(metrics), squeeze=False).flat, metrics, strict=True):
        _panel(axes, answer, metric)
    return framed(figure, answer.title, _LEGEND)


def _panel(axes: Axes, answer: Answer, metric: str) -> None:
    lines = _lines(answer, metric)
    for index, (peer, backend, rows) in enumerate(lines):
        look = look_of(peer, answer.floor)
        axes.plot(
            [row.x or 0 for row in rows],
            [row.median or 0 for row in rows],
            color="black" if is_own(peer) else "0.35",
            linewidth=look.width,
            linestyle=look.style,
            marker=_OWN_MARKERS[peer == OWN] if is_own(peer) else _MARKERS[index % len(_MARKERS)],
            markersize=6,
            markerfacecolor="black" if is_own(peer) and backend != "trio" else "white",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    sizes = sorted({row.x for _, _, rows in lines for row in rows if row.x is not None})
    plain_ticks(axes, "y")
    axes.set_xticks(sizes, [quantity(size) for size in sizes])
    axes.set_xticks([], minor=True)
    axes.grid(axis="y", color="0.9", linewidth=0.6)
    axes.set_title(metric)
    axes.set_xlabel(answer.x or "")
    axes.set_ylabel(f"{answer.unit}, {answer.better} is better")
    _label(axes, lines)


def _lines(answer: Answer, metric: str) -> list[Line]:
    found: dict[tuple[str, str], list[Row]] = {}
    for row in answer.rows:
        # Nought, and what noise has put below it, have no place on a logarithmic axis.
        if row.metric == metric and row.x is not None and (row.median or 0.0) > 0:
            found.setdefault((row.peer, row.backend), []).append(row)
    return [(peer, backend, sorted(rows, key=lambda row: row.x or 0)) for (peer, backend), rows in found.items()]


def _label(axes: Axes, lines: Sequence[Line]) -> None:
    """Write each line's name to the right of all lines, moved apart where they would overlap."""
    ends = []
    for peer, backend, rows in lines:
        _, height = axes.transAxes.inverted().transform(axes.transData.transform((1.0, rows[-1].median or 1.0)))
        violations = sum(row.violations for row in rows)
        text = named(peer, backend) + (f" {violations:,} VIOLATIONS" if violations else "")
        ends.append((float(height), text, is_own(peer), rows[-1]))
    ends.sort(key=lambda end: end[0])
    for (_, text, own, row), at in zip(ends, apart([height for height, *_ in ends], _LABEL_GAP), strict=True):
        axes.annotate(
            text,
            (row.x or 0, row.median or 0),
            (1.03, at),
            textcoords="axes fraction",
            va="center",
            fontsize=8.5,
            fontweight="bold" if own else "normal",
            arrowprops={
                "arrowstyle": "-",
                "color": "0.6",
                "linewidth": 0.5,
                "shrinkA": 2,
                "shrinkB": 5,
                "relpos": (0, 0.5),
            },
            annotation_clip=False,
        )


def apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights in order, moved as little as it takes to have a gap between any two, and kept within 0 and 1."""
    groups: list[list[float]] = []
    for height in heights:
        groups.append([height])
        while len(groups) > 1 and _lowest(groups[-1], gap) - _highest(groups[-2], gap) < gap:
            last = groups.pop()
            groups[-1] += last
    return [_lowest(group, gap) + index * gap for group in groups for index in range(len(group))]


def _lowest(group: Sequence[float], gap: float) -> float:
    length = gap * (len(group) - 1)
    return max(0.0, min(sum(group) / len(group) - length / 2, 1.0 - length))


def _highest(group: Sequence[float], gap: float) -> float:
    return _lowest(group, gap) + gap * (len(group) - 1)

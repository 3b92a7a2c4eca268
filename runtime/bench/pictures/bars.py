"""Bars: a question that is asked at one size or two. A row per peer, a panel per metric and size, the best on top."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results import Answer, Row
from .style import WIDTH_IN, framed, is_own, look_of, named, plain_ticks, quantity

_LOGARITHMIC_FROM = 40.0
"""From this ratio of the largest bar to the smallest, the small ones could not be seen any more."""
_COLUMNS = 3
_ROOM = 0.25
"""For the numbers to the right of the longest bar, as a share of its length; by the number of columns."""
_TEXT: Any = {"textcoords": "offset points", "va": "center", "fontsize": 8}
_LEAST_IN, _BAR_IN, _FRAME_IN = 0.95, 0.29, 0.55
_LEGEND = "black: this project · hatched: the floor · (×): ratio to the floor · thin line: range of the samples"

Line = tuple[str, str]
"""Peer and event loop."""
Panel = tuple[float | None, str]
"""Size and metric."""


def bars(answer: Answer) -> Figure:
    """The picture of a question. All panels have the same rows, so the peers are named once."""
    rows = {((row.peer, row.backend), (row.x, row.metric)): row for row in answer.rows}
    panels = [panel for (_, panel), row in rows.items() if row.samples]
    panels = sorted(dict.fromkeys(panels), key=lambda panel: panel[0] or 0.0)
    lines = _in_order(answer, rows, panels[0])
    columns = min(len(panels), _COLUMNS)
    height = -(-len(panels) // columns)
    figure = Figure(figsize=(WIDTH_IN, _FRAME_IN + height * (_LEAST_IN + _BAR_IN * len(lines))), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for place, (axes, panel) in enumerate(zip(grid.flat, panels, strict=False)):
        _panel(axes, answer, panel, [rows.get((line, panel)) for line in lines], _ROOM * columns)
        axes.tick_params(axis="y", length=0, labelleft=place % columns == 0)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(lines)), [named(*line) for line in lines])
        for label, (peer, _) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if is_own(peer) else "normal")
    return framed(figure, answer.title, _LEGEND)


def _in_order(answer: Answer, rows: dict[tuple[Line, Panel], Row], panel: Panel) -> list[Line]:
    """Bottom to top: without a value in the first panel, then from the worst to the best."""

    def place(line: Line) -> tuple[bool, float]:
        row = rows.get((line, panel))
        value = 0.0 if row is None or not row.samples else _median(row)
        return row is not None and bool(row.samples), -value if answer.better == "lower" else value

    return sorted(dict.fromkeys(line for line, _ in rows), key=place)


def _panel(axes: Axes, answer: Answer, panel: Panel, lines: list[Row | None], room: float) -> None:
    rows = [(place, row) for place, row in enumerate(lines) if row is not None and row.samples]
    for place, row in enumerate(lines):
        if row is not None and not row.samples:  # its note says why
            axes.annotate(row.note, (0, place), (6, 0), xycoords=("axes fraction", "data"), **_TEXT, fontstyle="italic")
    least, most = min(_median(row) for _, row in rows), max(max(row.samples) for _, row in rows)
    logarithmic = least > 0 and most / least >= _LOGARITHMIC_FROM
    for place, row in rows:
        look = look_of(row.peer, answer.floor)
        axes.barh(place, _median(row), 0.68, color=look.face, edgecolor="black", linewidth=0.8, hatch=look.hatch)
        spread = [min(row.samples), max(row.samples)]
        axes.plot(spread, [place, place], color="0.5", linewidth=1.4, marker="|", markersize=5)
        text = _value(answer, row)
        axes.annotate(text, (spread[1], place), (6, 0), **_TEXT)
    size, metric = panel
    axes.set_title(metric if size is None else f"{metric}, {size:,.0f} {answer.x}")
    axes.set_xlabel(
        f"{answer.unit}, {answer.better} is better" + (", logarithmic" if logarithmic else ""), fontsize=8.5
    )
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * (most / least * 2) ** room)
    else:
        axes.set_xlim(min(0.0, least), (max(most, 0.0) or 1) * (1 + room))
    plain_ticks(axes, "x")


def _value(answer: Answer, row: Row) -> str:
    ratio = answer.ratio(row)
    text = quantity(_median(row)) + ("" if ratio is None or row.peer == answer.floor else f" ({quantity(ratio, 2)} ×)")
    return text + (f" {row.violations:,} VIOLATIONS" if row.violations else "")


def _median(row: Row) -> float:
    assert row.median is not None, "rows without samples are not drawn"
    return row.median

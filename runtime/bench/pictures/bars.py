"""Bars: a question that is asked at one size. One row per peer, one panel per metric, the best peer on top."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..results import Answer, Row
from .style import WIDTH_IN, is_own, look_of, named, plain_ticks, quantity

_LOGARITHMIC_FROM = 40.0
"""From this ratio of the largest bar to the smallest, the small ones could not be seen any more."""
_COLUMNS = 3
_LEAST_IN, _BAR_IN = 0.95, 0.29

Line = tuple[str, str]
"""Peer and event loop."""


def bars(answer: Answer) -> Figure:
    """The picture of a question. All panels have the same rows, so the peers are named once."""
    rows = {(row.peer, row.backend, row.metric): row for row in answer.rows if row.samples}
    metrics = list(dict.fromkeys(metric for _, _, metric in rows))
    lines = _in_order(answer, rows, metrics)
    columns = min(len(metrics), _COLUMNS)
    height = -(-len(metrics) // columns)
    figure = Figure(figsize=(WIDTH_IN, height * (_LEAST_IN + _BAR_IN * len(lines))), layout="constrained")
    grid = figure.subplots(height, columns, squeeze=False, sharey=True)
    for axes in grid.flat[len(metrics) :]:
        axes.set_visible(False)
    for axes, metric in zip(grid.flat, metrics, strict=False):
        _panel(axes, answer, metric, [rows.get((*line, metric)) for line in lines])
        axes.label_outer()
        axes.tick_params(axis="x", labelbottom=True)
        axes.set_xlabel(axes.get_xlabel(), visible=True)
    for axes in grid[:, 0]:
        axes.set_yticks(range(len(lines)), [named(*line) for line in lines])
        for label, (peer, _) in zip(axes.get_yticklabels(), lines, strict=True):
            label.set_fontweight("bold" if is_own(peer) else "normal")
    return figure


def _in_order(answer: Answer, rows: dict[tuple[str, str, str], Row], metrics: list[str]) -> list[Line]:
    """Bottom to top: without a value of the first metric, then from the worst to the best."""

    def place(line: Line) -> tuple[bool, float]:
        row = rows.get((*line, metrics[0]))
        value = 0.0 if row is None else _median(row)
        return row is not None, -value if answer.better == "lower" else value

    return sorted(dict.fromkeys((peer, backend) for peer, backend, _ in rows), key=place)


def _panel(axes: Axes, answer: Answer, metric: str, lines: list[Row | None]) -> None:
    rows = [(place, row) for place, row in enumerate(lines) if row is not None]
    least, most = min(_median(row) for _, row in rows), max(max(row.samples) for _, row in rows)
    logarithmic = least > 0 and most / least >= _LOGARITHMIC_FROM
    for place, row in rows:
        look = look_of(row.peer, answer.floor)
        axes.barh(place, _median(row), 0.68, color=look.face, edgecolor="black", linewidth=0.8, hatch=look.hatch)
        spread = [min(row.samples), max(row.samples)]
        axes.plot(spread, [place, place], color="0.5", linewidth=1.4, marker="|", markersize=5)
        text = _value(answer, row)
        axes.annotate(text, (spread[1], place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.set_title(metric)
    axes.set_xlabel(
        f"{answer.unit}, {answer.better} is better" + (", logarithmic" if logarithmic else ""), fontsize=8.5
    )
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(least / 2, most * (most / least * 2) ** 0.75)  # the rest is for the numbers
    else:
        axes.set_xlim(0, (most or 1) * 1.75)
    plain_ticks(axes, "x")


def _value(answer: Answer, row: Row) -> str:
    ratio = answer.ratio(row)
    text = quantity(_median(row)) + ("" if ratio is None or row.peer == answer.floor else f" ({ratio:.2g} ×)")
    return text + (f" {row.violations:,} VIOLATIONS" if row.violations else "")


def _median(row: Row) -> float:
    assert row.median is not None, "rows without samples are not drawn"
    return row.median

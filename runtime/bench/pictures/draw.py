"""Which picture a question gets, and its files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Literal

from matplotlib.figure import Figure

from ..results import Answer, Result
from .bars import bars
from .growth import growth
from .style import style
from .timeline import timeline

Kind = Literal["svg", "png"]
_LEAST_SIZES = 3
"""From so many sizes on, a line says more than bars."""


def pictures(result: Result) -> Iterator[tuple[str, Figure]]:
    """The picture of each question that was measured, by the question's name."""
    for name, answer in result.questions.items():
        if any(row.samples for row in answer.rows):
            with style():
                yield name, _picture(answer)


def drawn(figure: Figure, kind: Kind) -> bytes:
    """The bytes of a picture file."""
    sink = io.BytesIO()
    with style():
        # No date and no version: the same figure gives the same bytes.
        figure.savefig(sink, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return sink.getvalue()


def _picture(answer: Answer) -> Figure:
    if answer.played:
        return timeline(answer.title, [*answer.played.items()])
    sizes = {row.x for row in answer.rows if row.samples}
    return bars(answer) if len(sizes) < _LEAST_SIZES else growth(answer)

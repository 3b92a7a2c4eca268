"""How pictures look: black, white and greys only, so that a printed or a dim one says the same.

What a colour would say is said by a filling, a hatch, a marker or a label at the line itself: this project's own peers
are black, the floor is hatched, the legacy model is cross-hatched, all others are light.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from textwrap import fill
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

OWN, LEGACY = "lanes", "legacy"
WIDTH_IN = 9.5
_GREY = "0.45"
_FEW_TICKS = 300.0

_SETTINGS: Any = {
    "axes.edgecolor": _GREY,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "figure.facecolor": "white",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "hatch.linewidth": 0.6,
    "savefig.dpi": 130,
    "svg.hashsalt": "lanes",
}
_WIDEST_TITLE = 80  # characters; more would leave the picture on the right


class Look(NamedTuple):
    """How a peer's bars and lines look."""

    face: str
    hatch: str
    width: float
    style: str


def framed(figure: Figure, title: str, legend: str) -> Figure:
    """The figure with its question above and the meaning of its signs below: it is looked at without the page, too."""
    figure.suptitle(fill(title, _WIDEST_TITLE), x=0.005, ha="left", fontsize=12, fontweight="bold")
    figure.supxlabel(legend, x=0.005, ha="left", fontsize=8)
    return figure


@contextmanager
def style() -> Iterator[None]:
    """The settings of all pictures, for a block."""
    with rc_context(_SETTINGS):
        yield


def is_own(peer: str) -> bool:
    """Whether a peer is this project's."""
    return peer == OWN or peer.startswith(OWN + "-")


def look_of(peer: str, floor: str | None) -> Look:
    """How a peer looks."""
    if is_own(peer):
        return Look("black", "", 2.2 if peer == OWN else 1.3, "-")
    if peer == floor:
        return Look("white", "////", 1.4, (0, (6, 2)))  # type: ignore[arg-type]  # matplotlib takes it
    if peer == LEGACY:
        return Look("white", "xxxx", 1.2, ":")
    return Look("0.85", "", 0.9, "-")


def named(peer: str, backend: str) -> str:
    """What a peer is called in a picture."""
    return peer if backend == "blocking" else f"{peer} · {backend}"


def quantity(value: float, digits: int = 3) -> str:
    """So many digits, with a suffix instead of an exponent."""
    value = float(f"{value:.{digits}g}")
    for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (limit if suffix != 'k' else 1e3):.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def plain_ticks(axes: Axes, which: str) -> None:
    """Numbers instead of powers of ten, on the x or the y axis; also between them, where there are few."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    if (axes.get_xscale() if which == "x" else axes.get_yscale()) == "log":
        least, most = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if most / least < _FEW_TICKS else (1,)))
        axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(lambda value, _: quantity(value))

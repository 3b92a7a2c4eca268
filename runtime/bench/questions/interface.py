"""What a question is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec

from ..peers.interface import Backend, Kind, Peer
from ..stories.journal import Played


class Sample(msgspec.Struct):
    """What one measurement of one cell found."""

    values: dict[str, float]
    """By metric."""
    missing: dict[str, str] = {}
    """Why a metric has no value, as after a lock that is never given back."""
    violations: int = 0
    """Entries while another holder was in."""
    note: str = ""
    played: Played | None = None
    """Of a story: what became of its work."""


class NotMeasured(Exception):
    """A cell has no sample: its peer crashed, hung, or is not there. The message says which."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One peer, on one event loop, at one size."""

    peer: Peer
    backend: Backend
    x: int | None = None


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    full: bool = False

    def pick(self, short: int, full: int) -> int:
        """The size for this run."""
        return full if self.full else short


Ask = Callable[..., Sample]
"""`ask(function, **arguments)`: call a function in the cell's worker process, as `function(peer, **arguments)`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What is measured, of which peers."""

    name: str
    title: str
    unit: str
    kind: Kind
    take: Callable[[Cell, Ask, Scale], Sample]
    """Takes one sample of a cell."""
    better: Literal["lower", "higher"] = "lower"
    floor: str | None = None
    x: str | None = None
    sizes: Callable[[Scale], tuple[int, ...]] | None = None
    """With `x`: the sizes, from small to large."""
    seconds: float
    """How long one round takes, about: the share of the time budget goes by it."""
    rounds: int = 5
    longest_cell_s: float = 60.0
    """A worker that has not answered by then is ended."""
    only_full: bool = False
    """Left out of a run without `--full`, unless it is asked for by name."""

    def cells(self, peers: tuple[Peer, ...], scale: Scale) -> list[Cell]:
        """All cells, the small sizes first."""
        sizes: tuple[int | None, ...] = (None,) if self.sizes is None else self.sizes(scale)
        return [
            Cell(peer, backend, size)
            for size in sizes
            for peer in peers
            if peer.kind == self.kind
            for backend in peer.backends
        ]

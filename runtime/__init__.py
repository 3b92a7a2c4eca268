"""The process: a supervisor that serves sessions, and the command line around it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drain import DrainReport
    from .lag import Quantiles
    from .statistics import AbandonedBody, GroupStatistics, LaneStatistics, Statistics
    from .supervisor import AbandonedBodies, Supervisor

__all__ = [
    "AbandonedBodies",
    "AbandonedBody",
    "DrainReport",
    "GroupStatistics",
    "LaneStatistics",
    "Quantiles",
    "Statistics",
    "Supervisor",
]

_HOMES = {"DrainReport": "drain", "Quantiles": "lag"} | dict.fromkeys(
    ("AbandonedBody", "GroupStatistics", "LaneStatistics", "Statistics"), "statistics"
)


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line lives in this package too, and `--help` must not wait for an event loop.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES.get(name, 'supervisor')}", __name__), name)
    value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

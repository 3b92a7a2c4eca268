"""The process: a supervisor that serves sessions, and the command line around it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drain import DrainReport
    from .process.owner import SessionsOwned
    from .quantiles import Quantiles
    from .services import ServicesStuck
    from .statistics import AbandonedBody, GroupStatistics, LaneStatistics, Statistics
    from .status.socket_path import StatusSocketError
    from .supervisor import Supervisor
    from .watch.limits import Limits
    from .watch.resources import ProcessStatistics
    from .watch.watchdog import Blocked
    from .zombies import AbandonedBodies

__all__ = [
    "AbandonedBodies",
    "AbandonedBody",
    "Blocked",
    "DrainReport",
    "GroupStatistics",
    "LaneStatistics",
    "Limits",
    "ProcessStatistics",
    "Quantiles",
    "ServicesStuck",
    "SessionsOwned",
    "Statistics",
    "StatusSocketError",
    "Supervisor",
]

_HOMES = {
    "AbandonedBodies": "zombies",
    "AbandonedBody": "statistics",
    "Blocked": "watch.watchdog",
    "DrainReport": "drain",
    "GroupStatistics": "statistics",
    "LaneStatistics": "statistics",
    "Limits": "watch.limits",
    "ProcessStatistics": "watch.resources",
    "Quantiles": "quantiles",
    "ServicesStuck": "services",
    "SessionsOwned": "process.owner",
    "Statistics": "statistics",
    "StatusSocketError": "status.socket_path",
    "Supervisor": "supervisor",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line lives in this package too, and `--help` must not wait for an event loop.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    value.__module__ = __name__
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

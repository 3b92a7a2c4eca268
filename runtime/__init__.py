"""The process: a supervisor that serves sessions, and the command line around it."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .drain import DrainReport
    from .everywhere import Everywhere, RunSeen
    from .inbox.accepted import Accepted
    from .inbox.errors import AskClosed, InboxDown, InboxInvalid, OutcomeUnknown
    from .inbox.rows import InboxRow, MessageState
    from .inbox.schedules import Schedule
    from .inbox.settings import Inbox
    from .neighbours import Unreached
    from .postgres.errors import NodeLost, StoreDown
    from .postgres.settings import PostgresStore
    from .posting import Posted
    from .process.owner import SessionsOwned
    from .quantiles import Quantiles
    from .services import ServicesStuck
    from .statistics import (
        AbandonedBody,
        GroupStatistics,
        InboxStatistics,
        LaneStatistics,
        NodeStatistics,
        PoolStatistics,
        Statistics,
    )
    from .status.socket_path import StatusSocketError
    from .streams import MessageEvents
    from .supervisor import Supervisor
    from .watch.limits import Limits
    from .watch.resources import ProcessStatistics
    from .watch.watchdog import Blocked
    from .zombies import AbandonedBodies

__all__ = [
    "AbandonedBodies",
    "AbandonedBody",
    "Accepted",
    "AskClosed",
    "Blocked",
    "DrainReport",
    "Everywhere",
    "GroupStatistics",
    "Inbox",
    "InboxDown",
    "InboxInvalid",
    "InboxRow",
    "InboxStatistics",
    "LaneStatistics",
    "Limits",
    "MessageEvents",
    "MessageState",
    "NodeLost",
    "NodeStatistics",
    "OutcomeUnknown",
    "PoolStatistics",
    "Posted",
    "PostgresStore",
    "ProcessStatistics",
    "Quantiles",
    "RunSeen",
    "Schedule",
    "ServicesStuck",
    "SessionsOwned",
    "Statistics",
    "StatusSocketError",
    "StoreDown",
    "Supervisor",
    "Unreached",
]

_HOMES = {
    "AbandonedBodies": "zombies",
    "AbandonedBody": "statistics",
    "Accepted": "inbox.accepted",
    "AskClosed": "inbox.errors",
    "Blocked": "watch.watchdog",
    "DrainReport": "drain",
    "Everywhere": "everywhere",
    "GroupStatistics": "statistics",
    "Inbox": "inbox.settings",
    "InboxDown": "inbox.errors",
    "InboxInvalid": "inbox.errors",
    "InboxRow": "inbox.rows",
    "InboxStatistics": "statistics",
    "LaneStatistics": "statistics",
    "NodeStatistics": "statistics",
    "Limits": "watch.limits",
    "MessageEvents": "streams",
    "MessageState": "inbox.rows",
    "NodeLost": "postgres.errors",
    "OutcomeUnknown": "inbox.errors",
    "PoolStatistics": "statistics",
    "Posted": "posting",
    "PostgresStore": "postgres.settings",
    "ProcessStatistics": "watch.resources",
    "Quantiles": "quantiles",
    "RunSeen": "everywhere",
    "Schedule": "inbox.schedules",
    "ServicesStuck": "services",
    "SessionsOwned": "process.owner",
    "Statistics": "statistics",
    "StatusSocketError": "status.socket_path",
    "StoreDown": "postgres.errors",
    "Supervisor": "supervisor",
    "Unreached": "neighbours",
}


def __getattr__(name: str) -> Any:
    # Loaded on first use: the command line lives in this package too, and `--help` must not wait for an event loop.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from locks._public import as_public  # noqa: PLC0415 -- as above

    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    as_public(value, __name__)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__

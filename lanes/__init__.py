"""What runs when: lanes, groups, turns and runs. The supervisor in `runtime` puts them to work."""

from .context import RunContext
from .errors import (
    DedupeConflict,
    Draining,
    InvalidLane,
    LaneBusy,
    LaneError,
    LaneFull,
    RunAbandoned,
    RunAbandonedAfterTimeout,
    RunCancelled,
    RunError,
    RunSuperseded,
    RunTimedOut,
    WrongThread,
)
from .events import EventStream
from .history import Parked
from .inbox import Inbox
from .layout import SessionLayout
from .message import Message
from .processes import ProcessFailed, ProcessResult
from .retry import RetrySpec
from .run import Outcome, Run, RunState, current_run
from .session import Session
from .spec import GroupSpec, LaneSpec
from .tally import Totals

__all__ = [
    "DedupeConflict",
    "Draining",
    "EventStream",
    "GroupSpec",
    "Inbox",
    "InvalidLane",
    "LaneBusy",
    "LaneError",
    "LaneFull",
    "LaneSpec",
    "Message",
    "Outcome",
    "Parked",
    "ProcessFailed",
    "ProcessResult",
    "RetrySpec",
    "Run",
    "RunAbandoned",
    "RunAbandonedAfterTimeout",
    "RunCancelled",
    "RunContext",
    "RunError",
    "RunState",
    "RunSuperseded",
    "RunTimedOut",
    "Session",
    "SessionLayout",
    "Totals",
    "WrongThread",
    "current_run",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name

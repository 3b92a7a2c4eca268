"""What runs when: lanes, groups, turns and runs. The supervisor in `runtime` puts them to work."""

from .context import RunContext
from .errors import (
    Draining,
    InvalidLane,
    LaneError,
    LaneFull,
    RunAbandoned,
    RunAbandonedAfterTimeout,
    RunCancelled,
    RunError,
    RunSuperseded,
    RunTimedOut,
)
from .layout import SessionLayout
from .run import Message, Outcome, Run, RunState, current_run
from .session import Session
from .spec import GroupSpec, LaneSpec

__all__ = [
    "Draining",
    "GroupSpec",
    "InvalidLane",
    "LaneError",
    "LaneFull",
    "LaneSpec",
    "Message",
    "Outcome",
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
    "current_run",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name

"""What runs when: lanes, groups, turns and runs. The supervisor in `runtime` puts them to work."""

from locks._public import as_public

from .asking import Answer, Question, WaitsForAnswer
from .body.context import RunContext
from .body.grant import PoolGrant
from .body.inbox import Inbox
from .body.processes import ProcessFailed, ProcessResult
from .body.session import Session
from .core.history import Parked
from .errors import (
    DedupeConflict,
    Draining,
    InvalidLane,
    LaneBusy,
    LaneError,
    LaneFull,
    WrongThread,
)
from .events import EventStream
from .layout import SessionLayout
from .message import Message
from .pool_spec import PoolSpec
from .queues.totals import Totals
from .retry import RetrySpec
from .run import Outcome, Run, RunState, current_run
from .run_errors import RunAbandoned, RunAbandonedAfterTimeout, RunCancelled, RunError, RunSuperseded, RunTimedOut
from .spec import GroupSpec, LaneSpec

__all__ = [
    "Answer",
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
    "PoolGrant",
    "PoolSpec",
    "ProcessFailed",
    "ProcessResult",
    "Question",
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
    "WaitsForAnswer",
    "WrongThread",
    "current_run",
]

for _name in __all__:
    as_public(globals()[_name], __name__)
del _name, as_public

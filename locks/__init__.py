"""Turn and write leases on session files, fair within and between processes, and transcripts.

Usable alone: `LockRegistry().lease(path)`.
"""

from ._public import as_public
from .engines.interface import LeaseEngine, ProcessLock, Right, Unordered
from .errors import (
    DeadlockError,
    InvalidSession,
    LeaseExpired,
    LeaseLost,
    LeaseTimeout,
    LockError,
    Revoked,
    RunEnded,
    Superseded,
    TranscriptError,
)
from .holder import Holder
from .lease import Lease
from .registry import LockRegistry
from .rights.fence import Fence
from .statistics import HeldRight, RegistryStatistics, WaitingClaim
from .transcript.records import BrokenLine, Position, Records

__all__ = [
    "BrokenLine",
    "DeadlockError",
    "Fence",
    "HeldRight",
    "Holder",
    "InvalidSession",
    "Lease",
    "LeaseEngine",
    "LeaseExpired",
    "LeaseLost",
    "LeaseTimeout",
    "LockError",
    "LockRegistry",
    "Position",
    "ProcessLock",
    "Records",
    "RegistryStatistics",
    "Revoked",
    "Right",
    "RunEnded",
    "Superseded",
    "TranscriptError",
    "Unordered",
    "WaitingClaim",
]

for _name in __all__:
    as_public(globals()[_name], __name__)
del _name, as_public

"""The schedulers' face: what a scheduler of runs needs of this package besides what users need."""

from .paths import in_full
from .rights.arbiter import Arbiter
from .rights.claim import ClaimState
from .rights.deadlock import AnyOf, WaitSource, name_of
from .rights.fence import current_fence
from .rights.open_file import FileClaim
from .transcript import HEADER_KEY, encode_all, encode_header

__all__ = [
    "HEADER_KEY",
    "AnyOf",
    "Arbiter",
    "ClaimState",
    "FileClaim",
    "WaitSource",
    "current_fence",
    "encode_all",
    "encode_header",
    "in_full",
    "name_of",
]

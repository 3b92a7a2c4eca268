"""A session's transcript: one JSON object per line, appended whole or not at all, read as a whole prefix."""

from .appending import append
from .encoding import encode, encode_all, encode_header
from .header import HEADER_KEY
from .lines import DEEPEST, LONGEST_LINE, MOST_DIGITS, NoObject, NoRecord, decode
from .reading import Batches, read, read_short, stream
from .records import BrokenLine, OnError, Position, Records

__all__ = [
    "DEEPEST",
    "HEADER_KEY",
    "LONGEST_LINE",
    "MOST_DIGITS",
    "Batches",
    "BrokenLine",
    "NoObject",
    "NoRecord",
    "OnError",
    "Position",
    "Records",
    "append",
    "decode",
    "encode",
    "encode_all",
    "encode_header",
    "read",
    "read_short",
    "stream",
]

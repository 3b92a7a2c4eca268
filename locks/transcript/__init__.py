"""A session's transcript: one JSON object per line, appended whole or not at all, read as a whole prefix."""

from .appending import append
from .reading import Batches, read, read_short, stream
from .records import HEADER_KEY, BrokenLine, OnError, Position, Records, encode, encode_all

__all__ = [
    "HEADER_KEY",
    "Batches",
    "BrokenLine",
    "OnError",
    "Position",
    "Records",
    "append",
    "encode",
    "encode_all",
    "read",
    "read_short",
    "stream",
]

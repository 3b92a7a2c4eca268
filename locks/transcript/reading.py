"""Reading a transcript while others write: a whole prefix of its records, without any lock."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from .. import _os
from ..entry import cannot
from ..errors import TranscriptError
from .records import HEADER_KEY, BrokenLine, OnError, Position, Records, decoder


def read(path: str, *, last: int | None = None, on_error: OnError = "skip") -> Records:
    """Read the records of a transcript, without any lock: a whole prefix, never a torn line.

    Args:
        path: the file. A missing one reads as empty.
        last: only the last so many records.
        on_error: what to do about a line that is no JSON object.

    Raises:
        TranscriptError: it cannot be read, or with `on_error="raise"` has a broken line (its number is named).
    """
    if last is not None and last < 0:
        raise ValueError(f"last: {last} is negative; allowed: None or 0 and more")
    if on_error not in ("skip", "raise"):
        raise ValueError(f"on_error: {on_error!r} is unknown; allowed: 'skip', 'raise'")
    try:
        fd = _os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return Records()
    except OSError as error:
        raise cannot("read", path, error) from error
    try:
        found = _os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise TranscriptError(f"{path} is no regular file: a session needs one of its own", path=path)
        data = _read_all(fd, found.st_size)
    except OSError as error:
        raise cannot("read", path, error) from error
    finally:
        _os.close(fd)
    whole = data[: data.rfind(b"\n") + 1]
    records = _parse(whole, path, last, on_error)
    records.position = Position(len(whole), (found.st_dev, found.st_ino))
    return records


def _read_all(fd: int, size: int) -> bytes:
    blocks: list[bytes] = []
    offset = 0
    while offset < size:
        block = _os.pread(fd, min(size - offset, 1 << 24), offset)
        if not block:
            break  # it became shorter meanwhile
        blocks.append(block)
        offset += len(block)
    return b"".join(blocks)


def _parse(data: bytes, path: str, last: int | None, on_error: OnError) -> Records:
    lines = data.split(b"\n")[:-1]
    found: list[dict[str, Any]] = []
    broken: list[BrokenLine] = []
    for number, line in _numbered(lines, backwards=last is not None):
        if last is not None and len(found) >= last:
            break
        try:
            record = decoder.decode(line)
            if not isinstance(record, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as error:
            if on_error == "raise":
                raise TranscriptError(f"{path}, line {number}: {error}", path=path) from error
            broken.append(BrokenLine(number, str(error)))
            continue
        if not (number == 1 and HEADER_KEY in record):
            found.append(record)
    if last is not None:
        found.reverse()
        broken.reverse()
    records = Records(found)
    records.skipped = tuple(broken)
    return records


def _numbered(lines: list[bytes], *, backwards: bool) -> Iterable[tuple[int, bytes]]:
    if not backwards:
        return enumerate(lines, 1)
    return _backwards(lines)


def _backwards(lines: list[bytes]) -> Iterator[tuple[int, bytes]]:
    for index in range(len(lines) - 1, -1, -1):
        yield index + 1, lines[index]

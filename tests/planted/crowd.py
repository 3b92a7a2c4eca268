"""Defects for `tests.children.crowd`: each makes several processes on the same sessions go wrong in another way.

A defect leaves a file `DIRECTORY/reached` when it is reached first: one that never is shows nothing. It may be reached
in any of the workers, and counts nothing: they are killed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lanes.core.intake import Intake
from lanes.spec import CONTROL
from locks import Fence, _os
from locks.doctor import mending
from locks.engines.kernel import KernelLock
from locks.lowlevel import FileClaim
from locks.transcript import appending, replacing, store
from locks.transcript.records import Position
from locks.transcript.store import FileStore
from tests.planted.locks import plant

Reached = Callable[[], None]
SEEN_AS: dict[str, str] = {}
"""The first word of a violation that each defect must lead to, among others."""
DEFECTS: dict[str, Callable[[Path], None]] = {}


def defect(seen_as: str) -> Callable[[Callable[[Reached], None]], Callable[[Reached], None]]:
    """Enter a defect under the name of the function that plants it."""

    def enter(plants: Callable[[Reached], None]) -> Callable[[Reached], None]:
        def planted(directory: Path) -> None:
            plants((directory / "reached").touch)

        DEFECTS[plants.__name__], SEEN_AS[plants.__name__] = planted, seen_as
        return plants

    return enter


@defect("lost")
def tail_not_sealed(reached: Reached) -> None:
    """Appends go behind a torn tail."""

    def leave(entry: Any, fd: int, size: int) -> int:
        if _os.pread(fd, 1, size - 1) != b"\n":
            reached()
        return size

    plant(appending, "seal", leave)


@defect("lost")
def later_records_dropped(reached: Reached) -> None:
    """A compaction keeps nothing of what came after the position."""
    keep_from = replacing._keep_from

    def keep_nothing(entry: Any, path: str, fd: int, size: int, *args: Any) -> int:
        if keep_from(entry, path, fd, size, *args) < size:
            reached()
        return size

    plant(replacing, "_keep_from", keep_nothing)


@defect("doubled")
def stale_tail_copied(reached: Reached) -> None:
    """A compaction keeps the last record of what was summarised."""
    keep_from = replacing._keep_from

    def keep_more(entry: Any, path: str, fd: int, size: int, *args: Any) -> int:
        end = keep_from(entry, path, fd, size, *args)
        start = _os.pread(fd, end, 0).rfind(b"\n", 0, max(0, end - 1)) + 1
        reached()
        return start

    plant(replacing, "_keep_from", keep_more)


@defect("overlapping")
def lock_byte_not_taken(reached: Reached) -> None:
    """A process believes to have a right without asking the kernel."""

    def believe(self: KernelLock) -> bool:
        reached()
        return True

    plant(KernelLock, "try_lock", believe)


@defect("late")
def fence_not_checked(reached: Reached) -> None:
    """A run that is over may write."""

    def check(self: Fence, path: str) -> None:
        if self._closed is not None:
            reached()

    plant(Fence, "check", check)
    plant(Fence, "closed", property(lambda self: False))
    plant(FileClaim, "check", lambda self, path: None)


@defect("overlapping")
def reset_waits_for_nobody(reached: Reached) -> None:
    """A reset puts the file away while another process conducts or writes."""
    request = Intake.checked

    def request_without_turn(self: Intake, lane: str, *args: Any, **options: Any) -> Any:
        if lane == CONTROL:
            options["turn"] = False
        return request(self, lane, *args, **options)

    async def set_aside(self: FileStore, path: str, to: str | None, **options: Any) -> bool:
        reached()
        if not os.path.exists(path):  # noqa: ASYNC240 -- as the real one looks
            return False
        if to is None:
            _os.unlink(path)
        else:
            _os.rename(path, to)
        return True

    plant(Intake, "checked", request_without_turn)
    plant(FileStore, "set_aside", set_aside)


@defect("blind")
def doctor_removes_any_lock(reached: Reached) -> None:
    """`lanes doctor --fix` takes every lock file for stale."""
    mend = mending.mend

    def remove(path: str) -> Any:
        if os.path.exists(f"{path}.lock"):
            reached()
            _os.unlink(f"{path}.lock")
        return mend(path)

    _plant_mend(remove)


@defect("lost")
def doctor_cuts_a_record(reached: Reached) -> None:
    """`lanes doctor --fix` takes the last record for torn."""

    def cut(entry: Any, mended: Any) -> None:
        fd = entry.descriptor()
        size = _os.fstat(fd).st_size
        if size:
            reached()
            _os.ftruncate(fd, _os.pread(fd, size, 0).rfind(b"\n", 0, size - 1) + 1)

    plant(mending, "_mend_tail", cut)


@defect("lost")
def acknowledged_before_the_write(reached: Reached) -> None:
    """An append returns while its line is still to be written, with the next one."""
    append = appending.append
    held: dict[Any, bytes] = {}

    def hold_back(entry: Any, path: str, data: bytes, header: bytes | None = None) -> Position:
        key = entry.file_id
        data = held.pop(key, b"") + data
        if len(data) % 5:
            return append(entry, path, data, header)
        reached()
        held[key] = data
        return Position.behind(data, _os.fstat(entry.descriptor()).st_size + len(data), key)

    plant(store, "append", hold_back)


@defect("doubled")
def written_twice(reached: Reached) -> None:
    """A short write is tried again from its beginning."""
    write = appending._write_whole

    def write_again(entry: Any, fd: int, path: str, data: bytes, size: int) -> None:
        write(entry, fd, path, data, size)
        if len(data) % 7 == 0 and data.startswith(b'{"w"'):
            reached()
            write(entry, fd, path, data, size + len(data))

    plant(appending, "_write_whole", write_again)


def _plant_mend(mend: Callable[[str], Any]) -> None:
    from tests.children import crowd_work

    plant(crowd_work, "mend", mend)

"""Exclusion inside one process, for `engine="none"`: a table that all registries of the process share.

Without it, two registries of one process would both hold: each knows its own holders only. There is no queue among
them, and waiting is polling, as with `filelock`; within a registry order of arrival holds as ever. As long as there has
been no second registry, nothing is entered into the table: `several` says whether.
"""

from __future__ import annotations

import os

from .._os import FileId
from .interface import Right, Unordered

several = False
"""Whether two registries have lived at one time, so that the table counts from then on."""
_held: dict[tuple[FileId, Right], InsideLock] = {}


class InsideLock(Unordered):
    """One right of one file, among the registries of this process."""

    __slots__ = ("_key",)

    def __init__(self, file_id: FileId, right: Right) -> None:
        self._key = (file_id, right)

    def try_lock(self) -> bool:
        """Take the right unless another registry has it."""
        return _held.setdefault(self._key, self) is self  # one step: registries may serve loops of several threads

    def unlock(self) -> None:
        """Give the right back."""
        if _held.get(self._key) is self:
            del _held[self._key]

    def close(self) -> None:
        """Nothing else is kept."""
        self.unlock()

    def is_free(self) -> bool:
        """Whether no other registry has the right."""
        return _held.get(self._key, self) is self

    def follow(self, fd: int, file_id: FileId) -> InsideLock:
        """The same right of another file, locked."""
        lock = InsideLock(file_id, self._key[1])
        lock.try_lock()
        return lock


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_held.clear)  # what was held is held by the parent

"""Elsewhere than on Linux: the library `filelock`."""

from __future__ import annotations

from .bell import FileId
from .seam import ProcessLock, Right


class FileLockEngine:
    """To be written."""

    name = "filelock"

    def lock(self, path: str, fd: int, file_id: FileId, right: Right) -> ProcessLock:
        """The lock."""
        raise NotImplementedError

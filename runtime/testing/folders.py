"""Directories of sessions for tests, and a copy of what a process that is killed now leaves in one."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from ..inbox.settings import FOLDER, NAME
from ..process.owner import NAME as OWNER

_ENDINGS = (".lock", ".turn", ".flock")
"""Of files that name a process. The next one would find that it is alive: it is this one."""


def temporary() -> tempfile.TemporaryDirectory[str]:
    """A directory for a block; in memory where the system has such a place, for tests need no disk."""
    memory = "/dev/shm"
    folder = memory if os.path.isdir(memory) and os.access(memory, os.W_OK | os.X_OK) else None
    return tempfile.TemporaryDirectory(prefix="lanes-", dir=folder, ignore_cleanup_errors=True)


def copy_of(root: Path, to: Path) -> Path:
    """Copy a directory of sessions, and what its inbox has committed; returns `to`."""
    shutil.copytree(root, to, ignore=_left_out, symlinks=True, dirs_exist_ok=True)
    if (root / FOLDER / NAME).exists():
        copy_inbox(root, to)
    return to


def copy_inbox(root: Path, to: Path) -> None:
    """Copy what the inbox of a directory of sessions has committed into another one."""
    (to / FOLDER).mkdir(parents=True, exist_ok=True)
    kept = Path(FOLDER) / NAME
    with closing(sqlite3.connect(root / kept)) as source, closing(sqlite3.connect(to / kept)) as target:
        source.backup(target)


def _left_out(folder: str, names: Collection[str]) -> set[str]:
    inbox = os.path.basename(folder) == FOLDER
    return {name for name in names if name == OWNER or name.endswith(_ENDINGS) or (inbox and name.startswith(NAME))}

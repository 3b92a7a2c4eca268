"""How a supervisor is given an inbox."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from datetime import timedelta
from typing import Literal, get_args

from lanes import InvalidLane
from lanes.checks import choice, shown

from .schedules import Schedule

Durability = Literal["process", "sync"]
FOLDER, NAME = ".lanes", "inbox.db"


@dataclass(frozen=True, slots=True)
class Inbox:
    """Where accepted messages are kept, and how.

    Args:
        path: the SQLite file; by default `.lanes/inbox.db` in the directory of the sessions. On a local disk: SQLite
            needs one, as the transcripts do.
        durability: `"process"`: what was accepted survives the end of the process, however it ends; `"sync"`: and a
            power cut, at the price of a sync of the disk for each commit. Senders that come together share it.
        schedules: messages that come by the clock.
        keep: for how long ended messages, and with them their `dedupe` keys, are kept.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    path: str | os.PathLike[str] | None = None
    _: KW_ONLY
    durability: Durability = "process"
    keep: timedelta = timedelta(days=7)
    schedules: Sequence[Schedule] = ()

    def __post_init__(self) -> None:
        path: object = self.path
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise InvalidLane(f"inbox, path: {shown(path)} names no file; allowed: a str or a PathLike")
        choice("inbox, durability", self.durability, get_args(Durability))
        keep: object = self.keep
        if not isinstance(keep, timedelta) or keep <= timedelta():
            raise InvalidLane(f"inbox, keep: {shown(keep)} is not allowed; allowed: a positive timedelta")
        schedules: object = self.schedules
        if not isinstance(schedules, (list, tuple)) or not all(isinstance(one, Schedule) for one in schedules):
            raise InvalidLane(f"inbox, schedules: {shown(schedules)} is not allowed; allowed: a list of Schedule")

    def file_in(self, root: str) -> str:
        """The file, for sessions in a directory."""
        return os.path.join(root, FOLDER, NAME) if self.path is None else os.path.abspath(os.fspath(self.path))

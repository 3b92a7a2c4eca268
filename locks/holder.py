"""The name of whatever holds a right: for people, errors and status displays."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from .checks import identity_or_none, text_or_none


@dataclass(frozen=True, slots=True)
class Holder:
    """The holder of a right, in words an operator knows.

    Raises:
        ValueError: a field cannot be written down as what it is.
    """

    lane: str | None = None
    run_id: int | str | None = None
    """A number, or whatever text the host calls its runs by."""
    pid: int = field(default_factory=os.getpid)
    task: str | None = None
    """The name of the task that asked, when no run did."""

    def __post_init__(self) -> None:
        text_or_none("lane", self.lane)
        identity_or_none("run_id", self.run_id)
        if type(self.pid) is not int:
            raise ValueError(f"pid: {self.pid!r:.80} is no process; allowed: a whole number")
        text_or_none("task", self.task)

    def __str__(self) -> str:
        if self.run_id is not None:
            where = "" if self.lane is None else f" on lane {self.lane}"
            return f"run {self.run_id}{where} (pid {self.pid})"
        return f"process {self.pid}" if self.task is None else f"task {self.task or 'unnamed'} (pid {self.pid})"

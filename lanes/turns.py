"""Whose turn it is in each session, among the runs of this process: in order of arrival, on whichever lane."""

from __future__ import annotations

from collections import OrderedDict

from .execution import Execution


class Turns:
    """A FIFO per session file. The first of each may conduct it, or is on its way to; the others hold nothing.

    Invariant: a file has an entry exactly while an execution that conducts it is queued or running.
    """

    def __init__(self) -> None:
        self._by_file: dict[str, OrderedDict[Execution, None]] = {}

    def __len__(self) -> int:
        return len(self._by_file)

    def join(self, file: str, execution: Execution) -> bool:
        """Queue up for a session; returns whether it is at the front."""
        queue = self._by_file.setdefault(file, OrderedDict())
        queue[execution] = None
        return len(queue) == 1

    def leave(self, file: str, execution: Execution) -> Execution | None:
        """Leave, from wherever in the queue; returns who has come to the front by it."""
        queue = self._by_file[file]
        first = next(iter(queue)) is execution
        del queue[execution]
        if not queue:
            del self._by_file[file]
            return None
        return next(iter(queue)) if first else None

    def front(self, file: str) -> Execution | None:
        """Who conducts a session, or will next."""
        queue = self._by_file.get(file)
        return next(iter(queue)) if queue else None

    def waiting(self) -> dict[str, int]:
        """How many wait behind the front, by session file."""
        return {file: len(queue) - 1 for file, queue in self._by_file.items()}

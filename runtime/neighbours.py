"""The other processes of this user that serve the same directory, asked over their status sockets.

For several processes on one machine without a database. Found are those whose sockets are in the default place
(`status_socket=True`).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread

from lanes import RunState

if TYPE_CHECKING:
    from .status.client import Client
    from .status.protocol import RunRow

_T = TypeVar("_T")
_MOST_ROUNDS = 20
"""A status names some hundred runs; once those have been stopped, the next one names others."""


class Neighbours:
    """The other processes on a directory. On the event loop's thread; they are asked in a worker thread.

    Raises, each call:
        TimeoutError: a process that is there has not answered, since its event loop stands still, say; the others have
            done what was asked.
    """

    def __init__(self, root: str) -> None:
        self._root = os.path.abspath(root)

    async def cancel(self, lane: str | None, session: str | None, reason: str, *, queued: bool) -> int:
        """Ask their runs of a lane, of a session, or all to end; returns how many were asked. A checkpoint."""
        call = partial(_cancel, lane, session, reason or "cancelled", queued)
        return sum(number for _, number in await self._each(call))

    async def runs(self, lane: str | None, session: str | None) -> list[tuple[int, RunRow]]:
        """Their runs, each with the number of its process. A checkpoint."""
        found = await self._each(partial(_rows, lane, session))
        return [(pid, row) for pid, rows in found for row in rows]

    async def _each(self, call: Callable[[Client], _T]) -> list[tuple[int, _T]]:
        return await anyio.to_thread.run_sync(self._ask_each, call, abandon_on_cancel=True)

    def _ask_each(self, call: Callable[[Client], _T]) -> list[tuple[int, _T]]:
        from .status import client as clients  # noqa: PLC0415 -- most programs never ask

        found, silent = list[tuple[int, _T]](), list[str]()
        for one in clients.live():
            if one.sessions != self._root or one.pid is None or one.pid == os.getpid():
                continue
            try:
                with clients.Client(one.path) as client:
                    found.append((one.pid, call(client)))
            except clients.NoProcess:
                continue  # it has ended since
            except clients.NoAnswer as error:
                if _is_there(one.pid):
                    silent.append(f"process {one.pid}: {error}")
        if silent:
            raise TimeoutError(f"not all processes on {self._root} have answered: {'; '.join(silent)}")
        return found


def _cancel(lane: str | None, session: str | None, reason: str, queued: bool, client: Client) -> int:
    from .status.protocol import Stop  # noqa: PLC0415 -- most programs never ask

    asked, known = 0, set[int]()
    for _ in range(_MOST_ROUNDS):
        fresh = [row for row in _rows(lane, session, client) if row.id not in known]
        for row in sorted(fresh, key=attrgetter("id"), reverse=True):  # the latest first, as in this process
            if queued or row.state == RunState.RUNNING:
                stopped = client.ask(Stop(run=row.id, reason=reason)).stopped
                asked += stopped is not None and stopped.asked
        known.update(row.id for row in fresh)
        if not fresh:
            break
    return asked


def _rows(lane: str | None, session: str | None, client: Client) -> list[RunRow]:
    from .status.client import NoAnswer  # noqa: PLC0415 -- as above
    from .status.protocol import Status, text  # noqa: PLC0415 -- as above

    answer = client.ask(Status())
    if answer.status is None:
        raise NoAnswer(answer.error.message if answer.error is not None else "its event loop stands still")
    return [
        row
        for row in answer.status.runs
        if (lane is None or row.lane == text(lane)) and (session is None or row.session == text(session))
    ]


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

"""The processes of this user on this host that have a status socket in the default place."""

from __future__ import annotations

import os
import socket as sockets
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from ..status import client as clients
from ..status import protocol
from ..status.figures import Figures, figures_of, frozen_figures
from ..status.socket_path import END
from ..threads import Threads
from .seen import MOST_SESSIONS, FleetError, FleetSeen, ProcessSeen, SessionSeen

_AT_A_TIME = 16
_LOOK_WITHIN_S = 2.0
_EACH = 100


_Session = tuple[str, str]
"""A directory, and a key."""


class _Looked(NamedTuple):
    """What a process has answered to the question what it does."""

    found: clients.Found
    answer: protocol.Answer | None
    why: str


class OnHost:
    """Those processes. Each is asked on a worker thread of its own, so that a deaf one delays no other.

    Args:
        directory: only those that serve the sessions in this directory, in full; by default all.
        each: how many running and how many waiting runs of each are looked at.
    """

    def __init__(self, directory: str | None = None, *, each: int = _EACH) -> None:
        self.name = f"of this user on {'this host' if directory is None else directory}"
        self._directory, self._each = directory, each
        self._threads = Threads(_AT_A_TIME)
        self._last: dict[str, Figures] = {}

    async def look(self) -> FleetSeen:
        """All processes. A checkpoint.

        Raises:
            FleetError: the default place cannot be trusted.
        """
        looked = await self._threads.run(self._look)
        processes = [self._seen(one) for one in looked]
        self._last = {one.key: one.figures for one in processes if one.figures is not None}
        number = len(_sessions_of(looked))
        return FleetSeen(processes=processes, sessions=number, conducted=number, unowned=0)

    async def pictures(self) -> list[tuple[ProcessSeen, protocol.Picture | None]]:
        """All processes with all that they answer. A checkpoint.

        Raises:
            FleetError: the default place cannot be trusted.
        """
        looked = await self._threads.run(self._look)
        return [(self._seen(one), one.answer.status if one.answer is not None else None) for one in looked]

    async def sessions(self, *, process: str | None = None, at_most: int = MOST_SESSIONS) -> list[SessionSeen]:
        """The sessions that their runs name, the one that has waited longest first. A checkpoint.

        Raises:
            FleetError: the default place cannot be trusted.
        """
        found = _sessions_of(await self._threads.run(self._look)).values()
        chosen = [one for one in found if process is None or one.process == process]
        return sorted(chosen, key=lambda one: -(one.oldest_s or 0.0))[:at_most]

    async def ask(self, key: str, question: protocol.Question, by: str) -> protocol.Answer:  # noqa: ARG002 -- the process logs ours
        """What one process answers. A checkpoint; cancelled, it may have done it.

        Raises:
            FleetError: it has gone, or does not answer in time.
        """
        return await self._threads.run(partial(self._ask, key, question))

    async def aclose(self) -> None:
        """Nothing is held."""

    # On a worker thread

    def _live(self) -> list[clients.Found]:
        try:
            found = clients.live()
        except clients.NoProcess as error:
            raise FleetError(str(error).removesuffix(", or --socket PATH")) from error
        chosen = [one for one in found if self._directory is None or one.sessions in (self._directory, None)]
        return sorted(chosen, key=lambda one: one.pid or 0)

    def _look(self) -> list[_Looked]:
        found = self._live()
        if not found:
            return []
        with ThreadPoolExecutor(min(len(found), _AT_A_TIME), "lanes-fleet") as pool:
            return list(pool.map(self._looked_at, found))

    def _looked_at(self, found: clients.Found) -> _Looked:
        try:
            with clients.Client(found.path, within_s=_LOOK_WITHIN_S) as client:
                return _Looked(found, client.ask(protocol.Status(each=self._each)), "")
        except (clients.NoProcess, clients.NoAnswer) as error:
            return _Looked(found, None, str(error).removeprefix("--socket: ").partition("; allowed: ")[0])

    def _ask(self, key: str, question: protocol.Question) -> protocol.Answer:
        path = next((one.path for one in self._live() if _key_of(one) == key), None)
        if path is None:
            raise FleetError(f"process {key} has gone, or has no status socket in the default place")
        try:
            with clients.Client(path) as client:
                return client.ask(question)
        except (clients.NoProcess, clients.NoAnswer) as error:
            raise FleetError(str(error).removeprefix("--socket: ").partition("; allowed: ")[0]) from error

    # What was seen

    def _seen(self, looked: _Looked) -> ProcessSeen:
        found, answer = looked.found, looked.answer
        picture, frozen = (answer.status, answer.frozen) if answer is not None else (None, None)
        before = self._last.get(_key_of(found))
        why = looked.why or (answer.error.message if answer is not None and answer.error is not None else "")
        figures = before
        if picture is not None:
            figures = figures_of(picture)
        elif frozen is not None:
            figures = frozen_figures(before or _NOTHING, frozen)
        mine = _sessions_of([looked])
        return ProcessSeen(
            key=_key_of(found),
            name=_name_of(found),
            host=sockets.gethostname(),
            pid=found.pid or 0,
            place=found.sessions or "",
            state="alive" if picture is not None else "frozen" if frozen is not None else "silent",
            silent_s=0.0,
            sessions=len(mine),
            open=0 if figures is None else figures.running + figures.queued,
            figures=figures,
            why=why,
        )


_NOTHING = Figures(
    state="unknown",
    generation=0,
    uptime_s=0.0,
    healthy=False,
    problems=[],
    running=0,
    queued=0,
    oldest_wait_s=0.0,
    abandoned=0,
    parked=0,
    lag_p99_s=0.0,
)


def _key_of(found: clients.Found) -> str:
    """Its socket is named after its process."""
    return os.path.basename(found.path).removesuffix(END)


def _name_of(found: clients.Found) -> str:
    return f"process {found.pid}"


def _sessions_of(looked: Iterable[_Looked]) -> dict[_Session, SessionSeen]:
    """The sessions that runs name: by which process each is conducted, and how much waits, over all processes."""
    conducted: dict[_Session, str] = {}
    open_runs: defaultdict[_Session, list[float]] = defaultdict(list)
    for one in looked:
        for run in one.answer.status.runs if one.answer is not None and one.answer.status is not None else ():
            if run.session is None:
                continue
            key = (one.found.sessions or "", run.session)
            open_runs[key].append(run.waited_s + (run.ran_s or 0.0))
            if run.ran_s is not None:
                conducted.setdefault(key, _name_of(one.found))
    return {
        key: SessionSeen(session=key[1], process=conducted.get(key), open=len(ages), oldest_s=max(ages))
        for key, ages in open_runs.items()
    }

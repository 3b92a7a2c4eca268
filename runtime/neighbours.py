"""The other processes of this user that serve the same directory, asked over their status sockets.

For several processes on one machine without a database. Found are those that have a status socket, wherever it is
(`status.links`). One that does not answer is named, and one without a socket as well where it conducts a session that
is concerned: the note beside the session (`<file>.turn`) says so.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lanes import LaneError, RunState
from locks import InvalidSession
from locks.lowlevel import conductor_of

from .threads import Threads

if TYPE_CHECKING:
    from lanes.layout import Layout
    from locks import Holder

    from .status.client import Client, Found
    from .status.protocol import Answer, Question, RunRow

_T = TypeVar("_T")
_MOST_ROUNDS = 20
"""A status names some hundred runs; once those have been stopped, the next one names others."""
_AT_A_TIME = 8
ANSWERS_WITHIN_S = 8.0
"""Longer than a server waits for a loop that is frozen."""
_NOTE = ".turn"
UNSEEN = "has no status socket"


class Unreached(LaneError, TimeoutError):
    """Other processes on the directory may have something of it, and were not reached; the message names them.

    Those that were reached have done what was asked.
    """

    retryable = True
    processes: tuple[str, ...]
    """Each of them, in words."""
    asked: int
    """How many runs were asked to end, where that was the call."""


class Conducting(NamedTuple):
    """A turn that a process holds which was not reached."""

    holder: Holder
    held_s: float
    session: str


class Asked(NamedTuple):
    """What those have answered that were reached, and which were not."""

    answers: list[tuple[int, Any]]
    """Each with the number of the process."""
    silent: list[str]
    """Those that do not answer, in words."""
    unseen: list[Conducting]
    """What processes conduct that have no socket."""

    def unreached(self, root: str, asked: int = 0) -> Unreached | None:
        """The error that names those that were not reached, if there are any."""
        names = [*self.silent, *(f"{one.holder}, which {UNSEEN}" for one in self.unseen)]
        return _unreached(root, names, asked) if names else None


class Neighbours:
    """The other processes on a directory. On the event loop's thread; they are asked in worker threads.

    A process that does not answer within 8 seconds counts as silent.
    """

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self.root = os.path.abspath(os.fspath(layout.root))
        self._threads = Threads(_AT_A_TIME)

    async def cancel(self, lane: str | None, session: str | None, reason: str, *, queued: bool) -> Asked:
        """Ask their runs of a lane, of a session, or all to end. A checkpoint."""
        call = partial(_cancel, lane, session, reason or "cancelled", queued)
        return await self._threads.run(partial(self._ask_each, call, lane, self._noted(session)))

    async def runs(self, lane: str | None, session: str | None) -> Asked:
        """Their runs. A checkpoint."""
        call = partial(_rows, lane, session)
        return await self._threads.run(partial(self._ask_each, call, lane, self._noted(session)))

    async def end(self, session: str) -> Asked:
        """End and bar their runs of a session. A checkpoint."""
        return await self._threads.run(partial(self._ask_each, partial(_end, session), None, self._noted(session)))

    async def conductor(self, session: str) -> Found | None:
        """The process that conducts a session; `None` when that is this one, or none. A checkpoint.

        Raises:
            Unreached: it is one that has no status socket, or may be one that does not answer.
        """
        return await self._threads.run(partial(self._conductor, session, self._noted(session)))

    def _noted(self, session: str | None) -> Iterator[Conducting]:
        """The sessions whose notes name a conductor, or that one. The notes are read as the iterator is asked."""
        if session is None:
            return self._conducting(self._all_files(), None)
        try:  # here, because the layout may call the user's `path`, which belongs on the event loop's thread
            files = [self._layout.file_of(session)]
        except (InvalidSession, OSError):
            files = []
        return self._conducting(files, session)

    async def ask(self, found: Found, question: Question) -> Answer:
        """What one of them answers. A checkpoint; cancelled, it may have done it.

        Raises:
            Unreached: it has gone, or does not answer; it may have done it.
        """
        return await self._threads.run(partial(self._ask, found, question))

    # On a worker thread

    def _found(self) -> list[Found]:
        from .status import client as clients  # noqa: PLC0415 -- most programs never ask

        return [one for one in clients.beside(self.root) if one.pid != os.getpid()]

    def _ask_each(self, call: Callable[[Client], _T], lane: str | None, noted: Iterator[Conducting]) -> Asked:
        found = self._found()
        answers, silent = list[tuple[int, _T]](), list[str]()
        for one, answer in _in_parallel(partial(_answer_of, call), found):
            if isinstance(answer, Exception):
                silent += [f"process {one.pid}: {answer}"] * _is_there(one.pid)
            elif one.pid is not None:
                answers.append((one.pid, answer[0]))
        known = {os.getpid(), *(one.pid for one in found)}
        noted = (one for one in noted if lane in (None, one.holder.lane))
        unseen = [one for one in noted if one.holder.pid not in known]
        return Asked(answers, silent, unseen)

    def _conducting(self, files: Iterable[str], session: str | None) -> Iterator[Conducting]:
        with contextlib.suppress(OSError):
            for path in files:
                if (found := conductor_of(path)) is not None:
                    yield Conducting(found.holder, found.held_s, session or os.path.basename(path))

    def _all_files(self) -> Iterator[str]:
        directories: Iterable[tuple[str, Any, list[str]]] = os.walk(self.root)
        if self._layout.is_own:  # then all files are in the root itself
            directories = [(self.root, None, os.listdir(self.root))]
        names = (os.path.join(place, name) for place, _, names in directories for name in names)
        yield from (name.removesuffix(_NOTE) for name in names if name.endswith(_NOTE))

    def _conductor(self, session: str, notes: Iterator[Conducting]) -> Found | None:
        found = self._found()
        noted = next(notes, None)
        if noted is not None:
            if noted.holder.pid == os.getpid():
                return None
            named = next((one for one in found if one.pid == noted.holder.pid), None)
            if named is None:
                raise _unreached(self.root, [f"{noted.holder}, which {UNSEEN}"])
            return named
        silent = list[str]()
        for one, answer in _in_parallel(partial(_answer_of, partial(_conducts, session)), found):
            if isinstance(answer, Exception):
                silent += [f"process {one.pid}: {answer}"] * _is_there(one.pid)
            elif answer[0]:
                return one
        if silent:
            raise _unreached(self.root, silent)
        return None

    def _ask(self, found: Found, question: Question) -> Answer:
        answer = _answer_of(partial(_asked, question), found)
        if isinstance(answer, Exception):
            raise _unreached(self.root, [f"process {found.pid}: {answer}"])
        return answer[0]


def _unreached(root: str, names: list[str], asked: int = 0) -> Unreached:
    message = f"not all processes on {root} have answered: {'; '.join(names)}"
    return Unreached(message, processes=tuple(names), asked=asked)


def _in_parallel(call: Callable[[Found], _T], found: list[Found]) -> Iterator[tuple[Found, _T]]:
    """A deaf process is to delay no other."""
    if len(found) < 2:
        return zip(found, map(call, found), strict=True)
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415 -- it brings `logging` along

    with ThreadPoolExecutor(min(_AT_A_TIME, len(found)), "lanes-neighbours") as pool:
        return zip(found, list(pool.map(call, found)), strict=True)


def _answer_of(call: Callable[[Client], _T], found: Found) -> tuple[_T] | Exception:
    from .status import client as clients  # noqa: PLC0415 -- most programs never ask

    try:
        with clients.Client(found.path, within_s=ANSWERS_WITHIN_S) as client:
            if found.pid is not None and client.pid not in (None, found.pid):
                # Another one has taken its place since, at the same path: it counts its runs from 1 again.
                return clients.NoAnswer(f"it has gone, and process {client.pid} has taken its socket's place")
            return (call(client),)
    except (clients.NoProcess, clients.NoAnswer) as error:
        return error


def _asked(question: Question, client: Client) -> Answer:
    from .status.client import NoAnswer  # noqa: PLC0415 -- as above

    answer = client.ask(question)
    if answer.frozen is not None:
        raise NoAnswer("its event loop stands still")
    return answer


def _cancel(lane: str | None, session: str | None, reason: str, queued: bool, client: Client) -> int:
    from .status.protocol import Stop  # noqa: PLC0415 -- as above

    asked, known = 0, set[int]()
    for _ in range(_MOST_ROUNDS):
        fresh = [row for row in _rows(lane, session, client) if row.id not in known]
        for row in sorted(fresh, key=attrgetter("id"), reverse=True):  # the latest first, as in this process
            if queued or row.state == RunState.RUNNING:
                stopped = _asked(Stop(run=row.id, reason=reason), client).stopped
                asked += stopped is not None and stopped.asked
        known.update(row.id for row in fresh)
        if not fresh:
            break
    return asked


def _rows(lane: str | None, session: str | None, client: Client) -> list[RunRow]:
    from .status.protocol import LONGEST_KEY, Status, text  # noqa: PLC0415 -- as above

    status = _no_error(_asked(Status(), client)).status
    return [
        row
        for row in (status.runs if status is not None else ())
        if (lane is None or row.lane == text(lane)) and (session is None or row.session == text(session, LONGEST_KEY))
    ]


def _end(session: str, client: Client) -> None:
    from .status.protocol import End  # noqa: PLC0415 -- as above

    _no_error(_asked(End(key=session), client))


def _conducts(session: str, client: Client) -> bool:
    """Whether a run of the process that is asked has the turn of a session."""
    from .status.protocol import Session  # noqa: PLC0415 -- as above

    part = _no_error(_asked(Session(key=session), client)).session
    return part is not None and bool(part.holder)


def _no_error(answer: Answer) -> Answer:
    from .status.client import NoAnswer  # noqa: PLC0415 -- as above

    if answer.error is not None:
        raise NoAnswer(answer.error.message)
    return answer


def _is_there(pid: int | None) -> bool:
    if pid is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True

"""`reset(key)`: a session starts afresh, and nothing of what went before can reach into it.

Every run that names the session is ended, with that reason. The reset itself is a run on lane `control`: it takes the
turn before every later run, so what is posted meanwhile finds the new session. Every older run that lives on, for
another session, is barred from writing to this one: its late announcements belong to the old one. An older reset of the
same session is not ended: it takes its turn first, and its caller gets the path of the file that it set aside.
"""

from __future__ import annotations

import contextlib
import os
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import anyio

from locks import _effects

from ..body.context import RunContext
from ..run import RunState
from ..spec import CONTROL

if TYPE_CHECKING:
    from ..body.session import Sessions
    from ..run import Run
    from .execution import Execution
    from .request import Request
    from .scheduler import Scheduler


ENDED = "ended by a reset of its session"
PUT_ASIDE = ".reset."
"""What follows the name of a session's file in the name that it gets; then comes the instant."""


def begin(scheduler: Scheduler, key: str, *, archive: bool, barred: anyio.Event | None = None) -> Run:
    """End and bar every run of a session, and queue the run that puts its file away. Its value: where the file is now.

    Args:
        barred: set when the runs of other processes may write to it no more, where there may be any: the run waits.

    Raises:
        Draining, InvalidSession, LaneFull: nothing has changed.
    """
    file = scheduler.board.layout.file_of(key)
    body = partial(_put_away, sessions=scheduler.board.sessions, file=file, archive=archive, barred=barred)
    request = scheduler.intake.checked(CONTROL, body, key)
    request.goes_first = True
    return _begin(scheduler, request, key, file)


@_effects.change
def _begin(scheduler: Scheduler, request: Request, key: str, file: str) -> Run:
    older = list(scheduler.board.live.values())
    run = scheduler.intake.admit(request, "queue")
    _end_and_bar(older, key, file)
    if scheduler.board.journal is not None:
        scheduler.board.journal.reset(key, ENDED)
    return run


@_effects.change
def end_here(scheduler: Scheduler, key: str) -> None:
    """End and bar every run of a session that another process resets."""
    _end_and_bar(list(scheduler.board.live.values()), key, scheduler.board.layout.file_of(key))


def _end_and_bar(older: list[Execution], key: str, file: str) -> None:
    for execution in reversed(older):
        if execution.goes_first and concerns(execution, key, file):
            continue
        execution.bar(file, "the session was reset")
        if concerns(execution, key, file):
            execution.ask_to_end(RunState.CANCELLED, ENDED)


def concerns(execution: Execution, key: str, file: str) -> bool:
    """Whether a run names a session, by this key or by another one of the same file."""
    return execution.run.session == key or execution.session_file == file


async def _put_away(
    ctx: RunContext, *, sessions: Sessions, file: str, archive: bool, barred: anyio.Event | None
) -> str | None:
    """Move the transcript aside, or delete it. Returns its new path; `None` when it was empty, or deleted."""
    if barred is not None:
        await barred.wait()
    to = f"{file}{PUT_ASIDE}{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%fZ}" if archive else None
    moved = await sessions.store.set_aside(file, to, under=ctx._permit.fence)
    return to if moved and to is not None and not _removed_if_empty(to) else None


def _removed_if_empty(archive: str) -> bool:
    """Remove an empty file: taking the turn of a session without records creates its file.

    Judged when the file has lost its name, not before: until then a record could still come.
    """
    with contextlib.suppress(OSError):  # it stays, and the reset is done all the same
        if os.path.getsize(archive) == 0:
            os.unlink(archive)
            return True
    return False

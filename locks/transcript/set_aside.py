"""Taking a session's file away, as a reset does: the next append, of any process, begins a new file.

Only the run that conducts the session may do so, while it has the write right as well. The lock bytes belong to the
inode, so they go with the file. A waiter for one of them, here or in another process, gets it in its turn, finds
that the file has lost its name, and starts over with the new one.

Between the moment the name is gone and the end of that run, another process may create the new file and conduct it,
although the turn of the old one is still held. That is harmless: the two have no byte in common, and the run that set
the file aside writes nothing more that belongs to a turn. (Within the process, the scheduler starts the next turn
afterwards.) So nothing has to be locked in advance, unlike in `compaction`, after which a turn goes on.

On a full disk no lock file can be written. Then the kernel's lock has to do: this is how room is made.

What stands beside the name, `<file>.lock` and `<file>.turn`, belongs to the holder of the file of that name. It is
removed first, while that is us: afterwards it could be a successor's. `<file>.torn` stays.

Nothing is overwritten: an empty file takes the new name, and the session's is renamed over it. Rejected: to look and
then rename, which overwrites what comes in between; to link and then unlink, because a crash in between leaves two
names of one file, which neither this nor a compaction would touch any more. A crash here leaves an empty file, and the
session as it was.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial

from anyio.lowlevel import checkpoint

from .. import _os
from .._loop import current_task
from .._threads import in_thread
from ..engines.interface import Right
from ..errors import LeaseLost, TranscriptError
from ..rights.arbiter import Arbiter
from ..rights.claim import without
from ..rights.fence import Fence
from ..rights.open_file import Entry, FileClaim, FileQueue, cannot, let_go
from .appending import check_in_place
from .replacing import refuse_links
from .syncing import sync_directory

_RESERVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _os.O_BINARY | _os.O_CLOEXEC | _os.O_NOFOLLOW


async def set_aside(arbiter: Arbiter, path: str, to: str | None, under: Fence, *, durable: bool) -> bool:
    """Rename or remove a session's file; see `FileStore.set_aside`."""
    under.check(path)
    await checkpoint()
    if not _is_there(path):
        return False  # and none is created, as asking for the right would
    me = current_task()
    claim = arbiter.new_claim(fence=under)
    claim.makes_room = True
    claim = await arbiter.acquire(path, Right.WRITE, claim, suspend=False, task=me)
    try:
        name = _take_name(arbiter, claim, path, to, under)
    finally:
        claim.tasks = without(claim.tasks, me)
        arbiter.release(claim)
    if durable:
        await _sync_names(path, [name] if to is None else [name, to])
    return True


def _take_name(arbiter: Arbiter, claim: FileClaim, path: str, to: str | None, under: Fence) -> str:
    """Check all that has to hold, and take the file's name away; returns it. Synchronous: nothing comes in between.

    Raises:
        TranscriptError, LeaseLost: the file has it still.
    """
    entry, write = claim.entry, claim.queue
    assert entry is not None and write is not None
    turn = entry.queues.get(Right.TURN)
    conducting = turn.holder if turn is not None else None
    if turn is None or conducting is None or conducting.fence is not under:
        raise LeaseLost(
            f"{under.holder} does not conduct the file that is {path} now: it stays", path=path, holder=under.holder
        )
    if claim.handles > 1:
        # That block would go on if the rename failed, without its lock file. And a thread of it might be writing.
        raise TranscriptError(f"{path} cannot be set aside: {under.holder} holds its lease as well", path=path)
    try:
        with write.mutex, turn.mutex:
            claim.check(path)
            conducting.check(path)
            name = _os.realpath(path)  # of a symlink, the target is what people mean, and all its names lead to
            _check_name(entry, path, name)
            if to is not None:
                _reserve(path, to)
            try:
                _clear_away(claim, write)
                arbiter.grants.notes.release(conducting)
                if to is None:
                    _os.unlink(name)
                else:
                    _os.rename(name, to)
            except BaseException:
                arbiter.grants.notes.watch(conducting)  # the turn goes on; the write lease ends here
                if to is not None:
                    with contextlib.suppress(OSError):  # an empty file stays
                        _os.unlink(to)
                raise
    except OSError as error:
        raise cannot("set aside", path, error) from error
    return name


def _check_name(entry: Entry, *names: str) -> None:
    for name in names:
        check_in_place(entry, name)
    refuse_links(names[0], _os.fstat(entry.descriptor()))


def _reserve(path: str, to: str) -> None:
    """Create an empty file of the new name, so that nothing can be there.

    Raises:
        TranscriptError: something is.
    """
    try:
        let_go(_os.open(to, _RESERVE, 0o600))
    except FileExistsError:
        raise TranscriptError(f"{path} cannot be set aside as {to}: that is there already", path=path) from None


def _clear_away(claim: FileClaim, queue: FileQueue) -> None:
    """Remove what stands beside the name for one right. The mutex is held: the right cannot be taken away meanwhile."""
    if queue.guard is not None and (trouble := queue.guard.leave()) is not None:
        assert claim.entry is not None
        claim.entry.note("sidecar_left", path=claim.path, error=str(trouble))


async def _sync_names(path: str, names: list[str]) -> None:
    """Have the directories forget the one name and know the other after a power cut, too."""
    try:
        for name in {os.path.dirname(name): name for name in names}.values():
            await in_thread(partial(sync_directory, name))
    except OSError as error:
        raise TranscriptError(
            f"{path} is set aside, but that may not survive a power cut: cannot sync its directory: "
            f"{error.strerror or error}",
            path=path,
            errno=error.errno,
        ) from error


def _is_there(path: str) -> bool:
    try:
        _os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise cannot("look at", path, error) from error
    return True

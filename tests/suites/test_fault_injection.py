"""Suite F1: for every operation of `locks`, the n-th call of the operating system fails, for every n, in every way.

The operation then raises a typed error with the path, or it succeeds although something failed. Either way nothing is
held, waited for or open afterwards, both registries go on with the session, and the file holds each acknowledged record
once, the others once and whole or not at all. n rises until the operation succeeds before it makes so many calls, so a
call that is added somewhere is swept, too. The event loops share the error numbers other than EIO: each has every
second call. With `LANES_LONG=1` both have all, and every error also lasts.

A second registry stands for another process: its descriptions of the file exclude ours as a process' would.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope, to_thread
from structlog.testing import capture_logs

from locks import LockError, LockRegistry, network, process
from locks.sidecar import lockfile, turn_note
from locks.sidecar.payload import Terms, encode
from tests import leaks
from tests.faults import Fault, FaultySeam

CODES = [errno.EIO, errno.ENOSPC, errno.EACCES, errno.EINTR, errno.EMFILE, errno.ESTALE]
LONG = bool(os.environ.get("LANES_LONG"))
LASTING = CODES if LONG else [errno.EIO]
FAULTS = [
    *(Fault(code) for code in CODES),
    *(Fault(code, lasting=True) for code in LASTING),
    Fault(short=True),
    Fault(errno.ENOSPC, short=True),
]
MOST_CALLS = 400
"""More than any operation makes: past that, it never ends."""

BEFORE = [1, 2, 3]
"""The records that stand in the file beforehand."""
NEW = [10, 11]
"""The records that replace them."""


class World:
    """A session, two registries, and what their users were told."""

    def __init__(self, directory: Path, seam: FaultySeam, **options: Any) -> None:
        self.path = str(directory / "session.jsonl")
        self.seam = seam
        self.registry = LockRegistry(**options)
        self.other = LockRegistry(**options)
        self.begins = [BEFORE]
        """What the file may begin with."""
        self.acknowledged: list[int] = []
        self.attempts: list[list[int]] = []
        self.errors: list[BaseException] = []
        self.torn = b""
        """What must stand in the file of torn tails."""
        Path(self.path).write_bytes(b"".join(b'{"n":%d}\n' % number for number in BEFORE))

    def remove(self) -> None:
        """Remove the file."""
        os.unlink(self.path)
        self.begins = [[]]

    def tear(self, data: bytes, *, whole: bool) -> None:
        """Give the file a tail without a newline: a record, or the beginning of one, which is moved aside."""
        with open(self.path, "ab") as file:
            file.write(data)
        self.begins = [[*BEFORE, 4]] if whole else [BEFORE]
        self.torn = b"" if whole else data

    async def tries(self, write: Callable[[list[dict[str, int]]], Awaitable[object]], many: int = 1) -> None:
        """Write so many new records, and remember whether that was acknowledged."""
        first = 100 + sum(map(len, self.attempts))
        numbers = list(range(first, first + many))
        self.attempts.append(numbers)
        await write([{"n": number} for number in numbers])
        self.acknowledged += numbers

    async def appends(self, registry: LockRegistry | None = None) -> None:
        """Append one through a momentary lease."""
        using = registry or self.registry
        await self.tries(lambda records: using.append(self.path, records[0]))

    def numbers(self) -> list[int]:
        """The records of the file; fails if a line is none."""
        *lines, tail = Path(self.path).read_bytes().split(b"\n")
        assert tail == b""
        return [json.loads(line)["n"] for line in lines]

    def check_records(self, *, one_call_failed: bool) -> None:
        """Each acknowledged record is there once, each other once and whole or not at all, all in order."""
        found = self.numbers()
        if self.torn:
            assert self.torn in Path(self.path + ".torn").read_bytes(), "the torn tail is lost"
        begin = next((begin for begin in self.begins if found[: len(begin)] == begin), None)
        assert begin is not None, f"the file begins with {found[:4]}, not with one of {self.begins}"
        rest = found[len(begin) :]
        assert len(rest) == len(set(rest)), f"not once: {rest}"
        assert [number for number in rest if number in self.acknowledged] == self.acknowledged, "lost, or not in order"
        assert set(rest) <= {number for attempt in self.attempts for number in attempt}, f"nobody wrote all of {rest}"
        for attempt in self.attempts:
            there = [number for number in attempt if number in rest]
            # With two failures in a row, the second in taking the first ones back, a beginning may stay.
            assert there in ([], attempt) or (not one_call_failed and there == attempt[: len(there)]), there


Operation = Callable[[World], Awaitable[object]]
Around = Callable[[World], contextlib.AbstractAsyncContextManager[object]]


# What is swept


async def lease(world):
    async with world.registry.lease(world.path):
        pass


async def turn(world):
    async with world.registry.turn(world.path):
        pass


async def both_rights(world):
    async with world.registry.turn(world.path), world.registry.lease(world.path):
        pass


async def append(world):
    await world.appends()


async def append_to_a_new_file(world):
    world.remove()
    await world.appends()


async def append_under_lease(world):
    async with world.registry.lease(world.path) as lease:
        await world.tries(lambda records: lease.append(records[0]))
        await world.tries(lambda records: lease.append(records[0]))


async def append_many(world):
    async with world.registry.lease(world.path) as lease:
        await world.tries(lease.append_many, many=4)


async def append_under_turn(world):
    async with world.registry.turn(world.path) as turn:
        await world.tries(lambda records: turn.append(records[0]))


async def append_from_a_thread(world):
    async with world.registry.lease(world.path) as lease:
        await world.tries(lambda records: to_thread.run_sync(lease.append_sync, records[0]))


async def read(world):
    assert [record["n"] for record in await world.registry.read(world.path)] == BEFORE


async def read_last(world):
    assert [record["n"] for record in await world.registry.read(world.path, last=2)] == BEFORE[-2:]


async def stream(world):
    found = []
    async with contextlib.aclosing(world.registry.stream(world.path)) as batches:
        async for batch in batches:
            found += [record["n"] for record in batch]
    assert found == BEFORE


async def replace(world):
    async with world.registry.lease(world.path) as lease:
        await lease.read()
        await replaces(world, lease)


async def replace_through(world):
    read = await world.registry.read(world.path)
    await world.appends()
    async with world.registry.turn(world.path) as turn:
        await replaces(world, turn, through=read.position)


async def replaces(world, lease, **options):
    old, new = BEFORE, NEW
    world.begins = [old, new]
    try:
        await lease.replace([{"n": number} for number in new], **options)
    except LockError as error:
        world.begins = [new] if " is replaced" in str(error) else [old]
        raise
    world.begins = [new]


async def superseding(world):
    async with world.registry.lease(world.path, supersede=True) as lease:
        await world.tries(lambda records: lease.append(records[0]))


async def budgeted(world):
    async with world.registry.lease(world.path, wait_timeout=0.001):
        pass


async def revoke(world):
    world.registry.revoke(world.path, "by hand")
    await append(world)


async def overstaying(world):
    async with world.registry.lease(world.path, max_hold=1.0) as lease:
        with CancelScope(shield=True):
            await anyio.sleep(5)
            await world.tries(lambda records: lease.append(records[0]))


async def through_a_symlink(world):
    alias = world.path + ".alias"
    os.symlink(world.path, alias)
    try:
        async with world.registry.lease(world.path), world.registry.lease(alias) as lease:
            await world.tries(lambda records: lease.append(records[0]))
    finally:
        os.unlink(alias)


# What is there beforehand


@asynccontextmanager
async def nothing(world: World) -> AsyncIterator[None]:
    yield


def held(right: str, *, elsewhere: bool) -> Around:
    """Somebody holds a right for 2 ms more, and writes under it."""

    @asynccontextmanager
    async def around(world: World) -> AsyncIterator[None]:
        registry = world.other if elsewhere else world.registry

        async def holds(*, task_status: anyio.abc.TaskStatus[None]) -> None:
            try:
                async with getattr(registry, right)(world.path) as lease:
                    task_status.started()
                    await anyio.sleep(0.002)
                    await world.tries(lambda records: lease.append(records[0]))
            except LockError as error:
                world.errors.append(error)

        async with anyio.create_task_group() as group:
            await group.start(holds)
            yield

    return around


def tail(data: bytes, *, whole: bool) -> Around:
    """The file has a tail without a newline."""

    @asynccontextmanager
    async def around(world: World) -> AsyncIterator[None]:
        world.tear(data, whole=whole)
        yield

    return around


def leave_lock_file(session: str, *, foreign: bool) -> Callable[[], None]:
    """Make a lock file; returns what removes it."""
    path = Path(lockfile.path_of(session))
    fields = json.loads(encode(Terms("main", 1, 1, 300_000), process.wall()))
    if foreign:
        del fields["instance"]
        fields |= {"pid": os.getppid(), "starttime": process.starttime(os.getppid())}
    path.write_text(json.dumps(fields))
    return path.unlink


def lock_file(*, foreign: bool) -> Around:
    """There is a lock file: of a process of ours that died, or of a foreign gateway that removes it after 120 ms."""

    @asynccontextmanager
    async def around(world: World) -> AsyncIterator[None]:
        remove = leave_lock_file(world.path, foreign=foreign)

        async def goes() -> None:
            await anyio.sleep(0.12)
            remove()

        async with anyio.create_task_group() as group:
            if foreign:
                group.start_soon(goes)
            yield

    return around


PLAIN: list[Operation] = [
    lease,
    turn,
    both_rights,
    append,
    append_to_a_new_file,
    append_under_lease,
    append_many,
    append_under_turn,
    read,
    read_last,
    stream,
    replace,
    replace_through,
    overstaying,
    through_a_symlink,
]
ALONE: list[Operation] = [append, append_to_a_new_file, append_under_lease]
SYNC: list[Operation] = [append, append_to_a_new_file, append_under_lease, append_under_turn, append_from_a_thread]

CASES: dict[str, tuple[Operation, Around, dict[str, Any]]] = {
    **{operation.__name__: (operation, nothing, {}) for operation in PLAIN},
    **{f"{operation.__name__} in one process": (operation, nothing, {"engine": "none"}) for operation in ALONE},
    **{f"{operation.__name__} synced": (operation, nothing, {"durability": "sync"}) for operation in SYNC},
    "lease handed over": (lease, held("lease", elsewhere=False), {}),
    "turn handed over": (turn, held("turn", elsewhere=False), {}),
    "lease of another process": (append_under_lease, held("lease", elsewhere=True), {}),
    "turn of another process": (append_under_turn, held("turn", elsewhere=True), {}),
    "append while another process writes": (append, held("lease", elsewhere=True), {}),
    "replace while another process conducts": (replace_through, held("turn", elsewhere=True), {}),
    "wait budget": (budgeted, held("lease", elsewhere=True), {}),
    "supersede": (superseding, held("lease", elsewhere=False), {}),
    "revoke": (revoke, held("lease", elsewhere=False), {}),
    "append behind a torn tail": (append, tail(b'{"n":4,"text":"to', whole=False), {}),
    "append behind a whole tail": (append, tail(b'{"n":4}', whole=True), {}),
    "lock file of a dead process": (lease, lock_file(foreign=False), {}),
    "lock file of a foreign gateway": (append, lock_file(foreign=True), {}),
}


# The sweep


async def run(
    world: World, operation: Operation, around: Around, fault: Fault, n: int, before: frozenset[tuple[int, str]]
) -> None:
    """The operation with one fault, and everything that must hold afterwards; `before`: the open descriptors."""
    with capture_logs() as logs:
        with anyio.fail_after(600):
            async with around(world):
                with world.seam.fails(fault, n):
                    try:
                        await operation(world)
                    except LockError as error:
                        world.errors.append(error)
                    finally:
                        for registry in (world.registry, world.other):
                            while registry.statistics().sessions:
                                await anyio.sleep(1)  # until those who were there beforehand have gone
    where = f"{fault} at call {n} ({world.seam.fired})"
    for told in world.errors:
        assert getattr(told, "path", "").startswith(world.path), f"{where}: no path in {told!r}"
    assert leaks.descriptors() == before, f"{where}: a descriptor stays open"
    assert not world.seam.distrust_ignored, f"{where}: {world.seam.distrust_ignored}"
    if world.seam.fired == "unlink" and fault.lasting and not world.errors:
        assert logs, f"{where}: a file that stays behind is not reported"
    with anyio.fail_after(60):
        for registry in (world.other, world.registry):
            async with registry.turn(world.path), registry.lease(world.path) as lease:
                await world.tries(lease.append_many)
            now = registry.statistics()
            assert (now.sessions, now.held, now.waiting, now.competing) == (0, 0, 0, 0), f"{where}: {now}"
    assert leaks.descriptors() == before, f"{where}: a descriptor stays open"
    try:
        world.check_records(one_call_failed=not fault.lasting)
    except AssertionError as error:
        error.add_note(where)
        raise


@pytest.fixture
def directory() -> Iterator[Path]:
    """In memory where there is such a place: creating files on a disk takes longer than all the rest."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as made:
        yield Path(made)


@pytest.mark.suite("F1")
@pytest.mark.parametrize("fault", FAULTS, ids=str)
@pytest.mark.parametrize("case", CASES)
async def test_whichever_call_fails_the_error_is_typed_and_the_session_goes_on(
    case, fault, directory, virtual, monkeypatch, anyio_backend_name
):
    operation, around, options = CASES[case]
    process.me()
    seam, before = FaultySeam(monkeypatch), leaks.descriptors()
    fired: Counter[str] = Counter()
    shared = not LONG and fault.code not in (0, errno.EIO)
    first, step = (1 + (anyio_backend_name == "trio"), 2) if shared and not fault.short else (1, 1)
    for n in range(first, MOST_CALLS, step):
        if operation is append_to_a_new_file:
            monkeypatch.setattr(network, "_by_device", {})  # the question is asked once per device
        monkeypatch.setattr(turn_note, "_failed", False)
        for path in directory.iterdir():
            path.unlink()
        world = World(directory, seam, **options)
        await run(world, operation, around, fault, n, before)
        if seam.fired is None:
            break
        fired[seam.fired] += 1
        left = {path.name.removeprefix("session.jsonl") for path in directory.iterdir()}
        assert left <= {"", ".torn", ".new"}  # the next `replace` removes what this one could not
    else:
        pytest.fail(f"it has not ended after {MOST_CALLS} calls")
    assert fired or fault.short, "nothing has ever failed"

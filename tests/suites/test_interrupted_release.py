"""Giving back a right is one unit: an exception at any line of it leaves the right passed on, or to the steward.

A signal handler may raise between any two lines of the main thread. Here a trace function does, at the first line of
`locks` that the path runs, then at the second, and so on, until the path ends without it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import FrameType

import anyio
import pytest
import trio
from anyio import CancelScope, create_task_group
from anyio.abc import TaskGroup

import locks
from locks import LeaseExpired, LockRegistry, Revoked, TranscriptError, _effects
from locks.rights import open_files
from locks.sidecar import guards, lockfile, turn_note
from runtime.testing.virtual import backend_options
from tests.conftest import VIRTUAL

HERE = os.path.dirname(locks.__file__) + os.sep
MAX_HOLD, GRACE = 20.0, 2.0
ELSEWHERE = {
    guards.LockFile.enter.__code__,
    guards.TurnNote.write.__code__,
    lockfile.take.__code__,
    turn_note.write.__code__,
    open_files.OpenFiles.__del__.__code__,
}
"""What makes the lock file of the next holder belongs to taking a right: there a descriptor may be lost. And what the
garbage collector calls, a registry of an earlier scene, does not belong to the path."""
FEWEST, MOST = 20, 2000  # lines that a path has
SOME = 1 if os.environ.get("LANES_LONG") else 20
"""Of a look at several files each 20th line is tried on one event loop, and on the other the lines half-way between
them: all lines on both take minutes (`LANES_LONG=1`)."""


class Alarm(Exception):
    """What a signal handler raises."""


class Interrupt(BaseException):
    """As `KeyboardInterrupt`, but none that a test runner or an event loop takes to heart."""


class At:
    """Raises at the n-th line of `locks` that this thread runs while it is armed."""

    def __init__(self, nth: int, kind: type[BaseException]) -> None:
        self.left, self.kind, self.skip_first = nth, kind, nth > 0
        self.line = self.once_in = ""

    def arm(self, once_in: str = "") -> None:
        """Begin to count, or do so when a function of that name is called."""
        self.once_in = once_in
        sys.settrace(self._call)

    def disarm(self) -> None:
        sys.settrace(None)

    def _call(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE) or self.once_in not in ("", frame.f_code.co_name):
            return None
        self.once_in = ""
        if _is_elsewhere(frame):
            return None
        # Before the first line of `__aexit__` nothing of the path has begun: that line has a test of its own.
        return self._first if frame.f_code.co_name == "__aexit__" and self.skip_first else self._line

    def _first(self, frame, event, arg):
        return self._line

    def _line(self, frame, event, arg):
        if event == "line":
            self.left -= 1
            if self.left == 0:
                sys.settrace(None)
                self.line = f"{os.path.relpath(frame.f_code.co_filename, HERE)}:{frame.f_lineno} {frame.f_code.co_name}"
                raise self.kind
        return self._line


def _is_elsewhere(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code in ELSEWHERE:
            return True
        frame = frame.f_back
    return False


class Scene:
    """What one path has to do with, and what must hold after it."""

    def __init__(self, directory, virtual, at: At, *, sidecar: bool) -> None:
        self.path, self.at, self.virtual = str(directory / "s.jsonl"), at, virtual
        self.ours = LockRegistry(max_hold=MAX_HOLD, grace=GRACE, sidecar=sidecar)
        self.other = LockRegistry(sidecar=sidecar)
        self.got: list[str] = []
        self.files = {"s.jsonl"}
        self.checked = False
        self.beside: TaskGroup
        """Where a path starts tasks that outlive it."""
        self.giving_up: CancelScope
        self.gave_up: anyio.Event

    async def wait_behind(self) -> None:
        """Another task of this registry, which gets the right next."""
        async with self.ours.lease(self.path) as lease:
            self.got.append("behind")
            await lease.append({"by": "behind"})

    async def waits(self, count: int = 1) -> None:
        while self.ours.statistics().waiting < count:
            await anyio.sleep(0.001)

    async def play(self, path: Callable[[Scene], Awaitable[None]]) -> None:
        self.giving_up, self.gave_up = CancelScope(), anyio.Event()
        async with create_task_group() as group:
            self.beside = group
            group.start_soon(self._one, path)

    async def _one(self, path: Callable[[Scene], Awaitable[None]]) -> None:
        try:
            await path(self)
        except (Alarm, Interrupt):
            pass
        finally:
            self.at.disarm()

    async def check(self) -> None:
        started, ours, path = self.virtual.now(), self.ours, self.path
        async with self.other.lease(path, wait_timeout=MAX_HOLD + GRACE + 1) as lease:
            await lease.append({"by": "another registry"})
        assert self.virtual.now() - started <= MAX_HOLD + GRACE + 0.2
        async with ours.lease(path, wait_timeout=1), ours.turn(path, wait_timeout=1):
            pass
        await ours.append(path, {"by": "this registry"})
        for _ in range(10):
            await anyio.lowlevel.checkpoint()
        now = ours.statistics()
        assert (now.sessions, now.held, now.waiting, now.competing) == (0, 0, 0, 0)
        assert not ours.arbiter.grants.steward.held
        assert not ours.arbiter.grants.steward.unfinished
        assert set(os.listdir(os.path.dirname(path))) == self.files
        assert not [one for one in _open_files() if path in one]
        self.checked = True


def _open_files() -> list[str]:
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return found


async def by_return(scene: Scene) -> None:
    async with scene.ours.lease(scene.path):
        scene.at.arm()


async def by_raise(scene: Scene) -> None:
    with suppress(KeyError):
        async with scene.ours.lease(scene.path):
            scene.at.arm()
            raise KeyError


async def by_cancel(scene: Scene) -> None:
    with CancelScope() as scope:
        async with scene.ours.lease(scene.path):
            scope.cancel()
            scene.at.arm()
            await anyio.sleep(1)


async def by_deadline(scene: Scene) -> None:
    with suppress(LeaseExpired):
        async with scene.ours.lease(scene.path, max_hold=0.5):
            try:
                await anyio.sleep(10)
            finally:
                scene.at.arm()


async def by_revoke(scene: Scene) -> None:
    with suppress(Revoked):
        async with scene.ours.lease(scene.path):
            scene.at.arm()
            scene.ours.revoke(scene.path, "wanted")
            await anyio.sleep(1)


async def with_one_behind(scene: Scene) -> None:
    async with scene.ours.lease(scene.path):
        scene.beside.start_soon(scene.wait_behind)
        await scene.waits()
        scene.at.arm()


async def one_of_two_handles(scene: Scene) -> None:
    async with scene.ours.lease(scene.path) as outer:
        with suppress(Alarm, Interrupt):
            async with scene.ours.lease(scene.path):
                scene.at.arm()
        scene.at.disarm()
        assert outer.lost is None
        await outer.append({"by": "outer"})
        async with create_task_group() as group:
            with CancelScope() as scope:
                group.start_soon(_must_wait, scene, scope)
                await anyio.sleep(0.1)
                scope.cancel()
            group.cancel_scope.cancel()


async def _must_wait(scene: Scene, scope: CancelScope) -> None:
    async with scene.other.lease(scene.path):
        raise AssertionError("two holders")


async def of_the_turn(scene: Scene) -> None:
    async with scene.ours.turn(scene.path):
        scene.at.arm()


async def while_the_turn_stays(scene: Scene) -> None:
    """Then nothing closes the descriptor, which would unlock whatever was forgotten."""
    async with scene.ours.turn(scene.path, max_hold=1000):
        with suppress(Alarm, Interrupt):
            async with scene.ours.lease(scene.path):
                scene.at.arm()
        scene.at.disarm()
        async with scene.other.lease(scene.path, wait_timeout=1):
            pass


async def of_an_append(scene: Scene) -> None:
    async with scene.ours.turn(scene.path):
        scene.at.arm(once_in="_give_write_back")
        try:
            await scene.ours.append(scene.path, {"n": 1})
        finally:
            scene.at.disarm()


async def giving_up_behind_a_task(scene: Scene) -> None:
    async with scene.ours.lease(scene.path), create_task_group() as group:
        group.start_soon(_give_up, scene)
        await scene.waits()
        scene.at.arm()
        scene.giving_up.cancel()
        await scene.gave_up.wait()


async def giving_up_behind_another_registry(scene: Scene) -> None:
    async with scene.other.lease(scene.path), create_task_group() as group:
        group.start_soon(_give_up, scene)
        await scene.waits()
        await anyio.sleep(0.05)
        scene.at.arm()
        scene.giving_up.cancel()
        await scene.gave_up.wait()


async def while_one_looks_for_two(scene: Scene) -> None:
    """One of the tasks that wait looks at the files of all: what ends it in the middle must cost others no right."""
    second = scene.path + ".second"
    scene.files |= {os.path.basename(second)}
    async with create_task_group() as group:
        async with scene.other.lease(scene.path), scene.other.lease(second):
            group.start_soon(_take, scene, scene.path)
            await scene.waits()
            group.start_soon(_take, scene, second)
            await scene.waits(2)
            await anyio.sleep(0.05)
        scene.at.arm(once_in="_look")
    scene.at.disarm()
    async with scene.other.lease(second, wait_timeout=1):
        pass


async def _take(scene: Scene, path: str) -> None:
    with suppress(Alarm, Interrupt, TranscriptError):  # a look that fails is the failure of who waits for that file
        async with scene.ours.lease(path):
            pass


async def _give_up(scene: Scene) -> None:
    try:
        with scene.giving_up:
            async with scene.ours.lease(scene.path):
                raise AssertionError("two holders")
    except (Alarm, Interrupt):
        pass
    finally:
        scene.at.disarm()
        scene.gave_up.set()


PATHS = [
    by_return,
    by_raise,
    by_cancel,
    by_deadline,
    by_revoke,
    with_one_behind,
    one_of_two_handles,
    of_the_turn,
    while_the_turn_stays,
    of_an_append,
    giving_up_behind_a_task,
    giving_up_behind_another_registry,
]


@pytest.mark.failure("Y5")
@pytest.mark.parametrize(
    "path, sidecar, kind",
    [(path, True, Alarm) for path in PATHS]
    + [
        (path, False, Interrupt)
        for path in (
            by_return,
            while_the_turn_stays,
            while_one_looks_for_two,
            with_one_behind,
            giving_up_behind_another_registry,
        )
    ],
)
@pytest.mark.parametrize("loop", VIRTUAL)
def test_an_exception_at_any_line_of_giving_back_leaves_the_right_to_others(
    tmp_path, virtual, loop, path, sidecar, kind
):
    scenes: list[Scene] = []
    step = SOME if path is while_one_looks_for_two else 1
    first = 1 + step // 2 * VIRTUAL.index(loop)

    def new_scene() -> Scene:
        directory = tmp_path / str(len(scenes) + 1)
        directory.mkdir()
        scenes.append(Scene(directory, virtual, At(len(scenes) * step + first, kind), sidecar=sidecar))
        return scenes[-1]

    async def go() -> None:
        while not scenes or scenes[-1].at.left <= 0:
            scene = new_scene()
            await scene.play(path)
            await scene.check()

    while not scenes or scenes[-1].at.left <= 0:
        assert len(scenes) < MOST
        ended_by: BaseException | None = None
        try:
            anyio.run(go, backend=loop, backend_options=backend_options(loop))
        except BaseException as error:
            ended_by = error
        scene = scenes[-1]
        scene.at.disarm()
        try:
            if ended_by is not None and (scene.checked or not _only(ended_by)):
                raise ended_by
            if not scene.checked:  # the exception has ended the event loop: another one goes on
                anyio.run(scene.check, backend=loop, backend_options=backend_options(loop))
        except BaseException as error:
            raise AssertionError(f"{len(scenes)}: raised at {scene.at.line}") from error
    _effects.recover()  # the exception may have come in the last step of a change
    assert len(scenes) > FEWEST


def _only(error: BaseException | None) -> bool:
    """Whether an event loop was ended by what was raised, and by nothing else."""
    if isinstance(error, BaseExceptionGroup):
        return all(_only(one) for one in error.exceptions)
    if isinstance(error, trio.TrioInternalError):  # it came in a callback
        return _only(error.__cause__)
    return isinstance(error, (Alarm, Interrupt))


@pytest.mark.failure("Y5")
async def test_an_exception_before_leaving_a_block_has_begun_leaves_the_right_to_the_steward(tmp_path, virtual):
    at = At(1, Alarm)
    at.skip_first = False
    scene = Scene(tmp_path, virtual, at, sidecar=True)

    async def alone() -> None:  # in a task of its own: the scope of the block is left open
        with suppress(Alarm):
            await by_return(scene)
        at.disarm()

    with suppress(RuntimeError, BaseExceptionGroup):
        async with create_task_group() as group:
            group.start_soon(alone)
    assert "__aexit__" in at.line
    assert scene.ours.statistics().held == 1
    await scene.check()

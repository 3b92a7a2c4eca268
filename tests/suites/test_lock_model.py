"""Suite H1: random steps are taken with real registries and with `lock_model`, and nothing may tell them apart.

Three registries in one loop stand for three processes: their descriptions of a file exclude each other as processes do.
A step is an operation and three numbers, which choose among whatever is there at that moment, so every list of steps
means something, and shorter ones still do. After each step, and one tick before and at every instant at which something
is due, both sides are compared: who holds, waits and is over; what each was told; what each registry counts; and every
record of every file.

Two things only the registry knows, within bounds that are checked: the instant at which another process finds a right
free, and the position that stands for a place. Where something else is due before that instant has come, the order of
the two is nobody's promise, and the example ends early.

`LANES_LONG=1` plays 50,000 examples instead of 300.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import CancelScope
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locks import Fence, Lease, LockError, LockRegistry, Position, process
from locks.lowlevel import current_fence
from locks.sidecar import lockfile
from locks.sidecar.payload import Terms, encode
from runtime.testing.virtual import VirtualClock, virtual_time
from tests import leaks
from tests.lock_model import GRACE, MAX_HOLD, TURN, WRITE, Ask, Model, Run

PROCESSES, FILES, BLOCKS = 3, 2, 7
STEPS = 50
EXAMPLES = 25_000 if os.environ.get("LANES_LONG") else 150

TICK = 1e-6
SOON = 0.012
"""Within this, another process has found a right free: it looks every 5 ms at least."""
SOON_AFTER_A_FOREIGN_PROGRAM = 0.06
"""A foreign lock file is looked at every 50 ms."""


class OwnError(Exception):
    """What a block raises."""


class Unpromised(Exception):
    """Two things are due, or free, so close to each other that nobody promises their order."""


class Block:
    """A real task for an ask of the model: it asks, and under the right does what it is told."""

    def __init__(self, ask: Ask, registry: LockRegistry, path: str, fence: Fence | None) -> None:
        self.ask = ask
        self.scope = CancelScope()
        self.lease: Lease | None = None
        self.state = "waiting"
        self.outcome = ""
        self.answer = ""
        self.places: list[tuple[Position | None, int, int]] = []
        """What was read: the position, how many records are before it, and the generation of the file."""
        self._registry = registry
        self._path = path
        self._fence = fence
        self._told = anyio.Event()
        self._command: Callable[[], Awaitable[Any]] | None = None

    async def run(self) -> None:
        """The task."""
        current_fence.set(self._fence)
        outcome = "cancelled"
        with self.scope:
            try:
                if self.ask.records is not None:
                    await self._registry.append(self._path, {"n": self.ask.records[0]})
                else:
                    await self._hold()
                outcome = "left"
            except (LockError, OwnError) as error:
                outcome = "raised" if isinstance(error, OwnError) else type(error).__name__
        self.state, self.outcome = "over", outcome

    def tell(self, command: Callable[[], Awaitable[Any]] | None) -> None:
        """Have the block do something, or leave."""
        self._command = command
        self._told.set()

    async def _hold(self) -> None:
        ask = self.ask
        ask_for = self._registry.turn if ask.right == TURN else self._registry.lease
        lease = ask_for(
            self._path,
            wait_timeout=None if ask.give_up_at == math.inf else ask.give_up_at - ask.arrived,
            max_hold=ask.max_hold,
            idle_timeout=ask.idle,
            supersede=ask.supersedes,
        )
        async with lease as self.lease:
            self.state = "holding"
            with CancelScope(shield=ask.stubborn):
                while True:
                    await self._told.wait()
                    self._told = anyio.Event()
                    if self._command is None:
                        break
                    try:
                        await self._command()
                        self.answer = "ok"
                    except LockError as error:
                        self.answer = type(error).__name__


class Play:
    """One example: the same steps, here and there."""

    def __init__(self, directory: Path, clock: VirtualClock, group: anyio.abc.TaskGroup) -> None:
        self.clock = clock
        clock.busy_limit = (
            200  # rounds in which nobody pauses, for an instant that asyncio's timers reach a moment early
        )
        self.model = Model(FILES)
        self.registries = [
            LockRegistry(max_hold=MAX_HOLD, grace=GRACE, yield_to_foreign=False) for _ in range(PROCESSES)
        ]
        self.directory = directory
        self.paths = [str(directory / f"{number}.jsonl") for number in range(FILES)]
        self.runs = [(Run(number), Fence(lane="main", run_id=number)) for number in range(PROCESSES)]
        """The run of each process that may still ask."""
        self.blocks: list[Block] = []
        self.taken: Counter[str] = Counter()
        """Which steps had something to do."""
        self.group = group
        self.asked = 0
        self.written = 0
        self.may_be_free_until = 0.0
        for path in self.paths:
            Path(path).touch()
        os.symlink(directory, directory / "alias")  # not of a file: its lock file would have another name

    # Steps. Each returns whether there was something to do.

    def nothing(self, *_: int) -> bool:
        return True

    def ask(self, file: int, how: int, time: int) -> bool:
        return self._ask(file, how, time)

    def supersede(self, file: int, how: int, time: int) -> bool:
        file, right, here = file % FILES, how % 2, how // 2 % PROCESSES
        session = self.model.files[file]
        holder = session.holder[right]
        if holder is None or holder.first.process != here or (session.foreign and right == WRITE):
            return False
        return self._ask(file, how, time, supersedes=True)

    def _ask(self, file: int, how: int, time: int, *, supersedes: bool = False) -> bool:
        file, right, here = file % FILES, how % 2, how // 2 % PROCESSES
        if len(self.blocks) >= BLOCKS or self._barred(file):
            return False
        run, fence = self.runs[here] if how // 16 % 3 == 0 else (None, None)
        now, self.asked = self.clock.now(), self.asked + 1
        if supersedes and run is not None:
            holder = self.model.files[file].holder[right]
            if holder is not None and holder.first.run is run:
                return False  # it would share
            if any(claim.first.run is run for claim in self.model.files[file].waiting[right]):
                return False
        ask = Ask(self.asked, here, file, right, now, run=run, supersedes=supersedes)
        # No two instants are alike, so that nothing is due together by chance.
        odd = self.asked * 0.0137
        if time % 3 == 0:
            ask.give_up_at = now + (time % 5) * 0.1 + odd
        ask.max_hold = MAX_HOLD if time % 4 else 0.2 + odd
        ask.idle = 0.15 + odd if time % 7 == 0 else None
        ask.stubborn = time % 5 == 0
        if how // 48 % 4 == 0 and right == WRITE and not supersedes:
            self.written += 1
            ask.records, ask.give_up_at, ask.max_hold, ask.idle, ask.stubborn = (
                [self.written],
                math.inf,
                MAX_HOLD,
                None,
                False,
            )
        path = str(self.directory / "alias" / f"{file}.jsonl") if how // 200 % 3 == 0 else self.paths[file]
        self._start(Block(ask, self.registries[here], path, fence))
        self.model.ask(ask)
        return True

    def _start(self, block: Block) -> None:
        self.blocks.append(block)
        self.group.start_soon(block.run)

    def append(self, which: int, many: int, _: int) -> bool:
        block = self._choose(which, lambda block: block.ask.appending is None)
        if block is None or (block.ask.right == TURN and self._barred(block.ask.file)):
            return False
        assert block.lease is not None
        first, self.written = self.written + 1, self.written + 1 + many % 3
        numbers = list(range(first, self.written + 1))
        records = [{"n": number} for number in numbers]
        lease = block.lease
        ask = block.ask
        self.asked += 1
        new = Ask(self.asked, ask.process, ask.file, WRITE, self.clock.now(), run=ask.run)
        self.model.append(ask, numbers, new)
        block.tell(lambda: lease.append_many(records))
        return True

    def read(self, which: int, last: int, _: int) -> bool:
        block = self._choose(which, lambda block: block.ask.appending is None)
        if block is None:
            return False
        assert block.lease is not None
        session, lease = self.model.files[block.ask.file], block.lease
        expected, generation = list(session.records), session.generation

        async def read() -> None:
            found = await lease.read()
            assert [record["n"] for record in found] == expected
            few = await lease.read(last=last % 4)
            assert [record["n"] for record in few] == expected[len(expected) - min(last % 4, len(expected)) :]
            block.places.append((found.position, len(expected), generation))

        block.ask.answer = "ok"
        block.tell(read)
        return True

    def replace(self, which: int, place: int, _: int) -> bool:
        """Compaction through a place that was read before, which may be one of an earlier file."""
        block = self._choose(which, lambda block: block.ask.right == WRITE and bool(block.places))
        if block is None:
            return False
        session, ask, lease = self.model.files[block.ask.file], block.ask, block.lease
        turn = session.holder[TURN]
        if self._barred(ask.file) or (turn is not None and turn.first.process != ask.process):
            return False
        if any(claim.first.process != ask.process for claim in session.waiting[TURN]):
            return False
        assert lease is not None and ask.claim is not None
        position, count, generation = block.places[place % len(block.places)]
        self.written += 1
        new = self.written
        ask.answer = ask.claim.refusal(self.clock.now())
        if not ask.answer:
            if generation != session.generation:
                ask.answer = "TranscriptError"
            else:
                self.model.replace(ask, [new, *session.records[count:]])
                ask.answer = "ok"
                self._wait_at_most(SOON)  # until the waiters of other processes have found the new file
        block.tell(lambda: lease.replace([{"n": new}], through=position))
        return True

    def progress(self, which: int, *_: int) -> bool:
        block = self._choose(which, lambda block: block.ask.idle is not None)
        if block is None:
            return False
        assert block.lease is not None
        block.lease.progress()
        self.model.progress(block.ask)
        return True

    def leave(self, which: int, *_: int) -> bool:
        block = self._choose(which, lambda block: block.ask.appending is None)
        if block is None:
            return False
        self.model.leave(block.ask)
        block.tell(None)
        return True

    def raise_inside(self, which: int, *_: int) -> bool:
        block = self._choose(which, lambda block: block.ask.appending is None)
        if block is None:
            return False

        async def fail() -> None:
            raise OwnError

        self.model.leave(block.ask, "raised")
        block.tell(fail)
        return True

    def cancel(self, which: int, *_: int) -> bool:
        chosen = [block for block in self.blocks if block.ask.state == "waiting" or not block.ask.stubborn]
        if not chosen:
            return False
        block = chosen[which % len(chosen)]
        block.scope.cancel()
        self.model.leave(block.ask, "cancelled")
        return True

    def revoke(self, file: int, where: int, _: int) -> bool:
        file, where = file % FILES, where % PROCESSES
        if self._barred(file):
            return False  # what the name leads to now is nobody's
        self.model.revoke(where, file)
        self.registries[where].revoke(self.paths[file], "by hand")
        return True

    def end_run(self, which: int, *_: int) -> bool:
        run, fence = self.runs[which % PROCESSES]
        self.model.end(run)
        self.registries[which % PROCESSES].arbiter.end(fence)
        self.runs[which % PROCESSES] = self._new_run()
        return True

    def end_run_by(self, which: int, time: int, _: int) -> bool:
        run, fence = self.runs[which % PROCESSES]
        at = self.clock.now() + 0.05 + time % 5 * 0.0731
        run.end_at = min(run.end_at, at)
        self.registries[which % PROCESSES].arbiter.end_by(fence, at)
        if time % 2:
            self.runs[which % PROCESSES] = self._new_run()
        return True

    def rename(self, file: int, *_: int) -> bool:
        """Another file gets the name, or the file is removed and the next one makes a new one."""
        file = file % FILES
        session = self.model.files[file]
        if self._barred(file) or session.waiting[TURN] or session.waiting[WRITE] or not any(session.holder):
            return False
        self.written += 1
        other = self.directory / "other"
        other.write_text(json.dumps({"n": self.written}) + "\n")
        os.rename(other, self.paths[file])
        self.model.rename(file, [self.written])
        return True

    def foreign(self, file: int, *_: int) -> bool:
        """A foreign program takes the session, or gives it back."""
        file = file % FILES
        session = self.model.files[file]
        lock = Path(lockfile.path_of(self.paths[file]))
        if session.foreign:
            lock.unlink()
            session.foreign = False
            self._wait_at_most(SOON_AFTER_A_FOREIGN_PROGRAM)
            return True
        if session.holder[WRITE] is not None or session.waiting[WRITE] or self._barred(file):
            return False
        fields = json.loads(encode(Terms(None, None, 1, 1_800_000), process.wall()))
        del fields["instance"]
        lock.write_text(json.dumps(fields | {"pid": os.getppid(), "starttime": process.starttime(os.getppid())}))
        session.foreign = True
        return True

    # The course of an example

    async def step(self, name: str, *numbers: int) -> None:
        """One step, and everything that comes of it by itself before the next one."""
        await self._until(self.clock.now() + 0.003)  # nobody arrives together with another
        if name == "advance":
            await self._until(self.clock.now() + numbers[0] % 8 * 0.04)
            self.taken[name] += 1
        elif name == "advance_to_the_next":
            if due := self.model.due():
                await self._until(due[0])
                self.taken[name] += 1
        elif getattr(self, name)(*numbers):
            self.taken[name] += 1
        await self._settle()

    async def _until(self, target: float) -> None:
        """Let time pass, and look one tick before and at each instant at which something is due."""
        while (due := self.model.due()) and due[0] <= target:
            at = due[0]
            if at - TICK > self.clock.now():
                await anyio.sleep(at - TICK - self.clock.now())
                self._move()
                self._compare()
            await anyio.sleep_until(at)
            self._move()
            await self._settle()
        if target > self.clock.now():
            await anyio.sleep_until(target)
            self._move()

    def _move(self) -> None:
        self.model.now = self.clock.now()

    def _wait_at_most(self, seconds: float) -> None:
        self.may_be_free_until = max(self.may_be_free_until, self.clock.now() + seconds)

    async def _settle(self) -> None:
        """Everybody goes as far as they can; processes find out what others have given back."""
        self._move()
        self.model.happen()
        if self.model.overtaking:
            raise Unpromised
        await self.clock.settle()
        since = self.clock.now()
        while True:
            free = [
                (file, right)
                for file, session in enumerate(self.model.files)
                for right in (TURN, WRITE)
                if session.holder[right] is None and session.waiting[right] and not (session.foreign and right == WRITE)
            ]
            if free:
                self._wait_at_most(SOON)
            elif self.may_be_free_until <= self.clock.now():
                break
            until = self.may_be_free_until
            due = self.model.due()
            if due and due[0] <= until:
                raise Unpromised
            if until > self.clock.now():
                await anyio.sleep_until(until)
            self._move()
            for file, right in free:
                assert self.model.go_on(file, right)
            await self.clock.settle()
            for block in self.blocks:
                claim, lease = block.ask.claim, block.lease
                if block.ask.state == "holding" and claim is not None and claim.acquired == self.model.now:
                    assert lease is not None and since <= lease.acquired_at <= until, block.ask
                    claim.acquired = claim.progressed = lease.acquired_at
        self._compare()
        self.blocks = [block for block in self.blocks if block.ask.state != "over"]

    def end(self) -> None:
        """Have everybody leave, foreign programs first."""
        for file, session in enumerate(self.model.files):
            if session.foreign:
                os.unlink(lockfile.path_of(self.paths[file]))
        for block in self.blocks:
            block.scope.cancel()
            block.tell(None)

    async def wind_up(self) -> None:
        """Nothing is left when all have left."""
        await anyio.sleep(1)
        assert all(block.state == "over" for block in self.blocks), [(block.ask, block.state) for block in self.blocks]
        for registry in self.registries:
            now = registry.statistics()
            assert (now.sessions, now.held, now.waiting, now.competing) == (0, 0, 0, 0), registry
        assert {path.name for path in self.directory.iterdir()} == {"alias", *map(os.path.basename, self.paths)}

    def _compare(self) -> None:
        """Nothing may tell the registries from the model."""
        for block in self.blocks:
            ask = block.ask
            assert (block.state, block.outcome) == (ask.state, ask.outcome), f"{ask} at {self.clock.now()}"
            if ask.state == "holding":
                assert block.lease is not None and ask.claim is not None
                assert type(block.lease.lost).__name__ == (ask.claim.lost or "NoneType"), ask
                if not ask.claim.lost and not ask.claim.told and ask.claim.first.run is None:
                    assert block.lease.deadline == pytest.approx(ask.claim.deadline, abs=1e-9), ask
                if ask.appending is None:
                    assert block.answer == ask.answer, ask
        for number, registry in enumerate(self.registries):
            now = registry.statistics()
            assert (now.held, now.waiting, now.sessions) == self.model.counts(number), (number, now)
        for path, session in zip(self.paths, self.model.files, strict=True):
            lines = Path(path).read_bytes().splitlines(keepends=True)
            assert [json.loads(line)["n"] for line in lines] == session.records
            assert all(line.endswith(b"\n") for line in lines)

    def _choose(self, which: int, suits: Callable[[Block], bool]) -> Block | None:
        chosen = [block for block in self.blocks if block.ask.state == "holding" and suits(block)]
        return chosen[which % len(chosen)] if chosen else None

    def _barred(self, file: int) -> bool:
        """Whether somebody still holds the file that has lost the name."""
        return any(holder is not None and holder.stale for holder in self.model.files[file].holder)

    def _new_run(self) -> tuple[Run, Fence]:
        self.asked += 1
        return Run(self.asked), Fence(lane="main", run_id=self.asked)


OPERATIONS = {
    "nothing": 1,
    "ask": 9,
    "append": 6,
    "read": 2,
    "replace": 2,
    "progress": 1,
    "leave": 4,
    "raise_inside": 1,
    "cancel": 2,
    "supersede": 2,
    "revoke": 1,
    "end_run": 1,
    "end_run_by": 1,
    "rename": 1,
    "foreign": 2,
    "advance": 2,
    "advance_to_the_next": 3,
}
"""How often each is tried."""

steps = st.lists(
    st.tuples(
        st.sampled_from([name for name, times in OPERATIONS.items() for _ in range(times)]),
        *[st.integers(0, 999)] * 3,
    ),
    min_size=STEPS,
    max_size=STEPS,
)


def play(backend: str, taken_steps: list[tuple[str, int, int, int]]) -> Counter[str]:
    """Play one example; returns which steps had something to do."""
    before = leaks.descriptors()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as directory:
        with virtual_time() as clock:

            async def main() -> Counter[str]:
                async with anyio.create_task_group() as group:
                    one = Play(Path(directory), clock, group)
                    try:
                        for step in taken_steps:
                            await one.step(*step)
                    except Unpromised:
                        one.taken["unpromised"] += 1
                    finally:
                        one.end()
                    await one.wind_up()
                return one.taken

            taken = clock.run(backend, main)
        assert leaks.descriptors() == before
    return taken


@pytest.mark.suite("H1")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_step_tells_the_registries_from_the_model(backend):
    taken: Counter[str] = Counter()

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(steps)
    def plays(taken_steps):
        taken.update(play(backend, taken_steps))

    plays()
    for name in OPERATIONS:
        assert taken[name], f"{name} never had anything to do"


@pytest.mark.suite("H1")
def test_the_same_steps_take_the_same_course():
    mixed = [(name, 7 * number, 11 * number, 13 * number) for number, name in enumerate([*OPERATIONS] * 3)]
    assert play("asyncio", mixed) == play("asyncio", mixed)

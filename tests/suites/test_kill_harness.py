"""Suite K2: kill -9 of `lanes run` at random points, and restarts on the same directory, which others share.

In CI 50 kills, or as many as fit into 30 s, but never fewer than show something; `LANES_LONG=1` makes it 5,000. At any
time three processes share the directory; one after the other is killed and replaced, most of them amid their work, some
while they start up. Each tells through a pipe what it did: which appends have returned, and when it had which turn.
Afterwards

- every acknowledged record is in its file, once and whole, and the file loads;
- no two turns of a session overlap, whoever held them. The turn that a process had when it was killed counts up to the
  moment before the kill: the kernel gives it to the next one right after;
- no program that was started is left after 5 s. A program learns of the end of a killed process by its output, of which
  nobody reads the other end any more: so these write now and then. One that never does would live on; that is said
  under "not guaranteed";
- a last start on the directory serves it, and finds nothing wrong.

Torn tails are counted, not asked for: few kills of 50 hit the middle of a write. K1 is the suite that tears them.
The figures are printed: `pytest -s --suite K2`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import anyio
import pytest

from locks import LockRegistry
from tests import ROOT
from tests.command import lanes
from tests.contention import Interval, overlaps
from tests.kill_judge import Verdict, judge
from tests.lives import TARGET, Life, told_by
from tests.poll import eventually_sync

LONG = bool(os.environ.get("LANES_LONG"))
ROUNDS = 100 if LONG else 1
KILLS = 50  # in a round, which has a directory of its own: each start reads all that is there
SECONDS = 300 if LONG else 30  # for a round
LEAST = 10  # kills of a round, however long they take
MOST_S = 10 * SECONDS  # goes on so long until enough of a round was tested
AT_ONCE = 3


@dataclass
class Told:
    """What the killed processes have said."""

    kills: int = 0
    acknowledged: list[tuple[int, int, str]] = field(default_factory=list)
    holds: dict[str, list[Interval]] = field(default_factory=lambda: defaultdict(list))
    midway: int = 0
    """Kills of processes that had acknowledged something, and had a turn."""
    starting: int = 0
    """Kills of processes that had said nothing yet."""
    orphaned: int = 0
    """Programs that ran when their process was killed."""

    def add(self, life: Life) -> None:
        """Note what one has said, once it is dead."""
        open_since: dict[str, int] = {}
        kept = 0
        self.kills += 1
        for line in life.hear().decode().splitlines():
            match line.split(" "):
                case ["kept", number, file]:
                    self.acknowledged.append((life.writer, int(number), file))
                    kept += 1
                case ["entered", file, at]:
                    open_since[file] = int(at)
                case ["left", file, at]:
                    self.holds[file].append((open_since.pop(file), int(at), life.writer))
        for file, since in open_since.items():
            self.holds[file].append((since, max(since, life.killed_at), life.writer))
        self.midway += bool(kept and open_since)
        self.starting += not kept

    def enough(self) -> bool:
        """Whether something was tested: so many kills, most of them amid the work, and some while programs ran."""
        amid = self.midway * 3 >= self.kills and len(self.acknowledged) > 5 * self.kills
        return self.kills >= LEAST and amid and self.orphaned * 10 >= self.kills

    def overlaps(self) -> list[tuple[Interval, Interval]]:
        """Pairs of turns of one session that overlap."""
        return [pair for holds in self.holds.values() for pair in overlaps(holds)]


def strike(directory: Path, kills: int, choice: random.Random, numbers: Iterator[int]) -> Told:
    """Kill one after the other, and start another one in its place."""
    told, done, begun = Told(), 0, time.monotonic()
    lives = [Life(next(numbers), directory) for _ in range(AT_ONCE)]

    def kill(life: Life) -> None:
        told.orphaned += len(programs(life.mark))
        life.kill()
        told.add(life)
        lives.remove(life)
        life.close()

    try:
        while time.monotonic() - begun < (SECONDS if told.enough() else MOST_S):
            if done >= kills and told.enough():
                break
            when = choice.random()
            if when < 0.2:
                victim, moment = lives[-1], choice.uniform(0, 0.1)  # it may still be starting up
            elif when < 0.4:
                victim, moment = lives[0], 0.0
                eventually_sync(lambda: [life.works() for life in lives] and stopped_in_a_program(lives[0]), within=120)
            else:
                victim, moment = lives[0], choice.uniform(0, 0.4)
                eventually_sync(lambda: all([life.works() for life in lives][:1]), within=120)
            at = time.monotonic() + moment
            eventually_sync(lambda: [life.works() for life in lives] and time.monotonic() >= at, within=120)  # noqa: B023 -- awaited in this round
            kill(victim)
            done += 1
            lives.append(Life(next(numbers), directory))
        while lives:
            kill(lives[0])
    finally:
        for life in lives:
            life.close()
    return told


def stopped_in_a_program(life: Life) -> bool:
    """Stop it; let it go on unless it runs a program. To look for one takes longer than it lasts, on a busy machine."""
    life.stop()
    if programs(life.mark):
        return True
    life.go_on()
    return False


def programs(mark: str) -> list[int]:
    """The programs with an argument that begins with that mark, by their ids."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):  # it has just ended
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if any(word.startswith(mark.encode()) for word in words):
                    found.append(int(entry.name))
    return found


def judged(directory: Path, told: Told) -> Verdict:
    """What the files say; the first line of each, which names its session, is no record."""
    verdict = judge(directory, told.acknowledged)
    verdict.damaged = [one for one in verdict.damaged if ':1: b\'{"lanes.session":' not in one]
    return verdict


async def load(files: list[Path]) -> int:
    """Read every file as a gateway would; returns how many records there are. Raises for a broken line."""
    registry = LockRegistry()
    return sum([len(await registry.read(path, on_error="raise")) for path in files])


def last_start(directory: Path, writer: int) -> tuple[int, str]:
    """Serve the directory once more, for a moment and to the end; returns the exit code and the verdict."""
    env = told_by(2, writer, f"{directory}/{writer}/")
    done = lanes("run", TARGET, "--sessions", directory, "--duration", "1", "--json", cwd=ROOT, env=env)
    return done.returncode, json.loads(done.stdout)["verdict"]


@pytest.mark.suite("K2")
@pytest.mark.failure("H1", "C1")
def test_kills_of_lanes_run_lose_nothing_overlap_nowhere_and_leave_no_program(tmp_path):
    choice, numbers, seen = random.Random(86014), count(), Counter[str]()
    for number in range(ROUNDS):
        directory = tmp_path / str(number)
        told = strike(directory, KILLS, choice, numbers)
        eventually_sync(lambda: not programs(f"{directory}/"), within=5)  # noqa: B023 -- awaited in this round
        assert last_start(directory, next(numbers)) == (0, "green")

        verdict = judged(directory, told)
        assert verdict.lost == []
        assert verdict.damaged == []
        assert verdict.doubled == []
        assert verdict.disordered == []
        assert told.overlaps() == []
        assert anyio.run(load, list(directory.glob("*.jsonl"))) == verdict.records
        assert {"".join(path.suffixes[-2:]) for path in directory.iterdir()} <= {".jsonl", ".jsonl.torn"}
        seen.update(
            kills=told.kills,
            midway=told.midway,
            starting=told.starting,
            acknowledged=len(told.acknowledged),
            turns=sum(map(len, told.holds.values())),
            programs=told.orphaned,
            torn=verdict.torn,
        )
        shutil.rmtree(directory)
    print("K2:", ", ".join(f"{number} {name}" for name, number in seen.items()))  # noqa: T201
    assert seen["kills"] >= ROUNDS * LEAST
    assert seen["midway"] * 3 >= seen["kills"], "they were hardly killed amid their work: nothing was tested"
    assert seen["programs"] * 10 >= seen["kills"], "hardly any program ran when its process was killed"
    assert seen["acknowledged"] > 5 * seen["kills"]


@pytest.mark.suite("K2")
def test_what_the_suite_looks_for_it_finds_where_it_was_planted(tmp_path):
    directory, told = tmp_path / "sessions", Told()
    lives = [Life(number, directory, ("early", "turnless", "deaf")) for number in range(AT_ONCE)]
    try:
        eventually_sync(lambda: all(life.works() and life.hear().count(b"entered") > 6 for life in lives), within=120)
        for life in lives:
            life.kill()
            told.add(life)
        assert judged(directory, told).lost != []
        assert told.overlaps() != []
        assert programs(f"{directory}/") != []
    finally:
        for life in lives:
            life.close()
        for program in programs(f"{directory}/"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(program, signal.SIGKILL)

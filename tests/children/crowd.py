"""Several processes on the same sessions, killed and stopped at random: `crowd DIRECTORY KILLS APPENDS SECONDS SEED`.

Five workers, forked from this process, share three sessions: `DIRECTORY/sessions`. Half of them run asyncio, half trio;
half use a `LockRegistry`, half a `Supervisor`. In each, three writers do one thing after another, chosen at random: see
`tests.children.crowd_work`. One worker after the other is killed with SIGKILL, some while they start up, some amid a
write (that they tear themselves), some while they are stopped; others are stopped with SIGSTOP for a moment. A killed
worker is replaced. That goes on until there were so many kills and so many acknowledged appends, but for no more than
so many seconds. With a sixth argument, a defect of `tests.planted.crowd` is planted first.

Each worker writes down what it is about to do and what has been done: `DIRECTORY/journals/<worker>`, a JSON list a
line, one `write` each, so that a kill loses nothing of it:

- `try ID…`, and when it returned `ack ID…`: appends. An id is `[writer, number]`, a record begins with it;
- `enter RIGHT WRITER`, `leave RIGHT WRITER`: the turn or the write lease, with the time of a clock that all share;
- `covers ID ID…`: what a summary takes the place of, which is what the replacer has read; the summary lists it, too;
- `aside FROM TO`, `placed FROM TO`: the two instants between which a session's file lost its name, or got a new one;
- `tears`: the instant before it tears a write and dies of it;
- `late ID`: tried by a run that was over; `blind`: the lock file did not name the holder; `odd`: an error that nobody
  expects; `did`: what else was done, for the figures.

Most of them say of which file. A transcript that a reset deletes is moved to `DIRECTORY/graveyard` instead,
so that it is known what was in it.

At the end it says one JSON line: `kills` (of a worker: when), `appends`, `stops`, `died` (workers that ended by
themselves), `enough` (whether the counts were reached).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

# Before the fork, so that no worker spends its short life on importing them.
import anyio
import anyio._backends._asyncio
import anyio._backends._trio
import structlog

from locks import LockRegistry
from tests.children import crowd_work

WORKERS = 5
TICK_S = 0.0005
STARTED_WITHIN_S = 30.0


def live(directory: Path, number: int, seed: int) -> NoReturn:
    """The life of a worker. It ends by a kill."""
    try:
        structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
        os.close(1)
        os.open(os.devnull, os.O_WRONLY)
        journal = crowd_work.Journal(directory / "journals" / str(number))
        choice = random.Random(f"{seed}-{number}")
        crowd_work.watch_the_names(directory, number, journal, choice)
        backend = ("asyncio", "trio")[number % 2]
        anyio.run(crowd_work.work, str(directory / "sessions"), number, journal, choice, backend=backend)
    except BaseException as error:
        os.write(2, f"worker {number}: {error!r}\n".encode())
    finally:
        os._exit(1)


class Worker:
    """A forked worker, and what it has acknowledged."""

    def __init__(self, directory: Path, number: int, seed: int) -> None:
        self.number = number
        self.born_at = time.monotonic()
        self.killed_at: int | None = None
        self.stopped_until = 0.0
        self._journal = directory / "journals" / str(number)
        self._read_to = 0
        self.appends = 0
        self.pid = os.fork()
        if self.pid == 0:
            live(directory, number, seed)

    def look(self) -> None:
        """Count what it has acknowledged since the last look."""
        with contextlib.suppress(FileNotFoundError), self._journal.open("rb") as journal:
            journal.seek(self._read_to)
            new = journal.read()
            end = new.rfind(b"\n") + 1
            self._read_to += end
            for line in new[:end].split(b"\n"):
                if line.startswith(b'["ack"'):
                    self.appends += line.count(b"[") - 1

    def stop(self, seconds: float) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        self.stopped_until = time.monotonic() + seconds

    def go_on(self) -> None:
        if self.stopped_until:
            os.kill(self.pid, signal.SIGCONT)
            self.stopped_until = 0.0

    def has_ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def kill(self) -> bool:
        """End it, and say whether it was a kill that did: it may have ended by itself."""
        self.killed_at = time.monotonic_ns()
        os.kill(self.pid, signal.SIGKILL)
        _, status = os.waitpid(self.pid, 0)
        self.look()
        return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


class Crowd:
    """The workers of now, and the counts of all that there were."""

    def __init__(self, directory: Path, kills: int, appends: int, seconds: float, seed: int) -> None:
        self._directory, self._wanted, self._seed = directory, (kills, appends), seed
        self._end = time.monotonic() + seconds
        self._numbers = itertools.count()
        self._choice = random.Random(seed)
        self.kills: dict[int, int] = {}
        self.stops = self.died = self._appends_of_the_dead = 0
        self.workers = [self._new() for _ in range(WORKERS)]

    @property
    def appends(self) -> int:
        return self._appends_of_the_dead + sum(one.appends for one in self.workers)

    def enough(self) -> bool:
        return len(self.kills) >= self._wanted[0] and self.appends >= self._wanted[1]

    def play(self) -> None:
        """Kill and stop until it is enough, or too late."""
        while not self.enough() and time.monotonic() < self._end:
            victim = self._choice.choice(self.workers)
            # How much of the work is done in one life; now and then none, so that starting up is hit as well.
            share = 2 * self._wanted[1] // self._wanted[0] // WORKERS
            least = 0 if self._choice.random() < 0.1 else self._choice.randint(1, max(2, share))
            begun = time.monotonic()
            while victim.appends < least and time.monotonic() < begun + STARTED_WITHIN_S and victim in self.workers:
                self._go_round()
            time.sleep(self._choice.uniform(0, 0.003))
            self._kill(victim)
        for one in list(self.workers):
            self._kill(one, again=False)

    def _go_round(self) -> None:
        """Let the others be stopped, go on, tear their own writes and be replaced."""
        time.sleep(TICK_S)
        now = time.monotonic()
        for one in list(self.workers):
            one.look()
            if one.has_ended():
                self._kill(one)
            elif one.stopped_until and one.stopped_until <= now:
                one.go_on()
        if self._choice.random() < 0.03:
            one = self._choice.choice(self.workers)
            if not one.stopped_until and not one.has_ended():
                one.stop(self._choice.uniform(0.001, 0.1))
                self.stops += 1

    def _kill(self, worker: Worker, *, again: bool = True) -> None:
        if worker not in self.workers:
            return  # it was replaced while its end was waited for
        by_a_kill = worker.kill()
        self.died += not by_a_kill
        assert worker.killed_at is not None
        self.kills[worker.number] = worker.killed_at
        self._appends_of_the_dead += worker.appends
        self.workers.remove(worker)
        if again:
            self.workers.append(self._new())

    def _new(self) -> Worker:
        return Worker(self._directory, next(self._numbers), self._seed)


def main(directory: Path, kills: int, appends: int, seconds: float, seed: int, defect: str = "") -> None:
    for name in ("sessions", "journals", "graveyard"):
        (directory / name).mkdir(exist_ok=True)
    LockRegistry()  # imports what it needs first then
    if defect:
        from tests.planted import crowd as planted

        planted.DEFECTS[defect](directory)
    gc.collect()
    gc.freeze()  # else each child copies the pages of every object that it collects
    crowd = Crowd(directory, kills, appends, seconds, seed)
    enough = False
    try:
        crowd.play()
        enough = crowd.enough()
    finally:
        for one in crowd.workers:
            one.kill()
    said = {"kills": crowd.kills, "appends": crowd.appends, "stops": crowd.stops, "died": crowd.died, "enough": enough}
    print(json.dumps(said))  # noqa: T201 -- what it is for


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:])

"""Starts the processes, sends them messages, and does to them what a seed says."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg

from runtime.trial.cut_proxy import CutProxy
from runtime.trial.postgres_server import PostgresServer
from tests import ROOT, forks

from .drawn import KINDS
from .judge import Evidence, Finding, Sent, dump, judge, open_ones, snapshot, tally, to_do
from .node import CANNOT_START

ANSWER_WITHIN_S = 1.0
READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 60.0
MOST_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Plan:
    """What is done. Seconds."""

    seed: int
    seconds: float = 10.0
    nodes: int = 4
    senders: int = 8
    sessions: tuple[int, int] = (3, 60)
    """How many sessions senders choose from: some of few, some of many."""
    ttl: float = 1.0
    grace: float = 0.4
    every_s: float = 1.5
    """Between two things that happen to a process, on average."""
    server_every_s: float = 5.0
    pause_s: float = 0.15
    """Between two messages of a sender, on average."""
    settle_s: float = 20.0
    """For so long nothing may stand still when nothing happens any more."""
    defect: str = ""


@dataclass(slots=True)
class Verdict:
    """What came of it."""

    findings: list[Finding]
    counts: Counter[str]

    def __str__(self) -> str:
        shown = [f"{count} {name}" for name, count in sorted(self.counts.items())]
        found = [f"{rule}: {what:.1500}" for rule, what in self.findings[:MOST_SHOWN]]
        more = len(self.findings) - len(found)
        return "\n".join([", ".join(shown), *found, *([f"and {more} more"] if more else [])])


class _Slot:
    """One process after the other, behind a network of its own."""

    def __init__(self, torture: Torture, number: int) -> None:
        self.number, self.backend = number, ("asyncio", "trio")[number % 2]
        self.proxy = CutProxy(torture.server.port)
        self.rng = random.Random(torture.plan.seed * 1000 + number)
        self._torture, self._starts = torture, itertools.count()
        self.process: subprocess.Popen[bytes] | None = None
        self._ready = threading.Event()
        self._writing = threading.Lock()

    def start(self) -> None:
        torture, plan = self._torture, self._torture.plan
        name = f"node{self.number}-{next(self._starts)}"
        self._ready.clear()
        settings = {
            "dsn": torture.server.dsn_at(self.proxy.port),
            "schema": torture.schema,
            "ttl": plan.ttl,
            "grace": plan.grace,
            "name": name,
            "backend": self.backend,
            "journal": str(torture.directory / name),
            "seed": self.rng.randrange(1 << 30),
            "sessions": KINDS[self.rng.randrange(2)].sessions(plan.sessions),
            "defect": plan.defect,
        }
        arguments = ["-m", "tests.postgres.torture.node", json.dumps(settings)]
        with open(torture.directory / f"{name}.stderr", "wb") as errors:
            process = forks.python(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors)
        self.process = process
        threading.Thread(target=self._read, args=(process, name), daemon=True).start()

    def _read(self, process: subprocess.Popen[bytes], name: str) -> None:
        torture = self._torture
        assert process.stdout is not None
        for line in process.stdout:
            said = json.loads(line)
            if "ready" in said:
                self._ready.set()
            else:
                torture.answered(said)
        process.stdout.close()
        code = process.wait()
        if process is self.process:
            self._ready.clear()
        assert process.stdin is not None
        with contextlib.suppress(OSError), self._writing:
            process.stdin.close()
        torture.evidence.ended[process.pid] = time.monotonic()
        if code not in (0, -signal.SIGKILL, CANNOT_START):
            errors = (torture.directory / f"{name}.stderr").read_text()[-3000:]
            torture.found("process", f"{name} ended with {code}: {errors}")

    def serve(self) -> None:
        """Have a process that serves, however often that takes."""
        until = time.monotonic() + READY_WITHIN_S
        while not self._ready.wait(0.05):
            if self.process is None or self.process.poll() is not None:
                self.start()
            if time.monotonic() > until:
                self._torture.found("stuck", f"slot {self.number} has no process that is ready")
                return

    def send(self, line: bytes) -> bool:
        process = self.process
        if process is None or process.stdin is None:
            return False
        try:
            with self._writing:
                process.stdin.write(line)
                process.stdin.flush()
        except (OSError, ValueError):
            return False
        return True

    def kill(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._torture.evidence.ended.setdefault(self.process.pid, time.monotonic())

    def end(self, within_s: float) -> None:
        """Have it stop as a program does; a restart of a service."""
        process = self.process
        assert process is not None and process.stdin is not None
        with contextlib.suppress(OSError), self._writing:
            process.stdin.close()
        try:
            process.wait(within_s)
        except subprocess.TimeoutExpired:
            self._torture.found("stuck", f"process {process.pid} of slot {self.number} does not end")
            self.kill()

    # What happens to it

    def suffer(self) -> None:
        torture = self._torture
        plan, rng = torture.plan, self.rng
        while not torture.over.wait(rng.expovariate(1 / plan.every_s)):
            if self.process is None or self.process.poll() is not None:
                self.start()
                continue
            what = rng.choices(list(self._HAPPENS), [weight for weight, _ in self._HAPPENS.values()])[0]
            torture.counts[what] += 1
            self._HAPPENS[what][1](self)

    def _killed(self) -> None:
        self.kill()
        time.sleep(self.rng.random() * 0.5)
        self.start()

    def _stopped(self, seconds: float) -> None:
        assert self.process is not None
        pid, since = self.process.pid, time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        self._torture.evidence.stopped.append((pid, since, time.monotonic()))

    def _stopped_short(self) -> None:
        self._stopped(self._torture.plan.ttl * (0.1 + 0.5 * self.rng.random()))

    def _stopped_long(self) -> None:
        plan = self._torture.plan
        self._stopped((plan.ttl + plan.grace) * (0.9 + 0.8 * self.rng.random()))

    def _cut(self, seconds: float) -> None:
        way = self.rng.choice(
            (self.proxy.hold, self.proxy.swallow, self.proxy.reset, lambda: self.proxy.swallow("down"))
        )
        way()
        time.sleep(seconds)
        self.proxy.reset()  # what has lost something would stay dead until the kernel gives up
        self.proxy.pass_on()

    def _cut_short(self) -> None:
        self._cut(self._torture.plan.ttl * 0.5 * self.rng.random())

    def _held_short(self) -> None:
        self.proxy.hold()
        time.sleep(self._torture.plan.ttl * 0.6 * self.rng.random())
        self.proxy.pass_on()

    def _cut_long(self) -> None:
        plan = self._torture.plan
        self._cut((plan.ttl + plan.grace) * (0.9 + 0.8 * self.rng.random()))

    def _restarted(self) -> None:
        self.end(ENDS_WITHIN_S)
        self.start()

    _HAPPENS: dict[str, tuple[float, Callable[[_Slot], None]]] = {  # noqa: RUF012
        "killed": (3, _killed),
        "stopped below the ttl": (1.5, _stopped_short),
        "stopped beyond the ttl": (1.5, _stopped_long),
        "cut below the ttl": (1, _cut_short),
        "held below the ttl": (1, _held_short),
        "cut beyond the ttl": (2, _cut_long),
        "restarted": (1, _restarted),
    }


class Torture:
    """One run of it."""

    def __init__(self, plan: Plan, server: PostgresServer, schema: str, directory: Path) -> None:
        self.plan, self.server, self.schema, self.directory = plan, server, schema, directory
        self.evidence = Evidence(directory, plan.ttl, plan.grace)
        self.over = threading.Event()
        self.counts = Counter[str]()
        self._findings = dict[Finding, None]()
        self._waiting: dict[str, threading.Event] = defaultdict(threading.Event)
        self._ids = dict[str, int]()
        self._server_away = threading.Lock()
        self.slots: list[_Slot] = []

    def found(self, rule: str, what: str) -> None:
        self._findings[Finding(rule, what)] = None

    def answered(self, said: dict[str, Any]) -> None:
        """A process has answered a sender."""
        if "id" in said:
            self._ids[said["key"]] = said["id"]
            self.evidence.acknowledged.append((time.monotonic(), said["key"], said["id"]))
        self._waiting[said["key"]].set()

    def run(self) -> Verdict:
        plan, began = self.plan, time.monotonic()
        self.slots = [_Slot(self, number) for number in range(plan.nodes)]
        try:
            for slot in self.slots:
                slot.start()
            for slot in self.slots:
                slot.serve()
            senders = [threading.Thread(target=self._send, args=(n,), daemon=True) for n in range(plan.senders)]
            others = [threading.Thread(target=slot.suffer, daemon=True) for slot in self.slots]
            others += [threading.Thread(target=one, daemon=True) for one in (self._break_server, self._look)]
            for thread in senders + others:
                thread.start()
            time.sleep(plan.seconds)
            self.over.set()
            for thread in others:
                thread.join(60)
            self._settle(senders)
        finally:
            self.over.set()
            for slot in self.slots:
                if slot.process is not None and slot.process.poll() is None:
                    slot.kill()
                slot.proxy.close()
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            for finding in judge(connection, self.schema, self.evidence):
                self._findings[finding] = None
            self.counts.update(tally(connection, self.schema))
            if self._findings:
                dump(connection, self.schema, self.directory)
        self.counts["messages"] = len(self._ids)
        self.counts["seconds"] = int(time.monotonic() - began)
        return Verdict(list(self._findings), self.counts)

    def _settle(self, senders: list[threading.Thread]) -> None:
        """Nothing happens any more: all must come to an end."""
        for slot in self.slots:
            slot.proxy.pass_on()
            if slot.process is None or slot.process.poll() is not None:
                slot.start()
        for slot in self.slots:
            slot.serve()
            slot.send(b'{"quiet": true}\n')
        until = time.monotonic() + self.plan.settle_s
        for thread in senders:
            thread.join(max(0.0, until - time.monotonic()))
            if thread.is_alive():
                self.found("stuck", "a sender still waits to be acknowledged")
        with psycopg.connect(self.server.dsn, autocommit=True) as connection:
            left, since = -1, 0.0
            while now := to_do(connection, self.schema, len(self.slots)):
                if now != left:
                    left, since = now, time.monotonic()
                elif time.monotonic() > since + self.plan.settle_s:
                    self.found("stuck", open_ones(connection, self.schema))
                    break
                time.sleep(0.05)
        ending = [threading.Thread(target=slot.end, args=(ENDS_WITHIN_S,)) for slot in self.slots]
        for thread in ending:
            thread.start()
        for thread in ending:
            thread.join()

    def _send(self, number: int) -> None:
        plan = self.plan
        rng = random.Random(plan.seed * 1000 + 500 + number)
        for count in itertools.count():
            kind = KINDS[number % len(KINDS)]
            sessions = kind.sessions(plan.sessions)
            pause_s = plan.pause_s * kind.slower(len(sessions))
            if self.over.wait(rng.expovariate(1 / pause_s)):
                return
            line, lines = kind.message(rng, sessions, plan.ttl)
            key = line["key"] = f"{number}-{count}"
            self.evidence.sent[key] = Sent(key, line["lane"], line["session"], time.monotonic(), lines)
            self._until_acknowledged(key, json.dumps(line).encode() + b"\n", rng)

    def _until_acknowledged(self, key: str, line: bytes, rng: random.Random) -> None:
        gives_up = time.monotonic() + self.plan.seconds + self.plan.settle_s
        while key not in self._ids and time.monotonic() < gives_up:
            self._waiting[key].clear()
            if not rng.choice(self.slots).send(line):
                time.sleep(0.02)
            elif not self._waiting[key].wait(ANSWER_WITHIN_S):
                self.counts["answers that did not come"] += 1
            elif key not in self._ids:
                self.counts["refusals"] += 1
                time.sleep(0.05)

    def _break_server(self) -> None:
        rng, plan = random.Random(self.plan.seed * 1000 + 999), self.plan
        while not self.over.wait(rng.expovariate(1 / plan.server_every_s)):
            kind = rng.choice(("crash", "crash", "long crash", "connections ended"))
            self.counts[f"server: {kind}"] += 1
            if kind == "connections ended":
                with (
                    contextlib.suppress(psycopg.Error),
                    psycopg.connect(self.server.dsn, autocommit=True) as connection,
                ):
                    connection.execute(
                        "select pg_terminate_backend(pid) from pg_stat_activity "
                        "where application_name like 'lanes %' and random() < 0.5"
                    )
                continue
            with self.server.away(crash=True):
                time.sleep(rng.random() * (0.3 if kind == "crash" else 2.5))

    def _look(self) -> None:
        """See again and again what must always hold."""
        while not self.over.wait(0.1):
            with (
                contextlib.suppress(psycopg.Error),
                psycopg.connect(self.server.dsn, autocommit=True, connect_timeout=2) as connection,
            ):
                while not self.over.wait(0.1):
                    for finding in snapshot(connection, self.schema):
                        self._findings[finding] = None


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="torture-") as directory:
        yield Path(directory)


def torture(plan: Plan, server: PostgresServer, schema: str, directory: Path | None = None) -> Verdict:
    """Do it all, and judge it."""
    if directory is not None:
        directory.mkdir(parents=True)  # what another run has left would be judged, too
        return Torture(plan, server, schema, directory).run()
    with _directory() as made:
        return Torture(plan, server, schema, made).run()

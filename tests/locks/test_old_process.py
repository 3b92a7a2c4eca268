"""An old process that will not go: it ends at its hard limit all the same, and the next one takes its place."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.command import records
from tests.peers import Peer, peer
from tests.poll import eventually_sync

LIMIT_S = 60.0
both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


class Process:
    """A process of `tests/children/old_process.py`, and what it logs."""

    def __init__(self, other: Peer, log: Path) -> None:
        self.peer, self._log = other, log

    def says(self, line: str) -> None:
        """Wait until it has."""
        eventually_sync(lambda: self.peer.said(line), within=LIMIT_S, awaited=f"{line}\n{self._log}")

    def logs(self, event: str) -> str:
        """Wait until it has, and return the line."""
        return eventually_sync(lambda: self.logged(event), within=LIMIT_S, awaited=event)

    def logged(self, event: str) -> str:
        """The first line of that event so far; empty if there is none."""
        return next((line for line in self.text().splitlines() if f" {event} " in line), "")

    def text(self) -> str:
        """All that it has written to standard error."""
        return self._log.read_text() if self._log.exists() else ""

    def ends(self) -> int | None:
        """Wait until it has; returns its exit code."""
        eventually_sync(self.peer.ended, within=LIMIT_S, awaited="the end of the process")
        return self.peer.exit_code

    @property
    def pid(self) -> int:
        """Its number."""
        return self.peer._process.pid


@contextmanager
def process(root: Path, backend: str, how: str) -> Iterator[Process]:
    """One for the length of a block."""
    log = root / f"{how}.log"
    with peer("old_process", root / "sessions", log, backend, how) as other:
        yield Process(other, log)


def has_stacks(text: str) -> bool:
    """Whether `faulthandler` has printed the stack of the main thread there."""
    return re.search(r"^(Current thread|Thread) 0x[0-9a-f]+ .*\n  File ", text, re.MULTILINE) is not None


@pytest.mark.failure("C6", "C8")
@both
@pytest.mark.parametrize("how", ["swallows", "thread", "service"])
def test_an_old_process_that_will_not_go_ends_at_its_hard_limit_and_its_successor_serves(tmp_path, how, backend):
    with process(tmp_path, backend, how) as old:
        old.says("begun")
        with process(tmp_path, backend, "successor") as new:
            assert f"process {old.pid} " in new.logs("waiting_for_owner")
            assert new.peer.lines == []
            old.peer.signal(signal.SIGTERM)
            assert old.ends() == 70
            new.says("served")
            assert new.ends() == 0
        assert has_stacks(old.text())
        assert "code=70" in old.logged("process_exits")
        assert "run=2" in old.logged("run_not_started")
        if how == "thread":
            assert " in hangs_in_a_thread\n" in old.text()
    assert records(tmp_path / "sessions") == [{"text": "answer"}]


@pytest.mark.failure("C6", "F6")
@both
def test_a_process_whose_event_loop_is_blocked_for_ever_ends_and_says_where(tmp_path, backend):
    with process(tmp_path, backend, "blocked") as old:
        old.says("begun")
        assert old.ends() == 75
        assert "old_process.py" in old.logged("process_exits") and "blocks_the_loop" in old.logged("process_exits")
        assert has_stacks(old.text()) and " in blocks_the_loop\n" in old.text()


@pytest.mark.failure("G3")
@both
def test_a_restart_that_a_body_will_not_let_happen_asks_for_a_new_process(tmp_path, backend):
    with process(tmp_path, backend, "swallows") as old:
        old.says("begun")
        old.peer.signal(signal.SIGUSR1)
        assert old.ends() == 75
        assert "code=75" in old.logged("process_exits") and has_stacks(old.text())
        assert "run=2" in old.logged("run_not_started")


@pytest.mark.failure("G4")
@both
def test_a_signal_to_stop_ends_a_restart_that_is_under_way(tmp_path, backend):
    with process(tmp_path, backend, "willing") as old:
        old.says("begun")
        old.peer.signal(signal.SIGUSR1)
        old.logs("restart_started")
        old.peer.signal(signal.SIGTERM)
        assert old.ends() == 0
        assert old.logged("supervisor_stopped") and not old.logged("restart_finished")
        assert "run=2" in old.logged("run_not_started")

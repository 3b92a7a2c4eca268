"""A fault of logging harms nothing: no right stays, nobody waits for ever, no event loop ends."""

from __future__ import annotations

import io
import subprocess
import sys

import anyio
import pytest
import structlog
from anyio import create_task_group

from lanes import LaneSpec
from locks import LeaseLost, LockRegistry, _events
from runtime import Supervisor
from tests.poll import eventually


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


class Broken(io.StringIO):
    """The reader has gone, or the disk is full."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


STREAMS = {
    "closed": closed,
    "broken pipe": lambda: Broken(BrokenPipeError(32, "Broken pipe")),
    "disk full": lambda: Broken(OSError(28, "No space left on device")),
    "none": lambda: None,
}


def raising(logger, name, fields):
    raise RuntimeError("a processor that raises")


def observing(event, level, fields):
    raise RuntimeError("an observer that raises")


@pytest.fixture(params=[*STREAMS, "processor", "observer"])
def faulty(request, monkeypatch):
    monkeypatch.setattr(_events, "_noted", False)
    structlog.reset_defaults()
    if request.param == "processor":
        monkeypatch.setattr(sys, "stderr", closed())
        structlog.configure(processors=[raising])
    elif request.param == "observer":
        monkeypatch.setattr(sys, "stderr", closed())
        monkeypatch.setattr(_events, "observers", (observing,))
    else:
        monkeypatch.setattr(sys, "stdout", STREAMS[request.param]())
        monkeypatch.setattr(sys, "stderr", STREAMS[request.param]())
    yield
    structlog.reset_defaults()


@pytest.mark.failure("T2")
async def test_the_next_one_gets_the_right_whatever_becomes_of_the_log_line(tmp_path, faulty):
    registry, path = LockRegistry(max_hold=0.1, grace=0.05), tmp_path / "s.jsonl"
    got: list[str] = []

    async def overstay():
        try:
            async with registry.lease(path):
                with anyio.CancelScope(shield=True):
                    await eventually(lambda: got)
        except LeaseLost as error:
            got.append(type(error).__name__)

    async def wait():
        async with registry.lease(path, wait_timeout=60):
            got.append("next")

    async with create_task_group() as group:
        group.start_soon(overstay)
        await eventually(lambda: registry.statistics().held)
        group.start_soon(wait)
    assert got == ["next", "Revoked"]
    assert registry.statistics().sessions == 0


@pytest.mark.failure("T2")
async def test_runs_end_and_their_sessions_go_on_whatever_becomes_of_the_log_line(tmp_path, faulty):
    async def handle(ctx, messages):
        raise ValueError("a run that fails is logged")

    async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handle)]) as sup:
        runs = [sup.post("session:x", number) for number in range(3)]
        assert [(await run.wait()).state for run in runs] == ["failed"] * 3


@pytest.mark.failure("T2")
def test_an_observer_that_raises_keeps_no_line_and_no_other_observer_from_it(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(_events, "_noted", False)
    monkeypatch.setattr(_events, "observers", (observing, lambda *args: seen.append(args)))
    structlog.reset_defaults()
    _events.log("lease_revoked", path="x")
    assert [one[0] for one in seen] == ["lease_revoked"]
    assert "lease_revoked" in capsys.readouterr().out


@pytest.mark.failure("T2")
def test_an_interrupt_while_a_line_is_written_goes_on_and_leaves_the_right_passed_on(monkeypatch):
    def interrupting(logger, name, fields):
        raise KeyboardInterrupt

    structlog.configure(processors=[interrupting])
    try:
        with pytest.raises(KeyboardInterrupt):
            _events.log("lease_revoked")
    finally:
        structlog.reset_defaults()


DAEMON = """
import os, sys
os.close(1); os.close(2)
sys.stdout.close(); sys.stderr.close()
import anyio
from locks import LockRegistry, LeaseLost
path, said = sys.argv[1], sys.argv[2]
got = []
async def overstay(registry):
    try:
        async with registry.lease(path):
            with anyio.CancelScope(shield=True):
                while not got: await anyio.sleep(0.01)
    except LeaseLost: got.append("lost")
async def wait(registry):
    while not registry.statistics().held: await anyio.sleep(0.001)
    async with registry.lease(path, wait_timeout=60): got.append("next")
async def main():
    registry = LockRegistry(max_hold=0.1, grace=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(overstay, registry)
        group.start_soon(wait, registry)
anyio.run(main, backend=sys.argv[3])
open(said, "w").write(" ".join(got))
"""


@pytest.mark.failure("T2")
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_daemon_without_standard_streams_passes_its_rights_on(tmp_path, backend):
    said = tmp_path / "said"
    subprocess.run(
        [sys.executable, "-c", DAEMON, str(tmp_path / "s.jsonl"), str(said), backend], check=False, timeout=60
    )
    assert said.read_text() == "next lost"


@pytest.mark.failure("T2")
@pytest.mark.parametrize("lost", ["sys.stderr = None", "sys.stderr.close()", "sys.stderr = io.StringIO()"])
def test_the_last_resort_ends_a_process_that_has_no_standard_error(lost):
    code = (
        f"import io, sys, time; {lost}; from runtime.watch.watchdog import _end_later; _end_later(0.1); time.sleep(30)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=20).returncode == 1

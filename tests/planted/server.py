"""Runs tests and modules with a defect planted, each in a fork of this process, which has imported everything once.

A Python of its own for each defect spends most of its time on imports. A fork has them, and patches only itself. One
line of JSON in is a job (the fields of `Job`); one line out is what became of it (the fields of `Done`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

QUIET = ("-W", "ignore::pytest.PytestAssertRewriteWarning")
"""For pytest: what is imported already, such as the plugins of anyio, needs no rewritten assertions."""

LEAN = (
    "-x", "-q", "-p", "no:cacheprovider", "-p", "tests.planted.plugin",
    "-p", "anyio", "--disable-plugin-autoload",  # to look for the plugins of all packages is a tenth of the time
    "--tb", "native",  # a failure is what is wanted here, and its picture was a third of the time
)  # fmt: skip
"""For pytest: what one test needs, and no more."""

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Job:
    """What a fork runs: a module, as `python -m` would."""

    module: str
    arguments: list[str]
    cwd: str
    timeout_s: float
    """Seconds until it is killed; its code is negative then."""
    environment: dict[str, str] = field(default_factory=dict)
    """What is added to the environment of the server."""


@dataclass(frozen=True, slots=True)
class Done:
    """How a fork ended."""

    code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it wrote."""
        return self.stdout + self.stderr


class Server:
    """The process that forks, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.planted.server"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, module: str, *arguments: str, cwd: Path = ROOT, timeout_s: float = 240.0, **environment: str) -> Done:
        """Run a module, as `python -m` would."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = Job(module, list(arguments), str(cwd), timeout_s, environment)
        self._process.stdin.write(json.dumps(asdict(job)).encode() + b"\n")
        self._process.stdin.flush()
        return Done(**json.loads(self._process.stdout.readline()))

    def assert_caught(self, defect: str, guard: str, loops: str) -> None:
        """Fail unless, with a defect planted, the test that guards against it fails, for having reached the defect.

        Args:
            guard: `file::test`, both without their `test_`.
            loops: which of its event loops to run it on, as for `pytest -k`.
        """
        file, _, name = guard.partition("::")
        (path,) = (ROOT / "tests").rglob(f"test_{file}.py")
        done = self.run("pytest", *LEAN, *QUIET, str(path), "-k", f"test_{name} and {loops}", LANES_PLANT=defect)
        assert done.code == pytest.ExitCode.TESTS_FAILED, done.output
        assert re.search(r"\b1 failed", done.output), done.output
        reached = re.search(rf"planted {defect}: reached (\d+) times", done.output)
        assert reached is not None and int(reached[1]) >= 1, f"the defect was never reached:\n{done.output}"

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=30)


def _serve() -> None:
    """Take jobs until there are no more."""
    _import_everything()
    gc.collect()
    gc.freeze()  # each pytest ends with five collections of garbage, which would look through all of that
    told = os.fdopen(os.dup(1), "w")  # what the tests print goes elsewhere
    os.dup2(2, 1)
    for line in sys.stdin:
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            code = _forked(Job(**json.loads(line)), stdout.fileno(), stderr.fileno())
            stdout.seek(0)
            stderr.seek(0)
            done = Done(code, stdout.read().decode(errors="replace"), stderr.read().decode(errors="replace"))
        json.dump(asdict(done), told)
        told.write("\n")
        told.flush()


def _import_everything() -> None:
    # ruff: noqa: F401 -- what is imported here is there in each fork; outside it, nobody needs it
    import anyio._backends._asyncio
    import anyio._backends._trio
    import anyio.pytest_plugin
    import hypothesis
    import psutil
    import structlog
    import trio
    import uvloop

    import runtime.cli
    import tests.planted.inbox
    import tests.planted.lanes
    import tests.planted.locks
    import tests.planted.process


def _forked(job: Job, stdout: int, stderr: int) -> int:
    child = os.fork()
    if child == 0:
        _play(job, stdout, stderr)
    until = time.monotonic() + job.timeout_s
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def _play(job: Job, stdout: int, stderr: int) -> None:
    """Run the module in the forked child, which ends with its exit code."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
        os.chdir(job.cwd)
        os.environ.update(job.environment)
        sys.argv[:] = [job.module, *job.arguments]
        runpy.run_module(job.module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()

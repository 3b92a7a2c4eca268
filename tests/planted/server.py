"""Runs tests with a defect planted, each in a fork of this process, which has imported everything once.

A pytest of its own for each defect spends most of its time on imports. A fork has them, and patches only itself. One
line of JSON in is a job (`plant`, `options`, `timeout_s`); one line out is what became of it (`code`, `output`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Done:
    """How a run of pytest ended."""

    code: int
    output: str


class Server:
    """The process that forks, from outside."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.planted.server"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def run(self, defect: str, *options: str, timeout_s: float = 240.0) -> Done:
        """Run pytest with a defect planted. It is killed after `timeout_s` seconds, and its code is negative then."""
        assert self._process.stdin is not None and self._process.stdout is not None
        job = {"plant": defect, "options": options, "timeout_s": timeout_s}
        self._process.stdin.write(json.dumps(job).encode() + b"\n")
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
        options = ("-x", "-q", "-p", "tests.planted.plugin", "-p", "no:cacheprovider", "-p", "no:hypothesispytest")
        done = self.run(defect, *options, str(path), "-k", f"test_{name} and {loops}")
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
    told = os.fdopen(os.dup(1), "w")  # what the tests print goes elsewhere
    os.dup2(2, 1)
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.TemporaryFile() as output:
            code = _forked(job, output.fileno())
            output.seek(0)
            json.dump({"code": code, "output": output.read().decode(errors="replace")}, told)
        told.write("\n")
        told.flush()


def _import_everything() -> None:
    # ruff: noqa: F401 -- what is imported here is there in each fork; outside it, nobody needs it
    import anyio
    import structlog
    import trio
    import uvloop

    import runtime.cli
    import tests.planted.lanes
    import tests.planted.locks
    import tests.planted.process


def _forked(job: dict[str, Any], output: int) -> int:
    child = os.fork()
    if child == 0:
        _play(job, output)
    until = time.monotonic() + job["timeout_s"]
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
        time.sleep(_POLL_S)


def _play(job: dict[str, Any], output: int) -> None:
    """Run pytest in the forked child, which ends with its exit code."""
    code = 1
    try:
        os.setpgid(0, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.environ["LANES_PLANT"] = job["plant"]
        # The plugins of anyio are imported, and need no rewritten assertions.
        code = int(pytest.main([*job["options"], "-W", "ignore::pytest.PytestAssertRewriteWarning"]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()

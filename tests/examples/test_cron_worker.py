"""`examples/cron_worker.py`: no framework, and its own signals."""

from __future__ import annotations

import signal

from tests.command import lanes
from tests.examples.conftest import LIMIT_S, interrupted, program, said
from tests.poll import eventually_sync


def test_jobs_are_done_by_the_clock_until_the_worker_is_stopped(tmp_path):
    def done():
        shown = lanes("inbox", "list", "jobs", cwd=tmp_path).stdout
        return shown.count("done  ")

    with program("cron_worker", tmp_path, "jobs", TIDY_EVERY_S="0.2") as process:
        eventually_sync(lambda: "supervisor_started" in said(tmp_path), within=LIMIT_S)
        eventually_sync(lambda: done() >= 2, within=LIMIT_S)
        assert interrupted(process, signal.SIGTERM) == 0
    assert "supervisor_stopped" in said(tmp_path) and "Traceback" not in said(tmp_path)

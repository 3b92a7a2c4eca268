"""Suite G1 for the lanes: with a defect planted, the test that guards against it fails.

Each guard runs in a process of its own; without a defect it passes, as part of this very run.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.planted.lanes import DEFECTS

ROOT = Path(__file__).parent.parent

GUARDS = {
    "turn_kept_on_abandonment": "abandoned_bodies::the_successor_of_a_run_that_never_ends_runs_at_deadline_and_grace",
    "grace_ignored": "last_words::last_words_stand_in_order_before_the_next_turn",
    "slot_lost_on_error": "admission::place_and_slot_are_given_back_however_a_run_ends",
    "fence_left_open": "dead_runs_do_not_write::an_ended_run_writes_nothing",
    "order_by_chance": "turns::a_sessions_runs_go_in_the_order_of_submit_over_all_lanes",
    "limit_off_by_one": "admission::a_queue_takes_exactly_its_limit",
    "reserve_ignored": "admission::the_reserve_is_kept_for_the_foreground",
    "age_ignored": "admission::quiet_work_starts_though_the_foreground_would_fill_every_slot",
    "budget_from_submit": "run_deadlines::the_wait_budget_counts_from_submit_and_the_run_budget_from_the_start",
    "progress_without_end": "run_outcomes::progress_renews_the_idle_timeout_but_never_the_hard_one",
    "told_for_ever": "abandoned_bodies::a_body_that_swallows_cancellation_is_told_no_more_once_it_is_abandoned",
    "frames_kept": "run_memory::what_a_failed_or_timed_out_body_held_is_dead_without_gc",
    "logged_twice": "run_deadlines::a_timed_out_run_is_logged_exactly_once_with_everything_an_operator_asks",
    "never_retired": "lanes_retire::a_lane_of_a_pattern_is_there_while_it_has_work_and_gone_when_idle",
}


def test_every_defect_has_a_guard():
    assert set(GUARDS) == set(DEFECTS)
    assert len(DEFECTS) >= 6


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", GUARDS)
def test_its_guard_catches_the_planted(defect):
    file, _, name = GUARDS[defect].partition("::")
    options = ["-x", "-q", "-p", "tests.planted.plugin", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"tests/test_{file}.py", "-k", f"test_{name} and asyncio"],
        cwd=ROOT,
        env={**os.environ, "LANES_PLANT": defect},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert re.search(r"\b1 failed", done.stdout), done.stdout
    counted = re.search(rf"planted {defect}: reached (\d+) times", done.stdout)
    assert counted is not None and int(counted[1]) >= 1, f"the defect was never reached:\n{done.stdout}"

"""Suite G1: with a defect planted, the test that guards against it fails. A guard that cannot fail guards nothing.

Each guard runs in a fork of its own; without a defect it passes, as part of this very run.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests import ROOT
from tests.contention import overlaps
from tests.kill_judge import judge
from tests.planted.locks import DEFECTS
from tests.poll import eventually_sync

GUARDS = {
    "no_tail_seal": "transcript_append::a_torn_tail_is_moved_aside_before_the_next_append",
    "no_roll_back": "transcript_append::a_write_that_fails_is_rolled_back_however_far_it_came",
    "no_release_on_cancel": "lease_failures::a_cancelled_waiter_gets_nothing_later_and_the_queue_moves",
    "unchecked_write": "lease_revocation::a_run_that_was_fenced_writes_nothing_more_from_tasks_and_threads",
    "ticket_ignored": "lease_queue::registries_take_turns_in_order_of_arrival",
    "unchecked_identity": "lease_revocation::a_late_look_of_the_steward_does_not_unlock_the_next_holder",
    "no_unlock": "lease_queue::while_a_turn_is_held_here_other_processes_may_write",
    "no_lock": "lease_queue::registries_take_turns_in_order_of_arrival",
    "no_grace": "lease_deadlines::within_the_grace_the_cancelled_block_may_still_write",
    "endless_grace": "lease_deadlines::a_block_that_freezes_the_loop_is_revoked_in_time_all_the_same",
    "lost_wake_up": "lease_queue::waiters_go_on_when_the_one_who_looks_after_the_files_is_cancelled",
    "constant_epoch": "lease_queue::epochs_rise_with_each_lease_over_all_rights_files_and_registries",
    "reclaimed_unseen": "sidecar_files::what_is_to_be_reclaimed_is_looked_at_again_before_it_is_removed",
    "foreign_robbed": "foreign_gateways::a_foreign_owner_is_looked_at_every_50_ms_by_one_waiter_and_waited_for",
    "lock_file_left": "lock_files::it_is_gone_when_the_lease_has_ended_however_it_ends",
    "no_sync": "durability::an_append_returns_after_a_sync_that_began_behind_its_write",
    "failed_sync_trusted": "durability::a_failing_sync_is_an_error_of_everybody_who_relied_on_it_and_of_nobody_else",
    "renamed_unlocked": "replace::nobody_gets_in_between_the_rename_and_the_locks",
    "later_records_lost": "replace::what_arrives_while_a_session_is_summarised_stands_behind_the_summary",
    "deadlock_unseen": "deadlock::who_closes_a_ring_of_two_is_refused_at_once_and_the_other_goes_on",
    "superseded_unlocked": "supersede::nobody_of_another_process_slips_in",
    "suspended_revoked": "suspend::the_grace_starts_afresh_when_the_process_goes_on",
    "idle_beyond_max_hold": "lease_progress::progress_at_the_hard_limit_says_that_nothing_has_moved",
    "note_unread": "revoke_pending::past_deadline_and_grace_the_steward_leaves_a_note_and_the_writer_finishes_it",
}


def run_planted(defect: str, *arguments: str, timeout: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env={**os.environ, "LANES_PLANT": defect},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_every_defect_has_a_guard():
    assert set(GUARDS) == set(DEFECTS)
    assert len(DEFECTS) >= 6


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", GUARDS)
def test_its_guard_catches_the_planted(planting, defect):
    planting.assert_caught(defect, GUARDS[defect], "not uvloop and not trio")


@pytest.mark.suite("G1")
def test_kill_suite_catches_an_append_behind_a_torn_tail(tmp_path):
    """K1's harness, small: without the seal its judge must find damage."""
    round_ = 0

    def damaged() -> bool:
        nonlocal round_
        round_ += 1
        directory = tmp_path / str(round_)
        directory.mkdir()
        done = run_planted(
            "no_tail_seal", "tests.planted.child", "no_tail_seal", "massacre", str(directory), "60", "2", str(round_)
        )
        acknowledged = json.loads(done.stdout)["acknowledged"]
        return bool(judge(directory, acknowledged).damaged)

    assert eventually_sync(damaged, within=240)


@pytest.mark.suite("G1")
def test_contention_suite_catches_a_lock_that_is_not_taken(tmp_path):
    """X1's harness, small: without the kernel's lock its sweep must find overlaps."""
    # In rounds: on a busy machine the one may be through before the other begins.
    assert eventually_sync(lambda: overlaps(contended(tmp_path / "a")), within=240)


def contended(path):
    """The holds of two processes that take a lease again and again without the kernel's lock."""
    command = [sys.executable, "-m", "tests.planted.child", "no_lock", "contender"]
    children = [
        subprocess.Popen(
            [*command, path, backend, "0", "0.5", "0"], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for backend in ("asyncio", "trio")
    ]
    for child in children:
        assert child.stdout is not None and child.stdin is not None
        assert child.stdout.readline() == b"ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write(b"go\n")
        child.stdin.flush()
    intervals = []
    for child in children:
        told, _ = child.communicate(timeout=60)
        intervals += [(entered, left, epoch) for entered, left, epoch in json.loads(told)]
    return intervals

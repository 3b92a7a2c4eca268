"""Suite G1 for the process: with a defect planted, the test that guards against it fails.

Each guard runs in a fork of its own; without a defect it passes, as part of this very run.
"""

from __future__ import annotations

import pytest

from tests.planted.process import DEFECTS

GUARDS = {
    "watchdog_silent": "watchdog::a_blocked_loop_in_virtual_time_is_blocked_until_it_answers",
    "culprit_unknown": "late_deadlines::a_deadline_that_a_blocked_loop_has_delayed_names_the_culprit_and_by_how_much",
    "exit_limit_ignored": "watchdog::time_in_which_the_process_stands_still_does_not_count_towards_its_end",
    "last_resort_left_armed": "watchdog::the_last_resort_is_armed_again_each_second_and_not_after_the_end",
    "fed_always": "watchdog::the_service_manager_is_not_told_so_while_something_is_wrong",
    "standing_still_counts": "watchdog::a_process_that_stood_still_is_said_to_have_and_is_not_blocked",
    "looks_pile_up": "watchdog::after_a_stall_the_loop_looks_around_once_however_long_it_was",
    "selfcheck_blind": "selfcheck::a_recovery_that_frees_nothing_is_said_and_unhealthy",
    "limits_only_slow": "limits::a_process_that_keeps_using_too_much_is_restarted",
    "late_reason_empty": "late_deadlines::a_wait_in_the_queue_that_ended_late_says_so_too",
    "grace_not_given_again": "late_deadlines::a_body_that_a_blocked_loop_kept_from_ending_gets_its_grace_again",
    "grace_given_for_ever": "late_deadlines::its_grace_is_given_again_but_once",
    "fence_not_forgiven": "late_deadlines::a_run_that_was_asked_to_end_is_forgiven_by_its_own_grace",
    "fence_forgiven_twice": "late_deadlines::a_grace_that_is_forgiven_starts_afresh_each_time_and_never_grows",
    "ramp_ignored": "ramp::two_hundred_overdue_runs_start_one_by_one_ever_faster_in_order",
    "not_reopened": "restart::two_restarts_at_once_are_one",
    "reopened_by_a_stop": "restart::a_stop_in_any_step_gives_the_restart_up_and_stops",
    "services_not_left": "restart::the_steps_stand_in_the_log_and_what_is_next_begins_after_what_was",
    "services_not_made_anew": "restart::queued_work_keeps_its_runs_their_order_and_their_keys",
    "generation_not_counted": "restart::ten_restarts_in_the_middle_of_runs_leave_exact_counters_and_one_generation",
    "queue_dropped": "restart::queued_work_keeps_its_runs_their_order_and_their_keys",
    "zombies_taken_along": "restart::a_clean_up_past_the_grace_is_a_zombie_and_admission_is_open_again",
    "zombies_kept": "restart::beside_a_zombie_the_healthy_finishes_and_the_restart_is_bounded",
    "stop_does_not_cancel_a_restart": "restart::a_stop_in_any_step_gives_the_restart_up_and_stops",
    "cancelled_at_once": "restart::cancelled_while_runs_finish_they_go_on_undisturbed",
    "step_interrupted": "restart::a_native_cancellation_in_any_step_leaves_it_open",
    "restarts_before_it_started": "restart::before_it_has_started_and_after_it_has_stopped_it_is_refused",
}


def test_every_defect_has_a_guard():
    assert set(GUARDS) == set(DEFECTS)
    assert len(DEFECTS) >= 20


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", GUARDS)
def test_its_guard_catches_the_planted(planting, defect):
    planting.assert_caught(defect, GUARDS[defect], "asyncio")

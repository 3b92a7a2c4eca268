"""Suite G1 for the lanes: with a defect planted, the test that guards against it fails.

Each guard runs in a fork of its own; without a defect it passes, as part of this very run.
"""

from __future__ import annotations

import pytest

from tests.planted.lanes import DEFECTS

GUARDS = {
    "turn_kept_on_abandonment": "abandoned_bodies::the_successor_of_a_run_that_never_ends_runs_at_deadline_and_grace",
    "grace_ignored": "last_words::last_words_stand_in_order_before_the_next_turn",
    "slot_lost_on_error": "groups::place_and_slot_are_given_back_however_a_run_ends",
    "fence_left_open": "dead_runs_do_not_write::an_ended_run_writes_nothing",
    "order_by_chance": "turns::a_sessions_runs_go_in_the_order_of_submit_over_all_lanes",
    "limit_off_by_one": "groups::a_queue_takes_exactly_its_limit",
    "reserve_ignored": "groups::the_reserve_is_kept_for_the_foreground",
    "age_ignored": "groups::quiet_work_starts_though_the_foreground_would_fill_every_slot",
    "budget_from_submit": "run_deadlines::the_wait_budget_counts_from_submit_and_the_run_budget_from_the_start",
    "progress_without_end": "run_outcomes::progress_renews_the_idle_timeout_but_never_the_hard_one",
    "told_for_ever": "abandoned_bodies::a_body_that_swallows_cancellation_is_told_no_more_once_it_is_abandoned",
    "frames_kept": "run_memory::what_a_failed_or_timed_out_body_held_is_dead_without_gc",
    "logged_twice": "run_deadlines::a_timed_out_run_is_logged_exactly_once_with_everything_an_operator_asks",
    "never_retired": "lanes_retire::a_lane_of_a_pattern_is_there_while_it_has_work_and_gone_when_idle",
    "routes_ignored": "when_busy::messages_of_different_routes_are_never_collected_together_and_stay_in_order",
    "nobody_superseded": "when_busy::an_interrupting_run_ends_the_one_under_way_and_goes_next",
    "unread_forgotten": "steering::what_is_left_unread_is_answered_first_and_in_order_however_the_run_ended",
    "reader_keeps_the_outcome": "steering::who_was_read_shares_the_outcome_however_the_run_ends",
    "drop_untold": "when_full::who_has_waited_longest_is_dropped_and_told",
    "one_attempt_too_many": "retries::a_body_that_always_fails_is_called_so_many_times_and_its_lane_goes_on",
    "no_wait_between": "retries::waits_double_with_jitter_and_stay_within_their_maximum",
    "reset_bars_nobody": "reset::an_older_run_of_another_session_announces_nothing_in_the_new_one",
    "children_left_alone": "retries::an_earlier_attempts_children_end_with_it",
    "slot_not_lent": "statistics::a_run_that_waits_for_another_has_lent_its_slot_and_then_returns",
    "ring_unseen": "steering::a_run_that_waits_for_what_was_said_to_it_is_a_deadlock",
    "key_forgotten": "debounce_and_dedupe::the_same_key_again_gives_the_same_run_queued_running_and_over",
    "minute_starts_afresh": "pools::a_rate_holds_in_every_stretch",
    "grant_outlives_its_run": "pools::a_grant_is_given_back_however_its_run_ends",
    "hog_keeps_the_pool": "pools::one_session_with_many_calls_holds_up_another_for_one_of_them",
    "extended_without_its_turn": "extend::it_keeps_its_turn_and_writes_until_then_and_no_longer",
    "quiet_without_end": "debounce_and_dedupe::a_stream_without_a_pause_waits_ten_times_as_long_and_no_longer",
    "hook_uncontained": "hooks::whatever_a_hook_raises_is_logged_and_harms_nothing",
    "effects_at_once": "user_code::whatever_user_code_calls_and_whenever_the_invariants_hold",
    "released_at_once": "user_code::whatever_user_code_calls_and_whenever_the_invariants_hold",
    "always_healthy": "unhealthy::up_to_the_limit_it_is_healthy_and_above_it_says_what_and_where",
    "late_events_heard": "retries::nothing_of_an_earlier_attempt_reaches_the_session_or_the_listeners",
    "priority_not_lent": "fairness::a_foreground_run_that_waits_for_a_turn_lends_its_priority_to_the_one_before_it",
    "deadline_not_inherited": "children::a_child_has_at_most_its_parents_deadline_at_whatever_depth",
    "parents_turn_allowed": "children::a_child_that_names_the_session_of_a_run_above_it_is_refused",
    "cut_short_still_waits": "deadlock_limits::who_goes_on_without_its_slot_needs_nothing_and_is_waited_for",
    "limits_unseen": "deadlock_limits::an_attempt_without_waiting_is_no_wait",
    "taken_turn_unseen": "deadlock_limits::a_run_of_another_supervisor_on_ones_own_session_is_not_waited_for",
    "lane_order_ignored": "deadlock_limits::a_turn_behind_a_quiet_run_on_a_lane_whose_slots_are_taken_is_a_ring",
    "lent_class_ignored": "deadlock_limits::who_will_be_lent_a_class_at_the_front_of_its_session_needs_no_quiet_slot",
    "slot_back_unnoted": "slot_lending::parent_child_and_grandchild_share_one_slot",
    "ended_while_its_body_runs": "abandoned_bodies::the_successor_of_a_run_that_never_ends_runs_at_deadline_and_grace",
    "shares_ignored": "fairness::classes_that_all_want_more_than_there_is_get_their_shares",
}


def test_every_defect_has_a_guard():
    assert set(GUARDS) == set(DEFECTS)
    assert len(DEFECTS) >= 20


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", GUARDS)
def test_its_guard_catches_the_planted(planting, defect):
    planting.assert_caught(defect, GUARDS[defect], "asyncio")

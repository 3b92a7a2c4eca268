"""Suite G1 for the inbox: with a defect planted, the test that guards against it fails.

Each guard runs in a fork of its own; without a defect it passes, as part of this very run.
"""

from __future__ import annotations

import pytest

from tests.planted.inbox import DEFECTS

GUARDS = {
    "done_before_the_append": "inbox::a_message_whose_answer_could_not_be_appended_is_not_done",
    "replay_out_of_order": "inbox::the_next_process_answers_what_waited_in_order_and_before_new_messages",
    "dedupe_not_unique": "inbox::a_key_gives_the_same_message_over_restarts",
    "repeat_without_leave": "inbox::the_next_process_answers_what_waited_in_order_and_before_new_messages",
    "answer_lost_at_expiry": "inbox_asks::a_question_outlives_its_process_and_expires_in_another",
    "acknowledged_early": "inbox_faults::what_is_reported_is_in_the_file_by_then",
    "begun_before_it_is_kept": "inbox::a_body_begins_and_is_given_a_message_only_when_that_is_kept",
    "second_try": "inbox::a_commit_that_fails_ends_the_writer_and_loses_nothing",
}


def test_every_defect_has_a_guard():
    assert set(GUARDS) == set(DEFECTS)


@pytest.mark.suite("G1")
@pytest.mark.parametrize("defect", GUARDS)
def test_its_guard_catches_the_planted(planting, defect):
    planting.assert_caught(defect, GUARDS[defect], "asyncio")

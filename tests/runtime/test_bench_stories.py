"""The stories of #86004 and #86014: what the legacy model does with them, and what this project does."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from runtime.bench.stories.journal import Lifeline
from runtime.bench.stories.play import play
from runtime.bench.stories.story import STORIES, Story
from runtime.bench.stories.verdict import LATE, LOST, STUCK, judge, union, without

TWO_LANES, LEAK = STORIES["story-86004"], STORIES["story-86014"]


async def test_with_two_lanes_the_legacy_model_loses_messages_for_twelve_minutes_and_writes_late(virtual):
    played = await play("legacy", TWO_LANES)
    assert played.figures[LOST] >= 20
    assert 700 < played.figures[STUCK] < 800  # from the timeout at 300 s to the watchdog, between 1,020 and 1,080 s
    assert played.figures[LATE] == 1
    assert played.restarted_s == pytest.approx(700, abs=1)  # which has helped nothing


async def test_with_two_lanes_lanes_lose_nothing_and_refuse_the_late_write(virtual):
    played = await play("lanes", replace(TWO_LANES, scale=20.0))
    assert played.figures[LOST] == played.figures[LATE] == 0
    assert played.figures[STUCK] <= TWO_LANES.grace_s + 0.2  # a hundredth of a second, 20 times as fast
    assert [line.name for line in played.lifelines if line.refused_s is not None] == ["first"]
    assert {line.how for line in played.lifelines[1:]} == {"done"}
    assert played.restarted_s is None
    notes = [line for line in played.lifelines if not line.asks]
    assert all(line.over_s == line.sent_s for line in notes)  # none waited for the turn


@pytest.mark.backends("asyncio")
async def test_with_a_leaked_lock_the_legacy_model_is_stuck_for_its_hold_limit(virtual):
    played = await play("legacy", LEAK)
    assert played.figures[LOST] >= 25
    assert 980 < played.figures[STUCK] < 1100


@pytest.mark.backends("asyncio")
async def test_with_a_leaked_lock_lanes_go_on_at_once(virtual):
    played = await play("lanes", replace(LEAK, scale=20.0))
    assert played.figures[LOST] == played.figures[LATE] == 0
    assert played.figures[STUCK] <= LEAK.grace_s + 0.2
    assert sorted(line.how for line in played.lifelines if line.how != "done") == ["failed", "timed out"]


def test_figures_are_read_from_the_file_and_the_lifelines(tmp_path):
    story = Story(name="s", title="", report="", text="", work=(), ends_at_s=100, timeout_s=10)
    session = tmp_path / "story.jsonl"
    session.write_text(json.dumps({"header": 1}) + "\n" + json.dumps({"work": "a"}) + "\n")
    lifelines = [
        Lifeline("a", "session", True, 0, 0, 30, "done", late_s=40),
        Lifeline("b", "session", True, 5, None, 35, "gave up"),  # waits from 5, and a's timeout is at 10
        Lifeline("c", "session", True, 90),  # still waits at the end
    ]
    figures = judge(story, lifelines, session)
    assert (figures[LOST], figures[STUCK], figures[LATE]) == (1, 25, 1)


def test_spans_are_joined_and_taken_away():
    assert union([(3, 4), (0, 1), (1, 2), (0, 2)]) == [(0, 2), (3, 4)]
    assert without([(0, 10), (20, 30)], [(2, 3), (5, 22), (25, 40)]) == [(0, 2), (3, 5), (22, 25)]
    assert without([(0, 1)], []) == [(0, 1)]

"""What is refused, before anything exists: each message names the field, the value, and what is allowed."""

from __future__ import annotations

import functools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lanes import GroupSpec, InvalidLane, LaneError, LaneSpec
from locks import InvalidSession, LockError
from runtime import Supervisor
from tests.supervised import assert_empty


async def body(ctx, *args):
    return None


async def handler(ctx, messages):
    return None


def plain(ctx, messages):
    return None


async def takes_too_much(ctx, messages, more):
    return None


class Handler:
    async def __call__(self, ctx, messages):
        return None

    async def method(self, ctx, messages):
        return None


# Specifications

WRONG_LANES: dict[str, list[tuple[object, str]]] = {
    "pattern": [("", "''"), ("a*b", "'a*b'"), ("**", "'**'"), ("a\nb", r"'a\nb'"), (7, "7"), (None, "None")],
    "capacity": [(0, "0"), (-1, "-1"), (1.5, "1.5"), (True, "True"), ("2", "'2'")],
    "timeout": [
        (0, "0"),
        (-1.0, "-1.0"),
        (float("inf"), "inf"),
        (float("nan"), "nan"),
        ("300", "'300'"),
        (None, "None"),
    ],
    "idle_timeout": [(0, "0"), (float("nan"), "nan"), (-1, "-1")],
    "queue_timeout": [(0, "0"), (float("inf"), "inf")],
    "queue_limit": [(-1, "-1"), (2.0, "2.0"), (True, "True")],
    "grace": [(-0.1, "-0.1"), (float("inf"), "inf"), (None, "None")],
    "priority": [("urgent", "'urgent'"), (None, "None"), (0, "0")],
    "handler": [(plain, "plain"), (takes_too_much, "takes_too_much"), (42, "42")],
}


@pytest.mark.parametrize(
    "field, value, shown", [(field, value, shown) for field, cases in WRONG_LANES.items() for value, shown in cases]
)
def test_a_lane_that_cannot_be_names_field_value_and_what_is_allowed(field, value, shown):
    fields: dict = {"pattern": "work", field: value}
    with pytest.raises(InvalidLane, match=rf"{field}: .*allowed: ") as caught:
        LaneSpec(**fields)
    assert shown in str(caught.value)
    assert issubclass(InvalidLane, ValueError) and issubclass(InvalidLane, LaneError)


@pytest.mark.parametrize("field, value", [("slots", 0), ("slots", 1.5), ("reserve", -1), ("reserve", "1")])
def test_a_group_that_cannot_be_names_field_value_and_what_is_allowed(field, value):
    fields: dict = {"name": "few", "slots": 4, field: value}
    with pytest.raises(InvalidLane, match=rf"group 'few', {field}: {re.escape(repr(value))} .*allowed: "):
        GroupSpec(**fields)


@pytest.mark.failure("E3")
def test_contradictions_are_refused_with_both_names():
    with pytest.raises(InvalidLane, match=r"idle_timeout: 20.0 s is longer than timeout \(10.0 s\)"):
        LaneSpec("work", timeout=10.0, idle_timeout=20.0)
    with pytest.raises(InvalidLane, match=r"reserve: 4 leaves no slot of 4 \(slots\)"):
        GroupSpec("few", slots=4, reserve=4)


def test_edges_that_are_allowed(tmp_path):
    LaneSpec("work", timeout=10.0, idle_timeout=10.0, grace=0, queue_limit=0)
    LaneSpec("*", queue_limit=None)
    GroupSpec("few", slots=2, reserve=1)
    for good in (handler, Handler(), Handler().method, functools.partial(handler), functools.partial(Handler())):
        assert LaneSpec("work", handler=good).handler is good


def test_a_lane_of_an_unknown_group_is_refused_with_the_known_ones(tmp_path):
    with pytest.raises(
        InvalidLane, match=r"lane 'work', group: 'nowhere' is unknown; allowed: background, control, main"
    ):
        Supervisor(tmp_path, lanes=[LaneSpec("work", group="nowhere")])


def test_two_specifications_of_one_name_are_refused(tmp_path):
    with pytest.raises(InvalidLane, match="pattern: 'work' is specified twice"):
        Supervisor(tmp_path, lanes=[LaneSpec("work"), LaneSpec("work", capacity=2)])
    with pytest.raises(InvalidLane, match="group: 'few' is specified twice"):
        Supervisor(tmp_path, groups=[GroupSpec("few", slots=1), GroupSpec("few", slots=2)])


@pytest.mark.parametrize(
    "field, value", [("keep_outcomes", -1), ("drain_timeout", -1.0), ("drain_timeout", float("nan"))]
)
def test_a_supervisor_refuses_figures_that_cannot_be(tmp_path, field, value):
    figures: dict = {field: value}
    with pytest.raises(InvalidLane, match=rf"{field}: .*allowed: "):
        Supervisor(tmp_path, **figures)


def test_a_supervisor_that_is_not_started_touches_no_disk(tmp_path):
    Supervisor(tmp_path / "sessions")
    assert list(tmp_path.iterdir()) == []


# Defaults


async def test_the_default_lanes_and_groups_are_those_of_the_design(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        groups = sup.statistics().groups
        assert {name: (group.slots, group.reserve) for name, group in groups.items()} == {
            "main": (32, 4),
            "background": (8, 0),
            "control": (64, 0),
        }
        found = {
            name: sup._scheduler.board.specs.find(name)
            for name in ("session:x", "main", "cron", "heartbeat", "subagent")
        }
        assert {name: (spec.capacity, spec.group, spec.priority) for name, spec in found.items()} == {
            "session:x": (1, "main", "foreground"),
            "main": (32, "main", "foreground"),
            **dict.fromkeys(("cron", "heartbeat", "subagent"), (8, "background", "background")),
        }


def test_the_most_specific_pattern_wins(tmp_path):
    lanes = [LaneSpec("*"), LaneSpec("tool:*"), LaneSpec("tool:web:*"), LaneSpec("tool:web:search")]
    find = Supervisor(tmp_path, lanes=lanes)._scheduler.board.specs.find
    wanted = {"other": "*", "tool:x": "tool:*", "tool:web:get": "tool:web:*", "tool:web:search": "tool:web:search"}
    assert {name: find(name).pattern for name in wanted} == wanted


# Submitting


@pytest.fixture
async def sup(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=[LaneSpec("idle", timeout=10.0, idle_timeout=5.0)]) as sup:
        yield sup
        assert_empty(sup)
        assert list(tmp_path.iterdir()) == []


async def test_an_unknown_lane_is_refused_with_the_known_ones(sup):
    for name in ("nowhere", "sessions:a", "", "main "):
        with pytest.raises(
            InvalidLane, match=rf"lane: {name!r} is unknown; allowed: control, cron, heartbeat, idle, main, "
        ):
            sup.submit(name, body)


@pytest.mark.parametrize("name", [None, 7, b"main", ["main"]])
async def test_a_lane_that_is_no_text_is_refused(sup, name):
    with pytest.raises(InvalidLane, match=r"lane: .*allowed: "):
        sup.submit(name, body)


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf"), "5"])
async def test_a_timeout_that_is_no_duration_is_refused(sup, timeout):
    with pytest.raises(InvalidLane, match=rf"timeout: {timeout!r} is no duration; allowed: seconds above 0"):
        sup.submit("main", body, timeout=timeout)


async def test_an_unknown_priority_is_refused_with_the_known_ones(sup):
    with pytest.raises(
        InvalidLane, match="priority: 'urgent' is unknown; allowed: 'foreground', 'normal', 'background'"
    ):
        sup.submit("main", body, priority="urgent")


async def test_a_session_lane_conducts_its_own_session_only(sup):
    with pytest.raises(InvalidLane, match="session: 'b' is not the one of lane 'session:a'; allowed: 'a', or none"):
        sup.submit("session:a", body, session="b")
    assert sup.runs() == []


async def test_posting_to_a_lane_without_a_handler_is_refused(sup):
    with pytest.raises(
        InvalidLane, match=r"lane 'main' has no handler; post needs LaneSpec\(handler=...\), or use submit"
    ):
        sup.post("main", "hello")
    with pytest.raises(InvalidLane, match="is unknown"):
        sup.post("nowhere", "hello")


HOSTILE = ["", "\0", "a\0b", "\n", "a\x1bb", "\x7f", "\x85", "\ud800", "x" * 1025, "é" * 513, "x" * 10_000_000]


@pytest.mark.parametrize("key", HOSTILE, ids=lambda key: f"{key[:4]!a}-{len(key)}")
async def test_a_hostile_session_key_is_refused_in_one_short_line_before_any_io(sup, key):
    for submit in (
        lambda: sup.submit("main", body, session=key),
        lambda: sup.submit(f"session:{key}", body),
        lambda: sup.submit("main", body, session=key, turn=False),
    ):
        with pytest.raises(InvalidSession, match=r"^session: .*allowed: 1 byte to 1 KiB of UTF-8") as caught:
            submit()
        message = str(caught.value)
        assert len(message) < 300 and message.isprintable()
        assert issubclass(InvalidSession, ValueError) and issubclass(InvalidSession, LockError)


@pytest.mark.parametrize("key", [7, b"a", ("a",), 1.5])
async def test_a_session_key_that_is_no_text_is_refused(sup, key):
    with pytest.raises(InvalidSession, match=rf"session: {type(key).__name__} is no text; allowed: "):
        sup.submit("main", body, session=key)


@given(st.characters(categories=["Cc", "Cs"]), st.text(max_size=5), st.text(max_size=5))
def test_no_control_character_or_lone_surrogate_is_accepted_anywhere_in_a_key(wrong, before, after):
    from lanes.layout import check_key

    with pytest.raises(InvalidSession):
        check_key(before + wrong + after)

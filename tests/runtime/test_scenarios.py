"""Scenarios: what is shipped, what a user's file may say, and the traffic that comes of it."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from typing import get_args

import pytest

from lanes import SessionLayout
from lanes.spec import WhenBusy
from runtime.trial.generate import InvalidLoad, Load, generate
from runtime.trial.scenario import Overrides, described, plan, shipped
from runtime.usage_error import UsageError, one_line
from tests.command import lanes, records, result_of

NOWHERE = SessionLayout("/nowhere")


def planned(path, text, **overrides):
    path.write_text(text)
    return plan(path, path.name, NOWHERE, Overrides(**overrides))


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("name, scale", [("mixed", 0.1), ("dual-lane", 0.001), ("run-timeout", 0.001)])
def test_a_shipped_scenario_is_green(tmp_path, name, scale, backend):
    done = lanes("run", name, "--scale", str(scale), "--backend", backend, "--json", "--sessions", tmp_path)
    result = result_of(done)
    assert (done.returncode, result["verdict"], result["backend"]) == (0, "green", backend), done.stderr
    assert result["messages"] == result["answered"] + result["timed_out"] + result["failed"]
    assert result["acknowledged"] == result["verified"] > 0
    assert result["timed_out"] > 0


# A scenario for each policy: green, and not by leaving the policy out.

both = pytest.mark.parametrize("backend", ["asyncio", "trio"])


def served(directory, name, backend, scale):
    """Run a shipped scenario; returns its result and what its sessions say, in the order in which it was written."""
    done = lanes("run", name, "--scale", str(scale), "--backend", backend, "--json", "--sessions", directory)
    result = result_of(done)
    assert (done.returncode, result["verdict"], result["backend"]) == (0, "green", backend), done.stderr
    assert result["messages"] == result["answered"] + result["timed_out"] + result["failed"]
    assert result["acknowledged"] == result["verified"] > 0
    return result, sorted(records(directory), key=lambda record: int(record["id"].rpartition("-")[2]))


def by_run(written, role):
    """What each run wrote in a role."""
    found = defaultdict(list)
    for record in written:
        if record["role"] == role:
            found[record["run"]].append(record)
    return found


@both
def test_queue_answers_in_the_order_of_arrival_over_both_lanes(tmp_path, backend):
    result, written = served(tmp_path, "queue", backend, 0.02)
    arrived = [f"at {second}.{half}" for second in range(1, 6) for half in ("0", "5")]
    assert [record["content"] for record in written] == [
        line for text in arrived for line in (text, f"answer to: {text}")
    ]
    assert result["answered"] == 10


@both
def test_reject_turns_senders_away_and_leaves_nothing_of_their_messages(tmp_path, backend):
    result, written = served(tmp_path, "reject", backend, 0.03)
    assert 0 < result["answered"] < result["failed"]
    assert [record["role"] for record in written].count("user") == result["answered"]


@both
def test_interrupt_cuts_answers_short_and_says_for_whom(tmp_path, backend):
    result, written = served(tmp_path, "interrupt", backend, 0.03)
    cut = [record["stopped"] for record in written if "stopped" in record]
    assert result["superseded"] == result["failed"] >= len(cut) > 3
    assert all(re.fullmatch(r"superseded by run \d+", reason) for reason in cut)
    last = {record["run"]: record for record in written}
    assert result["answered"] >= 3 and [*last.values()][-1]["content"].startswith("answer to: ")


@both
def test_replace_answers_what_is_under_way_and_then_only_the_newest_that_waits(tmp_path, backend):
    result, written = served(tmp_path, "replace", backend, 0.03)
    assert result["superseded"] == result["failed"] > result["answered"] >= 6
    # A run that was superseded had not begun: it has written nothing, and nothing was cut short.
    assert [record["role"] for record in sorted(written, key=lambda record: record["run"])] == (
        ["user", "assistant"] * result["answered"]
    )
    assert not any("stopped" in record for record in written)


@both
def test_collect_answers_a_burst_in_one_run_and_a_repetition_once(tmp_path, backend):
    result, written = served(tmp_path, "collect", backend, 0.02)
    asked, answers = by_run(written, "user"), by_run(written, "assistant")
    assert {len(found) for found in answers.values()} == {1}
    assert all(len({record.get("route") for record in found}) == 1 for found in asked.values())
    texts = [[record["content"] for record in found] for found in asked.values()]
    once = [f"message {n}" for n in range(1, 26)] + [f"word {n}" for n in range(1, 11)]
    assert sorted(text for found in texts for text in found) == sorted(once)
    assert max(len(found) for found in texts if found[0].startswith("message")) > 1, "nothing was collected"
    assert max(len(found) for found in texts if found[0].startswith("word")) > 1, "nobody waited for quiet"
    assert (result["answered"], result["repeated"], result["collected"]) == (60, 25, 35 - len(asked))


@both
def test_steer_messages_are_read_by_the_run_under_way_and_share_its_answer(tmp_path, backend):
    result, written = served(tmp_path, "steer", backend, 0.03)
    asked, answers = by_run(written, "user"), by_run(written, "assistant")
    steered = [record for found in asked.values() for record in found[1:]]
    assert len(steered) == result["steered"] > 5
    assert all(record["steered"] for record in steered)
    for run, found in asked.items():
        assert answers[run][0]["content"] == "answer to: " + "; ".join(record["content"] for record in found)
    assert result["answered"] == sum(map(len, asked.values())) == 24


@both
def test_drop_oldest_tells_each_sender_and_answers_the_newest(tmp_path, backend):
    result, written = served(tmp_path, "drop-oldest", backend, 0.02)
    assert result["dropped"] == result["failed"] > 10
    assert written[-1]["content"] == "answer to: message 40 to agent:main:main"


@both
def test_summarize_tells_each_sender_and_hands_on_what_was_said(tmp_path, backend):
    result, written = served(tmp_path, "summarize", backend, 0.02)
    assert result["dropped"] == result["failed"] > 10
    answered = [record["content"] for record in written if record["role"] == "user"]
    handed_on = [line for line in answered if line.startswith("dropped meanwhile: ")]
    assert handed_on
    said = [text for line in answered for text in line.removeprefix("dropped meanwhile: ").split("; ")]
    assert sorted(said) == sorted(f"message {n} to agent:main:main" for n in range(1, 41))


@both
def test_retry_answers_what_failed_at_first_and_parks_what_fails_for_good(tmp_path, backend):
    result, written = served(tmp_path, "retry", backend, 0.02)
    attempts = {record["run"].partition(".")[2] for record in written if record["role"] == "assistant"}
    assert {"", "2", "3"} <= attempts, "nothing was answered in a later attempt"
    assert result["parked"] == result["failed"] + result["timed_out"] > 0
    assert result["timed_out"] > 0 and result["retried"] >= 2 * result["parked"]
    assert [record["content"] for record in written if record["content"].startswith("answer to: stubborn")]


@both
def test_background_flood_lets_foreground_work_start_before_jobs_that_came_first(tmp_path, backend):
    result, written = served(tmp_path, "background-flood", backend, 0.02)
    questions = [record["content"] for record in written if record["role"] == "user"]
    assert result["answered"] == len(questions) == 260
    behind = [
        sum(text.startswith("job") for text in questions[at:])
        for at, text in enumerate(questions)
        if text.startswith("message")
    ]
    assert behind[0] > 100, "jobs that had all been posted before it"
    assert behind[len(behind) // 2] > 40


def test_the_list_shows_every_shipped_scenario_with_a_line():
    done = lanes("run", "--list")
    assert done.returncode == 0
    listed = [line.split()[0] for line in done.stdout.splitlines()]
    assert listed == ["mixed", *sorted(set(shipped()) - {"mixed"})]
    assert {*get_args(WhenBusy), "drop-oldest", "summarize", "retry"} < set(listed)
    assert all(description and description == one_line(description) for _, description in described())
    assert {path.suffix for path in shipped().values()} == {".toml"}


def test_run_timeout_has_74_jobs_that_overrun_300_seconds_with_5_mb_each():
    found = plan(shipped()["run-timeout"], "run-timeout", NOWHERE, Overrides(scale=1.0))
    jobs = [line for line in found.lines if line.lane == "cron"]
    cron = next(spec for spec in found.lanes if spec.pattern == "cron")
    assert (len(jobs), cron.timeout) == (74, 300.0)
    assert {(job.context_mb, job.again) for job in jobs} == {(5.0, 1)}
    assert {job.behave for job in jobs} == {"block", "raise", "hang"}


def test_dual_lane_works_on_one_session_with_calls_longer_than_a_waiter_used_to_wait():
    found = plan(shipped()["dual-lane"], "dual-lane", NOWHERE, Overrides(scale=1.0))
    assert {line.conducted for line in found.lines} == {"agent:main:main"}
    calls = [line for line in found.lines if line.turn and line.behave == "ok"]
    assert {line.lane for line in calls} == {"main", "session:agent:main:main"}
    assert min(line.think for line in calls) > 60.0


LANES = """
[[lanes]]
pattern = "cron"
timeout = 300.0
idle_timeout = 100.0
grace = 20.0

[[load]]
lane = "cron"
count = 2
"""


def test_scale_shortens_every_limit_and_keeps_the_rest_of_a_default_lane(tmp_path):
    found = planned(tmp_path / "s.toml", LANES, scale=0.01)
    cron = next(spec for spec in found.lanes if spec.pattern == "cron")
    assert (cron.timeout, cron.idle_timeout, cron.grace) == (3.0, 1.0, pytest.approx(0.2))
    assert (cron.capacity, cron.group, cron.priority) == (8, "background", "background")
    assert next(spec for spec in found.lanes if spec.pattern == "main").timeout == 3.0


POLICIES = """
[[lanes]]
pattern = "session:*"
when_busy = "collect"
when_full = "summarize"
debounce = 10.0
retry = { attempts = 5, wait = 20.0, max_wait = 40.0, timeouts = true }

[[load]]
lane = "session:{session}"
sessions = ["a"]
count = 3
routes = ["phone", "desk"]
dedupe = "{session}/{number}"
when_busy = "steer"
behave = "flaky"
fails = 2
"""


def test_a_lane_has_policies_whose_times_are_scaled_too(tmp_path):
    found = planned(tmp_path / "s.toml", POLICIES, scale=0.01)
    chats = next(spec for spec in found.lanes if spec.pattern == "session:*")
    assert (chats.when_busy, chats.when_full, chats.debounce) == ("collect", "summarize", pytest.approx(0.1))
    assert chats.on_drop is not None
    assert (chats.retry.attempts, chats.retry.wait, chats.retry.max_wait, chats.retry.timeouts) == (5, 0.2, 0.4, True)
    assert found.sleeps_at_most == pytest.approx((300.0 + 2.0 + 100.0) * 0.01)


def test_a_load_names_routes_in_turn_and_fills_in_names(tmp_path):
    found = planned(tmp_path / "s.toml", POLICIES)
    assert [(line.route, line.dedupe) for line in found.lines] == [("phone", "a/1"), ("desk", "a/2"), ("phone", "a/3")]
    assert {(line.when_busy, line.behave, line.fails) for line in found.lines} == {("steer", "flaky", 2)}


def test_duration_is_counted_on_the_wall_clock(tmp_path):
    text = 'scale = 0.5\n[[load]]\nlane = "main"\nevery = 0.1\n'
    found = planned(tmp_path / "s.toml", text, duration=2.0)
    assert 3.5 < max(line.at for line in found.lines) <= 4.0


def test_a_traffic_file_lies_beside_its_scenario(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"lane": "main", "at": 2}\n\n{"lane": "session:x", "at": 1, "turn": false}\n')
    found = planned(tmp_path / "s.toml", 'traffic = "t.jsonl"')
    assert [(line.at, line.lane, line.conducted, line.turn) for line in found.lines] == [
        (1.0, "session:x", "x", False),
        (2.0, "main", None, True),
    ]


@pytest.mark.parametrize(
    "text, complaint",
    [
        ("foo = 1", "foo: unknown field; allowed: description, scale, duration, seed, lanes, groups, load, traffic"),
        ('[[lanes]]\npattern = "cron"\nidel = 3', "lanes[0].idel: unknown field; allowed: pattern, capacity, group,"),
        ("[[load]]\ncount = 1", "load[0].lane: is missing"),
        ('scale = "x"', "scale: 'x' is not allowed; allowed: a number"),
        ("scale = 0", "scale: 0.0 is not allowed; allowed: a number above 0"),
        ("lanes = 3", "lanes: 3 is not allowed; allowed: a list"),
        (
            '[[lanes]]\npattern = "cron"\npriority = "urgent"',
            "lanes[0].priority: 'urgent' is not allowed; allowed: 'fore",
        ),
        (
            '[[lanes]]\npattern = "cron"\ngroup = "nope"',
            "lane 'cron', group: 'nope' is unknown; allowed: background, control, main",
        ),
        (
            '[[lanes]]\npattern = "cron"\ntimeout = 5\nidle_timeout = 10',
            "idle_timeout: 10.0 s is longer than timeout (5.0 s)",
        ),
        ('[[lanes]]\npattern = "cron"\n[[lanes]]\npattern = "cron"', "'cron' is specified twice"),
        (
            '[[lanes]]\npattern = "cron"\nwhen_busy = "shout"',
            "lanes[0].when_busy: 'shout' is not allowed; allowed: 'queue', 'reject', 'interrupt', 'replace', 'collect'",
        ),
        ('[[lanes]]\npattern = "cron"\n[lanes.retry]\nattempts = 1', "retry, attempts: 1 is not allowed; allowed: "),
        (
            '[[lanes]]\npattern = "cron"\n[lanes.retry]\ntries = 1',
            "lanes[0].retry.tries: unknown field; allowed: attempts, wait, max_wait, timeouts",
        ),
        (
            '[[lanes]]\npattern = "cron"\nwhen_full = "drop_oldest"\nqueue_limit = 0',
            "when_full: 'drop_oldest' drops nothing, since queue_limit is 0",
        ),
        (
            '[[load]]\nlane = "crn"\ncount = 1',
            "lane: 'crn' is unknown; allowed: control, cron, heartbeat, main, session:*, subagent",
        ),
        (
            '[[load]]\nlane = "main"\ncount = 1\nbehave = { ok = 1, bad = 2 }',
            "load[0].behave: 'bad' is not allowed; allowed: 'ok'",
        ),
        ('[[load]]\nlane = "main"\ncount = 1\nevery = 1', "load[0]: every, count: exactly one of them is needed"),
        ("[[lanes", "not TOML: "),
        ("", "sends no messages"),
    ],
)
def test_a_scenario_that_cannot_be_used_is_refused_in_one_line(tmp_path, text, complaint):
    with pytest.raises(UsageError) as caught:
        planned(tmp_path / "s.toml", text)
    assert complaint in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "s.toml"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("nope", "not JSON: "),
        ("[1]", "[1] is not allowed; allowed: a table"),
        ('{"lane": "main", "foo": 1}', "foo: unknown field; allowed: lane, at, session, text, think, behave,"),
        ('{"text": "x"}', "lane: is missing"),
        ('{"lane": "nolane"}', "lane: 'nolane' is unknown; allowed: control, cron,"),
        ('{"lane": "main", "behave": "die"}', "behave: 'die' is not allowed; allowed: 'ok', 'flaky', 'raise', 'hang',"),
        ('{"lane": "main", "think": "x"}', "think: 'x' is not allowed; allowed: a number"),
        ('{"lane": "main", "fails": -1}', "fails: -1 is not allowed; allowed: a whole number from 0"),
        ('{"lane": "main", "dedupe": ""}', "dedupe: '' is not allowed; allowed: 1 to 1024 characters of text"),
        (
            '{"lane": "main", "session": "a", "turn": false, "when_busy": "steer"}',
            "when_busy: is for messages, and turn = false makes it a note",
        ),
        ('{"lane": "main", "at": -1}', "at: -1.0 is not allowed; allowed: 0 to 1e+08"),
        ('{"lane": "main", "session": ""}', "session: '' has 0 characters; allowed: 1 byte to 1 KiB"),
        ('{"lane": "session:"}', "session: '' has 0 characters"),
        ('{"lane": "session:a\\u0000b"}', "session: 'a\\x00b' has a control character"),
        ('{"lane": "main", "session": "a\\nb"}', "session: 'a\\nb' has a control character"),
        ('{"lane": "main", "session": "' + "x" * 10_000_000 + '"}', "has 10000000 characters; allowed: "),
        ('{"lane": "session:a", "session": "b"}', "session: 'b' is not the one of lane 'session:a'"),
        ("[" * 100_000, "not JSON: "),
    ],
)
def test_a_traffic_line_that_cannot_be_sent_is_refused_with_its_number(tmp_path, line, complaint):
    with pytest.raises(UsageError) as caught:
        planned(tmp_path / "t.jsonl", '{"lane": "main"}\n\n' + line + "\n")
    assert str(caught.value).startswith(f"{tmp_path / 't.jsonl'}, line 3: ")
    assert complaint in str(caught.value)
    assert len(str(caught.value)) <= 300 and str(caught.value).isprintable()


@pytest.mark.parametrize("name", ["missing.toml", "missing.jsonl", "."])
def test_a_file_that_cannot_be_read_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match="cannot be read"):
        plan(tmp_path / name, name, NOWHERE, Overrides())


def test_a_key_that_looks_like_a_path_stays_inside_the_directory(tmp_path):
    traffic = tmp_path / "t.jsonl"
    traffic.write_text('{"lane": "main", "session": "../x"}\n{"lane": "main", "session": "/etc/passwd"}\n')
    inside = tmp_path / "deep" / "sessions"
    done = lanes("run", traffic, "--sessions", inside)
    assert done.returncode == 0
    assert len(list(inside.glob("*.jsonl"))) == 2
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"t.jsonl"} | {
        p.name for p in inside.iterdir()
    }
    assert sorted(path.name for path in Path(tmp_path).iterdir()) == ["deep", "t.jsonl"]


# Generated traffic

CHATS = Load(lane="session:{session}", sessions=5, every=0.1, think=(0.1, 0.5), behave={"ok": 3, "raise": 1})


def test_the_same_seed_makes_the_same_traffic():
    assert generate([CHATS], duration=10, seed=7) == generate([CHATS], duration=10, seed=7)
    assert generate([CHATS], duration=10, seed=7) != generate([CHATS], duration=10, seed=8)


def test_another_load_leaves_the_others_as_they_were():
    alone = generate([CHATS], duration=10, seed=7)
    assert generate([CHATS, Load(lane="cron", count=3)], duration=10, seed=7)[: len(alone)] == alone


def test_generated_traffic_is_as_described():
    lines = generate([CHATS], duration=100, seed=1)
    assert 850 < len(lines) < 1150
    assert all(0 <= line.at <= 100 and 0.1 <= line.think <= 0.5 for line in lines)
    assert {line.lane for line in lines} == {f"session:chat-{n:02}" for n in range(1, 6)}
    assert 0.15 < sum(line.behave == "raise" for line in lines) / len(lines) < 0.35


def test_a_counted_load_is_spread_evenly():
    lines = generate([Load(lane="main", count=5, start=2, end=10)], duration=100, seed=1)
    assert [line.at for line in lines] == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    "fields, field",
    [
        ({"every": 0}, "every"),
        ({"count": -1}, "count"),
        ({"count": 1, "sessions": 0}, "sessions"),
        ({"count": 1, "sessions": []}, "sessions"),
        ({"count": 1, "lane": "session:{session}"}, "sessions"),
        ({"count": 1, "behave": {}}, "behave"),
        ({"count": 1, "behave": {"ok": -1}}, "behave"),
        ({"count": 1, "think": (2, 1)}, "think"),
        ({"every": 1e-9}, "every"),
    ],
)
def test_a_load_that_contradicts_itself_is_refused(fields, field):
    with pytest.raises(InvalidLoad, match=rf"load\[0\]\.{field}: "):
        generate([Load(**{"lane": "main", **fields})], duration=10, seed=1)

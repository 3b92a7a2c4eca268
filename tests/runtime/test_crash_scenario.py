"""`lanes run crash`: a serving process that is killed again and again, and a verdict on what it leaves."""

from __future__ import annotations

import json
import os
import re
import signal
from collections import Counter
from dataclasses import replace

import pytest

from lanes import SessionLayout
from runtime.trial import crashes, wire
from runtime.trial.crash_verdict import Evidence, judge
from runtime.trial.inbox_reading import Disk, Question, Row, read
from runtime.trial.scenario import Overrides, plan
from runtime.usage_error import UsageError
from tests.command import lanes, records, result_of, started
from tests.poll import eventually_sync

WRONG = ("lost", "repeated", "unnamed", "questions", "out_of_order")


@pytest.fixture(autouse=True)
def _nothing_stays_behind(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)


# The verdict


def kept(number, state="done", *, lane="session:a", repeat=0, ask=None, name=None):
    name = name or f"m{number}"
    body = {"keep": {"name": name}} if ask else {"name": name}
    return Row(number, lane, "a", state, repeat, name, ask, json.dumps(body).encode(), 0.0, 0.0)


def begins(number):
    return {"begins": [number]}


def answers(name):
    return {"answers": [name]}


def world():
    """What a good run leaves: answered, failed, repeated, unknown, and asked about; and what was reported of it."""
    rows = [
        kept(1),
        kept(2, "failed"),
        kept(3, repeat=3, lane="main"),
        kept(4, "unknown"),
        kept(5),
        kept(6),
        kept(7, ask="q", name="m5"),
    ]
    session = [
        begins(1),
        answers("m1"),
        begins(2),
        begins(4),
        {"unknown": [4]},
        begins(5),
        {"begins": [7], "ask": "q", "outcome": "answered", "value": "yes"},
        answers("m5"),
        begins(6),
        answers("m6"),
    ]
    disk = Disk(
        {row.id: row for row in rows},
        {"q": Question("q", "answered", "yes", "m5")},
        [session, [begins(3), begins(3), answers("m3")]],
    )
    evidence = Evidence()
    for number in range(1, 7):
        evidence.note(wire.Kept(f"m{number}", number, "accepted"))
    for process, begun in ((1, (1, 2, 3, 4)), (2, (3, 5, 7, 6))):
        evidence.process = process
        for number in begun:
            evidence.note(wire.Begun([number]))
            if number == 5:
                evidence.note(wire.Asked("q", "m5"))
    evidence.process = 3
    evidence.note(wire.Answered("q", "yes"))
    return disk, evidence


def change(disk, number, **fields):
    disk.rows[number] = disk.rows[number]._replace(**fields)


def closed(disk, **fields):
    disk.questions["q"] = disk.questions["q"]._replace(**fields)


def test_what_a_good_run_leaves_is_not_complained_about():
    disk, evidence = world()
    found = judge(disk, evidence, ended=True)
    assert found.complaints == []
    assert found.as_json()["inbox"] == dict.fromkeys(WRONG, 0)
    assert (found.again, found.asked, found.survived) == (1, 1, 1)
    assert found.unknown == ["message 4 (m4) on lane session:a"]


PLANTED = {
    "an accepted message that is gone": (lambda disk, _: disk.rows.pop(2), "lost"),
    "one whose session has it alone": (lambda disk, _: disk.rows.pop(4), "lost"),
    "one that is kept under another id": (lambda _, told: told.kept.update(m1={9}), "lost"),
    "one that was acknowledged under two ids": (lambda _, told: told.kept["m1"].add(2), "lost"),
    "one that is kept twice": (lambda disk, _: disk.rows.update({8: kept(8, name="m1")}), "lost"),
    "one that still waits": (lambda disk, _: change(disk, 2, state="accepted"), "lost"),
    "one that is started for ever": (lambda disk, _: change(disk, 2, state="started"), "lost"),
    "one that was thrown away": (lambda disk, _: change(disk, 2, state="dropped"), "lost"),
    "one that is done without an answer": (lambda disk, _: disk.sessions[0].remove(answers("m1")), "lost"),
    "a person's answer that came to nothing": (lambda disk, _: disk.sessions[0].remove(answers("m5")), "lost"),
    "one that was begun again without leave": (lambda _, told: told.begun[1].append(2), "repeated"),
    "one that was begun too often": (lambda _, told: told.begun[3].extend([3, 4]), "repeated"),
    "an unknown one that is not named": (lambda disk, _: disk.sessions[0].remove({"unknown": [4]}), "unnamed"),
    "one that is named, and done": (lambda disk, _: disk.sessions[0].insert(5, {"unknown": [1]}), "unnamed"),
    "one that is named behind what came later": (
        lambda disk, _: disk.sessions[0].append(disk.sessions[0].pop(4)),
        "unnamed",
    ),
    "a question that is gone": (lambda disk, _: disk.questions.pop("q"), "questions"),
    "a question that is open": (lambda disk, _: closed(disk, state="open"), "questions"),
    "a question that was answered twice": (lambda _, told: told.answered["q"].append("no"), "questions"),
    "an answer that was lost at expiry": (lambda disk, _: closed(disk, state="expired", value=None), "questions"),
    "an answer that brought nothing": (lambda disk, _: disk.rows.pop(7), "questions"),
    "an answer that was brought twice": (
        lambda disk, _: disk.rows.update({8: kept(8, ask="q", name="m5")}),
        "questions",
    ),
    "an answer that its session has otherwise": (lambda disk, _: disk.sessions[0][6].update(value="no"), "questions"),
    "one that begins behind what came later": (
        lambda disk, _: disk.sessions[0].append(disk.sessions[0].pop(0)),
        "out_of_order",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", PLANTED)
def test_each_fault_is_seen(fault):
    plant, name = PLANTED[fault]
    disk, evidence = world()
    plant(disk, evidence)
    found = judge(disk, evidence, ended=True)
    assert found.wrong[name] > 0, found.complaints
    assert len(found.complaints) == sum(found.wrong.values())


def test_what_waits_when_it_was_stopped_is_no_loss():
    disk, evidence = world()
    change(disk, 1, state="accepted")
    change(disk, 2, state="started")
    change(disk, 5, state="waiting")
    change(disk, 6, state="accepted")
    closed(disk, state="open", value=None)
    evidence.answered.clear()
    del disk.rows[7], disk.sessions[0][2:]
    assert judge(disk, evidence, ended=False).complaints == []
    assert judge(disk, evidence, ended=True).complaints


# What a file may say

LOAD = """
[[lanes]]
pattern = "session:*"
timeout = 20.0

[[lanes]]
pattern = "main"
repeat = true

[[load]]
lane = "session:{session}"
sessions = 4
count = 30
end = 0.6
think = [0.01, 0.05]

[[load]]
lane = "main"
sessions = ["jobs"]
count = 10
end = 0.6

[[load]]
lane = "session:{session}"
sessions = 4
count = 8
end = 0.4
behave = "ask"

[crash]
kills = 2
reports = [20, 60]
person = 0.1
"""


@pytest.mark.parametrize(
    "old, new, complaint",
    [
        ("kills = 2", "kills = 0", "crash.kills: 0 is not allowed; allowed: a number from 1"),
        ("[20, 60]", "[9, 8]", "crash.reports: [9, 8] is not allowed; allowed: [least, most], from 1"),
        ("[20, 60]", "[1]", "crash.reports: [1]: Expected `array` of length 2, got 1"),
        ("person = 0.1", "person = inf", "crash.person: inf is not allowed; allowed: seconds from 0"),
        ("kills = 2", "kill = 2", "crash.kill: unknown field; allowed: kills, reports, person"),
        ("[crash]", "[restart]\n[crash]", "crash, restart: only one of them is allowed"),
        ('sessions = ["jobs"]', "", "session: is missing for a message to lane 'main'; [crash] needs one"),
        ('behave = "ask"', 'behave = "hang"', "behave: 'hang' is not allowed with [crash]; allowed: 'ok', 'raise', "),
        ('behave = "ask"', "again = 1", "again, dedupe, turn, when_busy: not with [crash]"),
        ("timeout = 20.0", 'when_busy = "collect"', "lane 'session:*', when_busy, debounce, retry: not with [crash]"),
        (LOAD[LOAD.index("[crash]") :], "", "behave: 'ask' needs an inbox; allowed: with [crash]"),
        ("repeat = true", "repeat = 1", "lanes[1].repeat: 1 is not allowed; allowed: true or false"),
    ],
)
def test_a_crash_that_cannot_be_used_is_refused(tmp_path, old, new, complaint):
    file = tmp_path / "load.toml"
    file.write_text(LOAD.replace(old, new))
    with pytest.raises(UsageError, match=re.escape(complaint)):
        plan(file, "load", SessionLayout(tmp_path), Overrides())


def test_a_directory_with_an_inbox_is_refused(tmp_path):
    (tmp_path / ".lanes").mkdir()
    (tmp_path / ".lanes" / "inbox.db").touch()
    with pytest.raises(UsageError, match="allowed: a directory without an inbox"):
        crashes.check(str(tmp_path))


def test_times_are_scaled(tmp_path):
    (tmp_path / "load.toml").write_text(LOAD)
    found = plan(tmp_path / "load.toml", "load", SessionLayout(tmp_path), replace(Overrides(), scale=0.5))
    assert found.crash is not None
    assert found.crash.person == 0.05


# The command


@pytest.mark.failure("G9")
def test_the_shipped_scenario_is_green_after_ten_kills(tmp_path):
    done = lanes("run", "crash", "--json", "--sessions", tmp_path)
    result = result_of(done)
    assert (done.returncode, result["verdict"]) == (0, "green"), done.stderr
    assert (result["kills"], result["died"], result["processes"]) == (10, 10, 11)
    assert result["inbox"] == dict.fromkeys(WRONG, 0) and result["lost"] == result["doubled"] == 0
    assert result["unknown"] > 0 and result["begun_again"] > 0 and result["asked_before_a_kill"] > 0
    assert result["kept"] == result["messages"] + result["asked"]
    assert result["acknowledged"] == result["verified"] > 0
    named = {key for record in records(tmp_path) for key in record.get("unknown", ())}
    assert len(named) == result["unknown"]


@pytest.mark.failure("G9")
def test_a_service_of_ones_own_is_killed_on_trio(tmp_path):
    (tmp_path / "load.toml").write_text(LOAD)
    done = lanes("run", tmp_path / "load.toml", "--json", "--backend", "trio", "--sessions", tmp_path / "s")
    result = result_of(done)
    assert (done.returncode, result["verdict"], result["kills"]) == (0, "green", 2), done.stderr
    again = lanes("run", tmp_path / "load.toml", "--sessions", tmp_path / "s")
    assert (again.returncode, again.stderr.count("\n")) == (2, 1)
    assert again.stderr.startswith("lanes: --sessions: ") and "is there already" in again.stderr


def test_ctrl_c_ends_it_in_order_and_leaves_what_waits_in_the_inbox(tmp_path):
    slow = LOAD.replace("think = [0.01, 0.05]", "think = 0.3").replace("end = 0.6", "end = 0.1")
    (tmp_path / "load.toml").write_text(
        slow.replace("kills = 2\nreports = [20, 60]", "kills = 1\nreports = [900, 900]")
    )
    log = tmp_path / "log"
    with started("run", tmp_path / "load.toml", "--json", "--sessions", tmp_path / "s", log=log) as parent:
        eventually_sync(lambda: (tmp_path / "s").exists() and len(records(tmp_path / "s")) > 8, within=30)
        parent.send_signal(signal.SIGINT)
        out, _ = parent.communicate(timeout=60)
    result = json.loads(out)
    assert (parent.returncode, result["verdict"]) == (0, "green"), log.read_text()
    assert result["kills"] == 0 and result["inbox"] == dict.fromkeys(WRONG, 0)
    assert Counter(row.state for row in read(str(tmp_path / "s")).rows.values())["accepted"] > 0
    pids = [int(pid) for pid in re.findall(r"supervisor_started +pid=(\d+)", log.read_text())]
    assert pids and not any(os.path.exists(f"/proc/{pid}") for pid in pids)

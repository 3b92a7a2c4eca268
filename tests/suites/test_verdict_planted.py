"""The verdict of `lanes run` on a library with a defect: red, for the right reason. On the library as it is: green."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from lanes import SessionLayout
from tests.command import result_of

SCENARIO = """
traffic = "traffic.jsonl"

[[lanes]]
pattern = "session:*"
timeout = 0.2
grace = 0.05

[[lanes]]
pattern = "main"
timeout = 0.2
grace = 0.05
"""
TRAFFIC = [
    {"lane": "session:torn"},
    {"lane": "session:a", "text": "one", "behave": "swallow", "hold": 0.4},
    {"lane": "main", "session": "a", "text": "two", "at": 0.01, "think": 0.1},
    {"lane": "main", "session": "a", "text": "three", "at": 0.01, "think": 0.15},
]

PLANTED = {
    "nothing": ("", {}),
    "a turn that is kept": (
        "from tests.planted.lanes import DEFECTS; DEFECTS['turn_kept_on_abandonment']()",
        {"stuck_sessions": 1},
    ),
    "a torn tail that is not sealed": (
        "from tests.planted.locks import DEFECTS; DEFECTS['no_tail_seal']()",
        {"lost": 1, "interleaved": 1},
    ),
    "acknowledged before it is written": (
        "from lanes import Session\n"
        "async def append(self, record): pass\n"
        "Session.append = append",
        {"lost": 7, "interleaved": 1},  # the late answer of the dead run is taken, too
    ),
    "dead runs may write": (
        "from locks import Fence\n"
        "Fence.check = lambda self, path: None\n"
        "Fence.closed = property(lambda self: False)\n"
        "Fence.end_by = Fence.close = lambda self, *args: None\n"
        "from locks.rights.claim import Claim\n"
        "Claim.check = lambda self, path: None",
        {"interleaved": 1},
    ),
    "a session for everybody at once": (
        "from lanes.core.execution import Execution\n"
        "init = Execution.__init__\n"
        "def without_a_turn(self, *args, **kwargs):\n"
        "    init(self, *args, **kwargs)\n"
        "    self.file = None\n"
        "Execution.__init__ = without_a_turn",
        {"interleaved": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", PLANTED)
def test_the_verdict_notices(run_with, tmp_path, defect):
    patch, least = PLANTED[defect]
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in TRAFFIC))
    (tmp_path / "sessions").mkdir()
    Path(SessionLayout(tmp_path / "sessions").file_of("torn")).write_text('{"torn')
    done = run_with(patch)
    result = result_of(done)
    assert result["messages"] == 4
    assert result["verdict"] == ("red" if least else "green"), done.stderr
    assert done.returncode == (1 if least else 0)
    found = {name: result[name] for name in ("lost", "interleaved", "stuck_sessions")}
    assert all(found[name] >= number for name, number in least.items()), (found, done.stderr)
    assert all(name in least or number == 0 for name, number in found.items()), (found, done.stderr)


POLICIES = """
traffic = "traffic.jsonl"

[[lanes]]
pattern = "session:*"
timeout = 1.0
grace = 0.1
queue_limit = 1
when_full = "drop_oldest"

[[lanes]]
pattern = "main"
timeout = 1.0
grace = 0.1
"""
MESSAGES = [
    {"lane": "session:a", "text": "one", "think": 0.2},
    {"lane": "session:a", "text": "two", "at": 0.02, "when_busy": "steer"},
    {"lane": "session:a", "text": "too late to be read", "at": 0.17, "when_busy": "steer"},
    {"lane": "session:b", "text": "three", "think": 0.1},
    {"lane": "session:b", "text": "four", "at": 0.01, "when_busy": "queue"},
    {"lane": "session:b", "text": "five", "at": 0.02, "when_busy": "queue"},
    {"lane": "main", "session": "c", "text": "six", "think": 0.1},
    {"lane": "main", "session": "c", "text": "seven", "at": 0.01},
    {"lane": "main", "session": "c", "text": "eight", "at": 0.02, "when_busy": "collect"},
]

LOSSES = {
    "nothing": ("", 8, ""),
    "a message that joins a waiting one is forgotten": (
        "from lanes.core.execution import Execution\n"
        "join = Execution.join\n"
        "def forget(self, *args):\n"
        "    join(self, *args)\n"
        "    self.messages.pop()\n"
        "Execution.join = forget",
        8,
        "unanswered   'eight': its run was done without it",
    ),
    "a message that is read is not shown to the body": (
        "from lanes import Inbox\n"
        "take = Inbox.take\n"
        "Inbox.take = lambda self: (take(self), [])[1]",
        8,
        "unanswered   'two': its run was done without it",
    ),
    "what is left unread is not queued": (
        "from lanes.core.steer import Steering\n"
        "Steering.queue_unread = lambda self, execution: execution.unread()",
        7,
        "stuck        session 'a': ",
    ),
    "who was dropped is not told": (
        "from lanes.core.hooks import Hooks\n"
        "ended = Hooks.ended\n"
        "Hooks.ended = lambda self, run: None if run.reason.startswith('dropped') else ended(self, run)",
        8,
        "untold       1 messages whose senders were never told",
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", LOSSES)
def test_the_verdict_notices_who_loses_a_message_by_a_policy(run_with, tmp_path, defect):
    patch, answered, complaint = LOSSES[defect]
    (tmp_path / "scenario.toml").write_text(POLICIES)
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in MESSAGES))
    done = run_with(patch)
    result = result_of(done)
    assert (result["messages"], result["answered"]) == (9, answered), done.stderr
    assert (result["verdict"], done.returncode) == (("red", 1) if complaint else ("green", 0)), done.stderr
    assert complaint in done.stderr
    assert (result["steered"], result["collected"], result["dropped"]) == (1, 1, 1)


@pytest.fixture
def run_with(planting, tmp_path):
    """`lanes run` of the scenario in `tmp_path`, in virtual time, by a library with something changed in it."""

    def run(patch):
        scenario = ["run", "scenario.toml", "--sessions", "sessions", "--json"]
        done = planting.run("tests.children.virtual_run", patch, *scenario, cwd=tmp_path)
        return subprocess.CompletedProcess(scenario, done.code, done.stdout, done.stderr)

    return run

"""The verdict of `lanes run` on a library with a defect: red, for the right reason. On the library as it is: green."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lanes import SessionLayout
from tests.command import result_of

ROOT = Path(__file__).parent.parent

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
    {"lane": "session:a", "text": "one", "behave": "block", "hold": 0.4},
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
        {"lost": 7},
    ),
    "dead runs may write": (
        "from locks import Fence\n"
        "Fence.check = lambda self, path: None\n"
        "Fence.closed = property(lambda self: False)\n"
        "Fence.end_by = Fence.close = lambda self, *args: None\n"
        "from locks.claim import Claim\n"
        "Claim.check = lambda self, path: None",
        {"interleaved": 1},
    ),
    "a session for everybody at once": (
        "from lanes.execution import Execution\n"
        "init = Execution.__init__\n"
        "def without_a_turn(self, *args, **kwargs):\n"
        "    init(self, *args, **kwargs)\n"
        "    self.file = None\n"
        "Execution.__init__ = without_a_turn",
        {"interleaved": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("defect", PLANTED)
def test_the_verdict_notices(tmp_path, defect):
    patch, least = PLANTED[defect]
    (tmp_path / "scenario.toml").write_text(SCENARIO)
    (tmp_path / "traffic.jsonl").write_text("".join(json.dumps(line) + "\n" for line in TRAFFIC))
    (tmp_path / "sessions").mkdir()
    Path(SessionLayout(tmp_path / "sessions").file_of("torn")).write_text('{"torn')
    child = f"import sys\n{patch}\nfrom runtime.cli import main\nsys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", child, "run", "scenario.toml", "--sessions", "sessions", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    result = result_of(done)
    assert result["messages"] == 4
    assert result["verdict"] == ("red" if least else "green"), done.stderr
    assert done.returncode == (1 if least else 0)
    found = {name: result[name] for name in ("lost", "interleaved", "stuck_sessions")}
    assert all(found[name] >= number for name, number in least.items()), (found, done.stderr)
    assert all(name in least or number == 0 for name, number in found.items()), (found, done.stderr)

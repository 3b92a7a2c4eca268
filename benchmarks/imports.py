"""What an import costs, in instructions: the same on every machine, however busy it is. `valgrind` counts them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

from .measure import CHILD_S, Figure

_COUNTED = re.compile(r"Collected : (\d+)")
SUPERVISOR = "from runtime import Supervisor"
WHAT_IT_NEEDS = (
    "import dataclasses, msgspec, sniffio; from anyio import CancelScope, Event, create_task_group, to_thread;"
    " from anyio.lowlevel import checkpoint"
)
MOST_SUPERVISOR = 362.0
"""Half of what it was before asyncio, psutil and others were imported only where they are needed, in millions."""


def figures() -> list[Figure]:
    """The figures; none where there is no valgrind."""
    if shutil.which("valgrind") is None:
        return [Figure("imports: not counted, there is no valgrind", 0.0, "")]
    help_, click = "from runtime.cli import main; main(['--help'])", "import click"
    needs = f"the libraries that it needs: {instructions(WHAT_IT_NEEDS):.0f}, no module at all: {instructions(''):.0f}"
    return [
        Figure(f"instructions of `{SUPERVISOR}`", instructions(SUPERVISOR), "M", MOST_SUPERVISOR, detail=needs),
        Figure(
            "instructions of `lanes --help`", instructions(help_), "M", detail=f"{click}: {instructions(click):.0f}"
        ),
    ]


def instructions(code: str) -> float:
    """Millions of instructions of a Python process that runs some code, its bytecode compiled before."""
    command = [sys.executable, "-c", code]
    writes = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    subprocess.run(command, check=True, capture_output=True, timeout=CHILD_S, env=writes)
    valgrind = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null"]
    run = subprocess.run([*valgrind, *command], check=True, capture_output=True, text=True, timeout=CHILD_S, env=writes)
    found = _COUNTED.search(run.stderr)
    assert found is not None, run.stderr
    return int(found[1]) / 1e6

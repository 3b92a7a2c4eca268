"""What tests of this folder share: a session, its lock file, and a process beside ours."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A session."""
    return str(tmp_path / "session.jsonl")


@pytest.fixture
def lock(path: str) -> Path:
    """The lock file of the session."""
    return Path(path + ".lock")


@pytest.fixture
def other() -> Iterator[subprocess.Popen[bytes]]:
    """A process that lives."""
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        yield child
        child.kill()

"""The wheel, built twice and used from where it was unpacked. `make package` tries more, and takes minutes."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from tests import ROOT
from tests.package.__main__ import EPOCH, HERE, contents_wrong, lowest

PROGRAM = """
import runpy, sys
import runtime.cli
assert runtime.__file__.startswith(sys.argv[1]), runtime.__file__
assert runtime.cli.main(["example", "gateway"]) == 0
sys.argv = ["user_program.py", "sessions"]
runpy.run_path({program!r}, run_name="__main__")
"""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="what should be in it is what is committed")
def test_the_wheel_is_the_same_each_time_has_what_is_committed_and_works(tmp_path, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    first, second = (
        next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path / name), versions=["standard"])) for name in "ab"
    )
    with open(first, "rb") as one, open(second, "rb") as other:
        assert one.read() == other.read()
    assert contents_wrong(Path(first)) == []
    unpacked = tmp_path / "unpacked"
    with zipfile.ZipFile(first) as wheel:
        wheel.extractall(unpacked)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(program=str(HERE / "user_program.py")), str(unpacked)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(unpacked)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "examples" / "wire.py").exists()
    assert done.stdout.count("1 tokens, 2 records") == 2


def test_every_dependency_of_a_user_has_a_lowest_version():
    assert {"anyio==4.14", "psycopg==3.2.2", "starlette==0.41"} <= set(lowest())
    assert all(part.count("==") == 1 for part in lowest())


def test_what_a_wheel_lacks_or_has_too_much_is_seen(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.whl", "w") as wheel:
        wheel.writestr("lanes/__init__.py", "")
        wheel.writestr("tests/__init__.py", "")
    wrong = contents_wrong(tmp_path / "x.whl")
    assert "missing: runtime/examples/gateway.py" in wrong and "missing: locks/py.typed" in wrong
    assert "not wanted: tests/__init__.py" in wrong and "missing: lanes/__init__.py" not in wrong


def test_the_container_starts_a_program_that_is_there_under_an_init_and_asks_for_its_health():
    text = (ROOT / "examples" / "deploy" / "Dockerfile").read_text("utf-8")
    gateway = (ROOT / "examples" / "gateway.py").read_text("utf-8")
    for line in ("RUN lanes example gateway", 'ENTRYPOINT ["tini", "--"]', 'CMD ["python", "-m", "examples.gateway"]'):
        assert f"\n{line}\n" in text
    assert "127.0.0.1:8000/healthz" in text and 'Route("/healthz"' in gateway
    assert "\nUSER gateway\n" in text and "\nHEALTHCHECK " in text

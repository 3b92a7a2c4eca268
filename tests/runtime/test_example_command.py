"""`lanes example`: which files it writes, and what it refuses in one line."""

from __future__ import annotations

import pytest

from runtime.cli import main
from tests import ROOT


@pytest.fixture
def said(capsys, tmp_path, monkeypatch):
    """Calls the command in an empty directory; returns its exit code, and what it has printed."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        code = main(["example", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def source_of(name):
    return (ROOT / "examples" / f"{name}.py").read_bytes()


def test_an_example_is_written_with_those_that_it_imports(said, tmp_path):
    code, out, _ = said("gateway")
    assert code == 0 and "head -30 examples/gateway.py" in out
    written = {path.stem: path.read_bytes() for path in (tmp_path / "examples").iterdir()}
    assert written == {name: source_of(name) for name in ("gateway", "agent", "wire")}
    assert said("gateway")[0] == 0  # what is there already is the same


def test_without_a_name_all_are_listed(said):
    code, out, _ = said()
    names = {path.stem for path in (ROOT / "examples").glob("*.py")} - {"__init__"}
    assert code == 0 and {line.split()[0] for line in out.splitlines()} == names


def test_a_file_that_was_changed_is_left_alone_and_nothing_else_is_written(said, tmp_path):
    mine = tmp_path / "there" / "examples" / "wire.py"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    code, out, err = said("gateway", "--to", "there")
    assert (code, out, mine.read_text()) == (2, "", "mine")
    assert err.startswith("lanes: there/examples/wire.py: is there already") and err.count("\n") == 1
    assert list(mine.parent.iterdir()) == [mine]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("nothing",), "example: 'nothing' is unknown; allowed: agent, bot,"),
        (("bot", "--to", "/proc"), "/proc/examples"),
    ],
)
def test_what_cannot_be_is_one_line(said, arguments, words):
    code, out, err = said(*arguments)
    assert (code, out) == (2, "") and words in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["fastapi_sse", "telegram_bot", "slack_bot", "mcp_server", "cron_worker"])
def test_an_example_of_a_framework_is_short(name):
    assert source_of(name).count(b"\n") <= 120

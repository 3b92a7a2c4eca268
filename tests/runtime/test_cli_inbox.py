"""`lanes inbox`, `lanes asks` and `lanes answer`: what they print and change, and which exit code they have."""

from __future__ import annotations

from typing import Any

import pytest

from lanes import LaneSpec
from runtime import Supervisor
from runtime.cli import main
from runtime.testing.inline import inline
from tests.inboxes import rows

pytestmark = pytest.mark.backends("asyncio")
BYTES = "\udcff"
"""A byte on a command line that is no UTF-8."""
HUGE = "9" * 30


async def handle(ctx: Any, messages: Any) -> Any:
    if messages[0].body == "ask":
        raise await ctx.ask("Well?", options=["yes", "no"], expires=3600)
    if messages[0].body == "fail":
        raise ValueError("no")
    return messages[0].body


@pytest.fixture
async def directory(virtual, tmp_path):
    """A directory with one message that is done, one that has failed, and one that waits for a person."""
    with inline():
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=handle)], inbox=True) as sup:
            for key, body in (("a", "hello"), ("b", "fail"), ("c", "ask")):
                await (await sup.accept(f"session:{key}", body)).wait()
    return str(tmp_path)


def said(capsys: Any, *arguments: str) -> tuple[int, str]:
    """The exit code of a command, and what it has printed."""
    capsys.readouterr()  # what the supervisor has logged
    code = main(arguments)
    printed = capsys.readouterr()
    return code, printed.out + printed.err


async def test_messages_are_listed_and_shown(directory, capsys):
    code, text = said(capsys, "inbox", "list", directory)
    assert code == 0 and [line.split()[:2] for line in text.splitlines()[:-1]] == [
        ["3", "waiting"],
        ["2", "failed"],
        ["1", "done"],
    ]
    assert text.splitlines()[-1] == f"{directory}: 1 done, 1 failed, 1 waiting"
    code, text = said(capsys, "inbox", "list", directory, "--session", "b", "--state", "failed", "--limit", "1")
    assert code == 0 and "2  failed     session:b" in text and "ValueError: no" in text and "3 " not in text[:10]
    code, text = said(capsys, "inbox", "show", directory, "1")
    assert code == 0 and "\nbody         hello\n" in text and "\nstate        done\n" in text
    assert said(capsys, "inbox", "show", directory, "4") == (1, f"lanes: message 4 is not kept in {directory}\n")


async def test_a_question_is_shown_and_answered_once(directory, capsys, tmp_path):
    code, text = said(capsys, "asks", directory)
    assert code == 0 and 'session c: "Well?" ["yes", "no"], asked' in text and "1 open" in text
    ask = text.split()[0]
    code, text = said(capsys, "answer", directory, ask, "maybe")
    assert code == 2 and "'maybe' is no answer to question" in text and '"yes", "no"' in text
    assert said(capsys, "answer", directory, ask, '"yes"', "--json", "--by", "ann") == (0, "answered: message 4\n")
    code, text = said(capsys, "answer", directory, ask, "no")
    assert code == 1 and "is answered by 'ann'" in text
    assert rows(tmp_path, "id, state", "id > 2") == [(3, "done"), (4, "accepted")]
    assert said(capsys, "asks", directory) == (0, f"{directory}: 0 open\n")


async def test_only_what_waits_for_an_operator_is_requeued_or_discarded(directory, capsys, tmp_path):
    code, text = said(capsys, "inbox", "requeue", directory, "1", "9")
    assert code == 1 and "message 1 is done; allowed: one that is parked" in text and "message 9 is not kept" in text
    assert said(capsys, "inbox", "discard", directory, "3") == (0, "message 3, which was waiting, is discarded\n")
    assert rows(tmp_path, "state") == [("done",), ("failed",), ("cancelled",)]
    assert said(capsys, "inbox", "purge", directory, "--older-than", "0")[0] == 0
    assert rows(tmp_path, "id") == []


@pytest.mark.failure("G15")
@pytest.mark.parametrize(
    "arguments, named",
    [
        (["inbox", "show", "DIR", HUGE], "MESSAGE"),
        (["inbox", "requeue", "DIR", "1", HUGE], "MESSAGE"),
        (["inbox", "discard", "DIR", "0"], "MESSAGE"),
        (["inbox", "list", "DIR", "--limit", HUGE], "--limit"),
        (["inbox", "list", "DIR", "--lane", BYTES], "--lane"),
        (["inbox", "list", "DIR", "--session", BYTES], "--session"),
        (["inbox", "list", "DIR", "--state", "lost"], "--state"),
        (["inbox", "list", "DIR/none"], "DIR"),
        (["inbox", "purge", "DIR", "--older-than", "-1"], "--older-than"),
        (["asks", "DIR", "--limit", "0"], "--limit"),
        (["answer", "DIR", BYTES, "yes"], "ASK"),
        (["answer", "DIR", "x", BYTES], "VALUE"),
        (["answer", "DIR", "x", "{", "--json"], "VALUE"),
        (["answer", "DIR", "x", "yes", "--by", BYTES], "--by"),
    ],
    ids=range(14),
)
async def test_input_that_cannot_be_used_is_one_line_that_names_it(directory, capsys, arguments, named):
    code, text = said(capsys, *(one.replace("DIR", directory) for one in arguments))
    assert code == 2 and named in text and text.startswith("lanes: ") and text.count("\n") == 1, text

"""The code of docs/cluster.md, on a database that is there."""

from __future__ import annotations

from lanes import LaneSpec
from runtime import PostgresStore, Supervisor
from runtime.cli import main
from tests import ROOT
from tests.documents import run_page

PAGE = ROOT / "docs" / "cluster.md"
URL = '"postgresql://app@db.internal/chat"'


async def answer(ctx, messages):
    return messages[0].body["text"]


def test_the_code_of_the_document_runs(pg, schema, monkeypatch, capfd):
    monkeypatch.setenv("LANES_STORE", pg.dsn)
    assert main(["db", "init", "--schema", schema]) == 0
    text = PAGE.read_text("utf-8")
    assert URL in text
    given = {"LaneSpec": LaneSpec, "PostgresStore": PostgresStore, "Supervisor": Supervisor, "answer": answer}
    made = run_page(PAGE, text.replace(URL, f"{pg.dsn!r}, schema={schema!r}"), **given)
    assert made["outcome"].value == "hello"

"""`lanes db`: what it prints and changes, and which exit code it has."""

from __future__ import annotations

import re
from functools import partial

import anyio.to_thread
import psycopg
import pytest

from lanes import LaneSpec
from runtime import PostgresStore, Supervisor
from runtime.cli import main
from runtime.postgres import by_hand
from runtime.trial.postgres_server import PostgresServer
from tests import ROOT
from tests.command import lanes, result_of

pytestmark = pytest.mark.backends("asyncio")


async def handle(ctx, messages):
    if messages[0].body == "fail":
        raise ValueError("no")
    if messages[0].body == "ask":
        raise await ctx.ask("Well?", expires=3600)
    await ctx.finish({"answered": messages[0].body}, "kept")


@pytest.fixture
def said(pg, schema, capfd, monkeypatch):
    """What a command prints on the store of this test, and its exit code. Its loop needs a thread of its own."""
    monkeypatch.setenv("LANES_STORE", pg.tcp_dsn)
    monkeypatch.setenv("LANES_SCHEMA", schema)

    async def run(*arguments):
        capfd.readouterr()
        code = await anyio.to_thread.run_sync(main, ["db", *arguments])
        printed = capfd.readouterr()
        return code, printed.out + "".join(line for line in printed.err.splitlines(True) if line.startswith("lanes: "))

    return run


async def as_json(*arguments):
    """What a command prints for programs: by a process of its own, since it takes standard output for that alone."""
    return result_of(await anyio.to_thread.run_sync(partial(lanes, "db", *arguments, "--json")))


async def test_a_schema_is_made_once_and_checked(said, schema):
    code, text = await said("check")
    assert code == 1 and f"has no schema '{schema}' of ours" in text and "lanes db init" in text
    assert (await said("nodes"))[0] == 2
    assert [(await said("init"))[1].rpartition(": ")[2] for _ in range(2)] == ["made\n", "there already\n"]
    code, text = await said("check")
    assert code == 0 and [line.split()[:2] for line in text.splitlines()] == [
        ["ok", name] for name in ("server", "usable", "rights", "clock", "connections", "pooler")
    ]


async def test_nodes_sessions_and_messages_are_shown_and_put_right_by_hand(said, pg, schema):
    store = PostgresStore(pg.dsn, schema=schema, create=True)
    async with Supervisor(store, lanes=[LaneSpec("session:*", handler=handle)], node="gw-1") as sup:
        for key, body in (("a", "hello"), ("b", "fail"), ("c", "ask")):
            await (await sup.accept(f"session:{key}", body)).wait(60)
        code, text = await said("nodes")
        assert code == 0 and text.startswith("gw-1             alive  ") and "; 3 sessions: " in text
        (node,) = (await as_json("nodes"))["nodes"]
        assert (node["name"], node["state"], node["ttl"]) == ("gw-1", "alive", 10.0)
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"insert into {schema}.node (id, name, host, pid, ttl, grace) values (7, 'x', 'h', 1, 0, 0)")
        connection.execute(f"update {schema}.session set owner = 7, pending = 1, since = 2 where place = 's:b'")
        connection.execute(f"update {schema}.session set owner = 8, next_seq = 0, incarnation = 1 where place = 's:a'")
    assert "x                dead " in (await said("nodes"))[1]
    code, text = await said("sessions")
    assert code == 0 and [line.partition(",")[0] for line in text.splitlines()] == [
        "b: conducted by x",
        "a: conducted by node 8",
        "c: conducted by none",
        "3 shown",
    ]
    assert "which is gone, 0 records, 1 earlier transcripts" in text
    found = await as_json("sessions", "--node", "x", "--open", "--key", "b")
    assert [(one["session"], one["open"], one["node"]) for one in found["sessions"]] == [("b", 1, 7)]

    code, text = await said("inbox", "list")
    assert code == 0 and text.splitlines()[-1].endswith(": 1 done, 1 failed, 1 waiting")
    assert [line.split()[0] for line in text.splitlines()[:-1]] == ["3", "2", "1"]
    found = await as_json("inbox", "list", "--session", "b", "--state", "failed")
    assert [(one["id"], one["reason"]) for one in found["messages"]] == [(2, "ValueError: no")]
    assert "\nresult       kept\n" in (await said("inbox", "show", "1"))[1]
    code, text = await said("inbox", "requeue", "1", "9")
    assert code == 1 and "message 1 is done; allowed: one that is parked" in text and "message 9 is not kept" in text
    assert await said("inbox", "discard", "3") == (0, "message 3, which was waiting, is discarded\n")
    assert (await said("inbox", "show", "3"))[1].splitlines()[1] == "state        cancelled"


async def test_questions_are_shown_and_answered_by_hand(said, pg, schema):
    answers = []

    async def asks(ctx, messages):
        if (answer := messages[0].answer) is not None:
            return answers.append((answer.value, answer.by, answer.keep))
        raise await ctx.ask("Really?", options=["yes", "no"], expires=3600, keep=messages[0].body)

    store = PostgresStore(pg.dsn, schema=schema, create=True)
    async with Supervisor(store, lanes=[LaneSpec("session:*", handler=asks)]) as sup:
        await (await sup.accept("session:a", "delete")).wait(60)
        (question,) = await sup.asks()
        code, text = await said("asks")
        assert code == 0 and text.startswith(f'{question.id}  session:a, session a: "Really?" ["yes", "no"], asked ')
        assert text.splitlines()[-1].endswith(": 1 open")
        (shown,) = (await as_json("asks"))["questions"]
        assert (shown["id"], shown["options"]) == (question.id, ["yes", "no"])
        code, text = await said("answer", question.id, "perhaps")
        assert code == 2 and 'allowed: "yes", "no"' in text
        assert (await said("answer", question.id, "{", "--json"))[0] == 2
        assert await said("answer", question.id, '"yes"', "--json", "--by", "ann") == (0, "answered: message 2\n")
        brought = await sup.find_message(2)
        assert brought is not None
        await brought.wait(60)
        assert answers == [("yes", "ann", "delete")]
        code, text = await said("answer", question.id, "no")
        assert code == 1 and "is answered by 'ann'; allowed: the id of an open question" in text
        code, text = await said("answer", "nothing", "no")
        assert code == 1 and "was never asked" in text
    assert await as_json("asks") == {"questions": []}


def test_the_queries_of_the_document_can_be_asked(pg, schema, monkeypatch, capfd):
    monkeypatch.setenv("LANES_STORE", pg.dsn)
    assert main(["db", "init", "--schema", schema]) == 0
    (block,) = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "cluster.md").read_text(), re.DOTALL)
    queries = [text for text in block.replace("lanes.", f"{schema}.").split(";\n") if text.strip()]
    with psycopg.connect(pg.dsn) as connection:
        for query in queries:
            connection.execute(query)
    assert len(queries) == 5


async def test_what_a_node_cannot_use_is_wrong_by_name(said, pg, schema, monkeypatch):
    assert (await said("init"))[0] == 0
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"drop role if exists {schema}; create role {schema} login password 'x'")
        connection.execute(f"grant usage on schema {schema} to {schema}; grant select on {schema}.form to {schema}")
        connection.execute(f"alter role {schema} set synchronous_commit = off")
    try:
        monkeypatch.setenv("LANES_STORE", f"postgresql://{schema}:x@127.0.0.1:{pg.port}/postgres")
        code, text = await said("check")
        wrong = [line for line in text.splitlines() if line.startswith("wrong")]
        assert code == 1 and "synchronous_commit=off" in wrong[0] and "rights       this role lacks " in wrong[1]
        code, text = await said("nodes")
        assert code == 1 and text.count("\n") == 1 and "permission denied for table node" in text
    finally:
        with psycopg.connect(pg.dsn, autocommit=True) as connection:
            connection.execute(f"drop owned by {schema}; drop role {schema}")


def test_a_standby_is_wrong(monkeypatch, capfd):
    with PostgresServer(standby=True) as standby:
        monkeypatch.setenv("LANES_STORE", standby.tcp_dsn)
        assert main(["db", "check"]) == 1
        assert "is a standby; allowed: the primary" in capfd.readouterr().out
        assert main(["db", "init"]) == 1


@pytest.mark.parametrize(
    "arguments, code, named",
    [
        (["nodes", "--store", "sqlite://x"], 2, "'sqlite://x' is not allowed"),
        (["nodes", "--store", "postgresql://[x/y"], 2, "no URL"),
        (["nodes", "--store", "postgresql://h/x?foo=bar"], 2, "invalid URI query parameter"),
        (["nodes", "--schema", "a-b"], 2, "'a-b' is not allowed"),
        (["sessions", "--limit", "0"], 2, "--limit"),
        (["sessions", "--key", "\udcff"], 2, "--key"),
        (["inbox", "show", "9" * 30], 2, "MESSAGE"),
        (["check", "--store", "postgresql://a:secret@127.0.0.1:1/x"], 1, "127.0.0.1:1/x#lanes cannot be reached"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capfd, arguments, code, named):
    monkeypatch.setenv("LANES_STORE", "postgresql://h/x")
    monkeypatch.delenv("LANES_SCHEMA", raising=False)
    assert main(["db", *arguments]) == code
    printed = capfd.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1 and named in printed.err and "secret" not in printed.err


def test_a_database_that_falls_silent_is_given_up(pg, proxy, schema, monkeypatch, capfd):
    look = by_hand.fleet

    async def fleet(connection, name):
        proxy.hold()
        return await look(connection, name)

    monkeypatch.setattr(by_hand, "fleet", fleet)
    assert main(["db", "init", "--store", pg.dsn, "--schema", schema]) == 0
    monkeypatch.setattr(by_hand, "_ANSWER_WITHIN_S", 0.3)
    assert main(["db", "nodes", "--store", pg.dsn_at(proxy.port), "--schema", schema]) == 1
    assert "has not answered within" in capfd.readouterr().err

"""`make cluster`: gateways on a store are killed and lose their database, and its verdict sees what must not be."""

from __future__ import annotations

from contextlib import nullcontext

import anyio
import psycopg
import pytest

from examples.agent import INTERRUPTED, Agent, Model
from examples.cluster.load import Sent
from examples.cluster.local import Options, run
from examples.cluster.verdict import is_open, judge, reading
from lanes import LaneSpec
from runtime import PostgresStore, Supervisor
from tests import blocking

pytestmark = pytest.mark.backends("asyncio")


@pytest.mark.failure("G17", "G22")
async def test_nothing_is_lost_when_gateways_are_killed_and_the_database_goes_away(tmp_path):
    options = Options(kills=0.5, roll=False, away=1.5, ttl=1.0, senders=4, seed=7, quiet=True)
    with blocking.permitted("starts gateways"), anyio.fail_after(120):
        one, found = await run(options, tmp_path)
    assert found.green, "\n".join(one.report(found))
    assert one.kills >= 1 and found.states["done"] > 4 and found.records > 8
    assert all(sent.end for sent in one.load.sent)


@pytest.fixture
async def kept(pg, schema):
    """A store with two sessions: one message that is answered, and one that was interrupted; what its senders know."""
    agent = Agent(1_000)

    chat = LaneSpec("session:*", handler=agent)
    store = PostgresStore(pg.dsn, schema=schema, ttl=1.0, create=True)
    sent = [Sent("a", "a/1"), Sent("a", "a/2"), Sent("b", "b/1")]
    async with Supervisor(store, lanes=[chat], services={"model": lambda: nullcontext(Model(0.0, 2))}) as sup:
        for one in sent:
            accepted = await sup.accept(f"session:{one.key}", "hello", dedupe=one.dedupe)
            one.ids.add(accepted.id)
            await accepted.wait(60)
    with psycopg.connect(pg.dsn, autocommit=True) as connection:
        connection.execute(f"update {schema}.message set state = 'unknown', told = true where id = 3")
        text = '{"role": "assistant", "content": "' + INTERRUPTED + '", "answers": [3]}'
        connection.execute(f"update {schema}.entry set line = %s where place = 's:b' and seq = 1", (text,))
    return sent


ENTRY = "insert into entry (place, incarnation, seq, fence, line) select place, incarnation, %s, %s, line from entry "
WRONG = [
    ("lost", "delete from message where id = 1"),
    ("doubled", f"{ENTRY % (4, 9)} where place = 's:a' and seq = 0"),
    ("unanswered", "update entry set line = '{}' where place = 's:a' and seq = 1"),
    ("unnamed", "update entry set line = '{}' where place = 's:b' and seq = 1"),
    ("unnamed", "update message set state = 'done' where id = 3"),
    ("out_of_order", "update entry set line = replace(line, '\"message\":2', '\"message\":0') where seq = 2"),
    ("interleaved", f"{ENTRY % (5, 9)} where place = 's:a' and seq = 3"),
    ("interleaved", "update entry set fence = 0 where place = 's:a' and seq = 2"),
    ("half_done", "update message set state = 'started' where id = 2"),
    ("half_done", "update session set owner = 5 where place = 's:a'"),
    ("half_done", "update session set pending = 1 where place = 's:b'"),
]


async def test_each_line_of_the_verdict_is_red_when_it_has_to_be(pg, schema, kept):
    with reading(pg.dsn, schema) as connection:
        assert judge(connection, kept).complaints == [] and not is_open(connection)
        for name, statement in WRONG:
            with connection.transaction(force_rollback=True):
                connection.execute(statement)
                assert judge(connection, kept).wrong[name], statement

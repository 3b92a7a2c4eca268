"""A statement whose answer is lost on the way was executed all the same."""

from __future__ import annotations

import threading

import psycopg
from psycopg import sql

from tests.poll import eventually_sync


def test_a_statement_is_committed_though_its_answer_was_lost(pg, schema, proxy):
    rows = sql.Identifier(schema, "rows")
    with psycopg.connect(pg.dsn, autocommit=True) as other:
        other.execute(sql.SQL("create schema {}").format(sql.Identifier(schema)))
        other.execute(sql.SQL("create table {} (id int)").format(rows))
        with psycopg.connect(pg.dsn_at(proxy.port), autocommit=True) as cut:
            cut.execute("select 1")
            proxy.swallow("down")
            failed: list[Exception] = []

            def insert() -> None:
                try:
                    cut.execute(sql.SQL("insert into {} values (1)").format(rows))
                except psycopg.OperationalError as error:
                    failed.append(error)

            thread = threading.Thread(target=insert)
            thread.start()
            count = sql.SQL("select count(*) from {}").format(rows)
            eventually_sync(lambda: other.execute(count).fetchone() == (1,))
            assert thread.is_alive()
            proxy.reset()
            thread.join()
    assert len(failed) == 1

"""A function of the database that is called again, since its answer was lost, changes nothing and answers the same.

And each refuses what is not the caller's, or not its run's; without that guard it does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest

from .database import OPEN, Database, accepts

LINES = ["{}", "{}"]
CONTENT = " union all ".join(
    f"select '{table}', to_jsonb(t) - 'at' from {{s}}.{table} t"
    for table in ("session", "entry", "message", "ask", "want")
)


class World(NamedTuple):
    """A node with a session `s` that a run conducts, which has message 1; message 2 is parked, message 3 waits."""

    database: Database
    node: int
    other: int
    """Another node, with the session `t`, where message 4 waits."""

    def content(self) -> list[tuple[Any, ...]]:
        return self.database.sql(CONTENT + " order by 1, 2")


NONCE = 1000


def make(dsn: str, schema: str, changes: dict[tuple[str, str], str] | None = None) -> World:
    database = Database(dsn, schema, changes)
    caller, node, other = database.connect(), database.node(), database.node()
    for arguments in (accepts("s", node), accepts(None, node, token=50), accepts(None, node), accepts("t", other)):
        caller.call(*arguments)
    caller.call("started", node, "s:s", NONCE, [1], True)
    caller.call("started", node, None, 1, [2], True)
    caller.call("ended", node, [2], "parked", "", None, OPEN)
    caller.call("left_alone", node, ["m:50"], False)
    caller.call("append", "s:s", node, 2, NONCE, 1, None, LINES)
    caller.sql(
        "insert into {s}.ask (id, lane, session, route, question, keep, asked_at, state) "
        "values ('q', 'main', 's', 'null', '\"?\"', 'null', now(), 'open')"
    )
    return World(database, node, other)


def run(node: int, call: int, writer: int | None = None) -> tuple[Any, ...]:
    """How a run of `s` says who it is."""
    return "s:s", node, 2, NONCE, call, writer, LINES


def calls(node: int) -> dict[str, tuple[Any, ...]]:
    """Functions with arguments, by the node that has `s`."""
    return {
        "accept": accepts("s", node, token=60),
        "accept_key": accepts(None, node, token=61, dedupe="k"),
        "started": ("started", node, "s:s", NONCE + 1, [1], True),
        "started_alone": ("started", node, None, 62, [3], True),
        "started_parked": ("started", node, None, 63, [2], True),
        "waits_again": ("waits_again", node, [1]),
        "ended": ("ended", node, [1, 3], "failed", "", None, OPEN, 71),
        "parked": ("ended", node, [1], "parked", "", None, OPEN, 72),
        "recovered": ("recovered", node, None, [1, 3], 73),
        "waits_for": ("waits_for", node, [1], "q", "asked", OPEN, OPEN, 74),
        "waits_for_nothing": ("waits_for", node, [1], "none", "asked", OPEN, OPEN, 75),
        "withdrawn": ("withdrawn", "s", "reset"),
        "cancelled": ("cancelled", node, None, None, "stopped", 64, None, None),
        "refused": ("refused", node, 3, "full", OPEN),
        "again": ("again", 2, 65),
        "append": ("append", *run(node, 2)),
        "note": ("note", "s:s", node, 66, None, LINES),
        "finish": ("finish", *run(node, 2), [1], OPEN, b"1"),
        "write_lease": ("write_lease", "s:new", node, 67, 1e9),
        "put_away": ("put_away", "s:s", node, 2, NONCE, True, 68),
        "forgotten": ("put_away", "s:s", node, 2, NONCE, False, 68),
        "answered": (
            "answered",
            "q",
            "answered",
            b"1",
            "ann",
            "s:s",
            1,
            "main",
            "s",
            b"1",
            b"null",
            "k",
            0,
            69,
            node,
            True,
        ),
        "wanted": ("wanted", node, "s:t"),
    }


@pytest.mark.failure("G19")
def test_what_is_called_again_is_done_once(dsn, schema):
    world = make(dsn, schema)
    caller = world.database.connect()
    clock = {"write_until", "accepted_at", "started_at", "ended_at"}
    for name, (function, *arguments) in calls(world.node).items():
        caller.connection.execute("begin")
        first = caller.call(function, *arguments)
        after = caller.sql(CONTENT + " order by 1, 2")
        again = caller.call(function, *arguments)
        assert again == first, name
        assert any(first[0]) or function not in ("ended", "waits_for", "recovered"), name
        assert [(table, {k: v for k, v in row.items() if k not in clock}) for table, row in after] == [
            (table, {k: v for k, v in row.items() if k not in clock})
            for table, row in caller.sql(CONTENT + " order by 1, 2")
        ], name
        caller.connection.execute("rollback")
        assert world.database.wrong() == []
    caller.call("write_lease", "s:s", world.node, 70, 300)
    replaced = ("replaced", "s:s", 71, 70, 0, 1, ["{}"])
    first, again = caller.call(*replaced), caller.call(*replaced)
    assert first == again == [("ok", 2, 1)]
    assert world.database.wrong() == []
    world.database.close()


COUNTED = """if t.calls = p_call then
    return query select 'ok'::text, t.last_seq, t.incarnation; return;
  end if;
  if t.calls <> p_call - 1 then"""
OWNED = "(select t.owner from {s}.session t where t.place = m.place) = p_node"
OWNER = "t.owner is distinct from p_node or "
REFUSED: dict[str, tuple[tuple[Any, ...], tuple[tuple[str, str], str]]] = {
    "a run that has lost its fence appends": (
        ("append", "s:s", "node", 1, NONCE, 2, None, LINES),
        (("append", "t.fence <> p_fence or "), ""),
    ),
    "an older run of the node appends": (
        ("append", "s:s", "node", 2, NONCE - 1, 2, None, LINES),
        (("append", " or t.nonce is distinct from p_nonce"), ""),
    ),
    "a node that does not have the session appends": (
        ("append", "s:s", "other", 2, NONCE, 2, None, LINES),
        (("append", OWNER), ""),
    ),
    "an append comes before the one before it": (
        ("append", "s:s", "node", 2, NONCE, 3, None, LINES),
        (("append", "t.calls <> p_call - 1"), "false"),
    ),
    "an append comes a second time": (
        ("append", "s:s", "node", 2, NONCE, 1, None, LINES),
        (("append", COUNTED), "if false then"),
    ),
    "an older run of the node finishes": (
        ("finish", "s:s", "node", 2, NONCE - 1, 2, None, LINES, [1], OPEN, None),
        (("finish", "if a.code = 'ok' then"), "if true then"),
    ),
    "a run that has lost its fence resets": (
        ("put_away", "s:s", "node", 1, NONCE, True, 1),
        (("put_away", "t.fence <> p_fence or "), ""),
    ),
    "a message of another node is begun": (
        ("started", "node", None, 5, [4], False),
        (("started", f"and {OWNED} for update of m"), "for update of m"),
    ),
    "one of several messages cannot be begun": (
        ("started", "node", None, 5, [3, 4], True),
        (("started", "<> cardinality(p_ids)"), "= 0"),
    ),
    "a message of another node is ended": (
        ("ended", "node", [4], "done", "", None, OPEN),
        (("ended", OWNED), "true"),
    ),
    "a message that has ended is ended": (
        ("ended", "node", [2], "done", "", None, OPEN),
        (("ended", "m.state = any(p_before)"), "true"),
    ),
    "a session with messages is given back": (
        ("left_alone", "other", ["s:t"], False),
        (("left_alone", "if next is null and t.pending > 0 and not p_even_pending then continue; end if;"), ""),
    ),
    "a session of another node is given back": (
        ("left_alone", "node", ["s:t"], True),
        (("left_alone", " and x.owner is not distinct from p_node"), ""),
    ),
    "a node that beats is reaped": (
        ("reaped", "node"),
        (("reaped", "make_interval(secs => n.ttl + n.grace)"), "make_interval(secs => -7200)"),
    ),
}


@pytest.mark.failure("G18")
@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_the_callers_is_refused(dsn, schema, name):
    (function, *given), (place, instead) = REFUSED[name]
    changed = []
    for changes in ({}, {place: instead}):
        world = make(dsn, schema, changes)
        arguments = [
            {"node": world.node, "other": world.other}.get(one, one) if isinstance(one, str) else one for one in given
        ]
        before = world.content()
        world.database.connect().call(function, *arguments)
        changed.append(world.content() != before)
        world.database.close()
    assert changed == [False, True]


@pytest.mark.failure("G18")
def test_the_sessions_of_a_dead_node_are_taken_over_a_part_at_a_time(dsn, schema):
    """So that no beat waits for long; and by whichever node beats next, should the first one die meanwhile."""
    database = Database(dsn, schema)
    dead, one, other = database.node(silent=True), database.node(), database.node()
    caller = database.connect()
    caller.sql("insert into {s}.session (place, owner) select 's:' || n, %s from generate_series(1, 1100) n", dead)
    caller.sql("insert into {s}.session (place, owner, pending) values ('m:7', %s, 1)", dead)
    caller.sql(
        "insert into {s}.message (place, lane, body, route, digest, repeat, first, token, taken_by, state) "
        "values ('m:7', 'main', '1', 'null', '', 0, false, 7, 0, 'started')"
    )
    taken, left = list[int](), list[int]()
    for node in (one, other, one):
        found = caller.call("reaped", node)
        assert found[-1][1] == "n (h, process 1)"
        taken.append(len(found) - 1)
        left.append(found[-1][2])
        assert database.wrong() == []
        assert caller.call("claimed_fairly", dead, [9, 0, 0], [0.0] * 3) == []  # it is none any more
    assert (taken, left) == ([500, 500, 101], [1, 1, 0])
    assert caller.call("reaped", one) == []
    assert caller.sql("select count(*) from {s}.node where id not in (%s, %s)", one, other) == [(0,)]
    assert caller.sql("select state from {s}.message") == [("unknown",)]
    database.close()

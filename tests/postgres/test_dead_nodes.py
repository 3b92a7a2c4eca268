"""A node is killed before or after each thing that it does, and another one inherits; what it did comes late once more.

Its messages are repeated, unknown or still there, its sessions are the heir's, and what comes late changes nothing that
is the heir's. So it is when it leaves instead.
"""

from __future__ import annotations

from typing import Any

import pytest

from .database import SOUND, Caller
from .test_functions import CONTENT, World, calls, make

OF_ANY_NODE = {"withdrawn", "again", "answered", "accept", "accept_key", "cancelled"}
"""What is done whoever asks for it: a message is kept, say, though its node is gone, which does not conduct it."""


def _inherits(world: World, caller: Caller, ending: str) -> None:
    if ending == "reaped":
        caller.sql("update {s}.node set beat_at = '-infinity' where id = %s", world.node)
        caller.call("reaped", world.other)
    else:
        caller.call("gone", world.node)
        caller.call("claimed", world.other, 100)


@pytest.mark.failure("G18", "G19")
@pytest.mark.parametrize("ending", ["reaped", "gone"])
def test_whatever_a_node_was_doing_when_it_died_its_heir_has_all_of_it(dsn, schema, ending):
    world = make(dsn, schema)
    caller = world.database.connect()
    for name, (function, *arguments) in calls(world.node).items():
        for has_done_it in (False, True):
            caller.connection.execute("begin")
            if has_done_it:
                caller.call(function, *arguments)
            _inherits(world, caller, ending)
            assert _wrong(caller, world) == [], (name, has_done_it)
            kept = _content(caller)
            caller.call(function, *arguments)
            assert _wrong(caller, world) == [], (name, has_done_it)
            assert name in OF_ANY_NODE or _content(caller) == kept, (name, has_done_it)
            caller.connection.execute("rollback")
    world.database.close()


def _wrong(caller: Caller, world: World) -> list[Any]:
    """What is wrong, and what nobody goes on with."""
    return [
        *caller.sql(SOUND),
        *caller.sql("select place from {s}.session where owner = %s", world.node),
        *caller.sql("select place from {s}.session t where {s}.is_locked(t, 0)"),
        *caller.sql("select id from {s}.message where state = 'started'"),
        *caller.sql(
            "select m.id from {s}.message m join {s}.session t using (place) "
            "where m.state = 'accepted' and t.owner is null and t.pending = 0"
        ),
        *caller.sql("select place from {s}.want where node = %s", world.node),
    ]


def _content(caller: Caller) -> list[Any]:
    """All rows, but for an empty one of a session that nobody conducts."""
    return caller.sql(
        f"select * from ({CONTENT}) found(of_table, content) where not (of_table = 'session' "
        'and content @> \'{{"pending": 0, "next_seq": 0, "owner": null}}\') order by 1, 2'
    )

"""Two functions of the database at once, in an order that the test fixes; and each again without one of its guards.

A scenario returns what is wrong afterwards, besides what `database.SOUND` finds: nothing with all guards, something
without any of those that are named with it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest

from .database import OPEN, PAUSE, Database, accepts, ends

Play = Callable[[Database], list[str]]
Guard = tuple[str, str]
"""A function, and what is taken out of it."""


class Scenario(NamedTuple):
    play: Play
    guards: tuple[Guard | tuple[str, str, str], ...]
    """With a third part, that stands in its place."""
    pause: tuple[str, str] | None = None
    """A function, and the text behind which it stops until `Database.paused` ends."""


_SCENARIOS: list[Scenario] = []


def scenario(*guards: Guard | tuple[str, str, str], pause: tuple[str, str] | None = None) -> Callable[[Play], Play]:
    def add(play: Play) -> Play:
        _SCENARIOS.append(Scenario(play, guards, pause))
        return play

    return add


KEY_SHARE = " for key share"


def _while_reaped(database: Database, silent: int, *call: object) -> list[str]:
    """A silent node does something, and is reaped before that is committed."""
    live, one, other = database.node(), database.connect(), database.connect()
    with one.open():
        one.call(*call)  # type: ignore[arg-type]
        reaped = other.begin("reaped", live)
    reaped.result()
    gone = database.sql("select count(*) from {s}.node where id = %s", silent) == [(0,)]
    other.call("reaped", live)
    return ["it was reaped before its change was committed"] if gone else []


@scenario(("claimed", KEY_SHARE))
def claims_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    database.connect().call(*accepts("s", 0, claims=False))
    return _while_reaped(database, silent, "claimed", silent, 10)


@scenario(("claimed_fairly", KEY_SHARE))
def claims_fairly_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    database.connect().call(*accepts("s", 0, claims=False))
    return _while_reaped(database, silent, "claimed_fairly", silent, [5, 3, 2], [0.0] * 3)


@scenario(("accept", KEY_SHARE))
def accepts_and_conducts_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    return _while_reaped(database, silent, *accepts("s", silent))


@scenario(("wanted", KEY_SHARE))
def wants_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    return _while_reaped(database, silent, "wanted", silent, "s:s")


@scenario(("note", KEY_SHARE))
def notes_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    return _while_reaped(database, silent, "note", "s:s", silent, 1, None, ["{}"])


@scenario(("write_lease", KEY_SHARE))
def locks_a_transcript_while_it_is_reaped(database: Database) -> list[str]:
    silent = database.node(silent=True)
    return _while_reaped(database, silent, "write_lease", "s:s", silent, 1, 10)


@scenario(("started", KEY_SHARE))
def starts_what_was_parked_while_it_is_reaped(database: Database) -> list[str]:
    silent, caller = database.node(silent=True), database.connect()
    ((message, *_),) = caller.call(*accepts(None, silent, token=77))
    caller.call(*ends(silent, message, "parked"))
    caller.call("left_alone", silent, ["m:77"], False)
    return _while_reaped(database, silent, "started", silent, None, 5, [message], True)


@scenario(("reaped", KEY_SHARE))
def reaps_while_it_is_reaped(database: Database) -> list[str]:
    dead = database.node(silent=True)
    database.connect().call(*accepts("s", dead))
    silent = database.node()
    live, one, other = database.node(), database.connect(), database.connect()
    with one.open():
        one.call("reaped", silent)
        database.silence(silent)
        reaped = other.begin("reaped", live)
    reaped.result()
    other.call("reaped", live)
    return []


@scenario(("left_alone", "        for key share of n skip locked"))
def hands_over_to_one_that_is_reaped(database: Database) -> list[str]:
    owner, caller = database.node(), database.connect()
    caller.call(*accepts("s", owner))
    silent = database.node()
    caller.call("wanted", silent, "s:s")
    database.silence(silent)
    one, other = database.connect(), database.connect()
    with one.open():
        one.call("reaped", owner)
        handed = other.begin("left_alone", owner, ["s:s"], False)
    handed.result()
    return []


PLACES = "select array_agg(t.place) into places from {s}.session t where t.owner = p_node;"


@scenario(("gone", "perform 1 from {s}.node n where n.id = p_node for update;"), pause=("gone", PLACES))
def hands_over_to_one_that_leaves(database: Database) -> list[str]:
    owner, leaving, one, other = database.node(), database.node(), database.connect(), database.connect()
    one.call("wanted", owner, "s:s")
    one.call("wanted", leaving, "s:s")
    with database.paused():
        left = one.begin("gone", leaving)
        handed = other.begin("left_alone", owner, ["s:s"], False)
    left.result(), handed.result()
    return []


@scenario(("locked", " for update"))
def two_accept_for_a_session(database: Database) -> list[str]:
    node, one, other = database.node(), database.connect(), database.connect()
    one.call("wanted", node, "s:s")
    with one.open():
        one.call(*accepts("s", node))
        second = other.begin(*accepts("s", node))
    second.result()
    return []


@scenario(("left_alone", " order by x.place for update"))
def gives_back_a_session_while_a_message_comes(database: Database) -> list[str]:
    node, one, other = database.node(), database.connect(), database.connect()
    one.call("wanted", node, "s:s")
    with one.open():
        ((*_, owner, _),) = one.call(*accepts("s", node))
        given = other.begin("left_alone", node, ["s:s"], False)
    given.result()
    kept = database.sql("select owner from {s}.session where place = 's:s'") == [(owner,)]
    return [] if kept else ["it was told that it conducts a session that it has just given back"]


OWNED = "(select t.owner from {s}.session t where t.place = m.place) = p_node"
LOCK = "    order by t.place for update"


def _behind_the_reaper(database: Database, session: str | None, started: bool, *change: object) -> list[str]:
    """A node is reaped, and changes a message before that is committed. The reaper has begun it by then."""
    node, live, one, other = database.node(), database.node(), database.connect(), database.connect()
    ids = [one.call(*accepts(session, node, repeat=9))[0][0] for _ in range(2)]
    if started:
        one.call("started", node, None, 1, ids, True)
    database.silence(node)
    name, *rest = [{"node": node, "ids": ids}.get(one, one) if isinstance(one, str) else one for one in change]
    with one.open():
        one.call("reaped", live)
        one.call("started", live, None, 2, ids, True)
        changed = other.begin(str(name), *rest)
    changed.result()
    rows = database.sql("select state, node from {s}.message")
    return [] if rows == [("started", live)] * 2 else [f"a node that was reaped has changed it: {rows}"]


@scenario(("started", LOCK))
def starts_behind_the_reaper(database: Database) -> list[str]:
    node, live, one, other = database.node(), database.node(), database.connect(), database.connect()
    ((message, *_),) = one.call(*accepts(None, node))
    database.silence(node)
    with one.open():
        one.call("reaped", live)
        begun = other.begin("started", node, None, 1, [message], True)
    begun.result()
    return []


@scenario(("ended", LOCK), ("ended", OWNED, "true"))
def ends_behind_the_reaper(database: Database) -> list[str]:
    return _behind_the_reaper(database, None, True, "ended", "node", "ids", "done", "", None, OPEN)


@scenario(("waits_again", OWNED, "true"))
def waits_again_behind_the_reaper(database: Database) -> list[str]:
    return _behind_the_reaper(database, None, True, "waits_again", "node", "ids")


@scenario(("recovered", OWNED, "true"))
def puts_right_behind_the_reaper(database: Database) -> list[str]:
    return _behind_the_reaper(database, None, True, "recovered", "node", None, "ids")


CLOSED = """    select array_agg(a.id) into closed from a;
  -- A statement of its own, so that it sees a message that began to wait while the questions were being locked.
  update {s}.message m set state = 'cancelled', ended_at = clock_timestamp(), reason = p_reason
    where m.asked = any(closed) and m.state = 'waiting';"""
AT_ONCE = """    update {s}.message m set state = 'cancelled', ended_at = clock_timestamp(), reason = p_reason
    from a where m.asked = a.id and m.state = 'waiting';"""


def _asked(database: Database) -> tuple[int, int]:
    node, caller = database.node(), database.connect()
    ((message, *_),) = caller.call(*accepts(None, node))
    caller.call("started", node, None, 1, [message], True)
    caller.sql(
        "insert into {s}.ask (id, lane, session, route, question, keep, asked_at, state) "
        "values ('q', 'main', 's', 'null', '\"?\"', 'null', now(), 'open')"
    )
    return node, message


@scenario(("withdrawn", CLOSED, AT_ONCE))
def withdraws_a_question_while_a_message_begins_to_wait_for_it(database: Database) -> list[str]:
    (node, message), one, other = _asked(database), database.connect(), database.connect()
    with one.open():
        one.call("waits_for", node, [message], "q", "asked", OPEN, OPEN)
        withdrawn = other.begin("withdrawn", "s", "reset")
    withdrawn.result()
    return []


ANSWERED = ("answered", "q", "answered", b"1", "ann", "s:t", 1, "main", "t", b"1", b"null", None, 0)


@scenario(("waits_for", " for share"))
def waits_for_a_question_while_it_is_answered(database: Database) -> list[str]:
    (node, message), one, other = _asked(database), database.connect(), database.connect()
    with one.open():
        one.call(*ANSWERED, 5, node, True)
        waits = other.begin("waits_for", node, [message], "q", "asked", OPEN, OPEN)
    waits.result()
    return []


@scenario(("answered", "and a.state = 'open'"))
def two_answer_a_question(database: Database) -> list[str]:
    (node, _), one, other = _asked(database), database.connect(), database.connect()
    with one.open():
        one.call(*ANSWERED, 5, node, True)
        second = other.begin(*ANSWERED, 6, node, True)
    return ["both were taken"] if second.result() else []


@scenario(("accept", "on conflict do nothing returning message.id", "returning message.id"))
def two_accept_under_one_key(database: Database) -> list[str]:
    node, one, other = database.node(), database.connect(), database.connect()
    with one.open():
        ((first, *_),) = one.call(*accepts(None, node, dedupe="k"))
        second = other.begin(*accepts(None, node, dedupe="k"))
    try:
        said = second.result()[0][:2]
    except Exception as error:
        return [str(error)]
    return [] if said == (first, False) else [f"it was accepted twice: {said}"]


def _still_wanted(database: Database, owner: int) -> list[str]:
    database.connect().call("left_alone", owner, ["s:s"], False)
    return [f"{place} is kept for nobody" for (place,) in database.sql("select place from {s}.session where wanted")]


@scenario(("reaped", "delete from {s}.want w where w.node = any(gone);"))
def reaps_one_that_wanted_a_session_of_another_dead_one(database: Database) -> list[str]:
    dead, wants, live, caller = database.node(), database.node(), database.node(), database.connect()
    caller.call(*accepts("s", dead))
    caller.call("wanted", wants, "s:s")
    for one in (dead, wants):
        database.silence(one)
    caller.call("reaped", live)
    return _still_wanted(database, live)


@scenario(("left_alone", "w.node in (next, p_node)", "w.node = next"))
def inherits_what_it_wanted(database: Database) -> list[str]:
    dead, live, caller = database.node(), database.node(), database.connect()
    caller.call(*accepts("s", dead))
    caller.call("wanted", live, "s:s")
    database.silence(dead)
    caller.call("reaped", live)
    return _still_wanted(database, live)


@scenario(("reaped", "perform {s}.recovered(p_node, places, null);"))
def inherits_what_was_started(database: Database) -> list[str]:
    dead, live, caller = database.node(), database.node(), database.connect()
    ((message, *_),) = caller.call(*accepts("s", dead))
    caller.call("started", dead, "s:s", 1, [message], True)
    database.silence(dead)
    caller.call("reaped", live)
    return []


@scenario(("is_locked", "\n    and exists (select from {s}.node n where n.id = t.write_node)"))
def reaps_one_that_had_locked_a_transcript(database: Database) -> list[str]:
    dead, live, caller = database.node(), database.node(), database.connect()
    caller.call("write_lease", "s:s", dead, 1, 300)
    database.silence(dead)
    caller.call("reaped", live)
    ((code, *_),) = caller.call("note", "s:s", live, 1, None, ["{}"])
    return [] if code == "ok" else [code]


@scenario(("replaced", "\n      or not exists (select from {s}.node n where n.id = t.write_node for key share)"))
def replaces_after_it_was_reaped(database: Database) -> list[str]:
    dead, live, caller = database.node(), database.node(), database.connect()
    caller.call("write_lease", "s:s", dead, 1, 300)
    database.silence(dead)
    caller.call("reaped", live)
    ((code, *_),) = caller.call("replaced", "s:s", 2, 1, 0, 0, ["{}"])
    return [] if code == "unlocked" else [code]


@scenario(("accept", "if s.wanted then", "if false then"))
def accepts_for_a_session_that_another_node_is_to_get(database: Database) -> list[str]:
    owner, wants, one, other = database.node(), database.node(), database.connect(), database.connect()
    one.call("wanted", owner, "s:s")
    with one.open():
        one.call("wanted", wants, "s:s")
        accepted = other.begin(*accepts("s", owner))
    ((*_, older),) = accepted.result()
    other.call("left_alone", owner, ["s:s"], False)
    ((now,),) = database.sql("select owner from {s}.session")
    return [] if 0 in older and now == wants else [f"it was told to queue it, and {now} has the session"]


@scenario(("cancelled", "m.place = any(places) and "))
def cancels_nothing_of_another_node(database: Database) -> list[str]:
    mine, others, caller = database.node(), database.node(), database.connect()
    caller.call(*accepts("s", mine))
    caller.call(*accepts("t", others))
    caller.call("cancelled", mine, "main", None, "stopped", 1)
    rows = database.sql("select place, state from {s}.message order by 1")
    return [] if rows == [("s:s", "cancelled"), ("s:t", "accepted")] else [str(rows)]


CASES = [
    pytest.param(one, guard, id=f"{one.play.__name__}-{'whole' if guard is None else n}")
    for one in _SCENARIOS
    for n, guard in enumerate((None, *one.guards))
]


@pytest.mark.failure("G20")
@pytest.mark.parametrize("given, guard", CASES)
def test_two_functions_at_once(dsn, schema, given, guard):
    changes: dict[tuple[str, str], str] = {}
    if guard is not None:
        changes[guard[:2]] = guard[2] if len(guard) == 3 else ""
    if given.pause is not None:
        changes[given.pause] = f"{given.pause[1]} {PAUSE}"
    database = Database(dsn, schema, changes)
    try:
        wrong = given.play(database) + database.wrong()
    finally:
        database.close()
    assert bool(wrong) is (guard is not None), wrong

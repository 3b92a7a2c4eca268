"""What every store of an inbox does, whatever it keeps things in: the file of one machine, PostgreSQL, or memory.

Another store runs through all of it by an entry in `STORES`: what makes a maker of stores that share their data, each
of them being the next process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from locks import process
from runtime import AskClosed, InboxDown, MessageState
from runtime.inbox.answer import Answer
from runtime.inbox.rows import Ask, AskedFor, NewRow
from runtime.inbox.sqlite import SqliteInbox
from runtime.inbox.store import InboxStore
from tests import on_store
from tests.inbox_model import Data, MemoryInbox
from tests.inboxes import FILE

pytestmark = pytest.mark.backends("asyncio", "trio")
Maker = Callable[[], InboxStore]
S = MessageState


def files(root: Path, _schemas: on_store.Schemas | None) -> Maker:
    return lambda: SqliteInbox(str(root / FILE), "sync")


def memory(_root: Path, _schemas: on_store.Schemas | None) -> Maker:
    data = Data()
    return lambda: MemoryInbox(data)


def postgres(_root: Path, schemas: on_store.Schemas | None) -> Maker:
    from tests.postgres_inbox import PostgresInbox

    assert schemas is not None
    schemas.ready()
    name, dsn = schemas.name(0), schemas.server.dsn
    schemas.empty([name])
    schemas.close()
    return lambda: PostgresInbox(dsn, name)


STORES: dict[str, Callable[[Path, on_store.Schemas | None], Maker]] = {
    "file": files,
    "memory": memory,
    "postgres": postgres,
}


class Clock:
    """The wall clock of a test."""

    now = 1_800_000_000.0


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(process, "wall", lambda: clock.now)
    return clock


@pytest.fixture(scope="session")
def schemas(postgres_server):
    """A schema whose clock is that of the test."""
    from tests.postgres_inbox import by_the_tests_clock

    return on_store.Schemas(postgres_server, "clocked", by_the_tests_clock)


@pytest.fixture(scope="session", params=STORES)
def kind(request):
    """A kind of store, with what all stores of that kind need."""
    needs = request.getfixturevalue("schemas") if request.param == "postgres" else None
    return STORES[request.param], needs


@pytest.fixture
def make(kind, tmp_path):
    """Makes stores that share their data."""
    maker, needs = kind
    return maker(tmp_path, needs)


@pytest.fixture
async def store(make):
    store = make()
    await store.open()
    yield store
    await store.close()


def new(body: str = "1", lane: str = "a", session: str | None = None, **more: Any) -> NewRow:
    return NewRow(lane=lane, session=session, body=body.encode(), route=b"null", digest=body.encode(), **more)


def question(name: str, lane: str = "a", key: str | None = None, asked_at: float = 1.0, **more: Any) -> Ask:
    given = {"session": None, "options": None, "keep": b"null", "expires_at": None, **more}
    return Ask(id=name, key=key, lane=lane, asked_at=asked_at, route=b"null", question=b'"?"', state="open", **given)


async def reported(change: Callable[..., Any], *args: Any) -> Any:
    """What a change reports."""
    answer = Answer[Any]()
    change(*args, answer)
    return await answer.wait()


async def accept(store: InboxStore, row: NewRow, replayed: int = 0) -> int:
    taken = await reported(store.accept, row, replayed)
    assert taken.new
    return int(taken.id)


async def states(store: InboxStore, *ids: int) -> list[Any]:
    rows = [await store.find(one) for one in ids]
    return [row and row.state for row in rows]


async def waiting(store: InboxStore, lane: str | None = None, after: int = 0, at_most: int = 100) -> list[int]:
    return [row.id for row in await reported(store.waiting, lane, after, at_most)]


async def test_a_message_comes_back_as_it_was_given_also_to_the_next_process(make, clock):
    store = make()
    await store.open()
    given = new('{"ä": 1}', session="s", priority="background", timeout=1.5, when_busy="steer", dedupe="k", repeat=3)
    one = await accept(store, given)
    clock.now += 1
    two = await accept(store, new("2", started=True))
    before = [await store.find(one), await store.find(two)]
    await store.close()
    store = make()
    await store.open()
    assert [await store.find(one), await store.find(two)] == before
    first, second = before
    assert first is not None and second is not None
    for name in ("lane", "session", "priority", "timeout", "when_busy", "body", "route", "dedupe", "repeat", "first"):
        assert getattr(first, name) == getattr(given, name)
    assert (first.state, first.attempt, first.accepted_at, first.started_at) == (S.ACCEPTED, 0, clock.now - 1, None)
    assert (second.state, second.attempt, second.started_at) == (S.STARTED, 1, clock.now)
    assert (one < two, await store.last_id(), await store.find(two + 1)) == (True, two, None)
    await store.close()


async def test_reports_come_in_the_order_of_the_changes(store):
    seen: list[Any] = []
    for n in range(20):
        store.accept(new(str(n)), 0, lambda taken, _error: seen.append(taken.id))
        store.begin([n], lambda count, _error: seen.append("begun"))
    await reported(store.settle)
    assert seen == [one for n in range(20) for one in (seen[0] + n, "begun")]


async def test_a_key_counts_within_its_lane_and_session(store):
    one = await accept(store, new("1", dedupe="k"))
    again = await reported(store.accept, new("1", dedupe="k"), 0)
    other_body = await reported(store.accept, new("2", dedupe="k", started=True), 0)
    assert (again.id, again.new, again.same_body) == (one, False, True)
    assert (other_body.id, other_body.new, other_body.same_body) == (one, False, False)
    for elsewhere in (new("1", lane="b", dedupe="k"), new("1", session="s", dedupe="k")):
        assert await accept(store, elsewhere) > one
    assert await store.said("a", None, "k", b"1") == (one, True)
    assert await store.said("a", None, "k", b"2") == (one, False)
    assert await store.said("a", "t", "k", b"1") is None
    await reported(store.end, [one], S.CANCELLED, "", None)
    assert not (await reported(store.accept, new("1", dedupe="k"), 0)).new  # whatever has become of it


async def test_a_message_that_is_refused_leaves_its_key(store):
    one = await accept(store, new("1", dedupe="k"))
    await reported(store.refuse, one, "full")
    row = await store.find(one)
    assert row is not None and (row.state, row.reason) == (S.DROPPED, "full")
    assert await store.said("a", None, "k", b"1") is None
    assert await accept(store, new("2", dedupe="k")) > one


async def test_older_messages_of_the_session_that_are_not_in_memory_are_reported(store):
    one = await accept(store, new("1", session="s"))
    await accept(store, new("2", session="t"))
    await accept(store, new("3", lane="b", session="s"))

    async def behind(replayed, **more):
        return (await reported(store.accept, new("4", **more), replayed)).behind

    assert not await behind(0, session="u")
    assert not await behind(0, lane="c")
    assert await behind(0, lane="c", session="s")  # a session has one order over all lanes
    assert not await behind(0)
    assert await behind(one - 1, session="s")
    assert not await behind(1 << 62, session="s")
    for row in await reported(store.waiting, None, 0, 100):
        store.begin([row.id], None)
    assert not await behind(0, session="s")


async def test_waiting_messages_come_in_pages_by_id(store):
    ids = [await accept(store, new(str(n), lane="ab"[n % 2])) for n in range(6)]
    store.begin([ids[2]], None)
    assert await waiting(store) == [ids[0], ids[1], *ids[3:]]
    assert await waiting(store, at_most=2) == ids[:2]
    assert await waiting(store, after=ids[1], at_most=2) == ids[3:5]
    assert await waiting(store, "a") == [ids[0], ids[4]]
    assert await waiting(store, "a", after=ids[0]) == [ids[4]]
    assert [row.id for row in await store.accepted_among([ids[5], ids[2], ids[0]])] == [ids[0], ids[5]]


MAY_FOLLOW = {
    S.ACCEPTED: {S.FAILED, S.PARKED, S.CANCELLED, S.SUPERSEDED, S.DROPPED},
    S.STARTED: {S.DONE, S.FAILED, S.PARKED, S.CANCELLED, S.SUPERSEDED},
    S.PARKED: {S.CANCELLED},
    S.UNKNOWN: {S.CANCELLED},
}


async def test_only_what_has_not_ended_ends_and_once(store, clock):
    ends = (S.DONE, S.FAILED, S.PARKED, S.CANCELLED, S.SUPERSEDED, S.DROPPED)
    for before in (S.ACCEPTED, S.STARTED, *ends, S.UNKNOWN):
        for after in ends:
            one = await accept(store, new("1", started=before not in (S.ACCEPTED, S.DROPPED)))
            if before is S.UNKNOWN:
                assert await store.recover([one]) == (0, 1)
            elif before in ends:
                assert await reported(store.end, [one], before, "first", b"1") == 1
            clock.now += 1
            noted = await reported(store.end, [one], after, "second", b"2")
            row = await store.find(one)
            assert row is not None
            if after in MAY_FOLLOW.get(before, set()):
                assert (noted, row.state, row.reason, row.result, row.ended_at) == (1, after, "second", b"2", clock.now)
            else:
                assert (noted, row.state) == (0, before), (before, after)


async def test_attempts_count_each_time_that_a_body_is_given_a_message(store):
    one, two = await accept(store, new("1")), await accept(store, new("2", started=True))
    assert await reported(store.begin, [one, two]) == 2
    store.wait_again([one])
    store.take_back([two])
    rows = [await store.find(one), await store.find(two)]
    assert [(row.state, row.attempt, row.started_at) for row in rows if row] == [(S.ACCEPTED, 1, None)] * 2
    await reported(store.end, [one], S.PARKED, "", None)
    assert await reported(store.begin, [one, two]) == 2  # submitted again
    await reported(store.end, [two], S.DONE, "", None)
    store.wait_again([two])
    store.take_back([two])
    assert await reported(store.begin, [two]) == 0
    assert await states(store, one, two) == [S.STARTED, S.DONE]


async def test_what_was_started_is_repeated_while_its_lane_allows_and_else_unknown(make):
    store = make()
    await store.open()
    once, twice = await accept(store, new("1", started=True)), await accept(store, new("2", repeat=2, started=True))
    waits, done = await accept(store, new("3")), await accept(store, new("4", started=True))
    await reported(store.end, [done], S.DONE, "", None)
    for found, unknown in (((1, 1), [once]), ((0, 1), [once, twice])):
        await store.close()
        store = make()
        await store.open()
        assert await store.recover() == found
        assert [row.id for row in await store.untold(0, 10)] == unknown
        assert await store.recover() == (0, 0)
        store.begin([twice], None)
    assert await states(store, once, twice, waits, done) == [S.UNKNOWN, S.UNKNOWN, S.ACCEPTED, S.DONE]
    await store.close()


async def test_only_some_messages_are_put_right_where_the_process_lives_on(store):
    one, two = await accept(store, new("1", started=True)), await accept(store, new("2", started=True))
    assert await store.recover([two]) == (0, 1)
    assert await states(store, one, two) == [S.STARTED, S.UNKNOWN]


async def test_a_lane_is_told_once_and_again_after_a_requeue(store, clock):
    ids = [await accept(store, new(str(n), started=True)) for n in range(3)]
    await store.recover()
    assert [row.id for row in await store.untold(0, 2)] == ids[:2]
    assert [row.id for row in await store.untold(ids[1], 2)] == ids[2:]
    store.told(ids)
    assert await store.untold(0, 10) == []
    clock.now += 100
    assert await reported(store.requeue, ids[0]) is True
    row = await store.find(ids[0])
    assert row is not None
    assert (row.state, row.attempt, row.accepted_at, row.ended_at) == (S.ACCEPTED, 0, clock.now, None)
    store.begin([ids[0]], None)
    await store.recover()
    assert [row.id for row in await store.untold(0, 10)] == ids[:1]


async def test_only_what_an_operator_decides_on_is_requeued(store):
    found = {}
    for state in (S.ACCEPTED, S.STARTED, S.DONE, S.FAILED, S.CANCELLED, S.SUPERSEDED, S.PARKED, S.DROPPED, S.UNKNOWN):
        one = await accept(store, new("1", started=state not in (S.ACCEPTED, S.DROPPED)))
        if state is S.UNKNOWN:
            await store.recover([one])
        elif not state.open:
            await reported(store.end, [one], state, "", None)
        found[state] = await reported(store.requeue, one)
    assert [state for state, requeued in found.items() if requeued] == [S.PARKED, S.DROPPED, S.UNKNOWN]
    assert await reported(store.requeue, 999) is False


# Questions to persons


@pytest.mark.parametrize(
    "lane, session, which", [(None, None, [0, 1, 3]), ("a", None, [0, 1]), (None, "s", [1, 3]), ("a", "s", [1])]
)
async def test_what_waits_is_cancelled_of_a_lane_of_a_session_or_all(store, lane, session, which):
    given = [new(), new(session="s"), new(session="s", started=True), new(lane="b", session="s")]
    ids = [await accept(store, one) for one in given]
    assert sorted(await reported(store.cancel_waiting, lane, session, "stopped")) == [ids[n] for n in which]
    for n, one in enumerate(ids):
        row = await store.find(one)
        assert row is not None and (row.state is S.CANCELLED, row.reason == "stopped") == (n in which, n in which)


@pytest.mark.parametrize(
    "which, ended", [({"message": 2}, [2]), ({"upto": 2}, [1, 2]), ({"message": 3, "upto": 2}, [])]
)
async def test_one_message_that_waits_is_cancelled_or_those_up_to_one(store, which, ended):
    ids = [await accept(store, new(session="s")) for _ in range(3)]
    which = {name: ids[number - 1] for name, number in which.items()}
    found = await reported(partial(store.cancel_waiting, **which), None, None, "stopped")
    assert sorted(found) == [ids[number - 1] for number in ended]


async def test_the_open_questions_of_a_session_are_withdrawn_and_what_waits_for_them_is_cancelled(store):
    for name, session in (("q", "s"), ("r", "s"), ("other", "t")):
        await reported(store.ask, question(name, session=session))
    ids = [await accept(store, new(session=one, started=True)) for one in ("s", "t")]
    for one, asked in zip(ids, ("q", "other"), strict=True):
        await reported(store.wait_for, [one], asked)
    await reported(store.close_ask, AskedFor("r", "answered", b"1", "ann"), new(session="s"), 0)
    store.withdraw("s", "reset")
    asks = [await store.find_ask(name) for name in ("q", "r", "other")]
    assert [one and one.state for one in asks] == ["withdrawn", "answered", "open"]
    assert await states(store, *ids) == [S.CANCELLED, S.WAITING]
    late = await accept(store, new(session="s", started=True))
    await reported(store.wait_for, [late], "q")
    row = await store.find(late)
    assert row is not None and (row.state, row.reason) == (S.DONE, "asked, and withdrawn meanwhile")


async def test_a_question_comes_back_as_it_was_asked(make):
    store = make()
    await store.open()
    asked = question("q", key="k", options=b'["yes"]', keep=b'{"n": 1}', expires_at=5.0, session="s")
    assert await reported(store.ask, asked) == asked
    await store.close()
    store = make()
    await store.open()
    assert (await store.find_ask("q"), await store.find_ask("r")) == (asked, None)
    await store.close()


async def test_of_one_key_one_question_is_open(store):
    first = await reported(store.ask, question("q", key="k"))
    assert await reported(store.ask, question("r", key="k")) == first
    for other in (question("s", lane="b", key="k"), question("t", session="x", key="k"), question("u"), question("v")):
        assert await reported(store.ask, other) == other
    await reported(store.close_ask, AskedFor("q", "answered", b"1", "ann"), new("1", first=True, ask="q"), 0)
    assert await reported(store.ask, question("r", key="k")) == question("r", key="k")


async def test_a_question_is_closed_once_with_its_message_and_ends_what_waits_for_it(store):
    one, two = await accept(store, new("1", started=True)), await accept(store, new("2", started=True))
    await reported(store.ask, question("q"))
    assert await reported(store.wait_for, [one], "q") == 1
    assert await states(store, one) == [S.WAITING]
    closing = AskedFor("q", "answered", b'"yes"', "ann")
    taken = await reported(store.close_ask, closing, new("9", first=True, ask="q", dedupe="answer:q"), 0)
    asked, answer = await store.find_ask("q"), await store.find(taken.id)
    assert asked == replace(question("q"), state="answered", value=b'"yes"', by="ann")
    assert answer is not None and (answer.ask, answer.first, answer.state) == ("q", True, S.ACCEPTED)
    assert await reported(store.wait_for, [two], "q") == 1  # its answer came before its run had ended
    assert await states(store, one, two) == [S.DONE, S.DONE]
    for again in (closing, AskedFor("q", "expired", b"null", "")):
        with pytest.raises(AskClosed, match="is answered by 'ann'"):
            await reported(store.close_ask, again, new("10", ask="q"), 0)
    with pytest.raises(AskClosed, match="was never asked"):
        await reported(store.close_ask, AskedFor("x", "expired", b"null", ""), new("10", ask="x"), 0)
    assert await store.last_id() == taken.id


async def test_open_questions_are_listed_and_the_due_ones_found(store):
    for n, (lane, session) in enumerate((("a", None), ("a", "s"), ("b", "s"))):
        await reported(
            store.ask, question(str(n), lane, asked_at=9.0 - n, session=session, expires_at=10.0 * n or None)
        )

    async def names(lane=None, session=None, at_most=10):
        return [one.id for one in await store.open_asks(lane, session, at_most)]

    assert (await names(), await names("a"), await names(None, "s")) == (["2", "1", "0"], ["1", "0"], ["2", "1"])
    assert await names(at_most=1) == ["2"]
    assert [one.id for one in await store.due_asks(10.0, 5)] == ["1"]
    assert [one.id for one in await store.due_asks(20.0, 5)] == ["1", "2"]
    assert await store.next_expiry() == 10.0
    for n in (1, 2):
        await reported(store.close_ask, AskedFor(str(n), "expired", b"null", ""), new("1", ask=str(n)), 0)
    assert (await names(), await store.next_expiry(), await store.due_asks(99.0, 5)) == (["0"], None, [])


# Schedules, numbers, retention, the end


async def test_an_instant_is_served_with_its_message_and_never_taken_back(store):
    assert await store.served("tick") is None
    store.serve("tick", 5.0)
    await reported(store.accept_served, "tick", 10.0, new("1", dedupe="tick:10"), 0)
    store.serve("tick", 7.0)
    assert (await store.served("tick"), await store.served("tock"), await waiting(store)) == (10.0, None, [1])


async def test_what_still_asks_for_something_is_counted(store, clock):
    ids = [await accept(store, new(str(n))) for n in range(5)]
    store.begin(ids[1:], None)
    await reported(store.ask, question("q"))
    store.wait_for([ids[1]], "q", None)
    store.end([ids[2]], S.PARKED, "", None, None)
    await reported(store.end, [ids[3]], S.DONE, "", None)
    census = await reported(store.census)
    assert census.messages == {S.ACCEPTED: 1, S.STARTED: 1, S.WAITING: 1, S.PARKED: 1}
    assert (census.questions, census.oldest_accepted_at) == (1, clock.now)
    assert [row.id for row in await store.in_state(S.PARKED, 10)] == [ids[2]]


async def test_what_has_ended_is_forgotten_but_what_waits_for_a_person_and_no_id_is_used_twice(make, clock):
    store = make()
    await store.open()
    ids = [await accept(store, new(str(n), started=True)) for n in range(5)]
    for one, state in zip(ids, (S.DONE, S.FAILED, S.PARKED), strict=False):
        await reported(store.end, [one], state, "", None)
    await store.recover([ids[3]])
    await reported(store.ask, question("q"))
    await reported(store.wait_for, [ids[4]], "q")
    assert await store.purge(clock.now, 10) == 0
    clock.now += 1
    assert (await store.purge(clock.now, 1), await store.purge(clock.now, 10)) == (1, 1)
    assert await states(store, *ids) == [None, None, S.PARKED, S.UNKNOWN, S.WAITING]
    taken = await reported(store.close_ask, AskedFor("q", "answered", b"1", ""), new("9", started=True), 0)
    await reported(store.end, [taken.id], S.DONE, "", None)
    clock.now += 1
    assert await store.purge(clock.now, 10) == 3
    assert (await store.find_ask("q"), await states(store, ids[4], taken.id)) == (None, [None, None])
    await store.close()
    store = make()
    await store.open()
    assert await accept(store, new("10")) == taken.id + 1
    await store.close()


async def test_what_is_closed_keeps_nothing_and_says_so(make):
    store = make()
    await store.open()
    store.accept(new("1"), 0, Answer())  # handed over before the end: kept, though nothing waits for it
    await store.close()
    with pytest.raises(InboxDown):
        await accept(store, new("2"))
    store.let_go()
    await store.close()
    store = make()
    await store.open()
    assert await store.recover() == (0, 0)
    assert await waiting(store) == [1]
    await store.close()

"""Accepted messages: kept before they are acknowledged, answered in order, in this process or the next one."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import anyio
import pytest

from lanes import DedupeConflict, InvalidLane, LaneFull, LaneSpec, Message, RetrySpec, RunState
from runtime import Inbox, InboxDown, InboxInvalid, MessageState, OutcomeUnknown, Supervisor
from runtime.testing.inline import inline
from tests.inboxes import copy_of, rows, service_of, writer_of


@pytest.fixture
def writer():
    with inline() as writer:
        yield writer


def answering(log):
    async def answer(ctx, messages):
        log.append([one.body for one in messages])
        await ctx.session.append({"said": [one.body for one in messages]})
        return len(messages)

    return answer


def lanes(handler, **options):
    return [LaneSpec("session:*", handler=handler, **options)]


def executed(path, statements):
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(statements)


async def forever(ctx, messages):
    await anyio.sleep_forever()


async def cut_off(root, copies, *, messages, spec, accepted=None):
    """Accept messages, and have the process die while the first of each session is being answered."""
    sup = Supervisor(root, lanes=spec, inbox=True)
    async with sup:
        for lane, body in messages:
            one = await sup.accept(lane, body)
            if accepted is not None:
                accepted.append(one.id)
        await anyio.sleep(1)
        copy_of(root, copies)
        sup.cancel()


async def test_an_accepted_message_is_answered_and_its_end_is_kept(virtual, writer, tmp_path):
    log: list[Any] = []
    async with Supervisor(tmp_path, lanes=lanes(answering(log)), inbox=True) as sup:
        accepted = await sup.accept("session:a", {"text": "hello"}, session="a")
        outcome = await accepted.wait()
        assert (outcome.state, outcome.value, accepted.state) == (RunState.DONE, 1, MessageState.DONE)
        assert rows(tmp_path) == [(accepted.id, "done")]
    assert log == [[{"text": "hello"}]]


async def test_nothing_is_acknowledged_and_no_body_begins_before_it_is_kept(virtual, writer, tmp_path):
    log: list[Any] = []
    async with Supervisor(tmp_path, lanes=lanes(answering(log)), inbox=True) as sup:
        store = writer_of(sup)
        store.held = []
        async with anyio.create_task_group() as group:
            acknowledged = []

            async def send():
                acknowledged.append(await sup.accept("session:a", 1))

            group.start_soon(send)
            await anyio.sleep(10)
            assert (acknowledged, log, rows(tmp_path)) == ([], [], [])
            store.release()
        await acknowledged[0].wait()
    assert log == [[1]]


@pytest.mark.failure("G9")
async def test_a_body_begins_and_is_given_a_message_only_when_that_is_kept(virtual, writer, tmp_path):
    log: list[Any] = []

    async def reads(ctx, messages):
        log.append(messages[0].body)
        await anyio.sleep(5)
        if messages[0].body == 2:
            log.append((await ctx.inbox.receive()).body)

    async with Supervisor(tmp_path, lanes=lanes(reads), inbox=True) as sup:
        await sup.accept("session:a", 1)
        second = await sup.accept("session:a", 2)
        writer_of(sup).held = []
        await anyio.sleep(10)
        assert log == [1]  # its run has a slot and the turn, and its start is not kept
        writer_of(sup).release()
        await anyio.sleep(1)
        assert log == [1, 2]
        await sup.accept("session:a", 3, when_busy="steer")
        writer_of(sup).held = []
        await anyio.sleep(10)
        assert log == [1, 2]  # it waits for its message, which is marked as started first
        writer_of(sup).release()
        await second.wait()
    assert log == [1, 2, 3]


async def test_of_two_messages_that_could_both_start_at_once_the_second_waits_as_accepted(virtual, writer, tmp_path):
    async with Supervisor(tmp_path, lanes=lanes(forever, grace=0), inbox=True) as sup:
        writer_of(sup).held = []
        async with anyio.create_task_group() as group:
            group.start_soon(sup.accept, "session:a", 1)
            await anyio.sleep(1)
            group.start_soon(sup.accept, "session:a", 2)
            await anyio.sleep(1)
            writer_of(sup).release()
        await anyio.sleep(1)
        assert rows(tmp_path, "body, state, attempt") == [(b"1", "started", 1), (b"2", "accepted", 0)]
        sup.cancel()


async def test_a_message_whose_answer_could_not_be_appended_is_not_done(virtual, writer, tmp_path):
    async def finishes(ctx, messages):
        await ctx.finish({"answer": object()})

    async with Supervisor(tmp_path, lanes=lanes(finishes), inbox=True) as sup:
        await (await sup.accept("session:a", 1)).wait()
        assert rows(tmp_path) == [(1, "failed")]


async def test_a_message_that_has_to_wait_is_kept_as_accepted_until_its_body_begins(virtual, writer, tmp_path):
    async with Supervisor(tmp_path, lanes=lanes(forever, timeout=5, grace=1), inbox=True) as sup:
        first, second = await sup.accept("session:a", 1), await sup.accept("session:a", 2)
        await anyio.sleep(1)
        assert rows(tmp_path, "id, state, attempt") == [(first.id, "started", 1), (second.id, "accepted", 0)]
        await anyio.sleep(5)
        assert rows(tmp_path, "id, state, attempt") == [(first.id, "failed", 1), (second.id, "started", 1)]
        sup.cancel()


async def test_the_next_process_answers_what_waited_in_order_and_before_new_messages(virtual, writer, tmp_path):
    bodies = [("session:a", 1), ("session:a", 2), ("session:b", 3), ("session:a", 4), ("session:b", 5)]
    await cut_off(tmp_path / "old", tmp_path / "new", messages=bodies, spec=lanes(forever, grace=0))
    log: list[Any] = []
    async with Supervisor(tmp_path / "new", lanes=lanes(answering(log)), inbox=True) as sup:
        last = await sup.accept("session:a", 6)
        await last.wait()
        await anyio.sleep(10)
    assert [one for one in log if one[0] in (1, 2, 4, 6)] == [[2], [4], [6]]
    assert [one for one in log if one[0] in (3, 5)] == [[5]]
    assert rows(tmp_path / "new", "body, state", "state != 'done'") == [(b"1", "unknown"), (b"3", "unknown")]


async def test_a_message_that_may_be_repeated_is_answered_again_but_not_for_ever(virtual, writer, tmp_path):
    spec = lanes(forever, repeat=True, grace=0)
    await cut_off(tmp_path / "0", tmp_path / "1", messages=[("session:a", 1)], spec=spec)
    for n in (1, 2):
        async with Supervisor(tmp_path / str(n), lanes=spec, inbox=True) as sup:
            await anyio.sleep(1)
            assert rows(tmp_path / str(n), "state, attempt") == [("started", n + 1)]
            copy_of(tmp_path / str(n), tmp_path / str(n + 1))
            sup.cancel()
    async with Supervisor(tmp_path / "3", lanes=spec, inbox=True) as sup:
        await anyio.sleep(1)
        assert [row.attempt for row in await sup.unknown()] == [3]


@pytest.mark.failure("G9")
async def test_a_lane_is_told_of_unknown_messages_before_what_came_later(virtual, writer, tmp_path):
    bodies = [("session:a", 1), ("session:a", 2), ("session:b", 3)]
    await cut_off(tmp_path / "old", tmp_path / "new", messages=bodies, spec=lanes(forever, grace=0))
    log: list[Any] = []

    async def tell(ctx, messages):
        log.append(("unknown", [one.body for one in messages]))

    async with Supervisor(tmp_path / "new", lanes=lanes(answering(log), on_unknown=tell), inbox=True) as sup:
        await anyio.sleep(10)
        assert sorted(row.id for row in await sup.unknown()) == [1, 3]
    assert log.index(("unknown", [1])) < log.index([2])
    assert ("unknown", [3]) in log
    log.clear()
    async with Supervisor(tmp_path / "new", lanes=lanes(answering(log), on_unknown=tell), inbox=True):
        await anyio.sleep(10)
    assert log == []  # told once


@pytest.mark.failure("G9")
async def test_a_lane_is_told_of_unknown_messages_before_what_is_accepted_at_once(virtual, writer, tmp_path):
    spec = lanes(forever, grace=0)
    await cut_off(tmp_path / "old", tmp_path / "new", messages=[("session:a", 1)], spec=spec)
    log: list[Any] = []

    async def tell(ctx, messages):
        log.append(("unknown", [one.body for one in messages]))

    async with Supervisor(tmp_path / "new", lanes=lanes(answering(log), on_unknown=tell), inbox=True) as sup:
        await (await sup.accept("session:a", 2)).wait()
    assert log == [("unknown", [1]), [2]]


@pytest.mark.failure("G9")
@pytest.mark.parametrize("way", ["another lane", "post"])
async def test_a_session_is_told_of_unknown_messages_before_what_comes_by_another_way(virtual, writer, tmp_path, way):
    await cut_off(tmp_path / "old", tmp_path / "new", messages=[("session:a", 1)], spec=lanes(forever, grace=0))
    log: list[Any] = []

    async def tell(ctx, messages):
        log.append(("unknown", [one.body for one in messages]))

    spec = [*lanes(answering(log), on_unknown=tell), LaneSpec("main", handler=answering(log))]
    async with Supervisor(tmp_path / "new", lanes=spec, inbox=True) as sup:
        if way == "post":
            await sup.post("session:a", 2).wait()
        else:
            await (await sup.accept("main", 2, session="a")).wait()
    assert log == [("unknown", [1]), [2]]


@pytest.mark.parametrize("repeat", [False, True])
async def test_what_a_restart_has_cut_off_goes_first_on_a_full_lane_too(virtual, writer, tmp_path, repeat):
    log: list[Any] = []

    async def handle(ctx, messages):
        log.append([one.body for one in messages])
        if log == [[1]]:
            await anyio.sleep_forever()

    async def tell(ctx, messages):
        log.append(("unknown", [one.body for one in messages]))

    spec = lanes(handle, queue_limit=1, grace=0, repeat=repeat, on_unknown=tell)
    async with Supervisor(tmp_path, lanes=spec, inbox=True, drain_timeout=0) as sup:
        await sup.accept("session:a", 1)
        second = await sup.accept("session:a", 2)
        await anyio.sleep(1)
        await sup.restart()
        await second.wait()
    assert log == [[1], [1] if repeat else ("unknown", [1]), [2]]


async def test_a_lane_is_told_of_what_was_repeated_too_often(virtual, writer, tmp_path):
    spec = lanes(forever, repeat=True, grace=0)
    await cut_off(tmp_path / "0", tmp_path / "1", messages=[("session:a", 1)], spec=spec)
    for n in (1, 2):
        async with Supervisor(tmp_path / str(n), lanes=spec, inbox=True) as sup:
            await anyio.sleep(1)
            copy_of(tmp_path / str(n), tmp_path / str(n + 1))
            sup.cancel()
    told: list[Any] = []

    async def tell(ctx, messages):
        told.append([one.body for one in messages])

    last = lanes(forever, repeat=True, grace=0, on_unknown=tell)
    async with Supervisor(tmp_path / "3", lanes=last, inbox=True):
        await anyio.sleep(1)
    assert told == [[1]]


async def test_a_key_gives_the_same_message_over_restarts(virtual, writer, tmp_path):
    log: list[Any] = []
    spec = lanes(answering(log))
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        first = await sup.accept("session:a", 1, dedupe="k")
        again = await sup.accept("session:a", 1, dedupe="k")
        assert (first.new, again.new, again.id) == (True, False, first.id)
        await again.wait()
        with pytest.raises(DedupeConflict, match="'k' is the key of message"):
            await sup.accept("session:a", 2, dedupe="k")
        other = await sup.accept("session:b", 2, dedupe="k")
        assert other.new
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        again = await sup.accept("session:a", 1, dedupe="k")
        assert (again.new, again.id, (await again.wait()).value) == (False, first.id, 1)
    assert sorted(log) == [[1], [2]]


async def test_a_full_lane_refuses_and_its_key_still_finds_what_was_accepted(virtual, writer, tmp_path):
    async with Supervisor(tmp_path, lanes=lanes(forever, queue_limit=1, timeout=5), inbox=True) as sup:
        await sup.accept("session:a", 1)
        await sup.accept("session:a", 2, dedupe="two")
        with pytest.raises(LaneFull):
            await sup.accept("session:a", 3)
        assert not (await sup.accept("session:a", 2, dedupe="two")).new
        with pytest.raises(DedupeConflict):
            await sup.accept("session:a", 9, dedupe="two")
        assert len(rows(tmp_path)) == 2
        sup.cancel()


async def test_what_a_lane_drops_or_supersedes_is_kept_with_its_state(virtual, writer, tmp_path):
    spec = [
        LaneSpec("session:d*", handler=forever, queue_limit=1, when_full="drop_oldest", grace=0),
        LaneSpec("session:i*", handler=forever, when_busy="interrupt", grace=0),
    ]
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        for lane in ("session:d", "session:i"):
            for n in range(3):
                await sup.accept(lane, n)
                await anyio.sleep(1)
        assert rows(tmp_path, "lane, body, state") == [
            ("session:d", b"0", "started"),
            ("session:d", b"1", "dropped"),
            ("session:d", b"2", "accepted"),
            ("session:i", b"0", "superseded"),
            ("session:i", b"1", "superseded"),
            ("session:i", b"2", "started"),
        ]
        sup.cancel()
        await anyio.sleep(1)
        assert {state for (state,) in rows(tmp_path, "state")} == {"dropped", "superseded", "cancelled"}


async def test_messages_that_are_collected_share_their_end(virtual, writer, tmp_path):
    log: list[Any] = []
    spec = lanes(answering(log), when_busy="collect", debounce=1.0)
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        several = [await sup.accept("session:a", n) for n in range(3)]
        outcomes = [await one.wait() for one in several]
        assert {outcome.value for outcome in outcomes} == {3}
    assert log == [[0, 1, 2]]
    assert [state for _, state in rows(tmp_path)] == ["done"] * 3


async def test_a_steered_message_is_started_when_it_is_read_and_waits_if_it_is_not(virtual, writer, tmp_path):
    log: list[Any] = []

    async def reads_one(ctx, messages):
        log.append([one.body for one in messages])
        if messages[0].body == 0:
            await anyio.sleep(5)
            log.append((await ctx.inbox.receive()).body)
            log.append(rows(tmp_path, "body, state"))

    async with Supervisor(tmp_path, lanes=lanes(reads_one, when_busy="steer"), inbox=True) as sup:
        several = [await sup.accept("session:a", n) for n in range(3)]
        await anyio.sleep(1)
        assert rows(tmp_path, "state") == [("started",), ("accepted",), ("accepted",)]
        for one in several:
            await one.wait()
    assert log == [[0], 1, [(b"0", "started"), (b"1", "started"), (b"2", "accepted")], [2]]
    assert rows(tmp_path, "state, attempt") == [("done", 1)] * 3


async def test_attempts_count_on_after_a_restart_and_the_last_one_parks(virtual, writer, tmp_path):
    calls = []

    async def fails(ctx, messages):
        calls.append(ctx.run.attempt)
        raise RuntimeError("no")

    spec = lanes(fails, retry=RetrySpec(3, wait=50.0))
    sup = Supervisor(tmp_path / "old", lanes=spec, inbox=True)
    async with sup:
        await sup.accept("session:a", 1)
        await anyio.sleep(1)
        assert rows(tmp_path / "old", "state, attempt") == [("accepted", 1)]  # between two attempts
        copy_of(tmp_path / "old", tmp_path / "new")
        sup.cancel()
    async with Supervisor(tmp_path / "new", lanes=spec, inbox=True) as sup:
        await anyio.sleep(1000)
        assert calls == [1, 2, 3]
        assert rows(tmp_path / "new", "state, attempt") == [("parked", 3)]
        assert [one.messages[0].body for one in sup.parked()] == [1]
    log: list[Any] = []
    async with Supervisor(tmp_path / "new", lanes=lanes(answering(log)), inbox=True) as sup:
        await anyio.sleep(1)
        (parked,) = sup.parked()
        await sup.resubmit(parked.run.id).wait()
        await anyio.sleep(1)
        assert (log, rows(tmp_path / "new")) == ([[1]], [(1, "done")])


async def test_what_is_discarded_stays_discarded_and_what_is_requeued_waits_again(virtual, writer, tmp_path):
    async def fails(ctx, messages):
        raise RuntimeError("no")

    spec = lanes(fails, retry=RetrySpec(2, wait=0.1))
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        for n in range(2):
            await (await sup.accept("session:a", n)).wait()
        first, _ = sup.parked()
        sup.discard(first.run.id)
        with pytest.raises(InvalidLane, match="message 1 is"):
            await sup.requeue(1)
    log: list[Any] = []
    async with Supervisor(tmp_path, lanes=lanes(answering(log)), inbox=True) as sup:
        await anyio.sleep(1)
        assert [one.messages[0].body for one in sup.parked()] == [1]
        assert (await (await sup.requeue(2)).wait()).state is RunState.DONE
    assert log == [[1]]
    assert rows(tmp_path) == [(1, "cancelled"), (2, "done")]


async def test_more_messages_than_fit_come_in_pages_and_in_order(virtual, writer, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.replay.PAGE", 5)
    spec = [LaneSpec("main", handler=forever, queue_limit=100, grace=0)]
    old = Supervisor(tmp_path / "old", lanes=spec, inbox=True)
    async with old:
        for n in range(40):
            await old.accept("main", n)
        copy_of(tmp_path / "old", tmp_path / "new")
        old.cancel()
    log: list[Any] = []
    most = 0

    async def note(ctx, messages):
        nonlocal most
        most = max(most, len(sup.runs()))
        log.append(messages[0].body)
        await anyio.sleep(0.1)

    spec = [LaneSpec("main", handler=note, queue_limit=3)]
    async with Supervisor(tmp_path / "new", lanes=spec, inbox=True) as sup:
        await anyio.sleep(60)
        assert service_of(sup).replay.behind is False
    assert (log, most <= 4) == (list(range(1, 40)), True)


async def test_a_restart_in_the_process_repeats_or_names_what_it_cut_off(virtual, writer, tmp_path):
    log: list[Any] = []

    async def slow(ctx, messages):
        log.append((ctx.run.lane, messages[0].body))
        await anyio.sleep(50)

    spec = [LaneSpec("session:r*", handler=slow, repeat=True, grace=0), LaneSpec("session:u*", handler=slow, grace=0)]
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        for lane in ("session:r", "session:u"):
            await sup.accept(lane, 1)
            await sup.accept(lane, 2)
        await anyio.sleep(1)
        await sup.restart(drain_timeout=0)
        await anyio.sleep(200)
        assert rows(tmp_path, "lane, body, state", "state != 'done'") == [("session:u", b"1", "unknown")]
    assert [body for lane, body in log if lane == "session:r"] == [1, 1, 2]
    assert [body for lane, body in log if lane == "session:u"] == [1, 2]


async def test_a_handler_may_finish_before_it_ends(virtual, writer, tmp_path):
    async def finishes(ctx, messages):
        assert ctx.message_ids == [1]
        await ctx.finish({"answer": messages[0].body})
        assert rows(tmp_path) == [(1, "done")]
        raise RuntimeError("afterwards")

    async with Supervisor(tmp_path, lanes=lanes(finishes), inbox=True) as sup:
        outcome = await (await sup.accept("session:a", 1)).wait()
        assert outcome.state is RunState.FAILED
        assert rows(tmp_path) == [(1, "done")]


async def test_the_end_of_an_earlier_process_is_told_as_far_as_it_is_known(virtual, writer, tmp_path):
    await cut_off(tmp_path / "old", tmp_path / "new", messages=[("session:a", 1)], spec=lanes(forever, grace=0))
    async with Supervisor(tmp_path / "new", lanes=lanes(forever), inbox=True) as sup:
        accepted = await service_of(sup).door.find(1)
        outcome = await accepted.wait()
        assert isinstance(outcome.error, OutcomeUnknown)
        assert outcome.error.message_id == 1


async def test_what_json_has_not_is_refused_before_anything_is_kept(virtual, writer, tmp_path):
    async with Supervisor(tmp_path, lanes=lanes(forever), inbox=True) as sup:
        for bad in ({1: 2}, b"x", float("nan"), {"a": {1, 2}}, object()):
            with pytest.raises(InvalidLane, match="message: cannot be kept"):
                await sup.accept("session:a", bad)
        with pytest.raises(InvalidLane, match="route: cannot be kept"):
            await sup.accept("session:a", Message("x", route=object()))
        assert rows(tmp_path) == []


async def test_a_supervisor_without_an_inbox_says_so(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=lanes(forever)) as sup:
        with pytest.raises(InvalidLane, match="no inbox"):
            await sup.accept("session:a", 1)


@pytest.mark.parametrize("bad", [1, "yes", None, object()])
def test_an_inbox_is_true_false_or_an_inbox(tmp_path, bad):
    with pytest.raises(InvalidLane, match=r"inbox: .* is not allowed"):
        Supervisor(tmp_path, inbox=bad)


@pytest.mark.parametrize("field, value", [("durability", "never"), ("keep", 7), ("path", 3), ("schedules", [1])])
def test_a_field_of_an_inbox_is_named_when_it_is_refused(field, value):
    with pytest.raises(InvalidLane, match=f"inbox, {field}: "):
        Inbox(**{field: value})


@pytest.mark.backends("asyncio")
async def test_a_file_that_is_no_inbox_of_this_version_is_refused_untouched(virtual, writer, tmp_path):
    for name, spoil, why in (
        ("text", lambda path: path.write_bytes(b"no database" * 100), "damaged"),
        ("other", lambda path: executed(path, "CREATE TABLE t (x)"), "another program"),
        ("newer", lambda path: executed(path, "PRAGMA application_id = 1818324581; PRAGMA user_version = 2"), "form 2"),
    ):
        path = tmp_path / name / ".lanes" / "inbox.db"
        path.parent.mkdir(parents=True)
        spoil(path)
        before = path.read_bytes()
        with pytest.raises(InboxInvalid, match=why):
            await Supervisor(tmp_path / name, lanes=lanes(forever), inbox=True).start()
        assert path.read_bytes() == before


@pytest.mark.backends("asyncio")
async def test_an_inbox_on_a_network_file_system_is_refused(virtual, writer, tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.schema.network_file_system", lambda _path: "nfs")
    with pytest.raises(InboxInvalid, match="on nfs, a network file system"):
        await Supervisor(tmp_path, lanes=lanes(forever), inbox=True).start()


async def test_a_commit_that_fails_ends_the_writer_and_loses_nothing(virtual, writer, tmp_path):
    log: list[Any] = []
    async with Supervisor(tmp_path, lanes=lanes(answering(log)), inbox=True) as sup:
        await (await sup.accept("session:a", 1)).wait()

        def fails(_writer):
            raise OSError(28, "No space left on device")

        writer.before = fails
        with pytest.raises(InboxDown, match="No space left"):
            await sup.accept("session:a", 2)
        del writer.before
        with pytest.raises(InboxDown, match="takes nothing"):
            await sup.accept("session:a", 3)  # no second try on that handle
    async with Supervisor(tmp_path, lanes=lanes(answering(log)), inbox=True) as sup:
        await (await sup.accept("session:a", 4)).wait()
    assert log == [[1], [4]]

"""What an inbox meets that its happy path does not: restarts at bad moments, full lanes, and
operators who change their minds. Nothing that was accepted is forgotten, and nothing is answered twice."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import anyio
import pytest

from lanes import LaneFull, LaneSpec, RetrySpec, RunState
from lanes.message import ids_of
from locks import process
from runtime import AbandonedBodies, Inbox, Schedule, Supervisor
from runtime.inbox import by_hand
from runtime.testing.inline import inline
from tests.inboxes import copy_of, rows, service_of, writer_of


@pytest.fixture(autouse=True)
def writer(virtual, monkeypatch):
    """No thread; and the wall clock goes with the virtual one."""
    monkeypatch.setattr(process, "wall", lambda: 1_800_000_000.0 + virtual.now())
    for look, seconds in (("service", 600.0), ("asks", 3000.0)):
        monkeypatch.setattr(f"runtime.inbox.{look}._LOOK_S", seconds)
    with inline() as writer:
        yield writer


class Bot:
    """Answers at once; `slow` after a while, `ask` by asking, `fail` by raising."""

    def __init__(self) -> None:
        self.log: list[Any] = []

    async def handle(self, ctx: Any, messages: Any) -> None:
        body = messages[0].body
        self.log.append(body)
        if body == "ask":
            raise await ctx.ask("Well?", expires=60.0)
        if body == "fail":
            raise RuntimeError("no")
        if body == "slow":
            await anyio.sleep(5)

    def lanes(self, pattern: str = "session:*", **options: Any) -> list[LaneSpec]:
        return [LaneSpec(pattern, handler=self.handle, **{"grace": 0, **options})]


@pytest.mark.failure("G12")
async def test_what_is_accepted_while_a_restart_begins_is_answered_after_it(tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes(), inbox=True) as sup:
        sup.post("session:b", "slow")
        writer_of(sup).held = []
        async with anyio.create_task_group() as group:
            accepted = []

            async def send() -> None:
                accepted.append(await sup.accept("session:a", 1))

            group.start_soon(send)
            await anyio.sleep(1)
            group.start_soon(sup.restart)
            await anyio.sleep(1)
            writer_of(sup).release()
        with anyio.fail_after(100):
            await accepted[0].wait()
    assert bot.log == ["slow", 1]


@pytest.mark.failure("G12")
@pytest.mark.parametrize("repeat", [True, False])
async def test_a_restart_with_a_full_lane_forgets_nothing_of_what_is_on_disk_only(tmp_path, repeat):
    many = 12
    bot = Bot()
    old = Supervisor(tmp_path / "old", lanes=bot.lanes("main", queue_limit=100), inbox=True)
    async with old:
        await old.accept("main", "slow")
        for n in range(many):
            await old.accept("main", n)
        copy_of(tmp_path / "old", tmp_path / "new")
        old.cancel()
    bot.log.clear()
    told: list[Any] = []

    async def tell(ctx: Any, messages: Any) -> None:
        told.append([one.body for one in messages])

    async def slowly(ctx: Any, messages: Any) -> None:
        bot.log.append(messages[0].body)
        await anyio.sleep(2)

    spec = [
        LaneSpec("main", handler=slowly, queue_limit=3, repeat=repeat, on_unknown=None if repeat else tell, grace=0)
    ]
    async with Supervisor(tmp_path / "new", lanes=spec, inbox=True) as sup:
        await anyio.sleep(5)  # one runs, three wait, the others are on disk only
        await sup.restart(drain_timeout=0)
        await anyio.sleep(60)
        left = rows(tmp_path / "new", "body, state", "state NOT IN ('done', 'unknown')")
        assert left == [], (bot.log, told)


@pytest.mark.failure("G13")
async def test_a_question_of_a_lane_that_is_gone_keeps_no_other_from_expiring(tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes(), inbox=True) as sup:
        await (await sup.accept("session:a", "ask")).wait()
    virtual_lanes = bot.lanes("other:*")
    async with Supervisor(tmp_path, lanes=virtual_lanes, inbox=True) as sup:
        await (await sup.accept("other:b", "ask")).wait()
        await anyio.sleep(100)
        assert await sup.asks() == []
    assert sorted(rows(tmp_path, "lane, state", "ask IS NOT NULL")) == [("other:b", "done"), ("session:a", "parked")]


async def test_an_unknown_message_that_is_requeued_is_told_of_again(tmp_path):
    bot, told = Bot(), []

    async def tell(ctx: Any, messages: Any) -> None:
        told.append([one.body for one in messages])

    def lanes():
        return bot.lanes(on_unknown=tell)

    async with Supervisor(tmp_path / "0", lanes=lanes(), inbox=True) as sup:
        await sup.accept("session:a", "slow")
        await anyio.sleep(1)
        copy_of(tmp_path / "0", tmp_path / "1")
        sup.cancel()
    async with Supervisor(tmp_path / "1", lanes=lanes(), inbox=True) as sup:
        await anyio.sleep(2)
        await sup.requeue(1)
        await anyio.sleep(1)
        copy_of(tmp_path / "1", tmp_path / "2")
        sup.cancel()
    async with Supervisor(tmp_path / "2", lanes=lanes(), inbox=True) as sup:
        await anyio.sleep(2)
    assert told == [["slow"], ["slow"]]


async def test_a_message_that_was_refused_leaves_no_key_behind(tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes(queue_limit=1), inbox=True) as sup:
        await sup.accept("session:a", "slow")
        writer_of(sup).held = []
        refused = []

        async def send(n: int) -> None:
            try:
                await sup.accept("session:a", n, dedupe=f"key{n}")
            except LaneFull:
                refused.append(n)

        async with anyio.create_task_group() as group:
            group.start_soon(send, 1)
            group.start_soon(send, 2)
            await anyio.sleep(1)
            writer_of(sup).release()
        assert len(refused) == 1
        await anyio.sleep(10)
        again = await sup.accept("session:a", refused[0], dedupe=f"key{refused[0]}")
        assert (await again.wait()).state is RunState.DONE
    assert sorted(bot.log[1:]) == [1, 2]


async def test_the_time_of_a_requeued_message_in_the_queue_begins_with_that(virtual, tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path / "0", lanes=bot.lanes(), inbox=True) as sup:
        await sup.accept("session:a", "slow")
        await anyio.sleep(1)
        copy_of(tmp_path / "0", tmp_path / "1")
        sup.cancel()
    virtual.advance(10_000)
    async with Supervisor(tmp_path / "1", lanes=bot.lanes(queue_timeout=60.0), inbox=True) as sup:
        await sup.accept("session:a", "slow")
        assert (await (await sup.requeue(1)).wait()).state is RunState.DONE


async def test_a_message_that_waits_for_a_person_has_one_outcome_whoever_asks(tmp_path):
    bot = Bot()
    async with Supervisor(tmp_path, lanes=bot.lanes(), inbox=True) as sup:
        first = await (await sup.accept("session:a", "ask", dedupe="k")).wait()
        again = await sup.accept("session:a", "ask", dedupe="k")
        assert again.state == "waiting"
        assert (await again.wait()).state is first.state is RunState.DONE


async def test_a_parked_message_that_is_requeued_is_not_parked_any_more(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.service._LOOK_S", 0.5)
    bot = Bot()
    spec = bot.lanes(retry=RetrySpec(2, wait=0.1))
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        for _ in range(3):
            await (await sup.accept("session:a", "fail")).wait()
        assert len(sup.parked()) == 3
        await sup.requeue(1)
        with by_hand.opened(str(tmp_path), changing=True) as connection:
            by_hand.requeue(connection, 2)
        await anyio.sleep(0.05)
        assert [ids_of(one.messages) for one in sup.parked()] == [[3]]
        await anyio.sleep(20)
        assert sorted(ids_of(one.messages) for one in sup.parked()) == [[1], [2], [3]]
        with by_hand.opened(str(tmp_path), changing=True) as connection:
            assert by_hand.discard(connection, 2)
        await anyio.sleep(1)
        assert sorted(ids_of(one.messages) for one in sup.parked()) == [[1], [3]]


@pytest.mark.failure("G12")
async def test_what_is_requeued_by_hand_comes_back_though_its_lane_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.service._LOOK_S", 0.5)
    bot = Bot()
    async with Supervisor(tmp_path / "0", lanes=bot.lanes("main", queue_limit=100), inbox=True) as sup:
        await sup.accept("main", "slow")
        for n in range(8):
            await sup.accept("main", n)
        await anyio.sleep(1)
        copy_of(tmp_path / "0", tmp_path / "1")
        sup.cancel()
    bot.log.clear()

    async def slowly(ctx: Any, messages: Any) -> None:
        bot.log.append(messages[0].body)
        await anyio.sleep(2)

    async with Supervisor(tmp_path / "1", lanes=[LaneSpec("main", handler=slowly, queue_limit=2)], inbox=True) as sup:
        await anyio.sleep(1)
        assert service_of(sup).replay.behind
        with by_hand.opened(str(tmp_path / "1"), changing=True) as connection:
            assert by_hand.requeue(connection, 1)
        await anyio.sleep(60)
    assert sorted(map(str, bot.log)) == sorted([*map(str, range(8)), "slow"])


async def test_no_instant_of_a_schedule_is_lost_while_the_supervisor_drains_for_a_restart(tmp_path):
    ticks: list[float] = []

    async def tick(ctx: Any, messages: Any) -> None:
        ticks.append(process.wall())

    async def hold(ctx: Any, messages: Any) -> None:
        await anyio.sleep(100)

    spec = [LaneSpec("ticks", handler=tick), LaneSpec("hold", handler=hold)]
    inbox = Inbox(schedules=[Schedule("ticks", "tick", every=10.0, missed="all")])
    async with Supervisor(tmp_path, lanes=spec, inbox=inbox) as sup:
        began = process.wall()
        sup.post("hold", 1)
        await anyio.sleep(25)
        await sup.restart(drain_timeout=100)
        await anyio.sleep(25)
        ended = process.wall()
    assert len(ticks) == ended // 10 - began // 10


async def test_what_is_finished_is_not_tried_again(tmp_path):
    log: list[Any] = []

    async def finishes(ctx: Any, messages: Any) -> None:
        log.append(messages[0].body)
        await ctx.finish({"answer": 1})
        raise RuntimeError("afterwards")

    spec = [LaneSpec("session:*", handler=finishes, retry=RetrySpec(3, wait=0.1))]
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        await (await sup.accept("session:a", 1)).wait()
        assert sup.parked() == []
    assert log == [1]


async def test_a_new_message_stays_behind_what_its_session_is_told_of_first(tmp_path):
    log: list[Any] = []

    async def slow(ctx: Any, messages: Any) -> None:
        log.append(messages[0].body)
        await anyio.sleep(5)

    async def tell(ctx: Any, messages: Any) -> None:
        log.append(("told", messages[0].body))
        await anyio.sleep(5)

    spec = [LaneSpec("main", handler=slow, on_unknown=tell, grace=0, capacity=3)]
    async with Supervisor(tmp_path / "0", lanes=spec, inbox=True) as sup:
        for session in "abc":
            await sup.accept("main", session, session=session)
        await anyio.sleep(1)
        copy_of(tmp_path / "0", tmp_path / "1")
        sup.cancel()
    log.clear()
    spec = [LaneSpec("main", handler=slow, on_unknown=tell, grace=0, queue_limit=1)]
    async with Supervisor(tmp_path / "1", lanes=spec, inbox=True) as sup:
        with pytest.raises(LaneFull):  # it is being told of two
            await sup.accept("main", "new c", session="c")
        while "new c" not in log:
            with suppress(LaneFull):
                await sup.accept("main", "new c", session="c", dedupe="new c")
            await anyio.sleep(1)
    assert log.index(("told", "c")) < log.index("new c")


async def test_what_was_read_in_an_attempt_that_failed_waits_with_it(tmp_path):
    async def reads(ctx: Any, messages: Any) -> None:
        await anyio.sleep(1)
        await ctx.inbox.receive()
        raise RuntimeError("no")

    spec = [LaneSpec("session:*", handler=reads, retry=RetrySpec(2, wait=50.0), when_busy="steer")]
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        await sup.accept("session:a", 1)
        await sup.accept("session:a", 2)
        await anyio.sleep(5)
        assert rows(tmp_path, "state, attempt") == [("accepted", 1)] * 2
        sup.cancel()


@pytest.mark.parametrize("repeat", [True, False])
async def test_what_a_restart_has_cut_off_is_put_right_though_the_restart_is_taken_back(tmp_path, repeat):
    begun: list[Any] = []

    async def stubborn(ctx: Any, messages: Any) -> None:
        begun.append(messages[0].body)
        if messages[0].body == "stubborn" and begun.count("stubborn") == 1:
            with anyio.CancelScope(shield=True):  # the restart ends in vain, and this body goes on meanwhile
                await anyio.sleep(100)
        await anyio.sleep(5)

    spec = [LaneSpec("session:*", handler=stubborn, repeat=repeat, grace=1)]
    async with Supervisor(tmp_path, lanes=spec, inbox=True) as sup:
        await sup.accept("session:a", "stubborn")
        await sup.accept("session:b", "docile")
        await sup.accept("session:b", "next")
        await anyio.sleep(1)
        with pytest.raises(AbandonedBodies):
            await sup.restart(drain_timeout=0)
        accepted = await sup.accept("session:a", "new")
        assert (await accepted.wait()).state is RunState.DONE
        await anyio.sleep(110)
        ends = rows(tmp_path, "body, state, attempt")
    again = ["stubborn", "docile"] if repeat else []
    assert sorted(begun) == sorted(["stubborn", "docile", "next", "new", *again])
    cut = ("done", 2) if repeat else ("unknown", 1)
    assert ends == [(b'"stubborn"', *cut), (b'"docile"', *cut), (b'"next"', "done", 1), (b'"new"', "done", 1)]
    if repeat:
        assert begun.index("new") > 2 + begun[2:].index("stubborn")  # what was cut off goes first


async def test_a_new_message_stays_behind_its_session_on_whatever_lane(tmp_path, monkeypatch):
    monkeypatch.setattr("runtime.inbox.replay.PAGE", 2)
    bot = Bot()
    lanes = [*bot.lanes("one", queue_limit=100), *bot.lanes("other")]
    async with Supervisor(tmp_path / "0", lanes=lanes, inbox=True) as sup:
        await sup.accept("one", "slow", session="s")
        for n in range(6):
            await sup.accept("one", n, session="s")
        await anyio.sleep(1)
        copy_of(tmp_path / "0", tmp_path / "1")
        sup.cancel()
    bot.log.clear()
    async with Supervisor(tmp_path / "1", lanes=lanes, inbox=True) as sup:
        await (await sup.accept("other", "new", session="s")).wait()
    assert bot.log == [*range(6), "new"]

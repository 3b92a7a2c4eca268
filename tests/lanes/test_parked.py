"""Runs that failed for good on a lane with `retry`: visible, inspectable, submitted again, or discarded."""

from __future__ import annotations

import anyio
import pytest
from structlog.testing import capture_logs

from lanes import InvalidLane, LaneFull, LaneSpec, Message, RetrySpec, RunState
from runtime import Supervisor
from tests.supervised import about, assert_empty, path_of

pytestmark = pytest.mark.backends("asyncio", "trio")


class Model:
    """A handler that fails while it is down; remembers what it answered."""

    def __init__(self) -> None:
        self.down = True
        self.answered: list[list[object]] = []

    async def __call__(self, ctx, messages):
        if self.down:
            raise ConnectionError("the model is down")
        self.answered.append([message.body for message in messages])
        return "answered"


def ended(run):
    """The outcome of a run that has one."""
    assert run.outcome is not None
    return run.outcome


@pytest.fixture
def model():
    return Model()


@pytest.fixture
async def sup(virtual, tmp_path, model):
    lanes = [LaneSpec("session:*", handler=model, retry=RetrySpec(2, wait=1.0), queue_limit=2, grace=2.0)]
    async with Supervisor(tmp_path, lanes=lanes, keep_outcomes=5) as sup:
        yield sup
        assert_empty(sup)


@pytest.mark.failure("E13")
async def test_a_poison_message_is_parked_and_visible_and_its_session_goes_on(sup, virtual, model):
    with capture_logs() as logs:
        run = sup.post("session:a", "poison")
        await run.wait()
    (parked,) = sup.parked()
    assert parked.run is run
    assert parked.messages == (Message("poison"),)
    assert parked.parked_at == about(virtual.now())
    assert (ended(run).attempts, ended(run).reason) == (2, "ConnectionError: the model is down")
    assert "ConnectionError: the model is down" in ended(run).traceback
    assert sup.statistics().parked == 1
    assert [(line["run"], line["attempts"]) for line in logs if line["event"] == "run_parked"] == [(run.id, 2)]
    model.down = False
    assert await sup.post("session:a", "next").result() == "answered"
    assert model.answered == [["next"]]


async def test_submitted_again_it_is_a_run_of_its_own_with_the_same_message(sup, model):
    run = sup.post("session:a", Message("hello", route="chat"), timeout=7.0, priority="background")
    await run.wait()
    model.down = False
    again = sup.resubmit(run.id)
    assert sup.parked() == []
    assert again is not run
    assert (again.lane, again.session, again.turn) == ("session:a", "a", True)
    assert again.deadline - again.started_at == about(7.0)
    assert await again.result() == "answered"
    assert (model.answered, ended(again).attempts, run.state) == ([["hello"]], 1, RunState.FAILED)


async def test_work_that_is_no_message_is_called_again_with_its_arguments(sup):
    calls = []

    async def work(ctx, *args):
        calls.append((args, ctx.run.session))
        if len(calls) < 3:
            raise ConnectionError
        return "done"

    run = sup.submit("session:a", work, 1, "two")
    await run.wait()
    assert sup.parked()[0].messages == ()
    assert await sup.resubmit(run.id).result() == "done"
    assert calls == [((1, "two"), "a")] * 3


async def test_submitted_again_it_queues_behind_what_waits_already_whatever_the_policy(sup, model):
    run = sup.post("session:a", "poison")
    await run.wait()
    model.down = False

    async def holds(ctx):
        await anyio.sleep(5.0)

    holder = sup.submit("session:a", holds)
    waiting = sup.post("session:a", "first")
    again = sup.resubmit(run.id)
    assert await again.result() == "answered"
    assert (holder.state, waiting.state) == (RunState.DONE, RunState.DONE)
    assert model.answered == [["first"], ["poison"]]


async def test_it_fails_and_is_parked_again_as_the_new_run(sup):
    run = sup.post("session:a", "poison")
    await run.wait()
    again = sup.resubmit(run.id)
    await again.wait()
    assert [one.run for one in sup.parked()] == [again]
    with pytest.raises(InvalidLane, match=rf"run_id: {run.id} is not parked; parked: {again.id}"):
        sup.resubmit(run.id)


async def test_refused_it_stays_parked_where_it_was(sup, model):
    poison = []
    for key in "abc":
        poison.append(sup.post(f"session:{key}", key))
        await poison[-1].wait()

    async def holds(ctx):
        await anyio.sleep(5.0)

    runs = [sup.submit("session:b", holds) for _ in range(3)]
    with pytest.raises(LaneFull):
        sup.resubmit(poison[1].id)
    assert [one.run for one in sup.parked()] == poison
    for run in runs:
        await run.wait()
    model.down = False
    assert await sup.resubmit(poison[1].id).result() == "answered"
    assert [one.run for one in sup.parked()] == [poison[0], poison[2]]


async def test_a_hook_that_submits_it_again_does_so_once(virtual, tmp_path):
    submitted = []

    def resubmits(run):
        submitted.extend([own.resubmit(parked.run.id) for parked in own.parked()])

    async def fails(ctx, messages):
        raise ConnectionError

    lanes = [LaneSpec("session:*", handler=fails, retry=RetrySpec(2, wait=1.0))]
    async with Supervisor(tmp_path, lanes=lanes, on_run_start=resubmits) as own:
        run = own.post("session:a", "poison")
        await run.wait()
        again = own.resubmit(run.id)
        assert submitted == []
        await again.wait()
        await anyio.sleep(60.0)
        assert [one.run for one in own.parked()] == [again]


async def test_discarded_it_is_forgotten(sup):
    run = sup.post("session:a", "poison")
    await run.wait()
    sup.discard(run.id)
    assert sup.parked() == []
    for call in (sup.discard, sup.resubmit):
        with pytest.raises(InvalidLane, match=rf"run_id: {run.id} is not parked; parked: none"):
            call(run.id)


@pytest.mark.parametrize("wrong", [None, "1", 99, -1, [1], True], ids=repr)
async def test_what_is_not_parked_is_refused_by_name(sup, wrong):
    for call in (sup.discard, sup.resubmit):
        with pytest.raises(InvalidLane, match=r"^run_id: .* is not parked; parked: none"):
            call(wrong)


async def test_they_are_listed_by_lane_and_session_oldest_first(sup):
    runs = [sup.post("session:b", "one"), sup.post("session:a", "two"), sup.post("session:b", "three")]
    for run in runs:
        await run.wait()
    assert [one.run.id for one in sup.parked(session="b")] == [1, 3]
    assert [one.run.id for one in sup.parked(lane="session:a")] == [2]
    assert sorted(one.run.id for one in sup.parked()) == [1, 2, 3]
    assert sup.parked(lane="session:a", session="b") == []


async def test_it_is_found_when_its_outcome_is_long_forgotten(sup, model):
    run = sup.post("session:a", "poison")
    await run.wait()
    model.down = False
    for n in range(6):
        await sup.post("session:b", n).wait()
    assert sup.find(2) is None
    assert sup.find(run.id) is run


async def test_as_many_are_kept_as_finished_runs_and_the_oldest_go_with_a_warning(sup):
    runs = []
    with capture_logs() as logs:
        for n in range(7):
            runs.append(sup.post("session:a", n))
            await runs[-1].wait()
    assert [one.run for one in sup.parked()] == runs[2:]
    assert [line["run"] for line in logs if line["event"] == "parked_run_forgotten"] == [1, 2]


async def test_messages_that_were_read_on_the_way_are_parked_with_it(virtual, tmp_path):
    answered = []

    async def handler(ctx, messages):
        answered.append([m.body for m in messages])
        await anyio.sleep(1.0)
        ctx.inbox.take()
        if len(answered) < 3:
            raise ConnectionError

    lanes = [LaneSpec("session:*", handler=handler, when_busy="steer", retry=RetrySpec(2, wait=1.0))]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:a", "one")
        await anyio.sleep(0.5)
        steered = sup.post("session:a", "two", dedupe="m2")
        assert [(await one.wait()).state for one in (run, steered)] == [RunState.FAILED] * 2
        (parked,) = sup.parked()
        assert [m.body for m in parked.messages] == ["one", "two"]
        assert sup.post("session:a", "two", dedupe="m2") is steered
        again = sup.resubmit(run.id)
        assert sup.post("session:a", "two", dedupe="m2") is again
        await again.result()
        assert answered == [["one"], ["one"], ["one", "two"]]


async def test_a_reset_leaves_what_is_parked_for_somebody_to_decide(sup, model):
    run = sup.post("session:a", "poison")
    await run.wait()
    await sup.reset("a")
    assert [one.run for one in sup.parked(session="a")] == [run]
    model.down = False
    again = sup.resubmit(run.id)
    assert await again.result() == "answered"


async def test_they_stay_visible_when_the_supervisor_has_stopped(virtual, tmp_path, model):
    lanes = [LaneSpec("session:*", handler=model, retry=RetrySpec(2, wait=1.0))]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        run = sup.post("session:a", "poison")
        await run.wait()
    assert [(one.run, one.messages[0].body) for one in sup.parked()] == [(run, "poison")]


async def test_the_sender_of_a_parked_message_gets_the_same_run_for_its_key_until_somebody_has_decided(sup, model):
    run = sup.post("session:a", "poison", dedupe="m1")
    await run.wait()
    assert sup.post("session:a", "poison", dedupe="m1") is run
    again = sup.resubmit(run.id)
    assert sup.post("session:a", "poison", dedupe="m1") is again  # which must not be answered twice
    await again.wait()
    assert sup.post("session:a", "poison", dedupe="m1") is again
    sup.discard(again.id)
    model.down = False
    new = sup.post("session:a", "poison", dedupe="m1")
    assert new is not again and await new.result() == "answered"


async def test_a_key_of_a_run_that_ended_as_it_was_submitted_is_not_kept_for_ever(virtual, tmp_path):
    async def handler(ctx, messages):
        return None

    lanes = [LaneSpec("session:*", handler=handler)]
    async with Supervisor(tmp_path, lanes=lanes, keep_outcomes=0) as sup:
        path_of(sup, "a").mkdir()  # which cannot be opened for writing
        failed = sup.post("session:a", "one", dedupe="key")
        assert ended(failed).state is RunState.FAILED
        assert sup.post("session:a", "one", dedupe="key") is not failed
        for n in range(10):
            await sup.post("session:b", n, dedupe=str(n)).wait()
        assert sup._scheduler.board.history._known == {}

"""One run at a time conducts a session, in the order of submit, on whichever lane; others may append meanwhile."""

from __future__ import annotations

import random

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread

from lanes import LaneSpec, Run, RunState
from runtime import Supervisor
from tests.supervised import Shielded, Stubborn, about, assert_empty, gone, path_of, sleeps, texts

OLD_WAIT = 0.6
"""The 60 s for which a waiter used to wait, scaled 1:100."""

LANES = [
    LaneSpec("session:*", timeout=10.0, grace=2.0),
    LaneSpec("side:*", timeout=10.0, grace=2.0, capacity=100),
]


async def answers(ctx, text, seconds=0.1):
    await ctx.session.append({"text": text})
    await anyio.sleep(seconds)
    await ctx.session.append({"text": f"re {text}"})


@pytest.mark.failure("A1", "D3")
async def test_messages_wait_out_a_holder_that_holds_15_times_the_old_wait_and_all_are_answered_in_order(
    virtual, tmp_path
):
    async def handle(ctx, messages):
        (message,) = messages
        await answers(ctx, message.body)
        return message.body

    lanes = [LaneSpec("session:*", handler=handle, timeout=15 * OLD_WAIT, grace=0.02)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        began = virtual.now()
        holder = sup.submit("main", sleeps, session="a", timeout=15 * OLD_WAIT)
        runs = []
        for n in range(3):
            runs.append(sup.post("session:a", f"message {n}"))
            await anyio.sleep(2 * OLD_WAIT)
        assert [await run.result() for run in runs] == [f"message {n}" for n in range(3)]
        assert holder.state is RunState.TIMED_OUT
        assert runs[0].started_at == about(began + 15 * OLD_WAIT)
        assert texts(sup, "a") == [f"{re}message {n}" for n in range(3) for re in ("", "re ")]
        assert sup.statistics().runs["failed"] == 0


# A2: an exception at every await


async def many_awaits(ctx):
    await ctx.session.append({"text": "question"})
    await anyio.sleep(0.1)
    await ctx.session.read()
    async with ctx.session.lease() as lease:
        await lease.append({"text": "under a lease"})
        await anyio.sleep(0.1)
        await lease.read()
    await to_thread.run_sync(ctx.session.append_sync, {"text": "from a thread"})
    async with ctx.cleanup():
        await ctx.session.append({"text": "cleaned"})


class RaisesAt:
    """Runs a body and throws an exception into it where it suspends for the k-th time."""

    def __init__(self, body, k):
        self.body, self.k, self.raised = body, k, False

    def __call__(self, ctx):
        return self._Awaitable(self, self.body(ctx))

    class _Awaitable:
        def __init__(self, owner, coro):
            self.owner, self.coro = owner, coro

        def __await__(self):
            suspensions, value, error = 0, None, None
            while True:
                try:
                    asked = self.coro.send(value) if error is None else self.coro.throw(error)
                except StopIteration as stop:
                    return stop.value
                error = value = None
                suspensions += 1
                try:
                    value = yield asked
                except BaseException as raised:
                    error = raised
                if suspensions == self.owner.k:
                    # Thrown once what was waited for has come: no event library has to be told that nobody waits.
                    self.owner.raised, error = True, LookupError(f"raised at await {self.owner.k}")


@pytest.mark.failure("A2")
async def test_an_exception_at_any_await_of_a_body_frees_the_turn_and_leaves_no_file_but_the_transcript(sup, virtual):
    k = 0
    while True:
        k += 1
        body = RaisesAt(many_awaits, k)

        async def raises(ctx, body=body):
            await body(ctx)

        run, following = sup.submit("session:a", raises), sup.submit("session:a", answers, "next", 0)
        await run.wait()
        freed_at = virtual.now()
        await following.result()
        assert following.started_at == about(freed_at)
        assert list(path_of(sup, "a").parent.iterdir()) == [path_of(sup, "a")]
        assert_empty(sup)
        if not body.raised:
            break
        assert run.state is RunState.FAILED
    assert run.state is RunState.DONE
    assert k > 8, "the body has more awaits than that"


# A3, A4: a body that will not let go


@pytest.mark.failure("A3", "E1", "F1")
async def test_a_timed_out_run_with_shielded_clean_up_frees_the_turn_within_its_grace(sup, virtual):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.9)

    began = virtual.now()
    run, following = sup.submit("session:a", body), sup.submit("session:a", answers, "next")
    await following.result()
    assert run.state is RunState.TIMED_OUT
    assert following.started_at == about(began + 11.9)


@pytest.mark.failure("A4")
@pytest.mark.parametrize("kind", [Stubborn, Shielded])
async def test_after_a_user_stops_a_run_that_ignores_it_the_next_message_runs_after_the_grace(sup, virtual, kind):
    body = kind()
    run, following = sup.submit("session:a", body), sup.submit("session:a", answers, "next")
    await anyio.sleep(1)
    stopped_at = virtual.now()
    run.cancel("the user pressed stop")
    await following.result()
    assert run.state is RunState.ABANDONED
    assert following.started_at == pytest.approx(stopped_at + 2, abs=0.05)
    body.release()
    await gone(sup)


# A8, B3: the model call holds nothing that appends need


@pytest.mark.failure("A8", "B3")
async def test_appends_of_others_land_during_a_model_call_and_all_stand_in_order(sup, virtual):
    waits = []

    async def conducts(ctx):
        await ctx.session.append({"text": "question"})
        await anyio.sleep(5)
        await ctx.session.append({"text": "answer"})
        return len(await ctx.session.read())

    async def announces(ctx, n):
        began = virtual.now()
        await ctx.session.append({"text": f"note {n}"})
        waits.append(virtual.now() - began)

    began = virtual.now()
    run = sup.submit("session:a", conducts)
    notes = []
    for n in range(50):
        await anyio.sleep(0.09)
        notes.append(sup.submit("side:a", announces, n, session="a", turn=False))
    for note in notes:
        await note.result()
    assert virtual.now() < began + 5 and run.state is RunState.RUNNING
    assert max(waits) < 0.05
    assert await run.result() == 52
    assert texts(sup, "a") == ["question", *(f"note {n}" for n in range(50)), "answer"]


@pytest.mark.failure("B3")
async def test_harmless_appends_do_not_harm_the_run_that_conducts(sup):
    async def conducts(ctx):
        seen = len(await ctx.session.read())
        await anyio.sleep(2)
        await ctx.session.append({"text": f"answer after {seen}"})

    async def announces(ctx):
        await ctx.session.append({"text": "note"})

    run = sup.submit("session:a", conducts)
    await anyio.sleep(1)
    await sup.submit("side:a", announces, session="a", turn=False).result()
    await sup.submit("side:b", other_session_appends, "a").result()
    await run.result()
    assert texts(sup, "a") == ["note", "mirror", "answer after 0"]


async def other_session_appends(ctx, key):
    await ctx.session_of(key).append({"text": "mirror"})


# Order


@pytest.mark.parametrize("seed", range(5))
async def test_a_sessions_runs_go_in_the_order_of_submit_over_all_lanes(virtual, tmp_path, seed):
    rng = random.Random(seed)
    lanes = ["session:a", "main", "cron", "heartbeat", "side:a", "side:b"]
    order: list[int] = []

    async def body(ctx):
        order.append(ctx.run.id)
        await ctx.session.append({"text": ctx.run.id})
        await anyio.sleep(rng.random())

    specs = [LaneSpec("session:*", queue_limit=None), LaneSpec("side:*", queue_limit=None)]
    async with Supervisor(tmp_path, lanes=specs) as sup:
        runs = []
        for _ in range(60):
            runs.append(
                sup.submit(rng.choice(lanes), body, session="a", priority=rng.choice(["foreground", "background"]))
            )
            if rng.random() < 0.3:
                await anyio.sleep(rng.random())
        for run in runs:
            await run.result()
        assert order == [run.id for run in runs] == texts(sup, "a")
        assert_empty(sup)


async def test_turns_of_one_session_never_overlap_and_others_do_not_wait_for_them(virtual, tmp_path):
    running: dict[str, int] = {}
    most: dict[str, int] = {}

    async def body(ctx):
        key = ctx.session.key
        running[key] = running.get(key, 0) + 1
        most[key] = max(most.get(key, 0), running[key])
        await anyio.sleep(1)
        running[key] -= 1

    lanes = [LaneSpec("session:*", capacity=8, queue_limit=None), LaneSpec("side:*", capacity=8, queue_limit=None)]
    async with Supervisor(tmp_path, lanes=lanes) as sup:
        began = virtual.now()
        runs: list[Run] = []
        for n in range(6):
            for key in "abcd":
                runs.append(sup.submit(f"side:{n}", body, session=key))  # noqa: PERF401 -- reads better
        for run in runs:
            await run.result()
        assert most == dict.fromkeys("abcd", 1)
        assert virtual.now() == about(began + 6)
        assert_empty(sup)


@pytest.mark.failure("E12")
async def test_queued_runs_survive_the_end_of_their_predecessor_and_run_once_in_order(sup):
    order = []

    async def body(ctx, n):
        order.append(n)

    async def fails(ctx):
        await anyio.sleep(1)
        raise LookupError

    for first in (fails, sleeps):
        order.clear()
        run = sup.submit("session:a", first)
        runs = [sup.submit("session:a", body, n) for n in range(5)]
        await anyio.sleep(2)
        run.cancel()
        for queued in runs:
            await queued.result()
        assert order == [0, 1, 2, 3, 4]


async def test_a_queued_run_that_leaves_the_middle_of_the_queue_holds_up_nobody(sup):
    runs = [sup.submit("session:a", answers, str(n)) for n in range(5)]
    runs[2].cancel()
    runs[3].cancel()
    await runs[4].result()
    assert texts(sup, "a") == ["0", "re 0", "1", "re 1", "4", "re 4"]


async def test_cancelling_a_session_ends_all_its_runs_on_all_lanes_and_starts_none(sup):
    started = []

    async def body(ctx):
        started.append(ctx.run.id)
        await anyio.sleep_forever()

    runs = [sup.submit(lane, body, session="a") for lane in ("session:a", "side:a", "side:b", "session:a")]
    other = sup.submit("session:b", body)
    await virtual_settle()
    assert sup.runs(session="a") == runs and sup.sessions() == ["a", "b"]
    assert sup.cancel(session="a", reason="closed") == 4
    for run in runs:
        assert (await run.wait()).reason == "closed"
    assert sorted(started) == [runs[0].id, other.id]
    assert sup.cancel(queued=False) == 1
    await other.wait()


async def virtual_settle():
    await anyio.sleep(0.01)


async def test_cancelling_only_what_runs_lets_the_queued_go_on(sup):
    first, second = sup.submit("session:a", sleeps), sup.submit("session:a", answers, "second")
    await virtual_settle()
    assert sup.cancel(lane="session:a", queued=False, reason="next, please") == 1
    await second.result()
    assert (first.state, second.state) == (RunState.CANCELLED, RunState.DONE)


async def test_a_cancelled_body_that_waits_in_its_own_clean_up_still_has_the_turn(sup):
    async def body(ctx):
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await anyio.sleep(1)
                await ctx.session.append({"text": "last words"})
            raise

    run, following = sup.submit("session:a", body), sup.submit("session:a", answers, "next", 0)
    await anyio.sleep(1)
    run.cancel()
    await following.result()
    assert texts(sup, "a") == ["last words", "next", "re next"]

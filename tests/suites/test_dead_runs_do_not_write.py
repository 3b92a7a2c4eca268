"""A dead run writes nothing, through whatever it kept of itself; a live one may, from wherever it runs."""

from __future__ import annotations

import threading

import anyio
import pytest
from anyio import get_cancelled_exc_class, to_thread
from structlog.testing import capture_logs

from lanes import RunState
from locks import LeaseLost, RunEnded
from runtime.testing import virtual as virtual_time
from tests.supervised import HungThread, Shielded, about, gone, lines_of, path_of, texts


def ending(how):
    """A body that hands out its context and ends in the given way."""

    async def body(ctx, kept):
        kept.append(ctx)
        await ctx.session.append({"text": "question"})
        if how == "raises":
            raise LookupError
        if how != "returns":
            await anyio.sleep_forever()

    return body


async def ended_context(sup, how):
    kept: list = []
    run = sup.submit("session:a", ending(how), kept)
    await anyio.sleep(1)
    run.cancel() if how == "is cancelled" else None
    await run.wait()
    return kept[0]


WAYS = ["returns", "raises", "times out", "is cancelled"]


async def by_append(ctx):
    await ctx.session.append({"text": "late"})


async def by_append_to_another_session(ctx):
    await ctx.session_of("a").append({"text": "late"})


async def by_append_sync(ctx):
    await to_thread.run_sync(ctx.session.append_sync, {"text": "late"})


async def by_a_foreign_thread(ctx):
    """One that no event library knows, as a tool's own thread pool has them."""
    raised: list[BaseException] = []

    def write():
        try:
            ctx.session.append_sync({"text": "late"})
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    thread.start()
    with virtual_time.current().held():
        while thread.is_alive():
            await anyio.lowlevel.checkpoint()
    if raised:
        raise raised[0]


async def by_a_lease(ctx):
    async with ctx.session.lease() as lease:
        await lease.append({"text": "late"})


WRITES = [by_append, by_append_to_another_session, by_append_sync, by_a_foreign_thread, by_a_lease]


@pytest.mark.failure("B0")
@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("write", WRITES)
async def test_an_ended_run_writes_nothing(sup, how, write):
    ctx = await ended_context(sup, how)
    before = path_of(sup, "a").read_bytes()
    for _ in range(2):
        with pytest.raises(RunEnded):
            await write(ctx)
    assert path_of(sup, "a").read_bytes() == before
    assert texts(sup, "a") == ["question"]


@pytest.mark.failure("B0")
@pytest.mark.parametrize("write", WRITES)
async def test_an_ended_run_does_not_even_create_a_file(sup, write):
    kept: list = []

    async def body(ctx):
        kept.append(ctx)

    await sup.submit("side:a", body, session="a", turn=False).wait()
    with pytest.raises(RunEnded):
        await write(kept[0])
    assert not path_of(sup, "a").exists()


@pytest.mark.failure("B0")
async def test_a_dead_runs_reply_does_not_land_between_the_next_question_and_its_answer(sup):
    ctx = await ended_context(sup, "times out")

    async def next_body(ctx):
        await ctx.session.append({"text": "next question"})
        await anyio.sleep(2)
        await ctx.session.append({"text": "next answer"})

    run = sup.submit("session:a", next_body)
    await anyio.sleep(1)
    for write in WRITES:
        with pytest.raises(RunEnded):
            await write(ctx)
    await run.result()
    assert texts(sup, "a") == ["question", "next question", "next answer"]
    assert sup.statistics().late_writes_refused >= len(WRITES) - 1


@pytest.mark.failure("B0", "B2")
async def test_an_abandoned_body_writes_nothing_while_its_successor_writes(sup):
    gate = Shielded()
    refused = []

    async def body(ctx):
        await ctx.session.append({"text": "question"})
        await gate(ctx)
        with anyio.CancelScope(shield=True):
            for write in WRITES:
                try:
                    await write(ctx)
                except LeaseLost as error:
                    refused.append((write.__name__, type(error)))

    async def next_body(ctx):
        await ctx.session.append({"text": "next question"})
        gate.release()
        await gone(sup)
        await ctx.session.append({"text": "next answer"})

    run, following = sup.submit("session:a", body), sup.submit("session:a", next_body)
    assert (await run.wait()).state is RunState.ABANDONED
    await following.result()
    assert texts(sup, "a") == ["question", "next question", "next answer"]
    assert refused == [(write.__name__, RunEnded) for write in WRITES]


@pytest.mark.failure("B0", "A7")
async def test_the_thread_of_an_abandoned_body_writes_nothing(sup, virtual):
    gate = HungThread()
    refused = []

    def in_thread(ctx):
        ctx.session.append_sync({"text": "from the thread"})
        gate._hang()
        try:
            ctx.session.append_sync({"text": "late"})
        except LeaseLost as error:
            refused.append(type(error))

    async def body(ctx):
        await to_thread.run_sync(in_thread, ctx)

    run = sup.submit("session:a", body)
    with virtual.held():
        while not gate.started.is_set():
            await anyio.lowlevel.checkpoint()
    virtual.threads_hold = False
    assert (await run.wait()).state is RunState.ABANDONED
    virtual.threads_hold = True
    gate.release()
    await gone(sup)
    assert (texts(sup, "a"), refused) == (["from the thread"], [RunEnded])


@pytest.mark.failure("B0", "A7")
async def test_a_background_task_that_a_run_left_behind_writes_nothing(sup):
    refused = []
    async with anyio.create_task_group() as outside:

        async def maintenance(ctx):
            await ctx.session.append({"text": "in time"})
            await anyio.sleep(5)
            for write in WRITES:
                try:
                    await write(ctx)
                except LeaseLost as error:
                    refused.append(type(error))

        async def body(ctx):
            await ctx.session.append({"text": "question"})
            outside.start_soon(maintenance, ctx)
            await anyio.sleep(1)

        run = sup.submit("session:a", body)
        await run.result()
        assert await sup.submit("session:a", ending("returns"), []).wait()
    assert texts(sup, "a") == ["question", "in time", "question"]
    assert refused == [RunEnded] * len(WRITES)


@pytest.mark.failure("B0")
async def test_a_lease_that_a_run_holds_ends_with_its_grace(sup, virtual):
    """Whatever is shielded: who waits for it goes on."""
    gate = Shielded()
    began = virtual.now()

    async def body(ctx):
        with anyio.CancelScope(shield=True):
            async with ctx.session.lease() as lease:
                await lease.append({"text": "under the lease"})
                await gate(ctx)
                await lease.append({"text": "late"})

    async def announces(ctx):
        await ctx.session.append({"text": "announcement"})
        return virtual.now()

    run = sup.submit("session:a", body)
    await gate.started.wait()
    note = sup.submit("side:a", announces, session="a", turn=False, timeout=30)
    assert await note.result() == about(began + 12)
    assert (await run.wait()).state is RunState.ABANDONED
    gate.release()
    await gone(sup)
    assert texts(sup, "a") == ["under the lease", "announcement"]


async def test_a_cancelled_run_may_write_while_it_cleans_up_and_not_after(sup):
    kept: list = []

    async def body(ctx):
        kept.append(ctx)
        try:
            await anyio.sleep_forever()
        except get_cancelled_exc_class():
            async with ctx.cleanup():
                await ctx.session.append({"text": "last words"})
                async with ctx.session.lease() as lease:
                    await lease.append({"text": "more last words"})
                await to_thread.run_sync(ctx.session.append_sync, {"text": "from a thread"})
            raise

    run = sup.submit("session:a", body)
    await anyio.sleep(1)
    run.cancel()
    await run.wait()
    with pytest.raises(RunEnded):
        await kept[0].session.append({"text": "late"})
    assert texts(sup, "a") == ["last words", "more last words", "from a thread"]


async def test_refused_writes_are_counted_and_never_silent(sup):
    ctx = await ended_context(sup, "returns")
    for n in range(1, 4):
        with pytest.raises(RunEnded, match=r"run 1 on lane session:a \(pid \d+\) has ended: nothing written to "):
            await ctx.session.append({"text": "late"})
        assert sup.statistics().late_writes_refused == n


async def test_a_late_emit_is_dropped_and_harms_nobody(sup):
    ctx = await ended_context(sup, "returns")
    with capture_logs() as logs:
        ctx.emit("late")
        ctx.progress()
    assert [event async for event in ctx.run.events()] == []
    assert logs == []


async def test_the_first_line_names_the_session_however_the_first_record_is_written(sup):
    async def leases(ctx):
        async with ctx.session.lease() as lease:
            await lease.append({"text": "first"})

    async def appends(ctx):
        await ctx.session.append({"text": "first"})

    async def appends_from_a_thread(ctx):
        await to_thread.run_sync(ctx.session.append_sync, {"text": "first"})

    for key, body in {"one": appends, "two": appends_from_a_thread, "three": leases}.items():
        await sup.submit(f"session:{key}", body).result()
        first, *_ = path_of(sup, key).read_text().splitlines()
        assert f'"lanes.session":"{key}"' in first, f"the first line of {body.__name__} is {first}"
        assert lines_of(path_of(sup, key)) == [{"text": "first"}]

"""A supervisor from start to stop: services, drain, grace, and who may stop it from where."""

from __future__ import annotations

from contextlib import asynccontextmanager

import anyio
import pytest

from lanes import Draining, InvalidLane, LaneSpec, RunState
from locks import DeadlockError, InvalidSession
from runtime import AbandonedBodies, DrainReport, Supervisor
from runtime.services import ServicesStuck
from tests.supervised import HungThread, Shielded, Stubborn, about, assert_empty, gone, sleeps

LANES = [LaneSpec("session:*", timeout=10.0, grace=2.0)]


async def returns(ctx, value=None):
    return value


async def sleeps_for(ctx, seconds):
    await anyio.sleep(seconds)
    return seconds


def service(name, heard, *, enter=None, leave=None):
    @asynccontextmanager
    async def factory():
        heard.append(f"{name} enters")
        if enter is not None:
            await enter()
        try:
            yield name.upper()
        finally:
            heard.append(f"{name} leaves")
            if leave is not None:
                await leave()

    return factory


async def fails():
    raise ConnectionError("no model")


# Services


async def test_the_time_of_the_services_is_the_one_that_the_supervisor_has_now(virtual, tmp_path):
    sup = Supervisor(tmp_path, services={"slow": service("slow", [], enter=lambda: anyio.sleep(3.0))})
    with pytest.raises(InvalidLane, match="services_timeout: 0 is no duration"):
        sup.services_timeout = 0
    sup.services_timeout = 2.0
    began = virtual.now()
    with pytest.raises(ServicesStuck, match="did not start within 2 s"):
        await sup.start()
    assert (sup.services_timeout, virtual.now()) == (2.0, about(began + 2.0))


async def test_services_are_entered_in_order_and_left_in_reverse_around_all_work(virtual, tmp_path):
    heard: list[str] = []

    async def body(ctx):
        heard.append(f"works with {', '.join(ctx.services.values())}")

    names = ["db", "model", "mail"]
    async with Supervisor(tmp_path, services={name: service(name, heard) for name in names}) as sup:
        run = sup.submit("main", body)
        await run.wait()
    assert heard == [
        *(f"{name} enters" for name in names),
        "works with DB, MODEL, MAIL",
        *(f"{name} leaves" for name in reversed(names)),
    ]


async def test_a_service_that_fails_names_itself_and_nothing_is_left(virtual, tmp_path):
    heard: list[str] = []
    services = {
        "db": service("db", heard),
        "model": service("model", heard, enter=fails),
        "mail": service("mail", heard),
    }
    sup = Supervisor(tmp_path, services=services)
    with pytest.raises(ConnectionError, match="no model") as caught:
        await sup.start()
    assert any("'model'" in note for note in caught.value.__notes__)
    assert heard == ["db enters", "model enters", "db leaves"]
    with pytest.raises(Draining):
        sup.submit("main", returns)
    assert await sup.stop() == DrainReport(0, 0, (), ())
    assert_empty(sup)


async def test_a_service_that_fails_to_leave_is_reported_by_stop_after_the_others_left(virtual, tmp_path):
    heard: list[str] = []
    services = {"db": service("db", heard), "model": service("model", heard, leave=fails)}
    sup = Supervisor(tmp_path, services=services)
    await sup.start()
    with pytest.raises(ConnectionError, match="no model"):
        await sup.stop()
    assert heard[-2:] == ["model leaves", "db leaves"]
    assert_empty(sup)


async def test_a_start_that_is_cancelled_while_a_service_hangs_ends_and_leaves_nothing(virtual, tmp_path):
    heard: list[str] = []
    services = {"db": service("db", heard), "model": service("model", heard, enter=anyio.sleep_forever)}
    sup = Supervisor(tmp_path, services=services)
    began = virtual.now()
    with anyio.move_on_after(3) as scope:
        await sup.start()
    assert scope.cancelled_caught and virtual.now() == about(began + 3)
    assert heard == ["db enters", "model enters", "db leaves"]
    assert_empty(sup)


async def test_a_supervisor_starts_once(virtual, tmp_path):
    async with Supervisor(tmp_path) as sup:
        with pytest.raises(RuntimeError, match="starts once; this one is running"):
            await sup.start()
    with pytest.raises(RuntimeError, match="starts once; this one is stopped"):
        await sup.start()


async def test_sessions_that_are_no_directory_are_refused_by_name(virtual, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(InvalidSession, match=r"file' cannot be used \(.*\); allowed: a writable directory"):
        await Supervisor(file).start()
    assert file.read_text() == ""


async def test_nothing_is_accepted_before_start_and_after_stop(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=[LaneSpec("session:*", handler=lambda_handler)])
    for _ in range(2):
        for refused in (lambda: sup.submit("main", returns), lambda: sup.post("session:a", "hello")):
            with pytest.raises(Draining, match="does not accept work"):
                refused()
        if sup.state == "new":
            await sup.start()
            assert await sup.submit("main", returns, 7).result() == 7
            await sup.stop()


async def lambda_handler(ctx, messages):
    return None


# From which task


async def test_it_starts_and_stops_in_different_tasks(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    async with anyio.create_task_group() as group:
        group.start_soon(sup.start)
    run = sup.submit("session:a", sleeps_for, 3)
    await anyio.sleep(1)
    async with anyio.create_task_group() as group:
        group.start_soon(sup.stop)
    assert (run.state, await run.result()) == (RunState.DONE, 3)
    assert_empty(sup)


async def test_stopping_twice_is_harmless(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    assert (await sup.stop()).finished == 0
    assert await sup.stop() == DrainReport(0, 0, (), ())
    assert_empty(sup)


async def test_two_tasks_may_stop_it_at_once(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    run = sup.submit("session:a", sleeps_for, 3)
    async with anyio.create_task_group() as group:
        group.start_soon(sup.stop)
        group.start_soon(sup.stop)
    assert run.state is RunState.DONE
    assert_empty(sup)


async def test_a_block_that_stops_it_itself_may_still_be_left(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES) as sup:
        report = await sup.stop()
    assert report == DrainReport(0, 0, (), ())
    assert_empty(sup)


# Drain


@pytest.mark.on_store
async def test_a_drain_lets_the_running_finish_starts_nothing_and_reports(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    quick, slow = sup.submit("session:a", sleeps_for, 3), sup.submit("session:b", sleeps)
    queued = [sup.submit("session:a", returns), sup.submit("session:b", returns)]
    began = virtual.now()
    report = await sup.drain(5.0)
    assert virtual.now() == about(began + 5)
    assert (quick.state, slow.state) == (RunState.DONE, RunState.CANCELLED)
    assert (report.finished, report.cancelled, report.abandoned, report.unstarted) == (1, 1, (), tuple(queued))
    assert [run.state for run in queued] == [RunState.QUEUED] * 2
    with pytest.raises(Draining):
        sup.submit("session:a", returns)
    await sup.stop()
    assert [run.state for run in queued] == [RunState.CANCELLED] * 2
    assert_empty(sup)


async def test_a_drain_ends_as_soon_as_nothing_runs(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    sup.submit("session:a", sleeps_for, 3)
    began = virtual.now()
    assert (await sup.drain(100.0)).finished == 1
    assert virtual.now() == about(began + 3)
    await sup.stop()


@pytest.mark.failure("G3")
async def test_a_drain_report_counts_each_run_once_zombies_included(virtual, tmp_path):
    """One finishes, one times out during the drain, one is abandoned before its end, one at its end."""
    virtual.busy_limit = 100
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    early, late = Shielded(), Shielded()
    sup.submit("session:a", sleeps_for, 3)
    sup.submit("session:b", sleeps, timeout=4)
    zombies = (sup.submit("session:c", early, timeout=1), sup.submit("session:d", late, timeout=60))
    cancelled = sup.submit("session:e", sleeps, timeout=60)
    report = await sup.drain(20.0)
    assert [run.state for run in zombies] == [RunState.ABANDONED] * 2
    assert cancelled.state is RunState.CANCELLED
    assert set(report.abandoned) == set(zombies)
    assert (report.finished, report.cancelled) == (2, 1)
    early.release()
    late.release()
    await gone(sup)
    await sup.stop()


async def test_a_cancelled_drain_cancels_the_runs_at_once_and_gives_them_their_grace(virtual, tmp_path):
    cleaned = []

    async def body(ctx):
        try:
            await anyio.sleep_forever()
        finally:
            async with ctx.cleanup():
                await anyio.sleep(1)
                cleaned.append(ctx.run.id)

    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    run = sup.submit("session:a", body)
    await virtual.settle()
    began = virtual.now()
    with anyio.move_on_after(2) as scope:
        await sup.drain(100.0)
    assert scope.cancelled_caught and virtual.now() == about(began + 3)
    assert (run.state, cleaned) == (RunState.CANCELLED, [run.id])
    await sup.stop()
    assert_empty(sup)


async def test_run_takes_what_submit_takes_also_of_a_supervisor_that_overrides_it(tmp_path):
    class Careful(Supervisor):
        def submit(self, lane, fn, *args, **options):
            assert options.pop("careful")
            return super().submit(lane, fn, *args, **options)

    async with Careful(tmp_path, lanes=LANES) as sup:
        assert await sup.run("session:a", returns, 7, careful=True) == 7
        with pytest.raises(TypeError, match=r"Supervisor\.submit\(\) got an unexpected keyword argument 'bound_to'"):
            await sup.run("session:a", returns, careful=True, bound_to=None)
        assert_empty(sup)


@pytest.mark.failure("E4")
@pytest.mark.parametrize("what", ["stop", "drain"])
async def test_a_run_that_waits_for_its_own_end_is_refused_at_once(virtual, tmp_path, what):
    async def body(ctx):
        with pytest.raises(DeadlockError, match=rf"{what}\(\) waits for run 1 on lane session:a, which awaits it"):
            await (sup.stop() if what == "stop" else sup.drain(5.0))
        return "goes on"

    async with Supervisor(tmp_path, lanes=LANES) as sup:
        assert await sup.run("session:a", body) == "goes on"
        assert await sup.run("session:a", returns, "accepted") == "accepted"
        assert_empty(sup)


# Cancellation and errors of the block


async def test_cancelling_the_block_cancels_its_runs_within_their_grace(virtual, tmp_path):
    runs = []
    began = virtual.now()
    with anyio.move_on_after(3):
        async with Supervisor(tmp_path, lanes=LANES) as sup:
            runs += [sup.submit("session:a", sleeps), sup.submit("session:a", returns), sup.submit("session:b", sleeps)]
            await anyio.sleep_forever()
    assert [run.state for run in runs] == [RunState.CANCELLED] * 3
    assert began + 3 - 0.001 <= virtual.now() <= began + 5
    assert_empty(sup)


async def test_an_error_in_the_block_cancels_its_runs_and_comes_out_as_it_is(virtual, tmp_path):
    sup = Supervisor(tmp_path, lanes=LANES)
    runs = []

    async def block():
        async with sup:
            runs.append(sup.submit("session:a", sleeps))
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        await block()
    assert runs[0].state is RunState.CANCELLED
    assert_empty(sup)


async def test_leaving_the_block_lets_the_running_finish(virtual, tmp_path):
    async with Supervisor(tmp_path, lanes=LANES, drain_timeout=5.0) as sup:
        runs = [sup.submit("session:a", sleeps_for, 4), sup.submit("session:b", sleeps)]
    assert [run.state for run in runs] == [RunState.DONE, RunState.CANCELLED]


# Bodies that do not end


@pytest.mark.parametrize("kind", [Stubborn, Shielded, HungThread])
async def test_stop_names_the_bodies_that_still_hang_and_is_bounded(virtual, tmp_path, kind):
    virtual.busy_limit = 100
    virtual.threads_hold = False
    sup = Supervisor(tmp_path, lanes=LANES)
    await sup.start()
    body = kind()
    run = sup.submit("session:a", body)
    await anyio.sleep(0.5)
    began = virtual.now()
    with pytest.raises(AbandonedBodies, match=r"1 abandoned: <Run 1 on lane session:a") as caught:
        await sup.stop(drain_timeout=1.0)
    assert began + 3 - 0.1 <= virtual.now() <= began + 4.5
    assert caught.value.runs == (run,) and run.state is RunState.ABANDONED
    body.release()
    await gone(sup)
    await virtual.settle()
    assert_empty(sup)


async def test_services_are_left_even_though_a_body_hangs(virtual, tmp_path):
    heard: list[str] = []
    sup = Supervisor(tmp_path, lanes=LANES, services={"db": service("db", heard)})
    await sup.start()
    body = Shielded()
    sup.submit("session:a", body)
    await body.started.wait()
    with pytest.raises(AbandonedBodies):
        await sup.stop(drain_timeout=0.0)
    left = list(heard)
    body.release()
    await gone(sup)
    await virtual.settle()
    assert left == heard == ["db enters", "db leaves"]

"""One generation of services: what fails, hangs, dies or is cancelled in it names itself and leaves nothing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import anyio
import pytest
from structlog.testing import capture_logs

from runtime.services import Services, ServicesStuck
from tests.supervised import about

LIMIT = 5.0


def named(logs, event):
    return [entry for entry in logs if entry["event"] == event]


class Heard:
    """Makes services that say what is done with them."""

    def __init__(self):
        self.said = []

    def make(self, name, enter=None, leave=None):
        @asynccontextmanager
        async def factory():
            if enter is not None:
                await enter()
            self.said.append(f"{name} in")
            try:
                yield name
            finally:
                if leave is not None:
                    await leave()
                self.said.append(f"{name} out")

        return factory


@pytest.fixture
def heard():
    return Heard()


async def fails():
    raise ConnectionError("no line")


async def test_they_are_entered_in_order_and_left_in_reverse_by_any_task(virtual, heard):
    services = Services({name: heard.make(name) for name in ("db", "model")})
    async with anyio.create_task_group() as group:
        group.start_soon(services.enter, "services", LIMIT)
    assert services.made == {"db": "db", "model": "model"}
    assert await services.leave(LIMIT)
    assert heard.said == ["db in", "model in", "model out", "db out"]
    assert services.error is None
    assert await services.leave(LIMIT), "again is harmless"


async def test_left_before_it_was_entered_nothing_happens(virtual):
    assert await Services({}).leave(LIMIT)


@pytest.mark.failure("G4")
@pytest.mark.parametrize("takes_s, in_time", [(LIMIT - 0.001, True), (LIMIT + 0.001, False)])
async def test_entering_has_its_time_and_no_more(virtual, heard, takes_s, in_time):
    services = Services({"db": heard.make("db"), "model": heard.make("model", enter=lambda: anyio.sleep(takes_s))})
    if in_time:
        await services.enter("services", LIMIT)
        assert await services.leave(LIMIT)
        return
    with pytest.raises(ServicesStuck, match=r"service 'model' did not start within 5 s \(services_timeout\)"):
        await services.enter("services", LIMIT)
    assert heard.said == ["db in", "db out"]


@pytest.mark.failure("G4")
@pytest.mark.parametrize("takes_s, left_after_s", [(LIMIT, LIMIT), (LIMIT + 0.001, LIMIT), (1000.0, LIMIT)])
async def test_leaving_has_its_time_and_is_cancelled_then(virtual, heard, takes_s, left_after_s):
    services = Services({"db": heard.make("db", leave=lambda: anyio.sleep(takes_s))})
    await services.enter("services", LIMIT)
    began = virtual.now()
    assert await services.leave(LIMIT)
    assert virtual.now() == about(began + left_after_s)


@pytest.mark.failure("G4")
async def test_one_that_leaves_not_even_when_cancelled_is_left_behind_and_said(virtual, heard):
    release = anyio.Event()

    async def ignores():
        with anyio.CancelScope(shield=True):
            await release.wait()

    services = Services({"db": heard.make("db", leave=ignores)})
    await services.enter("services", LIMIT)
    began = virtual.now()
    with capture_logs() as logs:
        assert not await services.leave(LIMIT)
    assert virtual.now() == about(began + 2 * LIMIT)
    assert [entry["waited_s"] for entry in named(logs, "services_stuck")] == [2 * LIMIT]
    release.set()
    assert await services.leave(LIMIT)


async def test_leaving_is_not_interrupted_by_cancellation(virtual, heard):
    services = Services({"db": heard.make("db", leave=lambda: anyio.sleep(2.0))})
    await services.enter("services", LIMIT)
    began = virtual.now()
    with anyio.move_on_after(1.0):
        await services.leave(LIMIT)
    assert heard.said == ["db in", "db out"] and virtual.now() == about(began + 2.0)


@pytest.mark.failure("G4")
async def test_one_that_fails_on_entering_names_itself_and_the_others_are_left(virtual, heard):
    services = Services({"db": heard.make("db"), "model": heard.make("model", enter=fails)})
    with capture_logs() as logs, pytest.raises(ConnectionError, match="no line") as caught:
        await services.enter("services", LIMIT)
    assert caught.value.__notes__ == ["service 'model' failed to start; admission stays closed"]
    assert [entry["service"] for entry in named(logs, "service_failed")] == ["model"]
    assert heard.said == ["db in", "db out"]


@pytest.mark.backends("asyncio")
@pytest.mark.failure("G4")
async def test_one_that_is_cancelled_from_within_while_it_starts_has_not_started(virtual, heard):
    async def cancels_itself():
        raise asyncio.CancelledError

    services = Services({"db": heard.make("db"), "model": heard.make("model", enter=cancels_itself)})
    with capture_logs() as logs, pytest.raises(ServicesStuck, match="service 'model' was cancelled while it started"):
        await services.enter("services", LIMIT)
    assert [entry["service"] for entry in named(logs, "service_failed")] == ["model"]
    assert heard.said == ["db in", "db out"]


async def test_one_that_dies_while_it_is_used_is_said_at_once(virtual, heard):
    @asynccontextmanager
    async def pool():
        async def keeps_alive():
            await anyio.sleep(3.0)
            raise ConnectionError("the line is cut")

        async with anyio.create_task_group() as group:
            group.start_soon(keeps_alive)
            yield "pool"

    services = Services({"db": heard.make("db"), "pool": pool})
    await services.enter("services", LIMIT)
    with capture_logs() as logs:
        await anyio.sleep(5.0)
    (told,) = named(logs, "service_failed")
    assert told["error"].startswith("while it was used: ExceptionGroup")
    assert heard.said == ["db in", "db out"]
    assert await services.leave(LIMIT)
    assert isinstance(services.error, ExceptionGroup)

"""KeyboardInterrupt and SystemExit in a body, and the end of the whole loop: the runs end, and so does the program."""

from __future__ import annotations

import anyio
import pytest
import structlog
from structlog.testing import capture_logs

from lanes import LaneSpec, Run, RunState
from runtime import Supervisor
from tests.supervised import lines_of, path_of

BACKENDS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@pytest.fixture(autouse=True)
def _quiet():
    with capture_logs():
        yield
    structlog.reset_defaults()


def members(error: BaseException) -> list[BaseException]:
    """The exceptions that are no groups, at or below `error`."""
    if isinstance(error, BaseExceptionGroup):
        return [leaf for member in error.exceptions for leaf in members(member)]
    return [error]


@BACKENDS
def test_a_keyboard_interrupt_in_a_body_ends_the_program_and_its_runs(backend, tmp_path):
    runs: list[Run] = []
    sup: Supervisor

    async def interrupted(ctx):
        await ctx.session.append({"text": "question"})
        raise KeyboardInterrupt

    async def main():
        nonlocal sup
        async with Supervisor(tmp_path, lanes=[LaneSpec("session:*", grace=0.2)]) as sup:
            runs.append(sup.submit("session:b", anyio_sleep_forever))
            runs.append(sup.submit("session:a", interrupted))
            with anyio.fail_after(5):
                await anyio.sleep_forever()

    with pytest.raises(BaseException) as caught:  # noqa: PT011 -- its kind is asserted below
        anyio.run(main, backend=backend)
    assert {type(error) for error in members(caught.value)} == {KeyboardInterrupt}
    assert all(run.outcome is not None for run in runs)
    assert lines_of(path_of(sup, "a")) == [{"text": "question"}]
    assert sup.statistics().leases.held == 0


@BACKENDS
def test_a_system_exit_in_a_body_is_its_own_failure_and_harms_nobody(backend, tmp_path):
    async def exits(ctx):
        raise SystemExit(3)

    async def returns(ctx):
        return "served"

    async def main():
        async with Supervisor(tmp_path) as sup:
            run, following = sup.submit("session:a", exits), sup.submit("session:a", returns)
            with anyio.fail_after(5):
                outcome = await run.wait()
                assert (outcome.state, type(outcome.error)) == (RunState.FAILED, SystemExit)
                assert await following.result() == "served"

    anyio.run(main, backend=backend)
    assert list(tmp_path.iterdir()) != []


async def anyio_sleep_forever(ctx):
    await anyio.sleep_forever()


@BACKENDS
def test_a_loop_that_ends_under_a_supervisor_takes_it_along(backend, tmp_path):
    """Whoever starts a supervisor and forgets to stop it: its runs end with the loop, and nothing hangs."""
    runs: list[Run] = []

    async def main():
        sup = Supervisor(tmp_path)
        await sup.start()
        runs.append(sup.submit("session:a", anyio_sleep_forever))
        await anyio.lowlevel.checkpoint()
        return sup

    sup = anyio.run(main, backend=backend)
    assert runs[0].outcome is not None and runs[0].state is RunState.CANCELLED
    assert sup.statistics().leases.held == 0


@BACKENDS
def test_an_error_in_main_reaches_the_caller_as_it_is(backend, tmp_path):
    async def main():
        async with Supervisor(tmp_path) as sup:
            sup.submit("session:a", anyio_sleep_forever)
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        anyio.run(main, backend=backend)

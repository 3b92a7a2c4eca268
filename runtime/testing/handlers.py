"""A handler run by itself: with messages, records and services that the test gives, in a session of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import anyio
from anyio import CancelScope, get_cancelled_exc_class

from lanes import GroupSpec, InvalidLane, LaneSpec, Message, Outcome, PoolSpec, RunContext, checks

from ..inbox.accepted import Accepted
from .supervisor import SupervisorUnderTest, supervisor

Handler = Callable[..., Awaitable[Any]]
Records = Sequence[Mapping[str, Any]]
Services = Mapping[str, Any]
_NOT_OF_A_LANE = ("session", "records", "services", "groups", "pools")
_OF_A_LANE = tuple(one.name for one in fields(LaneSpec) if one.init and one.name not in ("pattern", "handler"))


@dataclass(frozen=True, slots=True)
class Handled:
    """What a handler has done."""

    outcome: Outcome
    """How its run ended."""
    events: list[Any] = field(default_factory=list)
    """What it has emitted."""
    records: list[dict[str, Any]] = field(default_factory=list)
    """The records of the session."""

    @property
    def value(self) -> Any:
        """What it has returned.

        Raises:
            Exception: what it has raised, or the `RunError` that says how it was ended.
        """
        if self.outcome.error is not None:
            raise self.outcome.error
        return self.outcome.value


async def run_handler(
    handler: Handler,
    *messages: Any,
    session: str = "test",
    records: Records = (),
    services: Services | None = None,
    groups: Sequence[GroupSpec] = (),
    pools: Sequence[PoolSpec] = (),
    **spec: Any,
) -> Handled:
    """Have a handler answer messages, all in one run, and return what it did. A checkpoint.

    The run is a real one: of a supervisor with a durable inbox, over a directory that is removed afterwards.

    Args:
        messages: bodies, or `Message`s.
        session: its key.
        records: what the session has already.
        services: what `ctx.services` is to be.
        groups: as for `Supervisor`.
        pools: as for `Supervisor`.
        spec: the fields of a `LaneSpec` that differ from the defaults, such as `timeout=300`.

    Raises:
        InvalidLane: a field is not allowed.
        AbandonedBodies: the handler has ignored its cancellation, and runs still.
    """
    given = {"session": session, "records": records, "services": services, "groups": groups, "pools": pools, **spec}
    async with of_handler(handler, **given) as sup:
        outcome = await (await accept(sup, session, messages)).wait()
        return Handled(outcome, sup.recorder.events(session=session), await sup.transcript(session))


@asynccontextmanager
async def context(
    *,
    session: str = "test",
    records: Records = (),
    services: Services | None = None,
    groups: Sequence[GroupSpec] = (),
    pools: Sequence[PoolSpec] = (),
    **spec: Any,
) -> AsyncIterator[RunContext]:
    """A block with the context of a run that lasts as long as the block: for functions that are given a context.

    The block is cancelled where the run would be: when it times out, say. `ctx.session` is a real session, and
    `ctx.submit` submits.

    Args:
        session: its key.
        records: what the session has already.
        services: what `ctx.services` is to be.
        groups: as for `Supervisor`.
        pools: as for `Supervisor`.
        spec: the fields of a `LaneSpec` that differ from the defaults.

    Raises:
        RunError: the run was ended before the block.
    """
    lent = _Lent()
    given = {"session": session, "records": records, "services": services, "groups": groups, "pools": pools, **spec}
    async with of_handler(lent.handle, **given) as sup:
        run = sup.submit(lane_of(session), lent.handle, ())
        await lent.begun.wait()
        assert lent.ctx is not None
        try:
            with lent.scope:
                yield lent.ctx
        finally:
            lent.over.set()
        outcome = await run.wait()
        if lent.scope.cancelled_caught and outcome.error is not None:
            raise outcome.error


class _Lent:
    """A body that lends its context to another task, and ends that task's block when it is ended itself."""

    def __init__(self) -> None:
        self.begun, self.over = anyio.Event(), anyio.Event()
        self.scope = CancelScope()
        self.ctx: RunContext | None = None

    async def handle(self, ctx: RunContext, messages: Sequence[Message]) -> None:  # noqa: ARG002 -- a handler's shape
        self.ctx = ctx
        self.begun.set()
        try:
            await self.over.wait()
        except get_cancelled_exc_class():
            self.scope.cancel()
            async with ctx.cleanup():
                await self.over.wait()
            raise


def lane_of(session: str) -> str:
    """The lane of a session."""
    return f"session:{session}"


def of_handler(handler: Handler, **given: Any) -> AbstractAsyncContextManager[SupervisorUnderTest]:
    """A supervisor with one lane, for a session that a handler answers; `given` as for `run_handler`."""
    options, records = options_of(handler, **given), given.get("records")
    return supervisor(records={given["session"]: records} if records else None, **options)


def options_of(handler: Handler, **given: Any) -> dict[str, Any]:
    """The arguments of such a supervisor.

    Raises:
        InvalidLane: one of `given` is not allowed.
    """
    for name in given:
        if name not in _NOT_OF_A_LANE and name not in _OF_A_LANE:
            allowed = ", ".join((*_NOT_OF_A_LANE, *_OF_A_LANE))
            raise InvalidLane(f"{checks.shown(name)} is no argument; allowed: {allowed}")
    services, records = given.get("services"), given.get("records")
    if services is not None and not isinstance(services, Mapping):
        raise InvalidLane(f"services: {checks.shown(services)} is not allowed; allowed: services by name")
    if records is not None and (not isinstance(records, Sequence) or isinstance(records, str | bytes)):
        raise InvalidLane(f"records: {checks.shown(records)} is not allowed; allowed: a list of records")
    limits = {name: given.get(name, ()) for name in ("groups", "pools")}
    return {"lanes": [spec_of(handler, **given)], "services": made(given.get("services")), "inbox": True, **limits}


def spec_of(handler: Handler, **given: Any) -> LaneSpec:
    """The lane of all sessions, of the fields among some arguments."""
    return LaneSpec(
        "session:*", **{"handler": handler, **{name: given[name] for name in given if name not in _NOT_OF_A_LANE}}
    )


def resolved(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of one play: services are made for it, if there is a function that makes them."""
    services = given.get("services")
    return {"session": "test", **given, "services": services() if callable(services) else services}


def made(services: Services | None) -> dict[str, Callable[[], AbstractAsyncContextManager[Any]]]:
    """Factories of what is there already."""

    def factory(service: Any) -> Callable[[], AbstractAsyncContextManager[Any]]:
        return lambda: nullcontext(service)

    return {name: factory(service) for name, service in (services or {}).items()}


async def accept(sup: SupervisorUnderTest, session: str, messages: Sequence[Any]) -> Accepted:
    """Have all messages answered by one run. A checkpoint."""
    if not messages:
        raise InvalidLane("messages: none were given; allowed: one or more")
    if len(messages) == 1:
        return await sup.accept(lane_of(session), messages[0])
    return await _together(sup, session, messages)


async def _together(sup: SupervisorUnderTest, session: str, messages: Sequence[Any]) -> Accepted:
    """As `collect` does for messages that come while a run has the session."""
    go_on = anyio.Event()

    async def conducts(_ctx: RunContext) -> None:
        await go_on.wait()

    before = sup.submit("control", conducts, session=session)
    accepted = [await sup.accept(lane_of(session), message, when_busy="collect") for message in messages]
    go_on.set()
    await before.wait()
    return accepted[0]

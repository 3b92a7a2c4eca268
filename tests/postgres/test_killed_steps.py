"""A process ends before or after each step of its messages, and another one goes on; their senders ask again."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import Any, ClassVar

import anyio
import pytest

from runtime import PostgresStore, Supervisor
from runtime.postgres import link as links
from runtime.postgres import node
from runtime.postgres.schema import filled

from .database import SOUND
from .looking import rows, until
from .test_steps import LANES, SAID, kinds_of

pytestmark = [pytest.mark.anyio, pytest.mark.backends("asyncio", "trio"), pytest.mark.failure("G17", "G18")]

KINDS = ("accept", "started", "append", "finish", "asks", "waits_for", "answered", "ended")
Death = tuple[str, bool]


class Killed(Exception):
    """As if the process had ended: nothing that it holds is given back."""


class Mortal(links.Link):
    """Ends its thread, and with it its node, at a step."""

    dies_at: ClassVar[Death] = ("", False)
    """A kind of step, and whether it is committed first."""
    died: ClassVar[list[Death]] = []

    async def _commit(self, connection: Any, batch: Any) -> Any:
        at, after = self.dies_at
        dies = at in {one for step, _ in batch for one in kinds_of(step)}
        if dies and not after:
            self._die()
        results = await super()._commit(connection, batch)
        if dies:
            self._die()
        return results

    def _die(self) -> None:
        self.died.append(self.dies_at)
        raise Killed


async def converse(sup: Supervisor, session: str) -> None:
    """One message that is answered, and one that asks a person, who answers."""
    await (await sup.accept("main", "finish", session=session, dedupe="finish")).wait()
    await (await sup.accept("main", "ask", session=session, dedupe="ask")).wait()
    for question in await sup.asks(session=session):
        await (await sup.answer(question.id, "yes", by="ann")).wait()


async def test_whatever_step_a_process_ends_at_another_one_goes_on(pg, schema, monkeypatch):
    SAID.clear()
    Mortal.died.clear()
    store = PostgresStore(pg.dsn, schema=schema, ttl=30.0, create=True)
    deaths = [(kind, after) for kind in KINDS for after in (False, True)]
    with monkeypatch.context() as patch:
        patch.setattr(node, "Link", Mortal)
        for death in deaths:
            Mortal.dies_at = death
            with suppress(Exception, TimeoutError), anyio.fail_after(60):
                async with Supervisor(store, lanes=LANES) as sup:
                    await converse(sup, name_of(death))
    assert Mortal.died == deaths

    def sql(text: str) -> list[tuple[Any, ...]]:
        return rows(pg, filled(text, schema).as_string())

    sql("update {s}.node set beat_at = '-infinity'")
    async with Supervisor(store, lanes=LANES) as sup:
        sql("select {s}.reaped(id) from {s}.node where beat_at > '-infinity'")
        with anyio.fail_after(120):
            for death in deaths:
                await converse(sup, name_of(death))
        ends = "state in ('accepted', 'started') or state = 'unknown' and not told"
        await until(lambda: sql(f"select 1 from {{s}}.message where {ends}") == [], 60)
    assert sql(SOUND) == []
    for death in deaths:
        session = name_of(death)
        states = dict(sql(f"select split_part(dedupe, ':', 1), state from {{s}}.message where session = '{session}'"))
        lines = [
            line for (line,) in sql(f"select line::jsonb from {{s}}.entry where place = 's:{session}' order by seq")
        ]
        written = Counter(str(next(iter(line))) for line in lines)
        assert written["final"] == (states["finish"] == "done"), (death, states, lines)
        # This one is appended before its message ends: cut off in between, it is there, and its end is unknown.
        assert written["answered"] in {"done": (1,), "unknown": (0, 1)}.get(states.get("answer", ""), (0,)), death
        assert written["unknown"] == sum(state == "unknown" for state in states.values()), (death, states, lines)
        assert set(states.values()) <= {"done", "unknown"}, (death, states, lines)
        if states["ask"] == "done":
            assert "answer" in states, (death, states, lines)


def name_of(death: Death) -> str:
    kind, after = death
    return f"{kind}-{'after' if after else 'before'}"

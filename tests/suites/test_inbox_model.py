"""Suite H3: nothing tells the file of an inbox from `inbox_model`, whatever is asked, and wherever its process dies.

Steps are handed over one by one or several to a commit. A process dies between two commits, or with steps that it has
handed over; a commit fails. What was reported is in both; what was not is in neither. After each step all messages and
questions are compared.

`LANES_LONG=1` plays 20,000 examples instead of 60.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from locks import process
from runtime import InboxDown
from runtime.inbox import ask_statements, schema, sqlite, statements
from runtime.inbox.rows import Ask, AskedFor, MessageState, NewRow
from runtime.inbox.store import InboxStore
from runtime.testing.inline import Inline
from tests.inbox_model import Data, MemoryInbox

pytestmark = pytest.mark.suite("H3")
EXAMPLES = 20_000 if os.environ.get("LANES_LONG") else 60
STEPS = 40
ENDS = tuple(state for state in MessageState if not state.open and state is not MessageState.UNKNOWN)
Numbers = tuple[int, int, int]
_T = TypeVar("_T")
Look = Callable[[InboxStore, Any], Any]


class Report(Generic[_T]):
    """A report that comes within the call; a task that would wait for it goes on."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def __call__(self, result: Any, error: BaseException | None) -> None:
        self.told.append((result, type(error)))

    async def wait(self) -> Any:
        (told,) = self.told
        assert told[1] is type(None), told
        return told[0]


class Pair:
    """The store and its model, from process to process."""

    def __init__(self, folder: str) -> None:
        self.path = str(Path(folder) / "inbox.db")
        self.data = Data()
        self.now = 1_800_000_000.0
        self.held: list[Callable[[], None]] | None = None
        self.asked = 0
        self.begin()

    def begin(self) -> None:
        """A process begins."""
        self.model = MemoryInbox(self.data, lambda call: call(), leaves_gaps=True)
        self.store = sqlite.SqliteInbox(self.path)
        self.writer = Inline(self.path, partial(unsynced, self.path), lambda call: call())
        self.writer.start(lambda *_: None)
        self.store._writer = self.store._opened = self.writer
        self.held = None

    def die(self) -> None:
        """The process dies, and what it had not committed with it; the next one begins, and puts right."""
        self.writer.held = None
        self.writer._open.rollback()
        self.writer._open.close()
        self.begin()
        assert done(self.store.recover()) == done(self.model.recover())

    def change(self, call: Callable[[InboxStore, Report[Any]], Any]) -> None:
        """Hand a change over to both, or note it for the model until it is committed."""
        real = Report[Any]()
        call(self.store, real)

        def follow() -> None:
            expected = Report[Any]()
            call(self.model, expected)
            assert real.told == expected.told

        if self.held is None:
            follow()
        else:
            self.held.append(follow)

    def commit(self) -> None:
        """Commit what was handed over."""
        if self.held is not None:
            noted, self.held = self.held, None
            self.writer.release()
            for follow in noted:
                follow()

    def fail(self) -> None:
        """The next commit fails, and with it all that it was to keep; the process is started again."""
        refused = Report[Any]()
        failing = type("Failing", (Inline,), {"before": staticmethod(_fails)})
        self.writer.__class__ = failing
        self.store.accept(NewRow(lane="a", session=None, body=b"0", route=b"null"), 0, refused)
        self.writer.release()
        assert refused.told == [(None, InboxDown)]
        self.writer.__class__ = Inline
        late = Report[Any]()
        self.store.settle(late)
        assert late.told == [(None, InboxDown)]
        self.die()

    def compare(self) -> None:
        """Nothing tells them apart."""
        connection = self.writer._open
        assert statements.rows(connection, "1 ORDER BY id", ()) == [
            row for _, row in sorted(self.data.messages.items())
        ]
        asks = ask_statements._asks(connection, "1 ORDER BY id", ())
        assert asks == [ask for _, ask in sorted(self.data.asks.items())]


def unsynced(path: str) -> sqlite3.Connection:
    """An inbox that waits for no disk: what is shown here needs none."""
    connection = schema.connect(path, "process")
    connection.execute("PRAGMA synchronous = OFF")
    return connection


def _fails(_writer: Inline) -> None:
    raise OSError(28, "No space left on device")


def done(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """What a coroutine returns that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it waits")


# The steps: each takes three numbers, which choose among what is there


def some(pair: Pair, n: int) -> list[int]:
    """One message or two; some are not there."""
    first = n % (pair.data.last + 1) + 1
    return [first] if n % 3 else [first, first + 1]


def row(n: int, m: int, k: int) -> NewRow:
    session, body = (None, "s")[m % 2], str(k % 2).encode()
    dedupe = f"k{k % 3}" if n % 2 else None
    return NewRow(
        lane="ab"[n % 2],
        session=session,
        body=body,
        route=b"null",
        dedupe=dedupe,
        digest=body,
        repeat=k % 3,
        started=m % 3 == 0,
        first=m % 5 == 0,
    )


def accept(pair: Pair, n: int, m: int, k: int) -> None:
    pair.change(lambda store, report: store.accept(row(n, m, k), k % 4, report))


def begin(pair: Pair, n: int, m: int, k: int) -> None:
    ids = some(pair, n)
    pair.change(lambda store, report: store.begin(ids, report))


def retry(pair: Pair, n: int, m: int, k: int) -> None:
    ids = some(pair, n)
    pair.change(lambda store, _: store.wait_again(ids) if m % 2 else store.take_back(ids))


def end(pair: Pair, n: int, m: int, k: int) -> None:
    ids, state = some(pair, n), ENDS[m % len(ENDS)]
    pair.change(lambda store, report: store.end(ids, state, str(k), b"1" if k % 2 else None, report))


def refuse(pair: Pair, n: int, m: int, k: int) -> None:
    ids = some(pair, n)
    pair.change(lambda store, report: store.refuse(ids[0], "full", report))


def requeue(pair: Pair, n: int, m: int, k: int) -> None:
    ids = some(pair, n)
    pair.change(lambda store, report: store.requeue(ids[0], report))


def ask(pair: Pair, n: int, m: int, k: int) -> None:
    pair.asked += 1
    new = Ask(
        id=f"q{pair.asked}",
        key=None if n % 3 == 0 else f"k{n % 2}",
        lane="ab"[m % 2],
        session=None,
        route=b"null",
        question=b"1",
        options=None,
        keep=b"null",
        asked_at=pair.now,
        expires_at=None if k % 2 else pair.now + k % 5,
        state="open",
    )
    pair.change(lambda store, report: store.ask(new, report))


def close_ask(pair: Pair, n: int, m: int, k: int) -> None:
    asked = f"q{n % (pair.asked + 1)}"
    how = AskedFor(asked, "answered" if m % 2 else "expired", b"1", "ann")
    new = NewRow(lane="a", session=None, body=b"1", route=b"null", dedupe=f"answer:{asked}", first=True, ask=asked)
    pair.change(lambda store, report: store.close_ask(how, new, 0, report))


def wait_for(pair: Pair, n: int, m: int, k: int) -> None:
    ids, asked = some(pair, n), f"q{m % (pair.asked + 1)}"
    pair.change(lambda store, report: store.wait_for(ids, asked, report))


def serve(pair: Pair, n: int, m: int, k: int) -> None:
    pair.change(lambda store, report: store.accept_served("tick", float(n), row(n, m, k), 0, report))


def tell(pair: Pair, n: int, m: int, k: int) -> None:
    ids = some(pair, n)
    pair.change(lambda store, _: store.told(ids))


def look(pair: Pair, n: int, m: int, k: int) -> None:
    """Ask both all kinds of things."""
    pair.commit()
    questions: list[Look] = [
        lambda store, _: done(store.untold(n % 5, 3)),
        lambda store, _: done(store.said("ab"[n % 2], None, f"k{k % 3}", b"1")),
        lambda store, report: store.census(report),
        lambda store, _: done(store.served("tick")),
        lambda store, _: done(store.due_asks(pair.now + m % 5, 2)),
        lambda store, _: done(store.next_expiry()),
        lambda store, _: done(store.last_id()),
        lambda store, _: done(store.ended_among(range(n % 5 + 3))),
        lambda store, report: store.waiting(("a", None)[m % 2], n % 5, 3, report),
    ]
    real, expected = Report[Any](), Report[Any]()
    question = questions[n % len(questions)]
    assert question(pair.store, real) == question(pair.model, expected)
    assert real.told == expected.told


def purge(pair: Pair, n: int, m: int, k: int) -> None:
    pair.commit()
    pair.now += 1
    before = pair.now - n % 10
    assert done(pair.store.purge(before, m % 3 + 1)) == done(pair.model.purge(before, m % 3 + 1))


def several(pair: Pair, n: int, m: int, k: int) -> None:
    """What comes now goes into one commit."""
    pair.commit()
    pair.held, pair.writer.held = [], []


def commit(pair: Pair, n: int, m: int, k: int) -> None:
    pair.commit()


def put_right(pair: Pair, n: int, m: int, k: int) -> None:
    pair.commit()
    ids = some(pair, n)
    assert done(pair.store.recover(ids)) == done(pair.model.recover(ids))


def dies(pair: Pair, n: int, m: int, k: int) -> None:
    pair.die()


def fails(pair: Pair, n: int, m: int, k: int) -> None:
    pair.fail()


OPERATIONS = (
    *(accept, accept, begin, retry, end, end, refuse, requeue, ask, close_ask, wait_for, serve, tell, look, purge),
    *(several, several, commit, put_right, dies, fails),
)
number = st.integers(0, 30)
steps = st.lists(st.tuples(st.sampled_from(OPERATIONS), number, number, number), min_size=10, max_size=STEPS)


def play(taken: list[tuple[Any, int, int, int]], empty: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take steps with both.

    Args:
        empty: an inbox in which there is nothing yet.
    """
    monkeypatch.setattr(sqlite, "Answer", Report)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(empty, folder)
        pair = Pair(folder)
        monkeypatch.setattr(process, "wall", lambda: pair.now)
        try:
            for operation, n, m, k in taken:
                operation(pair, n, m, k)
                if pair.held is None:
                    pair.compare()
            pair.die()
            pair.compare()
        finally:
            pair.writer._open.close()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=not os.environ.get("LANES_LONG"),
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(taken=steps)
def test_no_step_tells_the_file_from_the_model(taken, tmp_path, monkeypatch):
    empty = tmp_path / "inbox.db"
    if not empty.exists():
        schema.connect(str(empty), "process").close()
    play(taken, str(empty), monkeypatch)

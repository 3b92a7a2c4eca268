"""The thread that owns the connections of one process to the database, with an event loop of its own.

The same on asyncio and trio, whose loops it never holds up, and which do not hold it up: while the loop of the program
stands still, the node goes on living. Steps are handed over in order by `do`, committed as one transaction per round
trip with whatever has come meanwhile (group commit), and reported on the program's loop in that order. Each step is one
call of a function of the database that can be called again: when the answer of a transaction is lost, all its steps are
sent once more on the next connection. Questions (`ask`) have connections of their own.

After its node is lost (`life`), every step that waits is reported as failed, and none that was on its way can do harm:
its node is not the owner any more.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg import errors

from lanes import InvalidLane
from lanes.checks import is_utf8, shown
from locks._events import described, log
from locks._loop import Post

from ..inbox.reports import report_each
from ..inbox.store import Report
from .connection import closed, connect, raise_if_cancelled
from .errors import StoreDown
from .schema import filled
from .settings import PostgresStore
from .step import Rows, Step, decoded, fetched

MOST_IN_A_COMMIT = 500
SOONEST_RETRY_S, LATEST_RETRY_S = 0.02, 1.0
_FULL = "53"
"""The class of errors of a server that has no room: disk, memory, connections."""
_AGAIN = (errors.DeadlockDetected, errors.SerializationFailure, errors.LockNotAvailable, errors.QueryCanceled)
"""The server has undone the transaction, and says to try it again."""

_MAKE = "insert into {s}.session (place) select p from unnest(%s::text[]) p order by p on conflict do nothing"
_LOCK = (
    "select 1 from {s}.session t where t.place = any(%s::text[] || array(select m.place::text from {s}.message m "
    "where m.id = any(%s::bigint[]))) order by t.place for update"
)


class Link:
    """The connections of one process. `do`, `ask` and `stop` are to be called on the program's loop.

    `do`, `ask` and `post` need `start` first.
    """

    def __init__(self, store: PostgresStore) -> None:
        self.store, self.name = store, store.name
        self._post: Post = lambda call: call()
        self.node = 0
        """The id of this node; 0 while it has none."""
        self.trouble: BaseException | None = None
        """Why the last transaction failed, until one works."""
        self.full = False
        """Whether the last transaction failed since the server has no room."""
        self.commits = 0
        self.steps = 0
        self.waiting = 0
        """Steps that were handed over and not reported yet; on the program's loop."""
        self.reconnects = 0
        self.on_hint: Callable[[int], None] = lambda _node: None
        """Called on the program's loop when another node has something for this one, or (0) for any; with a minus, a
        command or an answer to one."""
        self._statements: dict[str, bytes] = {}
        self._writes: deque[tuple[Step, Report]] = deque()
        self._asked: deque[tuple[Step, Report]] = deque()
        self._woken = False
        self._over = False
        self._dead = False
        """Whether the thread has ended: nothing that is handed over is done."""
        self._committing = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._work = asyncio.Event()
        self._questions = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=f"store {self.name}", daemon=True)
        self._serve: Callable[[], Awaitable[None]] | None = None
        self._ended: Callable[[BaseException | None], None] = lambda _error: None

    # On the program's loop

    def start(
        self, post: Post, serve: Callable[[], Awaitable[None]], ended: Callable[[BaseException | None], None]
    ) -> None:
        """Start the thread.

        Args:
            post: how the thread reaches the program's loop.
            serve: a coroutine function, to run there until `stop`.
            ended: called in the thread when it has ended, with what `serve` raised.
        """
        self._post, self._serve, self._ended = post, serve, ended
        self._thread.start()

    def do(self, step: Step, report: Report) -> None:
        """Have a step committed, behind all that were handed over before. Never blocks."""
        if (error := self._refusal(step) if self.node and not self._over else self.down()) is not None:
            self._post(lambda: report(None, error))
            return
        self.waiting += 1
        self._writes.append((step, self._counted(report)))
        self._wake()
        self._fail_if_dead()

    @staticmethod
    def _refusal(step: Step) -> InvalidLane | None:
        """Why the database cannot have a value of a step: text there has no NUL, and is UTF-8."""
        for n, value in enumerate(step.values):
            if isinstance(value, str) and ("\0" in value or not is_utf8(value)):
                name = step.names[n] if step.names else "text"
                return InvalidLane(f"{name}: {shown(value)} cannot be kept; allowed: UTF-8 without NUL")
        return None

    def _counted(self, report: Report) -> Report:
        def count(result: Any, error: BaseException | None) -> None:
            self.waiting -= 1
            report(result, error)

        return count

    def ask(self, step: Step, report: Report) -> None:
        """Have a question answered, in no order. Never blocks."""
        if (error := self.down() if self._over else self._refusal(step)) is not None:
            self._post(lambda: report(None, error))
            return
        self._asked.append((step, report))
        self._wake()
        self._fail_if_dead()

    def _fail_if_dead(self) -> None:
        """Report what was handed over in the moment in which the thread ended."""
        if self._dead:
            self._fail_all(self.down())

    def stop(self) -> None:
        """Have the thread do what it was given, and end."""
        self._over = True
        self._wake(always=True)

    def join(self, timeout: float) -> bool:
        """Wait for the thread; returns whether it has ended. Blocks: call it from a worker thread."""
        if self._thread.ident is not None:  # else it was never started: what came before it in the start has failed
            self._thread.join(timeout)
        return not self._thread.is_alive()

    def down(self) -> StoreDown:
        """Why nothing can be done now."""
        why = "this node has no life in the database" if self.trouble is None else described(self.trouble)
        return StoreDown(
            f"store {self.name} takes nothing: {why}; what it has acknowledged is kept; allowed: to ask again when the "
            "database answers",
            path=self.name,
        )

    def _wake(self, *, always: bool = False) -> None:
        loop = self._loop
        if loop is not None and (always or not self._woken):
            self._woken = True
            with suppress(RuntimeError):  # closed: the thread has ended
                loop.call_soon_threadsafe(self._look)

    # In the thread

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            asyncio.run(self._main())
        except BaseException as error:
            failure = error
        self._dead, self.node = True, 0
        self._fail_all(self.down())
        self._ended(failure)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._work, self._questions = asyncio.Event(), asyncio.Event()
        self._look()
        assert self._serve is not None
        await self._serve()

    @property
    def over(self) -> bool:
        """Whether it was told to stop."""
        return self._over

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be written."""
        return not self._writes and not self._committing

    def _look(self) -> None:
        self._woken = False
        self._work.set()
        self._questions.set()

    def post(self, call: Callable[[], Any]) -> None:
        """Have something called on the program's loop."""
        self._post(call)

    async def connect(self, role: str = "") -> psycopg.AsyncConnection:
        """A connection for this node. Raises what `connection.connect` raises."""
        return await connect(self.store, f"lanes {self.node}{role}")

    def statement(self, text: str) -> bytes:
        """A statement with the schema in it. As bytes: the library keeps what it makes of those."""
        found = self._statements.get(text)
        if found is None:
            found = self._statements[text] = filled(text, self.store.schema).as_bytes()
        return found

    async def write(self) -> None:
        """Commit what is handed over, until it is cancelled. A transaction whose answer is lost is sent again."""
        connection: psycopg.AsyncConnection | None = None
        retry_s = SOONEST_RETRY_S
        batch: list[tuple[Step, Report]] = []
        last: int | None = None
        try:
            while True:
                while not self._writes:
                    self._work.clear()
                    await self._work.wait()
                self._committing = True
                batch = self._next_batch()
                while batch:
                    try:
                        if connection is None or connection.closed:
                            connection = await self.connect(" writes")
                            await self._end_backend(connection, last)
                            last = connection.info.backend_pid
                        results = await self._commit(connection, batch)
                    except (psycopg.OperationalError, psycopg.InterfaceError, *_AGAIN, OSError) as error:
                        raise_if_cancelled()
                        self.troubled(error)
                        connection = await closed(connection, unless=isinstance(error, _AGAIN))
                        if isinstance(error, psycopg.Error) and (error.sqlstate or "").startswith(_FULL):
                            batch = self._refuse_what_can_be_asked_again(batch, error)
                        await asyncio.sleep(retry_s)
                        retry_s = min(2 * retry_s, LATEST_RETRY_S)
                    except psycopg.Error as error:
                        if len(batch) == 1:
                            self._report(batch, [None], self._refused(error))
                            batch = []
                        else:  # one of them is at fault: each by itself
                            for one in reversed(batch[1:]):
                                self._writes.appendleft(one)
                            batch = batch[:1]
                    else:
                        self.trouble, self.full, retry_s = None, False, SOONEST_RETRY_S
                        self.commits += 1
                        self.steps += len(batch)
                        self._report(batch, results, None)
                        batch = []
                self._committing = False
        finally:
            self._writes.extendleft(reversed(batch))  # cancelled, wherever that was: somebody else reports them
            self._committing = False
            await closed(connection)

    def _refuse_what_can_be_asked_again(
        self, batch: list[tuple[Step, Report]], error: psycopg.Error
    ) -> list[tuple[Step, Report]]:
        """The server is full: nothing more is taken from outside; returns what waits until it is not."""
        self.full = True
        queued: list[tuple[Step, Report]] = []
        while self._writes:  # the program's thread appends to it meanwhile
            queued.append(self._writes.popleft())
        self._writes.extendleft(one for one in reversed(queued) if not one[0].asked_for)
        refused = [one for one in (*batch, *queued) if one[0].asked_for]
        if refused:
            self._report(refused, [None] * len(refused), self._refused(error))
        return [one for one in batch if not one[0].asked_for]

    async def _end_backend(self, connection: psycopg.AsyncConnection, last: int | None) -> None:
        """End what the last connection may have left: a transaction that was cut in the middle keeps its locks."""
        if last is None or last == connection.info.backend_pid:
            return
        text = "select pg_terminate_backend(pid, 1000) from pg_stat_activity where pid = %s and application_name = %s"
        with suppress(errors.InsufficientPrivilege):
            await connection.execute(text, (last, f"lanes {self.node} writes"))

    def _next_batch(self) -> list[tuple[Step, Report]]:
        batch = [self._writes.popleft()]
        while self._writes and len(batch) < MOST_IN_A_COMMIT and not batch[-1][0].alone | self._writes[0][0].alone:
            batch.append(self._writes.popleft())
        return batch

    async def _commit(self, connection: psycopg.AsyncConnection, batch: list[tuple[Step, Report]]) -> list[Any]:
        steps = [step for step, _ in batch]
        if len(steps) == 1:
            return [decoded(steps[0], await self._rows(connection, steps[0]))]
        places = {place for step in steps for place in (step.place, *step.places) if place}
        ids = [one for step in steps for one in step.ids]
        made = {step.place for step in steps if step.place.startswith("s:")}  # no other node makes one of a message
        async with connection.pipeline(), connection.transaction():
            if len(made) > 1:  # in one order, too: who makes a row waits for others that have just made it
                await connection.execute(self.statement(_MAKE), (list(made),))
            if places or ids:
                await connection.execute(self.statement(_LOCK), (list(places), ids))
            cursors = [await connection.execute(self.statement(step.statement), step.values) for step in steps]
        return [decoded(step, await fetched(cursor)) for step, cursor in zip(steps, cursors, strict=True)]

    async def _rows(self, connection: psycopg.AsyncConnection, step: Step) -> Rows:
        return await fetched(await connection.execute(self.statement(step.statement), step.values))

    async def answer(self) -> None:
        """Answer questions, one after the other, until it is cancelled."""
        connection: psycopg.AsyncConnection | None = None
        retry_s = SOONEST_RETRY_S
        one: tuple[Step, Report] | None = None
        try:
            while True:
                while not self._asked:
                    self._questions.clear()
                    await self._questions.wait()
                one = self._asked.popleft()
                step = one[0]
                try:
                    if connection is None or connection.closed:
                        connection = await self.connect()
                    rows = await self._rows(connection, step)
                except (psycopg.OperationalError, psycopg.InterfaceError, OSError) as error:
                    raise_if_cancelled()
                    self.troubled(error)
                    connection = await closed(connection)
                    if self.node == 0:
                        self._report([one], [None], self.down())
                        one = None
                    else:
                        self._asked.appendleft(one)
                        one = None
                        await asyncio.sleep(retry_s)
                        retry_s = min(2 * retry_s, LATEST_RETRY_S)
                except psycopg.Error as error:
                    self._report([one], [None], self._refused(error))
                    one = None
                else:
                    retry_s = SOONEST_RETRY_S
                    self._report([one], [decoded(step, rows)], None)
                    one = None
        finally:
            if one is not None:
                self._asked.appendleft(one)
            await closed(connection)

    def lose(self, error: BaseException) -> None:
        """The node is lost: nothing that waits is done any more."""
        self.node, self.trouble = 0, error
        self._fail_all(self.down())

    def _fail_all(self, error: BaseException) -> None:
        waiting: list[tuple[Step, Report]] = []
        for queue in (self._writes, self._asked):
            with suppress(IndexError):  # one at a time: both threads may do it
                while True:
                    waiting.append(queue.popleft())
        if waiting:
            self._report(waiting, [None] * len(waiting), error)

    def troubled(self, error: BaseException) -> None:
        """A connection, or a transaction, has failed."""
        if self.trouble is None:
            log("store_trouble", level="warning", store=self.name, error=described(error))
        self.trouble = error
        self.reconnects += 1

    def _refused(self, error: psycopg.Error) -> StoreDown:
        return StoreDown(
            f"store {self.name} refuses a statement: {described(error)}; nothing of it was done; allowed: what the "
            "message says",
            path=self.name,
        )

    def _report(self, batch: list[tuple[Step, Report]], results: list[Any], error: BaseException | None) -> None:
        reports: list[tuple[Report, Any, BaseException | None]] = []
        for (_, report), result in zip(batch, results, strict=True):
            failed = isinstance(result, BaseException)
            reports.append((report, None, result) if failed else (report, result, error))
        report_each(self._post, reports)

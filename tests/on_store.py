"""The tests of lanes and supervisors once more, with sessions on PostgreSQL in the place of directories.

The policies must not notice. A test that `@pytest.mark.on_store` marks runs on files and on a store; with
`pytest --store postgres` (`make test-store`) every asynchronous test runs on a store only, but for those in `LEFT_OUT`.
Inside such a test each directory that a `Supervisor` is given stands for a schema of its own.

What differs for the sake of the tests:

- Virtual time stands still while something is on its way to the database or back, so a round trip takes no time. The
  node itself lives in real time, and looks into the database by itself less often.
- Runs have the numbers that they have on files, from 1 on.
- A session that nobody conducts is taken within the question whether it is owned, as if this node had conducted it a
  moment ago. Otherwise each test would see its first run queued for the time of a round trip. `--store cold` leaves
  that out.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import anyio
import pytest

from locks import _clock
from runtime.postgres.settings import PostgresStore
from runtime.supervisor import Supervisor
from runtime.testing import virtual
from runtime.trial.postgres_server import PostgresServer, PostgresServerError, find_binaries
from tests import blocking

STORES = ("postgres", "cold")
_SELDOM_S = 100.0
_current: list[Kept] = []


@functools.cache
def missing() -> str | None:
    """What tests with a server lack on this machine."""
    try:
        import psycopg  # noqa: F401
    except ImportError as error:
        return f"psycopg cannot be imported ({error}): pip install 'psycopg[binary]>=3.2'"
    try:
        find_binaries()
    except PostgresServerError as error:
        return str(error)
    return None


def fail_or_skip(*, allow_module_level: bool = False) -> None:
    """Skip a test that needs a server where there is none; fail it with `LANES_CI` set, as in `.ci/run`."""
    if (what := missing()) is None:
        return
    if os.environ.get("LANES_CI"):
        pytest.fail(f"{what}; LANES_CI is set, so that is no reason to skip", pytrace=False)
    pytest.skip(what, allow_module_level=allow_module_level)


class Schemas:
    """Schemas of a server that are made once, and are empty at the start of each test. Blocks: its calls are short.

    Args:
        prefix: what their names begin with.
        changed: what is to be made of the SQL of the product.
    """

    def __init__(
        self, server: PostgresServer, prefix: str = "kept", changed: Callable[[str], str] = lambda sql: sql
    ) -> None:
        import psycopg

        self.server, self._prefix, self._changed = server, prefix, changed
        self.connection = psycopg.connect(server.dsn, autocommit=True)
        self._made: list[str] = []
        self._forget: dict[str, str] = {}

    def ready(self) -> None:
        """Connect anew after another test has crashed the server."""
        import psycopg

        try:
            self.rows("select 1")
        except psycopg.OperationalError:
            self.close()
            self.connection = psycopg.connect(self.server.dsn, autocommit=True)

    def name(self, number: int) -> str:
        """The schema with a number, from 0 on."""
        while len(self._made) <= number:
            from runtime.postgres.functions import FUNCTIONS, TABLES
            from runtime.postgres.schema import FORM, STEP, filled

            name = f"{self._prefix}_{len(self._made)}"
            with self.connection.transaction():
                self.connection.execute(filled("create schema {s}", name))
                self.connection.execute(filled(self._changed(TABLES), name))
                self.connection.execute(filled(self._changed(FUNCTIONS), name))
                self.connection.execute(
                    filled("insert into {s}.form (version, step) values (%s, %s)", name), (FORM, STEP)
                )
            tables = self.rows("select tablename from pg_tables where schemaname = %s and tablename <> 'form'", name)
            numbers = self.rows("select sequencename from pg_sequences where schemaname = %s", name)
            begins = (f"select setval('{name}.{number}', 1, false)" for (number,) in numbers)
            self._forget[name] = "; ".join([*(f"delete from {name}.{table}" for (table,) in tables), *begins])
            self._made.append(name)
        return self._made[number]

    def rows(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """What a statement finds."""
        with blocking.permitted("a look at a local server"):
            cursor = self.connection.execute(statement.encode(), values or None)
            return cursor.fetchall() if cursor.description is not None else []

    def empty(self, names: list[str]) -> None:
        """Forget everything that is kept."""
        self.rows("; ".join(self._forget[name] for name in names))  # truncating makes a dozen new files

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()


class Kept:
    """The schemas of one test."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self.rows = schemas.rows
        self.on_its_way = 0
        """Steps and questions that are not answered yet."""
        self._names: dict[str, str] = {}
        self.archives: dict[str, int] = {}
        """By the names that resets gave to old transcripts: which of the session's transcripts it is."""

    def store_for(self, directory: str | os.PathLike[str]) -> PostgresStore:
        """The store that stands for a directory."""
        path = os.path.abspath(directory)
        if path not in self._names:
            self._names[path] = self._schemas.name(len(self._names))
        return PostgresStore(self._schemas.server.dsn, schema=self._names[path], connections=3, notify=False)

    def lines(self, path: str | os.PathLike[str]) -> list[str]:
        """The transcript of a session, named by the path that stands for it."""
        found = re.search(r"#(kept_\d+)/(.*)", os.fspath(path))
        assert found is not None, f"{path} is no session of a store"
        name, key = found[1], found[2].partition(".reset.")[0]
        statement = (
            f"select e.line from {name}.session t join {name}.entry e on e.place = t.place "
            "and e.incarnation = coalesce(%s, t.incarnation) where t.place = %s order by e.seq"
        )
        return [line for (line,) in self._schemas.rows(statement, self._archive(os.fspath(path)), f"s:{key}")]

    def _archive(self, path: str) -> int | None:
        return next((which for name, which in self.archives.items() if path.endswith(name.partition("#")[2])), None)

    def take(self, name: str, node: int, place: str) -> bool:
        """Have a node conduct a session, unless another one does."""
        statement = f"select {name}.wanted(%s, place) from {name}.session where place = %s and owner is null"
        self._schemas.rows(f"insert into {name}.session (place) values (%s) on conflict do nothing", place)
        return self._schemas.rows(statement, node, place) == [(True,)]

    def forget(self) -> None:
        """Empty what the test has used."""
        if self._names:
            self._schemas.empty(list(self._names.values()))


def current() -> Kept | None:
    """What stands for directories in this test, if it runs on a store."""
    return _current[-1] if _current else None


@contextmanager
def kept(schemas: Schemas, clock: virtual.VirtualClock | None, *, cold: bool) -> Iterator[Kept]:
    """Inside, each supervisor of a directory is one of a store."""
    mine = Kept(schemas)
    with pytest.MonkeyPatch.context() as patch:
        _replace_directories(patch, mine)
        _note_archives(patch, mine)
        patch.setattr("runtime.postgres.node._RUNS_OF_A_PROCESS", 0)
        _count_what_is_on_its_way(patch, mine, clock)
        if clock is not None:
            _hold_while_on_its_way(patch, clock)
        if not cold:
            _take_at_once(patch, mine)
        _current.append(mine)
        try:
            yield mine
        finally:
            _current.clear()
            mine.forget()


async def quiet() -> None:
    """In a test on a store, wait until nothing is on its way to the database or back."""
    clock, kept = _clock.clock, current()
    if kept is None:
        return
    if isinstance(clock, virtual.VirtualClock):
        await clock.settle()
        return
    calm = 0
    with anyio.move_on_after(5):
        while calm < 3:
            await anyio.sleep(0.01)
            calm = 0 if kept.on_its_way else calm + 1


def _replace_directories(patch: pytest.MonkeyPatch, mine: Kept) -> None:
    made = Supervisor.__init__

    def make(self: Supervisor, sessions: Any, **options: Any) -> None:
        if isinstance(sessions, str | Path):
            sessions = mine.store_for(sessions)
            for option in ("exclusive", "exclusive_wait"):  # a store is shared
                options.pop(option, None)
        made(self, sessions, **options)

    patch.setattr(Supervisor, "__init__", make)


def _note_archives(patch: pytest.MonkeyPatch, mine: Kept) -> None:
    from runtime.postgres.transcripts import PostgresTranscripts

    puts_away = PostgresTranscripts.set_aside

    async def put_away(self: PostgresTranscripts, path: str, to: str | None, **options: Any) -> bool:
        moved = await puts_away(self, path, to, **options)
        if moved and to is not None:
            schema, place = self._link.store.schema, self._place(path)
            ((now,),) = mine.rows(f"select incarnation from {schema}.session where place = %s", place)
            mine.archives[to] = now - 1
        return moved

    patch.setattr(PostgresTranscripts, "set_aside", put_away)


def _count_what_is_on_its_way(patch: pytest.MonkeyPatch, mine: Kept, clock: virtual.VirtualClock | None) -> None:
    from runtime.postgres.link import Link

    for name in ("do", "ask"):
        patch.setattr(Link, name, _held(mine, clock, getattr(Link, name)))


def _hold_while_on_its_way(patch: pytest.MonkeyPatch, clock: virtual.VirtualClock) -> None:
    from runtime.inbox import service, watch
    from runtime.postgres import ownership
    from runtime.postgres.node import Node

    for module in (service, watch, ownership):
        patch.setattr(module, "_LOOK_S", _SELDOM_S)  # each of them asks the database, in no time
    for name in ("open", "close"):
        patch.setattr(Node, name, _held_through(clock, getattr(Node, name)))


def _held_through(clock: virtual.VirtualClock, does: Callable[[Any], Awaitable[None]]) -> Callable[..., Any]:
    async def held(node: Any) -> None:
        with clock.held():
            await does(node)

    return held


def _held(mine: Kept, clock: virtual.VirtualClock | None, passes_on: Callable[..., None]) -> Callable[..., None]:
    def held(link: Any, step: Any, report: Callable[[Any, BaseException | None], None]) -> None:
        hold = nullcontext() if clock is None else clock.held()
        hold.__enter__()
        mine.on_its_way += 1

        def released(result: Any, error: BaseException | None) -> None:
            hold.__exit__(None, None, None)
            mine.on_its_way -= 1
            report(result, error)

        passes_on(link, step, released)

    return held


def _take_at_once(patch: pytest.MonkeyPatch, mine: Kept) -> None:
    from runtime.postgres.ownership import Ownership

    owns = Ownership.owns

    def takes(self: Ownership, path: str) -> bool:
        if owns(self, path):
            return True
        place = self._place_of(path)
        if self._link.node and mine.take(self._link.store.schema, self._link.node, place):
            self.take(place)
        return owns(self, path)

    patch.setattr(Ownership, "owns", takes)


_FILE = "writes to the file of a session, or looks at it or at what stands beside it"
_TURN = "another process, or another registry, has the turn of the file; nodes have rows for that: tests/postgres"
_RIGHT = "revokes or takes a turn in the lock registry, which has none of a store's"
_NODES = "two nodes tell each other of a wish by notifications, which virtual time does not wait for"
_RING = "write leases of a store are no rights in the lock registry: a ring through one ends with the first deadline"
_NAMED = "turns and write leases of a store are in no statistics, report or trace of the lock registry, nor numbered"
_QUEUE = "those who wait for a write lease of a store ask 20 times a second, in no order"
_LATER = "looks at once at what a run has done, which takes a round trip"

LEFT_OUT: dict[str, tuple[str, ...]] = {
    _FILE: (
        "runtime/test_supervisor_life.py::test_sessions_that_are_no_directory_are_refused_by_name",
        "lanes/test_between_two_steps.py::test_a_reset_awaited_by_a_run_of_another_key_that_has_the_same_file_is_refused",
        "lanes/test_children.py::test_a_parent_always_learns_how_its_child_ended[cannot open its session]",
        "lanes/test_full_disk.py",
        "lanes/test_groups.py::test_a_run_that_cannot_open_its_session_fails_and_so_may_a_thousand_behind_it",
        "lanes/test_lanes_retire.py::test_a_thousand_one_shot_session_lanes_with_transcripts_leave_no_entry_descriptor_or_task",
        "lanes/test_lock_files_left_out.py",
        "lanes/test_parked.py::test_a_key_of_a_run_that_ended_as_it_was_submitted_is_not_kept_for_ever",
        "lanes/test_session_files.py",
        "lanes/test_turns.py::test_an_exception_at_any_await_of_a_body_frees_the_turn_and_leaves_no_file_but_the_transcript",
        "lanes/test_turns_handed_on.py",
    ),
    _TURN: (
        "lanes/test_turns_between_processes.py",
        "lanes/test_reset.py::test_a_stop_in_the_middle_of_it_is_told",
        "lanes/test_reset.py::test_it_waits_for_the_turn_that_another_process_has",
        "lanes/test_retries.py::test_the_turn_is_free_for_another_process_between_two_attempts",
        "lanes/test_when_busy.py::test_what_waits_for_the_turn_of_another_process_is_superseded_too",
    ),
    _RIGHT: (
        "lanes/test_debounce_and_dedupe.py::test_after_a_run_that_came_to_nothing_the_same_key_gives_a_new_run[revoked-done]",
        "lanes/test_debounce_and_dedupe.py::test_after_a_run_that_came_to_nothing_the_same_key_gives_a_new_run[revoked-ended]",
        "lanes/test_deadlock_limits.py::test_a_run_whose_turn_the_waiting_one_has_taken_by_hand_is_not_waited_for",
        "lanes/test_late_deadlines.py::test_lateness_counts_from_the_instant_that_was_missed",
        "lanes/test_run_outcomes.py::test_a_run_whose_turn_is_revoked_is_cancelled_with_that_reason",
        "lanes/test_supersede.py::test_a_run_of_the_supervisor_whose_turn_is_superseded_ends",
    ),
    _NODES: (
        "lanes/test_deadlock_limits.py::test_a_run_of_another_supervisor_on_ones_own_session_is_not_waited_for",
        "lanes/test_run_deadlines.py::test_waiting_for_another_supervisors_turn_eats_nothing_of_the_run_budget",
    ),
    _RING: (
        "lanes/test_deadlock_limits.py::test_who_goes_on_without_its_slot_needs_nothing_and_is_waited_for",
        "lanes/test_deadlock_limits.py::test_a_ring_through_a_run_that_goes_on_without_its_slot_is_found",
        "lanes/test_deadlock_limits.py::test_the_limit_of_the_host_is_no_limit_of_a_body",
        "lanes/test_deadlock_limits.py::test_a_wait_for_a_lease_that_has_a_limit_closes_no_ring",
        "lanes/test_deadlock_limits.py::test_a_turn_behind_a_quiet_run_on_a_lane_whose_slots_are_taken_is_a_ring",
        "lanes/test_deadlock_limits.py::test_who_will_be_lent_a_class_at_the_front_of_its_session_needs_no_quiet_slot",
        "lanes/test_deadlock_limits.py::test_when_a_right_is_asked_for_a_ring_through_all_places_of_a_lane_is_found",
        "lanes/test_deadlock_limits.py::test_a_ring_through_a_task_that_is_no_run_is_found_by_a_run_that_closes_it",
        "lanes/test_deadlocked_runs.py::test_a_ring_through_a_write_lease_is_found_whoever_closes_it",
        "lanes/test_deadlocked_runs.py::test_a_ring_through_the_only_slot_of_a_group_is_found",
        "lanes/test_deadlocked_runs.py::test_who_asks_for_a_lease_of_one_that_waits_for_its_slot_is_refused",
        "lanes/test_deadlocked_runs.py::test_a_run_goes_on_without_a_slot_where_waiting_for_one_would_never_end",
    ),
    _NAMED: (
        "runtime/test_metrics.py::test_what_is_told_is_what_the_statistics_say",
        "runtime/test_restart.py::test_ten_restarts_in_the_middle_of_runs_leave_exact_counters_and_one_generation",
        "runtime/test_run_report.py::test_a_queued_run_says_that_another_supervisor_has_the_turn",
        "runtime/test_run_report.py::test_the_rights_that_it_holds_and_waits_for_are_named",
        "runtime/test_trace.py::test_turns_and_write_leases_have_tracks_of_their_session",
    ),
    _QUEUE: (
        "lanes/test_deadlock_limits.py::test_an_attempt_without_waiting_is_no_wait",
        "lanes/test_deadlock_limits.py::test_who_was_asked_to_end_gives_its_lease_back_within_its_grace",
    ),
    _LATER: ("lanes/test_steering.py::test_who_was_read_shares_the_outcome_however_the_run_ends[is superseded]",),
}
"""What no store can have part in, by the reason: modules, tests, or cases of a test."""


def left_out(nodeid: str) -> bool:
    """Whether a test is left out on a store."""
    module, _, test = nodeid.removeprefix("tests/").partition("::")
    name, _, case = test.partition("[")
    case = case.removesuffix("]").partition("-")[2].partition("-")[2]
    return not _OUT.isdisjoint((module, f"{module}::{name}", f"{module}::{name}[{case}]"))


_OUT = {name for names in LEFT_OUT.values() for name in names}

"""The command lines of `lanes db`; `db` does what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from .inbox_commands import NUMBER, STATES, text_of

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_json = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else, on standard output."
)
_limit = click.option("--limit", type=NUMBER, default=50, show_default=True, help="So many.")


def _store(function: Callable[..., int]) -> Callable[..., int]:
    """The options that say which database it is."""
    url = click.option(
        "--store",
        metavar="URL",
        envvar="LANES_STORE",
        show_envvar=True,
        required=True,
        callback=text_of,
        help="postgresql://user@host/database. Passwords: rather in $LANES_STORE, $PGPASSWORD or ~/.pgpass, since all "
        "users of a machine see its command lines.",
    )
    schema = click.option(
        "--schema",
        envvar="LANES_SCHEMA",
        show_envvar=True,
        default="lanes",
        show_default=True,
        callback=text_of,
        help="Where our tables are.",
    )
    return url(schema(function))


@click.group("db", context_settings=_SETTINGS)
def db_group() -> None:
    """Make and look at the schema in which several processes share their sessions, while they serve it or not.

    \b
    Exit codes:
      0        done, or nothing is wrong
      1        something is wrong: the database does not answer or refuses, a node cannot use it, or a message is in
               another state; what is said of is left alone
      2        the input cannot be used, or the schema is not ours
    """


@db_group.command("init", context_settings=_SETTINGS)
@_store
def db_init(store: str, schema: str) -> int:
    """Make the schema with its tables and functions, in one transaction; leave one alone that is there."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.init(store, schema)


@db_group.command("check", context_settings=_SETTINGS)
@_store
@_json
def db_check(store: str, schema: str, as_json: bool) -> int:
    """Say whether processes on this machine can share sessions there: server, schema, rights, clock, connections."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.check(store, schema, as_json=as_json)


@db_group.command("nodes", context_settings=_SETTINGS)
@_store
@_json
def db_nodes(store: str, schema: str, as_json: bool) -> int:
    """Show the processes that share the sessions: when each was heard of last, and what it conducts."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.show_nodes(store, schema, as_json=as_json)


@db_group.command("sessions", context_settings=_SETTINGS)
@_store
@click.option("--key", callback=text_of, help="Only this session.")
@click.option("--node", callback=text_of, help="Only those that nodes of this name conduct.")
@click.option("--open", "only_open", is_flag=True, help="Only those with messages that are accepted or started.")
@_limit
@_json
def db_sessions(store: str, schema: str, **given: Any) -> int:
    """Show sessions, those with open messages first: who conducts each, how much waits and for how long."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.show_sessions(store, schema, **given)


@db_group.group("inbox", context_settings=_SETTINGS)
def db_inbox() -> None:
    """Look at the accepted messages of all sessions, and change them; nodes take up at once what was changed."""


@db_inbox.command("list", context_settings=_SETTINGS)
@_store
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be given again.")
@click.option("--lane", callback=text_of, help="Only of this lane.")
@click.option("--session", callback=text_of, help="Only of this session.")
@_limit
@_json
def db_inbox_list(store: str, schema: str, **given: Any) -> int:
    """Show messages, the newest first, with ages and reasons, and how many are in each state."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.show_messages(store, schema, **given)


@db_inbox.command("show", context_settings=_SETTINGS)
@_store
@click.argument("message", type=NUMBER)
def db_inbox_show(store: str, schema: str, message: int) -> int:
    """Show all that is kept of MESSAGE, its body included."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.show_message(store, schema, message)


@db_inbox.command("requeue", context_settings=_SETTINGS)
@_store
@click.argument("messages", type=NUMBER, nargs=-1, required=True)
def db_inbox_requeue(store: str, schema: str, messages: tuple[int, ...]) -> int:
    """Have MESSAGES wait again that were parked, dropped or left unknown."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.requeue(store, schema, messages)


@db_inbox.command("discard", context_settings=_SETTINGS)
@_store
@click.argument("messages", type=NUMBER, nargs=-1, required=True)
def db_inbox_discard(store: str, schema: str, messages: tuple[int, ...]) -> int:
    """Have MESSAGES wait for nobody any more that are parked, unknown, or wait for an answer."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.discard(store, schema, messages)


@db_group.command("asks", context_settings=_SETTINGS)
@_store
@_limit
@_json
def db_asks(store: str, schema: str, **given: Any) -> int:
    """Show the questions that handlers have asked, and that wait for an answer."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.show_asks(store, schema, **given)


@db_group.command("answer", context_settings=_SETTINGS)
@_store
@click.argument("ask_id", metavar="ASK", callback=text_of)
@click.argument("value", callback=text_of)
@click.option("--by", default="", callback=text_of, help="Who answers; the handler is told.")
@click.option("--json", "as_json", is_flag=True, help="VALUE is JSON, and not a text.")
def db_answer(store: str, schema: str, ask_id: str, value: str, **given: Any) -> int:
    """Answer question ASK with VALUE; the handler gets it before all that waits in its session, on whatever node."""
    from . import db  # noqa: PLC0415 -- `--help` need not wait for the driver

    return db.answer(store, schema, ask_id, value, **given)

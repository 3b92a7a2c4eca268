"""The command lines of `lanes inbox`, `lanes asks` and `lanes answer`; `inbox` does what they say."""

from __future__ import annotations

from typing import Any

import click

_SETTINGS = {"help_option_names": ["-h", "--help"]}
_directory = click.argument("directory", metavar="DIR")
STATES = [
    "accepted",
    "started",
    "waiting",
    "done",
    "failed",
    "parked",
    "cancelled",
    "superseded",
    "dropped",
    "unknown",
]
NUMBER = click.IntRange(1, (1 << 63) - 1)
"""A whole number that a database can have."""


def text_of(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    """Text that a database can have: Python has half of a surrogate pair for each byte that is no UTF-8."""
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        raise click.BadParameter(f"{value!a} is not UTF-8.") from None
    return value


@click.group("inbox", context_settings=_SETTINGS)
def inbox_group() -> None:
    """Look at the durable inbox of a directory of sessions, and change it, while it is served or not.

    A process that serves it takes up within a second what was changed.

    \b
    Exit codes:
      0        done
      1        a message is not kept, or is in another state; it was left alone
      2        the input cannot be used, or DIR has no inbox
    """


@inbox_group.command("list", context_settings=_SETTINGS)
@_directory
@click.option("--state", "states", multiple=True, type=click.Choice(STATES), help="Only these; may be given again.")
@click.option("--lane", callback=text_of, help="Only of this lane.")
@click.option("--session", callback=text_of, help="Only of this session.")
@click.option("--limit", type=NUMBER, default=50, show_default=True, help="So many, the newest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, and nothing else, on standard output.")
def inbox_list(directory: str, **given: Any) -> int:
    """Show messages, the newest first, with ages and reasons, and how many are in each state."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.show_list(directory, **given)


@inbox_group.command("show", context_settings=_SETTINGS)
@_directory
@click.argument("message", type=NUMBER)
def inbox_show(directory: str, message: int) -> int:
    """Show all that is kept of MESSAGE, its body included."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.show(directory, message)


@inbox_group.command("requeue", context_settings=_SETTINGS)
@_directory
@click.argument("messages", type=NUMBER, nargs=-1, required=True)
def inbox_requeue(directory: str, messages: tuple[int, ...]) -> int:
    """Have MESSAGES wait again that were parked, dropped or left unknown."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.requeue(directory, messages)


@inbox_group.command("discard", context_settings=_SETTINGS)
@_directory
@click.argument("messages", type=NUMBER, nargs=-1, required=True)
def inbox_discard(directory: str, messages: tuple[int, ...]) -> int:
    """Have MESSAGES wait for nobody any more that are parked, unknown, or wait for an answer."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.discard(directory, messages)


@inbox_group.command("purge", context_settings=_SETTINGS)
@_directory
@click.option("--older-than", type=float, default=7.0, show_default=True, metavar="DAYS", help="Since they ended.")
def inbox_purge(directory: str, older_than: float) -> int:
    """Forget messages that have ended, and their keys; never what is parked, unknown or waits."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.purge(directory, older_than)


@click.command("asks", context_settings=_SETTINGS)
@_directory
@click.option("--limit", type=NUMBER, default=50, show_default=True, help="So many, the oldest.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON list, and nothing else, on standard output.")
def asks(directory: str, **given: Any) -> int:
    """Show the questions that handlers have asked, and that wait for an answer."""
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.show_asks(directory, **given)


@click.command("answer", context_settings=_SETTINGS)
@_directory
@click.argument("ask_id", metavar="ASK", callback=text_of)
@click.argument("value", callback=text_of)
@click.option("--by", default="", callback=text_of, help="Who answers; the handler is told.")
@click.option("--json", "as_json", is_flag=True, help="VALUE is JSON, and not a text.")
def answer(directory: str, ask_id: str, value: str, **given: Any) -> int:
    """Answer question ASK with VALUE; the handler gets it before all that waits in its session.

    \b
    Exit codes:
      0        answered
      1        it was never asked, or has an answer, or has expired
      2        the input cannot be used, or DIR has no inbox
    """
    from . import inbox  # noqa: PLC0415 -- `--help` need not wait for SQLite

    return inbox.answer(directory, ask_id, value, **given)


def add_inbox_commands(to: click.Group) -> None:
    """Make them commands of a group."""
    for command in (inbox_group, asks, answer):
        to.add_command(command)

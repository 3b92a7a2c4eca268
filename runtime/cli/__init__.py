"""The command `lanes`. Only what it takes to read a command line is imported here; the rest comes with the command."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from ..trial import output
from ..usage_error import UsageError
from .db_commands import db_group
from .inbox_commands import add_inbox_commands, text_of

USAGE = 2
_FAILED = 1
_INTERRUPTED = 130
_SETTINGS = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=_SETTINGS)
@click.version_option(package_name="session-lanes", prog_name="lanes")
def cli() -> None:
    """Conduct many sessions at once: one writer each, and nothing outlives its deadline."""


@cli.command(context_settings=_SETTINGS)
@click.argument("target", required=False)
@click.option("--list", "listing", is_flag=True, help="Show the shipped scenarios and exit.")
@click.option("--backend", type=click.Choice(["asyncio", "trio"]), default="asyncio", show_default=True)
@click.option("--sessions", metavar="DIR", help="Where the transcripts are; by default a new one, printed and kept.")
@click.option("--scale", type=float, help="What all times are multiplied by, instead of the scenario's own `scale`.")
@click.option("--seed", type=int, help="The seed of generated traffic, instead of the scenario's own.")
@click.option("--duration", type=float, metavar="SECONDS", help="How long messages are sent, on the wall clock.")
@click.option("--json", is_flag=True, help="Print one JSON object, and nothing else, on standard output.")
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="Of the log lines on standard error.",
)
@click.option("--trace", metavar="FILE", help="Write what ran when, for ui.perfetto.dev or chrome://tracing.")
@click.option("--socket", metavar="PATH", help="Where `lanes status` and its like can ask, instead of the usual place.")
@click.option(
    "--web",
    type=click.IntRange(0, 65535),
    is_flag=False,
    flag_value=8765,
    metavar="[PORT]",
    help="Show it in a browser, at this port of this machine; 8765 without one. It only shows: see `lanes web`.",
)
def run(listing: bool, **given: Any) -> int:
    """Serve TARGET and say whether anything was lost, interleaved or stuck.

    TARGET is a shipped scenario (by default `mixed`, about ten seconds), FILE.toml with a scenario of your own,
    FILE.jsonl with one message a line, or module:function, your own `async def main(sup: Supervisor)`. The shipped
    scenarios are files in runtime/scenarios; the first of them, mixed.toml, names all that one may say.

    \b
    Exit codes:
      0        green: nothing is lost, interleaved or stuck
      1        red
      2        the input cannot be used; nothing was started
      70       bodies that nobody planned were left running
      75       green, and SIGUSR1 asked for a restart that needs a new process
      130 143  a second Ctrl-C or SIGTERM cut a green ending short (129: SIGHUP)
    """
    from ..trial import options, start  # noqa: PLC0415 -- `--help` need not wait for event loops

    if listing:
        return start.list_scenarios()
    return start.run(options.Options(**given))


@cli.command("doctor", context_settings=_SETTINGS)
@click.argument("directory", metavar="DIR")
@click.option("--fix", is_flag=True, help="Remove what is provably dead, and see to torn tails; never to what is held.")
@click.option("--recursive", "-r", is_flag=True, help="Look into the directories below DIR, too.")
@click.option("--json", is_flag=True, help="Print one JSON object, and nothing else, on standard output.")
def examine(**given: Any) -> int:
    """Say what is wrong with the sessions (*.jsonl) in DIR, and who holds them.

    Looking changes nothing, and waits for nobody. With --fix, lock files and notes whose process is gone, new files of
    compactions that did not end, and torn tails are seen to, each under the session's own locks; a session that
    somebody holds, or may hold, is left alone. Broken lines inside of a file always stay as they are. What a killed
    process left, and the next lease or turn clears away by itself, is a note.

    With --recursive, symbolic links to directories are not gone through, and what cannot be listed is wrong.

    \b
    Exit codes:
      0        nothing is wrong; sessions that are held are not
      1        something is wrong that was not mended
      2        DIR cannot be used, or nothing was looked at: there are no sessions in it
      130 143  Ctrl-C or SIGTERM cut it short, after the session at hand
    """
    from . import doctor  # noqa: PLC0415 -- as above

    return doctor.run(doctor.Options(**given))


@cli.command("bench", context_settings=_SETTINGS)
@click.argument("questions", nargs=-1, metavar="[QUESTION]...")
@click.option("--list", "list", is_flag=True, help="Show the questions and the peers, and exit.")
@click.option("--peers", metavar="NAME,...", help="Only these, and the floor of each question.")
@click.option("--html", metavar="FILE", help="Write one page with all pictures and figures.")
@click.option("--pictures", metavar="DIR", help="Write each picture as SVG and PNG.")
@click.option("--json", metavar="FILE", help="Write every sample.")
@click.option("--from", "source", metavar="OLD.json", help="Show and draw an earlier run; measure nothing.")
@click.option("--compare", metavar="OLD.json", help="Print what differs from an earlier run beyond noise.")
@click.option("--budget", type=float, metavar="SECONDS", help="How long to measure; 270, with --full 3600.")
@click.option("--full", is_flag=True, help="Measure larger sizes, longer, and more often.")
def bench(**given: Any) -> int:
    """Compare locks and lanes with those of other libraries, on this machine.

    Each QUESTION, by default all of them, is measured for each peer in turn, in several rounds. A peer is a library's
    lock or task group; the extra `bench` installs them, and a missing one is skipped by name.

    \b
    Exit codes:
      0        measured; a peer that failed, or let two holders in, is reported in its row
      1        nothing could be measured, or a lock of this package let two holders in
      2        the input cannot be used; nothing was measured
      130 143  Ctrl-C or SIGTERM cut it short; what was measured is printed
    """
    from ..bench import start  # noqa: PLC0415 -- as above

    return start.run(start.Options(**given))


_socket = click.option(
    "--socket",
    metavar="PATH",
    help="The process's status socket; by default $LANES_SOCKET, or that of the only process of yours that has one.",
)
_run_id = click.argument("run_id", metavar="RUN", type=click.IntRange(min=1, max=(1 << 63) - 1))
_EXIT_CODES = """
\b
Exit codes:
  0        done
  1        the process says no, cannot, or does not answer; a frozen one is shown with the line that blocks it
  2        the input cannot be used, or there is no such process
"""


def _asks(name: str) -> Callable[[Callable[..., int]], click.Command]:
    """A command that talks to a process."""

    def decorate(function: Callable[..., int]) -> click.Command:
        text = f"{inspect.cleandoc(function.__doc__ or '')}\n{_EXIT_CODES}"
        return cli.command(name, context_settings=_SETTINGS, help=text)(_socket(function))

    return decorate


def fleet_options(function: Callable[..., int]) -> Callable[..., int]:
    """The options that name the processes on a store: `store`, `schema` and `node`."""
    store = click.option(
        "--store",
        is_flag=False,
        flag_value="",
        metavar="[URL]",
        callback=text_of,
        help="All processes on a store, postgresql://user@host/database; without URL, that of $LANES_STORE.",
    )
    schema = click.option(
        "--schema", envvar="LANES_SCHEMA", default="lanes", show_default=True, callback=text_of, help="Of the store."
    )
    node = click.option("--node", metavar="NAME", help="Only this process on the store, by its name or its id.")
    return store(schema(node(function)))


@_asks("status")
@fleet_options
@click.option("--json", is_flag=True, help="Print one JSON object, and nothing else, on standard output.")
def look(socket: str | None, json: bool, **given: Any) -> int:
    """Show what a process does: problems and stuck runs first, with the line of code where they stand.

    Where several processes of yours have a socket, and none is named, it shows all of them, a line each; with --store,
    those on any host that share a store. The exit code is 1, then, if one of them is frozen, silent or dead.
    """
    from . import fleet, status  # noqa: PLC0415 -- as above

    which = fleet.Which(**given)
    found = fleet.fleet_of(socket, which)
    return status.run(socket, json) if found is None else fleet.show(found, which, json=json)


@_asks("top")
@fleet_options
def watch(socket: str | None, **given: Any) -> int:
    """Show what a process does, live, until q or Ctrl-C; or several, as `lanes status` does."""
    from . import fleet, top  # noqa: PLC0415 -- as above

    return top.run(socket, fleet.Which(**given))


@_asks("web")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; other than here with a token.")
@click.option("--port", default=8765, show_default=True, type=click.IntRange(0, 65535), help="0 for a free one.")
@click.option("--token", envvar="LANES_WEB_TOKEN", show_envvar=True, help="What a visitor has to have.")
@click.option("--allow-control", is_flag=True, help="Let visitors stop runs, and whatever else changes something.")
@click.option("--show-content", is_flag=True, help="Show what people have written, too.")
@fleet_options
def show(socket: str | None, store: str | None, schema: str, node: str | None, **given: Any) -> int:
    """Show what a process does in a browser, until Ctrl-C; or several, as `lanes status` does.

    It comes back by itself when the process does. With --allow-control or --show-content and without --token, it makes
    a token of its own, which stands in the address that it prints.
    """
    from . import fleet, web  # noqa: PLC0415 -- as above

    return web.run(socket, fleet.Which(store=store, schema=schema, node=node), web.Options(**given))


@_asks("trace")
@click.option(
    "--seconds", type=click.FloatRange(0, 600, min_open=True), default=10.0, show_default=True, help="So long."
)
@click.option("-o", "path", metavar="FILE", required=True, help="Where to; what it has is overwritten.")
def record(socket: str | None, seconds: float, path: str) -> int:
    """Record what runs when in a process, for ui.perfetto.dev or chrome://tracing, as `lanes run --trace` does."""
    from . import trace  # noqa: PLC0415 -- as above

    return trace.run(socket, seconds, path)


@_asks("stop")
@_run_id
@click.option("--reason", default="stopped by an operator", show_default=True, help="What its sender is told.")
@fleet_options
def stop(socket: str | None, run_id: int, reason: str, **given: Any) -> int:
    """Ask run RUN to end. It ends within its lane's grace; one that waits never starts.

    With --store, whichever process on a store has the run, on whatever host.
    """
    from . import control, fleet  # noqa: PLC0415 -- as above

    return control.stop(socket, run_id, reason, fleet.Which(**given))


@_asks("drain")
@click.option("--timeout", type=float, metavar="SECONDS", help="What running runs get.")
def drain(socket: str | None, timeout: float | None) -> int:
    """Have a process take no more work, let running runs finish, cancel the rest; wait for that."""
    from . import control  # noqa: PLC0415 -- as above

    return control.drain(socket, timeout)


@_asks("restart")
def restart(socket: str | None) -> int:
    """Have a process begin anew, keeping what is queued; wait for that."""
    from . import control  # noqa: PLC0415 -- as above

    return control.restart(socket)


@_asks("stack")
@_run_id
@fleet_options
def stack(socket: str | None, run_id: int, **given: Any) -> int:
    """Show where run RUN stands, coroutine by coroutine down to the line that waits; with --store, in any process."""
    from . import control, fleet  # noqa: PLC0415 -- as above

    return control.stack(socket, run_id, fleet.Which(**given))


@cli.command("example", context_settings=_SETTINGS)
@click.argument("name", required=False)
@click.option("--to", default=".", show_default=True, metavar="DIR", help="Where the folder `examples` is, or is made.")
def write_example(name: str | None, to: str) -> int:
    """Write the example NAME, a program to read and to change; without NAME, list them.

    The files of a folder `examples` that are there already are left alone: if one differs, nothing is written.

    \b
    Exit codes:
      0        written, or listed
      2        there is no such example, or it cannot be written
    """
    from . import example  # noqa: PLC0415 -- as above

    return example.run(name, to)


add_inbox_commands(cli)
cli.add_command(db_group)


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: run the command; every misuse is one line on standard error, with exit code 2."""
    output.repair()
    try:
        code = cli.main(args=arguments, prog_name="lanes", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        return USAGE
    except click.ClickException as error:
        output.complain(" ".join(error.format_message().split()))
        return USAGE
    except UsageError as error:
        output.complain(str(error))
        return USAGE
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except OSError as error:
        output.silence(sys.stdout)
        if error.errno != errno.EPIPE:
            output.complain(f"{error.filename or 'cannot print'}: {error.strerror}")
        return _FAILED
    finally:
        output.flush()

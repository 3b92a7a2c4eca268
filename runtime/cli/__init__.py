"""The command `lanes`. Only what it takes to read a command line is imported here; the rest comes with the command."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import click

USAGE = 2
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
@click.option(
    "--sessions", metavar="DIR", help="Where the transcripts are; by default a temporary directory, printed and kept."
)
@click.option(
    "--scale", type=float, help="What all times of the scenario are multiplied by, instead of its own `scale`."
)
@click.option("--seed", type=int, help="The seed of generated traffic, instead of the scenario's own.")
@click.option("--duration", type=float, metavar="SECONDS", help="How long messages are sent, on the wall clock.")
@click.option("--json", is_flag=True, help="Print one JSON object, and nothing else, on standard output.")
@click.option(
    "--log-format",
    type=click.Choice(["console", "json"]),
    default="console",
    show_default=True,
    help="Of standard error.",
)
def run(listing: bool, **given: Any) -> int:
    """Serve TARGET and say whether anything was lost, interleaved or stuck.

    TARGET is a shipped scenario (by default `mixed`, about ten seconds), FILE.toml with a scenario of your own,
    FILE.jsonl with one message a line, or module:function, your own `async def main(sup: Supervisor)`.

    \b
    Exit codes: 0 green, 1 red, 2 unusable input, 70 bodies were left running that nobody planned,
    128 + n when a second signal n cut the ending short.
    """
    from . import start  # noqa: PLC0415 -- `--help` need not wait for event loops

    if listing:
        start.list_scenarios()
        return 0
    return start.run(start.Options(**given))


def main(arguments: Sequence[str] | None = None) -> int:
    """The console script: run the command; every misuse is one line on standard error, with exit code 2."""
    try:
        code = cli.main(args=arguments, prog_name="lanes", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message())
        return USAGE
    except click.ClickException as error:
        return _complain(error.format_message())
    except (click.Abort, KeyboardInterrupt):
        return _INTERRUPTED
    except Exception as error:
        from .problem import Problem  # noqa: PLC0415 -- only when there is one

        if isinstance(error, Problem):
            return _complain(str(error))
        raise


def _complain(message: str) -> int:
    with contextlib.suppress(OSError):
        print(f"lanes: {' '.join(message.split())}", file=sys.stderr)
    return USAGE

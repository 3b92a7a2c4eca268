"""Log lines on stderr, for the command line. A program that embeds a supervisor configures structlog itself."""

from __future__ import annotations

import logging
import sys
from typing import Any, Literal

LogFormat = Literal["console", "json"]


class _StandardError:
    """Writes whole lines to what `sys.stderr` is at that moment: a live table takes its place for a while."""

    def msg(self, message: str) -> None:
        try:
            sys.stderr.write(message + "\n")
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError):
            return  # closed, or not there at all, or without a reader: no reason to stop the work

    log = debug = info = warning = warn = error = critical = exception = fatal = failure = msg


def configure(log_format: LogFormat, *, level: int = logging.INFO) -> None:
    """Send the events of all floors to stderr: aligned and coloured for people, or one JSON object a line.

        configure("json")  # once, where the program starts
        configure("console", level=logging.WARNING)

    It configures structlog for the whole process: a program that does so itself, or sends its log elsewhere, does not
    call it. Lines that cannot be written are dropped, and stop no work.

    Args:
        log_format: `"console"` for people, coloured on a terminal; `"json"` for programs, with times in UTC.
        level: the least that is shown, as `logging` counts.
    """
    import structlog  # noqa: PLC0415 -- it takes longer to import than a command line may take to answer `--help`

    shown: list[Any]
    if log_format == "json":
        shown = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    else:
        shown = [
            structlog.dev.ConsoleRenderer(colors=_is_terminal(), exception_formatter=structlog.dev.plain_traceback)
        ]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=log_format == "json"),
            *shown,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _StandardError(),
        cache_logger_on_first_use=False,
    )


def _is_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, ValueError):
        return False

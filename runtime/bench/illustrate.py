"""Writes the page and the pictures of a result. Without matplotlib there is text only, and it says so."""

from __future__ import annotations

import os
from pathlib import Path

from ..usage_error import UsageError
from .page import page
from .results import Result

NO_MATPLOTLIB = "matplotlib is not installed; the extra `bench` has it"


def write_page(path: str, result: Result) -> str:
    """Write the page with all pictures; returns what to say about it.

    Raises:
        OSError: the file cannot be written.
    """
    try:
        from .pictures.draw import drawn, pictures  # noqa: PLC0415 -- matplotlib is an extra, and slow to import
    except ImportError:
        Path(path).write_text(page(result, {}, NO_MATPLOTLIB), encoding="utf-8")
        return f"{path}: without pictures: {NO_MATPLOTLIB}"
    svgs = {name: drawn(figure, "svg") for name, figure in pictures(result)}
    Path(path).write_text(page(result, svgs), encoding="utf-8")
    return f"{path}: {len(svgs)} pictures"


def write_pictures(directory: str, result: Result) -> str:
    """Write an SVG and a PNG of each question; returns what to say about it.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        from .pictures.draw import drawn, pictures  # noqa: PLC0415 -- as above
    except ImportError:
        return f"{directory}: no pictures: {NO_MATPLOTLIB}"
    count = 0
    for name, figure in pictures(result):
        Path(directory, f"{name}.svg").write_bytes(drawn(figure, "svg"))
        Path(directory, f"{name}.png").write_bytes(drawn(figure, "png"))
        count += 1
    return f"{directory}: {count} pictures, each as SVG and PNG"


def check_directory(option: str, directory: str) -> None:
    """Make the directory, and find out before minutes of measuring whether it can be written.

    Raises:
        UsageError: it cannot.
    """
    try:
        os.makedirs(directory, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{option}: {directory}: cannot be made: {error.strerror}") from None
    if not os.access(directory, os.W_OK | os.X_OK):
        raise UsageError(f"{option}: {directory}: cannot be written: Permission denied")

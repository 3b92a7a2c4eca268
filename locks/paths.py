"""The path of a session, checked where users pass it: whether it can name a file, and the same one from then on."""

from __future__ import annotations

import os

from .errors import InvalidSession

_POSIX = os.name == "posix"


def checked_path(path: str | os.PathLike[str]) -> str:
    """The path as text, in full: it leads to the same file when the program changes its directory later.

    Nothing in it is resolved: `..` and symbolic links are left to the system, and `~` is a name like any other.

    Raises:
        InvalidSession: it is empty, no text, or has a NUL or a lone surrogate in it; or it is relative, and there is no
            current directory any more.
    """
    if type(path) is str and path.startswith("/") and _POSIX and path.isascii() and "\0" not in path:
        return path  # the usual case, in short
    text: object = os.fspath(path) if isinstance(path, os.PathLike) else path
    if isinstance(text, str) and text and "\0" not in text:
        if text.isascii():
            return in_full("path", text)
        try:
            os.fsencode(text)
        except UnicodeEncodeError:
            pass
        else:
            return in_full("path", text)
    raise InvalidSession(
        f"path: {text!r:.80} cannot name a transcript; allowed: a non-empty str or PathLike of one, without NUL or lone"
        " surrogates"
    )


def in_full(field: str, path: str) -> str:
    """A path from the root, as it leads there now.

    Raises:
        InvalidSession: it is relative, and the current directory was removed, or is unknown.
    """
    if os.path.isabs(path):
        return path
    try:
        return os.path.join(os.getcwd(), path)
    except OSError as error:
        raise InvalidSession(
            f"{field}: {path!r:.80} is relative, and there is no current directory ({error.strerror or error}); "
            "allowed: an absolute path, or to change to a directory first"
        ) from error

"""Exceptions without frames: what a failed body held must be free the moment that the run has ended."""

from __future__ import annotations

_TRACEBACK_CHARS = 20_000


def scrub(error: BaseException) -> str:
    """Take the frames off an exception and all it refers to; returns its traceback as text."""
    import traceback  # noqa: PLC0415 -- it brings many others along, and a program may run long before a body fails

    try:
        text = "".join(traceback.format_exception(error, limit=-30))[-_TRACEBACK_CHARS:]
    except Exception as second:
        text = f"{type(error).__name__} (its traceback cannot be written: {second!r})"
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = None
        if isinstance(one, AttributeError):
            one.obj = None  # it may be the whole context of the run
        todo += (one.__cause__, one.__context__)
        if isinstance(one, BaseExceptionGroup):
            todo += one.exceptions
    return text


def copied(error: BaseException) -> BaseException:
    """A copy for each waiter: raising the outcome's own exception would hang the waiter's frames on it.

    Made without the class's `__init__`, whose arguments are not known.
    """
    kind = type(error)
    try:
        if isinstance(error, BaseExceptionGroup):
            again: BaseException = error.derive(error.exceptions)
        else:
            again = kind.__new__(kind, *error.args)
            again.args = error.args
        again.__dict__.update(error.__dict__)
    except Exception:
        return error.with_traceback(None)  # it cannot be copied: the waiters share it
    again.__cause__, again.__suppress_context__ = error.__cause__, error.__suppress_context__
    return again

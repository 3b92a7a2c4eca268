"""What users pass in, checked where they pass it: each refusal names the field, the value, and what is allowed.

All of it raises `ValueError`, of the wrong type or not: one thing to catch. Nothing was opened or created then.
"""

from __future__ import annotations

import math
from typing import Any

LARGEST_IDENTITY = 10**100 - 1


def seconds(field: str, value: Any) -> float:
    """A duration, perhaps infinite.

    Raises:
        ValueError: it is no number, negative or NaN.
    """
    if not _is_number(value) or not value >= 0:  # NaN is not
        raise ValueError(f"{field}: {value!r:.80} is no duration; allowed: seconds, 0 and more")
    return float(value)


def instant(field: str, value: Any) -> float:
    """An instant on the clock of this package, perhaps infinite.

    Raises:
        ValueError: it is no number or NaN.
    """
    if not _is_number(value) or math.isnan(value):
        raise ValueError(f"{field}: {value!r:.80} is no instant; allowed: a time of `time.monotonic`, in seconds")
    return float(value)


def flag(field: str, value: Any, *, none: bool = False, auto: bool = False) -> None:
    """Nothing but `True` and `False`: `"no"` would be taken for yes.

    Args:
        none: whether `None` is allowed as well.
        auto: whether `"auto"` is.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, bool) and not (none and value is None) and not (auto and value == "auto"):
        more = (", None" if none else "") + (", 'auto'" if auto else "")
        raise ValueError(f"{field}: {value!r:.80} is no flag; allowed: True, False{more}")


def whole_or_none(field: str, value: Any) -> None:
    """A number of things, or `None`.

    Raises:
        ValueError: it is something else, or negative.
    """
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise ValueError(f"{field}: {value!r:.80} is not allowed; allowed: None or a whole number, 0 and more")


def text_or_none(field: str, value: Any) -> None:
    """Words for people, or `None`.

    Raises:
        ValueError: it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{field}: {value!r:.80} is no text; allowed: a str or None")


def identity_or_none(field: str, value: Any) -> None:
    """What a host calls a run by, or `None`.

    Raises:
        ValueError: it is neither text nor a number that fits into a lock file.
    """
    if value is None or (isinstance(value, str) and value):
        return
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > LARGEST_IDENTITY:
        shown = f"{value!r:.80}" if not isinstance(value, int) or isinstance(value, bool) else "that number"
        raise ValueError(
            f"{field}: {shown} names no run; allowed: a whole number of up to 100 digits, a non-empty str, None"
        )


def instance_of(field: str, value: Any, kind: type, *, none: bool = False) -> None:
    """An object of a class of this package.

    Args:
        none: whether `None` is allowed as well.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(value, kind) and not (none and value is None):
        raise ValueError(
            f"{field}: {value!r:.80} is no {kind.__name__}; allowed: a {kind.__name__}{' or None' if none else ''}"
        )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

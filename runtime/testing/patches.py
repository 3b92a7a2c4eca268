"""Attributes that have another value for a while."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def replaced(owner: Any, name: str, value: object) -> Iterator[None]:
    """Inside, an attribute has another value. Of a class only its own attributes may be replaced."""
    before = vars(owner)[name]  # a class method as it was given, not bound
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)

"""The store that a command line names."""

from __future__ import annotations

from lanes import InvalidLane

from ..postgres.settings import PostgresStore
from ..usage_error import UsageError


def store_of(url: str, schema: str) -> PostgresStore:
    """The store of `--store` and `--schema`.

    Raises:
        UsageError: they name none.
    """
    try:
        store = PostgresStore(url, schema=schema)
        _ = store.name
    except InvalidLane as error:
        raise UsageError(str(error)) from None
    except ValueError as error:
        raise UsageError(f"--store: no URL ({error}); allowed: 'postgresql://user@host/database'") from None
    return store

"""What a supervisor is given to keep its sessions on PostgreSQL."""

from __future__ import annotations

import re
from dataclasses import KW_ONLY, dataclass, field
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from lanes import InvalidLane
from lanes.checks import is_utf8, seconds, shown, whole
from lanes.layout import check_key
from locks.checks import flag

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_SCHEMA = 40
LEAST_TTL_S = 0.2
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(:[0-9]*(?=$))?")
"""Of a URL, with its port: what else may stand behind the colon is half of a password."""


@dataclass(frozen=True, slots=True)
class PostgresStore:
    """Sessions, transcripts and accepted messages on PostgreSQL: `Supervisor(PostgresStore("postgresql://…"))`.

    Any number of processes with the same database and schema share the sessions: each session is conducted by one of
    them at a time. Needs `pip install session-lanes[postgres]`.

    Args:
        url: where the database is, as libpq reads it (`postgresql://user@host/database?sslmode=…`).
        schema: the schema with our tables, made by `lanes db init`.
        ttl: seconds for which a process may be silent. After `0.9 ttl` it gives up its sessions by itself, after
            `ttl + grace` others take them over.
        grace: seconds that others wait longer than that, by the clock of the server; by default a quarter of `ttl`.
        connections: how many it uses; at least 3: one writes, one keeps the process alive, the others answer questions
            and listen.
        notify: whether processes wake each other through the database; without, each looks twice a second.
        create: whether to make the schema when it is not there.

    Raises:
        InvalidLane: naming the field, its value and what is allowed.
    """

    url: str = field(repr=False)
    _: KW_ONLY
    schema: str = "lanes"
    ttl: float = 10.0
    grace: float | None = None
    connections: int = 4
    notify: bool = True
    create: bool = False

    def __post_init__(self) -> None:
        url: object = self.url
        if not isinstance(url, str) or not url.startswith(("postgresql://", "postgres://")):
            given = shown(url) if not isinstance(url, str) or "@" not in url else "what was given"
            raise InvalidLane(f"store, url: {given} is not allowed; allowed: 'postgresql://user@host/database'")
        if not is_utf8(url) or "\0" in url or not _has_parts(url):  # it may have a password, so it is not shown
            raise InvalidLane("store, url: what was given is no URL; allowed: 'postgresql://user@host/database'")
        if _ends_early(url):
            raise InvalidLane(
                "store, url: what was given has an @ where none can be; allowed: 'postgresql://user@host/database', "
                "with a password's own / ? # @ percent-encoded (%2F %3F %23 %40)"
            )
        schema: object = self.schema
        if not isinstance(schema, str) or not schema.isidentifier() or len(schema.encode()) > MAX_SCHEMA:
            raise InvalidLane(
                f"store, schema: {shown(schema)} is not allowed; allowed: a name of letters, digits and "
                f"underscores, of at most {MAX_SCHEMA} bytes"
            )
        if seconds("store, ttl", self.ttl) < LEAST_TTL_S:
            raise InvalidLane(f"store, ttl: {shown(self.ttl)} is not allowed; allowed: {LEAST_TTL_S} seconds or more")
        if self.grace is not None:
            seconds("store, grace", self.grace, zero=True)
        whole("store, connections", self.connections, 3)
        flag("store, notify", self.notify)
        flag("store, create", self.create)

    @property
    def grace_s(self) -> float:
        """Seconds past `ttl` after which a silent node is taken for dead."""
        return self.ttl / 4 if self.grace is None else self.grace

    @property
    def name(self) -> str:
        """Where it is, for errors and logs: without a password."""
        parts = parts_of(self.url)
        hosts = ",".join(_HOST.match(host)[0] for host in parts.hosts.split(","))  # type: ignore[index]  # it matches ""
        return f"{urlunsplit(('postgresql', hosts, parts.database, '', ''))}#{self.schema}"


class Parts(NamedTuple):
    """Of a URL, as libpq reads it: what is before the first `/` may have a user, whatever else stands there."""

    user: str
    """With its password."""
    hosts: str
    """With their ports, separated by commas."""
    database: str
    """With the slash before it."""
    query: str


def parts_of(url: str) -> Parts:
    """The parts of a URL. Not by `urlsplit`, which ends a password at a `?` or a `#`, where libpq reads on."""
    rest = url.partition("://")[2]
    user = rest.partition("/")[0].rpartition("@")[0]
    place, _, query = rest[len(user) :].removeprefix("@").partition("?")
    hosts, slash, database = place.partition("/")
    return Parts(user, hosts, slash + database, query)


def _has_parts(url: str) -> bool:
    try:
        urlsplit(url)
    except ValueError:  # half of a bracket, say
        return False
    return True


def _ends_early(url: str) -> bool:
    """Whether a `/`, a `?` or a `=` in a password seems to have ended it: half of it would be a host or a database."""
    user, _, database, query = parts_of(url)
    return "@" in database or "@" in query.partition("=")[0] or "=" in user.partition("?")[2]


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """From a session's key to its place in a store. As `SessionLayout`, without a directory."""

    root: str

    @property
    def is_own(self) -> bool:
        """Whether files have our own names: there are none."""
        return False

    def file_of(self, key: str) -> str:
        """The place of a session: what errors, logs and turns call it.

        Raises:
            InvalidSession: the key is not allowed.
        """
        return f"{self.root}/{check_key(key)}"

    def header_of(self, key: str) -> Mapping[str, object] | None:
        """There is no header: the row of a session says what it is."""
        return None

    def first_line_of(self, key: str, path: str) -> bytes | None:
        """As `header_of`."""
        return None

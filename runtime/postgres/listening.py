"""What other nodes say through notifications of the database, passed on to this process."""

from __future__ import annotations

import asyncio
from functools import partial

import psycopg
from psycopg import sql

from .connection import closed, raise_if_cancelled
from .link import LATEST_RETRY_S, Link
from .schema import channel_of


async def listen(link: Link) -> None:
    """Pass on what other nodes say, until it is cancelled. In the link's thread."""
    while True:
        connection: psycopg.AsyncConnection | None = None
        try:
            connection = await link.connect(" listens")
            await connection.execute(sql.SQL("listen {}").format(sql.Identifier(channel_of(link.store.schema))))
            async for note in connection.notifies():
                said = int(note.payload) if note.payload.lstrip("-").isdigit() else 0
                if said in (0, link.node, -link.node):
                    link.post(partial(link.on_hint, said))
        except (psycopg.Error, OSError) as error:
            raise_if_cancelled()
            link.troubled(error)
        finally:
            await closed(connection)
        await asyncio.sleep(LATEST_RETRY_S)

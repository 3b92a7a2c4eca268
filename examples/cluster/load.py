"""A load generator for gateways that share their sessions, behind a proxy or not.

    python -m examples.cluster.load http://localhost:8000

Each sender has a session, and sends it one message after the other, with an `Idempotency-Key` of its own. It sends a
message again, to the next gateway, until it is told what became of it: a gateway that is killed, drained or cut off
costs its senders time, and nothing else.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import anyio
import click
import httpx

_RETRY_S = 0.1
_GATEWAY_WITHIN_S = 15.0


@dataclass
class Sent:
    """A message, and what its sender was told of it."""

    key: str
    """The session."""
    dedupe: str
    begun: float = field(default_factory=time.monotonic)
    ids: set[int] = field(default_factory=set)
    """Under which numbers gateways have acknowledged it: one."""
    end: str = ""
    """`answered`, or the error that its sender was told; empty until then."""
    took_s: float = 0.0
    tries: int = 0


class Load:
    """Senders, until they are told to stop. On the event loop's thread.

    Args:
        urls: the gateways, or the proxy before them.
        think: seconds until a person sends the next message: the least and the most.
    """

    def __init__(
        self, urls: Sequence[str], *, senders: int, think: tuple[float, float] = (0.2, 0.6), seed: int = 0
    ) -> None:
        self.sent: list[Sent] = []
        self._urls, self._senders, self._think = list(urls), senders, think
        self._random, self._turn = random.Random(f"{seed}/load"), 0
        self._over = False

    def stop(self) -> None:
        """Send no further message; those that were sent are still waited for."""
        self._over = True

    async def run(self) -> None:
        """Send, until it is told to stop and each message has come to its end. A checkpoint."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=2 * self._senders)
        async with (
            httpx.AsyncClient(timeout=_GATEWAY_WITHIN_S, limits=limits) as client,
            anyio.create_task_group() as senders,
        ):
            for number in range(self._senders):
                senders.start_soon(self._send_all, client, f"user:{number}")

    async def _send_all(self, client: httpx.AsyncClient, key: str) -> None:
        number = 0
        while not self._over:
            await anyio.sleep(self._random.uniform(*self._think))
            number += 1
            one = Sent(key, f"{key}/{number}")
            self.sent.append(one)
            await self._send(client, one, f"message {number} of {key}")
            one.took_s = time.monotonic() - one.begun

    async def _send(self, client: httpx.AsyncClient, one: Sent, text: str) -> None:
        """Send a message until it is known what became of it."""
        while True:
            one.tries += 1
            self._turn += 1
            url = f"{self._urls[self._turn % len(self._urls)]}/sessions/{one.key}/messages"
            try:
                response = await client.post(url, json={"text": text}, headers={"Idempotency-Key": one.dedupe})
                told = response.json()
            except (httpx.TransportError, ValueError):  # no gateway there, or it died; a proxy says so without JSON
                await anyio.sleep(_RETRY_S)
                continue
            if isinstance(told.get("id"), int):
                one.ids.add(told["id"])
                if response.status_code != httpx.codes.ACCEPTED:
                    one.end = "answered" if response.is_success else str(told.get("error", told))
                    return
            elif response.is_client_error and response.status_code != httpx.codes.TOO_MANY_REQUESTS:
                one.end = f"refused: {told.get('message', told)}"
                return
            else:
                await anyio.sleep(_RETRY_S)

    def summary(self) -> str:
        """What has become of what was sent, on one line."""
        ends = Counter(one.end or "under way" for one in self.sent)
        return ", ".join(f"{number} {end}" for end, number in sorted(ends.items())) or "nothing sent"


@click.command()
@click.argument("urls", nargs=-1, required=True)
@click.option("--senders", default=12, show_default=True, type=click.IntRange(min=1), help="Sessions at the same time.")
@click.option("--seconds", default=30.0, show_default=True, type=click.FloatRange(min=0), help="How long they send.")
def main(urls: tuple[str, ...], senders: int, seconds: float) -> None:
    """Send messages to the gateways at URLS, and say each second what has become of them."""

    async def send() -> None:
        load = Load([url.rstrip("/") for url in urls], senders=senders)
        async with anyio.create_task_group() as beside:

            async def show() -> None:
                for second in range(1, 1 << 30):
                    await anyio.sleep(1)
                    click.echo(f"t={second}s  {load.summary()}")
                    if second >= seconds:
                        load.stop()

            beside.start_soon(show)
            await load.run()
            beside.cancel_scope.cancel()
        slowest = max((one.took_s for one in load.sent), default=0.0)
        again = sum(one.tries > 1 for one in load.sent)
        click.echo(f"{load.summary()}; {again} had to be sent again; the slowest took {slowest:.1f} s")

    anyio.run(send)


if __name__ == "__main__":
    main()

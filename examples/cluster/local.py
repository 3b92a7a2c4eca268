"""Three gateways on this machine that share their sessions, on a PostgreSQL of their own: killed, restarted, cut off.

    make cluster                    # or: python -m examples.cluster.local

It starts a database and three gateways, sends messages, and meanwhile

    kill       kills gateways with -9, one or two at a time, and starts each again, as a service manager does
    roll       restarts each in turn, as a new version is rolled out
    away       stops the database for some seconds

and then reads the database and says what has become of each message. Nothing needs to be installed, and nothing but
the logs of the gateways is left.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import click
import httpx

from examples.cluster.load import Load
from examples.cluster.verdict import NAMES, Verdict, is_open, judge, reading
from runtime.trial.postgres_server import PostgresServer

_READY_WITHIN_S, _SETTLED_WITHIN_S = 60.0, 60.0
_ROOT = Path(__file__).parents[2]
NODES = 3


@dataclass(frozen=True)
class Options:
    """What is to happen."""

    kills: float = 15.0
    """Seconds of kills."""
    roll: bool = True
    away: float = 5.0
    """Seconds without a database."""
    ttl: float = 2.0
    senders: int = 12
    seed: int = 1
    quiet: bool = False


@dataclass
class Gateway:
    """A gateway, which is started and killed again and again."""

    name: str
    port: int
    log: Path
    environment: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    state: str = "down"

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start its next process."""
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "examples.gateway"],
                cwd=_ROOT,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in a terminal is for this process, which ends them
            )
        self.state = "starts"

    async def ready(self, client: httpx.AsyncClient) -> None:
        """Wait until it takes work. A checkpoint."""
        with anyio.fail_after(_READY_WITHIN_S):
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await client.get(f"{self.url}/readyz")).status_code == httpx.codes.OK:
                        self.state = "up"
                        return
                if self.process is not None and self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} has ended by itself; its log: {self.log}")
                await anyio.sleep(0.05)

    def kill(self) -> None:
        """End it as a crash does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
        self.state = "killed"

    async def stop(self) -> None:
        """End it in good order, and wait for that. A checkpoint."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        self.state = "stops"
        while self.process.poll() is None:
            await anyio.sleep(0.02)


@dataclass
class Cluster:
    """What runs, and what has happened to it. On the event loop's thread."""

    options: Options
    server: PostgresServer
    gateways: list[Gateway]
    load: Load
    kills: int = 0
    rolled: int = 0
    away_s: float = 0.0
    phases: list[tuple[str, float]] = field(default_factory=list)
    """What was done, from when on."""

    async def play(self) -> None:
        """Do to it what the options say. A checkpoint."""
        async with httpx.AsyncClient(timeout=2.0) as client, anyio.create_task_group() as beside:
            for one in self.gateways:
                one.start()
            for one in self.gateways:
                await one.ready(client)
            beside.start_soon(self._show)
            async with anyio.create_task_group() as senders:
                senders.start_soon(self.load.run)
                self._phase("all is well")
                await anyio.sleep(1.5)
                if self.options.kills:
                    await self._kill(client)
                if self.options.roll:
                    await self._roll(client)
                if self.options.away:
                    await self._away(client)
                self.load.stop()
            await self._settle()
            beside.cancel_scope.cancel()

    def _phase(self, name: str) -> None:
        self.phases.append((name, time.monotonic()))

    async def _kill(self, client: httpx.AsyncClient) -> None:
        self._phase("kills")
        chance, until = random.Random(f"{self.options.seed}/kills"), time.monotonic() + self.options.kills
        while time.monotonic() < until:
            victims = chance.sample(self.gateways, chance.choice((1, 1, 2)))
            for one in victims:
                one.kill()
            self.kills += len(victims)
            await anyio.sleep(chance.uniform(0.0, 1.5 * self.options.ttl))  # some are back before the others take over
            for one in victims:
                one.start()
            for one in victims:
                await one.ready(client)
            await anyio.sleep(chance.uniform(0.0, self.options.ttl))
        await anyio.sleep(2 * self.options.ttl)  # the last kill shall not count for what comes now

    async def _roll(self, client: httpx.AsyncClient) -> None:
        self._phase("rolling restart")
        for one in self.gateways:
            await one.stop()
            one.start()
            await one.ready(client)
            self.rolled += 1
        await anyio.sleep(0.5)

    async def _away(self, client: httpx.AsyncClient) -> None:
        self._phase("no database")
        began = time.monotonic()
        await anyio.to_thread.run_sync(self.server.stop)
        for one in self.gateways:
            one.state = "up, no database"
        await anyio.sleep(self.options.away)
        await anyio.to_thread.run_sync(self.server.start)
        self.away_s = time.monotonic() - began
        for one in self.gateways:
            await one.ready(client)

    async def _settle(self) -> None:
        """Wait until nothing happens any more by itself, for a bounded time."""

        def still_open() -> bool:
            with reading(self.server.dsn) as connection:
                return is_open(connection)

        with anyio.move_on_after(_SETTLED_WITHIN_S):
            while await anyio.to_thread.run_sync(still_open):
                await anyio.sleep(0.2)

    async def _show(self) -> None:
        began = time.monotonic()
        while not self.options.quiet:
            await anyio.sleep(1)
            states = ", ".join(f"{one.name} {one.state}" for one in self.gateways)
            click.echo(f"t={time.monotonic() - began:.0f}s  {states}; {self.load.summary()}")

    def slowest(self) -> Iterator[tuple[str, float]]:
        """For each phase, the longest time that a sender has waited whose waiting ended in it."""
        for number, (name, begun) in enumerate(self.phases):
            end = self.phases[number + 1][1] if number + 1 < len(self.phases) else float("inf")
            waits = (one.took_s for one in self.load.sent if begun <= one.begun + one.took_s < end)
            yield name, max(waits, default=0.0)

    def report(self, found: Verdict) -> Iterator[str]:
        """What came of it, for people."""
        yield f"{'GREEN' if found.green else 'RED'} (seed {self.options.seed})"
        yield (
            f"  cluster      {len(self.gateways)} gateways: {self.kills} kills with -9, {self.rolled} restarted in "
            f"turn, {self.away_s:.1f} s without a database"
        )
        yield f"  senders      {self.load.summary()}; {sum(one.tries > 1 for one in self.load.sent)} asked again"
        yield f"  slowest      {', '.join(f'{name}: {took:.1f} s' for name, took in self.slowest())}"
        states = ", ".join(f"{number} {state}" for state, number in sorted(found.states.items()))
        yield f"  database     {sum(found.states.values())} messages: {states}; {found.records} records"
        wrong = ", ".join(f"{found.wrong[name]} {name.replace('_', ' ')}" for name in NAMES)
        yield f"  wrong        {wrong}"
        for complaint in found.complaints[:20]:
            yield f"    {complaint}"


@contextlib.asynccontextmanager
async def cluster(options: Options, directory: Path) -> AsyncIterator[Cluster]:
    """A database with our schema, and gateways that are not started yet. Afterwards nothing runs."""
    server = await anyio.to_thread.run_sync(PostgresServer)
    gateways: list[Gateway] = []
    try:
        url = server.tcp_dsn
        made = [sys.executable, "-c", "from runtime.cli import main; raise SystemExit(main(['db', 'init']))"]
        await anyio.run_process(made, cwd=_ROOT, env=os.environ | {"LANES_STORE": url}, stderr=None)
        for number, port in enumerate(_free_ports(NODES), 1):
            settings = {
                "LANES_STORE": url,
                "GATEWAY_NODE": f"gw-{number}",
                "GATEWAY_PORT": str(port),
                "GATEWAY_TTL": str(options.ttl),
                "GATEWAY_WAIT": "5",
                "GATEWAY_COMPACT_ABOVE": "1000000",  # the verdict reads every record
                "XDG_RUNTIME_DIR": str(directory),
            }
            gateways.append(Gateway(f"gw-{number}", port, directory / f"gw-{number}.log", os.environ | settings))
        load = Load([one.url for one in gateways], senders=options.senders, seed=options.seed)
        yield Cluster(options, server, gateways, load)
    finally:
        for one in gateways:
            one.kill()
        server.close()


def _free_ports(number: int) -> Sequence[int]:
    """Ports that are free now, and that no outgoing connection takes while nothing listens there."""
    found: set[int] = set()
    while len(found) < number:
        with socket.socket() as one, contextlib.suppress(OSError):
            port = random.randint(10_000, 31_999)
            one.bind(("127.0.0.1", port))
            found.add(port)
    return sorted(found)


async def run(options: Options, directory: Path) -> tuple[Cluster, Verdict]:
    """Play it, and judge what is left. A checkpoint."""
    async with cluster(options, directory) as one:
        await one.play()
        return one, await anyio.to_thread.run_sync(read, one)


def read(one: Cluster) -> Verdict:
    """The verdict on a database. Blocks."""
    with reading(one.server.dsn) as connection:
        return judge(connection, one.load.sent)


@click.command()
@click.option("--kills", default=15.0, show_default=True, type=click.FloatRange(min=0), help="Seconds of kills.")
@click.option("--roll/--no-roll", default=True, show_default=True, help="Restart each gateway in turn.")
@click.option(
    "--away", default=5.0, show_default=True, type=click.FloatRange(min=0), help="Seconds without a database."
)
@click.option(
    "--ttl", default=2.0, show_default=True, type=click.FloatRange(min=0.5), help="Of each gateway, in seconds."
)
@click.option("--senders", default=12, show_default=True, type=click.IntRange(min=1), help="Sessions at the same time.")
@click.option("--seed", default=1, show_default=True, help="Of kills and traffic.")
def main(**given: Any) -> None:
    """Three gateways that share their sessions: kill them, restart them, stop their database, and read what is left."""
    directory = Path(tempfile.mkdtemp(prefix="lanes-cluster-"))
    began = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        one, found = anyio.run(run, Options(**given), directory)
    except KeyboardInterrupt:
        click.echo("\ninterrupted: nothing is left running", err=True)
        sys.exit(130)
    for line in one.report(found):
        click.echo(line)
    click.echo(f"  took         {time.monotonic() - began:.0f} s; logs of the gateways: {directory}")
    sys.exit(0 if found.green else 1)


if __name__ == "__main__":
    main()

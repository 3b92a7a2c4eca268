"""A worker of `lanes bench` that knows bad peers, too."""

from __future__ import annotations

import contextlib
import os
import time

from runtime.bench import peers, worker
from runtime.bench.peers.interface import Peer


class _Bad:
    """Locks that do what a test asks of them when they are wanted."""

    def __init__(self, act):
        self._act = act

    @contextlib.asynccontextmanager
    async def hold(self, key):
        self._act()
        yield


def _raise():
    raise RuntimeError("the lock is broken")


def _leave_a_child_and_die():
    child = os.fork()
    if child == 0:
        time.sleep(600)
        os._exit(0)
    with open(os.environ["LEFT_CHILD"], "w") as file:
        file.write(str(child))
    os._exit(3)


def _peer(name, act):
    return Peer(name=name, kind="inside", make=lambda: _Bad(act), backends=("asyncio",), about=name)


LETS_ALL_IN = _peer("lets all in", lambda: None)
DIES = _peer("dies", lambda: os._exit(3))
LEAVES_A_CHILD = _peer("leaves a child", _leave_a_child_and_die)
RAISES = _peer("raises", _raise)
HANGS = _peer("hangs", lambda: time.sleep(60))
PRINTS = _peer("prints", lambda: os.write(1, b"noise "))

if __name__ == "__main__":
    peers.PEERS = (*peers.PEERS, LETS_ALL_IN, DIES, LEAVES_A_CHILD, RAISES, HANGS, PRINTS)
    worker.serve()

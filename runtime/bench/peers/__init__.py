"""All peers, in the order in which they are shown."""

from __future__ import annotations

from .between import BETWEEN
from .gateways import GATEWAYS
from .inside import INSIDE
from .interface import Kind, Peer
from .jobs import JOBS

PEERS: tuple[Peer, ...] = (*INSIDE, *BETWEEN, *JOBS, *GATEWAYS)


def peer_of(kind: Kind, name: str) -> Peer:
    """The peer of that kind and name; a name may be of several kinds.

    Raises:
        LookupError: there is none.
    """
    for peer in PEERS:
        if (peer.kind, peer.name) == (kind, name):
            return peer
    raise LookupError(f"no peer {name!r} of kind {kind!r}")

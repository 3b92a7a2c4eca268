"""Whole gateways, which play the stories of reports from production."""

from __future__ import annotations

from functools import partial
from typing import Any

from .interface import Peer


def _side(name: str) -> Any:
    from ..stories.sides import SIDES

    return SIDES[name]


GATEWAYS = (
    Peer(
        name="legacy",
        kind="gateway",
        make=partial(_side, "legacy"),
        backends=("asyncio",),
        about="a model of the gateways of the reports: a polling lock file, held for the whole run, no fence",
    ),
    Peer(
        name="lanes",
        kind="gateway",
        make=partial(_side, "lanes"),
        backends=("asyncio",),
        about="a Supervisor as shipped, with the handler that its documents recommend",
    ),
)

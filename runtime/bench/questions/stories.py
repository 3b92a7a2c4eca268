"""The stories of two reports from production: the same work for the legacy model and for this project."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from ..peers.interface import Backend, Peer
from ..stories.journal import Played
from ..stories.story import STORIES, Story
from .interface import Ask, Cell, NotMeasured, Question, Sample, Scale


def measure(peer: Peer, backend: Backend, *, story: str) -> Sample:
    """In the worker: play a side of a story, in a fresh process, for its memory would be that of the story before."""
    command = [sys.executable, "-m", "runtime.bench.stories.play", peer.name, story, backend]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise NotMeasured(f"its process ended: exit code {done.returncode}")
    played = msgspec.json.decode(done.stdout, type=Played)
    return Sample(played.figures, played=played)


def _question(story: Story) -> Question:
    def take(cell: Cell, ask: Ask, scale: Scale) -> Sample:
        return ask("stories:measure", story=story.name)

    return Question(
        name=story.name,
        title=story.title,
        unit="as the metric says",
        kind="gateway",
        take=take,
        seconds=2 * (1 + story.real_s(story.ends_at_s)),
        rounds=3,
    )


TOLD = tuple(_question(story) for story in STORIES.values())

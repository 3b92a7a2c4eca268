"""All questions, in the order in which they are asked and shown."""

from __future__ import annotations

from .contention import HANDOFF, PROCESSES, SHARES
from .cost import COST, FILE_COST
from .interface import Question
from .jobs import BACKLOG, JOB
from .keys import MEMORY, SESSIONS
from .stories import TOLD
from .waiters import WAITERS

QUESTIONS: tuple[Question, ...] = (
    COST,
    WAITERS,
    SESSIONS,
    MEMORY,
    FILE_COST,
    HANDOFF,
    SHARES,
    PROCESSES,
    JOB,
    BACKLOG,
    *TOLD,
)

"""All questions, in the order in which they are asked and shown."""

from __future__ import annotations

from .appends import MESSAGE_SIZE
from .contention import HANDOFF, PROCESSES, SHARES
from .cost import COST, FILE_COST
from .instructions import FILE_INSTRUCTIONS, INSTRUCTIONS, JOB_INSTRUCTIONS
from .interface import Question
from .jobs import BACKLOG, JOB, MESSAGE
from .keys import MEMORY, SESSIONS
from .recovery import RECOVERY, RECOVERY_INSIDE
from .stories import TOLD
from .waiters import WAITERS
from .waiting import LAG, WAITING

QUESTIONS: tuple[Question, ...] = (
    COST,
    WAITERS,
    SESSIONS,
    MEMORY,
    RECOVERY_INSIDE,
    INSTRUCTIONS,
    FILE_COST,
    HANDOFF,
    SHARES,
    PROCESSES,
    RECOVERY,
    WAITING,
    LAG,
    MESSAGE_SIZE,
    FILE_INSTRUCTIONS,
    JOB,
    MESSAGE,
    BACKLOG,
    JOB_INSTRUCTIONS,
    *TOLD,
)

"""Tests of handlers: virtual time, a supervisor in it, fake models, and checks that cancel and crash everywhere.

`docs/testing.md` shows how. The code is in `runtime.testing`, above the supervisor that it drives; this module is the
name by which users know it, and nothing of the product imports it. It does not need pytest; with pytest, the fixture
`virtual_time` is there by itself.
"""

from runtime.testing.alone import run, virtual_time
from runtime.testing.cancelling import cancel_everywhere
from runtime.testing.crashing import crash_everywhere
from runtime.testing.errors import NotVirtual, Stuck
from runtime.testing.handlers import Handled, context, run_handler
from runtime.testing.models import FakeModel
from runtime.testing.played import Fault, HandlerFault, Played
from runtime.testing.recorder import Recorded, Recorder
from runtime.testing.supervisor import SupervisorUnderTest, advance, supervisor
from runtime.testing.transcripts import assert_transcript
from runtime.testing.virtual import VirtualClock

__all__ = [
    "FakeModel",
    "Fault",
    "Handled",
    "HandlerFault",
    "NotVirtual",
    "Played",
    "Recorded",
    "Recorder",
    "Stuck",
    "SupervisorUnderTest",
    "VirtualClock",
    "advance",
    "assert_transcript",
    "cancel_everywhere",
    "context",
    "crash_everywhere",
    "run",
    "run_handler",
    "supervisor",
    "virtual_time",
]

for _name in __all__:
    globals()[_name].__module__ = __name__
del _name

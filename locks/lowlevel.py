"""The schedulers' face: what a scheduler of runs needs of this package besides what users need."""

from .paths import in_full as in_full
from .rights.arbiter import Arbiter as Arbiter
from .rights.deadlock import AnyOf as AnyOf
from .rights.deadlock import name_of as name_of
from .rights.deadlock import never_ending as never_ending
from .rights.fence import current_fence as current_fence
from .rights.open_file import FileClaim as FileClaim
from .sidecar.guards import conductor_of as conductor_of
from .transcript.encoding import encode_all as encode_all
from .transcript.encoding import encode_header as encode_header
from .transcript.header import HEADER_KEY as HEADER_KEY
from .transcript.lines import NoRecord as NoRecord
from .transcript.lines import decode as decode
from .transcript.records import OnError as OnError
from .transcript.store import FileStore as FileStore
from .transcript.store import TranscriptStore as TranscriptStore

"""The functions of the database: each does one thing whole or not at all, and can be called again after a lost answer.

`{s}` stands for the schema. The rules that all of them keep:

- what concerns a session locks the row of the session first, so everything of one session happens in an order;
- `pending` counts the open messages (accepted or started) of a session exactly: a session with some is conducted;
- a message of no session has a place of its own, `m:<number>`, and is claimed like a session;
- a node may change what belongs to a session only while its own id is the owner: a node that was reaped cannot.

READ COMMITTED: each statement within a function sees what was committed before it began.

PostgreSQL keeps the plan of a statement for as long as a connection lives, also one that was made when the tables were
small. So each of them is written such that an index is the only way (`= any(array(…))` where `in (…) or …` would read
the whole table, the owner of a message's place as a question of its own, no join), and a test counts the rows it reads.

What a program calls stays for as long as the form of the schema does, with its arguments and its result: programs of an
earlier step still call it, some of them with plans of before. What takes or returns something else has another name, or
another number of arguments, and no default for them, else neither is found (`schema`).

    tables        what they work on
    sessions      which node conducts a session, and nodes that end
    messages      accepted messages
    asks          questions to persons
    transcripts   records, and write leases
    commands      what one node asks of others
"""

from .asks import ASKS
from .commands import COMMANDS
from .messages import MESSAGES
from .sessions import SESSIONS
from .tables import TABLES
from .transcripts import TRANSCRIPTS

__all__ = ["FUNCTIONS", "TABLES"]

FUNCTIONS = SESSIONS + MESSAGES + ASKS + TRANSCRIPTS + COMMANDS

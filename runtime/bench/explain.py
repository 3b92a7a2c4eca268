"""What each question asks, in two sentences, and why a peer is faster where one is. For the page and the documents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple


class Explained(NamedTuple):
    """The text of a question."""

    asks: str = ""
    why: str = ""
    """Why some peers are faster, and what they leave out for it; or what decides, where none is."""


CHOICES: Mapping[str, str] = {
    "Tasks of one process that need nothing but exclusion": (
        "a bare lock, asyncio.Lock or anyio.Lock. It costs a fraction of a lease [cost]. A dictionary of them never "
        "forgets a key [memory]; asyncio-keyed-lock does."
    ),
    "Processes that may block, and run for themselves": (
        "flock, also by way of portalocker with blocking flags. Nothing is faster [handoff]. It has no time limit and "
        "no order of arrival, and it stops an event loop."
    ),
    "Event loops in several processes": (
        "leases. The other file locks look again after a fixed time, so their handoff is tens of milliseconds, and "
        "some processes get the lock far more often than others [shares]."
    ),
    "A run that may hang, fail or be cancelled while it holds a session": (
        "lanes. A lock that only the code that took it gives back is not given back then [recovery]. Two stories play "
        "that with a model of a gateway whose users lost messages by it [story-86004] [story-86014]."
    ),
}
"""What to choose for which situation. A name in brackets is a question that shows it."""


def explained(question: str) -> Explained:
    """The text of a question; an empty one for a question that has none."""
    return _TEXTS.get(question, Explained())


_TEXTS: Mapping[str, Explained] = {
    "cost": Explained(
        "One task takes a lock that is free and gives it back, in a loop. This is what every message pays when nobody "
        "else wants its session.",
        "Every peer is faster. A lease checks that the session's file is still the same, has an owner, a deadline that "
        "is enforced from outside the event loop, an epoch that appends are checked against, and a cancel scope; a "
        "bare lock has none of these, and a lock in a dictionary is never removed from it.",
    ),
    "file-cost": Explained(
        "The same between processes: the lock is taken where other processes can see it. Nobody else wants it.",
        "flock and its wrappers open, lock and close a file. A lease asks for waiting processes' tickets as well, "
        "checks that the path still leads to the file that it has locked, and, by default, writes and removes the lock "
        "file that other gateways read; lanes-no-lock-file leaves that out.",
    ),
    "waiters": Explained(
        "So many tasks of one process want one lock, and each holder suspends once while it has it. What one handoff "
        "takes is the time of all of them, divided by their number.",
        "A bare lock wakes the next task and no more. Each claim on a lease can be named, cancelled, superseded, "
        "given a deadline and looked at for deadlocks, and costs an object for it.",
    ),
    "handoff": Explained(
        "Processes take one file's lock again and again and hold it for a millisecond. Counted is how long nobody has "
        "it, from one process's release to the next one's entry.",
        "flock is the floor: the kernel wakes the next process itself. Of the locks that do not stop an event loop, "
        "most look again after a fixed time, and that time is their handoff; a lease wakes the next waiter with a "
        "datagram.",
    ),
    "shares": Explained(
        "Eight processes want the lock all the time. Counted is how evenly they get it, and how much longer than the "
        "median wait the longest one was.",
        "A lock without a queue goes to whoever looks first, so some processes get it many times as often as others. "
        "Leases are granted in order of arrival, in all processes.",
    ),
    "processes": Explained(
        "How often in a second the lock is held, for a millisecond each, by one to sixteen processes that all want it. "
        "At best that is a little below 1,000.",
        "flock wakes the next process in the kernel, without a queue that is fair. A lease gives up some of that for "
        "order of arrival and for waiting that does not block the event loop.",
    ),
    "sessions": Explained(
        "One task takes the free locks of so many sessions in turn, after each has been used once. A lock whose "
        "registry keeps every key, or searches for one, would get slower from left to right.",
        "Nothing here grows with the number of sessions, so the order is that of `cost`. A lock in a dictionary is the "
        "fastest because it never removes a key, which `memory` shows.",
    ),
    "memory": Explained(
        "How many bytes a key has left behind when nobody holds it any more, and how many it takes while it is held. "
        "A gateway meets new sessions for as long as it runs, so what a key leaves behind is a leak.",
        "A lock in a dictionary is small, and stays for ever. A lease leaves nothing behind; while it is held it takes "
        "more, for its owner, deadline, scope and place in the queue.",
    ),
    "job": Explained(
        "A job that does nothing is started, and its end is waited for, one after the other. This is what the runtime "
        "adds to each message apart from locks.",
        "A task group starts a task and no more. A run has a deadline and a grace, an outcome that is kept, a place in "
        "a fair queue, and an exception of it ends nothing else.",
    ),
    "message": Explained(
        "A message of one session is answered by one line that is appended to the session's file, one after the "
        "other. This is the whole path of a gateway's message, apart from the model.",
        "The peers keep answers of one session apart in their own process only, by a lock in a dictionary, and open, "
        "write and close the file. A run on a session's lane has the session's turn in all processes, a deadline, a "
        "kept outcome, and an append that is checked and refused once the run has ended.",
    ),
    "backlog": Explained(
        "So many jobs are submitted at once to what runs one of them at a time; the time of all is divided by their "
        "number. It stays the same for every size where the bookkeeping does not grow with the backlog.",
        "For a task group the jobs are tasks that wait for a lock. A lane keeps a queued run without a task, but "
        "starts a task for each when its turn comes, with deadline and outcome.",
    ),
    "recovery": Explained(
        "The process that holds a lock raises, runs past its time, ignores its cancellation, is killed (`kill -9`) or "
        "stands still; another process waits. Counted is how long after that the waiter has the lock, if it has it "
        "at all: from the failure, or from a lock's own limit and grace where it has one.",
        "A kernel lock is free as soon as its process is dead, and a waiter in the kernel is woken at once; a file "
        "that only exists is still there. A deadline that holds although the process stands still is what only a "
        "lease has, since another thread keeps it.",
    ),
    "recovery-inside": Explained(
        "In one process, the task that holds a lock raises, runs past its time or ignores its cancellation, and "
        "another task waits. Counted is how long after that the waiter has the lock, if it has it at all.",
        "An exception and a cancellation give back any lock that is a context manager. Only a lease is taken away from "
        "a task that ignores its cancellation, at its limit and grace.",
    ),
    "instructions": Explained(
        "The machine instructions of `cost`, counted by callgrind: the same on a busy machine and on an idle one. "
        "They leave out what the kernel does.",
        "The same holds as for `cost`: a lease has more to check and to keep than a bare lock.",
    ),
    "file-instructions": Explained(
        "The machine instructions of `file-cost`, counted by callgrind. They leave out what the kernel does, which is "
        "most of what a bare file lock costs.",
        "The same holds as for `file-cost`; in Python a lease does more than a wrapper around one system call.",
    ),
    "job-instructions": Explained(
        "The machine instructions of `job`, counted by callgrind. They are the same on a busy machine.",
        "The same holds as for `job`: a run has a deadline, an outcome and a place in a queue.",
    ),
    "waiting": Explained(
        "64 tasks wait for 64 locks that another process holds. Counted is the CPU time that their process takes "
        "meanwhile.",
        "A thread that waits in the kernel takes no time, but each waiter needs a thread. A lock that looks again and "
        "again pays for each look of each waiter; here one task looks for all, and less often the longer it lasts.",
    ),
    "lag": Explained(
        "While those 64 tasks wait, a timer of the same event loop is measured. It is late by as much as the waiting "
        "keeps the loop busy.",
        "Waiting in threads leaves the loop alone, as long as there are enough threads. Looking again on the loop "
        "itself takes turns from all others.",
    ),
    "message-size": Explained(
        "A line of JSON is appended to a shared file under the lock, small and large ones. A peer that is only a lock "
        "is used with a plain `write`.",
        "For small lines a plain write is faster: it does not check that the file is still the same, that its last "
        "line is whole, and that the run may still write. For large ones only the encoder and the disk are left.",
    ),
    "story-86004": Explained(
        "The report openclaw#86004, played at 200 times its speed: a model call ignores its cancellation while two "
        "lanes write to its session. The legacy model is what that gateway did, its time limits included.",
        "The legacy lock may be held for 17 minutes and waited for for one, so everything that comes after the "
        "timeout is lost until the watchdog takes the lock file away, without telling the holder, which writes on. "
        "Here a run ends at its deadline and grace, whatever its body does, and its late write is refused.",
    ),
    "story-86014": Explained(
        "The report openclaw#86014, played at 300 times its speed: one run times out, a later one fails, and both "
        "leave their lock behind. Its pid is alive, so nothing may clean it up.",
        "The legacy lock is given back in the last line of a run, which an exception and a cancellation skip. Here "
        "the lease belongs to the run's scope: nothing ends the run without ending the lease.",
    ),
}

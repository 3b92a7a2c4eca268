"""The server of the status socket: a thread beside the event loop, so that there is an answer also when that is frozen.

One daemon thread serves all connections through a selector, and waits neither for a client (an answer is bounded, and
is sent when the socket takes it) nor for the loop. A question is posted to the loop, which answers all that have come
in one call; when it does not in time, the thread answers that, and where the loop stands.

A question is answered once, by the loop or by the thread, whichever claims it first. So an order of which the operator
knows that a frozen loop kept it from being carried out is not carried out when the loop goes on.

Bounds: connections, bytes of a question, one answer a connection at a time, seconds for a client to read it and to ask
again. Time is that of the sockets and of this thread, hence real, also where tests stop the clock of the three floors.

Rejected: a server on the event loop, for which a framework would do (silent exactly when it is needed); a thread a
connection (a hundred idle clients, a hundred threads).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections import deque
from contextvars import Context
from functools import partial
from types import FrameType
from typing import Any, Literal
from weakref import WeakSet

from locks import _os
from locks._events import described, log
from locks._loop import know_loop, poster

from ..background import Background
from ..watch.frames import frame_of, is_idle, name_of, place_of, run_of, stack_text
from . import links, protocol, socket_path
from .connection import Asked, Client
from .handlers import Handlers, Supervised, directory_of, pong, refused
from .protocol import text

MOST_CONNECTIONS = 50
PATIENCE_S = 0.5
"""What the loop gets to answer; also what makes it count as blocked."""
LONG_PATIENCE_S = 5.0
"""The same, while it runs no code: then it is the machine that does not come to it."""
_LOOK_S = 0.05
_CHUNK = 64 * 1024
_ACCEPT_AGAIN_S = 0.5
_JOIN_S = 5.0

_open: WeakSet[StatusServer] = WeakSet()


class StatusServer:
    """Answers on a Unix socket what a supervisor does, and takes orders to stop, drain and restart.

    `open` and `close` belong to the event loop's thread; both are plain functions that are quickly over.

    Args:
        given: where the socket is to be: a path, or `True` for the default place.
        sup: the supervisor that it answers for.
    """

    def __init__(self, given: str | os.PathLike[str] | Literal[True], sup: Supervised) -> None:
        self._given = given
        self.path = ""
        """Of the socket, once it is open."""
        self._sup = sup
        self._listener: socket.socket | None = None
        self._identity = (0, 0)
        self._link = ""
        self._thread: threading.Thread | None = None
        self._loop_thread = 0
        self._closing = False
        self._clients: dict[int, Client] = {}
        self._accept_at = 0.0
        self._strangers: set[int] = set()
        # Shared with the loop: deques, whose `append` and `popleft` are single steps.
        self._asked: deque[Asked] = deque()
        self._answered: deque[Asked] = deque()
        self._posted = False

    def __repr__(self) -> str:
        state = "closed" if self._listener is None else f"{len(self._clients)} connections"
        return f"<StatusServer at {self.path}: {state}>"

    # On the loop's thread

    def open(self) -> None:
        """Listen, and answer from now on.

        Raises:
            StatusSocketError: the path cannot be used, or is taken. Nothing is left open, what is there is left alone.
            OSError: the process has no descriptors left. Nothing is left open.
        """
        if self._listener is not None or self._closing:
            raise RuntimeError(f"a status server is opened once: {self!r}")
        self.path = socket_path.path_for(socket_path.in_full(self._given))
        with contextlib.ExitStack() as undo:
            listener = undo.enter_context(socket_path.listen(self.path))
            there = os.lstat(self.path)
            self._identity = (there.st_dev, there.st_ino)
            undo.callback(self._unlink)
            with _os.standard_streams_taken():
                self._selector = undo.enter_context(selectors.DefaultSelector())
                self._wakeup, self._waker = socket.socketpair()
            undo.enter_context(self._wakeup)
            undo.enter_context(self._waker)
            for one in (self._wakeup, self._waker):
                one.setblocking(False)
            for one in (self._wakeup, listener):
                self._selector.register(one, selectors.EVENT_READ)
            self._handlers, self._post, self._loop_thread = Handlers(self._sup), poster(), threading.get_ident()
            self._context = Context()
            know_loop(self._context)  # what an answer starts on the loop must know which loop that is
            self._listener = listener
            undo.callback(setattr, self, "_listener", None)
            self._link = links.make(directory_of(self._sup), self.path)
            thread = threading.Thread(target=self._serve, name="lanes-status", daemon=True)
            thread.start()
            self._thread = thread
            undo.pop_all()
        _open.add(self)

    def close(self) -> None:
        """Answer no more: hang up, remove the socket if it is still this one's, end the thread. Calling it again is
        harmless."""
        listener, thread, self._listener = self._listener, self._thread, None
        self._closing = True
        if listener is None or thread is None:
            return
        _open.discard(self)
        self._handlers.close()
        self._unlink()  # while it still listens: a process may replace a socket that refuses connections
        self._wake()
        thread.join(_JOIN_S)
        if thread.is_alive():
            log("status_failed", level="error", error=f"the thread of {self.path} does not end")
            return  # what it uses stays open: another file would soon have the descriptor's number
        self._let_go(listener)

    def _let_go(self, listener: socket.socket) -> None:
        for client in self._clients.values():
            client.connection.close()
        self._clients.clear()
        self._selector.close()
        for one in (listener, self._wakeup, self._waker):
            one.close()

    def _unlink(self) -> None:
        with contextlib.suppress(OSError):
            there = os.lstat(self.path)
            if (there.st_dev, there.st_ino) == self._identity:
                links.remove(self._link)
                os.unlink(self.path)

    def _answer(self) -> None:
        """Answer all that is asked. One picture serves all that ask for one."""
        self._posted = False  # first: what is asked from here on is either seen below or posted again
        pictures: dict[protocol.Status, protocol.Answer] = {}
        for _ in range(len(self._asked)):  # what comes meanwhile is for the next call: no client may keep the loop busy
            asked = self._asked.popleft()
            if self._closing or not asked.claim():
                continue  # its client has the answer that the loop is frozen
            if isinstance(asked.question, protocol.Status):
                found = pictures.get(asked.question) or self._handlers.answer(asked.question, asked.client.peer)
                asked.answer = pictures[asked.question] = found
            elif isinstance(asked.question, protocol.Slow):
                name = f"answer to {asked.client.peer}"
                Background().start(partial(self._see_to, asked, asked.question), name, context=self._context.copy())
                continue
            else:
                asked.answer = self._handlers.answer(asked.question, asked.client.peer)
            self._tell(asked)

    async def _see_to(self, asked: Asked, question: protocol.Slow) -> None:
        """Answer what a disk or a database is asked for; a background task."""
        asked.answer = await self._handlers.work.see_to(question, asked.client.peer)
        self._tell(asked)

    def _tell(self, asked: Asked) -> None:
        self._answered.append(asked)
        self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(OSError):  # a byte waits already
            self._waker.send(b"!")

    # On the thread

    def _serve(self) -> None:
        while not self._closing:
            try:
                for key, _ in self._selector.select(self._wait_s()):
                    self._look_at(key.fd)
                self._pass_on()
                self._look_around()
            except Exception as error:
                self._log("status_failed", level="error", error=described(error))
                time.sleep(_LOOK_S)  # no failure may keep this thread busy

    def _wait_s(self) -> float | None:
        if any(client.asked is not None for client in self._clients.values()):
            return _LOOK_S
        due = [client.due for client in self._clients.values()]
        if self._accept_at:
            due.append(self._accept_at)
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _look_at(self, descriptor: int) -> None:
        if descriptor == self._wakeup.fileno():
            with contextlib.suppress(BlockingIOError):
                self._wakeup.recv(_CHUNK)
        elif (client := self._clients.get(descriptor)) is not None:
            self._attend(client)
        else:
            self._accept()

    def _attend(self, client: Client) -> None:
        """Read or write what there is, and go on with what that makes possible."""
        try:
            if client.unsent:
                client.unsent = client.unsent[client.connection.send(client.unsent) :]
            elif client.is_idle and not client.at_end:
                data = client.connection.recv(_CHUNK)
                client.received += data
                client.at_end = not data
        except BlockingIOError:
            pass  # not yet: it is waited for
        except OSError:  # it is gone
            self._hang_up(client)
            return
        self._go_on(client)

    def _go_on(self, client: Client) -> None:
        while client.is_idle and not client.last and (line := client.line()) is not None:
            self._take(client, line)
        if client.is_idle and not client.last and len(client.received) > protocol.LONGEST_LINE:
            self._last_words(client, "bad_question", f"the line is longer than {protocol.LONGEST_LINE} bytes")
        if client.is_over:
            self._hang_up(client)
        else:
            self._watch(client)

    def _take(self, client: Client, line: bytes) -> None:
        """Take a question, to be answered here or by the loop."""
        try:
            if len(line) > protocol.LONGEST_LINE:
                raise protocol.BadQuestion(f"the line is longer than {protocol.LONGEST_LINE} bytes")
            question = protocol.question_of(line)
        except protocol.BadQuestion as error:
            client.reply(refused("bad_question", str(error), error.field))
            return
        if isinstance(question, protocol.Ping):
            client.reply(protocol.Answer(pong=pong(self._sup)))
            return
        client.asked = Asked(question, client)
        self._asked.append(client.asked)
        if not self._posted:  # one call is under way at most, however long the loop is frozen and however many ask
            self._posted = True
            self._post(partial(self._context.run, self._answer))

    def _pass_on(self) -> None:
        """Pass on what the loop has answered."""
        while self._answered:
            asked = self._answered.popleft()
            if asked.client.asked is asked and asked.answer is not None:
                self._reply(asked.client, asked.answer)

    def _reply(self, client: Client, answer: protocol.Answer) -> None:
        client.reply(answer)
        self._attend(client)  # most often the socket takes it at once

    def _last_words(self, client: Client, kind: protocol.Kind, message: str) -> None:
        client.reply(refused(kind, message))
        client.last = True

    def _look_around(self) -> None:
        now = time.monotonic()
        for client in list(self._clients.values()):
            if client.asked is not None:
                self._see_whether_frozen(client, client.asked, now)
            elif now >= client.due:
                self._hang_up(client)
        if self._accept_at and now >= self._accept_at and self._listener is not None:
            self._accept_at = 0.0
            self._selector.register(self._listener, selectors.EVENT_READ)

    def _see_whether_frozen(self, client: Client, asked: Asked, now: float) -> None:
        waited = now - asked.at
        blocked = self._sup.watchdog.blocked()
        frame = None if blocked is not None else frame_of(self._loop_thread)
        if blocked is None and waited < (LONG_PATIENCE_S if frame is None or is_idle(frame) else PATIENCE_S):
            return
        if not asked.claim():
            if waited >= LONG_PATIENCE_S:
                begun = f"the event loop has begun to answer, and is not through after {waited:.0f} s"
                self._reply(client, refused("failed", f"{begun}: it may be done, and may not"))
            return
        if blocked is not None:
            for_s, where, stack, run = blocked.for_s, blocked.place, blocked.stack, blocked.run
        else:
            for_s, where, stack, run = waited, place_of(frame), stack_text(frame), _run_named(frame)
        frozen = protocol.Frozen(
            pid=os.getpid(),
            sessions=directory_of(self._sup),
            for_s=for_s,
            place=text(where),
            stack=protocol.stack_text(stack),
            run=text(run),
        )
        self._reply(client, protocol.Answer(frozen=frozen))

    def _accept(self) -> None:
        listener = self._listener
        if listener is None:
            return
        try:
            with _os.standard_streams_taken():  # what the program prints is no answer
                connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            # No descriptors are left. It stays readable, so look away for a moment.
            self._selector.unregister(listener)
            self._accept_at = time.monotonic() + _ACCEPT_AGAIN_S
            self._log("status_failed", level="warning", error=described(error))
            return
        connection.setblocking(False)
        peer = socket_path.peer_of(connection)
        client = Client(connection, "unknown" if peer is None else f"pid {peer.pid}, user {peer.uid}")
        self._clients[connection.fileno()] = client
        if not socket_path.is_allowed(peer):
            self._note_stranger(peer)
            self._last_words(client, "not_allowed", f"only user {os.geteuid()} and root may ask")
        elif len(self._clients) > MOST_CONNECTIONS:
            message = f"{MOST_CONNECTIONS} connections are open, which is the most; try again later"
            self._last_words(client, "too_many", message)
        self._attend(client)

    def _note_stranger(self, peer: socket_path.Peer | None) -> None:
        if peer is not None and peer.uid not in self._strangers and len(self._strangers) < MOST_CONNECTIONS:
            self._strangers.add(peer.uid)
            self._log("status_refused", level="warning", uid=peer.uid, pid=peer.pid)

    def _log(self, event: str, **fields: Any) -> None:
        """On the loop's thread: a host's log handler that blocks must not make this thread deaf."""
        self._post(partial(log, event, **fields))

    def _watch(self, client: Client) -> None:
        connection, wanted = client.connection, client.wants
        known = self._selector.get_map().get(connection.fileno())
        if known is None and wanted:
            self._selector.register(connection, wanted)
        elif known is not None and not wanted:
            self._selector.unregister(connection)
        elif known is not None and known.events != wanted:
            self._selector.modify(connection, wanted)

    def _hang_up(self, client: Client) -> None:
        descriptor = client.connection.fileno()
        if self._clients.pop(descriptor, None) is None:
            return
        client.asked, client.last = None, True
        if descriptor in self._selector.get_map():
            self._selector.unregister(client.connection)
        client.connection.close()


def _run_named(frame: FrameType | None) -> str:
    try:
        return name_of(run_of(frame))
    except Exception:
        return ""  # it looks into the user's variables, and no other answer is left to give


def _after_fork() -> None:
    # Only the forking thread lives on in the child, which must not keep the parent's socket open: as long as it did,
    # the kernel would queue connections for a parent that is dead. The file is the parent's. The selector is closed
    # without unregistering anything: it is one object with the parent's.
    for server in list(_open):
        listener, server._listener, server._closing = server._listener, None, True
        if listener is not None:
            server._let_go(listener)
    _open.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

"""A network that fails on demand: what goes through in each mode, and what each end gets to know."""

from __future__ import annotations

import socket
import socketserver
import threading
import time
from collections.abc import Iterator

import pytest

from runtime.trial.cut_proxy import CutProxy
from tests.poll import eventually_sync

PATIENCE_S = 60.0


class Echo(socketserver.ThreadingTCPServer):
    """Sends back what it gets, and remembers it."""

    daemon_threads = True

    def __init__(self) -> None:
        self.seen = b""
        self.ended: list[str] = []
        super().__init__(("127.0.0.1", 0), EchoHandler)


class EchoHandler(socketserver.BaseRequestHandler):
    server: Echo

    def handle(self) -> None:
        try:
            while data := self.request.recv(65536):
                self.server.seen += data
                self.request.sendall(data)
            self.server.ended.append("eof")
        except ConnectionResetError:
            self.server.ended.append("reset")


@pytest.fixture
def echo() -> Iterator[Echo]:
    with Echo() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[CutProxy]:
    with CutProxy(echo.server_address[1]) as proxy:
        yield proxy


@pytest.fixture
def client(proxy: CutProxy) -> Iterator[socket.socket]:
    with connect(proxy) as client:
        client.sendall(b"hello")
        assert client.recv(100) == b"hello"
        yield client


def connect(proxy: CutProxy) -> socket.socket:
    """A new connection through the proxy."""
    return socket.create_connection(("127.0.0.1", proxy.port), PATIENCE_S)


def says_nothing(client: socket.socket) -> bool:
    """Whether the connection is open, and there is nothing to read from it."""
    client.setblocking(False)
    try:
        client.recv(100)
    except BlockingIOError:
        return True
    finally:
        client.settimeout(PATIENCE_S)
    return False


def test_it_passes_on_the_end_of_a_connection_after_all_that_came_before(echo, proxy):
    data = b"0123456789" * 100_000
    with connect(proxy) as client:

        def send() -> None:
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        got = b"".join(iter(lambda: client.recv(65536), b""))
        sender.join()
    assert got == data
    assert echo.ended == ["eof"]
    eventually_sync(lambda: proxy.connections == 0)


def test_what_is_held_arrives_once_the_cut_is_healed(echo, proxy, client):
    proxy.hold("down")
    client.sendall(b"held")
    eventually_sync(lambda: echo.seen == b"helloheld")
    assert says_nothing(client)
    proxy.pass_on()
    assert client.recv(100) == b"held"


def test_a_cut_tells_neither_end(echo, proxy, client):
    proxy.hold()
    client.sendall(b"last")
    client.close()
    with connect(proxy) as other:
        assert says_nothing(other)
        assert (echo.seen, echo.ended) == (b"hello", [])
        proxy.pass_on()
        eventually_sync(lambda: echo.ended)
    assert echo.seen == b"hellolast"


def test_an_answer_that_was_swallowed_never_comes_and_the_connection_stays_dead(echo, proxy, client):
    proxy.swallow("down")
    client.sendall(b"lost")
    eventually_sync(lambda: proxy.dead == 1)
    assert echo.seen == b"hellolost"
    proxy.pass_on()
    client.sendall(b"more")
    with connect(proxy) as other:
        other.sendall(b"new")
        assert other.recv(100) == b"new"
        assert says_nothing(client)
        assert echo.seen == b"hellolostnew"
        assert echo.ended == []
        client.close()
        eventually_sync(lambda: echo.ended == ["reset"])


def test_what_is_delayed_comes_later_by_that_much(proxy, client):
    proxy.delay(0.05)
    began = time.monotonic()
    client.sendall(b"late")
    assert client.recv(100) == b"late"
    assert time.monotonic() - began >= 0.1


def test_a_reset_is_an_error_at_both_ends_until_it_passes_on_again(echo, proxy, client):
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        client.recv(100)
    eventually_sync(lambda: echo.ended == ["reset"])
    with pytest.raises(ConnectionResetError), connect(proxy) as other:  # the connect may see it already
        other.recv(100)
    proxy.pass_on()
    with connect(proxy) as other:
        other.sendall(b"new")
        assert other.recv(100) == b"new"


def test_without_a_server_connections_are_reset(echo):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        with CutProxy(unused.getsockname()[1]) as proxy, pytest.raises(ConnectionResetError), connect(proxy) as client:
            client.recv(100)


def test_closed_while_it_holds_it_resets_what_is_open(echo, proxy, client):
    proxy.hold()
    client.sendall(b"held")
    proxy.close()
    proxy.close()
    with pytest.raises(ConnectionResetError):
        client.recv(100)

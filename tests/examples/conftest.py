"""What the tests of this folder share: a program that is started and stopped, and a server that answers it.

The frameworks are in the extra `frameworks`, which `.ci/run` installs. Without one, its tests are skipped by name; with
`LANES_CI` set they fail.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pytest

from tests import ROOT

LIMIT_S = 60.0


def needs(module: str) -> None:
    """Skip the calling test module if a framework is not installed; with `LANES_CI`, fail."""
    if importlib.util.find_spec(module) is not None:
        return
    why = f"{module} is not installed; allowed: make .venv/.frameworks"
    if os.environ.get("LANES_CI"):
        pytest.fail(why, pytrace=False)
    pytest.skip(why, allow_module_level=True)


@contextmanager
def program(name: str, directory: Path, *arguments: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """An example as a process of its own, in a directory; what it says goes to `said` there. Left, it is killed."""
    with (directory / "said").open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", f"examples.{name}", *arguments],
            cwd=directory,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | environment,
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=said,
        )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def interrupted(process: subprocess.Popen[bytes], number: signal.Signals = signal.SIGINT) -> int:
    """Do what Ctrl-C does; returns the exit code."""
    process.send_signal(number)
    return process.wait(LIMIT_S)


def said(directory: Path) -> str:
    """What the program has written."""
    return (directory / "said").read_text("utf-8")


class Api(ThreadingHTTPServer):
    """An HTTP API: each call is `method(fields)`, and is answered by what `answer` returns for it, as JSON."""

    daemon_threads = True

    def __init__(self, answer: Callable[[str, dict[str, Any]], Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Call)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.answer = answer
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def called(self, method: str) -> list[dict[str, Any]]:
        """The calls of a method, so far."""
        return [fields for name, fields in list(self.calls) if name == method]

    @contextmanager
    def running(self) -> Iterator[Api]:
        """Serve, in a thread."""
        thread = threading.Thread(target=self.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield self
        finally:
            self.shutdown()
            self.server_close()
            thread.join()


class _Call(BaseHTTPRequestHandler):
    server: Api

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
        is_json = "json" in self.headers.get("content-type", "")
        fields = json.loads(body or "{}") if is_json else dict(parse_qsl(body))
        method = self.path.rpartition("/")[2]
        self.server.calls.append((method, fields))
        answer = json.dumps(self.server.answer(method, fields)).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base's name
        """Into no test's output."""

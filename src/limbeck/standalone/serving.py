"""The small server of `limbeck play`: this machine alone, one secret address, answers from the main thread.

Requirements that shaped it: other pages in the same browser must neither read nor act (a random token in the path, the
Host and Origin headers checked); environments draw and hang, so they stay in the main thread, where the watchdog is,
while threads speak HTTP; nothing but the standard library.
"""

from __future__ import annotations

import errno
import hmac
import json
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from limbeck.errors import InputError, printable

HOST = "127.0.0.1"
MOST_BYTES = 1 << 20  # of one question
Answer = Callable[[Mapping[str, Any]], Mapping[str, Any]]


@dataclass(frozen=True)
class _Question:
    name: str
    body: Mapping[str, Any]
    reply: queue.Queue[tuple[int, Mapping[str, Any]]] = field(default_factory=lambda: queue.Queue(1))
    sent: threading.Event = field(default_factory=threading.Event)  # the reply is on its way


class Server:
    """One page and the questions it asks, each answered by a function of its JSON object."""

    def __init__(self, page: str, security: str, answers: Mapping[str, Answer], port: int = 0) -> None:
        if not 0 <= port <= 65535:
            raise InputError(f"--port {port} is out of range. Allowed: 0 (any free one) to 65535.")
        self._answers, self._questions = answers, queue.Queue[_Question]()
        self._token = secrets.token_urlsafe(16)
        self._ended = threading.Event()
        site = _Site(page.encode(), security, self._token, frozenset(answers), self._questions, self._ended)
        try:
            self._server = _HTTPServer(site, port)
        except OSError as error:
            taken = "is taken" if error.errno == errno.EADDRINUSE else f"cannot be opened: {printable(error.strerror)}"
            raise InputError(f"port {port} of {HOST} {taken}. Choose another with --port, or 0 for any.") from error
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}/{self._token}/"

    def answer(self, seconds: float) -> bool:
        """Answer one question that comes within so many seconds; whether one came.

        A question that cannot be answered (InputError) is told to the page; a fault of the environment too, then raised.
        """
        try:
            asked = self._questions.get(timeout=seconds)
        except queue.Empty:
            return False
        try:
            asked.reply.put((200, self._answers[asked.name](asked.body)))
        except InputError as error:
            asked.reply.put((400, {"error": str(error)}))
        except BaseException as error:
            asked.reply.put((500, {"error": str(error) or "limbeck play has ended."}))
            asked.sent.wait(1.0)  # the server ends now, the page should still read why
            raise
        return True

    def close(self) -> None:
        self._ended.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@dataclass(frozen=True)
class _Site:
    page: bytes
    security: str
    token: str
    names: frozenset[str]
    questions: queue.Queue[_Question]
    ended: threading.Event

    def ask(self, asked: _Question) -> tuple[int, Mapping[str, Any]]:
        """The main thread's answer: it takes as long as it takes, the watchdog looks after it."""
        self.questions.put(asked)
        while not self.ended.is_set():
            try:
                return asked.reply.get(timeout=0.2)
            except queue.Empty:
                continue
        return 503, {"error": "limbeck play has ended: start it again, then open its new address."}


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, site: _Site, port: int) -> None:
        self.site = site
        super().__init__((HOST, port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    """One connection of a browser; `server` is the site's."""

    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    timeout = 3600  # a connection that says nothing ends; a page that is paused says nothing
    wbufsize = 1 << 16  # head and body in one packet: in two, the second waits 40 ms for the first one's receipt
    disable_nagle_algorithm = True

    def do_GET(self) -> None:  # the base class's name
        if (name := self._admitted()) is None:
            return
        if name:
            self._say(404, b"no such page", "text/plain")
        else:
            self._say(200, self.server.site.page, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        if (name := self._admitted()) is None:
            return
        body = self._body() if name in self.server.site.names else None
        if body is None:
            self._tell(400, {"error": "no such question"})
            return
        asked = _Question(name, body)
        self._tell(*self.server.site.ask(asked))
        self.wfile.flush()
        asked.sent.set()

    def _admitted(self) -> str | None:
        """What lies below the secret address; None where the request was turned away."""
        port = self.connection.getsockname()[1]
        hosts = [f"{host}:{port}" for host in (HOST, "localhost")]
        origin = self.headers.get("Origin")
        _, token, name = [*self.path.split("/", 2), "", ""][:3]
        known = hmac.compare_digest(token.encode(), self.server.site.token.encode())
        if self.headers.get("Host") in hosts and known and origin in (None, *(f"http://{host}" for host in hosts)):
            return name
        self._say(403, b"forbidden", "text/plain")
        return None

    def _body(self) -> Mapping[str, Any] | None:
        length = self.headers.get("Content-Length", "")
        if not length.isascii() or not length.isdigit() or int(length) > MOST_BYTES:
            return None
        if self.headers.get_content_type() != "application/json":  # what other pages may send without asking is not
            return None
        try:
            body = json.loads(self.rfile.read(int(length)))
        except ValueError:
            return None
        return body if isinstance(body, dict) else None

    def _tell(self, status: int, told: Mapping[str, Any]) -> None:
        self._say(status, json.dumps(told, allow_nan=False).encode(), "application/json")

    def _say(self, status: int, content: bytes, kind: str) -> None:
        self.close_connection = self.close_connection or status != 200  # what was not read is no next request
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("Content-Security-Policy", f"{self.server.site.security}; frame-ancestors 'none'")
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(content)

    def handle(self) -> None:
        """A browser that goes away is no event."""
        try:
            super().handle()
        except ConnectionError:
            self.close_connection = True

    def log_message(self, format: str, *arguments: Any) -> None:  # the base class's name
        """The address holds the secret: nothing is written down."""

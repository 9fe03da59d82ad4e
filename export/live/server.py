"""The web server of the live page: who may connect, how much they may send, and what they are sent. Runs without torch.

It listens on this machine only unless told otherwise, and then asks for a token. Browsers let any page open a WebSocket
to this machine, so requests must name this server as their host (or another site's name could be pointed here) and as
their origin. The event loop waits for nobody: each stream works in a thread, what a slow page does not take is dropped,
and who takes nothing, says nothing, or says too much is let go. Nothing is written to disk.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import threading
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.resources import files
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI, WebSocket
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from export.live.protocol import MAX_TEXT, Hello, parse_command, unpack_picture
from export.live.session import LiveBundle, LiveSession
from fastv2v.errors import ConfigError, DataError

log = logging.getLogger(__name__)

LOOPBACK: Final = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""

REFUSED, TOO_BIG, TRY_LATER = 1008, 1009, 1013
"""Codes with which a connection is closed: broke a rule; sent too much; the server is full."""

_GOODBYE_S: Final = 2.0
_FILES: Final = {
    "/": ("live.html", "text/html; charset=utf-8"),
    "/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/live.css": ("live.css", "text/css; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob:; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Who may connect, and how much they may send."""

    host: str = "127.0.0.1"
    """Address to listen on; by default only this machine reaches it. 0.0.0.0 for all networks, with a token then."""
    port: int = 8000
    """Port to listen on."""
    max_clients: int = 2
    """Streams at the same time; who comes later is told to wait."""
    max_connections: int = 64
    """Connections at the same time, with those that have not said hello yet."""
    max_message_bytes: int = 2_097_152
    """Largest message that is taken."""
    messages_per_s: float = 200.0
    """Messages that a client may send a second, over a few seconds; who sends more is let go."""
    bytes_per_s: float = 33_554_432.0
    """Bytes that a client may send a second, likewise."""
    hello_timeout_s: float = 5.0
    """Seconds in which a client must say hello, with the token where there is one."""
    send_timeout_s: float = 10.0
    """Seconds for which a client may take nothing of what it is sent."""
    queue: int = 12
    """Frames that wait for a slow client; the oldest is dropped for the newest."""

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65_535:
            raise ConfigError(f"port lies in 1 to 65535, got {self.port}")
        counts = (self.max_clients, self.max_connections, self.queue, self.max_message_bytes // 1024)
        amounts = (self.messages_per_s, self.bytes_per_s, self.hello_timeout_s, self.send_timeout_s)
        if min(counts) < 1 or not all(0 < amount < float("inf") for amount in amounts):
            raise ConfigError(f"limits are positive, and a message has 1024 bytes or more, got {self}")

    @property
    def is_local(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK


class Outbox:
    """Messages on their way from a session's thread to a connection; never more than a few.

    Args:
        loop: of the connection.
        most: frames that wait at most.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop, self._most = loop, most
        self._lock = threading.Lock()
        self._frames: deque[bytes] = deque()
        self._texts: deque[str] = deque()
        self._there = asyncio.Event()
        self.dropped = 0
        """Messages that were dropped because the client was slower."""

    def put(self, message: bytes | str) -> None:
        """Leave a message, from any thread; the oldest of its kind is dropped where there are too many."""
        with self._lock:
            waiting: deque[bytes] | deque[str] = self._frames if isinstance(message, bytes) else self._texts
            if len(waiting) >= (self._most if isinstance(message, bytes) else 4 * self._most):
                waiting.popleft()
                self.dropped += 1
            waiting.append(message)  # type: ignore[arg-type]
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._there.set)

    async def get(self) -> bytes | str:
        """The next message; texts go first."""
        while True:
            with self._lock:
                if self._texts:
                    return self._texts.popleft()
                if self._frames:
                    return self._frames.popleft()
                self._there.clear()
            await self._there.wait()


class Allowance:
    """How much a client may still send: what it did not use is saved up for two seconds.

    Args:
        per_s: how much a second.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s, self._left, self._since = per_s, 2 * per_s, time.monotonic()

    def take(self, amount: float) -> bool:
        """Use some; False where there is not so much."""
        now = time.monotonic()
        self._left = min(2 * self._per_s, self._left + (now - self._since) * self._per_s)
        self._since = now
        if amount > self._left:
            return False
        self._left -= amount
        return True


class _OnlyHere:
    """Refuses requests that name another host, and WebSockets that a page of another origin opened."""

    def __init__(self, app: ASGIApp, config: ServerConfig) -> None:
        self._app, self._config = app, config

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        problem = foreign(headers.get(b"host"), headers.get(b"origin"), self._config)
        if problem is None:
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            log.warning("refused a connection: %s", problem)
            await receive()
            await send({"type": "websocket.close", "code": REFUSED, "reason": problem})  # before it was accepted: 403
        else:
            await PlainTextResponse(problem + "\n", status_code=403, headers=_HEADERS)(scope, receive, send)


def foreign(host: str | None, origin: str | None, config: ServerConfig) -> str | None:
    """Why a request is not for this server or from its page; None where it may pass.

    Args:
        host: its header Host.
        origin: its header Origin; programs other than browsers send none.
        config: where the server listens.
    """
    name = _name_of(f"//{host}") if host else None
    if name is None:
        return "a request names its host"
    if config.is_local and name not in LOOPBACK:
        return "this page is for this machine only; open it as http://localhost"
    if origin is not None and urlsplit(origin).netloc.lower() != (host or "").lower():
        return "only the page of this server may connect to it"
    return None


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


class LiveServer:
    """Serves the page of one bundle.

    Args:
        bundle: what is run.
        config: who may connect.
        token: what a client must know; needed where others than this machine reach the server.

    Raises:
        ConfigError: if it is needed and there is none.
    """

    def __init__(self, bundle: LiveBundle, config: ServerConfig | None = None, token: str | None = None) -> None:
        self.bundle, self.config, self.token = bundle, config or ServerConfig(), token
        if not self.config.is_local and not token:
            raise ConfigError(f"on {self.config.host} others reach the server, so it needs a token")
        self._sessions: set[LiveSession] = set()
        self._connections = 0
        folder = files("export.live") / "static"
        self._pages = {
            path: Response((folder / name).read_bytes(), media_type=kind, headers=_HEADERS)
            for path, (name, kind) in _FILES.items()
        }
        self._hello = bundle.describe()

    @property
    def num_clients(self) -> int:
        """Streams that run now."""
        self._sessions = {session for session in self._sessions if session.is_running}
        return len(self._sessions)

    def app(self) -> ASGIApp:
        """The application, for any ASGI server."""

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            for session in list(self._sessions):
                await asyncio.to_thread(session.close)

        pages = [Route(path, self._page, methods=["GET"]) for path in self._pages]
        routes: list[BaseRoute] = [*pages, WebSocketRoute("/stream", self._connection)]
        app = FastAPI(routes=routes, openapi_url=None, docs_url=None, redoc_url=None, lifespan=lifespan)
        return _OnlyHere(app, self.config)

    async def _page(self, request: Request) -> Response:
        """One of the page's files, which were read at the start."""
        return self._pages[request.url.path]

    async def _connection(self, socket: WebSocket) -> None:
        """One WebSocket from its beginning to its end."""
        await socket.accept()
        if self._connections >= self.config.max_connections:
            await _let_go(socket, TRY_LATER, "the server has too many connections; try again later")
            return
        self._connections += 1
        try:
            await self._stream(socket)
        finally:
            self._connections -= 1

    async def _stream(self, socket: WebSocket) -> None:
        problem = await self._greeting(socket)
        if problem is not None:
            await _let_go(socket, REFUSED, problem)
            return
        if self.num_clients >= self.config.max_clients:
            limit = self.config.max_clients
            await _let_go(
                socket, TRY_LATER, f"the server runs {limit} streams already; close another page and try again"
            )
            return
        outbox = Outbox(asyncio.get_running_loop(), self.config.queue)
        outbox.put(json.dumps(self._hello))
        session = LiveSession(self.bundle, outbox.put)
        session.start()
        self._sessions.add(session)
        try:
            await self._exchange(socket, session, outbox)
        finally:
            session.close(wait_s=0)  # it ends by itself; until it has, its place is taken

    async def _greeting(self, socket: WebSocket) -> str | None:
        """Wait for the hello of a client; what is wrong with it."""
        try:
            async with asyncio.timeout(self.config.hello_timeout_s):
                message = await socket.receive()
        except TimeoutError:
            return f"nothing was said within {self.config.hello_timeout_s:g} seconds"
        text = message.get("text")
        try:
            command = parse_command(text) if text is not None and len(text) <= MAX_TEXT else None
        except DataError:
            command = None
        if not isinstance(command, Hello):
            return "the first message must be hello"
        if self.token is not None and not secrets.compare_digest((command.token or "").encode(), self.token.encode()):
            return "the token is wrong; open the address that fastv2v live printed"
        return None

    async def _exchange(self, socket: WebSocket, session: LiveSession, outbox: Outbox) -> None:
        """Pass messages both ways until either side ends."""
        tasks = [
            asyncio.create_task(self._take(socket, session)),
            asyncio.create_task(self._send(socket, outbox)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            ending = task.result()
            if ending is not None:
                await _let_go(socket, *ending)

    async def _take(self, socket: WebSocket, session: LiveSession) -> tuple[int, str] | None:
        """Take what a client sends; why it is let go, or None where it went."""
        messages, volume = Allowance(self.config.messages_per_s), Allowance(self.config.bytes_per_s)
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                return None
            data, text = message.get("bytes"), message.get("text")
            size = len(data) if data is not None else len(text or "")
            if size > self.config.max_message_bytes:
                return TOO_BIG, f"a message has at most {self.config.max_message_bytes} bytes"
            if not messages.take(1) or not volume.take(size):
                return REFUSED, "too much was sent at once; send less"
            try:
                if data is not None:
                    session.give(unpack_picture(data))
                else:
                    session.tell(parse_command(text or ""))
            except DataError as error:
                return REFUSED, str(error)

    async def _send(self, socket: WebSocket, outbox: Outbox) -> tuple[int, str] | None:
        """Send what a session says; None where the client is gone or takes nothing."""
        while True:
            message = await outbox.get()
            sending = socket.send_bytes(message) if isinstance(message, bytes) else socket.send_text(message)
            try:
                # Not wait_for: before Python 3.12 it may swallow a cancellation that comes as the sending ends.
                async with asyncio.timeout(self.config.send_timeout_s):
                    await sending
            except TimeoutError:
                log.warning("a client took nothing for %g seconds and was let go", self.config.send_timeout_s)
                return None
            except (RuntimeError, OSError):  # closed in the middle: what Starlette and uvicorn raise then
                return None


async def _let_go(socket: WebSocket, code: int, reason: str) -> None:
    """Close a connection and say why, if it is still there."""
    try:
        async with asyncio.timeout(_GOODBYE_S):
            await socket.send_text(json.dumps({"type": "error", "message": reason, "final": True}))
            # A reason has at most 123 bytes.
            await socket.close(code, reason.encode()[:120].decode(errors="ignore"))
    except (TimeoutError, RuntimeError, OSError):
        log.debug("a client was gone before it was let go: %s", reason)


def new_token() -> str:
    """A token that cannot be guessed."""
    return secrets.token_urlsafe(24)

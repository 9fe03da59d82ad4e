"""uvicorn for the live page, with an end for clients that open a connection and then stall. Runs without torch.

uvicorn waits for ever for a request that was begun, and for a client that takes none of what is left to send, and it
answers any number of pings. Each costs little, but many of them fill the room for connections, or the memory.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from export.live.server import Allowance, ServerConfig

_LINGER_S: Final = 5.0
_CONTROL_PER_S: Final = 20.0


class _Prompt(H11Protocol):
    """Ends connections that bring no whole request within some seconds."""

    patience_s: float

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._before: object = None
        self.loop.call_later(self.patience_s, self._look)

    def _look(self) -> None:
        if self.transport.is_closing() or self.transport.get_protocol() is not self:
            return  # gone, or a WebSocket by now
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and self.cycle is self._before:
            self.transport.abort()
            return
        self._before = self.cycle
        self.loop.call_later(self.patience_s, self._look)


class _Bounded(WebSocketsSansIOProtocol):
    """Ends connections that flood with what the application never sees, and forgets what is not taken in the end."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._control = Allowance(_CONTROL_PER_S)

    def handle_ping(self) -> None:
        if self._may_go_on():
            super().handle_ping()

    def handle_pong(self, event: Frame) -> None:
        if self._may_go_on():
            super().handle_pong(event)

    def handle_cont(self, event: Frame) -> None:
        # Parts without content add up too, as a list of nothings.
        if event.data or self._may_go_on():
            super().handle_cont(event)

    def _may_go_on(self) -> bool:
        if self._control.take(1):
            return True
        self.transport.abort()
        return False

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            # A closed transport first sends what waits, and a client that takes nothing would keep it for ever.
            self.loop.call_later(_LINGER_S, self.transport.abort)


def web_server(
    app: ASGIApp, config: ServerConfig, *, certificate: Path | None = None, key: Path | None = None
) -> uvicorn.Server:
    """A web server that is not running yet.

    Args:
        app: ``LiveServer.app()``.
        config: where to listen, and the limits.
        certificate: of a https page, a PEM file; with ``key``.
        key: its private key.
    """
    http = type("PromptProtocol", (_Prompt,), {"patience_s": config.hello_timeout_s})
    return uvicorn.Server(
        uvicorn.Config(
            app,
            host=config.host,
            port=config.port,
            http=http,
            ws=_Bounded,
            log_level="warning",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=5,
            limit_concurrency=4 * config.max_connections,
            ws_max_size=config.max_message_bytes,
            ws_ping_interval=10.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,
            ssl_certfile=certificate,
            ssl_keyfile=key,
        )
    )

"""The server: uvicorn on a socket of ours, which can go away for a while and stops at once."""

import asyncio
import socket
import sys
from collections.abc import Coroutine
from types import FrameType
from typing import Any, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from embedded_directory.api import api
from embedded_directory.control import build_control
from embedded_directory.directory import Directory
from embedded_directory.gateway import Gateway
from embedded_directory.settings import Settings


class DirectoryProtocol(HttpToolsProtocol):
    """Speaks HTTP, and puts its transport into each request's scope for the faults."""

    def on_message_begin(self) -> None:
        """Begin a request."""
        super().on_message_begin()
        cast(dict[str, Any], self.scope)["transport"] = self.transport

    def on_response_complete(self) -> None:
        """End a request; from here the connection is idle."""
        gateway = cast(Gateway, self.config.app)
        self.timeout_keep_alive = gateway.directory.settings.keep_alive_seconds  # type: ignore[assignment]
        super().on_response_complete()


class DirectoryServer(uvicorn.Server):
    """Uvicorn, as the host of a directory."""

    def __init__(self, gateway: Gateway) -> None:
        super().__init__(
            uvicorn.Config(
                gateway,
                http=DirectoryProtocol,
                loop="uvloop",
                ws="none",
                lifespan="off",
                log_level="warning",
                access_log=False,
                proxy_headers=False,
            )
        )
        gateway.host = self
        self.directory = gateway.directory
        self._address = ("", 0)
        self._back_at = 0.0
        self._coming_back: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[object]] = set()

    def start(self, host: str, port: int) -> None:
        """Listen, say so on standard output, and serve until a signal; raise OSError when the port is taken."""
        with bind(host, port) as first:
            self._address = (host, first.getsockname()[1])
            # On Linux a socket that is bound and does not listen keeps the port ours while connections are refused.
            self.run([bind(*self._address) if sys.platform == "linux" else first])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to listen."""
        await super().startup(sockets)
        host, port = self._address
        name = f"[{host}]" if ":" in host else host
        sys.stdout.write(f"Embedded Hospital Directory on http://{name}:{port}\n")
        sys.stdout.flush()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Stop at a signal, with exit status 0: uvicorn would end itself by the same signal."""
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop now, whatever is in flight: there is nothing to save."""
        self._stop_listening()
        while self.server_state.connections:
            self._close_connections()
            await asyncio.sleep(0.01)

    async def go_away(self, seconds: float) -> None:
        """Close every connection, and refuse new ones for ``seconds``."""
        loop = asyncio.get_running_loop()
        if seconds:
            self._back_at = max(self._back_at, loop.time() + seconds)
            self._coming_back = self._coming_back or loop.create_task(self._come_back())
            self._stop_listening()
            await asyncio.sleep(0.01)  # the socket is closed by the loop's next turn: only then nobody gets in
        self._close_connections()

    def in_background(self, work: Coroutine[Any, Any, object]) -> None:
        """Do something that no caller waits for."""
        task = asyncio.get_running_loop().create_task(work)
        self._work.add(task)  # the loop itself keeps no hold of a task
        task.add_done_callback(self._work.discard)

    async def _come_back(self) -> None:
        """Listen again on the same port, when it is time."""
        loop = asyncio.get_running_loop()
        while (seconds := self._back_at - loop.time()) > 0:
            await asyncio.sleep(seconds)
        listener = bind(*self._address)
        self.servers = [await loop.create_server(self._protocol, sock=listener, backlog=self.config.backlog)]
        self._coming_back = None

    def _protocol(self) -> DirectoryProtocol:
        return DirectoryProtocol(self.config, self.server_state, self.lifespan.state)

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    def _close_connections(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def bind(host: str, port: int) -> socket.socket:
    """Return a socket bound to an address, not listening yet."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    bound = socket.socket(family, kind, protocol)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(address)
    return bound


def serve(settings: Settings) -> None:
    """Run an embedded directory until a signal ends it."""
    directory = Directory(settings)
    gateway = Gateway(directory, api, build_control(directory))
    DirectoryServer(gateway).start(settings.host, settings.port)

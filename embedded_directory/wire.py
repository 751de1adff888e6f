"""One call and its connection, down to the bytes: what a fault needs and ASGI alone does not offer."""

import asyncio
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from fastapi import Response
from fastapi.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedded_directory.directory import Call

_LINGER_NOT_AT_ALL = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Answer:
    """A whole HTTP answer."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of(cls, response: Response) -> "Answer":
        """Take over a response that is complete."""
        return cls(response.status_code, response.raw_headers, bytes(response.body))

    @classmethod
    def plain(cls, status: int, retry_after: int | None = None) -> "Answer":
        """Return a bare answer such as a server or its proxy gives for an error."""
        headers = None if retry_after is None else {"retry-after": str(retry_after)}
        return cls.of(PlainTextResponse(phrase(status), status, headers))

    def head(self) -> bytes:
        """Return status line and headers as they go over the wire, for a connection that is closed afterwards."""
        lines = [b"HTTP/1.1 %d %s" % (self.status, phrase(self.status).encode())]
        lines += [b"%s: %s" % header for header in self.headers]
        return b"\r\n".join([*lines, b"connection: close", b"", b""])


class Exchange:
    """A call whose body has arrived, its connection, and the API that would answer it."""

    def __init__(self, call: Call, api: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        self.call = call
        self._api = api
        self._scope = scope
        self._receive = receive
        self._send = send
        self._body = b""
        self._transport: asyncio.Transport = scope["transport"]

    async def read_body(self) -> bytes:
        """Read the whole body of the request; faults come after it, as they do behind a proxy."""
        more = True
        while more:
            message = await self._receive()
            self._body += message.get("body", b"")
            more = message.get("more_body", False)
        return self._body

    async def perform(self) -> Answer:
        """Let the call take full effect and return the answer instead of sending it."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self._run(keep)
        body = b"".join(message.get("body", b"") for message in messages)
        return Answer(messages[0]["status"], messages[0]["headers"], body)

    async def pass_on(self) -> None:
        """Let the API answer as if nothing was wrong."""
        await self._run(self._send)

    async def answer(self, answer: Answer) -> None:
        """Answer as any server would."""
        await self._send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await self._send({"type": "http.response.body", "body": answer.body})

    async def write(self, pieces: Iterable[bytes], seconds: float = 0) -> None:
        """Write bytes to the socket, pausing ``seconds`` after each piece, for as long as somebody listens."""
        for piece in pieces:
            if self._transport.is_closing():
                return
            self._transport.write(piece)
            await asyncio.sleep(seconds)

    async def close(self, *, reset: bool = False) -> None:
        """Close the connection, with a TCP reset if asked, and wait until it is closed."""
        if reset and not self._transport.is_closing():
            connection: socket.socket = self._transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT_AT_ALL)
            self._transport.abort()
        self._transport.close()
        await self.gone()

    async def gone(self) -> None:
        """Wait until the connection is closed by either side."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def _run(self, send: Send) -> None:
        messages: list[Message] = [{"type": "http.request", "body": self._body, "more_body": False}]

        async def receive() -> Message:
            return messages.pop() if messages else {"type": "http.disconnect"}

        await self._api(self._scope, receive, send)


def phrase(status: int) -> str:
    """Return the words that go with a status, or nothing when it has none."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""

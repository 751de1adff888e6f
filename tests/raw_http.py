"""Requests that no HTTP library would send: bytes over a socket, and what came back."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer, shaped as those of requests as far as tests look at one."""

    status_code: int
    headers: HTTPMessage
    text: str

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.text)


def send(url: str, request: bytes, *, end: bool = False) -> RawAnswer:
    """Send these bytes to the server of `url` and read its answer, which may come before all are sent.

    With `end` nothing more is sent after them; the server is told so.
    """
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=10) as connection:
        try:
            connection.sendall(request)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered and hung up; its answer is still there to be read
        response = HTTPResponse(connection)
        response.begin()
        return RawAnswer(response.status, response.headers, response.read().decode())


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A POST with these header lines, and a `Content-Length` unless the body is chunked."""
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if not any(line.lower().startswith("transfer-encoding") for line in headers):
        lines.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def chunked(body: bytes, size: int = 65_536) -> bytes:
    """The body in chunks of that size."""
    chunks = (body[start : start + size] for start in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"

"""Requests that no HTTP library would send: bytes over a socket, and what came back."""

from __future__ import annotations

import io
import json
import socket
import struct
import time
from dataclasses import dataclass
from http.client import HTTPMessage, HTTPResponse, parse_headers
from typing import Any
from urllib.parse import urlsplit

from tests.patience import PATIENCE


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
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as connection:
        try:
            connection.sendall(request)
            if end:
                connection.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it has answered and hung up; its answer is still there to be read
        response = HTTPResponse(connection)
        response.begin()
        return RawAnswer(response.status, response.headers, response.read().decode())


def reset_after(url: str, request: bytes) -> None:
    """Send these bytes to the server of `url` and reset the connection."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.sendall(request)


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


class RawClient:
    """A connection to the server of `url` that sends what and when it is told; leaving the ``with`` block hangs up."""

    def __init__(self, url: str, request: bytes = b"", *, receive_buffer: int | None = None) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect((parts.hostname, parts.port))
        self.socket.sendall(request)

    def __enter__(self) -> RawClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send this, too."""
        self.socket.sendall(data)

    def drip(self, data: bytes, seconds: float) -> None:
        """Send this byte for byte, so many seconds apart, or until the server hangs up."""
        for byte in data:
            try:
                self.socket.sendall(bytes([byte]))
            except OSError:
                return
            time.sleep(seconds)

    def line(self) -> bytes:
        """One line of what the server sends, read byte for byte."""
        line = b""
        while not line.endswith(b"\n") and (byte := self.socket.recv(1)):
            line += byte
        return line

    def answer(self) -> RawAnswer:
        """The next answer, which says how long it is."""
        head = b"".join(iter(self.line, b"\r\n"))
        status, _, lines = head.partition(b"\r\n")
        headers = parse_headers(io.BytesIO(lines + b"\r\n"))
        body = b""
        while len(body) < int(headers["Content-Length"]):
            body += self.socket.recv(int(headers["Content-Length"]) - len(body))
        return RawAnswer(int(status.split()[1]), headers, body.decode())

    def rest(self) -> bytes:
        """All that the server sends until it hangs up, however it does."""
        data = b""
        try:
            while piece := self.socket.recv(65_536):
                data += piece
        except ConnectionResetError:
            pass
        return data

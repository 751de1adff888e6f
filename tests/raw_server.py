"""A server that answers with any bytes at all, for what the embedded directory would never do."""

from __future__ import annotations

import re
import socket
import threading
from collections.abc import Callable
from types import TracebackType

Behaviour = Callable[[socket.socket, bytes], None]


def http(status: str, body: bytes = b"", *headers: str) -> bytes:
    """An answer with a Content-Length, after which the connection stays open."""
    head = "\r\n".join([f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers])
    return head.encode("latin-1") + b"\r\n\r\n" + body


class RawServer:
    """Answers each request on a connection with the next of `answers`, and over again with the last.

    An answer is bytes, or does something itself with the connection and the request; after None it is closed.
    """

    def __init__(self, *answers: bytes | Behaviour | None) -> None:
        self.requests: list[bytes] = []
        self.connections: list[socket.socket] = []
        self._answers = list(answers)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> RawServer:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(5)
        self._socket.close()
        for connection in self.connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
        for thread in self._threads[1:]:
            thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections.append(connection)
            self._threads.append(threading.Thread(target=self._serve, args=[connection]))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            try:
                while request := _read_request(connection):
                    self.requests.append(request)
                    answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
                    if answer is None:
                        return
                    if callable(answer):
                        answer(connection, request)
                    else:
                        connection.sendall(answer)
            except OSError:
                return


def _read_request(connection: socket.socket) -> bytes:
    """A whole request, or whatever else comes first; empty when the connection is at its end."""
    request = connection.recv(65536)
    while request[:1].isupper() and not _is_whole(request):
        more = connection.recv(65536)
        if not more:
            return b""
        request += more
    return request


def _is_whole(request: bytes) -> bool:
    head, end, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)

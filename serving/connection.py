"""A client's connection between two requests, or while one comes, is answered, or its answer leaves."""

from __future__ import annotations

import socket
import time
from enum import Enum, auto
from typing import Any

from gunicorn.config import Config
from gunicorn.workers.gthread import TConn

from serving.arriving_request import ArrivingRequests, Received

# What a thread does not wait for until it has left: more than any answer has while uploads have a megabyte.
MAX_UNSENT_BYTES = 16 * 1024 * 1024


class State(Enum):
    """What a connection waits for."""

    IDLE = auto()  # the next request, after an answer
    HEAD = auto()  # the rest of a request's head
    BODY = auto()  # the rest of its body
    ANSWER = auto()  # a thread, which has it
    SEND = auto()  # the client's taking the rest of the answer
    CLOSE = auto()  # the client's end, after the last answer
    CLOSED = auto()  # nothing


class AnswerSocket(socket.socket):
    """A socket that keeps what the client does not take at once, so that no thread waits until it does.

    While there is more than `MAX_UNSENT_BYTES` the thread does wait, at most `patience_seconds` for each piece of an
    answer.
    """

    def __init__(self, accepted: socket.socket, patience_seconds: float) -> None:
        super().__init__(accepted.family, accepted.type, accepted.proto, accepted.detach())
        self.setblocking(False)
        self.unsent = bytearray()
        self._patience_seconds = patience_seconds

    def sendall(self, data: Any, flags: int = 0) -> None:
        """Send or keep `data`. Raises `OSError`, of which `TimeoutError` is one."""
        self.unsent += data
        self.send_on()
        if len(self.unsent) > MAX_UNSENT_BYTES:
            self._wait_until_taken(flags)

    def _wait_until_taken(self, flags: int) -> None:
        give_up_at = time.monotonic() + self._patience_seconds
        try:
            while len(self.unsent) > MAX_UNSENT_BYTES:
                self.settimeout(max(give_up_at - time.monotonic(), 0.001))
                del self.unsent[: self.send(self.unsent, flags)]
        except OSError:
            self.unsent.clear()  # the answer is broken off: nobody is to wait for the rest of it
            raise
        finally:
            self.setblocking(False)

    def send_on(self) -> None:
        """Send what the client takes now of what was kept. Raises `OSError`."""
        try:
            while self.unsent:
                del self.unsent[: self.send(self.unsent)]
        except BlockingIOError:
            pass


class Connection(TConn):
    """A connection, of which the main thread and the thread that answers have each their turn.

    `deadline` and `close_by` are in seconds of the monotonic clock; gunicorn knows nothing of them.
    """

    parser: ArrivingRequests
    sock: AnswerSocket

    def __init__(self, cfg: Config, sock: AnswerSocket, client: Any, server: Any) -> None:
        super().__init__(cfg, sock, client, server)
        self.received = Received()
        self.parser = ArrivingRequests(cfg, self.received, client)
        self.initialized = True  # or gunicorn would make a parser of its own
        self.state = State.HEAD
        self.deadline = self.close_by = 0.0
        self.client_ended = False
        self.is_watched = self.is_last_answer = False
        self.drained_bytes = 0

    @property
    def client_address(self) -> str:
        """The client's network address, for the log."""
        return str(self.client[0] if isinstance(self.client, tuple) else self.client)

    @property
    def held_bytes(self) -> int:
        """How many bytes are kept for it."""
        return len(self.received.held) + len(self.sock.unsent)

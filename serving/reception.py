"""The connections that no thread answers at the moment: what comes is read, what is late is ended, without waiting."""

from __future__ import annotations

import logging
import math
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from logs import request_id, safe_request_id
from metrics import HTTP_REQUESTS
from serving.connection import Connection, State
from serving.http_refusals import CROWDED, FAILURE, LATE_BODY, LATE_HEAD, STOPPING, Refusal, refusal_of

logger = logging.getLogger(__name__)

RECEIVE_BYTES = 64 * 1024
# One connection's turn, lest the others wait for it.
READS_AT_ONCE = 16
# What connections hold is counted whenever so much has come.
COUNT_EVERY_BYTES = 1024 * 1024
ASK_FOR_BODY = b"HTTP/1.1 100 Continue\r\n\r\n"
LATE = {State.HEAD: LATE_HEAD, State.BODY: LATE_BODY}


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a client may take, in seconds, and how much is kept for all of them."""

    head: float = 10.0
    body: float = 30.0
    # Without taking anything of its answer.
    answer: float = 30.0
    # Who is refused may still send, and would miss the answer if the connection were closed at once. It is closed when
    # nothing came for the first, and in any case after the second or so many bytes.
    quiet: float = 2.0
    close: float = 30.0
    drain_bytes: int = 64 * 1024 * 1024
    # When the service stops.
    stop: float = 2.0
    held_bytes: int = 64 * 1024 * 1024


class Reception:
    """Keeps connections on `poller`, and hands each to `answer` when its request is here; all in one thread.

    A body over `most_body_bytes` is not waited for. After an answer a connection is kept for `idle` seconds.
    """

    def __init__(
        self,
        poller: selectors.BaseSelector,
        answer: Callable[[Connection], None],
        *,
        patience: Patience,
        idle: float,
        most_body_bytes: int,
    ) -> None:
        self._poller = poller
        self._answer = answer
        self._patience = patience
        self._idle = idle
        self._most_body_bytes = most_body_bytes
        self._most_held_bytes = max(patience.held_bytes, 4 * most_body_bytes)
        # In the order in which they began to wait for what they wait for.
        self._connections: dict[Connection, None] = {}
        self._uncounted_bytes = 0
        self._longest = math.inf

    def __len__(self) -> int:
        return len(self._connections)

    def admit(self, conn: Connection) -> None:
        """Take a new connection, of which the request may be here already."""
        self._wait(conn, State.HEAD, self._patience.head)
        self._read(conn)
        self._watch_for_more(conn)

    def take_back(self, conn: Connection, *, is_last_answer: bool) -> None:
        """Take a connection from the thread that answered; the rest of the answer is sent."""
        conn.is_last_answer = is_last_answer
        self._send_on(conn)

    def end_overdue(self) -> None:
        """End those whose time is up."""
        now = time.monotonic()
        for conn in [conn for conn in self._connections if conn.deadline <= now]:
            self._end(conn, LATE.get(conn.state))

    def drop_longest_waiting(self) -> None:
        """Make room for another by closing the one that has waited longest, unless all are being answered."""
        for conn in self._waiting():
            self._forget(conn)
            return

    def stop(self) -> None:
        """End every request of which only a part is here, and give the others little time."""
        self._longest = self._patience.stop
        soon = time.monotonic() + self._longest
        for conn in list(self._waiting()):
            if conn.state in LATE:
                self._end(conn, STOPPING)
            conn.deadline, conn.close_by = min(conn.deadline, soon), min(conn.close_by, soon)

    def _waiting(self) -> Iterator[Connection]:
        return (conn for conn in self._connections if conn.state is not State.ANSWER)

    def _wait(self, conn: Connection, state: State, seconds: float) -> None:
        self._connections.pop(conn, None)
        self._connections[conn] = None
        conn.state = state
        conn.deadline = time.monotonic() + min(seconds, self._longest)

    def _watch(self, conn: Connection, event: int) -> None:
        self._unwatch(conn)
        what = self._read if event == selectors.EVENT_READ else self._on_writable
        self._poller.register(conn.sock, event, partial(what, conn))
        conn.is_watched = True

    def _watch_for_more(self, conn: Connection) -> None:
        if conn.state in LATE:
            self._watch(conn, selectors.EVENT_READ)

    def _unwatch(self, conn: Connection) -> None:
        if conn.is_watched:
            self._poller.unregister(conn.sock)
            conn.is_watched = False

    # A request comes:

    def _read(self, conn: Connection, _: object = None) -> None:
        # Again without asking the poller: every call of the system lets other threads run first.
        for _ in range(READS_AT_ONCE):
            if conn.state in (State.ANSWER, State.SEND, State.CLOSED):
                return  # it may have become so since the poller saw something
            try:
                data = conn.sock.recv(RECEIVE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                self._forget(conn)
                return
            self._arrive(conn, data)

    def _arrive(self, conn: Connection, data: bytes) -> None:
        if conn.state is State.CLOSE:
            self._drain(conn, len(data))
        elif not data and conn.state is not State.BODY:
            self._forget(conn)
        else:
            self._take(conn, data)

    def _take(self, conn: Connection, data: bytes) -> None:
        conn.client_ended = not data
        conn.received.held += data
        if conn.state is State.IDLE:
            self._wait(conn, State.HEAD, self._patience.head)
        self._count(len(data))
        if conn.state in LATE:  # and was not the one that room was made with
            self._go_on(conn)

    def _go_on(self, conn: Connection) -> None:
        try:
            if conn.state is State.HEAD and conn.parser.parse():
                self._wait(conn, State.BODY, self._patience.body)
                if conn.parser.mesg.waits_to_be_asked() and not self._has_all(conn):
                    conn.sock.sendall(ASK_FOR_BODY)
            if conn.state is State.BODY and self._has_all(conn):
                self._unwatch(conn)
                self._wait(conn, State.ANSWER, math.inf)
                conn.deadline = math.inf  # also when the service stops: it waits for its own answers
                self._answer(conn)
        except OSError:  # the client has left
            self._forget(conn)
        except Exception as error:  # whatever it is: this thread serves all the others too
            refusal = refusal_of(error)
            if refusal is FAILURE:
                logger.error("A request could not be read", exc_info=error)
            self._refuse(conn, refusal)

    def _has_all(self, conn: Connection) -> bool:
        return conn.parser.has_all(self._most_body_bytes, client_ended=conn.client_ended)

    def _count(self, size: int) -> None:
        """Note that so many bytes came; while all together are too many, refuse those of which most is kept."""
        self._uncounted_bytes += size
        if self._uncounted_bytes < COUNT_EVERY_BYTES:
            return
        self._uncounted_bytes = 0
        held_bytes = sum(conn.held_bytes for conn in self._connections)
        for conn in sorted(self._waiting(), key=lambda conn: conn.held_bytes, reverse=True):
            if held_bytes <= self._most_held_bytes:
                return
            held_bytes -= conn.held_bytes
            self._end(conn, CROWDED)

    # An answer goes:

    def _on_writable(self, conn: Connection, _: object) -> None:
        if conn.state is State.SEND:
            self._send_on(conn)

    def _send_on(self, conn: Connection) -> None:
        try:
            conn.sock.send_on()
            self._go_on_after_answer(conn)
        except (OSError, ValueError):  # it is closed, by the client or, in the middle of an answer, by gunicorn
            self._forget(conn)

    def _go_on_after_answer(self, conn: Connection) -> None:
        if conn.sock.unsent:
            self._wait(conn, State.SEND, self._patience.answer)
            self._watch(conn, selectors.EVENT_WRITE)
            self._count(len(conn.sock.unsent))
        elif conn.is_last_answer:
            self._close_gently(conn)
        elif conn.received.held:
            self._wait(conn, State.HEAD, self._patience.head)
            self._go_on(conn)
            self._watch_for_more(conn)
        else:
            self._wait(conn, State.IDLE, self._idle)
            self._watch(conn, selectors.EVENT_READ)

    def _end(self, conn: Connection, refusal: Refusal | None) -> None:
        """Close a connection, with an answer when a part of a request has come."""
        if refusal and conn.state in LATE and (conn.received.held or conn.state is State.BODY):
            self._refuse(conn, refusal)
        else:
            self._forget(conn)

    def _refuse(self, conn: Connection, refusal: Refusal) -> None:
        named = safe_request_id(None)
        request_id.set(named)
        logger.info("Refused a request from %s: %s %s", conn.client_address, refusal.status.value, refusal.detail)
        request_id.set(None)
        HTTP_REQUESTS.labels("other", "unread", refusal.status.value).inc()
        conn.received.held.clear()
        conn.sock.unsent += refusal.as_http(named)
        self.take_back(conn, is_last_answer=True)

    # A connection ends:

    def _close_gently(self, conn: Connection) -> None:
        """Say that there is no more, and close when the client says so too, or is quiet, or goes on for too long."""
        conn.received.held.clear()
        conn.close_by = time.monotonic() + min(self._patience.close, self._longest)
        self._wait(conn, State.CLOSE, self._patience.quiet)
        conn.sock.shutdown(socket.SHUT_WR)
        self._watch(conn, selectors.EVENT_READ)

    def _drain(self, conn: Connection, size: int) -> None:
        conn.drained_bytes += size
        if not size or conn.drained_bytes > self._patience.drain_bytes:
            self._forget(conn)
        else:
            conn.deadline = min(time.monotonic() + self._patience.quiet, conn.close_by)

    def _forget(self, conn: Connection) -> None:
        self._connections.pop(conn, None)
        conn.state = State.CLOSED
        self._unwatch(conn)
        conn.close()

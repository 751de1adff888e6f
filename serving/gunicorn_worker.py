"""gunicorn's worker with threads, of which none waits for a client: each gets a request when it is all here."""

from __future__ import annotations

import errno
import logging
import selectors
import socket
import time
from concurrent.futures import Future
from typing import Any, cast

from gunicorn.http.message import Request
from gunicorn.workers.gthread import TConn, ThreadWorker

from logs import request_id, safe_request_id
from serving.connection import AnswerSocket, Connection
from serving.http_refusals import FAILURE
from serving.reception import Patience, Reception
from settings import load_settings

logger = logging.getLogger(__name__)

LOOK_EVERY_SECONDS = 0.25
ACCEPTS_AT_ONCE = 16


class Worker(ThreadWorker):
    """A `ThreadWorker` that slow clients cost memory, within a bound, and no threads."""

    patience = Patience()
    reception: Reception
    _look_again_at = 0.0

    def run(self) -> None:
        """Serve until told to stop, then end what was begun, for as long as gunicorn's `graceful_timeout` allows."""
        self.reception = Reception(
            self.poller,
            self.enqueue_req,
            patience=self.patience,
            idle=self.cfg.keepalive,
            most_body_bytes=load_settings().max_request_bytes,
        )
        from_threads = cast(int, self.method_queue.fileno())
        self.poller.register(from_threads, selectors.EVENT_READ, self.method_queue.run_callbacks)
        while self.alive:
            if len(self.reception) >= self.worker_connections:
                self.reception.drop_longest_waiting()
            self.set_accept_enabled(len(self.reception) < self.worker_connections)
            self._turn()
        self.set_accept_enabled(False)
        self.reception.stop()
        end = time.monotonic() + self.cfg.graceful_timeout
        while len(self.reception) and time.monotonic() < end:
            self._turn()
        self.tpool.shutdown(wait=False)
        self.poller.close()
        self.method_queue.close()
        for listener in self.sockets:
            listener.close()

    def accept(self, listener: socket.socket) -> None:
        """Take new connections, several at once when there are."""
        for _ in range(ACCEPTS_AT_ONCE):
            if len(self.reception) >= self.worker_connections:
                return
            try:
                client, address = listener.accept()
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self.reception.drop_longest_waiting()
                return
            answers = AnswerSocket(client, self.patience.answer)
            self.reception.admit(Connection(self.cfg, answers, address, listener.getsockname()))

    def handle_request(self, req: Request, conn: TConn) -> bool:
        """Answer; runs in a thread. True when the connection can be used again."""
        conn.sock.setblocking(False)
        try:
            return super().handle_request(req, conn)
        except TimeoutError:
            logger.info("A client did not take its answer in time: %s", cast(Connection, conn).client_address)
            return False

    def handle_error(self, req: Request | None, client: socket.socket, addr: Any, exc: BaseException) -> None:
        """Answer 500. What is no HTTP was refused before, so that the request is not to blame."""
        logger.error("%s %s failed", req and req.method, req and req.uri, exc_info=exc)
        client.sendall(FAILURE.as_http(safe_request_id(request_id.get())))

    def finish_request(self, conn: Any, fs: Future[bool]) -> None:
        """Take a connection back from the thread that answered."""
        is_reusable = not fs.cancelled() and not fs.exception() and fs.result()
        self.reception.take_back(conn, is_last_answer=not is_reusable)

    def _keepalive_after(self, conn: Connection, keepalive: bool) -> bool:
        # gunicorn's own waits for the rest of a body.
        if keepalive:
            conn.parser.pass_over_body()
        return keepalive

    def _turn(self) -> None:
        self.wait_for_and_dispatch_events(LOOK_EVERY_SECONDS)
        now = time.monotonic()
        if now >= self._look_again_at:
            self._look_again_at = now + LOOK_EVERY_SECONDS
            self.notify()
            self.reception.end_overdue()
            self.alive = self.alive and self.is_parent_alive()

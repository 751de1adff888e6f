"""The connections under `hospital_client`: an adapter for requests that adds what a create depends on.

requests' own timeout starts anew with every read, so an answer that drips never ends; a connection that was idle may
be closed by the other side just as it is used again; and an exception alone does not tell whether the request left.
"""

from __future__ import annotations

import http.client
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

# The directory closes a connection that was idle for 5 s; well before that it is opened anew.
MAX_IDLE_SECONDS = 2.0


@dataclass(slots=True, eq=False)
class Call:
    """One call to the directory. `deadline` is in `time.monotonic` seconds and bounds the whole answer."""

    deadline: float
    sent: bool = False
    sock: socket.socket | None = None
    is_cut: bool = False


class DirectoryAdapter(HTTPAdapter):
    """requests' adapter over connections that obey the deadline of the call made inside `call()`."""

    def __init__(self, pool_size: int) -> None:
        self._calls: set[Call] = set()
        super().__init__(pool_connections=1, pool_maxsize=pool_size)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Make the pools with the connections below."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}

    def proxy_manager_for(self, proxy: str, **kwargs: Any) -> Any:
        """Make the pools behind a proxy with them too."""
        manager = super().proxy_manager_for(proxy, **kwargs)
        manager.pool_classes_by_scheme = {"http": _Pool, "https": _TLSPool}
        return manager

    @contextmanager
    def call(self, timeout: float) -> Iterator[Call]:
        """Bound what this thread sends inside to `timeout` seconds, and note whether anything left."""
        call = _local.call = Call(time.monotonic() + timeout)
        self._calls.add(call)
        try:
            yield call
        finally:
            _local.call = None
            self._calls.discard(call)

    def cut(self) -> None:
        """End every call that is under way: each fails as if the directory had closed the connection."""
        for call in list(self._calls):
            call.is_cut = True
            if call.sock is not None:
                try:
                    socket.socket.shutdown(call.sock, socket.SHUT_RDWR)
                except OSError:
                    continue  # it has just ended by itself


class _Local(threading.local):
    call: Call | None = None


_local = _Local()


class _Reader(io.RawIOBase):
    """The bytes of one answer, as long as its deadline lets them come."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._raw = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the answer took too long")
        self._sock.settimeout(left)
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        if _local.call is not None:
            self.fp.close()
            self.fp = io.BufferedReader(_Reader(sock, _local.call.deadline))


class _Connection(HTTPConnection):
    response_class = _Response
    _answered_at = 0.0

    @property
    def is_connected(self) -> bool:
        """Whether the connection may be used again; the pool opens it anew when not."""
        return time.monotonic() - self._answered_at < MAX_IDLE_SECONDS and super().is_connected

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        if _local.call is not None:
            _local.call.sock = self.sock
            if _local.call.is_cut:
                raise ConnectionAbortedError("cut")
            _local.call.sent = True
        super().send(data)

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._answered_at = time.monotonic()
        return response


class _TLSConnection(_Connection, HTTPSConnection):
    pass


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class _TLSPool(HTTPSConnectionPool):
    ConnectionCls = _TLSConnection

"""A page of somebody else, on this machine: what it may do to the service is tried from it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType


class SecondOrigin:
    """Serves one page at every path, under `127.0.0.1` and under `localhost`, which is another site."""

    def __init__(self, page: str) -> None:
        # Without an icon of its own a browser would ask for one, at any time.
        body = f'<!doctype html><link rel="icon" href="data:,">{page}'.encode()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> SecondOrigin:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def url(self, host: str) -> str:
        """Its address under this host name."""
        return f"http://{host}:{self._server.server_port}/"

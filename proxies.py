"""`PROXY_COUNT`: whom a request comes from when proxies pass it on."""

from __future__ import annotations

from flask import Flask
from werkzeug.middleware.proxy_fix import ProxyFix


def trust_proxies(app: Flask, count: int) -> None:
    """Take the caller's address and scheme from what the last `count` proxies have said; from nobody's word with 0.

    What stands before that in `X-Forwarded-For` may be the caller's own invention, and is not looked at.
    """
    if count:
        # Not the host: proxies leave Host as it was, and one that does not know X-Forwarded-Host passes on the
        # caller's, who could name a host of TRUSTED_HOSTS by it.
        app.wsgi_app = ProxyFix(app.wsgi_app, x_for=count, x_proto=count)  # type: ignore[method-assign]

"""Requests that a page of another site makes a browser send: what would get through to this service is refused."""

from __future__ import annotations

from http import HTTPStatus

from flask import request
from werkzeug.exceptions import BadHost, SecurityError

from problems import Problem

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")


def refuse_other_hosts() -> None:
    """Refuse a request for a host that is none, or not one of `TRUSTED_HOSTS`. Raises `BadHost` or `SecurityError`.

    Flask has looked already, but would raise it only after all that runs before a request.
    """
    if isinstance(request.routing_exception, (BadHost, SecurityError)):
        raise request.routing_exception


def refuse_cross_site() -> None:
    """Refuse a POST or DELETE that a browser says comes from elsewhere; programs say nothing of the kind.

    By `Sec-Fetch-Site` (https://www.w3.org/TR/fetch-metadata/), and for browsers without it by `Origin`.
    """
    if request.method in _SAFE_METHODS:
        return
    site = request.headers.get("Sec-Fetch-Site")
    origin = request.headers.get("Origin")
    if site is None:
        allowed = origin is None or origin.partition("://")[2] == request.host
    else:
        allowed = site in ("same-origin", "none")
    if not allowed:
        raise Problem(HTTPStatus.FORBIDDEN, "This came from a page of another site; use this service's own page.")

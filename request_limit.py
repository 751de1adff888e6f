"""`REQUEST_LIMIT`: how many requests a caller may make, over a moving window."""

from __future__ import annotations

import math
from http import HTTPStatus

from flask import Flask, request
from flask_limiter import Limiter, RequestLimit

from api_keys import caller, lacks_key, shows_key
from problems import Problem
from request_times import MICROSECONDS, STORAGE_URI, PerMicrosecond, now
from settings import RateLimit

# A page asks for its script and its style too, and a host for the health, as often as they like.
_UNCOUNTED_ENDPOINTS = ("routes.health", "static", "docs.asset")


def limit_requests(app: Flask, limit: RateLimit | None) -> None:
    """Refuse requests to `app` over `limit`, None for none; each key has its own, and each address without a key.

    What is refused is not counted. Needs the caller to be known by then.
    """
    if limit is None:
        return
    window = round(limit.seconds * MICROSECONDS)
    Limiter(
        _counted_as,
        app=app,
        application_limits=[f"{limit.count} per {window} {PerMicrosecond.GRANULARITY.name}"],
        strategy="moving-window",
        storage_uri=STORAGE_URI,
        request_identifier=_endpoint_or_none,
        on_breach=_refuse,
    )


def _counted_as() -> str:
    name = caller()
    return f"key {name}" if name else f"address {request.remote_addr}"


def _endpoint_or_none() -> str:
    # By itself Flask-Limiter would not count what is not found.
    if lacks_key():
        # Keys could be guessed wherever nothing is counted. Who shows none guesses nothing, and a browser must be told
        # to ask for one, however often somebody else at its address has guessed.
        return "any" if shows_key() else ""
    return "any" if request.endpoint not in _UNCOUNTED_ENDPOINTS else ""


def _refuse(breached: RequestLimit) -> None:
    seconds = max(1, math.ceil((breached.window.reset_time - now()) / MICROSECONDS))
    raise Problem(
        HTTPStatus.TOO_MANY_REQUESTS,
        f"These are too many requests, so nothing was done. Try it again in {seconds} second{'s' * (seconds > 1)}.",
        headers={"Retry-After": str(seconds)},
    )

"""API keys: who calls, and nobody else when `API_KEYS` is set."""

from __future__ import annotations

import hmac
from http import HTTPStatus

from flask import g, request
from flask_httpauth import HTTPBasicAuth

import logs
from problems import Problem
from service import service

REALM = "Hospital bulk upload"
# A browser asks for Basic, and takes one challenge from each header.
_CHALLENGES = [f'Basic realm="{REALM}", charset="UTF-8"', f'Bearer realm="{REALM}"']
# Whoever looks after the service asks this, and knows no key.
_OPEN_ENDPOINTS = ("routes.health",)

_basic = HTTPBasicAuth()


def caller() -> str:
    """The name of the key with which the current request came, empty without one."""
    return str(g.get("caller", ""))


def find_caller() -> None:
    """Look whose key came with the current request, and refuse nobody yet: unknown callers are counted too."""
    # One that fits is enough: a browser adds what it was told for the page to the key that a script sends.
    g.caller = _owner_of_basic() or _owner(_bearer()) or _owner(request.headers.get("X-API-Key", ""))
    logs.key_name.set(g.caller or None)


def lacks_key() -> bool:
    """Whether the current request needs one of the keys and came with none."""
    return bool(service().settings.api_keys) and not caller() and request.endpoint not in _OPEN_ENDPOINTS


def shows_key() -> bool:
    """Whether the current request came with anything that could be a key."""
    return "Authorization" in request.headers or "X-API-Key" in request.headers


def refuse_unknown_callers() -> None:
    """Refuse a request that needs one of the keys and came with none. Raises `Problem`."""
    if lacks_key():
        raise Problem(
            HTTPStatus.UNAUTHORIZED,
            "One of this service's API keys is needed: send `Authorization: Bearer KEY` or `X-API-Key: KEY`, or in a "
            "browser the key's name as the user name and the key as the password.",
            headers={"WWW-Authenticate": _CHALLENGES},
        )


def _owner_of_basic() -> str:
    shown = _basic.get_auth()
    return _owner(shown.password, shown.username) if shown else ""


def _bearer() -> str:
    # Neither Flask-HTTPAuth nor werkzeug reads a key with a = inside, and a word that is not ASCII is their failure.
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def _owner(key: str, name: str | None = None) -> str:
    """The name of this key, empty when it is none or is not of that name; takes as long whichever it is."""
    owner = ""
    for known in service().settings.api_keys:
        fits = hmac.compare_digest(key.encode(), known.key.encode())
        if name is not None:
            fits &= hmac.compare_digest(name.encode(), known.name.encode())
        if fits:
            owner = known.name
    return owner

"""The API's documentation: `openapi.yaml` for programs, and as pages by Swagger UI and ReDoc, all served from here."""

from __future__ import annotations

import functools
import json
from importlib.metadata import distribution
from pathlib import Path

import yaml
from flask import Blueprint, Response, abort, render_template, send_file

docs = Blueprint("docs", __name__)

DOCUMENT = Path(__file__).with_name("openapi.yaml")

# Both write styles into the page as they go.
_CONTENT_SECURITY_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

# Which file of which package is behind each address. The packages are not imported: theirs are only files.
_ASSETS = {
    "swagger-ui.css": ("flask-swagger-ui", "flask_swagger_ui/dist/swagger-ui.css"),
    "swagger-ui.js": ("flask-swagger-ui", "flask_swagger_ui/dist/swagger-ui-bundle.js"),
    "redoc.js": ("offapi", "offapi/redoc.js"),
}


@docs.get("/openapi.json")
def document() -> Response:
    """What programs need to know of the API."""
    return Response(_document(), mimetype="application/json")


@docs.get("/docs")
def swagger_ui() -> Response:
    """The document as a page on which the calls can be tried."""
    return _page("docs.html")


@docs.get("/redoc")
def redoc() -> Response:
    """The document as a page to read."""
    return _page("redoc.html")


@docs.get("/docs/assets/<name>")
def asset(name: str) -> Response:
    """A script or style of those pages."""
    if name not in _ASSETS:
        abort(404)
    package, path = _ASSETS[name]
    return send_file(Path(str(distribution(package).locate_file(path))))


def _page(template: str) -> Response:
    headers = {"Content-Security-Policy": _CONTENT_SECURITY_POLICY}
    return Response(render_template(template), mimetype="text/html", headers=headers)


@functools.cache
def _document() -> str:
    return json.dumps(yaml.safe_load(DOCUMENT.read_text(encoding="utf-8")), ensure_ascii=False)

"""The API's documentation: `openapi.yaml` for programs, and as pages by Swagger UI and ReDoc, all served from here."""

from __future__ import annotations

import functools
import json
from importlib.metadata import distribution
from pathlib import Path

import yaml
from flask import Blueprint, Response, abort, render_template, request

docs = Blueprint("docs", __name__)

DOCUMENT = Path(__file__).with_name("openapi.yaml")

# ReDoc writes its styles, by script, into a style element that is empty (that is the hash), and brings its icons along.
REDOC_POLICY = (
    "default-src 'self'; style-src 'self' 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; "
    "img-src 'self' data:; font-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)

# Which file of which package is behind each name. The packages are not imported: these files are all that is used.
_ASSETS = {
    "swagger-ui.css": ("flask-swagger-ui", "flask_swagger_ui/dist/swagger-ui.css", "text/css"),
    "swagger-ui.js": ("flask-swagger-ui", "flask_swagger_ui/dist/swagger-ui-bundle.js", "text/javascript"),
    "redoc.js": ("offapi", "offapi/redoc.js", "text/javascript"),
}
# ReDoc names its makers with a picture from their own host, which is not asked for: the name in letters does as well.
_MAKERS_LOGOS = (
    "https://cdn.redoc.ly/redoc/logo-mini-full.svg",
    "https://cdn.redoc.ly/redoc/logo-mini.svg",
)
_MAKERS_NAME = (
    "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg' width='44' height='14'>"
    "<text y='11' font-family='sans-serif' font-size='11'>Redocly</text></svg>"
)


@docs.get("/openapi.json")
def document() -> Response:
    """What programs need to know of the API."""
    return Response(_document(), mimetype="application/json")


@docs.get("/docs")
def swagger_ui() -> str:
    """The document as a page on which the calls can be tried."""
    return render_template("docs.html")


@docs.get("/redoc")
def redoc() -> Response:
    """The document as a page to read."""
    return Response(render_template("redoc.html"), headers={"Content-Security-Policy": REDOC_POLICY})


@docs.get("/docs/assets/<name>")
def asset(name: str) -> Response:
    """A script or a style of these pages."""
    if name not in _ASSETS:
        abort(404)
    answer = Response(_asset(name), mimetype=_ASSETS[name][2])
    answer.cache_control.no_cache = True
    answer.add_etag()
    answer.make_conditional(request)
    return answer


@functools.cache
def _document() -> str:
    return json.dumps(yaml.safe_load(DOCUMENT.read_text(encoding="utf-8")), ensure_ascii=False) + "\n"


@functools.cache
def _asset(name: str) -> str:
    package, path, _ = _ASSETS[name]
    text = Path(str(distribution(package).locate_file(path))).read_text(encoding="utf-8")
    for logo in _MAKERS_LOGOS:
        text = text.replace(logo, _MAKERS_NAME)
    return text

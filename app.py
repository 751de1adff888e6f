"""The service, wired together: `gunicorn app:app` serves it."""

from __future__ import annotations

import logging

from flask import Flask, Response, request

from api_docs import docs
from cross_site import refuse_cross_site
from problems import register_problems
from routes import routes
from runner import Runner
from service import Service, attach
from settings import DEPLOYED_BATCH_CAP, Settings, load_settings
from sql_store import SqliteStore
from store import MemoryStore
from upload import StrictRequest

logger = logging.getLogger(__name__)

# A multipart request is larger than the file in it, by its boundaries and other fields.
REQUEST_OVERHEAD_BYTES = 64 * 1024


def create_app(settings: Settings | None = None) -> Flask:
    """Make the service with `settings`, by default those of the environment. Raises `SettingsError`.

    Nothing is opened or started before `Service.start()`, which the first request calls at the latest.
    """
    settings = settings or load_settings()
    logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    app = Flask(__name__)
    app.request_class = StrictRequest
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_UPLOAD_BYTES=settings.max_upload_bytes,
        MAX_CONTENT_LENGTH=settings.max_upload_bytes + REQUEST_OVERHEAD_BYTES,
        TRUSTED_HOSTS=list(settings.trusted_hosts) or None,
    )
    store = SqliteStore(settings.database_url) if settings.database_url else MemoryStore(settings.keep_batches)
    parts = Service(settings, store, Runner(settings, store))
    attach(app, parts)
    app.before_request(parts.start)
    app.before_request(refuse_cross_site)
    app.register_blueprint(routes)
    app.register_blueprint(docs)
    app.after_request(_add_security_headers)
    register_problems(app)
    _warn_of_settings(settings)
    return app


def _add_security_headers(response: Response) -> Response:
    response.headers.setdefault(
        "Content-Security-Policy",
        "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    )
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.endpoint != "static":
        # The same address answers a page or JSON, and says something else a moment later.
        response.vary.add("Accept")
        response.headers.setdefault("Cache-Control", "no-store")
    response.headers["Referrer-Policy"] = "same-origin"
    return response


def _warn_of_settings(settings: Settings) -> None:
    if settings.max_csv_rows > DEPLOYED_BATCH_CAP:
        logger.warning(
            "MAX_CSV_ROWS is %s, but the deployed directory takes at most %s hospitals to a batch",
            settings.max_csv_rows,
            DEPLOYED_BATCH_CAP,
        )


app = create_app()

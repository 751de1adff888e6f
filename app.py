"""The service, wired together: `gunicorn app:app` serves it."""

from __future__ import annotations

import logging

import click
from flask import Flask, Response, request

from api_docs import docs
from api_keys import find_caller, refuse_unknown_callers
from cross_site import refuse_cross_site, refuse_other_hosts
from logs import configure_logging
from problems import register_problems
from proxies import trust_proxies
from request_limit import limit_requests
from request_log import log_requests
from routes import routes
from runner import BatchRunner, Runner
from service import Service, attach
from settings import DEPLOYED_BATCH_CAP, POSTGRES, Settings, SettingsError, load_settings
from settings_command import show_settings
from store import MemoryStore, Store
from upload import StrictRequest

logger = logging.getLogger(__name__)


def create_app(settings: Settings | None = None) -> Flask:
    """Make the service with `settings`, by default those of the environment. Raises `SettingsError`.

    Nothing is opened or started before `Service.start()`, which the first request calls at the latest.
    """
    settings = settings or load_settings()
    configure_logging(settings.log_level, settings.log_format)
    app = Flask(__name__)
    app.request_class = StrictRequest
    app.url_map.merge_slashes = False
    app.config.update(
        MAX_UPLOAD_BYTES=settings.max_upload_bytes,
        MAX_CONTENT_LENGTH=settings.max_request_bytes,
        # The page sends three fields for each row that is mended.
        MAX_FORM_PARTS=max(1000, 3 * settings.max_csv_rows + 10),
        MAX_FORM_MEMORY_SIZE=max(500_000, 5000 * settings.max_csv_rows),
        TRUSTED_HOSTS=list(settings.trusted_hosts) or None,
    )
    parts = Service(settings, *_store_and_runner(settings))
    attach(app, parts)
    log_requests(app)
    app.before_request(refuse_other_hosts)
    app.before_request(find_caller)
    limit_requests(app, settings.request_limit)
    app.before_request(refuse_unknown_callers)
    app.before_request(parts.start)
    app.before_request(refuse_cross_site)
    app.register_blueprint(routes)
    app.register_blueprint(docs)
    app.after_request(_add_security_headers)
    register_problems(app)
    trust_proxies(app, settings.proxy_count)
    app.cli.add_command(show_settings)
    _warn_of_settings(settings)
    return app


def _store_and_runner(settings: Settings) -> tuple[Store, BatchRunner]:
    if settings.database_url is None:
        store: Store = MemoryStore(settings.keep_batches)
    elif settings.database_url.startswith(POSTGRES):
        # What it needs is installed only where it is used.
        from cluster.runner import open_cluster  # noqa: PLC0415

        return open_cluster(settings)
    else:
        # A third of the time to start and 11 MiB, which batches in memory need not pay.
        from sqlite_store import SqliteStore  # noqa: PLC0415

        store = SqliteStore(settings.database_url)
    return store, Runner(settings, store)


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


try:
    app = create_app()
except SettingsError as error:
    # What the command flask shows as it is, without a stack trace.
    raise click.ClickException(str(error)) from None

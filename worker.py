"""`python worker.py`: a process that runs batches and serves nobody, beside any number of web processes."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from queue import SimpleQueue

from logs import configure_logging
from service import Service
from settings import POSTGRES, Settings, SettingsError, load_settings
from store import StoreError

logger = logging.getLogger(__name__)

# By then it ends in any case, also while a database hangs: what it runs is taken up elsewhere as after a kill -9.
LAST_SECONDS = 18.0

NEEDS_POSTGRES = (
    "A worker runs what web processes put into a PostgreSQL database: set DATABASE_URL to one, such as "
    "postgresql://user:password@host:5432/database."
)


def main() -> int:
    """Run batches until SIGTERM or Ctrl-C; 0 then, 1 when it could not start, or not end in time."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level, settings.log_format)
        if not (settings.database_url or "").startswith(POSTGRES):
            raise SettingsError(NEEDS_POSTGRES)
        _work(settings)
    except (SettingsError, StoreError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _work(settings: Settings) -> None:
    # What it needs is installed only where it is used.
    from cluster.runner import open_cluster  # noqa: PLC0415

    told_to_stop: SimpleQueue[int] = SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: told_to_stop.put(number))
    # Web processes that leave the work to such as this one have 0, perhaps in an environment that all share.
    at_once = settings.embedded_workers or Settings().embedded_workers
    parts = Service(settings, *open_cluster(replace(settings, embedded_workers=at_once)))
    parts.start()
    logger.info("working, on up to %s batches at once", at_once)
    told_to_stop.get()
    at_the_latest = threading.Timer(LAST_SECONDS, os._exit, [1])
    at_the_latest.daemon = True
    at_the_latest.start()
    parts.stop()


if __name__ == "__main__":
    sys.exit(main())

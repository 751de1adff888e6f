"""Workers with little patience, so that tests of slow clients are quick: named to gunicorn by `--worker-class`."""

from __future__ import annotations

from serving.gunicorn_worker import Worker
from serving.reception import Patience

QUICK = Patience(head=0.5, body=0.8, answer=0.8, quiet=0.5, close=3.0, held_bytes=0)


class QuickWorker(Worker):
    """A worker that waits a second where the real one waits up to thirty."""

    patience = QUICK


class NarrowWorker(Worker):
    """A worker that keeps little of what comes, and waits for the rest of it as long as a test needs to send much."""

    patience = Patience(body=5.0, held_bytes=0)

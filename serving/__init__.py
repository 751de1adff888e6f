"""The worker of gunicorn that serves: its threads get whole requests, and slow clients wait with it alone."""

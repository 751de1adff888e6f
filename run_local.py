"""`make run`: the embedded directory and the service under gunicorn on this machine, until Ctrl-C ends both."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from local_processes import HOST, Process, running_directory, running_service, serve
from settings import load_settings, settings_file

WELCOME = """
The page:      http://{host}:{port}/
Or with curl:  curl -F file=@sample_hospitals.csv http://{host}:{port}/hospitals/bulk
The directory: {directory}/hospitals/ (embedded; it forgets everything when it ends)

Ctrl-C ends both.
"""


def start(stack: ExitStack) -> list[Process]:
    """Start both and say where they are. Raises `SettingsError` and `StartError`."""
    port = load_settings().port
    directory, url = stack.enter_context(running_directory())
    defaults = {"TRUSTED_HOSTS": f"{HOST},localhost", "DATABASE_URL": "sqlite:///hospitals.db"}
    environ = defaults | settings_file() | os.environ
    service = stack.enter_context(running_service(port, environ | {"HOSPITAL_API_BASE_URL": url}))
    print(WELCOME.format(host=HOST, port=port, directory=url), flush=True)
    return [directory, service]


if __name__ == "__main__":
    sys.exit(serve(start))

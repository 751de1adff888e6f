"""`make run-cluster`: two web processes and three workers over one PostgreSQL, and the embedded directory."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack

from local_processes import HOST, Process, running, running_directory, running_service, serve
from settings import load_settings, settings_file

WEB_PROCESSES, WORKERS = 2, 3
DATABASE = "postgresql://postgres@127.0.0.1:5432/postgres"

WELCOME = """
The page:      {pages}
Or with curl:  curl -F file=@sample_hospitals.csv http://{host}:{port}/hospitals/bulk
The workers:   processes {workers}; kill -9 any of them, its batches go on elsewhere
The directory: {directory}/hospitals/ (embedded; it forgets everything when it ends)

Ctrl-C ends all of them.
"""


def start(stack: ExitStack) -> list[Process]:
    """Start all of them and say where they are; returns those without which the rest is of no use.

    Raises `SettingsError` and `StartError`.
    """
    first_port = load_settings().port
    directory, url = stack.enter_context(running_directory())
    environ = {"TRUSTED_HOSTS": f"{HOST},localhost", "DATABASE_URL": DATABASE} | settings_file() | os.environ
    environ["HOSPITAL_API_BASE_URL"] = url
    web_environ = environ | {"EMBEDDED_WORKERS": "0"}
    ports = range(first_port, first_port + WEB_PROCESSES)
    for port in ports:
        stack.enter_context(running_service(port, web_environ))
    workers = [stack.enter_context(running("worker.py", environ=environ)) for _ in range(WORKERS)]
    welcome = WELCOME.format(
        pages=" and ".join(f"http://{HOST}:{port}/" for port in ports),
        host=HOST,
        port=first_port,
        workers=", ".join(str(worker.pid) for worker in workers),
        directory=url,
    )
    print(welcome, flush=True)
    return [directory]  # any other may be killed


if __name__ == "__main__":
    sys.exit(serve(start))

"""How the service starts, refuses to start, and ends: real gunicorn and the launcher, real signals."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.directory import Directory
from tests.hospitals import csv_of
from tests.patience import PATIENCE, wait_for
from tests.running import RunningService, is_gone

ROOT = Path(__file__).parent.parent
GUNICORN = [sys.executable, "-m", "gunicorn", "app:app", "--bind", "127.0.0.1:0"]
LAUNCHER = [sys.executable, "run_local.py"]
# Creates in flight get 10 s; the host kills after 30.
GONE_SECONDS = 19
# What need not wait for these 10 s ends well before.
AT_ONCE_SECONDS = 9


def environment(**settings: str) -> dict[str, str]:
    """The environment of a command, with these settings and no others."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {name.upper(): value for name, value in settings.items()}


def children_of(pid: int) -> list[int]:
    """Every process that this one has started, and those that they have."""
    try:
        direct = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []
    return direct + [grandchild for child in direct for grandchild in children_of(child)]


# Starting


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HOSPITAL_API_BASE_URL", "ftp://example.org"),
        ("MAX_CSV_ROWS", "0"),
        ("DIRECTORY_CREATE_LIMIT", "30"),
        ("SYNC_WAIT_SECONDS", "nan"),
        ("TRUSTED_HOSTS", "http://example.org"),
        ("LOG_LEVEL", "LOUD"),
        ("PORT", "http"),
    ],
)
def test_a_wrong_setting_ends_gunicorn_with_one_sentence(name: str, value: str) -> None:
    ended = subprocess.run(
        GUNICORN,
        cwd=ROOT,
        env=environment(**{name: value}),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert ended.returncode == 1
    assert ended.stdout == ""
    [sentence] = ended.stderr.splitlines()
    assert sentence.startswith(f"{name} is {value!r}, but it must be ")


def test_every_wrong_setting_is_named() -> None:
    wrong = environment(max_csv_rows="many", keep_batches="-1")
    ended = subprocess.run(GUNICORN, cwd=ROOT, env=wrong, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert re.fullmatch(r"MAX_CSV_ROWS is 'many', .+\. KEEP_BATCHES is '-1', .+\.\n", ended.stderr)


def test_there_is_one_process_whatever_the_host_asks_for(directory: Directory) -> None:
    with RunningService(directory.url, web_concurrency=4) as service:
        assert len(children_of(service.process.pid)) == 1
        assert service.upload(csv_of(1)).json()["status"] == "completed"


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU])
def test_other_signals_to_all_its_processes_change_nothing(directory: Directory, number: signal.Signals) -> None:
    directory.settings(create_seconds=2)
    with RunningService(directory.url) as service, waiting_caller(service) as caller:
        wait_for(lambda: len(directory.calls("create")) == 3)
        before = children_of(service.process.pid)
        for pid in (service.process.pid, *before):
            os.kill(pid, number)
        assert caller.result(PATIENCE).json()["status"] == "completed"
        assert children_of(service.process.pid) == before


# Ending


@contextmanager
def waiting_caller(service: RunningService, rows: int = 3) -> Iterator[Future[requests.Response]]:
    """Somebody uploads so many rows and waits for the answer."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(service.upload, csv_of(rows))


def only_batch(service: RunningService) -> dict[str, Any]:
    """The one batch of the service, empty when there is none yet."""
    batches: list[dict[str, Any]] = service.get("/batches").json()
    return batches[0] if batches else {}


def assert_ends_well(service: RunningService, caller: Future[requests.Response], number: signal.Signals) -> float:
    """Told to stop, the service lets its caller go with a 202 and is gone in time; returns the seconds that took."""
    started_at = time.monotonic()
    pids = children_of(service.process.pid)
    service.process.send_signal(number)
    answer = caller.result(PATIENCE)
    assert answer.status_code == 202
    assert answer.json()["status"] == "processing"
    assert answer.headers["Location"] == f"/batches/{answer.json()['batch_id']}"
    assert service.process.wait(PATIENCE) == 0
    assert all(map(is_gone, pids))
    assert "Traceback" not in service.output
    return time.monotonic() - started_at


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_waits_for_creates_in_flight(directory: Directory, number: signal.Signals) -> None:
    directory.settings(create_seconds=4)
    with RunningService(directory.url) as service, waiting_caller(service) as caller:
        wait_for(lambda: len(directory.calls("create")) == 3)
        assert assert_ends_well(service, caller, number) < AT_ONCE_SECONDS
        assert [call["status"] for call in directory.calls("create")] == [200, 200, 200]
        assert not any(hospital["active"] for hospital in directory.hospitals())


def test_told_to_stop_it_does_not_wait_for_ever(directory: Directory) -> None:
    directory.settings(create_seconds=100)
    with RunningService(directory.url) as service, waiting_caller(service) as caller:
        wait_for(lambda: len(directory.calls("create")) == 3)
        assert assert_ends_well(service, caller, signal.SIGTERM) < GONE_SECONDS


def test_told_often_to_stop_it_ends_no_worse(directory: Directory) -> None:
    directory.settings(create_seconds=4)
    with RunningService(directory.url) as service, waiting_caller(service) as caller:
        wait_for(lambda: len(directory.calls("create")) == 3)
        # Ctrl-C reaches the worker from the terminal and from its master, and some press it often.
        [worker] = children_of(service.process.pid)
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM) * 100:
            os.kill(worker, number)
            time.sleep(0.00002)
        assert assert_ends_well(service, caller, signal.SIGINT) < AT_ONCE_SECONDS


@pytest.mark.parametrize(
    ("settings", "faults"),
    [
        ({"directory_create_limit": "1/60"}, []),
        ({}, [{"kind": "rate_limit", "call": "create", "retry_after": 60, "times": None}]),
    ],
    ids=["by its own count", "by a refusal"],
)
def test_told_to_stop_it_ends_a_wait_for_the_rate_limit(
    directory: Directory, settings: dict[str, Any], faults: list[dict[str, Any]]
) -> None:
    directory.faults(faults)
    with RunningService(directory.url, **settings) as service, waiting_caller(service) as caller:
        wait_for(lambda: only_batch(service).get("waiting_for") == "rate_limit")
        assert assert_ends_well(service, caller, signal.SIGTERM) < AT_ONCE_SECONDS


def test_told_to_stop_it_ends_the_wait_between_two_looks_at_a_sleeper(directory: Directory) -> None:
    directory.faults([{"kind": "sleep", "seconds": 60, "status": 503}])
    with (
        RunningService(directory.url, directory_retry_seconds=30) as service,
        waiting_caller(service) as caller,
    ):
        wait_for(lambda: only_batch(service).get("waiting_for") == "wake")
        assert assert_ends_well(service, caller, signal.SIGTERM) < AT_ONCE_SECONDS
    assert directory.calls("create") == []


def test_told_to_stop_it_does_not_wait_for_a_sleeper_to_wake(directory: Directory) -> None:
    directory.faults([{"kind": "sleep", "seconds": 60}])
    with RunningService(directory.url) as service, waiting_caller(service) as caller:
        wait_for(lambda: directory.calls("root"))
        assert assert_ends_well(service, caller, signal.SIGTERM) < GONE_SECONDS
    assert directory.calls("create") == []


# On this machine: `make run`


class Launched:
    """The launcher in a session of its own, as under a terminal; `text` is what it has said."""

    def __init__(self, port: int, **settings: str) -> None:
        self.process = subprocess.Popen(
            LAUNCHER,
            cwd=ROOT,
            env=environment(
                port=str(port),
                embedded_directory_port="0",
                embedded_directory_create_seconds="0.1",
                log_level="ERROR",
                **settings,
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.text = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.text += line
            if "Ctrl-C" in line:
                break

    def __enter__(self) -> Launched:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def test_the_launcher_says_where_to_look_and_how_to_upload() -> None:
    port = free_port()
    with Launched(port) as launched:
        [page] = re.findall(r"The page:\s+(\S+)", launched.text)
        assert page == f"http://127.0.0.1:{port}/"
        assert requests.get(page, timeout=PATIENCE).headers["Content-Type"].startswith("text/html")

        [curl] = re.findall(r"curl .+", launched.text)
        answer = subprocess.run(
            shlex.split(curl), cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=True
        )
        assert '"status": "completed"' in answer.stdout

        [hospitals] = re.findall(r"http://\S+/hospitals/", launched.text.replace(curl, ""))
        assert all(hospital["active"] for hospital in requests.get(hospitals, timeout=PATIENCE).json())

        assert requests.get(page, headers={"Host": "evil.example"}, timeout=PATIENCE).status_code == 400
        ends_cleanly(launched, signal.SIGINT, to_group=False)


def test_the_launcher_starts_also_where_the_settings_are_those_of_another_host() -> None:
    with Launched(free_port(), trusted_hosts="example.org", http_proxy="http://127.0.0.1:1") as launched:
        assert "Ctrl-C ends both" in launched.text
        ends_cleanly(launched, signal.SIGTERM, to_group=False)


@pytest.mark.parametrize(
    ("number", "to_group"),
    [(signal.SIGINT, True), (signal.SIGTERM, False), (signal.SIGHUP, True)],
    ids=["Ctrl-C in a terminal", "SIGTERM", "the terminal is closed"],
)
def test_the_launcher_ends_cleanly(number: signal.Signals, to_group: bool) -> None:
    with Launched(free_port()) as launched:
        ends_cleanly(launched, number, to_group=to_group)


def ends_cleanly(launched: Launched, number: signal.Signals, *, to_group: bool) -> None:
    """Told to stop, the launcher ends both servers and itself, and says nothing of it."""
    pids = children_of(launched.process.pid)
    assert len(pids) == 3  # the directory, gunicorn and its worker
    if to_group:
        os.killpg(launched.process.pid, number)
    else:
        launched.process.send_signal(number)
    assert launched.process.wait(PATIENCE) == 0
    assert all(map(is_gone, pids))
    assert launched.process.stdout is not None
    assert "Traceback" not in launched.process.stdout.read()


@pytest.mark.parametrize("name", ["port", "embedded_directory_port"])
def test_the_launcher_says_that_a_port_is_taken(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {"port": str(free_port()), "embedded_directory_port": "0"}
        ports[name] = str(taken.getsockname()[1])
        ended = subprocess.run(
            LAUNCHER, cwd=ROOT, env=environment(**ports), capture_output=True, text=True, timeout=PATIENCE, check=False
        )
    assert ended.returncode == 1
    assert ports[name] in ended.stderr
    assert f"{name.upper()}=" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_the_launcher_says_that_a_setting_is_wrong() -> None:
    wrong = environment(port=str(free_port()), embedded_directory_port="0", max_csv_rows="0")
    ended = subprocess.run(LAUNCHER, cwd=ROOT, env=wrong, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert ended.returncode == 1
    assert ended.stderr.splitlines() == ["MAX_CSV_ROWS is '0', but it must be a whole number from 1 to 100000."]

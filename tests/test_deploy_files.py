"""The files for deploying: what they name is there, and what they say is so."""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from dotenv import dotenv_values

from app import create_app
from embedded_directory.settings import PREFIX, read_settings
from settings import ApiKey, Settings, load_settings
from tests.deploy_files import (
    Json,
    command,
    healthcheck,
    is_sent_to_builder,
    last,
    lineage,
    load,
    load_with_options,
    modules_of,
    procfile,
    stages,
    unpack,
)
from tests.directory import Directory
from tests.hospitals import assert_exactly_once, csv_of
from tests.running import ROOT, RunningService

NAMES = {field.name.upper() for field in fields(Settings)}
GENERATED = base64.b64encode(bytes(range(224, 256))).decode()
IMAGES = ["service", "cluster", "directory"]
GUNICORN = (ROOT / "gunicorn.conf.py").read_text()
# Seconds that it lets what it serves end in.
GRACE = int(re.findall(r"(?m)^graceful_timeout = (\d+)$", GUNICORN)[0])
# It is given the name of one module alone.
NAMED = re.findall(r'(?m)^worker_class = "([\w.]+)\.\w+"', GUNICORN)[0]


def python_can_run(words: list[str]) -> bool:
    """Whether a command is one of this project: a file of it, a package, or gunicorn with the app."""
    match words:
        case ["gunicorn", "app:app"]:
            return (ROOT / "app.py").is_file()
        case ["python", "-m", package]:
            return (ROOT / package / "__main__.py").is_file()
        case ["python", script]:
            return (ROOT / script).is_file()
        case ["pip", "install", "-r", requirements]:
            return (ROOT / requirements).is_file()
    return False


def test_the_procfile_starts_what_there_is() -> None:
    assert procfile().keys() == {"web", "worker"}
    assert all(python_can_run(shlex.split(one)) for one in procfile().values())


# render.yaml


def variables(service: Json) -> dict[str, str]:
    """The environment of a service there, with a key like those that Render makes."""
    return {one["key"]: GENERATED if one.get("generateValue") else one["value"] for one in service["envVars"]}


def test_the_blueprint_starts_the_service_as_the_procfile_does() -> None:
    [web] = load("render.yaml")["services"]
    assert web["startCommand"] == procfile()["web"]
    assert create_app(Settings()).test_client().get(web["healthCheckPath"]).status_code == 200
    assert web["maxShutdownDelaySeconds"] > GRACE


def test_the_blueprint_sets_what_the_service_understands() -> None:
    [web] = load("render.yaml")["services"]
    given = variables(web)
    settings = load_settings(given)
    assert given.keys() - NAMES == {"PYTHON_VERSION"}
    assert settings.api_keys == (ApiKey("default", GENERATED),)
    assert settings.log_format == "json"


def test_the_blueprint_names_a_python_that_will_do() -> None:
    [web] = load("render.yaml")["services"]
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"].removeprefix(">=")
    version = variables(web)["PYTHON_VERSION"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", version), "Render wants all three numbers."
    assert version.rpartition(".")[0] == needed == stages()["python"].base.removeprefix("python:").partition("-")[0]


def test_what_the_blueprint_offers_for_a_disk_and_for_postgresql_is_there() -> None:
    offered = load_with_options("render.yaml")
    web, worker = offered["services"]
    [database] = offered["databases"]
    assert worker["startCommand"] == procfile()["worker"]
    assert all(python_can_run(shlex.split(one["buildCommand"])) for one in (web, worker))
    assert {one["key"] for one in web["envVars"] + worker["envVars"]} <= NAMES | {"PYTHON_VERSION"}
    urls = [one for one in web["envVars"] if one["key"] == "DATABASE_URL"]
    on_disk, in_database = urls
    assert load_settings({"DATABASE_URL": on_disk["value"]}).database_url == on_disk["value"]
    assert on_disk["value"].startswith(f"sqlite:///{web['disk']['mountPath']}/")
    assert in_database["fromDatabase"]["name"] == database["name"]
    assert in_database in worker["envVars"]


# Dockerfile and .dockerignore


@pytest.mark.parametrize("image", ["service", "cluster"])
def test_an_image_has_exactly_the_modules_that_web_and_worker_import(image: str) -> None:
    copied = {name for stage in lineage(image) for sources, _ in stage.copies() for name in sources}
    code = {name for name in copied if name.endswith(".py") or (ROOT / name / "__init__.py").exists()}
    # Of a package the folder is copied.
    imported = modules_of("app.py", "worker.py", "gunicorn.conf.py", f"{NAMED.replace('.', '/')}.py")
    assert code == {Path(name).parts[0] for name in imported}
    assert copied - code == {"openapi.yaml", "sample_hospitals.csv", "static", "templates"}


def test_each_image_installs_the_libraries_of_its_own() -> None:
    for stage in stages().values():
        for install in stage.all("RUN"):
            for requirements in re.findall(r"--requirement (\S+)", install):
                assert requirements in {Path(name).name for sources, _ in stage.copies() for name in sources}
    taken = {image: re.findall(r"--from=(\S+)", " ".join(stages()[image].all("COPY"))) for image in IMAGES}
    assert taken == {
        "service": ["libraries"],
        "cluster": ["cluster-libraries"],
        "directory": ["directory-libraries"],
    }


def test_an_image_is_built_for_serving_when_none_is_named() -> None:
    assert list(stages())[-1] == "service"


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_what_there_is_as_a_user_without_rights(image: str) -> None:
    assert python_can_run(command(image))
    user, group = map(int, last(image, "USER").split(":"))
    assert user > 0
    assert group > 0


@pytest.mark.parametrize(
    "path",
    [
        "tests/running.py",
        "bench/__main__.py",
        ".git/config",
        ".env",
        ".env.example",
        "hospitals.db",
        "hospitals.db-wal",
        ".venv/bin/python",
        "docs/page.png",
        "requirements-dev.txt",
        "static/__pycache__/x.pyc",
        "embedded_directory/__pycache__/api.cpython-311.pyc",
    ],
)
def test_what_does_not_run_is_not_sent_to_the_builder(path: str) -> None:
    assert not is_sent_to_builder(path)


def test_what_the_images_copy_is_sent_to_the_builder() -> None:
    for stage in stages().values():
        for sources, _ in stage.copies():
            for source in sources:
                assert (ROOT / source).exists()
                assert is_sent_to_builder(source), source


@pytest.fixture
def image(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder with the files of an image, and nothing else."""
    folder = tmp_path / "image"
    folder.mkdir()
    unpack(request.param, folder)
    return folder


def files_in(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize("image", ["service"], indirect=True)
def test_the_service_runs_from_the_files_of_its_image_and_writes_none_there(
    image: Path, tmp_path: Path, directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunningService, "folder", image)
    before = files_in(image)
    settings = {"database_url": f"sqlite:///{tmp_path}/data.db", "pythondontwritebytecode": 1}
    with RunningService(directory.url, **settings) as service:
        batch = service.upload(csv_of(2)).json()
        assert_exactly_once(directory, batch)
        for path in ("/docs", "/redoc", "/openapi.json", "/sample_hospitals.csv"):
            assert service.get(path).ok, path
        assert service.get("/", Accept="text/html").ok
        assert service.stop() == 0
    assert files_in(image) == before
    with RunningService(directory.url, **settings) as service:
        assert service.get(f"/batches/{batch['batch_id']}").json() == batch


@pytest.mark.parametrize("image", ["cluster"], indirect=True)
def test_a_worker_starts_from_the_files_of_its_image(image: Path) -> None:
    subprocess.run(
        [sys.executable, "-B", "-c", "import cluster.runner, worker"], cwd=image, env={}, check=True, timeout=60
    )


@pytest.mark.parametrize("image", ["directory"], indirect=True)
def test_the_directory_starts_from_the_files_of_its_image(image: Path) -> None:
    with subprocess.Popen(
        [sys.executable, *command("directory")[1:]],
        cwd=image,
        env={PREFIX + "PORT": "0"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout
            assert "http://127.0.0.1:" in process.stdout.readline()
        finally:
            process.terminate()
        assert process.wait(60) == 0


# The images' health checks


def checked(image: str, **environ: str) -> int:
    """The exit status of an image's health check, carried out here."""
    words = [sys.executable, *healthcheck(image)[1:]]
    return subprocess.run(words, env=environ, stderr=subprocess.DEVNULL, timeout=60, check=False).returncode


@pytest.fixture(scope="module", params=[{}, {"api_keys": "office:s3cret"}, {"trusted_hosts": "example.org"}], ids=str)
def service(request: pytest.FixtureRequest, shared_directory: Directory) -> Iterator[RunningService]:
    with RunningService(shared_directory.url, **request.param) as running:
        yield running


def test_the_health_check_finds_a_service_that_serves(service: RunningService) -> None:
    assert checked("service", PORT=service.url.rpartition(":")[2]) == 0


def test_the_health_check_finds_that_nobody_serves() -> None:
    assert checked("service", PORT="1") == 1


def test_the_directory_is_checked_where_it_listens() -> None:
    assert str(("127.0.0.1", read_settings({}).port)) in " ".join(healthcheck("directory"))
    assert last("directory", "EXPOSE") == str(read_settings({}).port)


# compose.yaml


def environment(service: Json) -> dict[str, str]:
    """The settings of a service there, when nothing else is set where it is started."""
    return {name: re.sub(r"\$\{\w+:-(.*)\}", r"\1", value) for name, value in service["environment"].items()}


COMPOSE = load("compose.yaml")
OURS = {name: service for name, service in COMPOSE["services"].items() if "build" in service}
SERVING = {name: service for name, service in OURS.items() if service["build"]["target"] != "directory"}


def test_compose_builds_every_image() -> None:
    assert {service["build"]["target"] for service in OURS.values()} == set(IMAGES)


@pytest.mark.parametrize("name", SERVING)
def test_compose_sets_what_the_service_understands(name: str) -> None:
    given = environment(SERVING[name])
    assert given.keys() <= NAMES
    settings = load_settings(given)
    assert settings.hospital_api_base_url == f"http://directory:{read_settings({}).port}"
    assert str(settings.port) == last("service", "EXPOSE")


@pytest.mark.parametrize("name", SERVING)
def test_compose_gives_each_time_to_end_and_a_command_that_there_is(name: str) -> None:
    service = SERVING[name]
    assert int(service["stop_grace_period"].removesuffix("s")) > GRACE
    assert python_can_run(service.get("command", command(service["build"]["target"])))


def test_compose_waits_for_what_can_be_healthy() -> None:
    for service in SERVING.values():
        for name, waits_for in service["depends_on"].items():
            needed = COMPOSE["services"][name]
            assert waits_for == {"condition": "service_healthy"}
            assert "healthcheck" in needed or healthcheck(needed["build"]["target"])
            assert set(needed.get("profiles", [])) <= set(service.get("profiles", []))


def test_compose_keeps_both_databases_and_opens_ports_on_this_machine_alone() -> None:
    services = COMPOSE["services"].values()
    volumes = [volume.split(":") for service in services for volume in service.get("volumes", [])]
    assert {name for name, _ in volumes} == COMPOSE["volumes"].keys()
    assert last("service", "VOLUME") in [where for _, where in volumes]
    assert all(port.startswith("127.0.0.1:") for service in services for port in service.get("ports", []))


# The settings, wherever they are listed


def test_the_example_of_an_environment_has_every_setting_with_its_default() -> None:
    text = (ROOT / ".env.example").read_text()
    lines = re.findall(r"(?m)^#([A-Z_]+)=(.*)$", text)
    assert [name for name, _ in lines] == [field.name.upper() for field in fields(Settings)]
    assert load_settings(dict(lines)) == Settings()
    assert dotenv_values(ROOT / ".env.example") == {}, "All of it is commented out."
    before = re.findall(r"(?m)^(.*)\n#[A-Z_]+=", text)
    assert all(re.match(r"# \S", line) for line in before), "Each has a line that says what it sets."


def test_the_readme_has_every_setting_with_its_default() -> None:
    rows = dict(re.findall(r"(?m)^\| `([A-Z_]+)` \| (\S+) \| .+ \|$", (ROOT / "README.md").read_text()))
    assert rows.keys() == NAMES
    given = {name: "" if default == "empty" else default.strip("`") for name, default in rows.items()}
    assert load_settings(given) == Settings()

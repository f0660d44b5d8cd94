"""deploy/Containerfile and deploy/compose.yaml: by their text, and in a container engine."""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import yaml

from taskservice.config import Config, unknown_names
from tests.support.api_client import RemoteClient
from tests.support.deployed_nginx import replaced
from tests.support.documents import ROOT, block_in
from tests.support.followers import open_stream
from tests.support.requirements import needs
from tests.support.service import free_port
from tests.support.waiting import until

CONTAINERFILE = ROOT / "deploy/Containerfile"
COMPOSE = ROOT / "deploy/compose.yaml"
STOP_SECONDS = 10
VERSION = "0.1.0.dev7"


class Step(NamedTuple):
    name: str
    text: str


def steps() -> list[Step]:
    lines = re.sub(r"^\s*#.*\n", "", CONTAINERFILE.read_text(), flags=re.MULTILINE)
    joined = lines.replace("\\\n", " ")
    return [Step(*line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def only(name: str) -> str:
    (text,) = [step.text for step in steps() if step.name == name]
    return text


def words(name: str) -> list[str]:
    """The command of a step, which is a list in JSON at its end."""
    text = only(name)
    return [str(word) for word in json.loads(text[text.index("[") :])]


def variables() -> dict[str, str]:
    return dict(word.split("=", 1) for word in only("ENV").split())


def test_user_is_not_root_and_data_is_one_volume() -> None:
    names = [step.name for step in steps()]
    # What is installed belongs to root.
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    assert variables()["TASKSERVICE_DATA"] == only("VOLUME")
    assert only("STOPSIGNAL") == "SIGTERM"
    assert unknown_names(variables()) == []
    config = Config.from_environment(variables() | {"TASKSERVICE_SECRET_KEY": "a" * 40})
    assert f"0.0.0.0:{only('EXPOSE')}" == config.BIND


def test_upgrade_builds_and_runs_a_container_as_the_first_one() -> None:
    first = block_in("operate", "container").splitlines()
    upgrade = block_in("operate", "upgrade a container").splitlines()
    assert first[-1].startswith("podman exec tasks taskservice user add")
    assert [line for line in upgrade if line in first] == first[:-1]
    # The image `taskservice` is the one that runs, so another upgrade keeps the right one.
    back = block_in("operate", "roll back a container").splitlines()
    assert "podman tag taskservice taskservice:before" in upgrade
    assert "podman tag taskservice:before taskservice" in back
    assert back[-1] == upgrade[-1]


# --- the compose file --------------------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of the compose file, with values for the variables that it asks for."""
    values = {
        "POSTGRES_PASSWORD": "p@ss/word",
        "TASKSERVICE_SECRET_KEY": "a" * 64,
        "PUBLIC_URL": "https://tasks.example.org/tasks",
    }

    def value(match: re.Match[str]) -> str:
        return values.get(match[1]) or match[2]

    text = re.sub(r"\$\{(\w+)(?::-([\w.]*)|:\?[^}]*)\}", value, COMPOSE.read_text())
    assert "${" not in text
    return dict(yaml.safe_load(text)["services"])


def test_compose_file_asks_for_its_secrets() -> None:
    named = set(re.findall(r"\$\{(\w*(?:PASSWORD|KEY))(..)", COMPOSE.read_text()))
    assert named == {("POSTGRES_PASSWORD", ":?"), ("TASKSERVICE_SECRET_KEY", ":?")}


def test_service_takes_the_settings_of_the_compose_file(services: dict[str, Any]) -> None:
    variables = services["taskservice"]["environment"]
    environment = {name: str(value) for name, value in variables.items()}
    assert unknown_names(environment) == []
    address: Any = Config.from_environment(environment).DATABASE_URL
    database = services["database"]["environment"]
    assert address.host in services or address.query["host"] in services
    # PostgreSQL names the database after its first user.
    assert {address.username, address.database} == {database["POSTGRES_USER"]}
    assert environment["PGPASSWORD"] == database["POSTGRES_PASSWORD"]
    assert environment["TASKSERVICE_PUBLIC_URL"] == "https://tasks.example.org/tasks"


def test_data_is_in_volumes_and_only_this_machine_is_served(services: dict[str, Any]) -> None:
    service, database = services["taskservice"], services["database"]
    mounted = [volume.split(":")[0] for part in (service, database) for volume in part["volumes"]]
    assert set(mounted) == yaml.safe_load(COMPOSE.read_text())["volumes"].keys()
    assert service["volumes"] == [f"data:{only('VOLUME')}"]
    assert service["ports"] == [f"127.0.0.1:8000:{only('EXPOSE')}"]
    assert "ports" not in database
    assert service["stop_grace_period"] == f"{STOP_SECONDS}s"
    assert service["depends_on"]["database"]["condition"] == "service_healthy"
    assert "healthcheck" in database
    build = service["build"]
    assert (COMPOSE.parent / build["context"] / build["dockerfile"]).resolve() == CONTAINERFILE


# --- in a container ----------------------------------------------------------------------


def output(*command: str, **variables: str) -> str:
    """The stdout of a command, which must succeed."""
    result = subprocess.run(
        command, env=os.environ | variables, capture_output=True, text=True, timeout=280
    )
    assert result.returncode == 0, result
    return result.stdout.strip()


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=250).returncode == 0


# What a machine needs to build an image, except the engine.
BUILD_FLAGS = os.environ.get("BUILD_FLAGS", "")


@pytest.fixture(scope="module")
def engine() -> str:
    """Podman or Docker, with the base image."""
    for program in filter(None, map(shutil.which, ("podman", "docker"))):
        if succeeds(program, "info"):
            if not has_image(program, only_base()):
                needs(f"image {only_base()}", "connect to the registry")
            return program
    return needs("container engine", "install the package podman")


def only_base() -> str:
    (base,) = {step.text.split()[0] for step in steps() if step.name == "FROM"}
    return base


def has_image(engine: str, name: str) -> bool:
    """Here, or in the registry."""
    return succeeds(engine, "image", "inspect", name) or succeeds(engine, "pull", name)


@pytest.fixture(scope="module")
def image(engine: str) -> Iterator[str]:
    tag = f"taskservice-test-{uuid4().hex}"
    output(str(ROOT / ".ci" / "image"), TAG=tag, VERSION=VERSION)
    yield tag
    output(engine, "rmi", tag)


@contextmanager
def container(engine: str, image: str, *options: str) -> Iterator[str]:
    """The ID of a container of the image, once it is healthy."""
    name = output(engine, "run", "--detach", *options, image)
    try:
        until(partial(succeeds, engine, "exec", name, *words("HEALTHCHECK")))
        yield name
    finally:
        output(engine, "rm", "--force", "--volumes", name)


# One test, since another process of the tests would have to build the image once more.
@pytest.mark.timeout(900)
def test_image_serves(engine: str, image: str, subtests: pytest.Subtests) -> None:
    with subtests.test("as a user that is a number"):
        serves_as_a_user_that_is_a_number(engine, image)
    with subtests.test("as any user of the group 0, on a Unix socket"):
        serves_as_any_user_of_the_group_0_and_on_a_unix_socket(engine, image)


def serves_as_a_user_that_is_a_number(engine: str, image: str) -> None:
    # Kubernetes must see that it is not root.
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", only("USER"))
    port = free_port()
    # docs/operate/install.md says that so much memory is enough.
    limited = ["--memory", "512m"]
    published = ["--publish", f"127.0.0.1:{port}:9000", "--env", "TASKSERVICE_BIND=0.0.0.0:9000"]
    with container(engine, image, *limited, *published) as name:
        inside = [engine, "exec", name]
        user, group = output(*inside, "id", "-u"), output(*inside, "id", "-g")
        assert f"{user}:{group}" == only("USER")
        assert output(*inside, "taskservice", "--version").endswith(VERSION)
        alice = RemoteClient(
            f"http://127.0.0.1:{port}", output(*inside, "taskservice", "user", "add", "alice")
        )
        checked = output(*inside, "taskservice", "db", "check")
        assert [line for line in checked.splitlines() if not line.startswith("ok ")] == []
        assert not succeeds(*inside, "ls", "/source")
        with open_stream(alice, alice.start(claim=True)) as stream:
            assert stream.status_code == 200
            began = time.monotonic()
            assert succeeds(engine, "stop", "--time", "30", name)
            assert time.monotonic() - began < STOP_SECONDS


def serves_as_any_user_of_the_group_0_and_on_a_unix_socket(engine: str, image: str) -> None:
    options = ["--user", "12345:0", "--env", "TASKSERVICE_BIND=unix:/data/socket"]
    with container(engine, image, *options) as name:
        inside = [engine, "exec", name]
        assert output(*inside, "id", "-u") == "12345"
        assert output(*inside, "taskservice", "user", "add", "alice").startswith("tsk_user_")
        assert not succeeds(*inside, "env", "TASKSERVICE_BIND=127.0.0.1:8000", "healthcheck")


@pytest.mark.timeout(900)
def test_image_serves_on_postgresql_by_the_compose_file(
    engine: str, image: str, tmp_path: Path
) -> None:
    """By podman-compose, in the directory of the file, with the image that it would build."""
    program = shutil.which("podman-compose")
    if program is None or not engine.endswith("podman"):
        needs("podman-compose", "install the packages podman and podman-compose")
    project, port, database = f"test-{uuid4().hex}", free_port(), "docker.io/library/postgres:17"
    if not has_image(engine, database):
        stand_in = str(Path(__file__).with_name("postgresql.Containerfile"))
        output(engine, "build", *BUILD_FLAGS.split(), "--file", stand_in, "--tag", database)
    values = {
        "name: taskservice": f"name: {project}",
        "context: ..": f"context: {ROOT}",
        "127.0.0.1:8000": f"127.0.0.1:{port}",
    }
    (tmp_path / "compose.yaml").write_text(replaced(COMPOSE.read_text(), values))
    secrets = f"POSTGRES_PASSWORD=p@ss/word\nTASKSERVICE_SECRET_KEY={'a' * 64}\n"
    (tmp_path / ".env").write_text(secrets)
    service, server = (f"{project}_{name}_1" for name in ("taskservice", "database"))
    built = f"localhost/{project}_taskservice"
    output(engine, "tag", image, built)
    with open(tmp_path / "log", "wb") as log:
        up = subprocess.Popen([program, "up", "-d"], cwd=tmp_path, stdout=log, stderr=log)
    try:
        # Where no systemd runs, nobody else asks for its health.
        until(partial(succeeds, engine, "healthcheck", "run", server))
        assert up.wait(timeout=280) == 0, (tmp_path / "log").read_text()
        until(partial(succeeds, engine, "healthcheck", "run", service))
        inside = [engine, "exec", service]
        key = output(*inside, "taskservice", "user", "add", "alice")
        alice = RemoteClient(f"http://127.0.0.1:{port}", key)
        before = alice.start()
        assert before["status"] == "running"
        assert "PostgreSQL 17" in output(*inside, "taskservice", "db", "check")
        run_by_hand("upgrade Compose", tmp_path, engine, service, server)
        after = alice.start()
        assert {task["id"] for task in alice.tasks()} == {before["id"], after["id"]}
        run_by_hand("roll back Compose", tmp_path, engine, service, server)
        assert [task["id"] for task in alice.tasks()] == [before["id"]]
    finally:
        up.kill()
        up.wait()
        subprocess.run([program, "down", "--volumes"], cwd=tmp_path, check=True, timeout=280)
        output(engine, "rmi", built)


def run_by_hand(block: str, directory: Path, engine: str, service: str, server: str) -> None:
    """Type a block of docs/operate/upgrade.md, but with the image that is already there."""
    text = block_in("operate", block).replace(" --build", "")
    script = f"git() {{ echo 8; }}\n{text}"
    with open(directory / "log", "ab") as log:
        typed = subprocess.Popen(["bash", "-ec", script], cwd=directory, stdout=log, stderr=log)
    try:
        # Where no systemd runs, nobody else asks for the health of a container that is new.
        until(lambda: succeeds(engine, "healthcheck", "run", server) and typed.poll() is not None)
        assert typed.returncode == 0, (directory / "log").read_text()
        until(partial(succeeds, engine, "healthcheck", "run", service))
    finally:
        typed.kill()
        typed.wait()

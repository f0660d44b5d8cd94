"""deploy/Containerfile and deploy/compose.yaml: by their text, and in a container engine."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
import requests
import yaml

from taskservice.config import Config, unknown_names
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT
from tests.support.followers import open_stream
from tests.support.packages import run_pip
from tests.support.service import free_port
from tests.support.waiting import until

CONTAINERFILE = ROOT / "deploy/Containerfile"
COMPOSE = ROOT / "deploy/compose.yaml"
STOP_SECONDS = 10


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
    user = only("USER")
    assert any(re.search(rf"useradd .*{user}", step.text) for step in steps() if step.name == "RUN")
    # What is installed belongs to root.
    assert names.index("USER") > max(place for place, name in enumerate(names) if name == "RUN")
    assert variables()["TASKSERVICE_DATA"] == only("VOLUME")
    assert only("STOPSIGNAL") == "SIGTERM"
    assert unknown_names(variables()) == []
    config = Config.from_environment(variables() | {"TASKSERVICE_SECRET_KEY": "a" * 40})
    assert f"0.0.0.0:{only('EXPOSE')}" == config.BIND


class Installed:
    """What the steps make, in a folder in the place of `/`."""

    def __init__(self, folder: Path) -> None:
        self.root, self.port = folder, free_port()
        self.bin = folder / "venv" / "bin"
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        for step in steps():
            if step.name == "COPY":
                self._copy(*step.text.split())
            elif step.name == "RUN" and "pip install" in step.text:
                run_pip(["sh", "-ec", self.here(step.text)], self.environment())

    def here(self, text: str) -> str:
        text = text.replace(":8000", f":{self.port}").replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"(?<![\w.:/])/(?=source|data)", f"{self.root}/", text)

    def environment(self) -> dict[str, str]:
        given = {name: self.here(value) for name, value in variables().items()}
        return {"PATH": f"{self.bin}:/usr/bin:/bin"} | given

    def _copy(self, *names: str) -> None:
        *sources, target = names
        for source in sources:
            if (ROOT / source).is_dir():
                unwanted = shutil.ignore_patterns("__pycache__")
                shutil.copytree(ROOT / source, self.here(target), ignore=unwanted)
            else:
                Path(self.here(target)).mkdir(exist_ok=True)
                shutil.copy(ROOT / source, self.here(target))

    def run(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.here(word) for word in command], cwd=self.root, env=self.environment(),
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    @contextmanager
    def served(self) -> Iterator["subprocess.Popen[bytes]"]:
        command = [str(self.bin / words("ENTRYPOINT")[0]), *words("CMD")]
        with open(self.root / "log", "wb") as log:
            process = subprocess.Popen(
                command, cwd=self.root, env=self.environment(), stdout=log, stderr=log
            )
        try:
            until(partial(self._is_healthy, process))
            yield process
        finally:
            process.kill()
            process.wait()

    def _is_healthy(self, process: "subprocess.Popen[bytes]") -> bool:
        assert process.poll() is None, (self.root / "log").read_text()
        return self.run(words("HEALTHCHECK")).returncode == 0


def test_steps_install_a_service_that_is_healthy_and_ends_in_time(tmp_path: Path) -> None:
    installed = Installed(tmp_path)
    assert installed.run(words("HEALTHCHECK")).returncode != 0
    with installed.served() as process:
        added = installed.run([str(installed.bin / "taskservice"), "user", "add", "alice"])
        assert added.returncode == 0, added
        alice = RemoteClient(f"http://127.0.0.1:{installed.port}", added.stdout.strip())
        with open_stream(alice, alice.start(claim=True)) as stream:
            assert stream.status_code == 200
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert time.monotonic() - began < STOP_SECONDS
    assert installed.run(words("HEALTHCHECK")).returncode != 0
    assert {"taskservice.db", "secret_key"} <= set(os.listdir(tmp_path / "data"))


# --- the compose file --------------------------------------------------------------------


@pytest.fixture
def services() -> dict[str, Any]:
    """The services of the compose file, with values for the variables that it asks for."""
    values = {"POSTGRES_PASSWORD": "p@ss/word", "TASKSERVICE_SECRET_KEY": "a" * 64}

    def value(found: re.Match[str]) -> str:
        return values.get(found[1]) or found[2]

    text = re.sub(r"\$\{(\w+)(?::-(\w*)|:\?[^}]*)\}", value, COMPOSE.read_text())
    assert "${" not in text
    return dict(yaml.safe_load(text)["services"])


def test_compose_file_asks_for_its_secrets() -> None:
    named = set(re.findall(r"\$\{(\w*(?:PASSWORD|KEY))(..)", COMPOSE.read_text()))
    assert named == {("POSTGRES_PASSWORD", ":?"), ("TASKSERVICE_SECRET_KEY", ":?")}


def test_service_takes_the_settings_of_the_compose_file(services: dict[str, Any]) -> None:
    given = services["taskservice"]["environment"]
    environment = {name: str(value) for name, value in given.items()}
    assert unknown_names(environment) == []
    address: Any = Config.from_environment(environment).DATABASE_URL
    database = services["database"]["environment"]
    assert address.host in services or address.query["host"] in services
    # PostgreSQL names the database after its first user.
    assert {address.username, address.database} == {database["POSTGRES_USER"]}
    assert environment["PGPASSWORD"] == database["POSTGRES_PASSWORD"]


def test_data_is_in_volumes_and_only_this_machine_is_served(services: dict[str, Any]) -> None:
    service, database = services["taskservice"], services["database"]
    mounted = [volume.split(":")[0] for each in (service, database) for volume in each["volumes"]]
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


def succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, timeout=250).returncode == 0


@pytest.fixture
def engine() -> str:
    """Podman or Docker; skipped without them in CI too, which may run where none can be."""
    for program in filter(None, map(shutil.which, ("podman", "docker"))):
        if succeeds(program, "info"):
            if succeeds(program, "pull", only("FROM")):
                return program
            pytest.skip(f"no image {only('FROM')}")
    pytest.skip("no container engine: install the package podman")


@contextmanager
def container(engine: str, port: int) -> Iterator[str]:
    """The id of a container of the image, which is built before."""
    tag = f"taskservice-test-{uuid4().hex}"
    formatted = ["--format", "docker"] if engine.endswith("podman") else []
    subprocess.run(
        [engine, "build", *formatted, "--file", str(CONTAINERFILE), "--tag", tag, str(ROOT)],
        check=True, timeout=280,
    )  # fmt: skip
    publish = f"127.0.0.1:{port}:{only('EXPOSE')}"
    started = subprocess.check_output([engine, "run", "--detach", "--publish", publish, tag])
    name = started.decode().strip()
    try:
        yield name
    finally:
        subprocess.run([engine, "rm", "--force", "--volumes", name], check=True, timeout=60)
        subprocess.run([engine, "rmi", tag], check=True, timeout=60)


@pytest.mark.timeout(900)
def test_image_serves_as_another_user_than_root(engine: str) -> None:
    port = free_port()
    with container(engine, port) as name:
        until(partial(is_up, port))
        inside = [engine, "exec", name]
        assert subprocess.check_output([*inside, "id", "-u"]).strip() != b"0"
        assert succeeds(*inside, *words("HEALTHCHECK"))
        key = subprocess.check_output([*inside, "taskservice", "user", "add", "alice"])
        alice = RemoteClient(f"http://127.0.0.1:{port}", key.decode().strip())
        assert alice.start()["status"] == "running"
        began = time.monotonic()
        assert succeeds(engine, "stop", "--time", "30", name)
        assert time.monotonic() - began < STOP_SECONDS


def is_up(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/readyz", timeout=60).ok
    except requests.ConnectionError:
        return False

"""Clients that two generators make of the document: each takes a task through its life."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from shutil import copy
from types import ModuleType
from typing import Any

import pytest
import requests

from taskservice.terms import API_PREFIX
from tests.support.api_client import RemoteClient
from tests.support.receiver import Receiver
from tests.support.service import Service

PROGRAMS = Path(__file__).parent / "programs"
GENERATOR = "openapi-generator.jar"
# Generator -> its options.
GENERATORS: dict[str, dict[str, Any]] = {
    "go": {"gitHost": "example.com", "gitUserId": "taskservice", "gitRepoId": "client"},
    "java": {
        "library": "native",
        "additionalProperties": {"openApiNullable": False, "hideGenerationTimestamp": True},
    },
    "python": {},
    "typescript-fetch": {"additionalProperties": {"importFileExtension": ".js"}},
}
# Of webhooks it makes a class that is invalid Python, as docs/guides/http.md says.
WITHOUT_WEBHOOKS = {"python"}


@dataclass
class Life:
    """Where a program takes a task through its life, and what it must print in the end."""

    owner: RemoteClient
    receiver: Receiver

    def run(self, folder: Path, *command: str, **variables: str) -> None:
        key = str(self.owner.session.headers["apikey"])
        printed = run(folder, *command, self.owner.url, key, self.receiver.url, **variables)
        ((webhook),) = self.receiver.wait_for(1)
        task_id = json.loads(webhook.body)["id"]
        assert printed == f"{task_id} complete 3 one,two delivered\n"
        (task,) = self.owner.request("GET", "/task").json()
        assert (task["id"], task["output"]) == (task_id, {"sum": 3})


def run(folder: Path, *command: str, **variables: str) -> str:
    """The stdout of a command that must succeed."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True,
        timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def clients(shared: Service, java: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the client of each generator, made by one run of the program."""
    folder = tmp_path_factory.mktemp("clients")
    document = requests.get(f"{shared.url}/openapi.json", timeout=60).json()
    for name, options in GENERATORS.items():
        left_out = {"webhooks"} if name in WITHOUT_WEBHOOKS else set()
        read = {key: value for key, value in document.items() if key not in left_out}
        (folder / f"{name}-openapi.json").write_text(json.dumps(read))
        settings = {
            "generatorName": name,
            "inputSpec": str(folder / f"{name}-openapi.json"),
            "outputDir": str(folder / name),
            **options,
        }
        (folder / f"{name}.json").write_text(json.dumps(settings))
    jar = str(files("openapi_generator_cli") / GENERATOR)
    settings_files = [f"{name}.json" for name in GENERATORS]
    run(folder, java, "-jar", jar, "batch", "--fail-fast", "--threads", "2", *settings_files)
    return folder


@pytest.fixture
def life(owner: RemoteClient, receiver: Receiver) -> Life:
    return Life(owner, receiver)


def test_client_for_go_takes_a_task_through_its_life(clients: Path, go: str, life: Life) -> None:
    folder = clients / "go"
    (folder / "life").mkdir()
    copy(PROGRAMS / "life.go", folder / "life")
    # It needs no module of others.
    alone = {"GOFLAGS": "-mod=mod", "GOPROXY": "off"}
    run(folder, go, "vet", ".", "./life", **alone)
    life.run(folder, go, "run", "./life", **alone)


def test_client_for_java_takes_a_task_through_its_life(
    clients: Path, java: str, javac: str, class_path: str, life: Life
) -> None:
    folder = clients / "java"
    sources = folder / "src" / "main" / "java"
    # Debian's Jackson is too old for these, as docs/guides/http.md says.
    package = sources / "org" / "openapitools" / "client"
    for name in ("RFC3339InstantDeserializer", "RFC3339JavaTimeModule"):
        (package / f"{name}.java").unlink()
    api_client = package / "ApiClient.java"
    registered = "mapper.registerModule(new RFC3339JavaTimeModule());"
    api_client.write_text(api_client.read_text().replace(registered, ""))
    copy(PROGRAMS / "Life.java", sources)
    all_sources = [str(path) for path in sources.rglob("*.java")]
    run(folder, javac, "-nowarn", "-d", "built", "-cp", class_path, *all_sources)
    life.run(folder, java, "-cp", os.pathsep.join(("built", class_path)), "Life")


def test_client_for_python_takes_a_task_through_its_life(clients: Path, life: Life) -> None:
    copy(PROGRAMS / "life.py", clients / "python")
    life.run(clients / "python", sys.executable, "life.py")


def test_client_for_typescript_takes_a_task_through_its_life(
    clients: Path, node_modules: Path, life: Life
) -> None:
    folder = clients / "typescript-fetch"
    copy(PROGRAMS / "life.ts", folder)
    (folder / "package.json").write_text('{"type": "module"}')
    options = ["--strict", "--target", "es2022", "--module", "nodenext", "--outDir", "built"]
    run(folder, "node", str(node_modules / ".bin" / "tsc"), *options, "life.ts")
    life.run(folder, "node", "built/life.js")


@pytest.fixture
def client_package(
    shared: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """The name of a package that openapi-python-client makes of the live document."""
    package = "generated_client"
    (tmp_path / "settings.json").write_text('{"post_hooks": []}')
    command = [sys.executable, "-m", "openapi_python_client", "generate", "--meta", "none"]
    options = ["--url", f"{shared.url}/openapi.json", "--output-path", str(tmp_path / package)]
    made = subprocess.run(
        [*command, *options, "--config", str(tmp_path / "settings.json")],
        env={**os.environ, "NO_PROXY": "127.0.0.1"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        del sys.modules[name]


def test_client_of_openapi_python_client_takes_a_task_through_its_life(
    owner: RemoteClient, client_package: str
) -> None:
    def module(name: str) -> ModuleType:
        return importlib.import_module(f"{client_package}.{name}")

    def call(name: str, *path: Any, **options: Any) -> Any:
        return module(f"api.{name}").sync_detailed(*path, client=client, **options)

    models = module("models")
    client = module("client").AuthenticatedClient(
        base_url=owner.url,
        token=owner.session.headers["apikey"],
        prefix="",
        auth_header_name="apikey",
        raise_on_unexpected_status=True,
        httpx_args={"trust_env": False},
    )
    with client:
        call("agents.put_agent", "counter", body=models.PutAgent(name="The counter"))
        fields = models.Start(
            agent_id="counter", input_=models.StartInputType0.from_dict({"from": 1})
        )
        started = call("tasks.start_task", body=fields, idempotency_key="once")
        task = started.parsed
        assert (started.status_code, task.name, task.input_["from"]) == (201, "The counter", 1)
        assert started.headers["Location"] == f"task/{task.id}"
        assert call("tasks.start_task", body=fields, idempotency_key="once").parsed.id == task.id
        assert call("agents.claim_task", "counter").parsed.claimed_at
        assert call("agents.claim_task", "counter").status_code == 204
        lines = models.Append(logs=["one", "two"], seq=1)
        for _ in range(2):
            assert call("logs.append_logs", task.id, body=lines).parsed.log_count == 2
        output = models.ReportOutput.from_dict({"sum": 15})
        report = models.Report(status=models.ReportStatus.COMPLETE, output=output)
        reported = call("tasks.report_task", task.id, body=report)
        assert reported.headers["Callback-Status"] == "none"
        got = call("tasks.get_task", task.id, expand="agent").parsed
        assert (got.status, got.output["sum"], got.logs) == ("complete", 15, ["one", "two"])
        assert got.agent.name == "The counter"
        # Values with other limits have their own type.
        url = f"{API_PREFIX}/task/{task.id}"
        part = client.get_httpx_client().get(url, params={"fields": "status"}).json()
        assert models.PartialTask.from_dict(part).status == "complete"
        (agent,) = call("agents.list_agents", expand="health").parsed
        assert agent.health.recent[0].id == task.id
        etag = call("tasks.get_task", task.id).headers["ETag"]
        assert call("tasks.get_task", task.id, if_none_match=etag).status_code == 304
        listed = call("tasks.list_tasks", status=models.ListTasksStatus.COMPLETE, limit=1)
        assert [one.id for one in listed.parsed] == [task.id]
        late = call("logs.append_logs", task.id, body=lines).parsed
        assert (late.status, late.task.status) == (409, "complete")
        assert call("agents.delete_agent", "counter").parsed.detail
        assert call("tasks.delete_task", task.id).parsed.id == task.id
        assert call("tasks.get_task", task.id).parsed.detail == "Task's ID is not found"
        assert call("agents.delete_agent", "counter").status_code == 200

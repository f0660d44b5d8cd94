"""Recipes: the frameworks that they name run them, and validators of other projects read them."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.api_client import RemoteClient
from tests.support.booted_machine import SHARED, BootedMachine
from tests.support.documents import ROOT, block_in
from tests.support.mcp_clients.packages import python_environment
from tests.support.requirements import needs
from tests.support.waiting import until

# It may have to install a framework first.
pytestmark = pytest.mark.timeout(600)
RUN_SECONDS = 120
VERSIONS = json.loads((Path(__file__).parent / "versions.json").read_text())["pypi"]


def environment(name: str) -> Path:
    """The Python of an environment with a framework or the validators."""
    return python_environment(name, VERSIONS[name])


# --- frameworks --------------------------------------------------------------------------


class StubResponses(BaseHTTPRequestHandler):
    """A model behind OpenAI's Responses API: it calls the first tool, then it is done."""

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        results = [
            item["output"]
            for item in request["input"]
            if item.get("type") == "function_call_output"
        ]
        text = {"type": "output_text", "text": "".join(results), "annotations": []}
        output: dict[str, Any] = {
            "type": "message", "id": "msg_1", "role": "assistant", "status": "completed",
            "content": [text],
        } if results else {
            "type": "function_call", "id": "fc_1", "call_id": "call_1", "status": "completed",
            "name": request["tools"][0]["name"], "arguments": json.dumps({"folder": "inbox"}),
        }  # fmt: skip
        response = {
            "id": "resp_1", "object": "response", "created_at": 0, "status": "completed",
            "model": request["model"], "output": [output], "tools": [], "tool_choice": "auto",
            "parallel_tool_calls": False,
        }  # fmt: skip
        body = json.dumps(response).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@pytest.fixture
def model_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), StubResponses)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def task_of(owner: RemoteClient) -> dict[str, Any]:
    (task,) = owner.request("GET", "/task").json()
    return dict(task)


def asking(owner: RemoteClient) -> dict[str, Any] | None:
    """The owner's task once it asks something."""
    tasks: list[dict[str, Any]] = owner.request("GET", "/task").json()
    return tasks[0] if tasks and tasks[0]["questions"] else None


def answered(
    owner: RemoteClient, python: Path, folder: Path, recipe: str, answer: str, **settings: str
) -> dict[str, Any]:
    """The task that the recipe leaves when its question is answered so."""
    (folder / "recipe.py").write_text(block_in("guides", f"recipe: {recipe}"))
    around = os.environ | settings | {
        "TASKSERVICE_URL": owner.url, "TASKSERVICE_APIKEY": str(owner.session.headers["apikey"]),
        "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    command = [str(python), "recipe.py"]

    def run() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=folder, env=around, capture_output=True, text=True, timeout=RUN_SECONDS
        )

    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(run)
        task = until(lambda: asking(owner) or ended.done())
        assert isinstance(task, dict), ended.result().stderr
        path = f"/task/{task['id']}/question/{task['questions'][0]['id']}/answer"
        content = {"action": "accept", "content": {"answer": answer}}
        owner.request("POST", path, json=content).raise_for_status()
        assert ended.result().returncode == 0, ended.result().stderr
    return task_of(owner)


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_recipe_for_langgraph_logs_each_node_and_asks(
    owner: RemoteClient, tmp_path: Path, answer: str
) -> None:
    task = answered(owner, environment("langgraph"), tmp_path, "langgraph.py", answer)
    assert (task["status"], [line.split(":")[0] for line in task["logs"]]) == (
        "complete",
        ["research", "publish"],
    )
    text = "A webhook is a request."
    assert task["output"] == {"answer": text, "published": answer == "yes"}


@pytest.mark.parametrize(
    ("answer", "result"), [("yes", "3 files were deleted."), ("no", "A person did not allow it.")]
)
def test_recipe_for_openai_agents_logs_each_tool_and_asks(
    owner: RemoteClient, tmp_path: Path, model_url: str, answer: str, result: str
) -> None:
    python = environment("openai-agents")
    settings = {
        "OPENAI_BASE_URL": model_url, "OPENAI_API_KEY": "none",
        "OPENAI_AGENTS_DISABLE_TRACING": "1",
    }  # fmt: skip
    task = answered(owner, python, tmp_path, "openai-agents.py", answer, **settings)
    assert task["status"] == "complete"
    assert task["logs"] == ["cleaner calls delete_files", f"delete_files: {result}"]
    assert task["output"] == {"answer": result}


# --- validators --------------------------------------------------------------------------

# Directory and recipe -> the program that reads it, with its arguments.
VALIDATORS = {
    ("guides", "github"): "check-jsonschema --builtin-schema vendor.github-workflows",
    ("guides", "gitlab"): "check-jsonschema --builtin-schema vendor.gitlab-ci",
    ("guides", "compose"): "check-jsonschema --builtin-schema vendor.compose-spec",
    ("guides", "kubernetes"): "kubernetes-validate --strict",
    ("operate", "kubernetes service"): "kubernetes-validate --strict",
}


def accepts(validator: str, path: Path) -> bool:
    name, *arguments = validator.split()
    command = [str(environment("validators").with_name(name)), *arguments, str(path)]
    return subprocess.run(command, capture_output=True, timeout=RUN_SECONDS).returncode == 0


@pytest.mark.parametrize(("folder", "recipe"), VALIDATORS)
def test_recipe_follows_the_schema_of_its_format(folder: str, recipe: str, tmp_path: Path) -> None:
    path = tmp_path / f"{recipe}.yml"
    text = block_in(folder, f"recipe: {recipe}")
    path.write_text(text)
    assert accepts(VALIDATORS[folder, recipe], path)
    path.write_text(f"{text}\nmisspelt: 1\n")
    assert not accepts(VALIDATORS[folder, recipe], path)


def test_systemd_reads_the_units_of_the_recipe(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        needs("systemd-analyze", "install the package systemd")
    for name in ("backup.service", "backup.timer"):
        text = block_in("guides", f"recipe: {name}")
        # A program that is there, instead of the client's.
        (tmp_path / name).write_text(text.replace("/opt/taskservice/bin/taskservice", "/bin/true"))
    done = subprocess.run(
        [program, "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_timer_of_the_recipe_resends_even_after_a_failed_run(tmp_path: Path) -> None:
    with BootedMachine(tmp_path / "machine") as machine:
        unit = block_in("guides", "recipe: backup.service")
        (machine.folder / "backup.service").write_text(unit)
        machine.run(
            "useradd --system backup || id backup\n"
            "mkdir -p /opt/taskservice/bin\n"
            "touch /etc/backup.env\n"
            f"cp {SHARED}/backup.service /etc/systemd/system/\n"
            # In the place of the client's: the run fails, as its program does.
            "printf '#!/bin/sh\\necho \"$@\" status:$EXIT_STATUS\\n[ $# = 2 ]\\n' "
            "> /opt/taskservice/bin/taskservice\n"
            "chmod 755 /opt/taskservice/bin/taskservice\n"
            "systemctl daemon-reload"
        )
        assert machine.start("systemctl start backup.service").returncode == 1
        assert "run --resend status:1" in machine.journal()

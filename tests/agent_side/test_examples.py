"""The examples run, and so do blocks of the guides, as printed."""

import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.agent_machine import AgentMachine, Command
from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT, Terminal, block_in, install_commands
from tests.support.mcp import FORMS, TASKS, McpClient
from tests.support.receiver import Receiver
from tests.support.service import free_port
from tests.support.waiting import until

EXAMPLES = ROOT / "examples"


def python(machine: AgentMachine, *arguments: str) -> None:
    environment = {**machine.environment, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, *arguments], env=environment, check=True, timeout=60)


def test_shell_script(machine: AgentMachine, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "one.txt").write_text("1")
    (folder / "two.txt").write_text("2")
    script, archive = str(EXAMPLES / "backup.sh"), str(tmp_path / "archive.tgz")
    result = machine.run("run", "--agent", "backup", "--", script, str(folder), archive)
    task = machine.user.the_task()
    assert result.returncode == 0, result.stderr
    assert task["output"] | {"bytes": 0} == {"archive": archive, "files": 2, "bytes": 0}
    assert f"Packing {folder}" in task["logs"]
    assert [line for line in task["logs"] if line.endswith("./one.txt")]
    failed = machine.run("run", "--agent", "backup", "--", script, "/nowhere", archive)
    assert failed.returncode != 0
    assert machine.user.tasks()[0]["status"] == "error"


def test_python_script(machine: AgentMachine, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("some words")
    python(machine, str(EXAMPLES / "summary.py"), str(text))
    task = machine.user.the_task()
    assert task["logs"] == [f"{text}: 2 words"]
    assert (task["status"], task["output"]) == ("complete", {str(text): 2})


def test_workflow_with_a_model(machine: AgentMachine) -> None:
    python(machine, str(EXAMPLES / "workflow.py"), "webhooks")
    task = machine.user.the_task()
    assert task["name"] == "webhooks"
    assert list(task["output"]) == ["outline", "draft", "review"]
    assert [line for line in task["logs"] if "prompt: Outline: webhooks" in line]
    steps = [line.split()[0] for line in task["logs"] if " took " in line]
    assert steps == ["Outline", "Draft", "Review"]
    assert len(task["logs"]) == 9
    assert (task["progress"], task["note"]) == (1, "3 of 3 steps")


def test_worker(machine: AgentMachine) -> None:
    program = [sys.executable, str(EXAMPLES / "word_count.py")]
    worker = machine.spawn("work", "--agent", "word-count", "--", *program)
    machine.user.start("word-count", input={"text": "some more words"})
    machine.user.start("word-count", input={})
    until(lambda: all(task["finishedAt"] for task in machine.user.tasks()))
    worker.end()
    without, with_text = machine.user.tasks()
    assert with_text["output"] == {"words": 3}
    assert (without["status"], without["logs"]) == ("error", ["The input has no text"])


def test_worker_that_asks_before_it_deletes(machine: AgentMachine, tmp_path: Path) -> None:
    schema = EXAMPLES / "clean_up.json"
    added = machine.run("agent", "add", "clean-up", "--input-schema", f"@{schema}")
    assert added.returncode == 0, added.stderr
    task_input = {"directory": str(tmp_path / "folder"), "days": 10}
    refused = machine.run("task", "start", "--agent", "clean-up", "--input", '{"directory": 1}')
    assert (refused.returncode, refused.stdout) == (1, "")
    old, kept = ["one.txt", "two.txt"], ["folder", "link", "new.txt"]
    folder = tmp_path / "folder"
    (folder / "folder").mkdir(parents=True)
    (folder / "link").symlink_to(tmp_path)
    for name in (*old, "new.txt"):
        (folder / name).write_text(name)
    for name in old:
        os.utime(folder / name, (0, 0))
    program = [sys.executable, str(EXAMPLES / "clean_up.py")]
    worker = machine.spawn("work", "--agent", "clean-up", "--", *program)

    def run(*answer: str) -> tuple[Any, list[str]]:
        """The output of a task whose question is answered so, and what is in the directory."""
        task = machine.user.start("clean-up", input=task_input)
        (question,) = until(lambda: machine.user.tasks()[0]["questions"])
        assert question["message"].splitlines() == [f"Delete 2 files of {folder}?", *old]
        assert machine.run("task", "answer", task["id"], *answer).returncode == 0
        until(lambda: machine.user.tasks()[0]["finishedAt"])
        assert machine.user.tasks()[0]["status"] == "complete"
        return machine.user.tasks()[0]["output"], contents(folder)

    everything = sorted([*old, *kept])
    assert run("keep") == ({"deleted": 0}, everything)
    assert run("--decline") == ({"deleted": 0}, everything)
    # In a chat, whose client shows the question as a form.
    chat = McpClient(machine.user, TASKS, FORMS)
    tool = until(lambda: chat.tools().get("clean_up"))
    assert tool["inputSchema"] == json.loads(schema.read_text())
    task_id = chat.call("clean_up", task_input)["taskId"]
    until(lambda: chat.state(task_id)["status"] == "input_required")
    ((question_id, form),) = chat.state(task_id)["inputRequests"].items()
    assert form["params"]["requestedSchema"]["properties"]["answer"]["enum"] == ["delete", "keep"]
    responses = {question_id: {"action": "accept", "content": {"answer": "delete"}}}
    chat.modern("tasks/update", {"taskId": task_id, "inputResponses": responses})
    until(lambda: chat.state(task_id)["status"] == "completed")
    result = chat.state(task_id)["result"]["structuredContent"]
    assert (result["output"], contents(folder)) == ({"deleted": 2}, kept)
    assert machine.user.tasks()[0]["note"] == "2 of 2 files"
    worker.end()


def contents(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_receiver_takes_only_what_is_signed(machine: AgentMachine) -> None:
    secret = machine.user.read("/callback-secret")["secret"]
    port = free_port()
    command = [sys.executable, str(EXAMPLES / "receiver.py"), str(port)]
    environment = {**machine.environment, "CALLBACK_SECRET": secret}
    receiver = Command(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while "Running on" not in (line := receiver.read_error()):
        assert line, "The receiver did not start"
    url = f"http://127.0.0.1:{port}/"
    task = machine.user.start("counter", callback=url)
    change = {"status": "complete", "output": {"sum": 15}}
    ended = machine.user.request("PATCH", f"/task/{task['id']}", json=change)
    assert ended.headers["Callback-Status"] == "delivered"
    forged = subprocess.run(
        ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", "{}", url],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert forged.stdout == "400"
    printed, _ = receiver.end()
    assert printed.splitlines()[-1] == "counter complete {'sum': 15}"


# --- the document ------------------------------------------------------------------------


LINES = ["line 1", "line 2", "line 3"]
# Block of a guide -> the command that runs it as a file, and what its task has.
DOCUMENTED: dict[str, tuple[str, dict[str, Any]]] = {
    "agent: shell": ("", {"logs": [*LINES, '{"sum": 6}'], "output": {"sum": 6}}),
    "agent: curl": ("", {"name": "from curl", "logs": LINES, "output": {"sum": 6}}),
    "agent.py": ("python FILE", {"name": "from Python", "logs": LINES, "output": {"sum": 6}}),
    "steps.py": ("python FILE", {"note": "68 of 68 pages", "labels": {"env": "prod"}}),
    "program.py": (
        "taskservice run --agent counter -- python FILE",
        {"logs": ["a line that is not printed"], "output": {"share": 0.5}},
    ),
    "recipe: agent.py": ("python FILE", {"note": "3 of 3 questions"}),
}


@pytest.mark.parametrize("name", DOCUMENTED)
def test_documented_program(
    machine: AgentMachine, agents_terminal: Terminal, tmp_path: Path, name: str
) -> None:
    command, members = DOCUMENTED[name]
    text = block_in("guides", name)
    (tmp_path / "program").write_text(text)
    shown = agents_terminal.run(command.replace("FILE", "program") or text)
    task = machine.user.the_task()
    assert task | members | {"status": "complete"} == task
    if name == "steps.py":
        assert shown == f"{machine.user.url}/tasks/{task['id']}"
        assert re.fullmatch(r"read the pages took \d+\.\d\d s", *task["logs"])


def answered(
    machine: AgentMachine, terminal: Terminal, program: str, *answer: str
) -> dict[str, Any]:
    """The task of a program whose question is answered so."""
    with ThreadPoolExecutor(1) as threads:
        ended = threads.submit(terminal.run, program)
        task = until(lambda: [task for task in machine.user.tasks() if task["questions"]])[0]
        done = machine.run("task", "answer", task["id"], *answer)
        assert done.returncode == 0, done.stderr
        ended.result()
    return machine.user.tasks()[0]


def test_documented_question(
    agents_terminal: Terminal, machine: AgentMachine, tmp_path: Path
) -> None:
    (tmp_path / "deploy.sh").write_text(block_in("guides", "ask: shell"))
    command = "taskservice run --agent deployer -- sh deploy.sh"
    task = answered(machine, agents_terminal, command, "yes")
    assert task["logs"][-1] == "deploying"


def test_documented_worker_session(agents_terminal: Terminal, machine: AgentMachine) -> None:
    work = block_in("guides", "worker")
    start = block_in("guides", "worker: start")
    with Receiver() as receiver:
        machine.user.register("word-count")
        agents_terminal.run(f"{work}\nWORKER=$!")
        agents_terminal.run(f"API={machine.url}/api/v1\nKEY={machine.key}")
        agents_terminal.run(start.replace("http://127.0.0.1:9000/", receiver.url))
        (webhook,) = receiver.wait_for(1, 60)
        agents_terminal.run("kill $WORKER\nwait $WORKER")
    task = json.loads(webhook.body)
    assert (task["status"], task["output"]) == ("complete", {"words": 3})


# --- approvals ---------------------------------------------------------------------------


def of_approvals(part: str) -> str:
    return block_in("guides", f"approvals: {part}")


@pytest.mark.parametrize(
    ("answer", "status", "last"),
    [
        ("yes", "complete", "deploying"),
        ("no", "complete", "not deployed"),
        ("--decline", "error", ""),
    ],
)
def test_documented_approval_in_a_script(
    agents_terminal: Terminal,
    machine: AgentMachine,
    tmp_path: Path,
    answer: str,
    status: str,
    last: str,
) -> None:
    (tmp_path / "deploy.sh").write_text(of_approvals("deploy.sh"))
    program = of_approvals("deploy")
    task = answered(machine, agents_terminal, program, answer)
    assert task["status"] == status
    assert task["logs"][0] == "3 changes are ready"
    assert task["logs"][-1] == last or not last
    # The rules of the page: nothing but yes deploys.
    assert ("deploying" in task["logs"]) == (answer == "yes")


def test_documented_approval_with_a_form(
    agents_terminal: Terminal, machine: AgentMachine, tmp_path: Path
) -> None:
    (tmp_path / "release.json").write_text(of_approvals("release.json"))
    command = of_approvals("answer").split()
    assert command[:4] == ["taskservice", "task", "answer", "ID"]
    program = of_approvals("release")
    task = answered(machine, agents_terminal, program, *command[4:])
    assert (task["status"], task["output"]) == (
        "complete",
        {"regions": ["eu", "us"], "percent": 25},
    )


def test_documented_approval_in_python(
    agents_terminal: Terminal, machine: AgentMachine, tmp_path: Path
) -> None:
    (tmp_path / "clean.py").write_text(of_approvals("clean.py"))
    command = "python clean.py"
    task = answered(machine, agents_terminal, command, "keep")
    assert (task["status"], task["logs"]) == ("complete", ["The answer is keep."])
    task = answered(machine, agents_terminal, command, "--decline")
    assert task["logs"] == ["Nothing was deleted. The question was declined."]


# --- recipes -----------------------------------------------------------------------------

# Recipe -> the name and the labels of the last task that it leaves.
RECIPES: dict[str, tuple[str, dict[str, str]]] = {
    "cron": ("nightly", {}),
    "loop": ("two.txt", {"folder": "inbox"}),
    "Makefile": ("test", {}),
    "github": ("nightly", {"branch": "main", "run": "12"}),
    "gitlab": ("evaluate", {"branch": "main", "pipeline": "34"}),
    "slurm": ("train", {"job": "56"}),
    "claude": ("nightly review", {"repo": "website"}),
}
# What each of them finds in the environment.
AROUND = {
    "GITHUB_WORKFLOW": "nightly", "GITHUB_REF_NAME": "main", "GITHUB_RUN_ID": "12",
    "CI_JOB_NAME": "evaluate", "CI_COMMIT_REF_SLUG": "main", "CI_PIPELINE_ID": "34",
    "SLURM_JOB_NAME": "train", "SLURM_JOB_ID": "56",
}  # fmt: skip
PROGRAMS = {
    "backup.sh": "echo done",
    "evaluate.sh": "echo done",
    "claude": "echo '{\"total_cost_usd\": 0.5}'",
}


def of_recipes(part: str) -> str:
    return block_in("guides", f"recipe: {part}")


def scripts_of(recipe: str) -> list[str]:
    """What the program around a recipe lets a shell do."""
    text = of_recipes(recipe)
    match recipe:
        case "cron":
            return [line.split(maxsplit=5)[5] for line in text.splitlines()]
        case "github":
            steps = yaml.safe_load(text)["jobs"]["evaluate"]["steps"]
            return [
                step["run"] for step in steps if "pip install" not in step.get("run", "pip install")
            ]
        case "gitlab":
            job = yaml.safe_load(text)["evaluate"]
            return [*job["script"][1:], *job["after_script"]]
        case "Makefile":
            return ["make test"]
    return [text]


@pytest.fixture
def home(machine: AgentMachine, tmp_path: Path) -> Path:
    """A home directory with the settings, the client, and the programs of the recipes."""
    home = tmp_path / "home of recipes"
    for folder in ("taskservice-client/bin", "client/bin"):
        install_commands(home / folder)
    settings = of_recipes("settings").replace("https://tasks.example.org", machine.url)
    (home / ".config").mkdir()
    (home / ".config/taskservice.env").write_text(settings.replace("tsk_agent_...", machine.key))
    for name, text in PROGRAMS.items():
        (home / name).write_text(f"#!/bin/sh\n{text}\n")
        (home / name).chmod(0o755)
    (home / "train.py").write_text("print('done')\n")
    (home / "Makefile").write_text(of_recipes("Makefile"))
    passing = "import unittest\nclass Passing(unittest.TestCase):\n    def test(self): pass\n"
    (home / "test_passing.py").write_text(passing)
    (home / "inbox").mkdir()
    for name in ("one.txt", "two.txt"):
        (home / "inbox" / name).write_text("some words")
    return home


@pytest.mark.parametrize("recipe", RECIPES)
def test_documented_recipe(machine: AgentMachine, home: Path, recipe: str) -> None:
    name, labels = RECIPES[recipe]
    path = f"{home / 'taskservice-client/bin'}:{home}:{os.environ['PATH']}"
    environment = machine.environment | AROUND | {
        "HOME": str(home), "PATH": path, "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    for script in scripts_of(recipe):
        done = subprocess.run(
            ["sh", "-c", script], cwd=home, env=environment,
            capture_output=True, text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
    task = machine.user.tasks()[0]
    assert (task["name"], task["labels"], task["status"]) == (name, labels, "complete")
    assert task["logs"]
    assert task["output"] == ({"total_cost_usd": 0.5} if recipe == "claude" else {})


# --- privacy -----------------------------------------------------------------------------


def test_documented_deletion_of_all_tasks_of_a_customer(
    remote_alice: RemoteClient, agents_terminal: Terminal
) -> None:
    block = block_in("operate", "privacy: delete")
    for customer in ("acme", "other", "acme"):
        task = remote_alice.start("reader", claim=True, labels={"customer": customer})
        message = 'a "id": "of a question"'
        remote_alice.write("POST", f"/task/{task['id']}/question", message=message)
    agents_terminal.run(block)
    assert [task["labels"]["customer"] for task in remote_alice.tasks()] == ["other"]

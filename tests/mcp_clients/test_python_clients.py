"""The official Python client, and fastmcp with its tasks, each in a separate environment."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.agents import TOOLS, task_of

PROGRAMS = Path(__file__).parent / "client_programs"
CLIENT_SECONDS = 120


def steps_of(owner: RemoteClient, python: Path, program: str, *modes: str) -> dict[str, Any]:
    """Step -> what the client showed its user."""
    key = str(owner.session.headers["apikey"])
    run = subprocess.run(
        [python, PROGRAMS / program, f"{owner.url}/mcp", key, *modes],
        capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    steps: dict[str, Any] = json.loads(run.stdout)
    print(json.dumps(steps, indent=1))
    return steps


@pytest.mark.parametrize(("mode", "version"), [("auto", "2026-07-28"), ("legacy", "2025-11-25")])
def test_official_client_starts_watches_answers_and_cancels(
    official_python: Path, owner: RemoteClient, mode: str, version: str
) -> None:
    steps = steps_of(owner, official_python, "official.py", mode)
    assert (steps["version"], steps["server"]) == (version, "taskservice")
    assert set(steps["tools"]) == TOOLS
    assert "list_tasks" in steps["instructions"]

    assert steps["greet"]["text"] == "Hello, World!"
    assert steps["greet"]["structured"]["output"] == {"text": "Hello, World!"}
    assert steps["wrong input"]["isError"]
    assert "name" in steps["wrong input"]["text"]
    assert steps["fails"]["isError"]
    assert steps["fails"]["structured"]["log"][-1] == "the disk is gone"

    if mode == "legacy":
        (question,) = steps["question"]["structured"]["questions"]
        assert question["message"] == "Delete old.txt?"
        assert question["schema"]["required"] == ["confirm"]
    else:
        assert steps["asked"] == ["Delete old.txt?"]
    deleted = steps["deleted"]["structured"]
    assert deleted["output"] == {"filename": "old.txt", "deleted": True}
    assert task_of(owner, deleted["taskId"])["output"] == deleted["output"]

    task_id = steps["started"]["structured"]["taskId"]
    assert steps["watched"]["structured"]["status"] == "running"
    assert "computing long" in steps["watched"]["text"]
    assert steps["log"]["structured"]["lines"][0].startswith("computing long: 0.0")
    assert task_id in steps["listed"]["text"]
    assert steps["afterwards"]["isError"]
    assert "cancelled" in steps["afterwards"]["text"]
    task = task_of(owner, task_id)
    assert (task["error"]["type"], task["labels"]) == ("cancelled", {"via": "mcp"})


def test_fastmcp_runs_tasks_in_the_background_answers_and_cancels(
    fastmcp_python: Path, owner: RemoteClient
) -> None:
    steps = steps_of(owner, fastmcp_python, "fastmcp_tasks_client.py")
    assert set(steps["tools"]) == TOOLS
    assert steps["greet"] == "Hello, World!"
    assert "the disk is gone" in steps["fails"]

    assert steps["question"]["message"] == "Delete old.txt?"
    assert steps["asked"] == ["Delete old.txt?"]
    assert steps["deleted"]["output"] == {"filename": "old.txt", "deleted": True}
    assert task_of(owner, steps["deleted"]["taskId"])["status"] == "complete"

    assert steps["started"]["status"] == "working"
    assert steps["watched"]["status"] == "working"
    assert steps["watched"]["message"].startswith("computing long")
    assert steps["cancelled"] == "cancelled"
    assert "cancelled" in steps["afterwards"]
    task = task_of(owner, steps["started"]["taskId"])
    assert (task["error"]["type"], task["labels"]) == ("cancelled", {"via": "mcp"})

"""The Inspector's `mcpdo`, which keeps a connection; `test_documented_lines` has its `--cli`."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from secrets import token_urlsafe
from tempfile import TemporaryDirectory

import pytest

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.agents import newest_task, task_of
from tests.support.waiting import until

COMMAND_SECONDS = 100


class Inspector:
    """A machine with its commands, and with the endpoint in its configuration."""

    def __init__(self, node: Path, home: Path, owner: RemoteClient) -> None:
        self._bin = node / ".bin"
        self._config = home / "mcp.json"
        key = str(owner.session.headers["apikey"])
        self._server = {
            "type": "streamable-http",
            "url": f"{owner.url}/mcp",
            "headers": {"Authorization": f"Bearer {key}"},
        }
        self._config.write_text(json.dumps({"mcpServers": {"taskservice": self._server}}))
        self._environment = {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "HOME": str(home),
            "MCP_INSPECTOR_DAEMON_DIR": str(home),
            "MCP_INSPECTOR_DAEMON_TOKEN": token_urlsafe(),
            "MCP_INSPECTOR_SECRET_STORE": "file",
        }

    def spawn(self, program: str, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [self._bin / "node", self._bin / program, *arguments], env=self._environment,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def mcpdo(self, *arguments: str) -> str:
        """What a command shows to a person."""
        return _output(self.spawn("mcpdo", *arguments))

    def connect(self, name: str) -> None:
        server = ["--config", str(self._config), "--server", "taskservice", "--era", "modern"]
        self.mcpdo("--connection", name, "connect", *server)


def _output(command: subprocess.Popen[str]) -> str:
    output, errors = command.communicate(timeout=COMMAND_SECONDS)
    assert command.returncode == 0, output + errors
    print(output)
    return output


@pytest.fixture
def inspector(node: Path, owner: RemoteClient) -> Iterator[Inspector]:
    # The path of a socket must be short.
    with TemporaryDirectory() as home:
        inspector = Inspector(node, Path(home), owner)
        yield inspector
        inspector.mcpdo("daemon", "stop")


def test_mcpdo_starts_watches_answers_and_cancels(
    inspector: Inspector, owner: RemoteClient
) -> None:
    inspector.connect("main")
    assert "confirm_delete(filename:str)" in inspector.mcpdo("@main", "tools/list")

    call = ["tools/call", "confirm_delete", "filename:=old.txt", "--format", "json"]
    pending = json.loads(inspector.mcpdo("@main", *call))["elicitationPending"]
    assert pending["message"] == "Delete old.txt?"
    answer = ["elicitation/respond", pending["elicitationId"], "confirm:=true"]
    assert '{"filename":"old.txt","deleted":true}' in inspector.mcpdo(*answer)
    assert newest_task(owner, "confirm_delete")["output"]["deleted"] is True

    # A connection serves one command at a time.
    inspector.connect("other")
    call = ["tools/call", "slow_compute", "seconds:=600", "label:=long"]
    running = inspector.spawn("mcpdo", "@main", *call)
    until(lambda: owner.request("GET", "/task?agentId=slow_compute&status=running").json())
    task_id = newest_task(owner, "slow_compute")["id"]
    until(lambda: task_of(owner, task_id)["logs"])
    watched = inspector.mcpdo("@other", "tasks/get", task_id)
    assert "computing long" in watched
    inspector.mcpdo("@other", "tasks/cancel", task_id)
    assert 'Tool call \\"slow_compute\\" was cancelled.' in running.communicate()[1]
    assert task_of(owner, task_id)["error"]["type"] == "cancelled"

"""The lines of docs/guides/mcp.md, run as they stand there, by the clients that can be had."""

import os
import subprocess
from pathlib import Path

from taskservice.terms import CLIENTS, KEY_VARIABLE
from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.claude_code import PROGRAM

COMMAND_SECONDS = 120


def shell(command: str, node: Path, home: Path, owner: RemoteClient) -> str:
    environment = {
        "PATH": f"{home}:{node / '.bin'}:{os.environ['PATH']}",
        "HOME": str(home),
        KEY_VARIABLE: str(owner.session.headers["apikey"]),
    }
    ended = subprocess.run(
        ["sh", "-c", command], cwd=home, env=environment, timeout=COMMAND_SECONDS, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


def test_claude_code_is_connected_and_its_file_has_no_key(
    node: Path, owner: RemoteClient, tmp_path: Path
) -> None:
    (tmp_path / "claude").symlink_to(node / PROGRAM)
    shell(CLIENTS["claude-code"].text(owner.url), node, tmp_path, owner)
    assert "✔ Connected" in shell("claude mcp list", node, tmp_path, owner)
    key = str(owner.session.headers["apikey"])
    files = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    assert not [path for path in files if key.encode() in path.read_bytes()]


def test_inspector_lists_the_tools(node: Path, owner: RemoteClient, tmp_path: Path) -> None:
    line = CLIENTS["inspector"].text(owner.url)
    # The package that `npx` would fetch is there in the version of these tests.
    shown = shell(line.replace("npx @modelcontextprotocol/inspector", "mcp-inspector"),
                  node, tmp_path, owner)  # fmt: skip
    assert '"name": "confirm_delete"' in shown

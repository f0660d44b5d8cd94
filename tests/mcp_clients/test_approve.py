"""Claude Code with `taskservice approve` as its hook, and a stub for its model."""

from pathlib import Path
from typing import Any

import pytest

from tests.support.api_client import RemoteClient
from tests.support.documents import ROOT, block_in, install_commands
from tests.support.mcp_clients.claude_code import ClaudeCode
from tests.support.mcp_clients.stub_model import StubModel, Turn
from tests.support.waiting import until

CALL: Turn = ("Bash", {"command": "touch made.txt", "description": "Make a file"})
# Its other modes decide without a prompt.
MODE = ("--permission-mode", "default")


def machine(node: Path, folder: Path, model: StubModel, owner: RemoteClient) -> ClaudeCode:
    """Claude Code with the hook that the guide shows."""
    claude = ClaudeCode(node, folder / "home", model, owner.url, owner.key)
    claude.environment |= {
        "PATH": f"{install_commands(folder / 'bin')}:{claude.environment['PATH']}",
        "PYTHONPATH": str(ROOT),
        "TASKSERVICE_URL": owner.url,
        "TASKSERVICE_APIKEY": owner.key,
    }
    settings = claude.home / ".claude" / "settings.json"
    settings.parent.mkdir()
    settings.write_text(block_in("guides", "approvals: settings.json"))
    return claude


def asking(owner: RemoteClient) -> list[dict[str, Any]]:
    return list(owner.read("/task?asking=true&agentId=claude-code"))


@pytest.mark.parametrize("decision", ["allow", "deny"])
def test_answer_decides_what_claude_code_does(
    node: Path, owner: RemoteClient, tmp_path: Path, decision: str
) -> None:
    with StubModel([CALL, "It is over."]) as model:
        claude = machine(node, tmp_path, model, owner)
        with claude.terminal("Make a file.", *MODE) as terminal:
            (task,) = until(lambda: asking(owner))
            (question,) = task["questions"]
            assert "\ntouch made.txt\n" in question["message"]
            content = {"decision": decision, "reason": "Not tonight."}
            path = f"/task/{task['id']}/question/{question['id']}/answer"
            owner.write("POST", path, action="accept", content=content)
            terminal.until_it_shows("claude: It is over.")
        (result,) = model.results
    assert (claude.home / "made.txt").exists() == (decision == "allow")
    assert ("Not tonight." in result) == (decision == "deny")


def test_killed_claude_code_leaves_no_question_open(
    node: Path, owner: RemoteClient, tmp_path: Path
) -> None:
    with StubModel([CALL]) as model:
        claude = machine(node, tmp_path, model, owner)
        with claude.terminal("Make a file.", *MODE):
            until(lambda: asking(owner))
        until(lambda: not asking(owner))
    assert not (claude.home / "made.txt").exists()

"""Claude Code with a stub for its model, on a terminal and as `claude -p`."""

from pathlib import Path
from typing import Any

from tests.support.api_client import RemoteClient
from tests.support.mcp_clients.agents import newest_task, task_of
from tests.support.mcp_clients.claude_code import ClaudeCode, ClaudeTerminal
from tests.support.mcp_clients.stub_model import StubModel, Turn
from tests.support.service import Service
from tests.support.waiting import until

DOWN, ENTER, SPACE, ESCAPE = "\x1b[B", "\r", " ", "\x1b"
LONG = {"seconds": 600, "label": "long"}


def tool(tool_name: str, /, **arguments: Any) -> Turn:
    """The call of a tool by the name that Claude Code gives it."""
    return f"mcp__taskservice__{tool_name}", arguments


def machine(node: Path, folder: Path, model: StubModel, owner: RemoteClient) -> ClaudeCode:
    key = str(owner.session.headers["apikey"])
    return ClaudeCode(node, folder / "home", model, owner.url, key)


def see_the_task(terminal: ClaudeTerminal) -> None:
    """Open the view of the one task that runs in the background."""
    terminal.until_it_shows("↓ to manage")
    terminal.press(DOWN, "enter to view tasks")
    terminal.press(ENTER, "MCP task\n")


def accept(terminal: ClaudeTerminal) -> None:
    """Tick the one field of the form, and send it."""
    terminal.press(SPACE, "☒")
    terminal.press(ENTER, "❯  Accept")
    terminal.press(ENTER, "(taskservice/confirm_delete) completed")


def test_task_runs_in_the_background_of_a_terminal_until_it_is_stopped(
    node: Path, owner: RemoteClient, tmp_path: Path
) -> None:
    turns = [tool("slow_compute", **LONG), "It computes."]
    with StubModel(turns) as model:
        claude = machine(node, tmp_path, model, owner)
        with claude.terminal("Compute.") as terminal:
            terminal.until_it_shows("claude: It computes.")
            see_the_task(terminal)
            # The agent's last line, while it runs.
            terminal.until_it_shows("computing long")
            task = newest_task(owner, "slow_compute")
            assert (task["status"], task["labels"]) == ("running", {"via": "mcp"})
            assert task["id"] in terminal.shown
            terminal.press("x", "No tasks currently running")
            until(lambda: task_of(owner, task["id"])["status"] == "error")
        assert task_of(owner, task["id"])["error"]["type"] == "cancelled"
        assert task["id"] in model.results[0]


def test_form_on_the_terminal_answers_the_question_of_a_task(
    node: Path, owner: RemoteClient, mcp_service: Service, tmp_path: Path
) -> None:
    turns = [tool("confirm_delete", filename="old.txt"), "It will ask.", "It is gone."]
    with StubModel(turns) as model:
        claude = machine(node, tmp_path, model, owner)
        with claude.terminal("Delete old.txt.") as terminal:
            terminal.until_it_shows("requests your input")
            terminal.until_it_shows("Delete old.txt?")
            terminal.until_it_shows("Esc to answer later")
            task = newest_task(owner, "confirm_delete")
            terminal.press(ESCAPE, "needs your input")
            assert [question["state"] for question in task_of(owner, task["id"])["questions"]] == [
                "open"
            ]

            see_the_task(terminal)
            terminal.until_it_shows("Status: input required · asks: Delete old.txt?")
            terminal.until_it_shows("Enter to answer")
            terminal.press(ENTER, "Esc to answer later")
            # The form stays open until then.
            mcp_service.stop()
            mcp_service.start()
            accept(terminal)
            terminal.until_it_shows("claude: It is gone.")
        told = str(model.requests[-1]["messages"])
    assert task_of(owner, task["id"])["output"] == {"filename": "old.txt", "deleted": True}
    assert '"output":{"filename":"old.txt","deleted":true}' in told


def test_task_survives_its_session_and_a_restart_of_the_service(
    node: Path, owner: RemoteClient, mcp_service: Service, tmp_path: Path
) -> None:
    turns = [tool("confirm_delete", filename="old.txt"), "It will ask.", "It is gone."]
    with StubModel(turns) as model:
        claude = machine(node, tmp_path, model, owner)
        with claude.terminal("Delete old.txt.") as terminal:
            terminal.until_it_shows("requests your input")
        mcp_service.stop()
        mcp_service.start()
        task = newest_task(owner, "confirm_delete")
        (question,) = task["questions"]
        path = f"/task/{task['id']}/question/{question['id']}/answer"
        answer = {"action": "accept", "content": {"confirm": True}}
        owner.request("POST", path, json=answer).raise_for_status()
        with claude.terminal("--continue") as terminal:
            terminal.until_it_shows("(taskservice/confirm_delete) completed")
            terminal.until_it_shows("claude: It is gone.")
    assert task_of(owner, task["id"])["output"] == {"filename": "old.txt", "deleted": True}


def test_print_mode_starts_watches_answers_and_cancels_with_plain_tools(
    node: Path, owner: RemoteClient, tmp_path: Path
) -> None:
    turns = [
        tool("greet", name="World"),
        # It closes the form by itself, which leaves the question open.
        tool("confirm_delete", filename="old.txt"),
        tool("answer_task", taskId="$taskId", questionId="$questionId", content={"confirm": True}),
        tool("wait_task", taskId="$taskId"),
        tool("start_task", agentId="slow_compute", input=LONG),
        tool("wait_task", taskId="$taskId", seconds=10),
        tool("cancel_task", taskId="$taskId"),
        "The last tool said: $result",
    ]
    with StubModel(turns) as model:
        printed = machine(node, tmp_path, model, owner).print_mode("Delete old.txt.")
    greeted, asked, _, deleted, _, watched, cancelled = model.results
    assert "Hello, World!" in greeted
    assert "Delete old.txt?" in asked
    assert '"deleted":true' in deleted
    assert "computing long" in watched
    assert "cancelled" in cancelled
    assert printed.startswith("The last tool said: ")
    task = newest_task(owner, "confirm_delete")
    assert task["id"] in asked
    assert task["output"]["deleted"] is True
    assert newest_task(owner, "slow_compute")["error"]["type"] == "cancelled"

"""What commands say when a setting, a key or an ID is wrong, and that text passes in any locale."""

import os
import pty
from pathlib import Path

from tests.support.agent_machine import AgentMachine
from tests.support.waiting import until


def test_key_that_cannot_report_is_told_at_once_what_to_do(machine: AgentMachine) -> None:
    read_key = machine.user.write("POST", "/key", name="screen", access="read")["key"]
    for key in (read_key, "tsk_user_wrong"):
        machine.key = key
        done = machine.run("run", "--agent", "a", "--", "echo", "ran")
        warning = done.stderr.splitlines()[0]
        assert (done.returncode, done.stdout) == (0, "ran\n")
        assert "run `taskservice login` with a full key or an agent key" in warning
        assert "until" not in warning
    machine.key = machine.user.key
    assert machine.resend().returncode == 0
    assert [task["logs"] for task in machine.user.tasks()] == [["ran"], ["ran"]]


def test_similar_names_of_the_two_variables_are_named(machine: AgentMachine) -> None:
    key, url = machine.key, machine.url
    for name in ("TASKSERVICE_API_KEY", "TASKSERVICE_KEY", "TASKSERVICE_TOKEN"):
        machine.key, machine.settings = "", {name: key}
        done = machine.run("task", "list")
        assert f"taskservice: {name} is not used; the variable is TASKSERVICE_APIKEY" in done.stderr
        assert "TASKSERVICE_APIKEY is not set" in done.stderr
        assert done.returncode == 2
    machine.key, machine.url = key, ""
    machine.settings = {"TASKSERVICE_API_URL": url, "TASKSERVICE_PUBLIC_URL": url}
    done = machine.run("run", "--agent", "a", "--", "true")
    assert "TASKSERVICE_API_URL is not used; the variable is TASKSERVICE_URL" in done.stderr
    assert "PUBLIC_URL" not in done.stderr
    machine.settings |= {"TASKSERVICE_URL": url}
    assert machine.run("run", "--agent", "a", "--", "true").stderr == ""


def test_login_without_a_key_says_where_it_reads_the_key(machine: AgentMachine) -> None:
    machine.key = ""
    done = machine.run("login", machine.url, input="")
    sentence = "stdin is empty; login reads the API key there: login < key.txt"
    assert (done.returncode, done.stderr) == (2, f"taskservice: {sentence}\n")


def test_id_that_is_not_found_is_named_with_what_it_is_of(machine: AgentMachine) -> None:
    missing = "01a20e63-9249-713c-8e11-222222222222"
    task = machine.user.start("a", claim=True)
    assert f"Task's ID is not found: task {missing}" in machine.fail("task", "show", missing)
    assert f"Task's ID is not found: task {missing}" in machine.fail("task", "answer", missing)
    machine.settings["TASKSERVICE_TASK_ID"] = missing
    asked = machine.run("ask", "Deploy?")
    assert asked.returncode == 4
    assert f"Task's ID is not found: task {missing}" in asked.stderr
    assert "There is no agent none" in machine.fail("agent", "show", "none")
    assert "No hook matches" in machine.fail("hook", "show", "0123")
    wrong = machine.fail("task", "answer", task["id"], "--question", missing, "--decline")
    assert f"No question matches {missing}" in wrong


def test_agent_is_deleted_after_a_question_on_a_terminal(
    machine: AgentMachine,
) -> None:
    def delete(agent: str, *options: str, typed: bytes) -> str:
        ours, theirs = pty.openpty()
        os.write(ours, typed)
        done = machine.run("agent", "delete", agent, *options, stdin=theirs)
        os.close(theirs)
        os.close(ours)
        return str(done.stdout)

    for name in ("one", "two", "three"):
        machine.user.write("PUT", f"/agent/{name}")
    assert delete("one", typed=b"n\n") == ""
    assert delete("one", typed=b"y\n") == "one is deleted\n"
    assert delete("two", "--yes", typed=b"") == "two is deleted\n"
    # A script has no terminal to ask on.
    assert machine.run("agent", "delete", "three", input="").stdout == "three is deleted\n"


def test_text_passes_unchanged_in_an_ascii_locale(machine: AgentMachine, tmp_path: Path) -> None:
    machine.settings |= {"LC_ALL": "C", "PYTHONUTF8": "0"}
    (tmp_path / "Grüße.json").write_text('{"text": "Grüße"}', encoding="utf-8")
    done = machine.run(
        "run", "--agent", "a", "--name", "Grüße", "--input", f"@{tmp_path}/Grüße.json",
        "--", "sh", "-c", 'echo "Grüße $1"', "sh", "→ €", encoding="utf-8",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "Grüße → €\n", "")
    task = machine.user.the_task()
    assert (task["name"], task["input"]) == ("Grüße", {"text": "Grüße"})
    assert task["logs"] == ["Grüße → €"]
    shown = machine.run("task", "logs", task["id"], encoding="utf-8")
    assert shown.stdout == "Grüße → €\n"
    # The program itself runs in the locale of its user.
    inner = machine.run("run", "--agent", "a", "--", "sh", "-c", "echo $LC_ALL $PYTHONUTF8")
    assert inner.stdout == "C 0\n"
    process = machine.spawn("ask", "Grüße?", "--timeout", "1h", encoding="utf-8")
    (asking,) = until(lambda: machine.user.read("/task?asking=true"))
    assert asking["questions"][0]["message"] == "Grüße?"
    process.end()

"""Kills the service and the agent's side: every line is stored exactly once."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.support.agent_machine import AgentMachine, kill
from tests.support.documents import ROOT
from tests.support.packages import install, new_environment
from tests.support.service import Service
from tests.support.waiting import until

LINES = int(os.environ.get("AGENT_LINES", "20000"))
KILLS = int(os.environ.get("AGENT_KILLS", "3"))
LONGEST_ABSENCE = 10.0
LONGEST_PRESENCE = 3.0
# Long enough for all kills to come before the last line.
SECONDS = KILLS * (LONGEST_ABSENCE + LONGEST_PRESENCE) * 0.7

pytestmark = pytest.mark.timeout(SECONDS * 3 + 240)

# Prints this many lines in this many seconds.
NUMBERED = """
import sys, time
lines, seconds = int(sys.argv[1]), float(sys.argv[2])
began = time.monotonic()
for number in range(1, lines + 1):
    print("line", number, flush=number % 10 == 0)
    if number % 100 == 0:
        time.sleep(max(0, began + seconds * number / lines - time.monotonic()))
sys.stdout.flush()
sys.exit(int(sys.argv[3]))
"""

WITH_THE_CLIENT = """
import sys, time
from taskservice.client import Client
lines, seconds = int(sys.argv[1]), float(sys.argv[2])
with Client().start("counter") as task:
    began = time.monotonic()
    for number in range(1, lines + 1):
        task.log(f"line {number}")
        if number % 100 == 0:
            time.sleep(max(0, began + seconds * number / lines - time.monotonic()))
    task.output["lines"] = lines
"""


TYPED = """
from taskservice.client import Client, Line, Task, TaskCancelled


def main() -> None:
    client = Client(retry_timeout=30)
    with client.start("c", name="typed", input={"a": 1}, timeout=60) as task:
        task.log("one")
        task.output["sum"] = 15
    lines: list[Line] = list(task.follow())
    number: int = lines[0].number
    waiting: Task = client.start("w", input={"n": number}, claim=False)
    try:
        for line in waiting.follow():
            print(line.text)
    except TaskCancelled as error:
        print(error.detail)


main()
"""


def numbered(lines: int) -> list[str]:
    return [f"line {number}" for number in range(1, lines + 1)]


def kill_again_and_again(service: Service) -> None:
    chance = random.Random(KILLS)
    for _ in range(KILLS):
        time.sleep(chance.uniform(0.2, LONGEST_PRESENCE))
        kill(service)
        time.sleep(chance.uniform(0, LONGEST_ABSENCE))
        service.start()


def under_kills(service: Service, process: subprocess.Popen[str]) -> tuple[str, str]:
    killer = threading.Thread(target=kill_again_and_again, args=[service])
    killer.start()
    printed = process.communicate(timeout=SECONDS * 3 + 120)
    assert not killer.is_alive(), "The program ended before the last kill"
    return printed


def test_run_survives_a_service_that_is_killed_again_and_again(
    own_service: Service, own_machine: AgentMachine
) -> None:
    program = [sys.executable, "-c", NUMBERED, str(LINES), str(SECONDS), "3"]
    process = own_machine.spawn("run", "--agent", "a", "--", *program)
    printed, notices = under_kills(own_service, process)
    task = own_machine.user.the_task()
    restarts = notices.count("reachable again")
    print(f"\n{KILLS} kills, {restarts} times back, {task['logCount']} lines")
    assert printed.splitlines() == numbered(LINES)
    assert task["logs"] == numbered(LINES)
    assert process.returncode == 3
    assert task["error"] == {"type": "failed", "message": "Exit status 3"}
    assert own_machine.left_runs() == []


def test_client_survives_a_service_that_is_killed_again_and_again(
    own_service: Service, own_machine: AgentMachine
) -> None:
    process = own_machine.python(WITH_THE_CLIENT, str(LINES), str(SECONDS))
    _, errors = under_kills(own_service, process)
    task = own_machine.user.the_task()
    assert (process.returncode, errors) == (0, "")
    assert task["logs"] == numbered(LINES)
    assert (task["status"], task["output"]) == ("complete", {"lines": LINES})


@pytest.mark.parametrize("is_away", [False, True], ids=["service-there", "service-away"])
def test_run_that_is_killed_leaves_everything_to_resend(
    own_service: Service, own_machine: AgentMachine, tmp_path: Path, is_away: bool
) -> None:
    program = [sys.executable, "-c", NUMBERED, str(LINES), "60", "0"]
    shown = tmp_path / "shown"
    with open(shown, "w") as out:
        process = own_machine.spawn("run", "--agent", "a", "--", *program, stdout=out)
        until(lambda: shown.stat().st_size > 1_000)
        if is_away:
            kill(own_service)
        time.sleep(2)
        process.end(signal.SIGKILL)
    if is_away:
        own_service.start()
    seen = shown.read_text().rpartition("\n")[0].splitlines()
    resent = own_machine.resend()
    task = own_machine.user.the_task()
    again = own_machine.resend()
    assert resent.returncode == 0, resent.stderr
    assert task["logs"] == numbered(len(task["logs"]))
    assert len(seen) <= len(task["logs"]) < LINES
    assert task["status"] == "error"
    assert "unknown" in task["error"]["message"]
    assert (again.returncode, again.stdout) == (0, "")
    assert own_machine.left_runs() == []


def test_plain_installation_in_an_empty_environment_is_enough(
    own_machine: AgentMachine, tmp_path: Path
) -> None:
    folder = tmp_path / "venv"
    python = new_environment(folder)
    # An installation builds in the directory that it is given.
    source = shutil.copytree(ROOT, tmp_path / "source", ignore=shutil.ignore_patterns(".*"))
    install(python, str(source))
    own_machine.command = [str(folder / "bin" / "taskservice")]
    in_the_folder = {"cwd": tmp_path}
    result = own_machine.run("run", "--agent", "a", "--", "echo", "from afar", **in_the_folder)
    listed = own_machine.run("task", "list", **in_the_folder)
    task = own_machine.user.the_task()
    program = tmp_path / "program.py"
    program.write_text(TYPED)
    worker = own_machine.spawn("work", "--agent", "w", "--", "cat", cwd=tmp_path)
    command = [str(python), str(program)]
    subprocess.run(command, cwd=tmp_path, env=own_machine.environment, check=True, timeout=60)
    until(lambda: own_machine.user.tasks(agentId="w", status="complete"))
    done = own_machine.user.tasks()
    worker.end()
    killed = own_machine.spawn("run", "--agent", "k", "--", "sleep", "1000", cwd=tmp_path)
    until(lambda: own_machine.user.tasks(agentId="k"))
    killed.kill()
    killed.communicate()
    resent = own_machine.run("run", "--resend", **in_the_folder)
    by_agent = {task["agentId"]: task for task in done}
    assert (by_agent["c"]["logs"], by_agent["c"]["output"]) == (["one"], {"sum": 15})
    assert by_agent["w"]["output"] == {"n": 1}
    assert resent.returncode == 0, resent.stderr
    strict = [sys.executable, "-m", "mypy", "--strict", "--python-executable", *command]
    checked = subprocess.run(strict, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "no issues found" in checked.stdout, checked.stdout + checked.stderr
    assert (result.returncode, result.stdout, result.stderr) == (0, "from afar\n", "")
    assert (task["status"], task["logs"]) == ("complete", ["from afar"])
    assert task["id"][:13] in listed.stdout

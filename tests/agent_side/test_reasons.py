"""Why real programs failed: their tracebacks as each language prints them, in `task list`."""

import shutil
import sys

import pytest

from tests.support.agent_machine import AgentMachine
from tests.support.requirements import needs

PYTHON = """
class UniqueViolation(Exception):
    pass
try:
    {}["a"]
except KeyError as error:
    raise UniqueViolation("duplicate key\\nDETAIL:  Key (id)=(1) already exists.") from error
"""
NODE = """
const cause = new Error("connect ECONNREFUSED");
cause.code = "ECONNREFUSED";
throw new Error("job failed", { cause });
"""
JAVA = """
class Job {
    public static void main(String[] names) {
        try {
            throw new java.io.IOException("the disk is full");
        } catch (Exception error) {
            throw new IllegalStateException("job failed", error);
        }
    }
}
"""
GO = """
package main

func main() { panic("the disk is full") }
"""
# Of each language: the command, the file with its program, and the reason.
PROGRAMS = {
    "python": ([sys.executable, "job.py"], PYTHON, "UniqueViolation: duplicate key"),
    "shell": (["sh", "-ex", "job.sh"], "echo starting >&2\nls /nowhere\necho never\n", "ls: "),
    "node": (["node", "job.js"], NODE, "Error: connect ECONNREFUSED"),
    "java": (["java", "Job.java"], JAVA, "java.io.IOException: the disk is full"),
    "go": (["go", "run", "job.go"], GO, "panic: the disk is full"),
}


@pytest.mark.parametrize("language", PROGRAMS)
def test_note_of_a_failed_task_is_the_exception(machine: AgentMachine, language: str) -> None:
    command, program, reason = PROGRAMS[language]
    if shutil.which(command[0]) is None:
        needs(command[0], "install the packages of CONTRIBUTING.md")
    (machine.home / command[-1]).write_text(program)
    command = [*command[:-1], str(machine.home / command[-1])]
    failed = machine.run("run", "--agent", "job", "--", *command)
    message = machine.user.the_task()["error"]["message"]
    assert message == f"Exit status {failed.returncode}"
    row = machine.run("task", "list", "--agent", "job").stdout.splitlines()[1]
    # A cell has up to 60 characters.
    note = f"{message}: {reason}"
    assert note[:59] in row
    assert "DETAIL" not in row

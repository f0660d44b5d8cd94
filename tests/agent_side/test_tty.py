"""`taskservice run --tty`: the program prints to a terminal, and all else stays as it is."""

import os
import signal
import subprocess
import sys
import termios
from typing import Any

import pytest

from tests.support.agent_machine import AgentMachine, AtTerminal
from tests.support.api_client import RemoteClient
from tests.support.receiver import unused_port
from tests.support.waiting import PATIENCE_SECONDS, until

SHOWS_ITS_SIZE = """
import os, signal
print(tuple(os.get_terminal_size(1)), flush=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH, signal.SIGTERM])
os.write(2, b"ready\\n")
while signal.sigwait([signal.SIGWINCH, signal.SIGTERM]) == signal.SIGWINCH:
    print(tuple(os.get_terminal_size(1)), flush=True)
"""

ENDS_AT_CTRL_C = "trap 'echo got it; exit 4' INT; echo ready; read word"

# The signal is handled after the end of the program, and before the rest is sent.
LATE_SIGNAL = """
import threading
from taskservice.runner import run

ended, handled = threading.Event(), threading.Event()

def forward(self, *signal, original=run.Run.forward):
    ended.wait()
    original(self, *signal)
    handled.set()

def finish(self, *sent, original=run.Run._finish):
    ended.set()
    handled.wait()
    original(self, *sent)

run.Run.forward, run.Run._finish = forward, finish
run.LATE_SIGNAL_SECONDS = 1000.0
"""

NEVER_GIVES_UP = "run.START_SECONDS, run.MIN_SILENCE_SECONDS = 0.3, 1000.0"


def run(
    machine: AgentMachine, *program: str, **options: object
) -> subprocess.CompletedProcess[str]:
    return machine.run("run", "--tty", "--agent", "a", "--", *program, **options)


def test_program_prints_to_a_terminal(machine: AgentMachine) -> None:
    script = "test -t 1 && test -t 2 && echo yes; echo oops >&2"
    done = run(machine, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "yes\n", "oops\n")
    assert sorted(machine.user.the_task()["logs"]) == ["oops", "yes"]


def test_line_is_seen_at_once_though_the_program_does_not_flush(machine: AgentMachine) -> None:
    program = "import time; print('one'); time.sleep(1000)"
    process = machine.spawn("run", "--tty", "--agent", "a", "--", sys.executable, "-c", program)
    assert process.read_line() == "one\n"
    until(lambda: machine.user.the_log() == ["one"])
    process.end()
    assert process.returncode == 143


def test_all_that_is_printed_comes_out_unchanged(machine: AgentMachine) -> None:
    script = "seq 200000; printf '\\ttab\\033[31mred\\r\\nend'"
    printed: Any = run(machine, "sh", "-c", script, text=False).stdout
    lines = [str(number) for number in range(1, 200_001)]
    assert printed.decode() == "\n".join([*lines, "\ttab\033[31mred\r\nend"])
    assert machine.user.the_task()["logCount"] == 200_002
    assert machine.user.the_task()["logs"][-2:] == ["\ttab\033[31mred", "end"]


def test_program_runs_where_no_terminal_can_be_opened(machine: AgentMachine) -> None:
    """As in a container without /dev/pts."""
    without = "import os; os.openpty = lambda: os.open('/no/terminal', 0)"
    machine.command = [sys.executable, "-c", f"{without}; from taskservice.cli import main; main()"]
    done = run(machine, "echo", "said")
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert "no terminal can be opened, the program prints to a pipe" in done.stderr
    assert machine.user.the_task()["logs"] == ["said"]


def test_program_may_read_its_input(machine: AgentMachine) -> None:
    assert run(machine, "cat", input="one\ntwo\n").stdout == "one\ntwo\n"


def test_type_of_the_terminal_is_set_where_there_is_none(machine: AgentMachine) -> None:
    machine.settings["TERM"] = "vt100"
    assert run(machine, "sh", "-c", "echo $TERM").stdout == "vt100\n"
    machine.command = ["env", "-u", "TERM", *machine.command]
    assert run(machine, "sh", "-c", "echo $TERM").stdout == "xterm-256color\n"


# --- at a terminal -----------------------------------------------------------------------


def test_size_of_the_window_is_passed_on(
    remote_alice: RemoteClient, at_terminal: AtTerminal
) -> None:
    process, leader = at_terminal(sys.executable, "-c", SHOWS_ITS_SIZE, options=["--tty"])
    until(lambda: remote_alice.the_log() == ["(40, 10)", "ready"])
    termios.tcsetwinsize(leader, (20, 100))
    # The first signal, which comes from the terminal, may be too early.
    until(lambda: "(100, 20)" in remote_alice.the_log())
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 0


def test_size_is_a_usual_one_without_a_terminal(machine: AgentMachine) -> None:
    program = "import os; print(tuple(os.get_terminal_size(1)))"
    done = run(machine, sys.executable, "-c", program, stdin=subprocess.DEVNULL)
    assert done.stdout == "(80, 24)\n"


@pytest.mark.parametrize("late", ["", LATE_SIGNAL], ids=["in time", "after the program's end"])
def test_ctrl_c_reaches_the_program_and_leaves_nothing_unsent(
    machine: AgentMachine, at_terminal: AtTerminal, late: str
) -> None:
    machine.patch(late)
    process, leader = at_terminal("sh", "-c", ENDS_AT_CTRL_C, options=["--tty"])
    until(lambda: machine.user.the_log() == ["ready"])
    os.write(leader, b"\x03")
    assert (process.wait(PATIENCE_SECONDS), machine.user.the_log()) == (4, ["ready", "got it"])
    assert machine.left_runs() == []


@pytest.mark.parametrize("late", ["", LATE_SIGNAL], ids=["in time", "after the program's end"])
def test_ctrl_c_cancels_the_task_and_breaks_no_agent(
    machine: AgentMachine, at_terminal: AtTerminal, late: str
) -> None:
    machine.patch(late)
    script = """echo '{"pages": 4}'; exec sleep 1000"""
    process, leader = at_terminal("sh", "-c", script)
    until(lambda: machine.user.the_log() != [])
    os.write(leader, b"\x03")
    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGINT
    task = machine.user.the_task()
    assert (task["error"]["type"], task["output"]) == ("cancelled", {"pages": 4})
    assert machine.left_runs() == []


def test_ctrl_c_with_an_agent_key_is_a_failure(
    machine: AgentMachine, at_terminal: AtTerminal
) -> None:
    """An agent key cannot cancel tasks."""
    machine.user.register("a")
    machine.key = machine.user.agent_key("a")
    process, leader = at_terminal("sh", "-c", "echo ready; exec sleep 1000")
    until(lambda: machine.user.the_log() == ["ready"])
    os.write(leader, b"\x03")
    assert process.wait(PATIENCE_SECONDS) == 128 + signal.SIGINT
    error = machine.user.the_task()["error"]
    assert (error["type"], error["message"]) == ("failed", "Killed by signal 2 (SIGINT)")


def test_later_ctrl_c_ends_the_wait_for_a_service_that_is_unavailable(
    machine: AgentMachine, at_terminal: AtTerminal
) -> None:
    machine.url = f"http://127.0.0.1:{unused_port()}"
    machine.patch(f"{LATE_SIGNAL}\nrun.LATE_SIGNAL_SECONDS = -1.0\n{NEVER_GIVES_UP}")
    process, leader = at_terminal("sh", "-c", ENDS_AT_CTRL_C, options=["--tty"])
    shown = b""
    while b"ready" not in shown:
        shown += os.read(leader, 1000)
    os.write(leader, b"\x03")
    process.wait(PATIENCE_SECONDS)
    assert len(machine.left_runs()) == 1

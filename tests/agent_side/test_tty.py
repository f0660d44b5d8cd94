"""`taskservice run --tty`: the program prints to a terminal, and all else stays as it is."""

import os
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.support.agent_machine import AgentMachine, the_log, the_task
from tests.support.api_client import RemoteClient
from tests.support.receiver import unused_port
from tests.support.waiting import until

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


def test_program_prints_to_a_terminal(remote_alice: RemoteClient, machine: AgentMachine) -> None:
    script = "test -t 1 && test -t 2 && echo yes; echo oops >&2"
    done = run(machine, "sh", "-c", script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "yes\n", "oops\n")
    assert sorted(the_task(remote_alice)["logs"]) == ["oops", "yes"]


def test_line_is_seen_at_once_though_the_program_does_not_flush(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    program = "import time; print('one'); time.sleep(1000)"
    process = machine.spawn("run", "--tty", "--agent", "a", "--", sys.executable, "-c", program)
    assert process.stdout is not None
    assert process.stdout.readline() == "one\n"
    until(lambda: the_log(remote_alice) == ["one"])
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_all_that_is_printed_comes_out_unchanged(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    script = "seq 200000; printf '\\ttab\\033[31mred\\r\\nend'"
    printed: Any = run(machine, "sh", "-c", script, text=False).stdout
    lines = [str(number) for number in range(1, 200_001)]
    assert printed.decode() == "\n".join([*lines, "\ttab\033[31mred\r\nend"])
    assert the_task(remote_alice)["logCount"] == 200_002
    assert the_task(remote_alice)["logs"][-2:] == ["\ttab\033[31mred", "end"]


@pytest.mark.parametrize(("script", "code"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_code_is_that_of_the_program(machine: AgentMachine, script: str, code: int) -> None:
    assert run(machine, "sh", "-c", script).returncode == code


def test_program_that_is_not_there_is_an_error_too(machine: AgentMachine) -> None:
    assert run(machine, "no-such-program").returncode == 127


def test_both_outputs_are_one_terminal_where_they_go_to_one_place(machine: AgentMachine) -> None:
    script = "for n in 1 2 3 4 5 6 7 8 9; do echo out $n; echo err $n >&2; done"
    both = {"capture_output": False, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    lines = [f"{name} {number}" for number in range(1, 10) for name in ("out", "err")]
    assert run(machine, "sh", "-c", script, **both).stdout.splitlines() == lines


def test_program_runs_where_no_terminal_can_be_opened(
    remote_alice: RemoteClient, machine: AgentMachine
) -> None:
    """As in a container without /dev/pts."""
    without = "import os; os.openpty = lambda: os.open('/no/terminal', 0)"
    machine.command = [sys.executable, "-c", f"{without}; from taskservice.cli import main; main()"]
    done = run(machine, "echo", "said")
    assert (done.returncode, done.stdout) == (0, "said\n")
    assert "no terminal can be opened, the program prints to a pipe" in done.stderr
    assert the_task(remote_alice)["logs"] == ["said"]


def test_program_may_read_its_input(machine: AgentMachine) -> None:
    assert run(machine, "cat", input="one\ntwo\n").stdout == "one\ntwo\n"


def test_background_process_does_not_hold_up_the_end(machine: AgentMachine) -> None:
    done = run(machine, "sh", "-c", "sleep 1000 & echo $!")
    assert done.returncode == 0
    os.kill(int(done.stdout), signal.SIGKILL)


def test_type_of_the_terminal_is_set_where_there_is_none(machine: AgentMachine) -> None:
    machine.settings["TERM"] = "vt100"
    assert run(machine, "sh", "-c", "echo $TERM").stdout == "vt100\n"
    machine.command = ["env", "-u", "TERM", *machine.command]
    assert run(machine, "sh", "-c", "echo $TERM").stdout == "xterm-256color\n"


# --- at a terminal -----------------------------------------------------------------------

AtTerminal = Callable[..., tuple[subprocess.Popen[bytes], int]]


@pytest.fixture
def at_terminal(machine: AgentMachine) -> Iterator[AtTerminal]:
    """Runs a program with --tty on a new terminal; returns the terminal's other end."""
    take = (
        "import fcntl, os, sys, termios; fcntl.ioctl(1, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    opened = []

    def start(*program: str) -> tuple[subprocess.Popen[bytes], int]:
        leader, follower = pty.openpty()
        termios.tcsetwinsize(follower, (10, 40))
        command = [*machine.command, "run", "--tty", "--agent", "a", "--", *program]
        process = subprocess.Popen(
            [sys.executable, "-c", take, *command], env=machine.environment, start_new_session=True,
            stdin=follower, stdout=follower, stderr=follower,
        )  # fmt: skip
        os.close(follower)
        opened.append((process, leader))
        return process, leader

    yield start
    for process, leader in opened:
        os.close(leader)
        if process.poll() is None:
            process.kill()
        process.wait()


def test_size_of_the_window_is_passed_on(
    remote_alice: RemoteClient, at_terminal: AtTerminal
) -> None:
    process, leader = at_terminal(sys.executable, "-c", SHOWS_ITS_SIZE)
    until(lambda: the_log(remote_alice) == ["(40, 10)", "ready"])
    termios.tcsetwinsize(leader, (20, 100))
    # The first signal, which comes from the terminal, may be too early.
    until(lambda: "(100, 20)" in the_log(remote_alice))
    process.terminate()
    until(lambda: process.poll() is not None)
    assert process.returncode == 0


def test_size_is_a_usual_one_without_a_terminal(machine: AgentMachine) -> None:
    program = "import os; print(tuple(os.get_terminal_size(1)))"
    done = run(machine, sys.executable, "-c", program, stdin=subprocess.DEVNULL)
    assert done.stdout == "(80, 24)\n"


def test_ctrl_c_reaches_the_program(remote_alice: RemoteClient, at_terminal: AtTerminal) -> None:
    process, leader = at_terminal("sh", "-c", ENDS_AT_CTRL_C)
    until(lambda: the_log(remote_alice) == ["ready"])
    os.write(leader, b"\x03")
    assert until(lambda: process.poll() is not None)
    assert (process.returncode, the_log(remote_alice)) == (4, ["ready", "got it"])


def test_ctrl_c_that_is_noticed_after_its_program_ended_leaves_nothing_unsent(
    remote_alice: RemoteClient, machine: AgentMachine, at_terminal: AtTerminal
) -> None:
    machine.patch(LATE_SIGNAL)
    process, leader = at_terminal("sh", "-c", ENDS_AT_CTRL_C)
    until(lambda: the_log(remote_alice) == ["ready"])
    os.write(leader, b"\x03")
    assert until(lambda: process.poll() is not None)
    assert the_log(remote_alice) == ["ready", "got it"]
    assert machine.left_runs() == []


def test_later_ctrl_c_ends_the_wait_for_a_service_that_is_away(
    machine: AgentMachine, at_terminal: AtTerminal
) -> None:
    machine.url = f"http://127.0.0.1:{unused_port()}"
    machine.patch(f"{LATE_SIGNAL}\nrun.LATE_SIGNAL_SECONDS = -1.0\n{NEVER_GIVES_UP}")
    process, leader = at_terminal("sh", "-c", ENDS_AT_CTRL_C)
    shown = b""
    while b"ready" not in shown:
        shown += os.read(leader, 1000)
    os.write(leader, b"\x03")
    assert until(lambda: process.poll() is not None)
    assert len(machine.left_runs()) == 1


def test_program_reads_from_the_terminal(
    remote_alice: RemoteClient, at_terminal: AtTerminal
) -> None:
    process, leader = at_terminal("sh", "-c", "echo ready; read word; echo got $word")
    until(lambda: the_log(remote_alice) == ["ready"])
    os.write(leader, b"this\n")
    assert until(lambda: process.poll() is not None)
    assert (process.returncode, the_log(remote_alice)) == (0, ["ready", "got this"])

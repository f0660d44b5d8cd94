"""Programs as children of `taskservice run`: terminals, signals, and stopping descendants."""

import contextlib
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from taskservice.runner import process as process_tree
from taskservice.runner.process import Process
from tests.support.agent_machine import AgentMachine, AtTerminal
from tests.support.api_client import RemoteClient
from tests.support.waiting import PATIENCE_SECONDS, until

IGNORES_TERM = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
CHILD_IGNORES_TERM = "(trap '' TERM; echo ready; exec sleep 1000) & wait"


def started(script: str) -> tuple[Process, int]:
    """A program that has printed its first line, and where it continues to print."""
    reader, writer = os.pipe()
    with open(os.devnull) as nothing:
        program = ["sh", "-c", script]
        process = Process(program, os.environ, nothing.fileno(), writer, writer)
    os.close(writer)
    with open(reader, "rb", buffering=0, closefd=False) as printed:
        assert printed.readline() == b"ready\n"
    return process, reader


@pytest.mark.parametrize(
    ("script", "status"),
    [(IGNORES_TERM, -signal.SIGKILL), (CHILD_IGNORES_TERM, -signal.SIGTERM)],
    ids=["itself", "its-child"],
)
def test_process_that_ignores_a_stop_is_killed_after_the_grace(script: str, status: int) -> None:
    process, reader = started(script)
    began = time.monotonic()
    process.stop(1.0)
    assert process.wait() == status
    assert time.monotonic() - began >= 1.0
    assert os.read(reader, 1) == b""  # no process has it open any more
    os.close(reader)


def test_stop_ends_when_the_program_ends_within_the_grace() -> None:
    process, reader = started("echo ready; sleep 1000")
    process.stop(1000.0)
    assert process.wait() == -signal.SIGTERM
    os.close(reader)


def test_end_is_seen_where_very_many_files_are_open() -> None:
    """As by a worker with many programs at a time: `select` takes only the first 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(2_000, hard), hard))
    try:
        with contextlib.ExitStack() as opened:
            for _ in range(1_100):
                opened.enter_context(open(os.devnull))
            process, reader = started("echo ready; exit 7")
            assert process.wait() == 7
            os.close(reader)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_stop_reaches_a_child_in_another_process_group() -> None:
    program = "import os, time; os.setpgid(0, 0); print('ready', flush=True); time.sleep(1000)"
    process, reader = started(f'"{sys.executable}" -c "{program}"; exit 3')
    process.stop(1000.0)
    process.wait()
    assert os.read(reader, 1) == b""
    os.close(reader)


# Starts children as fast as it can, and prints the ID of each.
FORKS = "echo ready; while :; do sleep 1000 & echo $!; done"


@contextlib.contextmanager
def none_left(printed: bytearray) -> Iterator[None]:
    """Afterwards none of the processes lives whose IDs were printed."""
    try:
        yield
        until(lambda: not _alive(printed))
    finally:
        for process in _alive(printed):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _alive(printed: bytearray) -> list[int]:
    ids = {int(line) for line in printed.split() if line.isdigit()}
    return sorted(ids & process_tree.processes().keys())


@pytest.mark.parametrize("grace", [1000.0, 0.0], ids=["SIGTERM", "SIGKILL"])
def test_child_forked_during_a_stop_is_stopped_too(grace: float) -> None:
    for _ in range(3):
        process, reader = started(FORKS)
        printed = bytearray(os.read(reader, 100))
        with none_left(printed), open(reader, "rb", buffering=0) as rest:
            process.stop(grace)
            process.wait()
            # Each child has the pipe open: it ends with the last of them.
            while select.select([rest], [], [], PATIENCE_SECONDS) == ([rest], [], []):
                block = rest.read(10_000)
                if not block:
                    break
                printed += block
            else:
                pytest.fail("A child lives")


def test_cleanup_processes_of_a_stopped_program_are_not_stopped() -> None:
    clean_up = "trap 'sleep 0.2; echo clean; exit 5' TERM"
    process, reader = started(f"{clean_up}; echo ready; while :; do sleep 0.1; done")
    process.stop(30.0)
    assert process.wait() == 5
    assert os.read(reader, 100).endswith(b"clean\n")
    os.close(reader)


def test_paused_program_gets_a_signal() -> None:
    process, reader = started("echo ready; kill -STOP $$; sleep 1000")
    time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == -signal.SIGTERM
    os.close(reader)


def test_script_that_does_not_say_what_runs_it_is_run_by_the_shell(
    machine: AgentMachine, tmp_path: Path
) -> None:
    script = tmp_path / "script"
    script.write_text('echo "got $1"; exit 3\n')
    script.chmod(0o755)
    result = machine.run("run", "--agent", "a", "--", str(script), "this")
    assert (result.returncode, result.stdout) == (3, "got this\n")


def test_other_signals_reach_the_program(machine: AgentMachine) -> None:
    script = "trap 'echo got it; exit 4' USR1; echo ready; while :; do sleep 0.1; done"
    process = machine.spawn_script(script)
    assert process.read_line() == "ready\n"
    printed, _ = process.end(signal.SIGUSR1)
    assert (process.returncode, printed) == (4, "got it\n")
    assert machine.user.the_task()["error"]["message"] == "Exit status 4"


@pytest.mark.skipif(shutil.which("ps") is None, reason="no ps: install the package procps")
def test_ps_finds_the_same_as_proc() -> None:
    pid = os.getpid()
    parent, group, *_ = dict(process_tree._from_ps())[pid]
    assert (parent, group) == (os.getppid(), os.getpgrp())
    assert dict(process_tree._from_proc())[pid][:2] == (parent, group)


# What Python lacks on macOS, in whole or in part.
AS_ON_MACOS = (
    "import os, signal; del os.pidfd_open, signal.sigwaitinfo; from taskservice.cli import main"
)


def test_run_works_without_the_calls_that_macos_lacks(machine: AgentMachine) -> None:
    machine.command = [sys.executable, "-c", f"{AS_ON_MACOS}; main()"]
    assert machine.run_script("exit 3").returncode == 3
    process = machine.spawn_script("echo ready; sleep 1000")
    assert process.read_line() == "ready\n"
    process.end()
    assert process.returncode == 143


# --- at a terminal -----------------------------------------------------------------------


def test_program_at_a_terminal_gets_ctrl_c_once_and_can_read(
    remote_alice: RemoteClient, at_terminal: AtTerminal
) -> None:
    program = (
        "import signal, time\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('hello', input(), flush=True)\n"
        "signal.sigwait([signal.SIGINT])\n"
        "interrupts = 1\n"
        "while signal.sigtimedwait([signal.SIGINT], 3):\n"
        "    interrupts += 1\n"
        "print('interrupts:', interrupts)\n"
    )
    process, leader = at_terminal(sys.executable, "-c", program)
    os.write(leader, b"world\n")
    until(lambda: "hello world" in " ".join(remote_alice.the_log()))
    # The pause separates a second signal from the first, or the program would see only one.
    process.send_signal(signal.SIGSTOP)
    os.write(leader, b"\x03")
    time.sleep(0.5)
    process.send_signal(signal.SIGCONT)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert remote_alice.the_log()[-1] == "interrupts: 1"


@pytest.mark.parametrize(
    ("options", "stdin", "source"),
    [([], subprocess.DEVNULL, "/dev/tty"), (["--tty"], None, "/dev/stdin")],
    ids=["elsewhere", "terminal"],
)
def test_program_reads_from_the_terminal_wherever_its_stdin_is(
    remote_alice: RemoteClient, at_terminal: AtTerminal,
    options: list[str], stdin: int | None, source: str,
) -> None:  # fmt: skip
    script = f"echo ready; read word <{source}; echo got $word"
    process, leader = at_terminal("sh", "-c", script, options=options, stdin=stdin)
    until(lambda: remote_alice.the_log() == ["ready"])
    os.write(leader, b"this\n")
    assert (process.wait(PATIENCE_SECONDS), remote_alice.the_log()) == (0, ["ready", "got this"])


def test_interrupt_that_does_not_come_from_the_terminal_reaches_the_program(
    remote_alice: RemoteClient, at_terminal: AtTerminal
) -> None:
    process, _ = at_terminal("sh", "-c", "trap 'echo got it; exit 4' INT; echo ready; read word")
    until(lambda: remote_alice.the_log() == ["ready"])
    process.send_signal(signal.SIGINT)
    assert (process.wait(PATIENCE_SECONDS), remote_alice.the_log()) == (4, ["ready", "got it"])


def test_cancel_at_a_terminal_stops_what_the_program_has_started(
    machine: AgentMachine, at_terminal: AtTerminal
) -> None:
    machine.beat_often()
    process, _ = at_terminal("sh", "-c", "echo ready; sleep 1000; echo after")
    until(lambda: machine.user.the_log() == ["ready"])
    (shell,) = _children(process.pid)
    (sleep,) = until(lambda: _children(shell))
    machine.user.cancel(machine.user.the_task())
    assert process.wait(PATIENCE_SECONDS) == 143
    until(lambda: not Path(f"/proc/{sleep}").exists())


def test_child_forked_during_a_signal_at_a_terminal_gets_it_too(at_terminal: AtTerminal) -> None:
    for _ in range(3):
        # The program ignores SIGHUP, or the end of the terminal would stop the children.
        process, leader = at_terminal("sh", "-c", f"trap '' HUP; {FORKS}")
        printed = bytearray()
        while printed.count(b"\n") < 5:
            printed += os.read(leader, 100)
        with none_left(printed):
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(OSError):  # the terminal's end, on Linux
                while block := os.read(leader, 10_000):
                    printed += block
            process.wait(PATIENCE_SECONDS)


def _children(process: int) -> list[int]:
    return [
        int(child)
        for path in Path(f"/proc/{process}/task").glob("*/children")
        for child in path.read_text().split()
    ]

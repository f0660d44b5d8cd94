"""Logs that are longer than a task's log may be, and lines that the service has lost."""

import re
import signal
from pathlib import Path

from tests.support.agent_machine import AgentMachine, kill
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until

MIB = 1024 * 1024
HEAD, TAIL, FILE, LOG = 2 * MIB, MIB, MIB // 16, 4 * MIB
SMALL_LIMITS = f"""
from taskservice.client import log_tail, sender, spool

spool.HEAD_BYTES, spool.TAIL_BYTES, log_tail.SEGMENT_BYTES = {HEAD}, {TAIL}, {FILE}
sender.MAX_LOG = spool.MAX_LOG_BYTES = {LOG}
"""
# The program reads its output in blocks of this size at most.
BLOCK = 256 * 1024
FOLLOWS = (
    "[taskservice: 2 MiB of the log are sent; its last lines follow when the program has ended]"
)
LEFT_OUT = re.compile(
    r"\[taskservice: ([0-9,]+) lines \(([0-9,]+) bytes\) left out here: the log is too long, so "
    r"only its start and its end are stored\]"
)
# Prints the numbers, and then the size of the largest spool that it has seen.
PRINTS = """
spool=$(dirname "$TASKSERVICE_OUTPUT")
for part in 0 1 2 3 4 5 6 7 8 9; do
  seq $((part * 100000 + 1)) $((part * 100000 + 100000))
  du -sb "$spool" >> "$HOME/sizes"
done
"""
NUMBERS = [str(number) for number in range(1, 1_000_001)]


def size_of(lines: list[str]) -> int:
    return sum(len(line) + 1 for line in lines)


def check_parts(lines: list[str]) -> None:
    """The numbers start and end as printed, and a line says exactly what is missing."""
    note = lines.index(FOLLOWS)
    start, (left_out, *end) = lines[:note], lines[note + 1 :]
    missing = LEFT_OUT.fullmatch(left_out)
    assert missing is not None, left_out
    assert start == NUMBERS[: len(start)]
    assert end == NUMBERS[-len(end) :]
    dropped = NUMBERS[len(start) : -len(end)]
    assert [int(count.replace(",", "")) for count in missing.groups()] == [
        len(dropped), size_of(dropped),
    ]  # fmt: skip
    assert HEAD - BLOCK <= size_of(start) <= HEAD
    assert TAIL <= size_of(end) <= TAIL + 2 * BLOCK


def test_long_log_keeps_its_start_and_its_end(machine: AgentMachine) -> None:
    machine.patch(SMALL_LIMITS)
    done = machine.run_script(PRINTS + "exit 3")
    assert (done.returncode, done.stderr) == (3, "")
    assert done.stdout.splitlines() == NUMBERS
    task = machine.user.the_task()
    check_parts(task["logs"])
    assert task["error"]["message"] == "Exit status 3"
    assert machine.left_runs() == []


def test_long_log_of_a_run_without_service_takes_little_disk(machine: AgentMachine) -> None:
    machine.lose_service()
    machine.command[-1] = machine.command[-1].replace("main(", f"{SMALL_LIMITS}\nmain(")
    left = machine.run_script(PRINTS)
    assert left.returncode == 0
    stored = re.search(r"([0-9,]+) lines and the exit status could not be sent yet", left.stderr)
    sizes = [int(line.split()[0]) for line in (machine.home / "sizes").read_text().splitlines()]
    assert len(sizes) == 10
    # Until the log is known to be too long, it is stored whole. The directory also has the
    # reserved space of the run.
    assert max(sizes) < LOG + 2 * BLOCK
    assert sizes[-1] < HEAD + TAIL + 3 * BLOCK
    assert machine.resend().returncode == 0
    task = machine.user.the_task()
    check_parts(task["logs"])
    assert task["status"] == "complete"
    assert stored is not None
    assert int(stored[1].replace(",", "")) == len(task["logs"])
    assert machine.left_runs() == []


def test_end_of_a_long_log_survives_a_killed_run(machine: AgentMachine, tmp_path: Path) -> None:
    machine.patch(SMALL_LIMITS)
    shown = tmp_path / "shown"
    with open(shown, "w") as out:
        process = machine.spawn_script(PRINTS + "echo end; sleep 1000", stdout=out)
        until(lambda: shown.read_bytes().endswith(b"end\n"))
        # While the program runs, the page says why it shows none of these lines.
        until(lambda: FOLLOWS in machine.user.the_log()[-1:])
        process.end(signal.SIGKILL)
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    *lines, last = machine.user.the_log()
    assert last == "end"
    check_parts(lines)
    assert "unknown" in machine.user.the_task()["error"]["message"]
    assert machine.left_runs() == []


def test_killed_resend_of_a_long_log_is_continued(own_machine: AgentMachine) -> None:
    machine, url = own_machine, own_machine.url
    machine.lose_service()
    machine.command[-1] = machine.command[-1].replace("main(", f"{SMALL_LIMITS}\nmain(")
    machine.run_script(PRINTS)
    (folder,) = machine.left_runs()
    record = folder / "run.json"
    record.write_text(record.read_text().replace(machine.url, url))
    machine.url = url
    # One file of the end is on its way, when the process is killed.
    machine.patch(
        "import os, signal\nfrom taskservice.client.log_tail import Tail\n"
        "def take(self, taken=[], original=Tail.take):\n"
        "    taken.append(original(self))\n"
        "    if len(taken) == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return taken[-1]\n"
        "Tail.take = take\n"
    )
    assert machine.run("run", "--resend").returncode == -signal.SIGKILL
    machine.patch("")
    assert machine.run("run", "--resend").returncode == 0
    check_parts(machine.user.the_log())
    assert machine.left_runs() == []


def test_log_that_fits_is_whole(machine: AgentMachine) -> None:
    machine.patch(SMALL_LIMITS)
    assert LOG * 0.97 < size_of(NUMBERS[:600_000]) < LOG
    machine.run("run", "--agent", "a", "--", "seq", "600000")
    lines = machine.user.the_log()
    lines.remove(FOLLOWS)
    assert lines == NUMBERS[:600_000]


# --- lines that the service has lost -----------------------------------------------------

MISSING = "[taskservice: 2 lines missing here: the service has lost what was sent]"


def restore_without_two_lines(service: Service, machine: AgentMachine, backup: Path) -> None:
    """Restore a backup that was made before the second and third line."""
    until(lambda: machine.user.the_log() == ["one"])
    assert service.run("db", "backup", str(backup)).returncode == 0
    machine.home.joinpath("more").touch()
    until(lambda: machine.user.the_log() == ["one", "two", "three"])
    kill(service)
    restored = service.run("db", "restore", str(backup), "--force")
    assert restored.returncode == 0, restored
    service.start()


WAITS = 'wait_for() { until [ -e "$HOME/$1" ]; do sleep 0.1; done; }; '


def test_lines_that_a_restore_has_lost_are_counted(
    own_service: Service, own_machine: AgentMachine, tmp_path: Path
) -> None:
    script = WAITS + "echo one; wait_for more; echo two; echo three; wait_for last; echo four"
    process = own_machine.spawn_script(script)
    restore_without_two_lines(own_service, own_machine, tmp_path / "backup.db")
    own_machine.home.joinpath("last").touch()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    task = own_machine.user.the_task()
    assert (task["status"], task["logs"]) == ("complete", ["one", MISSING, "four"])
    assert own_machine.left_runs() == []


def test_lost_lines_are_noticed_though_the_program_is_silent(
    own_service: Service, own_machine: AgentMachine, tmp_path: Path
) -> None:
    own_machine.beat_often()
    script = WAITS + "echo one; wait_for more; echo two; echo three; wait_for last"
    process = own_machine.spawn_script(script)
    restore_without_two_lines(own_service, own_machine, tmp_path / "backup.db")
    until(lambda: own_machine.user.the_log() == ["one", MISSING])
    own_machine.home.joinpath("last").touch()
    process.communicate(timeout=PATIENCE_SECONDS)
    assert own_machine.user.the_log() == ["one", MISSING]

"""`taskservice run --resend` sends the runs that are left on the disk."""

import json
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest

from taskservice.client.spool import Spool, now
from taskservice.database import clock
from taskservice.runner.saved_run import SavedRun
from tests.support import receiver as play
from tests.support import service_answers as played
from tests.support.agent_machine import AgentMachine
from tests.support.mounts import fill, small_disk
from tests.support.receiver import Receiver
from tests.support.requirements import needs
from tests.support.service import Service
from tests.support.waiting import PATIENCE_SECONDS, until


def killed_run(machine: AgentMachine) -> Path:
    """The directory of a run whose task is made, and that was killed before its end."""
    process = machine.spawn_script("echo ready; sleep 1000")
    until(lambda: machine.user.the_log() == ["ready"])
    process.end(signal.SIGKILL)
    (folder,) = machine.left_runs()
    return folder


def run_without_a_task(machine: AgentMachine, agent_id: str = "a", **fields: object) -> Path:
    """The directory of a run that ended while the service was away."""
    run = SavedRun(machine.url, {"agentId": agent_id, "claim": True, **fields})
    run.report = {"status": "complete"}
    run.create_directory(machine.home / "state" / "taskservice" / "runs")
    assert run.directory is not None
    spool = Spool(run.directory)
    spool.put(b"from afar\n", now())
    spool.close()
    run.release()
    return run.directory


def test_run_of_another_user_or_agent_is_kept(
    machine: AgentMachine, shared_service: Service
) -> None:
    folder = killed_run(machine)
    sentence = f"but the key to another user or agent; the run remains in {folder}"
    for key in (shared_service.add_user("bob").key, machine.user.agent_key("other")):
        machine.key = key
        refused = machine.run("run", "--resend")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert sentence in refused.stderr
        assert machine.left_runs() == [folder]
    machine.key = machine.user.agent_key("a")
    assert machine.resend().returncode == 0
    assert machine.user.the_log() == ["ready"]
    assert machine.left_runs() == []


def test_run_that_is_sent_later_took_as_long_as_its_program(machine: AgentMachine) -> None:
    machine.lose_service()
    left = machine.run_script("true")
    assert left.returncode == 0
    unsent = "the exit status could not be sent yet; send the rest with `taskservice run --resend`"
    assert left.stderr.splitlines()[-1] == f"taskservice: {unsent}"
    (folder,) = machine.left_runs()
    run = json.loads((folder / "run.json").read_text())
    # As if it had ended hours ago.
    run["startFields"]["claimedAt"] = clock.now(-4 * 3600)
    (folder / "run.json").write_text(json.dumps(run))
    assert machine.resend().returncode == 0
    assert machine.user.the_task()["seconds"] < 3600
    header, row = machine.run("task", "list").stdout.splitlines()
    assert re.match(r"(< )?[0-9.]+ s ", row[header.index("TOOK") :]), row


def test_run_is_sent_without_its_lock_and_next_to_a_file_that_is_not_a_run(
    machine: AgentMachine,
) -> None:
    """As a run that was copied."""
    folder = run_without_a_task(machine)
    (folder / "lock").unlink()
    folder.with_name("notes.txt").write_text("mine")
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    assert machine.user.the_log() == ["from afar"]
    assert machine.left_runs() == [folder.with_name("notes.txt")]


def test_run_that_is_refused_says_how_to_forget_it(machine: AgentMachine) -> None:
    folder = run_without_a_task(machine, "A b")
    refused = machine.run("run", "--resend")
    assert refused.returncode == 1
    assert f"the run remains in {folder}; remove that directory to discard it" in refused.stderr
    assert machine.left_runs() == [folder]


def test_callback_that_is_refused_is_left_out(machine: AgentMachine) -> None:
    run_without_a_task(machine, callback="nonsense")
    resent = machine.run("run", "--resend")
    assert resent.returncode == 0
    assert "http:// or https://; the task is started without callback" in resent.stderr
    task = machine.user.the_task()
    assert (task["logs"], task["callback"]) == (["from afar"], None)


def test_not_found_is_not_the_deletion_of_a_task_that_was_never_made(machine: AgentMachine) -> None:
    folder = run_without_a_task(machine)
    with Receiver() as receiver:
        receiver.answer = played.problem(404, "No such agent", code="not_found")
        receiver.paths["/api/v1/user"] = played.answer(200, machine.user.read("/user"))
        machine.url = receiver.url.rstrip("/")
        record = folder / "run.json"
        record.write_text(record.read_text().replace(machine.user.url, machine.url))
        refused = machine.run("run", "--resend")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert machine.left_runs() == [folder]


def test_resend_gives_up_a_deleted_task(machine: AgentMachine) -> None:
    killed_run(machine)
    task = machine.user.the_task()
    machine.user.delete(task)
    unwanted = machine.run("run", "--resend")
    sentence = f"{task['id']} was cancelled or deleted\n"
    assert (unwanted.returncode, unwanted.stdout) == (0, sentence)
    assert machine.left_runs() == []


def test_agent_that_the_key_cannot_see_does_not_stop_the_program(
    shared_service: Service, tmp_path: Path
) -> None:
    """The service is unavailable at the start, and then creates no task for this key."""
    machine = AgentMachine(tmp_path / "home", shared_service.add_user("carol"))
    with Receiver() as receiver:
        receiver.answer = play.answer(503)
        machine.url = receiver.url
        machine.start_without_service()
        script = "echo ready; read word; sleep 0.5; echo done; exit 7"
        process = machine.spawn_script(script)
        assert process.read_line() == "ready\n"
        receiver.answer = played.problem(404, "No such agent", code="not_found")
        printed, notices = process.communicate("go on\n", timeout=PATIENCE_SECONDS)
    assert (process.returncode, printed) == (7, "done\n")
    assert "the service refused a request: No such agent; the program continues" in notices
    assert len(machine.left_runs()) == 1


def test_lines_come_once_where_their_number_was_lost(machine: AgentMachine) -> None:
    folder = run_without_a_task(machine)
    task = machine.user.start("a")
    machine.user.append(task, "one", "two", seq=1, writer="run")
    record = folder / "run.json"
    record.write_text(record.read_text().replace('"taskId": null', f'"taskId": "{task["id"]}"'))
    (folder / "position").write_bytes(b"")
    resent = machine.run("run", "--resend")
    assert (resent.returncode, resent.stderr) == (0, "")
    assert machine.user.the_task()["logs"] == ["one", "two", "from afar"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB."""
    with small_disk(tmp_path / "tiny", "1m") as folder:
        yield folder


def test_disk_that_fills_up_is_reported_and_keeps_the_end(
    machine: AgentMachine, tiny_disk: Path
) -> None:
    machine.home = tiny_disk
    script = (
        "echo first; sleep 0.3; head -c 2000000 /dev/zero 2>&- > $HOME/filler; sleep 0.1; "
        "seq 2 100000; exit 3"
    )
    machine.lose_service()
    result = machine.run_script(script)
    assert result.returncode == 3
    assert "No space left on device" in result.stderr
    notice = re.search(r"([0-9,]+) lines were lost because the disk is full", result.stderr)
    assert notice is not None
    (tiny_disk / "filler").unlink()
    resent = machine.resend()
    assert (resent.returncode, resent.stderr) == (0, "")
    task = machine.user.the_task()
    assert task["error"]["message"] == "Exit status 3"
    marks = [line for line in task["logs"] if "left out here" in line]
    left_out = sum(int(mark.split()[1].replace(",", "")) for mark in marks)
    assert left_out == int(notice[1].replace(",", ""))
    assert left_out + len(task["logs"]) - len(marks) == 100_000
    assert machine.left_runs() == []


def test_program_gets_no_output_file_on_a_full_disk(machine: AgentMachine, tiny_disk: Path) -> None:
    machine.home = tiny_disk
    fill(tiny_disk)
    script = "echo '{}' > ${TASKSERVICE_OUTPUT:-/dev/null}"
    result = machine.run_script(script)
    (notice,) = result.stderr.splitlines()
    assert "can't write to the disk" in notice
    assert (result.returncode, machine.user.the_task()["status"]) == (0, "complete")


def test_concurrent_resends_send_each_run_once(machine: AgentMachine) -> None:
    for _ in range(20):
        run_without_a_task(machine)
    processes = [machine.spawn("run", "--resend") for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sum(printed.count("sent: 1 line and the exit status") for printed, _ in outputs) == 20
    assert [task["logs"] for task in machine.user.tasks()] == [["from afar"]] * 20
    assert machine.left_runs() == []


def test_reading_a_removed_run_does_not_recreate_it(machine: AgentMachine) -> None:
    folders = [run_without_a_task(machine) for _ in range(30)]
    with ThreadPoolExecutor(4) as pool:
        for folder in folders:
            run = SavedRun.load(folder)
            assert run is not None
            looks = [pool.submit(look_often, folder) for _ in range(3)]
            run.remove()
            assert [look.result() for look in looks] == [None] * 3
    assert machine.left_runs() == []


def look_often(folder: Path) -> SavedRun | None:
    looks = (SavedRun.load(folder) for _ in range(50))
    return next(filter(None, looks), None)


def _give_away(path: Path) -> None:
    try:
        os.chown(path, 54321, 54321)
    except PermissionError:
        needs("right to give a folder away", "run the tests as root")


LINES = "lines"
# Replacements of a file, which get its path and a file elsewhere.
REPLACEMENTS: tuple[Callable[[Path, Path], object], ...] = (
    lambda path, _: os.mkfifo(path),
    lambda path, _: path.mkdir(),
    lambda path, file: path.symlink_to(file),
)
RECORDS = (b"[]", b"\xff", b"[" * 100_000, b"{}")


def test_damaged_runs_are_reported_and_do_not_stop_newer_runs(machine: AgentMachine) -> None:
    file = machine.home / "elsewhere"
    file.write_text("a secret line\n")
    damaged = []
    for name, replace in product(("run.json", "lock", "position", LINES), REPLACEMENTS):
        damaged.append(run_without_a_task(machine))
        (damaged[-1] / name).unlink()
        replace(damaged[-1] / name, file)
    for text in RECORDS:
        damaged.append(run_without_a_task(machine))
        (damaged[-1] / "run.json").write_bytes(text)
    for spoil in (lambda folder: folder.chmod(0o777), _give_away):
        damaged.append(run_without_a_task(machine))
        spoil(damaged[-1])
    for folder in damaged:
        os.utime(folder, (1, 1))
    run_without_a_task(machine)
    resent = machine.run("run", "--resend")
    assert resent.returncode == 1
    *reports, _ = sorted(resent.stderr.splitlines())
    for report, folder in zip(reports, sorted(damaged), strict=True):
        assert str(folder) in report
    assert [task["logs"] for task in machine.user.tasks()] == [["from afar"]]
    assert machine.left_runs() == sorted(damaged)
    assert file.read_text() == "a secret line\n"


def test_link_among_the_runs_is_not_followed(machine: AgentMachine) -> None:
    folder = run_without_a_task(machine)
    elsewhere = folder.rename(machine.home / "elsewhere")
    folder.symlink_to(elsewhere)
    resent = machine.run("run", "--resend")
    assert resent.returncode == 1
    assert str(folder) in resent.stderr
    assert machine.user.tasks() == []
    assert (elsewhere / LINES).read_text().endswith("\nfrom afar\n")


def test_runs_are_kept_where_no_other_user_may_enter(machine: AgentMachine) -> None:
    runs = machine.home / "state" / "taskservice" / "runs"
    runs.mkdir(parents=True)
    runs.chmod(0o777)
    script = "stat -c %a $(dirname $TASKSERVICE_OUTPUT)"
    result = machine.run_script(script)
    assert (result.stdout, result.stderr) == ("700\n", "")
    assert runs.stat().st_mode & 0o777 == 0o700


def test_folder_of_another_user_keeps_no_runs(machine: AgentMachine) -> None:
    runs = machine.home / "state" / "taskservice" / "runs"
    run_without_a_task(machine)
    _give_away(runs)
    result = machine.run("run", "--agent", "a", "--", "echo", "done")
    assert (result.returncode, result.stdout) == (0, "done\n")
    assert "can't write to the disk" in result.stderr
    assert machine.user.the_task()["logs"] == ["done"]
    resent = machine.run("run", "--resend")
    assert resent.returncode == 1
    assert "The directory belongs to another user" in resent.stderr
    assert "PosixPath" not in resent.stderr
    assert len(machine.left_runs()) == 1


def test_machine_without_a_home_has_nothing_to_resend(machine: AgentMachine) -> None:
    environment = {**machine.environment, "XDG_STATE_HOME": "", "HOME": ""}
    del environment["HOME"]
    command = ["setpriv", "--reuid", "54321", "--clear-groups", *machine.command, "run", "--resend"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "setpriv" in result.stderr:
        needs("right to become another user", "run the tests as root")
    assert result.returncode == 1
    assert result.stderr.startswith("taskservice: neither XDG_STATE_HOME nor HOME is set")

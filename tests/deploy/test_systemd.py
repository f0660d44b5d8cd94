"""The units of systemd: checked by systemd, and their commands run with their environment."""

import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import requests

from tests.support.commands import run
from tests.support.databases import Databases
from tests.support.documents import ROOT, install_commands
from tests.support.readiness import is_up
from tests.support.requirements import needs
from tests.support.service import free_port
from tests.support.systemd import Machine
from tests.support.waiting import until

DEPLOY = ROOT / "deploy"
UNITS = (
    "taskservice.service", "taskservice-backup.service", "taskservice-backup.timer",
    "taskservice-litestream.service",
)  # fmt: skip
MAX_EXPOSURE = 4.0
# Of Linux 6.3 and newer: memory that was writable never becomes executable.
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A machine where the units are installed as the manual says."""
    machine = Machine(tmp_path)
    commands = install_commands(tmp_path / "opt/taskservice/bin")
    shutil.copy(DEPLOY / "taskservice-backup", commands)
    (commands / "litestream").symlink_to(Path(sys.executable).with_name("litestream"))
    machine.units.mkdir(parents=True)
    for name in ("taskservice", "taskservice-backups"):
        (tmp_path / "var/lib" / name).mkdir(parents=True)
    for name in UNITS:
        shutil.copy(DEPLOY / name, machine.units)
    return machine


@pytest.fixture
def units(machine: Machine, tmp_path: Path) -> list[str]:
    """The paths of the units, whose programs are there."""
    (tmp_path / "units").mkdir()
    paths = [tmp_path / "units" / name for name in UNITS]
    for path in paths:
        path.write_text(machine.below_root((DEPLOY / path.name).read_text()))
    return [str(path) for path in paths]


def systemd_analyze(*arguments: str) -> str:
    program = shutil.which("systemd-analyze")
    if program is None:
        needs("systemd-analyze", "install the package systemd")
    result = subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result
    return result.stdout + result.stderr


def test_systemd_finds_nothing_wrong_in_the_units(units: list[str]) -> None:
    assert systemd_analyze("verify", "--man=no", *units) == ""


def test_services_have_few_rights(units: list[str], subtests: pytest.Subtests) -> None:
    for path in (path for path in units if path.endswith(".service")):
        with subtests.test(path):
            report = systemd_analyze("security", "--offline=true", path)
            (exposure,) = re.findall(r"Overall exposure level for \S+: ([\d.]+)", report)
            assert float(exposure) < MAX_EXPOSURE


def refuse_executable_memory() -> None:
    """As `MemoryDenyWriteExecute=yes` does; an older kernel knows no such thing."""
    ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)


def test_service_says_when_it_is_ready_and_ends_in_time(machine: Machine) -> None:
    unit, port = "taskservice.service", free_port()
    shutil.copy(DEPLOY / "taskservice.env", machine.root / "etc/taskservice.env")
    notices = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notices.settimeout(60)
    notices.bind(str(machine.root / "notify"))
    settings = {
        "NOTIFY_SOCKET": str(machine.root / "notify"),
        "TASKSERVICE_BIND": f"127.0.0.1:{port}",
    }
    (seconds,) = machine.values(unit, "TimeoutStopSec")
    assert machine.values(unit, "Type") == ["notify"]
    with notices, open(machine.root / "log", "wb") as log:
        process = subprocess.Popen(
            machine.command(unit), cwd="/", env=machine.environment(unit, **settings),
            stdout=log, stderr=log, preexec_fn=refuse_executable_memory,
        )  # fmt: skip
        try:
            assert b"READY=1" in notices.recv(1000)
            url = f"http://127.0.0.1:{port}"
            until(partial(is_up, f"{url}/readyz"))
            headers = {"apikey": add_user(machine, unit)}
            assert requests.get(f"{url}/api/v1/user", headers=headers, timeout=60).ok
            began = time.monotonic()
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=60) == 0
            assert time.monotonic() - began < float(seconds)
        finally:
            process.kill()
            process.wait()
    assert (machine.root / "var/lib/taskservice/taskservice.db").exists()
    assert "is not a known setting" not in (machine.root / "log").read_text()


def add_user(machine: Machine, unit: str) -> str:
    command = [str(machine.root / "opt/taskservice/bin/taskservice"), "user", "add", "alice"]
    environment = machine.environment(unit)
    return subprocess.check_output(command, env=environment, text=True, timeout=60).strip()


def test_wrong_setting_does_not_start_it_again(machine: Machine) -> None:
    (code,) = machine.values("taskservice.service", "RestartPreventExitStatus")
    (machine.root / "etc/taskservice.env").write_text("TASKSERVICE_THREADS=none\n")
    result = machine.run("taskservice.service")
    assert result.returncode == int(code)
    assert "TASKSERVICE_THREADS" in result.stderr


def test_backup_has_a_dated_name_and_the_oldest_are_removed(machine: Machine) -> None:
    unit = "taskservice-backup.service"
    add_user(machine, unit)
    (machine.root / "etc/taskservice.env").write_text("BACKUP_KEEP=2\n")
    folder = machine.root / "var/lib/taskservice-backups"
    for day in ("2026-01-01", "2026-01-03", "2026-01-02"):
        (folder / f"taskservice-{day}T000000Z.db").touch()
    (folder / "notes.db").touch()
    result = machine.run(unit)
    assert result.returncode == 0, result
    *others, oldest, newest = sorted(os.listdir(folder))
    assert others == ["notes.db", "secret_key"]
    assert oldest == "taskservice-2026-01-03T000000Z.db"
    assert re.fullmatch(r"taskservice-\d{4}-\d\d-\d\dT\d{6}Z\.db", newest)
    assert last_backup(machine) > 0
    restored = machine.root / "restored"
    assert run(restored, "db", "restore", str(folder / newest)).returncode == 0
    assert "alice" in run(restored, "user", "list").stdout


def last_backup(machine: Machine) -> float:
    """When a backup last succeeded, in seconds since 1970; 0 if none did."""
    return (machine.root / "var/lib/taskservice/last_backup").stat().st_mtime


def test_failed_backup_fails_the_unit_and_removes_none(machine: Machine) -> None:
    old = machine.root / "var/lib/taskservice-backups/taskservice-2026-01-01T000000Z.db"
    old.touch()
    (machine.root / "etc/taskservice.env").write_text("BACKUP_KEEP=1\n")
    result = machine.run("taskservice-backup.service")
    assert result.returncode != 0
    assert "no database" in result.stderr
    assert old.exists()
    # So that an alert comes though no backup has ever succeeded.
    assert last_backup(machine) == 0


def test_backup_that_would_not_be_kept_is_refused(
    machine: Machine, subtests: pytest.Subtests
) -> None:
    unit = "taskservice-backup.service"
    add_user(machine, unit)
    for number in ("0", "-1", "all", ""):
        with subtests.test(number):
            (machine.root / "etc/taskservice.env").write_text(f"BACKUP_KEEP={number}\n")
            result = machine.run(unit)
            assert result.returncode == 2
            assert "BACKUP_KEEP must be 1 or more" in result.stderr
    assert os.listdir(machine.root / "var/lib/taskservice-backups") == []


def test_postgresql_is_backed_up_by_pg_dump(machine: Machine, databases: Databases) -> None:
    url = databases.new_postgresql()
    unit, folder = "taskservice-backup.service", machine.root / "var/lib/taskservice-backups"
    settings = {"TASKSERVICE_DATABASE_URL": url, "TASKSERVICE_SECRET_KEY": "a" * 40}
    command = [str(machine.root / "opt/taskservice/bin/taskservice"), "user", "add", "alice"]
    environment = machine.environment(unit, **settings)
    subprocess.run(command, env=environment, check=True, timeout=60)
    programs = f"{databases.programs}:/usr/bin:/bin"
    # By hand, in a shell that lets others read what it makes.
    result = machine.run(unit, **settings, PATH=programs)
    assert result.returncode == 0, result
    (dump,) = folder.iterdir()
    assert dump.suffix == ".dump"
    assert dump.stat().st_mode & 0o777 == 0o600
    succeeded_at = last_backup(machine)
    assert succeeded_at > 0
    listed = subprocess.check_output(
        ["pg_restore", "--list", dump], env={"PATH": programs}, text=True, timeout=60
    )
    assert "TABLE DATA public tasks" in listed
    refused = machine.run(unit, **settings, PATH=programs, PGOPTIONS="-c nonsense=1")
    assert refused.returncode != 0
    assert [path.name for path in folder.iterdir()] == [dump.name]
    assert last_backup(machine) == succeeded_at

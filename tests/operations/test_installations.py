"""Installations: the agent's side alone, what its commands say, and the pinned versions."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest
from packaging.requirements import Requirement

from taskservice.cli.commands import CLIENT_COMMANDS, SERVER_COMMANDS
from tests.support.documents import ROOT, blocks
from tests.support.packages import (
    build,
    copy_sources,
    dependencies,
    install,
    installed,
    new_environment,
    normalized,
    wheel,
    with_their_own,
)
from tests.support.requirements import needs
from tests.support.service import Service, environment

# `make test` installs the clone so.
IN_CLONE = f"pip install -e '{ROOT}"
ICONS_LICENCE = "taskservice/dashboard/templates/dashboard/icons/LICENSE"
WITHOUT = """
import sys
packages, *sys.argv[1:] = sys.argv[1:]
sys.modules |= dict.fromkeys(packages.split(","))  # importing one of these fails now
from taskservice.cli import main
main(prog_name="taskservice")
"""


def run_without(packages: str, data: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """The exit status and the stderr of a command where these packages are not installed."""
    command = [sys.executable, "-c", WITHOUT, packages, *arguments]
    result = subprocess.run(
        command, env=environment(data, **settings), capture_output=True, text=True, timeout=60
    )
    assert result.stdout == ""
    return result.returncode, result.stderr


def test_command_on_the_server_says_which_extra_it_lacks(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    cases = [[name] for name in SERVER_COMMANDS]
    cases += [["user", "add", "alice"], ["serve", "--help"], ["db", "backup", "--force", "file"]]
    for arguments in cases:
        with subtests.test(" ".join(arguments)):
            line = f"taskservice: {arguments[0]} needs taskservice[server]: {IN_CLONE}[server]'\n"
            assert run_without("flask,sqlalchemy", tmp_path, *arguments) == (2, line)


def test_one_missing_package_of_the_server_is_as_all_of_them(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for package in ("flask", "flask_sqlalchemy", "sqlalchemy", "marshmallow", "orjson"):
        with subtests.test(package):
            code, printed = run_without(package, tmp_path / package, "serve")
            assert (code, len(printed.splitlines())) == (2, 1)
            assert "serve needs taskservice[server]" in printed


def test_postgresql_without_its_driver_says_which_extra_it_lacks(
    tmp_path: Path, subtests: pytest.Subtests
) -> None:
    for arguments in (["serve"], ["user", "list"], ["db", "check"]):
        with subtests.test(" ".join(arguments)):
            code, printed = run_without(
                "psycopg", tmp_path, *arguments, DATABASE_URL="postgresql://localhost/tasks"
            )
            assert (code, printed) == (
                2,
                "taskservice: TASKSERVICE_DATABASE_URL: needs taskservice[postgresql]: "
                f"{IN_CLONE}[postgresql]'\n",
            )


def test_postgresql_with_a_broken_driver_says_what_is_wrong(tmp_path: Path) -> None:
    # It has its own libpq, or looks for the system's.
    broken = "psycopg_binary,psycopg_c,ctypes.util"
    url = "postgresql://localhost/tasks"
    code, stderr = run_without(broken, tmp_path, "user", "list", DATABASE_URL=url)
    assert code == 2
    assert stderr.startswith("taskservice: TASKSERVICE_DATABASE_URL: needs psycopg, which can't be")
    assert stderr.count("\n") == 1


def test_error_in_a_module_of_our_own_is_not_a_missing_extra(tmp_path: Path) -> None:
    code, printed = run_without("taskservice.cli.serve", tmp_path, "serve")
    assert code == 1
    assert "ModuleNotFoundError" in printed


# --- from the wheel ----------------------------------------------------------------------


def test_package_alone_is_the_whole_agents_side(tmp_path: Path) -> None:
    python = new_environment(tmp_path / "venv")
    folder = python.parent
    file = wheel(tmp_path)
    # The licences of the package and of the icons in it.
    licences = [name for name in ZipFile(file).namelist() if ".dist-info/licenses/" in name]
    assert [name.rpartition("licenses/")[2] for name in licences] == ["LICENSE", ICONS_LICENCE]
    install(python, str(file))
    assert installed(python) == with_their_own(dependencies()) | {"taskservice"}

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
        return subprocess.run(
            [folder / arguments[0], *arguments[1:]], cwd=tmp_path, env=clean | variables,
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    imported = run("python", "-c", "import taskservice.client; print(taskservice.client.__file__)")
    assert str(folder.parent) in imported.stdout
    shown = run("taskservice", "--help").stdout
    assert all(f"\n  {name} " in shown for name in CLIENT_COMMANDS | SERVER_COMMANDS)
    assert shown.count("needs taskservice[server]") == len(SERVER_COMMANDS)
    for name in CLIENT_COMMANDS:
        assert "Usage: taskservice" in run("taskservice", name, "--help").stdout
    refused = run("taskservice", "serve")
    assert refused.returncode == 2
    assert refused.stderr.endswith(f": pip install '{file}[server]'\n")
    # The wheel is gone, as a download often is later.
    file.rename(tmp_path / "moved.whl")
    assert run("taskservice", "serve").stderr.endswith(": pip install 'taskservice[server]'\n")
    (folder.parent / "pipx_metadata.json").touch()
    of_pipx = ": pipx install --force 'taskservice[server]'\n"
    assert run("taskservice", "serve").stderr.endswith(of_pipx)
    away = {"TASKSERVICE_URL": "http://127.0.0.1:1", "TASKSERVICE_APIKEY": "x"}
    away["XDG_STATE_HOME"] = str(tmp_path / "away")
    assert (
        "when the service is reachable\n"
        in run("taskservice", "run", "--agent", "a", "--", "true", **away).stderr
    )
    completed = run(
        "taskservice",
        _TASKSERVICE_COMPLETE="bash_complete", COMP_WORDS="taskservice task re", COMP_CWORD="2",
    )  # fmt: skip
    assert completed.stdout == "plain,rerun\n"

    with Service(tmp_path / "data") as service:
        alice = service.add_user()
        settings = {
            "TASKSERVICE_URL": service.url,
            "TASKSERVICE_APIKEY": alice.key,
            "XDG_STATE_HOME": str(tmp_path / "state"),
        }
        assert run("taskservice", "agent", "add", "count", **settings).returncode == 0
        counted = run("taskservice", "run", "--agent", "count", "--", "seq", "3", **settings)
        assert (counted.stdout, counted.returncode) == ("1\n2\n3\n", 0)
        (task,) = alice.request("GET", "/task?fields=status,logs").json()
        assert task["logs"] == ["1", "2", "3"]


def git(clone: Path, *arguments: str) -> None:
    if shutil.which("git") is None:
        needs("git", "install the package git")
    who = ["-c", "user.name=alice", "-c", "user.email=alice@example.org"]
    subprocess.run(["git", "-C", clone, *who, *arguments], check=True, capture_output=True)


def commit(clone: Path) -> None:
    git(clone, "add", "--all")
    git(clone, "commit", "--message", "Change something")


def test_newer_commit_of_a_clone_replaces_the_older(tmp_path: Path) -> None:
    clone = copy_sources(tmp_path / "clone")
    shutil.copy(ROOT / ".gitignore", clone)
    (clone / "taskservice/removed_later.py").touch()
    git(clone, "init")
    commit(clone)
    older = build(clone, tmp_path / "wheels")
    (clone / "taskservice/removed_later.py").unlink()
    commit(clone)
    # Between both, setuptools keeps what it built in the clone.
    newer = build(clone, tmp_path / "wheels")

    python = new_environment(tmp_path / "venv")
    install(python, str(older))
    assert version_and_removed_module(python) == "0.1.0.dev1 True"
    install(python, "--upgrade", str(newer))
    assert version_and_removed_module(python) == "0.1.0.dev2 False"
    shown = subprocess.check_output([python.with_name("taskservice"), "--version"], text=True)
    assert shown == "taskservice, version 0.1.0.dev2\n"


def version_and_removed_module(python: Path) -> str:
    program = (
        "from importlib.util import find_spec; import taskservice;"
        "print(taskservice.__version__, find_spec('taskservice.removed_later') is not None)"
    )
    return subprocess.check_output([str(python), "-I", "-c", program], text=True).strip()


def test_archive_without_git_is_the_version_before_all_commits(tmp_path: Path) -> None:
    sources = copy_sources(tmp_path / "sources")
    program = [sys.executable, "-c", "import taskservice; print(taskservice.__version__)"]
    shown = subprocess.check_output(program, cwd=sources, text=True).strip()
    assert shown == "0.1.0.dev0"  # as pyproject.toml says, too
    assert build(sources, tmp_path).name.startswith(f"taskservice-{shown}-")


def test_script_next_to_the_clone_imports_the_package(tmp_path: Path) -> None:
    """The clone has the name of the package, and is in the directory of the script."""
    clone = copy_sources(tmp_path / "taskservice")
    # As `make install` does it.
    python = str(new_environment(clone / ".venv"))
    install(
        python, "--requirement", str(clone / "requirements.txt"), "--editable", f"{clone}[server]"
    )
    (script,) = blocks("docs/guides/python.md", "agent.py")
    (tmp_path / "agent.py").write_text(script)
    clean = {name: text for name, text in os.environ.items() if not name.startswith("PYTHON")}
    with Service(tmp_path / "data") as service:
        alice = service.add_user()
        key = alice.key
        settings = {"TASKSERVICE_URL": service.url, "TASKSERVICE_APIKEY": key}
        for command in ("python agent.py", "python -m taskservice agent list"):
            result = subprocess.run(
                ["sh", "-c", f". taskservice/.venv/bin/activate; {command}"], cwd=tmp_path,
                env=clean | settings, capture_output=True, text=True, timeout=60,
            )  # fmt: skip
            assert (result.returncode, result.stderr) == (0, "")
        (task,) = alice.request("GET", "/task?fields=status,output").json()
    assert task == {"status": "complete", "output": {"sum": 6}}
    # A change of the sources needs no new installation.
    changed = clone / "taskservice" / "__init__.py"
    changed.write_text(changed.read_text() + "print('changed')\n")
    imported = [python, "-c", "import taskservice.client"]
    assert subprocess.check_output(imported, cwd=tmp_path, text=True) == "changed\n"


# --- requirements.txt --------------------------------------------------------------------


def test_requirements_are_what_the_server_needs() -> None:
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    direct = dependencies() | dependencies("server")
    assert {normalized(pin.name) for pin in pins} == with_their_own(direct)
    for pin in pins:
        (pinned,) = pin.specifier
        assert pinned.operator == "=="
        if needed := direct.get(normalized(pin.name)):
            assert pinned.version in needed.specifier


def test_requirements_of_the_tests_fit_the_server_s() -> None:
    pins, of_server = (
        {normalized(pin.name): pin for pin in map(Requirement, lines)}
        for lines in (
            (ROOT / "tests" / "requirements.txt").read_text().splitlines(),
            [
                line
                for line in (ROOT / "requirements.txt").read_text().splitlines()
                if line[0] != "#"
            ],
        )
    )
    assert {name: str(pins[name].specifier) for name in of_server} == {
        name: str(pin.specifier) for name, pin in of_server.items()
    }
    for name, needed in (dependencies("test") | dependencies("lint")).items():
        (pinned,) = pins[name].specifier
        assert pinned.operator == "=="
        assert pinned.version in needed.specifier

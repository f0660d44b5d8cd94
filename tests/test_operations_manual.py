"""The commands of docs/operations.md for backups and moves, run as printed."""

import re
from pathlib import Path

import pytest

from taskservice.schemas.exported import LINES
from tests.support.databases import Databases
from tests.support.documents import Terminal, blocks, install_commands, table
from tests.support.service import environment


@pytest.fixture
def shell(terminal: Terminal, tmp_path: Path) -> Terminal:
    """A shell with `taskservice` on its path, and a user in the database of its settings."""
    settings = environment(tmp_path / "data")
    exported = [f"export {name}={settings[name]!r}" for name in settings if "TASKSERVICE" in name]
    path = install_commands(tmp_path / "bin")
    terminal.run("\n".join([*exported, f"PATH={path}:$PATH", "taskservice user add alice"]))
    return terminal


def typed(shell: Terminal, mark: str, **names: str) -> str:
    """Run a block of the manual, with the test's names in place of those in it."""
    (block,) = blocks("docs/operations.md", mark)
    for old, new in names.items():
        assert EXAMPLES[old] in block
        block = block.replace(EXAMPLES[old], new)
    return shell.run(block)


EXAMPLES = {
    "other": "/srv/other",
    "backup": "/backup/",
    "today": "$(date +%F)",
    "database": "instance/taskservice.db",
    "postgresql": "postgresql://tasks@db.example.org/tasks",
}


def test_backup_and_restore_work_as_printed(shell: Terminal, tmp_path: Path) -> None:
    assert ", verified" in typed(shell, "backup", backup=f"{tmp_path}/", today="2026-11-24")
    shell.run("taskservice user add bob")
    assert "ok       integrity" in typed(shell, "restore", backup=f"{tmp_path}/")
    assert shell.run("taskservice user list --json").count("name") == 1
    assert "alice" in typed(shell, "look into a backup", backup=f"{tmp_path}/")


def test_move_works_as_printed(shell: Terminal, databases: Databases, tmp_path: Path) -> None:
    url = databases.new_postgresql()
    database = str(tmp_path / "data" / "taskservice.db")
    printed = typed(shell, "move", database=database, postgresql=f"'{url}'")
    assert "users 1 rows, sha256 " in printed
    shell.run(f"export TASKSERVICE_DATABASE_URL='{url}'")
    assert "alice" in shell.run("taskservice user list")


def test_export_and_import_work_as_printed(shell: Terminal, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shell.run(f"TASKSERVICE_DATA={other} taskservice db upgrade")
    printed = typed(shell, "export", other=str(other))
    assert "0 tasks imported, 0 existed already; 1 users and 0 agents added" in printed
    assert "user alice has no key yet" in printed


def test_lines_of_an_export_are_documented() -> None:
    documented = {
        row[0].strip("`"): re.findall(r"`(\w+)`", re.sub(r" \([^)]*\)", "", row[1]))
        for row in table("docs/operations.md", "## Export")
    }
    assert {kind: set(names) for kind, names in documented.items()} == {
        kind: set(line.fields) - {"type"} for kind, line in LINES.items()
    }

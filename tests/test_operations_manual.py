"""The commands of docs/operations.md for backups and moves, run as printed."""

from pathlib import Path

import pytest

from tests.support.documents import Terminal, blocks, install_commands
from tests.support.service import environment


@pytest.fixture
def shell(terminal: Terminal, tmp_path: Path) -> Terminal:
    """A shell with `taskservice` on its path, and a user in the database of its settings."""
    settings = environment(tmp_path / "data")
    exported = [f"export {name}={settings[name]!r}" for name in settings if "TASKSERVICE" in name]
    path = install_commands(tmp_path / "bin")
    terminal.run("\n".join([*exported, f"PATH={path}:$PATH", "taskservice user add alice"]))
    return terminal


def typed(shell: Terminal, folder: Path, mark: str) -> str:
    """Run a block of the manual, with its folder for backups in the test's."""
    (block,) = blocks("docs/operations.md", mark)
    return shell.run(block.replace("/backup/", f"{folder}/").replace("$(date +%F)", "2026-11-24"))


def test_backup_and_restore_work_as_printed(shell: Terminal, tmp_path: Path) -> None:
    assert ", verified" in typed(shell, tmp_path, "backup")
    shell.run("taskservice user add bob")
    assert "ok       integrity" in typed(shell, tmp_path, "restore")
    assert shell.run("taskservice user list --json").count("name") == 1
    assert "alice" in typed(shell, tmp_path, "look into a backup")

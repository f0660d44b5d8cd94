"""The next version of the service: this one, in a separate directory, and one more migration."""

import shutil
from pathlib import Path

import taskservice
from taskservice.database import migrations

REVISION = f"{int(migrations.head()) + 1:04}"
# It changes every task, and holds all locks for longer than a request waits.
_MIGRATION = f'''
import time

import sqlalchemy as sa
from alembic import op

revision = "{REVISION}"
down_revision = "{migrations.head()}"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tasks", sa.Column("next", sa.String(), nullable=False, server_default="new"))
    op.execute("UPDATE tasks SET next = name")
    op.create_index("tasks_by_next", "tasks", ["user_id", "next"])
    time.sleep(7)
'''


def install_next_version(folder: Path) -> dict[str, str]:
    """Install it; returns the environment in which Python finds it."""
    package = copy_package(folder)
    versions = package / "database" / "alembic" / "versions"
    (versions / f"{REVISION}_next.py").write_text(_MIGRATION)
    return python_path(folder)


def copy_package(folder: Path) -> Path:
    """A copy of the package in a directory."""
    package = folder / "taskservice"
    shutil.copytree(
        Path(taskservice.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__")
    )
    return package


def python_path(folder: Path) -> dict[str, str]:
    """The environment in which Python finds the copy in this directory."""
    # Without the current directory, which has this version.
    return {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": "1"}

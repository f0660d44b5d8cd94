"""Labels, progress, parents and reruns of tasks, times of lines, and the answers of receivers."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

# Index -> its table, its columns and which rows it has.
INDEXES = {
    "tasks_by_error": (["user_id", "error_type", "created_at", "id"], "error_type IS NOT NULL"),
    "tasks_by_parent": (["parent_id", "created_at", "id"], "parent_id IS NOT NULL"),
    "tasks_by_rerun": (["rerun_of", "created_at", "id"], "rerun_of IS NOT NULL"),
    "tasks_by_agent_end": (["user_id", "agent_id", "finished_at"], "finished_at IS NOT NULL"),
}


def upgrade() -> None:
    _add_to_tasks()
    op.add_column("log_chunks", sa.Column("at", sa.BigInteger()))
    op.add_column("log_chunks", sa.Column("times", sa.Text()))
    op.add_column("attempts", sa.Column("answer", sa.String()))
    op.create_table(
        "task_labels",
        sa.Column("task_id", Identifier, nullable=False),
        sa.Column("label", sa.String(), nullable=False),
        sa.Column("user_id", Identifier, nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"],
            ["tasks.id"],
            name=op.f("task_labels_task_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("task_id", "label", name=op.f("task_labels_pkey")),
    )
    op.create_index("task_labels_by_label", "task_labels", ["user_id", "label", "task_id"])


def _add_to_tasks() -> None:
    is_sqlite = op.get_context().dialect.name == "sqlite"
    for name in ("ended_by", "progress", "note"):
        op.add_column("tasks", sa.Column(name, sa.String()))
    # Written out, since Alembic would rebuild the table on SQLite to add a constraint.
    is_object = (
        "CASE WHEN json_valid(labels) THEN json_type(labels) = 'object' ELSE 0 END"
        if is_sqlite
        else "json_typeof(labels::json) = 'object'"
    )
    op.execute(
        "ALTER TABLE tasks ADD COLUMN labels VARCHAR DEFAULT '{}' NOT NULL "
        f"CONSTRAINT tasks_labels_check CHECK ({is_object})"
    )
    for name in ("parent_id", "rerun_of"):
        op.add_column("tasks", sa.Column(name, Identifier))
    for name, (columns, where) in INDEXES.items():
        rows = sa.text(where)
        op.create_index(name, "tasks", columns, sqlite_where=rows, postgresql_where=rows)

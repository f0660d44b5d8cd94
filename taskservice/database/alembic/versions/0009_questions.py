"""Questions of agents to people."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATES = "'open', 'answered', 'declined', 'expired', 'withdrawn'"
# Index -> its columns, which rows it has, and whether it is unique.
INDEXES = {
    "questions_task_id_asked_at_id": (["task_id", "asked_at", "id"], None, False),
    "questions_expiring": (["expires_at"], "state = 'open' AND expires_at IS NOT NULL", False),
    "questions_idempotency_key": (
        ["task_id", "idempotency_key"],
        "idempotency_key IS NOT NULL",
        True,
    ),
}


def upgrade() -> None:
    op.add_column("tasks", sa.Column("questions", sa.String(), nullable=False, server_default="[]"))
    op.create_table(
        "questions",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("task_id", Identifier, nullable=False),
        sa.Column("message", sa.String(), nullable=False),
        sa.Column("schema", sa.String(), nullable=False),
        sa.Column("answer", sa.String()),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("asked_at", Timestamp(), nullable=False),
        sa.Column("expires_at", Timestamp()),
        sa.Column("idempotency_key", sa.String()),
        sa.Column("idempotency_digest", sa.String(64)),
        sa.CheckConstraint(f"state IN ({STATES})", name=op.f("questions_state_check")),
        sa.CheckConstraint(
            "(state = 'answered') = (answer IS NOT NULL)", name=op.f("questions_answer_check")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("questions_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("questions_pkey")),
    )
    for name, (columns, where, is_unique) in INDEXES.items():
        rows = None if where is None else sa.text(where)
        op.create_index(
            name,
            "questions",
            columns,
            unique=is_unique,
            sqlite_where=rows,
            postgresql_where=rows,
        )

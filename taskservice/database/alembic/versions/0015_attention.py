"""Indexes of claimed tasks by agent, and of failed deliveries by time."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_index("deliveries_failed", "deliveries")
    has_failed = sa.text("state = 'failed'")
    op.create_index(
        "deliveries_failed",
        "deliveries",
        ["user_id", "created_at", "task_id"],
        sqlite_where=has_failed,
        postgresql_where=has_failed,
    )
    is_claimed = sa.text("status = 'running' AND claimed_at IS NOT NULL")
    op.create_index(
        "tasks_claimed_by_agent",
        "tasks",
        ["user_id", "agent_id", "claimed_at"],
        sqlite_where=is_claimed,
        postgresql_where=is_claimed,
    )

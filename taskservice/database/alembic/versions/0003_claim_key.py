"""The idempotency key of a claim."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

KEYED = sa.text("claim_key IS NOT NULL")


def upgrade() -> None:
    op.add_column("tasks", sa.Column("claim_key", sa.String()))
    op.create_index(
        "tasks_claim_key",
        "tasks",
        ["user_id", "agent_id", "claim_key"],
        unique=True,
        sqlite_where=KEYED,
        postgresql_where=KEYED,
    )

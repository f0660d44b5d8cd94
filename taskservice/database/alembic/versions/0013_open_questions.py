"""An index of the open questions of a task."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_open = sa.text("state = 'open'")
    op.create_index(
        "questions_open",
        "questions",
        ["task_id", "asked_at", "id"],
        sqlite_where=is_open,
        postgresql_where=is_open,
    )

"""An index of the tasks that ask something."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    is_asking = sa.text("questions <> '[]'")
    op.create_index(
        "tasks_asking",
        "tasks",
        ["user_id", "created_at", "id"],
        sqlite_where=is_asking,
        postgresql_where=is_asking,
    )

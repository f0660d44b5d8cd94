"""A task counts the lines of its writer without a name; an unused time is removed."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.drop_column("tasks", "timed_out_at")
    op.add_column(
        "tasks",
        sa.Column("default_writer_seq", sa.BigInteger(), nullable=False, server_default="0"),
    )
    op.execute(
        "UPDATE tasks SET default_writer_seq = (SELECT seq FROM log_writers "
        "WHERE log_writers.task_id = tasks.id AND writer = '') "
        "WHERE id IN (SELECT task_id FROM log_writers WHERE writer = '')"
    )
    op.execute("DELETE FROM log_writers WHERE writer = ''")

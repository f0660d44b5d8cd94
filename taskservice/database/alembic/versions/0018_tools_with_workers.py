"""Agents are MCP tools by choice, or while they have a worker; the time since then."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Timestamp

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None


def upgrade() -> None:
    # A new column, since SQLite can't let an existing one be null.
    op.add_column("agents", sa.Column("is_tool", sa.Boolean(), nullable=True))
    op.execute("UPDATE agents SET is_tool = tool")
    op.drop_column("agents", "tool")
    op.alter_column("agents", "is_tool", new_column_name="tool")
    op.add_column("agents", sa.Column("tool_since", Timestamp(), nullable=True))

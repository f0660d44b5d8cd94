"""Agents as tools: the schema of their input, and what they do."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

INPUT_SCHEMA = '{"type":"object"}'
ANNOTATIONS = '{"readOnlyHint":false,"destructiveHint":true,"openWorldHint":true}'


def upgrade() -> None:
    for name, default in (("input_schema", INPUT_SCHEMA), ("annotations", ANNOTATIONS)):
        column = sa.Column(name, sa.String(), nullable=False, server_default=default)
        op.add_column("agents", column)
    op.add_column(
        "agents",
        sa.Column("tool", sa.Boolean(), nullable=False, server_default=sa.text("true")),
    )

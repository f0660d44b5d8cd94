"""The period in which agents could reach the service."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Timestamp

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "presence",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("since", Timestamp(), nullable=False),
        sa.Column("until", Timestamp(), nullable=False),
        sa.CheckConstraint("id = 1", name=op.f("presence_id_check")),
        sa.PrimaryKeyConstraint("id", name=op.f("presence_pkey")),
    )

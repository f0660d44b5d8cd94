"""The number of failures in a row after which a hook is notified of a broken agent."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hooks", sa.Column("after", sa.Integer(), nullable=False, server_default="1"))

"""After how many failures in a row a hook is told that an agent is broken."""

import sqlalchemy as sa
from alembic import op

revision = "0025"
down_revision = "0024"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hooks", sa.Column("after", sa.Integer(), nullable=False, server_default="1"))

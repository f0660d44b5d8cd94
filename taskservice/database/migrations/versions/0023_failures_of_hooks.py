"""After how many failures in a row a hook is told that an agent is broken."""

import sqlalchemy as sa
from alembic import op

revision = "0023"
down_revision = "0022"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("hooks", sa.Column("after", sa.Integer(), nullable=False, server_default="1"))

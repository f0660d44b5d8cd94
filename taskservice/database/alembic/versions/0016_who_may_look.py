"""Keys that only read, keys of people whom a proxy signs in, and links to one task."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    full = sa.Column("access", sa.String(), nullable=False, server_default="full")
    op.add_column("api_keys", full)
    op.add_column(
        "api_keys", sa.Column("login", sa.Boolean(), nullable=False, server_default=sa.false())
    )
    is_live = sa.text("login AND revoked_at IS NULL")
    op.create_index(
        "api_keys_login",
        "api_keys",
        ["name"],
        unique=True,
        sqlite_where=is_live,
        postgresql_where=is_live,
    )
    op.create_table(
        "links",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("task_id", Identifier, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", Timestamp(), nullable=False),
        sa.Column("expires_at", Timestamp(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("links_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("links_pkey")),
        sa.UniqueConstraint("digest", name=op.f("links_digest_key")),
    )
    op.create_index("links_task_id", "links", ["task_id"])

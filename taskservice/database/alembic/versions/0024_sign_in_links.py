"""Links that sign a person in, once."""

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0024"
down_revision = "0023"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "sign_in_links",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("user_id", Identifier, nullable=False),
        sa.Column("key_id", Identifier, nullable=False),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("created_at", Timestamp(), nullable=False),
        sa.Column("expires_at", Timestamp(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("sign_in_links_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["key_id"], ["api_keys.id"], name=op.f("sign_in_links_key_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("sign_in_links_pkey")),
        sa.UniqueConstraint("digest", name=op.f("sign_in_links_digest_key")),
    )
    for column in ("user_id", "key_id"):
        op.create_index(f"sign_in_links_{column}", "sign_in_links", [column])

"""The end, start and key of an agent's mute; the hooks that know that it is broken."""

import json

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

AGENTS = sa.table(
    "agents", sa.column("user_id", Identifier), sa.column("state"), sa.column("told_hooks")
)
HOOKS = sa.table("hooks", sa.column("user_id", Identifier), sa.column("id", Identifier))


def upgrade() -> None:
    op.add_column("agents", sa.Column("muted_until", Timestamp(), nullable=True))
    op.add_column("agents", sa.Column("muted_at", Timestamp(), nullable=True))
    op.add_column("agents", sa.Column("muted_by", sa.String(), nullable=True))
    told = sa.Column("told_hooks", sa.String(), nullable=False, server_default="[]")
    op.add_column("agents", told)
    is_muted = sa.text("muted_until IS NOT NULL")
    op.create_index(
        "agents_muted",
        "agents",
        ["user_id", "muted_until"],
        sqlite_where=is_muted,
        postgresql_where=is_muted,
    )
    # Until now, all hooks were notified when an agent is fixed.
    is_broken = AGENTS.c.state == "broken"
    connection = op.get_bind()
    users = connection.scalars(sa.select(AGENTS.c.user_id).distinct().where(is_broken)).all()
    for user_id in users:
        ids = connection.scalars(sa.select(HOOKS.c.id).where(HOOKS.c.user_id == user_id)).all()
        of_user = sa.update(AGENTS).where(is_broken, AGENTS.c.user_id == user_id)
        connection.execute(of_user.values(told_hooks=json.dumps(list(ids), separators=(",", ":"))))

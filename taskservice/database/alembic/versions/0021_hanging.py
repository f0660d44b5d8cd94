"""Tasks that hang; hooks with the default events are notified of them."""

import json

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0021"
down_revision = "0020"
branch_labels = None
depends_on = None

DEFAULT_EVENTS = ("task.asks", "agent.broken", "agent.late", "agent.fixed", "agent.back")
NEW_EVENTS = ("task.hangs", "task.recovered")


def upgrade() -> None:
    for column in (
        sa.Column("hanging_since", Timestamp()),
        sa.Column("hanging_reason", sa.String()),
        sa.Column("hang_check_at", Timestamp()),
    ):
        op.add_column("tasks", column)
    is_claimed = "status = 'running' AND claimed_at IS NOT NULL"
    # A time in the past, so that maintenance checks them immediately.
    op.execute(f"UPDATE tasks SET hang_check_at = claimed_at WHERE {is_claimed}")  # noqa: S608
    for name, columns, where in (
        ("tasks_hanging", ["user_id", "created_at", "id"], "hanging_since IS NOT NULL"),
        ("tasks_to_check", ["hang_check_at"], f"hang_check_at IS NOT NULL AND {is_claimed}"),
    ):
        condition = sa.text(where)
        op.create_index(name, "tasks", columns, sqlite_where=condition, postgresql_where=condition)
    hooks = sa.table("hooks", sa.column("id", Identifier), sa.column("events", sa.String()))
    connection = op.get_bind()
    for hook in connection.execute(sa.select(hooks)).all():
        if sorted(json.loads(hook.events)) == sorted(DEFAULT_EVENTS):
            events = json.dumps([*DEFAULT_EVENTS, *NEW_EVENTS], separators=(",", ":"))
            connection.execute(hooks.update().where(hooks.c.id == hook.id).values(events=events))

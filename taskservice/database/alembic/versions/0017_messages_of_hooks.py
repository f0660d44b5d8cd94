"""Columns of hooks for the schedule of messages for people and for failures; tests of hooks."""

# ruff: noqa: S608 - all parts of these statements are constants

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None

FOR_PEOPLE = "format IN ('ntfy', 'slack', 'mail')"
IS_PENDING = "deliveries.hook_id = hooks.id AND deliveries.state = 'pending'"


def upgrade() -> None:
    for column in (
        sa.Column("attempt_count", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("failed_since", Timestamp()),
        sa.Column("last_error", sa.String()),
        sa.Column("next_attempt_at", Timestamp()),
    ):
        op.add_column("hooks", column)
    is_due = sa.text("next_attempt_at IS NOT NULL")
    op.create_index(
        "hooks_due", "hooks", ["next_attempt_at"], sqlite_where=is_due, postgresql_where=is_due
    )
    op.execute(
        "UPDATE hooks SET next_attempt_at = created_at"
        f" WHERE {FOR_PEOPLE} AND state = 'active'"
        f" AND EXISTS (SELECT 1 FROM deliveries WHERE {IS_PENDING})"
    )
    op.create_table(
        "hook_tests",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("user_id", Identifier, nullable=False),
        sa.Column("hook_id", Identifier, nullable=False),
        sa.Column("at", Timestamp(), nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("hook_tests_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("hook_tests_pkey")),
    )
    op.create_index("hook_tests_user_id_at", "hook_tests", ["user_id", "at"])
    # The deliveries of people have the time at which they expire.
    a_day_later = "strftime('%Y-%m-%dT%H:%M:%fZ', created_at, '+1 day')"
    if op.get_context().dialect.name == "postgresql":
        a_day_later = "created_at + interval '1 day'"
    op.execute(
        f"UPDATE deliveries SET next_attempt_at = {a_day_later} WHERE state = 'pending'"
        f" AND hook_id IN (SELECT id FROM hooks WHERE {FOR_PEOPLE})"
    )

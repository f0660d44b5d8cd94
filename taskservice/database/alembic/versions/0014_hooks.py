"""Events, hooks and their deliveries; the state of an agent by its last tasks and workers."""

# ruff: noqa: S608 - all parts of these statements are constants

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Identifier, Timestamp

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

# SQLite's table is rebuilt, and Alembic reads everything of the old one except these.
CHECKS = (
    sa.CheckConstraint(
        "(state = 'pending') = (next_attempt_at IS NOT NULL)",
        name="deliveries_next_attempt_check",
    ),
    sa.CheckConstraint(
        "state IN ('pending', 'delivered', 'failed', 'cancelled')",
        name="deliveries_state_check",
    ),
    sa.CheckConstraint("(lease IS NULL) = (leased_until IS NULL)", name="deliveries_lease_check"),
    sa.CheckConstraint(
        "(hook_id IS NULL) = (event_id IS NULL) AND (hook_id IS NOT NULL OR task_id IS NOT NULL)",
        name="deliveries_hook_check",
    ),
)
# The tasks of an agent that count towards its state.
COUNTED = (
    "FROM tasks WHERE user_id = agents.user_id AND agent_id = agents.id"
    " AND finished_at IS NOT NULL AND (error_type IS NULL OR error_type <> 'cancelled')"
)
SINCE_CHANGE = f"{COUNTED} AND (agents.due_at IS NULL OR finished_at > agents.due_at)"


def upgrade() -> None:
    _create_hooks()
    _create_events()
    _add_hooks_to_deliveries()
    _add_states_to_agents()


def _create_hooks() -> None:
    op.create_table(
        "hooks",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("user_id", Identifier, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("target", sa.String(), nullable=False),
        sa.Column("format", sa.String(), nullable=False),
        sa.Column("events", sa.String(), nullable=False),
        sa.Column("agent_id", sa.String()),
        sa.Column("label", sa.String()),
        sa.Column("token", sa.String()),
        sa.Column("answer_links", sa.Boolean(), nullable=False),
        sa.Column("created_at", Timestamp(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String()),
        sa.Column("failures", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("last_delivered_at", Timestamp()),
        sa.Column("quiet_until", Timestamp()),
        # A subscription of an MCP client.
        sa.Column("subscription", sa.String()),
        sa.Column("key_id", Identifier),
        sa.Column("task_id", Identifier),
        sa.Column("secret", sa.String()),
        sa.Column("replaced_secret", sa.String()),
        sa.Column("replaced_at", Timestamp()),
        sa.Column("expires_at", Timestamp()),
        sa.CheckConstraint("state IN ('active', 'off')", name=op.f("hooks_state_check")),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("hooks_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("hooks_pkey")),
        sa.UniqueConstraint("subscription", name=op.f("hooks_subscription_key")),
    )
    op.create_index("hooks_user_id_created_at_id", "hooks", ["user_id", "created_at", "id"])


def _create_events() -> None:
    op.create_table(
        "event_streams",
        sa.Column("user_id", Identifier, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("polled_at", Timestamp()),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("event_streams_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", name=op.f("event_streams_pkey")),
    )
    op.create_table(
        "events",
        sa.Column("id", Identifier, nullable=False),
        sa.Column("user_id", Identifier, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("at", Timestamp(), nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("task_id", Identifier),
        sa.Column("question_id", Identifier),
        sa.Column("details", sa.String(), nullable=False, server_default="{}"),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("events_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("events_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("events_pkey")),
        sa.UniqueConstraint("user_id", "position", name=op.f("events_user_id_position_key")),
    )
    op.create_index("events_task_id", "events", ["task_id"])
    op.create_index("events_at", "events", ["at"])


def _add_hooks_to_deliveries() -> None:
    # No statement uses it, and each delivery would be written to it.
    op.drop_index("deliveries_due_of_host", "deliveries")
    with op.batch_alter_table("deliveries", table_args=CHECKS[:3]) as batch:
        batch.alter_column("task_id", nullable=True)
        batch.add_column(sa.Column("hook_id", Identifier))
        batch.add_column(sa.Column("event_id", Identifier))
        batch.create_foreign_key(
            "deliveries_hook_id_fkey", "hooks", ["hook_id"], ["id"], ondelete="CASCADE"
        )
        batch.create_foreign_key(
            "deliveries_event_id_fkey", "events", ["event_id"], ["id"], ondelete="CASCADE"
        )
        batch.create_check_constraint("deliveries_hook_check", CHECKS[3].sqltext)
    for name, columns, where in (
        ("deliveries_of_hook", ["hook_id", "created_at", "id"], "hook_id IS NOT NULL"),
        (
            "deliveries_due_of_hook",
            ["hook_id", "next_attempt_at"],
            "state = 'pending' AND hook_id IS NOT NULL",
        ),
        ("deliveries_of_event", ["event_id"], "hook_id IS NOT NULL"),
    ):
        rows = sa.text(where)
        op.create_index(name, "deliveries", columns, sqlite_where=rows, postgresql_where=rows)


def _add_states_to_agents() -> None:
    for column in (
        sa.Column("state", sa.String()),
        sa.Column("state_since", Timestamp()),
        sa.Column("failures", sa.BigInteger(), nullable=False, server_default="0"),
        sa.Column("worker_seen_at", Timestamp()),
        sa.Column("expect", sa.String()),
        sa.Column("due_at", Timestamp()),
        sa.Column("late_at", Timestamp()),
        sa.Column("late_since", Timestamp()),
    ):
        op.add_column("agents", column)
    for statement in (
        "UPDATE agents SET state = (SELECT CASE WHEN error_type IS NULL THEN 'ok' ELSE 'broken' END"
        f" {COUNTED} ORDER BY finished_at DESC, id DESC LIMIT 1)",
        # Until it has its own value, this column has the end of the last task of the other state.
        f"UPDATE agents SET due_at = (SELECT max(finished_at) {COUNTED}"
        " AND (error_type IS NULL) = (agents.state = 'broken'))",
        f"UPDATE agents SET state_since = (SELECT min(finished_at) {SINCE_CHANGE})",
        f"UPDATE agents SET failures = (SELECT count(*) {SINCE_CHANGE}) WHERE state = 'broken'",
        "UPDATE agents SET due_at = NULL",
    ):
        op.execute(statement)
    for name, columns, where in (
        ("agents_due", ["late_at"], "late_at IS NOT NULL AND late_since IS NULL"),
        ("agents_in_trouble", ["user_id"], "state = 'broken' OR late_since IS NOT NULL"),
    ):
        rows = sa.text(where)
        op.create_index(name, "agents", columns, sqlite_where=rows, postgresql_where=rows)

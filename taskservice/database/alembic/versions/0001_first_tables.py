"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from taskservice.database.types import Timestamp

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

moment = Timestamp()
identifier = sa.Uuid(as_uuid=False)
row_number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def only_where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def json_object(column: str) -> list[sa.CheckConstraint]:
    condition = {
        "sqlite": f"CASE WHEN json_valid({column}) THEN json_type({column}) = 'object' ELSE 0 END",
        "postgresql": f"json_typeof({column}::json) = 'object'",
    }[op.get_bind().dialect.name]
    return [sa.CheckConstraint(condition, name=op.f(f"tasks_{column}_check"))]


def upgrade() -> None:
    op.create_table(
        "users",
        sa.Column("id", identifier, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("users_pkey")),
        sa.UniqueConstraint("name", name=op.f("users_name_key")),
    )
    op.create_table(
        "agents",
        sa.Column("user_id", identifier, nullable=False),
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("description", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("agents_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("user_id", "id", name=op.f("agents_pkey")),
    )
    op.create_table(
        "callback_secrets",
        sa.Column("id", identifier, nullable=False),
        sa.Column("user_id", identifier, nullable=False),
        sa.Column("secret", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("replaced_at", moment),
        sa.ForeignKeyConstraint(
            ["user_id"],
            ["users.id"],
            name=op.f("callback_secrets_user_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("callback_secrets_pkey")),
    )
    op.create_index(op.f("callback_secrets_user_id"), "callback_secrets", ["user_id"])
    op.create_table(
        "api_keys",
        sa.Column("id", identifier, nullable=False),
        sa.Column("user_id", identifier, nullable=False),
        sa.Column("agent_id", sa.String()),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("hint", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("expires_at", moment),
        sa.Column("last_used_at", moment),
        sa.Column("revoked_at", moment),
        sa.ForeignKeyConstraint(
            ["user_id", "agent_id"],
            ["agents.user_id", "agents.id"],
            name=op.f("api_keys_user_id_agent_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("api_keys_user_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("api_keys_pkey")),
        sa.UniqueConstraint("digest", name=op.f("api_keys_digest_key")),
    )
    op.create_index(op.f("api_keys_user_id_agent_id"), "api_keys", ["user_id", "agent_id"])
    op.create_table(
        "tasks",
        sa.Column("id", identifier, nullable=False),
        sa.Column("user_id", identifier, nullable=False),
        sa.Column("agent_id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("name_folded", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("error_type", sa.String()),
        sa.Column("error_message", sa.String()),
        sa.Column("input", sa.String(), nullable=False),
        sa.Column("output", sa.String(), nullable=False),
        sa.Column("callback_url", sa.String()),
        sa.Column("timeout", sa.Integer()),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("updated_at", moment, nullable=False),
        sa.Column("claimed_at", moment),
        sa.Column("heard_at", moment, nullable=False),
        sa.Column("silent_at", moment),
        sa.Column("finished_at", moment),
        sa.Column("timed_out_at", moment),
        sa.Column("first_log", sa.BigInteger(), nullable=False),
        sa.Column("log_count", sa.BigInteger(), nullable=False),
        sa.Column("log_bytes", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.BigInteger(), nullable=False),
        sa.Column("idempotency_key", sa.String()),
        sa.Column("idempotency_digest", sa.String(length=64)),
        sa.CheckConstraint(
            "(status = 'error') = (error_type IS NOT NULL)", name=op.f("tasks_error_check")
        ),
        sa.CheckConstraint(
            "(status = 'running') = (finished_at IS NULL)", name=op.f("tasks_finished_check")
        ),
        sa.CheckConstraint(
            "error_type IN ('failed', 'cancelled', 'timeout')", name=op.f("tasks_error_type_check")
        ),
        sa.CheckConstraint(
            "status IN ('running', 'complete', 'error')", name=op.f("tasks_status_check")
        ),
        sa.CheckConstraint(
            "(error_type IS NULL) = (error_message IS NULL)", name=op.f("tasks_error_message_check")
        ),
        sa.CheckConstraint(
            "(idempotency_key IS NULL) = (idempotency_digest IS NULL)",
            name=op.f("tasks_idempotency_check"),
        ),
        sa.CheckConstraint(
            "first_log BETWEEN 1 AND log_count + 1", name=op.f("tasks_first_log_check")
        ),
        sa.ForeignKeyConstraint(
            ["user_id", "agent_id"],
            ["agents.user_id", "agents.id"],
            name=op.f("tasks_user_id_agent_id_fkey"),
        ),
        sa.ForeignKeyConstraint(
            ["user_id"], ["users.id"], name=op.f("tasks_user_id_fkey"), ondelete="CASCADE"
        ),
        *json_object("input"),
        *json_object("output"),
        sa.PrimaryKeyConstraint("id", name=op.f("tasks_pkey")),
    )
    op.create_index("tasks_by_agent", "tasks", ["user_id", "agent_id", "created_at", "id"])
    op.create_index("tasks_by_creation", "tasks", ["user_id", "created_at", "id"])
    op.create_index("tasks_by_end", "tasks", ["user_id", "finished_at", "id"])
    op.create_index("tasks_by_status", "tasks", ["user_id", "status", "created_at", "id"])
    op.create_index(
        "tasks_claimed",
        "tasks",
        ["heard_at"],
        **only_where("status = 'running' AND claimed_at IS NOT NULL AND timeout IS NULL"),
    )
    op.create_index(
        "tasks_claimed_with_timeout",
        "tasks",
        ["silent_at"],
        **only_where("status = 'running' AND claimed_at IS NOT NULL AND timeout > 0"),
    )
    op.create_index(
        "tasks_idempotency_key",
        "tasks",
        ["user_id", "idempotency_key"],
        unique=True,
        **only_where("idempotency_key IS NOT NULL"),
    )
    op.create_index(
        "tasks_unclaimed",
        "tasks",
        ["user_id", "agent_id", "created_at", "id"],
        **only_where("status = 'running' AND claimed_at IS NULL"),
    )
    op.create_index(
        "tasks_with_old_log",
        "tasks",
        ["finished_at"],
        **only_where("finished_at IS NOT NULL AND first_log <= log_count"),
    )
    op.create_table(
        "deliveries",
        sa.Column("id", identifier, nullable=False),
        sa.Column("task_id", identifier, nullable=False),
        sa.Column("callback_url", sa.String(), nullable=False),
        sa.Column("host", sa.String(), nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("created_at", moment, nullable=False),
        sa.Column("attempt_count", sa.Integer(), nullable=False),
        sa.Column("next_attempt_at", moment),
        sa.Column("lease", identifier),
        sa.Column("leased_until", moment),
        sa.CheckConstraint(
            "(state = 'pending') = (next_attempt_at IS NOT NULL)",
            name=op.f("deliveries_next_attempt_check"),
        ),
        sa.CheckConstraint(
            "state IN ('pending', 'delivered', 'failed', 'cancelled')",
            name=op.f("deliveries_state_check"),
        ),
        sa.CheckConstraint(
            "(lease IS NULL) = (leased_until IS NULL)", name=op.f("deliveries_lease_check")
        ),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("deliveries_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("deliveries_pkey")),
    )
    op.create_index(
        "deliveries_due",
        "deliveries",
        ["next_attempt_at", "host"],
        **only_where("state = 'pending'"),
    )
    op.create_index(
        "deliveries_in_vain",
        "deliveries",
        ["state"],
        **only_where("state IN ('failed', 'cancelled')"),
    )
    op.create_index(
        "deliveries_leased",
        "deliveries",
        ["leased_until"],
        **only_where("leased_until IS NOT NULL"),
    )
    op.create_index(op.f("deliveries_task_id_created_at"), "deliveries", ["task_id", "created_at"])
    op.create_table(
        "log_writers",
        sa.Column("task_id", identifier, nullable=False),
        sa.Column("writer", sa.String(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("log_writers_task_id_fkey"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("task_id", "writer", name=op.f("log_writers_pkey")),
    )
    op.create_table(
        "logs",
        sa.Column("id", row_number, sa.Identity(), nullable=False),
        sa.Column("task_id", identifier),
        sa.Column("dropped_at", moment),
        sa.ForeignKeyConstraint(
            ["task_id"], ["tasks.id"], name=op.f("logs_task_id_fkey"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("logs_pkey")),
        sa.UniqueConstraint("task_id", name=op.f("logs_task_id_key")),
    )
    op.create_index(op.f("logs_dropped_at"), "logs", ["dropped_at"])
    op.create_table(
        "attempts",
        sa.Column("id", row_number, sa.Identity(), nullable=False),
        sa.Column("delivery_id", identifier, nullable=False),
        sa.Column("at", moment, nullable=False),
        sa.Column("duration_ms", sa.Integer(), nullable=False),
        sa.Column("status_code", sa.Integer()),
        sa.Column("message", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["delivery_id"],
            ["deliveries.id"],
            name=op.f("attempts_delivery_id_fkey"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("attempts_pkey")),
    )
    op.create_index(op.f("attempts_delivery_id_id"), "attempts", ["delivery_id", "id"])
    op.create_table(
        "log_chunks",
        sa.Column("log_id", row_number, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.CheckConstraint("count BETWEEN 1 AND last", name=op.f("log_chunks_count_check")),
        sa.ForeignKeyConstraint(["log_id"], ["logs.id"], name=op.f("log_chunks_log_id_fkey")),
        sa.PrimaryKeyConstraint("log_id", "last", name=op.f("log_chunks_pkey")),
    )

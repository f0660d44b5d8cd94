"""Subscriptions of MCP clients end; hooks and their pending deliveries remain."""

# ruff: noqa: S608 - all parts of these statements are constants

from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

SUBSCRIPTIONS = "SELECT id FROM hooks WHERE subscription IS NOT NULL"
DELIVERIES = f"SELECT id FROM deliveries WHERE hook_id IN ({SUBSCRIPTIONS})"
COLUMNS = (
    "subscription",
    "key_id",
    "task_id",
    "secret",
    "replaced_secret",
    "replaced_at",
)


def upgrade() -> None:
    # SQLite migrates without foreign keys, so dependent rows are not deleted.
    op.execute(f"DELETE FROM attempts WHERE delivery_id IN ({DELIVERIES})")
    op.execute(f"DELETE FROM deliveries WHERE hook_id IN ({SUBSCRIPTIONS})")
    op.execute("DELETE FROM hooks WHERE subscription IS NOT NULL")
    with op.batch_alter_table("hooks") as batch:
        batch.drop_constraint("hooks_subscription_key", type_="unique")
        for name in COLUMNS:
            batch.drop_column(name)
        # For hooks that are being deleted.
        batch.alter_column("expires_at", new_column_name="deleted_at")
    op.drop_column("event_streams", "polled_at")

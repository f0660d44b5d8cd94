"""The names of the keys that started tasks and answered questions."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# How a stored question ends. In a message, its quotes have backslashes before them.
BEFORE, AFTER = '"answer":null}', '"answer":null,"answeredBy":null}'


def upgrade() -> None:
    op.add_column("tasks", sa.Column("started_by", sa.String()))
    op.add_column("questions", sa.Column("answered_by", sa.String()))
    tasks = sa.table("tasks", sa.column("questions", sa.String()))
    added = sa.func.replace(tasks.c.questions, BEFORE, AFTER)
    op.execute(tasks.update().where(tasks.c.questions != "[]").values(questions=added))

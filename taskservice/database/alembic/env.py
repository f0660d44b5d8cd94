"""Alembic runs this module for each command; it migrates the database of `connection`."""

from alembic import context

from taskservice.database import models

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=models.Task.metadata,
    render_as_batch=True,
    on_version_apply=context.config.attributes["step_log"],
)
with context.begin_transaction():
    context.run_migrations()

"""Runs the migrations with Alembic; loaded only for a database that is not up to date."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection


def alembic_upgrade(connection: Connection, target: str) -> None:
    """Migrate to the revision `target`, in the transaction that is already open."""
    config = Config()
    # Alembic takes a single % as a reference to another option.
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, target)

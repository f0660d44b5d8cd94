"""Reads moments and ids of PostgreSQL as text, without an object of Python for each."""

from typing import Any


def read_as_text(connection: Any) -> None:
    """Let this psycopg connection, which is in UTC and ISO dates, read them in the API's form."""
    # psycopg is an extra.
    from psycopg.adapt import Loader
    from psycopg.types.string import TextLoader

    class MomentLoader(Loader):
        def load(self, data: Any) -> str:
            """`2026-11-24 13:36:00.12+00` -> `2026-11-24T13:36:00.120Z`."""
            seconds, _, fraction = bytes(data).decode().removesuffix("+00").partition(".")
            return f"{seconds.replace(' ', 'T')}.{fraction:0<3.3}Z"

    connection.adapters.register_loader("timestamptz", MomentLoader)
    connection.adapters.register_loader("uuid", TextLoader)

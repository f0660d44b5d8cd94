"""The base of all tables, and our own column types and SQL functions."""

from datetime import datetime
from typing import Any

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Integer, MetaData, String
from sqlalchemy.dialects.postgresql import TIMESTAMP
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine

from taskservice.database.timestamps import rfc3339


class Timestamp(TypeDecorator[str]):
    """A moment as RFC 3339 text in UTC with milliseconds, which sorts as it reads.

    SQLite stores the text itself, so that nothing is converted between the disk
    and the answer; PostgreSQL stores a `timestamptz(3)`.
    """

    impl = String(24)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(TIMESTAMP(timezone=True, precision=3))
        return dialect.type_descriptor(String(24))

    def process_result_value(self, value: Any, dialect: Dialect) -> str | None:
        return rfc3339(value) if isinstance(value, datetime) else value


class Base(DeclarativeBase):
    """What every table shares: the names of its constraints."""

    metadata = MetaData(
        naming_convention={
            "ix": "%(table_name)s_%(column_0_N_name)s",
            "uq": "%(table_name)s_%(column_0_N_name)s_key",
            "ck": "%(table_name)s_%(constraint_name)s_check",
            "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
            "pk": "%(table_name)s_pkey",
        }
    )


db = SQLAlchemy(model_class=Base, disable_autonaming=True)


class database_now(FunctionElement[str]):
    """SQL for the moment `seconds` from now, by the database's clock, which all nodes share."""

    inherit_cache = True
    type = Timestamp()

    def __init__(self, seconds: Any = 0.0) -> None:
        super().__init__(seconds)


@compiles(database_now, "sqlite")
def _sqlite_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ({seconds}) || ' seconds')"


@compiles(database_now, "postgresql")
def _postgresql_now(element: database_now, compiler: SQLCompiler, **options: Any) -> str:
    seconds = compiler.process(element.clauses, **options)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


class byte_length(FunctionElement[int]):
    """SQL for the length of a text in bytes, where `length` counts characters."""

    inherit_cache = True
    type = Integer()


@compiles(byte_length, "sqlite")
def _sqlite_byte_length(element: byte_length, compiler: SQLCompiler, **options: Any) -> str:
    return f"length(CAST({compiler.process(element.clauses, **options)} AS BLOB))"


@compiles(byte_length, "postgresql")
def _postgresql_byte_length(element: byte_length, compiler: SQLCompiler, **options: Any) -> str:
    return f"octet_length({compiler.process(element.clauses, **options)})"

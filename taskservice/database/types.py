"""The base class of all tables, the column types, and the SQL functions."""

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import orjson
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    ARRAY,
    ColumnElement,
    Integer,
    MetaData,
    Row,
    Select,
    String,
    Text,
    Uuid,
    bindparam,
    false,
    select,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import NullType, TypeDecorator, TypeEngine, UserDefinedType

from taskservice.database.clock import hyphenated


class Timestamp(TypeDecorator[str]):
    """A time as RFC 3339 text in UTC with milliseconds, so that the texts sort by time."""

    # SQLite stores this text, which needs no conversion for a response. PostgreSQL stores a
    # `timestamptz(3)`, which TimestampLoader reads as this text.
    impl = String(24)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            # Imported only for PostgreSQL, since the import of the dialect slows the start.
            from sqlalchemy.dialects.postgresql import TIMESTAMP

            return dialect.type_descriptor(TIMESTAMP(timezone=True, precision=3))
        return dialect.type_descriptor(String(24))


class _Identifier(Uuid[str]):
    """A UUID as text; SQLite stores its 32 digits, PostgreSQL stores a `uuid`."""

    def __init__(self) -> None:
        super().__init__(as_uuid=False)

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any] | None:
        if dialect.supports_native_uuid:
            return None
        return lambda digits: digits and hyphenated(digits)


Identifier = _Identifier()


def has_prefix(column: Any, prefix: str) -> ColumnElement[bool]:
    """Whether the UUID in a column begins with the digits `prefix`, with or without hyphens."""
    digits = prefix.replace("-", "").lower()
    if not re.fullmatch("[0-9a-f]{1,32}", digits):
        return false()
    first, last = (hyphenated(digits.ljust(32, filler)) for filler in "0f")
    condition: ColumnElement[bool] = column.between(first, last)
    return condition


class ListParameter(TypeDecorator[Sequence[Any]]):
    """A list of values as a single parameter, so that the SQL does not depend on its length."""

    impl = Text
    cache_ok = True

    def __init__(self, item: TypeEngine[Any]) -> None:
        super().__init__()
        self.item = item

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(ARRAY(self.item))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Sequence[Any] | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        convert = self.item.dialect_impl(dialect).bind_processor(dialect)
        return orjson.dumps([convert(item) for item in value] if convert else value).decode()


class _Function(FunctionElement[Any]):
    """SQL that differs between databases; `{0}` is the first argument, `{all}` all arguments."""

    inherit_cache = True
    sqlite: str
    postgresql: str


@compiles(_Function)
def _compile(element: _Function, compiler: SQLCompiler, **options: Any) -> str:
    arguments = [compiler.process(argument, **options) for argument in element.clauses]
    template: str = getattr(element, compiler.dialect.name)
    return template.format(*arguments, all=", ".join(arguments))


class Base(DeclarativeBase):
    """The base class of all tables; it defines the names of their constraints."""

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
if TYPE_CHECKING:
    # mypy does not accept an attribute as a base class.
    Model = Base
else:
    Model = db.Model


class database_now(_Function):
    """SQL for the time `seconds` from now by the database's clock, which all nodes share."""

    inherit_cache = True
    type = Timestamp()
    sqlite = "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', ({0}) || ' seconds')"
    postgresql = "(clock_timestamp() + make_interval(secs => {0}))"

    def __init__(self, seconds: Any = 0.0) -> None:
        super().__init__(seconds)


def time_from_now(seconds: Any = 0.0) -> Any:
    """Like `database_now`, but evaluated once per query, so that PostgreSQL can use an index."""
    return select(database_now(seconds)).scalar_subquery()


def _function(kind: TypeEngine[Any], sqlite: str, postgresql: str) -> type[_Function]:
    """A class for an SQL function, since SQLAlchemy's cache distinguishes functions by class."""
    attributes = {"inherit_cache": True, "type": kind, "sqlite": sqlite, "postgresql": postgresql}
    return type("_Function", (_Function,), attributes)


# Whether a `ListParameter`, the second argument, contains the first argument. The type is not
# Boolean, since SQLAlchemy would then add `= 1` on SQLite, which prevents the use of an index.
in_list = _function(NullType(), "{0} IN (SELECT value FROM json_each({1}))", "{0} = ANY ({1})")
a_day_after = _function(
    Timestamp(), "strftime('%Y-%m-%dT%H:%M:%fZ', {0}, '+1 day')", "({0} + interval '1 day')"
)
# The length of a text in bytes, whereas `length` counts characters.
byte_length = _function(Integer(), "length(CAST({0} AS BLOB))", "octet_length({0})")
# The position of the second argument in the first, counted from 1; 0 if the first argument does not
# contain the second. LIKE is not used, since SQLite's LIKE treats several characters, such as
# U+FFFE and U+FFFF, as U+FFFD.
position_in_text = _function(Integer(), "instr({all})", "strpos({all})")
# A text with its ASCII letters in lower case; other characters do not change.
ascii_lower = _function(Text(), "lower({0})", 'lower({0} COLLATE "C")')
# An aggregate function that joins the texts of the rows, in the order of the rows, with line feeds.
joined_by_line_feed = _function(
    Text(), "group_concat({all}, char(10))", "string_agg({all}, chr(10))"
)
# The first argument, in which each `%s` is replaced by the next argument.
formatted = _function(Text(), "printf({all})", "format({all})")
# A text as a JSON string, with the same escapes as in orjson; `null` for NULL.
json_string = _function(Text(), "json_quote({0})", "coalesce(to_json({0})::text, 'null')")
_id_text = _function(
    Text(),
    "printf('%s-%s-%s-%s-%s', substr({0}, 1, 8), substr({0}, 9, 4), substr({0}, 13, 4), "
    "substr({0}, 17, 4), substr({0}, 21, 12))",
    "{0}",
)
_time_text = _function(Text(), "{0}", """to_char({0}, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')""")


def api_text(column: Any) -> _Function:
    """SQL for an ID or a time in the format of the API."""
    return _id_text(column) if isinstance(column.type, _Identifier) else _time_text(column)


class _Utf8(UserDefinedType[bytes]):
    """The type of the result of `utf8`: bytes."""

    cache_ok = True

    def result_processor(self, dialect: Dialect, coltype: Any) -> Callable[[Any], Any] | None:
        if dialect.name == "sqlite":
            return None
        return lambda text: None if text is None else text.encode()


# A text as UTF-8 bytes, since a Python string can take four times as much memory. On PostgreSQL,
# the text is encoded after it is read, since psycopg reads text faster than bytes.
utf8 = _function(_Utf8(), "CAST({0} AS BLOB)", "{0}")


def is_among(column: Any, name: str) -> _Function:
    """An SQL condition: the list in the parameter `name` contains the value of `column`."""
    return in_list(column, bindparam(name, type_=ListParameter(column.type)))


AnySelect: TypeAlias = Select[*tuple[Any, ...]]
AnyRow: TypeAlias = Row[*tuple[Any, ...]]

# The approximate number of bytes that one read loads into memory.
PAGE_BYTES = 1024 * 1024


def next_limit(count: int, size: int, maximum: int) -> int:
    """How many rows to read next, from 1 to `maximum`, for a total of about PAGE_BYTES.

    `size` is the number of bytes in the last `count` rows.
    """
    return max(1, min(maximum, 4 * count, count * PAGE_BYTES // max(size, 1)))

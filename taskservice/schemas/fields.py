"""The types of the schemas' fields, and the values that each type accepts."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from itertools import islice
from operator import attrgetter
from typing import Any, ClassVar, TypeVar

from marshmallow import EXCLUDE, Schema, ValidationError, fields, validate
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute

from taskservice import terms
from taskservice.database import clock
from taskservice.schemas import strict_json

T = TypeVar("T")
# The options of marshmallow's fields. All other options are only for the OpenAPI document.
_OPTIONS = {
    "allow_none", "attribute", "data_key", "load_default", "post_load", "required", "validate",
}  # fmt: skip

# Python's `uuid.UUID` also accepts many other notations.
_UUID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


def _documented(
    create: Callable[..., T],
    description: str = "",
    *examples: Any,
    items: Any = None,
    **keywords: Any,
) -> T:
    """Create a marshmallow field; `items` is the field for the items of a list.

    Options that marshmallow does not know are JSON Schema keywords for the OpenAPI document. The
    first example becomes part of the schema's example; if it is None, the field can be null.
    """
    arguments = {"allow_none": examples[:1] == (None,)}
    arguments |= {name: keywords.pop(name) for name in _OPTIONS & keywords.keys()}
    arguments |= {} if items is None else {"cls_or_instance": items}
    keywords |= {"examples": list(examples)} if examples else {}
    return create(**arguments, metadata={"description": description, **keywords})


class Documented(fields.Field[Any]):
    """A field that is created with the arguments of `_documented`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _documented(super().__init__, *arguments, **options)


raw = partial(_documented, fields.Raw)
text = partial(_documented, fields.String)
# A JSON number without a fraction; a string or a boolean is invalid.
integer = partial(_documented, partial(fields.Integer, strict=True))
# A number of at least 0, or null.
number = partial(_documented, fields.Float, allow_none=True, minimum=0)
boolean = partial(_documented, fields.Boolean)
# `true` or `false` in a query string.
flag = partial(_documented, partial(fields.Boolean, truthy={"true"}, falsy={"false"}))
array = partial(_documented, fields.List[Any])
members = partial(_documented, fields.Dict)


def _check_size(value: dict[str, Any]) -> None:
    if len(strict_json.dumps(value)) > terms.MAX_OBJECT:
        raise ValidationError(f"Longer than {terms.MAX_OBJECT} bytes.")


# An object whose compact JSON is at most 1 MiB long.
json_object = partial(members, validate=_check_size)


class StrictBoolean(Documented, fields.Boolean):
    """A JSON boolean; all other values are invalid."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, bool):
            raise self.make_error("invalid", input=value)
        return value


class Number(Documented, fields.Float):
    """A JSON number; a string or a boolean is invalid."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid", input=value)
        return value


def up_to(maximum: int) -> validate.Range:
    return validate.Range(0, maximum, error="Must be from {min} to {max}.")


def labels(description: str, *, may_remove: bool = False) -> fields.Dict:
    """An object of up to 16 labels; with `may_remove`, null removes a label."""
    value = {"type": "string", "minLength": 1, "maxLength": terms.MAX_LABEL_VALUE}

    def problem(key: str, value: Any) -> str | None:
        return terms.label_problem(key, "-" if value is None and may_remove else value)

    def check(labels: dict[str, Any]) -> dict[str, Any]:
        wrong = {key: [error] for key, value in labels.items() if (error := problem(key, value))}
        if wrong:
            raise ValidationError(wrong)
        if len(labels) > terms.MAX_LABELS:
            raise ValidationError(f"More than {terms.MAX_LABELS} labels.")
        return labels

    return members(
        description,
        {"env": "prod"},
        post_load=check,
        maxProperties=terms.MAX_LABELS,
        propertyNames={"pattern": f"^{terms.LABEL_KEY.pattern}$"},
        additionalProperties={**value, "type": ["string", "null"]} if may_remove else value,
    )


def label_texts(description: str) -> fields.List[Any]:
    """Labels, each as `key:value`, from a query parameter that can be repeated."""
    label = fields.String(metadata={"pattern": f"^{terms.LABEL_KEY.pattern}:."})

    def check(labels: list[str]) -> tuple[str, ...]:
        for key, _, value in (text.partition(":") for text in labels):
            if terms.label_problem(key, value):
                raise ValidationError("Must be key:value.")
        if len(labels) > terms.MAX_LABELS:
            raise ValidationError(f"More than {terms.MAX_LABELS} labels.")
        return tuple(labels)

    return array(description, items=label, maxItems=terms.MAX_LABELS, post_load=check)


_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def in_utc(value: Any, shift: timedelta = timedelta(0)) -> str:
    """Convert an RFC 3339 time to UTC with milliseconds and `Z`. Raises ValidationError."""
    try:
        if not isinstance(value, str) or not _TIME.fullmatch(value):
            raise ValueError
        # RFC 3339 allows `t` and `z`, which Python does not accept.
        time = datetime.fromisoformat(value.upper())
        # A `datetime` can't be after the year 9999.
        latest = datetime.max.replace(tzinfo=time.tzinfo) - shift
        return clock.rfc3339(min(time, latest) + shift)
    except (ValueError, OverflowError):
        example = "2026-11-24T13:36:00Z"
        raise ValidationError(f"Must be an RFC 3339 time, such as {example}.") from None


# Times are truncated to milliseconds. `upper_bound` rounds up instead, by adding 999 µs first.
timestamp = partial(raw, post_load=in_utc, type="string", format="date-time")
upper_bound = partial(timestamp, post_load=partial(in_utc, shift=timedelta(microseconds=999)))


def _milliseconds(value: Any) -> Any:
    texts = value if isinstance(value, list) else [value]
    times = [clock.milliseconds(in_utc(text)) for text in texts]
    if times != sorted(times):
        raise ValidationError("Must be ascending.")
    return times if isinstance(value, list) else times[0]


# A time, or an ascending list of times; loaded as milliseconds since 1970 in UTC.
times = partial(raw, post_load=_milliseconds)


class _Strings(Documented, fields.List[str]):
    """A list of strings that is checked as a whole, since it can contain millions of strings."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, list):
            raise self.make_error("invalid")
        if set(map(type, value)) - {str}:
            wrong = (number for number, item in enumerate(value) if type(item) is not str)
            raise ValidationError({number: ["Not a valid string."] for number in islice(wrong, 10)})
        return value


def names(known: Sequence[str], description: str, **options: Any) -> fields.Raw:
    """Names from `known`, separated by commas."""

    def split(value: str) -> tuple[str, ...]:
        names = tuple(value.split(","))
        if unknown := [f"Unknown name: {text!r}." for text in names if text not in known]:
            raise ValidationError(unknown)
        return names

    # The OpenAPI document describes this parameter as a string, since some clients can't join the
    # items of an array with commas.
    name = f"(?:{'|'.join(known)})"
    options |= {"type": "string", "pattern": f"^{name}(?:,{name})*$"}
    return raw(description, post_load=split, **options)


def number_text(low: int, high: int, description: str) -> fields.Raw:
    """A whole number from `low` to `high`, written in the digits 0 to 9."""

    def load(text: str) -> int:
        is_number = text.isascii() and text.isdigit() and len(text) <= 19
        if not is_number or not low <= int(text) <= high:
            raise ValidationError(f"Must be a whole number from {low} to {high}.")
        return int(text)

    return raw(description, post_load=load, type="integer", minimum=low, maximum=high)


def choice(
    description: str, choices: Iterable[str], *examples: Any, **options: Any
) -> fields.String:
    return text(description, *examples, validate=validate.OneOf(choices), **options)


name = partial(text, validate=validate.Length(1, terms.MAX_NAME))
agent_id = partial(
    text,
    validate=validate.Regexp(terms.AGENT_ID.pattern + r"\Z"),
    pattern=f"^{terms.AGENT_ID.pattern}$",
)
strings = partial(_Strings, items=fields.String(), required=True)
timeout = partial(integer, validate=validate.Range(0, terms.MAX_TIMEOUT))
key_name = partial(text, validate=validate.Length(max=terms.MAX_NAME))
time = partial(text, post_load=in_utc, format="date-time")


def bytes_at_most(limit: int) -> dict[str, Any]:
    """The options of a text field with a maximum length in bytes."""

    def check(value: str) -> None:
        if len(value.encode()) > limit:
            raise ValidationError(f"Longer than {limit} bytes.")

    return {"validate": check, "maxLength": limit}


def parse_id(text: str) -> str | None:
    """The UUID in lower case; None if `text` does not have the form 8-4-4-4-12."""
    return text.lower() if _UUID.fullmatch(text) else None


def _load_id(text: str) -> str:
    if parsed := parse_id(text):
        return parsed
    raise ValidationError("Not a valid UUID.")


# A UUID, loaded in lower case.
uuid = partial(text, post_load=_load_id, format="uuid")


# Schemas that serialize rows, and fields for JSON that is stored as text.


class Stored(Documented):
    """JSON that is stored as text and sent unchanged, or null."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if value is None else strict_json.fragment(value)


class StoredJson(Stored, fields.Dict):
    """An object that is stored as JSON."""


class StoredNames(Stored, fields.List[str]):
    """An array of strings that is stored as JSON."""


class StoredNumber(Stored, fields.Float):
    """A number that is stored as JSON text, to preserve all its digits."""


# The value of `Task.questions` if the task has no open questions.
NO_QUESTIONS = "[]"

# The placeholder for the lines of a log in a dumped task: a NUL, which JSON text can't contain.
_SLOT = b"\0"

LINES = strict_json.fragment(_SLOT)


class Lines(Documented, fields.List[str]):
    """The lines of a log; a dumped row contains a placeholder for them, see `split_at_lines`."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return LINES


class OpenQuestions(Documented, fields.List[Any]):
    """The open questions of a task, from stored JSON that can also contain expired questions."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return strict_json.fragment(value) if value == NO_QUESTIONS else open_questions(value)


def open_questions(stored: str) -> list[dict[str, Any]]:
    """The questions in `Task.questions` that have not expired."""
    now = clock.now()
    questions: list[dict[str, Any]] = strict_json.loads(stored.encode())
    return [
        question
        for question in questions
        if question["expiresAt"] is None or question["expiresAt"] > now
    ]


class RequestSchema(Schema):
    """The schema of a request body: fields that are not required can be null."""

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        field_obj.allow_none = not field_obj.required


class ResponseSchema(Schema):
    """The schema of a response, which always contains the fields that are not `optional`."""

    class Meta:
        # Clients must ignore unknown fields, since a later version of the service can add fields.
        unknown = EXCLUDE

    # Names of fields that are present only in some cases, or if `expand` names them.
    optional: ClassVar[tuple[str, ...]] = ()

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        # Only the OpenAPI document uses `required`, since the service does not load responses.
        field_obj.required = field_name not in self.optional


class RowSchema(ResponseSchema):
    """A schema that serializes rows faster than marshmallow, with a plan that is made only once.

    A field reads the column that its option `column` names. By default, it reads the column of the
    `model` with the same name, such as `created_at` for `createdAt`. A test compares the result
    with marshmallow's `dump`.
    """

    model: ClassVar[type[DeclarativeBase]]

    def __init__(self, **options: Any) -> None:
        # Maps the name of each field to its column; queries for these rows select the columns.
        self.columns: dict[str, InstrumentedAttribute[Any]] = {}
        super().__init__(**options)
        # Fields of these types need no serializer: the row contains the JSON value.
        plain = (fields.String, fields.Integer)
        self._plan = [
            (key, field.attribute or key, None if type(field) in plain else field._serialize)
            for key, field in self.dump_fields.items()
        ]
        attributes = [attribute for _, attribute, _ in self._plan]
        # The first name is repeated, since `attrgetter` returns no tuple for a single name.
        self._values = attrgetter(*attributes, attributes[0])

    def stored(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The values to store for the fields in `changes`, keyed by the names of the columns."""
        values = {}
        for name, column in self.columns.items():
            if name in changes:
                value = values[column.key] = changes[name]
                if value is not None and isinstance(self.fields[name], Stored):
                    values[column.key] = strict_json.dumps(value).decode()
        return values

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        super().on_bind_field(field_name, field_obj)
        of_name = getattr(self.model, re.sub("(?=[A-Z])", "_", field_name).lower(), None)
        column = field_obj.metadata.get("column", of_name)
        if column is not None:
            self.columns[field_name] = column
            field_obj.attribute, field_obj.allow_none = column.key, bool(column.nullable)

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self.many if many is None else many:
            return [self.dump(row, many=False) for row in obj]
        planned = zip(self._plan, self._values(obj), strict=False)
        return {
            key: value if serialize is None else serialize(value, attribute, obj)
            for (key, attribute, serialize), value in planned
        }


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """The JSON of a dumped task before and after the lines of its log.

    The second part is empty if the dumped task has no `logs`.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_items(items: Sequence[Any]) -> bytes:
    """The items of a JSON array with commas between them, without the brackets."""
    return strict_json.dumps(items)[1:-1]

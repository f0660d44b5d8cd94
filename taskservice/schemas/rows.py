"""How rows become JSON: schemas that serialize them, and the fields of stored JSON."""

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, ClassVar

from marshmallow import EXCLUDE, Schema, fields

from taskservice.database import clock
from taskservice.schemas import strict_json
from taskservice.schemas.fields import Column


class StoredJson(fields.Dict):
    """A JSON object that is stored as text and answered as that text, or null."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if value is None else strict_json.fragment(value)


class StoredNumber(fields.Float):
    """A number that is stored as text and answered as that text, or null."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return None if value is None else strict_json.fragment(value)


# What `Task.questions` is without an open one.
NO_QUESTIONS = "[]"

# The placeholder of a log's lines in a dumped task. JSON contains NUL nowhere else.
_SLOT = b"\0"

LINES = strict_json.fragment(_SLOT)


class Lines(fields.List[str]):
    """The lines of a log. A row does not contain them: they replace `LINES`.

    See `split_at_lines`.
    """

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return LINES


class OpenQuestions(fields.List[Any]):
    """The open questions of a task, which are stored as JSON, without those that have expired."""

    def _serialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return strict_json.fragment(value) if value == NO_QUESTIONS else open_questions(value)


def open_questions(stored: str) -> list[dict[str, Any]]:
    """The questions that are open now, of those that `Task.questions` has."""
    now = clock.now()
    questions: list[dict[str, Any]] = strict_json.loads(stored.encode())
    return [each for each in questions if each["expiresAt"] is None or each["expiresAt"] > now]


class AnswerSchema(Schema):
    """The schema of an answer."""

    class Meta:
        # Later versions may add fields, which clients must ignore.
        unknown = EXCLUDE


class RowSchema(AnswerSchema):
    """A schema that serializes rows with functions built once from its fields, which is faster.

    The result equals that of marshmallow's own `dump`; a test compares the two.
    """

    # Fields that an answer has only if `expand` asks for them.
    expansions: ClassVar[tuple[str, ...]] = ()

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        named = {field.data_key or name: field for name, field in self.dump_fields.items()}
        read = {key: field for key, field in named.items() if not isinstance(field, Lines)}
        attributes = {key: str(field.attribute or field.name) for key, field in read.items()}
        self._keys = tuple(named)
        self._keys_of_row = tuple(read)
        self._values = _getter(tuple(attributes.values()))
        self._serialized = [
            (key, attributes[key], field._serialize)
            for key, field in read.items()
            # Of other fields the row contains the value for the JSON.
            if type(field) not in (fields.String, fields.Integer)
        ]

    @property
    def columns(self) -> dict[str, Column]:
        """Field -> its column: what a read of such rows selects."""
        documented = {name: field.metadata for name, field in self.dump_fields.items()}
        return {name: doc["column"] for name, doc in documented.items() if "column" in doc}

    def on_bind_field(self, field_name: str, field_obj: fields.Field[Any]) -> None:
        # For the documentation: a dumped row always has all other fields.
        field_obj.required = field_name not in self.expansions
        if "column" in field_obj.metadata:
            field_obj.attribute = field_obj.metadata["column"].key

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        if self.many if many is None else many:
            return [self.dump(row, many=False) for row in obj]
        # A row contains everything but the lines.
        dumped: dict[str, Any] = dict.fromkeys(self._keys, LINES)
        dumped.update(zip(self._keys_of_row, self._values(obj), strict=True))
        for key, attribute, serialize in self._serialized:
            dumped[key] = serialize(dumped[key], attribute, obj)
        return dumped


def _getter(attributes: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What reads all these attributes of a row at once."""
    if len(attributes) > 1:
        return attrgetter(*attributes)
    return lambda row: tuple(getattr(row, name) for name in attributes)


def split_at_lines(dumped: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """A dumped task as JSON in two parts; the lines of its log belong between them.

    Without `logs` among its fields the second part is empty.
    """
    head, _, tail = strict_json.dumps(dumped).partition(_SLOT)
    return (head + b"[", b"]" + tail) if tail else (head, b"")


def dump_items(items: Sequence[Any]) -> bytes:
    """Items of an array as JSON with commas between them, without the brackets."""
    return strict_json.dumps(items)[1:-1]

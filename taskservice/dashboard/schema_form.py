"""A form made from a JSON Schema: its fields, and what is typed in them as JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import orjson
from marshmallow import ValidationError

from taskservice.dashboard.formatting import pretty
from taskservice.errors import from_exception, sentences
from taskservice.schemas import strict_json
from taskservice.schemas.json_schema import input_problems

Json: TypeAlias = dict[str, Any]
# The name of a field in the form -> its texts: several of checkboxes, none of what is left empty.
Texts: TypeAlias = Mapping[str, Sequence[str]]
# The name of a property -> why its value does not fit.
Errors: TypeAlias = dict[str, list[str]]

# The kinds of fields. A text may be long; what no other kind can show is typed as JSON.
TEXT, LONG_TEXT, NUMBER, CHOICE, CHOICES, JSON = (
    "text",
    "long",
    "number",
    "choice",
    "choices",
    "json",
)
# A text that may have more characters than this has several lines.
LONG = 200
# Of a chain of references.
MAX_REFERENCES = 8

_INPUT_TYPES = {"email": "email", "uri": "url", "date": "date", "date-time": "datetime-local"}
_BOOLEAN = [(True, "Yes"), (False, "No")]


class Choice(NamedTuple):
    """One of several values: as JSON, which the form sends, and in words."""

    value: str
    label: str
    is_chosen: bool


@dataclass(frozen=True)
class Field:
    """A property of a schema, whose references are resolved, as a field of the form."""

    name: str
    schema: Json
    is_required: bool
    is_nullable: bool
    # What is typed or chosen, and why it does not fit.
    texts: Sequence[str]
    errors: Sequence[str]

    @property
    def key(self) -> str:
        """Its name in the form, which an id of HTML has too."""
        return _key(self.name)

    @property
    def label(self) -> str:
        return str(self.schema.get("title") or self.name or "unnamed")

    @property
    def hint(self) -> str:
        hint = str(self.schema.get("description") or "")
        if self.kind == TEXT and self._is_time:
            return f"{hint} In UTC.".strip()
        is_of_texts = self.schema.get("items", {}).get("type") == "string"
        if self.kind == JSON and self.schema.get("type") == "array" and is_of_texts:
            return f'{hint} A list of texts, such as ["a", "b"].'.strip()
        return hint

    @cached_property
    def kind(self) -> str:
        kind = self.schema.get("type")
        if self._options:
            return CHOICES if kind == "array" else CHOICE
        if kind == "string":
            has_lines = "\n" in str(self.schema.get("default", ""))
            is_long = has_lines or (_whole(self.schema.get("maxLength")) or 0) > LONG
            return LONG_TEXT if is_long else TEXT
        return NUMBER if kind in ("number", "integer") else JSON

    @property
    def attributes(self) -> dict[str, Any]:
        """Of an `input`, `select` or `textarea` of HTML; it has none that are None."""
        given: dict[str, Any] = {"required": "required" if self.is_required else None}
        if self.kind == NUMBER:
            given |= {"type": "number", "step": "any"}
            given |= {name: _text(self.schema[keyword])
                      for name, keyword in (("min", "minimum"), ("max", "maximum"))
                      if keyword in self.schema}  # fmt: skip
            if self.schema["type"] == "integer":
                given["step"] = "1"
            return given
        if self.kind in (TEXT, LONG_TEXT):
            for keyword in ("minLength", "maxLength"):
                given[keyword.lower()] = _whole(self.schema.get(keyword))
        if self.kind == TEXT:
            given["type"] = _INPUT_TYPES.get(str(self.schema.get("format")), "text")
            given["step"] = "1" if self._is_time else None
        return given

    @property
    def choices(self) -> list[Choice]:
        return [Choice(value, label, value in self.texts) for value, label in self._labels.items()]

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""

    @cached_property
    def _options(self) -> list[tuple[Any, str]]:
        """The values to choose from, each with its label; empty if it is no choice."""
        kind = self.schema.get("type")
        if kind == "boolean":
            return _BOOLEAN
        return _options(self.schema.get("items", {}) if kind == "array" else self.schema)

    @property
    def _labels(self) -> dict[str, str]:
        return {_text(value): label for value, label in self._options}

    @property
    def _is_time(self) -> bool:
        return bool(self.schema.get("format") == "date-time")

    def content(self) -> Json:
        """The property with the value that is typed or chosen; nothing if it is left out.

        Raises ValueError.
        """
        given = [text for text in self.texts if text]
        if given:
            return {self.name: self._value(given)}
        if not self.is_required:
            return {}
        if self.kind == CHOICES:
            return {self.name: []}
        if self.is_nullable:
            return {self.name: None}
        raise ValueError("Choose one." if self.kind == CHOICE else "Fill this in.")

    def _value(self, texts: Sequence[str]) -> Any:
        if self.kind in (CHOICE, CHOICES):
            values = {_text(value): value for value, _ in self._options}
            if not set(texts) <= values.keys():
                raise ValueError("Choose from the list.")
            chosen = [values[text] for text in texts]
            return chosen if self.kind == CHOICES else chosen[0]
        if self.kind == NUMBER:
            return _number(texts[0])
        if self.kind == JSON:
            try:
                return strict_json.loads(texts[0].encode())
            except ValueError as error:
                raise ValueError(f"Not valid JSON: {error}.") from None
        return _with_zone(texts[0]) if self._is_time else texts[0]

    def texts_of(self, value: Any) -> list[str]:
        """What the form has for a value."""
        if value is None and self.is_nullable:
            return []
        if self.kind in (TEXT, LONG_TEXT) and isinstance(value, str):
            return [_in_utc(value) if self._is_time else value]
        if self.kind == CHOICES and isinstance(value, list):
            return [_text(each) for each in value]
        if self.kind == JSON:
            return [orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()]
        return [_text(value)]

    def keeps(self, value: Any) -> bool:
        """Whether the form shows this value, and sends it unchanged."""
        texts = self.texts_of(value)
        # Browsers send each line end as CR LF, and a field of one line has none.
        lost = "\r\n" if self.kind == TEXT else "\r"
        if any(character in text for text in texts for character in lost):
            return False
        try:
            content = replace(self, texts=texts).content()
        except ValueError:
            return False
        return strict_json.canonical(content) == strict_json.canonical({self.name: value})

    def in_words(self, value: Any) -> str:
        """A value for a person."""
        values = value if self.kind == CHOICES and isinstance(value, list) else [value]
        return ", ".join(self._labels.get(_text(each), _plain(each)) for each in values)


def fields(schema: Json, texts: Texts | None = None, errors: Errors | None = None) -> list[Field]:
    """The fields of the form, in the order of the properties."""
    found = []
    for name, each in schema.get("properties", {}).items():
        own, is_nullable = _without_null(_resolved(each, schema), schema)
        if "items" in own:
            own = {**own, "items": _resolved(own["items"], schema)}
        typed, wrong = (texts or {}).get(_key(name), ()), (errors or {}).get(name, ())
        is_required = name in schema.get("required", ())
        found.append(Field(name, own, is_required, is_nullable, typed, wrong))
    return found


def texts_of(schema: Json, content: Json) -> dict[str, list[str]]:
    """What the form has for `content`."""
    return {
        each.key: each.texts_of(content[each.name])
        for each in fields(schema)
        if each.name in content
    }


def defaults(schema: Json) -> Json:
    """The content of the form before anything is typed."""
    return {
        each.name: each.schema["default"] for each in fields(schema) if "default" in each.schema
    }


def content_of(schema: Json, texts: Texts) -> tuple[Json, Errors]:
    """The content of a form, and what is wrong with it; what is left empty is left out."""
    content: Json = {}
    errors: Errors = {}
    for each in fields(schema, texts):
        try:
            content |= each.content()
        except ValueError as error:
            errors[each.name] = [str(error)]
    return content, errors


def by_property(schema: Json, errors: Errors, prefix: str) -> tuple[Errors, Errors]:
    """Errors by the path of a value, as `content.name`: those by property, and the other ones."""
    # Longer names first, for a name that has a point in it.
    names = sorted((each.name for each in fields(schema)), key=len, reverse=True)
    own: Errors = {}
    others: Errors = {}
    for path, messages in errors.items():
        found = (name for name in names if f"{path}.".startswith(f"{prefix}.{name}."))
        name = next(found, None)
        if name is None:
            others[path] = messages
        else:
            own.setdefault(name, []).extend(messages)
    return own, others


# --- the schema ----------------------------------------------------------------------------


def _key(name: str) -> str:
    # Browsers change some characters of names, such as line ends.
    return f"field.{quote(name, safe='')}"


def _resolved(schema: Any, root: Json) -> Json:
    """The schema, after its reference to a part of `root`; {} if it says nothing that helps."""
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        if "$ref" not in schema:
            return schema
        beside = {name: value for name, value in schema.items() if name != "$ref"}
        target = _target(str(schema["$ref"]), root)
        schema = {**target, **beside} if isinstance(target, dict) else beside
    return {}


def _target(reference: str, root: Json) -> Any:
    found: Any = root
    for part in reference.removeprefix("#/").split("/"):
        name = part.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, dict) else None
    return found


def _without_null(schema: Json, root: Json) -> tuple[Json, bool]:
    """A schema that allows one type or null, without the null; and whether it does."""
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds and len(kinds) == 2:
        (kind,) = (each for each in kinds if each != "null")
        return {**schema, "type": kind}, True
    options = schema.get("anyOf")
    others = [each for each in options or () if each != {"type": "null"}]
    if isinstance(options, list) and len(others) == 1 and len(options) == 2:
        beside = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**_resolved(others[0], root), **beside}, True
    return schema, False


def _options(schema: Json) -> list[tuple[Any, str]]:
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if isinstance(values, list):
        names = schema.get("enumNames")
        names = names if isinstance(names, list) else []
        titles = [*map(str, names), *map(_plain, values[len(names) :])]
        return [(value, title or "“”") for value, title in zip(values, titles, strict=False)]
    options = schema.get("oneOf", schema.get("anyOf"))
    if not isinstance(options, list):
        return []
    if not all(isinstance(each, dict) and "const" in each for each in options):
        return []
    return [(each["const"], str(each.get("title") or _plain(each["const"]))) for each in options]


def _whole(bound: Any) -> int | None:
    return int(bound) if isinstance(bound, int | float) else None


# --- values and texts ----------------------------------------------------------------------


def _text(value: Any) -> str:
    return strict_json.dumps(value).decode()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _number(text: str) -> Any:
    """A number of a form, which JSON may write otherwise: 07 and .5 are 7 and 0.5."""
    try:
        number = Decimal(text)
    except InvalidOperation:
        raise ValueError("Not a number.") from None
    try:
        return strict_json.loads(str(number).encode())
    except ValueError as error:
        raise ValueError(f"Not usable: {error}.") from None


def _in_utc(text: str) -> str:
    """A moment as the field of a date and time has it."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError):
        return text


def _with_zone(text: str) -> str:
    """A moment of RFC 3339: a date and time without a zone is in UTC."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if moment.tzinfo else f"{moment.isoformat()}Z"


# --- what is wrong with a form -------------------------------------------------------------


def errors_of(error: Exception) -> dict[str, Any]:
    """Field -> what is wrong with it. Raises an error that is not about the form's fields."""
    errors = from_exception(error).more.get("errors")
    if not errors:
        raise error
    return dict(errors)


def sentence_of(errors: Mapping[str, Any]) -> str:
    """What is wrong, for a person."""
    return " ".join(f"{each[:1].upper()}{each[1:]}" for each in sentences(errors))


# --- the input of a task: fields by its agent's schema, or one JSON text -------------------

# The value of `as` in a form that has fields.
FIELDS = "fields"


@dataclass(frozen=True)
class InputForm:
    """What is typed, and what is wrong with it."""

    # The agent's, as it is stored.
    stored_schema: str
    # None while the input is one JSON text.
    typed: Texts | None
    text: str = ""
    errors: Errors = field(default_factory=dict)

    @cached_property
    def _schema(self) -> Json:
        return _loads(self.stored_schema)

    @property
    def fields(self) -> list[Field]:
        """The fields, those that are required first; none for one JSON text."""
        if self.typed is None:
            return []
        found = fields(self._schema, self.typed, self.errors)
        return sorted(found, key=lambda each: not each.is_required)

    @property
    def can_have_fields(self) -> bool:
        return bool(fields(self._schema))

    def value(self) -> Any:
        """The input. Raises ValidationError, under `input` or `input.<name>`."""
        errors: Errors = {}
        if self.typed is None:
            try:
                content = _loads(self.text)
            except ValueError as error:
                said = f"It is not valid JSON: {error}."
                raise ValidationError({"input": [said]}) from error
        else:
            content, errors = content_of(self._schema, self.typed)
        misfits = input_problems(self.stored_schema, _text(content))
        # What a field lacks is said once.
        if found := misfits | {f"input.{name}": each for name, each in errors.items()}:
            raise ValidationError(found)
        return content

    def refused(self, errors: Mapping[str, Any]) -> tuple["InputForm", str]:
        """The form with these errors beside its fields, and a sentence with the other ones."""
        if self.typed is None:
            return self, sentence_of(errors)
        own, others = by_property(self._schema, dict(errors), "input")
        return replace(self, errors=own), sentence_of(others) or "See below."


def of_request(schema: str, typed: Texts, default: str = "") -> InputForm:
    """What a form has sent; `default` stands for an empty JSON text."""
    has_fields = FIELDS in typed.get("as", ())
    text = "".join(typed.get("input", ()))
    return InputForm(schema, typed if has_fields else None, text if text.strip() else default)


def with_defaults(schema: str, is_text: bool = False) -> InputForm:
    """The form of a new task."""
    own = _loads(schema)
    return _begun(schema, defaults(own), is_text or not fields(own))


def with_input(schema: str, stored: str, is_text: bool = False) -> InputForm:
    """The form that begins with an input: as JSON if fields cannot show all of it."""
    content = _loads(stored)
    own = {each.name: each for each in fields(_loads(schema))}
    is_shown = all(name in own and own[name].keeps(content[name]) for name in content)
    return _begun(schema, content, is_text or not own or not is_shown)


def _begun(schema: str, content: Json, is_text: bool) -> InputForm:
    if is_text:
        return InputForm(schema, None, pretty(_text(content)))
    return InputForm(schema, texts_of(_loads(schema), content))


def _loads(text: str) -> Json:
    value: Json = strict_json.loads(text.encode())
    return value

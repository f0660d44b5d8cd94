"""A form made from a JSON Schema: its fields, and what is typed in them as JSON."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import orjson

from taskservice.schemas import strict_json

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
# What a number field of HTML accepts and JSON does not: leading zeros, none before the point.
_NUMBER = re.compile(r"\+?(-?)0*((?=\d)\d+|(?=\.\d))((?:\.\d+)?(?:e[+-]?\d+)?)", re.A | re.I)


class Choice(NamedTuple):
    """One of several values: as JSON, which the form sends, and in words."""

    value: str
    label: str
    is_chosen: bool


class Field(NamedTuple):
    """A field as the form shows it."""

    # Of the property.
    name: str
    # In the form; an id of HTML, too.
    key: str
    label: str
    hint: str
    kind: str
    is_required: bool
    has_title: bool
    # Of an `input` or `textarea` of HTML.
    attributes: dict[str, Any]
    choices: list[Choice]
    text: str
    errors: list[str]


class _Property(NamedTuple):
    """A property of a schema, whose references are resolved."""

    name: str
    schema: Json
    is_required: bool
    is_nullable: bool

    @property
    def key(self) -> str:
        # Browsers change some characters of names, such as line ends.
        return f"field.{quote(self.name, safe='')}"

    @property
    def label(self) -> str:
        return str(self.schema.get("title") or self.name or "unnamed")

    @property
    def options(self) -> list[tuple[Any, str]]:
        """The values to choose from, each with its label; empty if it is no choice."""
        kind = self.schema.get("type")
        if kind == "boolean":
            return _BOOLEAN
        return _options(self.schema.get("items", {}) if kind == "array" else self.schema)

    @property
    def kind(self) -> str:
        kind = self.schema.get("type")
        if self.options:
            return CHOICES if kind == "array" else CHOICE
        if kind == "string":
            return LONG_TEXT if self._is_long else TEXT
        return NUMBER if kind in ("number", "integer") else JSON

    @property
    def _is_long(self) -> bool:
        has_lines = "\n" in str(self.schema.get("default", ""))
        return has_lines or _whole(self.schema.get("maxLength", 0)) > LONG

    @property
    def _is_list_of_texts(self) -> bool:
        items = self.schema.get("items")
        is_text = isinstance(items, dict) and items.get("type") == "string"
        return is_text and self.schema.get("type") == "array"

    def texts(self, value: Any) -> list[str]:
        """What the field has for a value."""
        if value is None and self.is_nullable:
            return []
        if self.kind in (TEXT, LONG_TEXT) and isinstance(value, str):
            return [_in_utc(value) if self.schema.get("format") == "date-time" else value]
        if self.kind == CHOICES and isinstance(value, list):
            return [_text(each) for each in value]
        return [_pretty(value) if self.kind == JSON else _text(value)]

    def value(self, texts: Sequence[str]) -> Any:
        """The value of what is typed or chosen. Raises ValueError with why there is none."""
        if self.kind in (CHOICE, CHOICES):
            values = {_text(value): value for value, _ in self.options}
            if not set(texts) <= values.keys():
                raise ValueError("Choose from the list.")
            chosen = [values[text] for text in texts]
            return chosen if self.kind == CHOICES else chosen[0]
        if self.kind == NUMBER:
            return _number(texts[0])
        if self.kind == JSON:
            return _parsed(texts[0])
        return _with_zone(texts[0]) if self.schema.get("format") == "date-time" else texts[0]

    def field(self, texts: Sequence[str], errors: list[str]) -> Field:
        hint = str(self.schema.get("description") or "")
        if self.schema.get("format") == "date-time" and self.kind == TEXT:
            hint = f"{hint} In UTC.".strip()
        if self.kind == JSON and self._is_list_of_texts:
            hint = f'{hint} A list of texts, such as ["a", "b"].'.strip()
        return Field(
            name=self.name,
            key=self.key,
            label=self.label,
            hint=hint,
            kind=self.kind,
            is_required=self.is_required,
            has_title="title" in self.schema,
            attributes=self._attributes,
            choices=[Choice(_text(value), label, _text(value) in texts)
                     for value, label in self.options],
            text=texts[0] if texts else "",
            errors=errors,
        )  # fmt: skip

    @property
    def _attributes(self) -> dict[str, Any]:
        given = {"required": "required"} if self.is_required else {}
        if self.kind in (TEXT, LONG_TEXT):
            bounds = {name.lower(): _whole(self.schema[name]) for name in ("minLength", "maxLength")
                      if _whole(self.schema.get(name))}  # fmt: skip
            kind = _INPUT_TYPES.get(str(self.schema.get("format")), "text")
            seconds = {"step": "1"} if kind == "datetime-local" else {}
            return given | bounds | ({"type": kind} if self.kind == TEXT else {}) | seconds
        if self.kind == NUMBER:
            return given | {"type": "number", **self._range}
        return given

    @property
    def _range(self) -> dict[str, str]:
        is_whole = self.schema.get("type") == "integer"
        bounds = {"min": self.schema.get("minimum"), "max": self.schema.get("maximum")}
        if is_whole and isinstance(bounds["min"], float):
            # The steps of HTML are counted from it.
            bounds["min"] = math.ceil(bounds["min"])
        given = {name: _text(value) for name, value in bounds.items() if value is not None}
        return {"step": "1" if is_whole else "any", **given}


def fields(schema: Json, texts: Texts, errors: Errors) -> list[Field]:
    """The fields of the form, in the order of the properties."""
    return [
        each.field(texts.get(each.key, ()), errors.get(each.name, []))
        for each in _properties(schema)
    ]


def texts_of(schema: Json, content: Json) -> dict[str, list[str]]:
    """What the form has for `content`."""
    return {
        each.key: each.texts(content[each.name])
        for each in _properties(schema)
        if each.name in content
    }


def defaults(schema: Json) -> dict[str, list[str]]:
    """What the form has before anything is typed."""
    return {
        each.key: each.texts(each.schema["default"])
        for each in _properties(schema)
        if "default" in each.schema
    }


def content_of(schema: Json, texts: Texts, needs_all: bool = True) -> tuple[Json, Errors]:
    """The content of a form, and what is wrong with it; what is left empty is left out.

    With `needs_all`, what is required must not be left empty.
    """
    content: Json = {}
    errors: Errors = {}
    for each in _properties(schema):
        try:
            for value in _typed(each, texts.get(each.key, ()), needs_all):
                content[each.name] = value
        except ValueError as error:
            errors[each.name] = [str(error)]
    return content, errors


def _typed(each: _Property, texts: Sequence[str], needs_all: bool) -> list[Any]:
    """The value of a field, if it has one. Raises ValueError."""
    given = [text for text in texts if text]
    if given:
        return [each.value(given)]
    if not (each.is_required and needs_all):
        return []
    if each.kind == CHOICES:
        return [[]]
    if each.is_nullable:
        return [None]
    raise ValueError("Choose one." if each.kind == CHOICE else "Fill this in.")


def not_shown(schema: Json, content: Json) -> list[str]:
    """The names in `content` that the form does not have, or would not answer unchanged."""
    own = {each.name: each for each in _properties(schema)}
    return [
        name for name, value in content.items() if name not in own or not _keeps(own[name], value)
    ]


def _keeps(each: _Property, value: Any) -> bool:
    texts = each.texts(value)
    # Browsers send each line end as CR LF, and a field of one line has none.
    lost = "\r\n" if each.kind == TEXT else "\r"
    if any(character in text for text in texts for character in lost):
        return False
    try:
        again = _typed(each, texts, needs_all=True)
    except ValueError:
        return False
    return strict_json.canonical(again) == strict_json.canonical([value])


def by_property(schema: Json, errors: Mapping[str, list[str]], prefix: str) -> Errors:
    """Errors by the path of a value, as `content.name`, under the names of the properties.

    Those of no property are under "".
    """
    # Longer names first, for a name that has a point in it.
    names = sorted(schema.get("properties", {}), key=len, reverse=True)
    found: Errors = {}
    for path, messages in errors.items():
        part = path.removeprefix(prefix).removeprefix(".")
        fits = (name for name in names if part == name or part.startswith(f"{name}."))
        found.setdefault(next(fits, ""), []).extend(messages)
    return found


def shown(schema: Json, content: Json) -> list[tuple[str, str]]:
    """What `content` says, for a person: (label, text) of each property in it."""
    return [
        (each.label, _in_words(each, content[each.name]))
        for each in _properties(schema)
        if each.name in content
    ]


def _in_words(each: _Property, value: Any) -> str:
    labels = {_text(option): label for option, label in each.options}
    if each.kind == CHOICES and isinstance(value, list):
        return ", ".join(labels.get(_text(item), _plain(item)) for item in value)
    return labels.get(_text(value), _plain(value))


# --- the schema ----------------------------------------------------------------------------


def _properties(schema: Json) -> Iterator[_Property]:
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        own, is_nullable = _without_null(_resolved(each, schema), schema)
        if "items" in own:
            own = {**own, "items": _resolved(own["items"], schema)}
        yield _Property(name, own, name in required, is_nullable)


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


def _whole(bound: Any) -> int:
    return int(bound) if isinstance(bound, int | float) else 0


# --- values and texts ----------------------------------------------------------------------


def _text(value: Any) -> str:
    return strict_json.dumps(value).decode()


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else _text(value)


def _pretty(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()


def _parsed(text: str) -> Any:
    try:
        return strict_json.loads(text.encode())
    except ValueError as error:
        raise ValueError(f"Not valid JSON: {error}.") from None


def _number(text: str) -> Any:
    found = _NUMBER.fullmatch(text.strip())
    if found is None:
        raise ValueError("Not a number.")
    sign, whole, rest = found.groups()
    try:
        return strict_json.loads(f"{sign}{whole or 0}{rest}".encode())
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

"""Makes a form from a JSON Schema, and JSON from a submitted form."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from functools import cached_property
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import unquote

import orjson
from marshmallow import ValidationError

from taskservice.dashboard.formatting import pretty
from taskservice.errors import from_exception, sentences
from taskservice.schemas import strict_json
from taskservice.schemas.answer_schema import field_name, options, plain
from taskservice.schemas.input_schema import input_problems
from taskservice.web.request import large_json_slot

Json: TypeAlias = dict[str, Any]
# Name of a form field -> its submitted values: several for checkboxes, none if nothing is chosen.
Texts: TypeAlias = Mapping[str, Sequence[str]]
# Name of a property -> its errors.
Errors: TypeAlias = dict[str, list[str]]

# The kinds of fields. A field of the kind JSON is for values that no other kind can show.
TEXT, LONG_TEXT, NUMBER = "text", "long", "number"
CHOICE, CHOICES, JSON = "choice", "choices", "json"
# A text that can have more characters than this is entered in a field with several lines.
LONG = 200
# Maximum number of references to follow for one schema.
MAX_REFERENCES = 8

_INPUT_TYPES = {"email": "email", "uri": "url", "date": "date", "date-time": "datetime-local"}


class Choice(NamedTuple):
    """An option of a field: its value as JSON, its label, and whether it is chosen."""

    value: str
    label: str
    is_chosen: bool


@dataclass(frozen=True)
class Field:
    """A form field for a property of a schema; references in `schema` are resolved."""

    name: str
    schema: Json
    is_required: bool
    is_nullable: bool
    # The typed or chosen values, and the errors of these values.
    texts: Sequence[str]
    errors: Sequence[str]

    @property
    def key(self) -> str:
        """The name of the field in the form, and in HTML IDs."""
        return field_name(self.name)

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
        if self._labels:
            return CHOICES if kind == "array" else CHOICE
        if kind == "string":
            has_lines = "\n" in str(self.schema.get("default", ""))
            is_long = has_lines or (_whole(self.schema.get("maxLength")) or 0) > LONG
            return LONG_TEXT if is_long else TEXT
        return NUMBER if kind in ("number", "integer") else JSON

    @property
    def attributes(self) -> dict[str, Any]:
        """Attributes of the HTML element of the field; attributes that are None are omitted."""
        attributes: dict[str, Any] = {"required": "required" if self.is_required else None}
        if self.kind == NUMBER:
            attributes |= {
                "type": "number",
                "step": "1" if self.schema["type"] == "integer" else "any",
            }
            for name, keyword in (("min", "minimum"), ("max", "maximum")):
                if keyword in self.schema:
                    attributes[name] = _text(self.schema[keyword])
        if self.kind in (TEXT, LONG_TEXT):
            for keyword in ("minLength", "maxLength"):
                attributes[keyword.lower()] = _whole(self.schema.get(keyword))
        if self.kind == TEXT:
            attributes["type"] = _INPUT_TYPES.get(str(self.schema.get("format")), "text")
            attributes["step"] = "1" if self._is_time else None
        return attributes

    @property
    def choices(self) -> list[Choice]:
        return [Choice(value, label, value in self.texts) for value, label in self._labels.items()]

    @property
    def text(self) -> str:
        return self.texts[0] if self.texts else ""

    @cached_property
    def _labels(self) -> dict[str, str]:
        """The options of the field, as JSON -> label; empty if the field has no options."""
        return {_text(value): label for value, label in options(self.schema)}

    @property
    def _is_time(self) -> bool:
        return bool(self.schema.get("format") == "date-time")

    def content(self) -> Json:
        """An object with the property and its value from the form; empty if an optional field is
        empty. Raises ValueError.
        """
        if texts := [text for text in self.texts if text]:
            return {self.name: self._value(texts)}
        if not self.is_required:
            return {}
        if self.kind == CHOICES:
            return {self.name: []}
        if self.is_nullable:
            return {self.name: None}
        raise ValueError("Choose one." if self.kind == CHOICE else "Fill this in.")

    def _value(self, texts: Sequence[str]) -> Any:
        if self.kind in (CHOICE, CHOICES):
            if not set(texts) <= self._labels.keys():
                raise ValueError("Choose from the list.")
            chosen = list(map(_loads, texts))
            return chosen if self.kind == CHOICES else chosen[0]
        if self.kind == NUMBER:
            return _number(texts[0])
        if self.kind == JSON:
            try:
                return strict_json.loads_request(texts[0].encode(), strict_json.FEW_CONTAINERS)
            except ValueError as error:
                raise ValueError(f"Not valid JSON: {error}.") from None
        return _with_zone(texts[0]) if self._is_time else texts[0]

    def texts_of(self, value: Any) -> list[str]:
        if value is None and self.is_nullable:
            return []
        if self.kind in (TEXT, LONG_TEXT) and isinstance(value, str):
            return [_in_utc(value) if self._is_time else value]
        if self.kind == CHOICES and isinstance(value, list):
            return [_text(item) for item in value]
        if self.kind == JSON:
            return [orjson.dumps(value, option=orjson.OPT_INDENT_2).decode()]
        return [_text(value)]

    def keeps(self, value: Any) -> bool:
        """Whether the form can show this value and send it unchanged."""
        texts = self.texts_of(value)
        # Browsers send each line end as CR LF. A single-line field can't contain line ends.
        lost = "\r\n" if self.kind == TEXT else "\r"
        if any(character in text for text in texts for character in lost):
            return False
        try:
            content = replace(self, texts=texts).content()
        except ValueError:
            return False
        return strict_json.canonical(content) == strict_json.canonical({self.name: value})

    def in_words(self, value: Any) -> str:
        values = value if self.kind == CHOICES and isinstance(value, list) else [value]
        return ", ".join(self._labels.get(_text(item), plain(item)) for item in values)


def fields(schema: Json, typed: Texts | None = None, errors: Errors | None = None) -> list[Field]:
    """The form fields in the order of the properties, with the `typed` values or, if `typed` is
    None, the defaults.
    """
    form_fields = []
    for name, property_schema in schema.get("properties", {}).items():
        field_schema, is_nullable = _without_null(_resolved(property_schema, schema), schema)
        if "items" in field_schema:
            field_schema = {**field_schema, "items": _resolved(field_schema["items"], schema)}
        is_required = name in schema.get("required", ())
        texts = () if typed is None else typed.get(field_name(name), ())
        new = Field(
            name, field_schema, is_required, is_nullable, texts, (errors or {}).get(name, ())
        )
        if typed is None and "default" in field_schema:
            new = replace(new, texts=new.texts_of(field_schema["default"]))
        form_fields.append(new)
    return form_fields


def content_of(schema: Json, texts: Texts) -> tuple[Json, Errors]:
    """The JSON object from a submitted form, without empty fields, and the errors by field."""
    content, errors = Json(), Errors()
    for form_field in fields(schema, texts):
        try:
            content |= form_field.content()
        except ValueError as error:
            errors[form_field.name] = [str(error)]
    return content, errors


def by_property(schema: Json, errors: Errors, prefix: str) -> tuple[Errors, Errors]:
    """Split errors by path, such as `content.name`, into errors by property and other errors."""
    # Longer names come first, since a name can contain a full stop: `a.b` is matched before `a`.
    names = sorted((field.name for field in fields(schema)), key=len, reverse=True)
    of_fields, others = Errors(), Errors()
    for path, messages in errors.items():
        matching = (name for name in names if f"{path}.".startswith(f"{prefix}.{name}."))
        name = next(matching, None)
        if name is None:
            others[path] = messages
        else:
            of_fields.setdefault(name, []).extend(messages)
    return of_fields, others


# --- the schema ----------------------------------------------------------------------------


def _resolved(schema: Any, root: Json) -> Json:
    """The schema with its reference into `root` resolved. A reference without a target is ignored.
    Returns {} if the chain of references is too long.
    """
    for _ in range(MAX_REFERENCES):
        if not isinstance(schema, dict):
            return {}
        if "$ref" not in schema:
            return schema
        target: Any = root
        for part in unquote(schema["$ref"]).split("/")[1:]:
            name = part.replace("~1", "/").replace("~0", "~")
            target = target.get(name) if isinstance(target, dict) else None
        siblings = {name: value for name, value in schema.items() if name != "$ref"}
        schema = {**target, **siblings} if isinstance(target, dict) else siblings
    return {}


def _without_null(schema: Json, root: Json) -> tuple[Json, bool]:
    """The schema without null as an alternative, and whether null was an alternative."""
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds and len(kinds) == 2:
        (kind,) = (name for name in kinds if name != "null")
        return {**schema, "type": kind}, True
    variants = schema.get("anyOf")
    others = [variant for variant in variants or () if variant != {"type": "null"}]
    if isinstance(variants, list) and len(others) == 1 and len(variants) == 2:
        siblings = {name: value for name, value in schema.items() if name != "anyOf"}
        return {**_resolved(others[0], root), **siblings}, True
    return schema, False


def _whole(bound: Any) -> int | None:
    return int(bound) if isinstance(bound, int | float) else None


def _text(value: Any) -> str:
    return strict_json.dumps(value).decode()


def _number(text: str) -> Any:
    """A number from a form. Notations that JSON does not allow, such as 07 and .5, are accepted."""
    try:
        return _loads(str(Decimal(text)))
    except InvalidOperation:
        raise ValueError("Not a number.") from None
    except ValueError as error:
        raise ValueError(f"Not usable: {error}.") from None


def _in_utc(text: str) -> str:
    """A time in UTC, in the format of an HTML `datetime-local` field; other text is unchanged."""
    try:
        return datetime.fromisoformat(text).astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (ValueError, OverflowError):
        return text


def _with_zone(text: str) -> str:
    """An RFC 3339 time; a date and time without a zone is interpreted as UTC."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return text
    return text if time.tzinfo else f"{time.isoformat()}Z"


def errors_of(error: Exception) -> dict[str, Any]:
    """The messages of `error` by field. Raises `error` again if it has no messages about fields."""
    errors = from_exception(error).members.get("errors")
    if not errors:
        raise error
    return dict(errors)


def sentence_of(errors: Mapping[str, Any]) -> str:
    return " ".join(f"{sentence[:1].upper()}{sentence[1:]}" for sentence in sentences(errors))


# --- the input of a task: fields from its agent's schema, or one JSON text -----------------


@dataclass(frozen=True)
class InputForm:
    """The input of a task, typed into fields or as one JSON text, and the errors by field."""

    # The agent's input schema as JSON text.
    stored_schema: str
    typed: Texts = field(default_factory=dict)
    # The input as JSON text; None if the form has fields.
    text: str | None = None
    errors: Errors = field(default_factory=dict)

    @cached_property
    def _schema(self) -> Any:
        return _loads(self.stored_schema)

    @property
    def fields(self) -> list[Field]:
        """The fields; required fields are first."""
        form_fields = fields(self._schema, self.typed, self.errors)
        return sorted(form_fields, key=lambda field: not field.is_required)

    def value(self) -> Any:
        """The input. Raises ValidationError with errors of `input` or `input.<name>`."""
        errors: Errors = {}
        if self.text is None:
            content, errors = content_of(self._schema, self.typed)
        else:
            text = self.text.encode()
            try:
                with large_json_slot(text):
                    content = strict_json.loads_request(text)
            except ValueError as error:
                raise ValidationError({"input": [f"Not valid JSON: {error}."]}) from error
        problems = input_problems(self.stored_schema, _text(content))
        # If the text of a field is invalid, its error replaces the errors from the schema.
        if problems := problems | {f"input.{name}": messages for name, messages in errors.items()}:
            raise ValidationError(problems)
        return content

    def refused(self, error: Exception) -> tuple["InputForm", str]:
        """The form with the errors of its fields, and a message with the other errors.

        Raises `error` again if it is not about the request.
        """
        of_fields: Errors = {}
        others = errors_of(error)
        if self.text is None:
            of_fields, others = by_property(self._schema, others, "input")
        reason = sentence_of(others) or "Fix the errors below."
        return replace(self, errors=of_fields), f"Nothing was started. {reason}"


def from_request(schema: str, typed: Texts, default: str = "") -> InputForm:
    """The input in a submitted form; `default` is used instead of an empty JSON text."""
    if "fields" in typed.get("as", ()):
        return InputForm(schema, typed)
    text = "".join(typed.get("input", ()))
    return InputForm(schema, text=text if text.strip() else default)


def begun(schema: str, stored: str | None = None, is_text: bool = False) -> InputForm:
    """The initial form, with the `stored` input or the schema's defaults.

    The form is one JSON text if `is_text` is true or if fields can't show the input.
    """
    by_name = {field.name: field for field in fields(_loads(schema))}
    if stored is not None:
        content = _loads(stored)
        is_text = is_text or not all(
            name in by_name and by_name[name].keeps(value) for name, value in content.items()
        )
    else:
        content = {
            name: field.schema["default"]
            for name, field in by_name.items()
            if "default" in field.schema
        }
    if is_text or not by_name:
        return InputForm(schema, text=pretty(_text(content)))
    typed = {by_name[name].key: by_name[name].texts_of(value) for name, value in content.items()}
    return InputForm(schema, typed)


def _loads(text: str) -> Any:
    return strict_json.loads(text.encode())


def labels(text: str) -> dict[str, str]:
    """The labels in a text with one `key=value` per line. Raises ValidationError."""
    lines = [line for line in lines_of(text) if line.strip()]
    if wrong := [line for line in lines if "=" not in line]:
        messages = [f"“{line[:80]}” is not of the form key=value." for line in wrong[:3]]
        raise ValidationError({"labels": messages})
    pairs = [line.partition("=") for line in lines]
    return {key.strip(): value.strip(" \t") for key, _, value in pairs}


def lines_of(text: str) -> list[str]:
    """The lines of a text area; only LF, CR and CR LF end a line."""
    return re.split("\r\n?|\n", text)

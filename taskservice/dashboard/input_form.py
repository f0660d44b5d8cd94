"""The part of a form that has a task's input: fields by its agent's schema, or one JSON text."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from marshmallow import ValidationError

from taskservice.dashboard import forms, schema_form
from taskservice.dashboard.formatting import pretty
from taskservice.dashboard.schema_form import Errors, Field, Json, Texts
from taskservice.schemas import strict_json
from taskservice.schemas.json_schema import MAX_ERRORS, Input

# The value of `as` in a form that has fields.
FIELDS = "fields"


@dataclass(frozen=True)
class InputForm:
    """What is typed, and what is wrong with it."""

    # The agent's, as it is stored.
    schema: str
    # None while the input is one JSON text.
    typed: Texts | None
    text: str = ""
    errors: Errors = field(default_factory=dict)

    @property
    def fields(self) -> list[Field]:
        """The fields, those that are required first; none for one JSON text."""
        if self.typed is None:
            return []
        found = schema_form.fields(self._schema, self.typed, self.errors)
        return sorted(found, key=lambda each: not each.is_required)

    @property
    def can_have_fields(self) -> bool:
        return bool(self._schema.get("properties"))

    @property
    def _schema(self) -> Json:
        return _loads(self.schema)

    def value(self) -> Any:
        """The input. Raises ValidationError, under `input` or `input.<name>`."""
        content, errors = self._content()
        given = Input(strict_json.dumps(content).decode())
        misfits = {} if given.fits(self.schema) else given.check(self.schema)
        # What a field lacks is said once.
        found = misfits | _under_input(errors)
        if found:
            raise ValidationError(found)
        return content

    def _content(self) -> tuple[Any, Errors]:
        if self.typed is None:
            return _parsed(self.text), {}
        return schema_form.content_of(self._schema, self.typed)

    def refused(self, errors: Mapping[str, Any]) -> tuple["InputForm", str]:
        """The form with these errors beside its fields, and a sentence with the other ones."""
        if self.typed is None:
            return self, forms.sentence_of(errors)
        own = {path: messages for path, messages in errors.items() if self._has_field(path)}
        others = {path: messages for path, messages in errors.items() if path not in own}
        found = schema_form.by_property(self._schema, own, "input")
        return replace(self, errors=found), forms.sentence_of(others) or "See below."

    def _has_field(self, path: str) -> bool:
        found = schema_form.by_property(self._schema, {path: []}, "input")
        return path.startswith("input.") and "" not in found

    def switched(self) -> tuple["InputForm", str]:
        """The form with fields instead of JSON, or the other way round.

        It stays as it is if that would lose something, and the sentence says what.
        """
        try:
            return (self._with_fields() if self.typed is None else self._as_text()), ""
        except ValidationError as error:
            return self.refused(forms.errors_of(error))

    def _with_fields(self) -> "InputForm":
        content = _parsed(self.text)
        if not isinstance(content, dict):
            raise ValidationError({"input": ["The form can show only an object."]})
        if lost := schema_form.not_shown(self._schema, content):
            said = {name: ["The form cannot show it."] for name in lost[:MAX_ERRORS]}
            raise ValidationError(_under_input(said))
        return InputForm(self.schema, schema_form.texts_of(self._schema, content))

    def _as_text(self) -> "InputForm":
        content, errors = schema_form.content_of(self._schema, self.typed or {}, needs_all=False)
        if errors:
            raise ValidationError(_under_input(errors))
        return InputForm(self.schema, None, pretty(strict_json.dumps(content).decode()))


def of_request(schema: str, typed: Texts, default: str = "") -> InputForm:
    """What a form has sent; `default` stands for an empty JSON text."""
    has_fields = FIELDS in typed.get("as", ())
    text = "".join(typed.get("input", ()))
    return InputForm(schema, typed if has_fields else None, text if text.strip() else default)


def with_defaults(schema: str) -> InputForm:
    """The form of a new task."""
    form = InputForm(schema, schema_form.defaults(_loads(schema)))
    return form if form.can_have_fields else InputForm(schema, None, "{}")


def with_input(schema: str, stored: str) -> InputForm:
    """The form that begins with an input: as JSON if fields cannot show all of it."""
    content = _loads(stored)
    form = InputForm(schema, None, pretty(stored))
    if form.can_have_fields and not schema_form.not_shown(_loads(schema), content):
        return InputForm(schema, schema_form.texts_of(_loads(schema), content))
    return form


def _loads(text: str) -> Json:
    value: Json = strict_json.loads(text.encode())
    return value


def _parsed(text: str) -> Any:
    """The JSON that is typed. Raises ValidationError."""
    try:
        return strict_json.loads(text.encode())
    except ValueError as error:
        raise ValidationError({"input": [f"It is not valid JSON: {error}."]}) from error


def _under_input(errors: Errors) -> Errors:
    return {f"input.{name}": messages for name, messages in errors.items()}

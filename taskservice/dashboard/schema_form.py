"""A form made from a JSON Schema: its fields, and what is typed in them as JSON."""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeAlias
from urllib.parse import quote

import orjson
from marshmallow import ValidationError
from werkzeug.datastructures import MultiDict

from taskservice.auth import Caller
from taskservice.dashboard.formatting import pretty, visible
from taskservice.database.types import AnyRow
from taskservice.errors import Problem
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions
from taskservice.schemas.json_schema import MAX_ERRORS, Input, question_keywords_problem
from taskservice.schemas.tasks import question_schema
from taskservice.services import questions as question_queries
from taskservice.terms import ANSWERED, API_PREFIX

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
    names = sorted((each.name for each in _properties(schema)), key=len, reverse=True)
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
    properties, required = schema.get("properties"), schema.get("required")
    # Schemas of old imports were not checked.
    properties = properties if isinstance(properties, dict) else {}
    required = required if isinstance(required, list) else []
    for name, each in properties.items():
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


# What forms share: their texts, and what is wrong with them in words.


def texts(form: MultiDict[str, str]) -> dict[str, list[str]]:
    """The texts of each field, as the API would have them: without NUL, lines ending at LF."""
    return {
        name: [text.replace("\0", "\ufffd").replace("\r\n", "\n") for text in values]
        for name, values in form.lists()
    }


def sentence(error: Problem | ValidationError) -> str:
    """What is wrong, for a person. Raises an error that is not about the form's fields."""
    return sentence_of(errors_of(error))


def errors_of(error: Problem | ValidationError) -> dict[str, Any]:
    """Field -> what is wrong with it. Raises an error that is not about the form's fields."""
    errors: Any = error.messages if isinstance(error, ValidationError) else error.more.get("errors")
    if not errors:
        raise error
    return dict(errors)


def sentence_of(errors: Mapping[str, Any]) -> str:
    return " ".join(
        f"{field[:1].upper()}{field[1:]}: {_message_text(messages)}"
        for field, messages in errors.items()
    )


def _message_text(messages: Any) -> str:
    if isinstance(messages, dict):
        return " ".join(f"{key}: {_message_text(inner)}" for key, inner in messages.items())
    return messages if isinstance(messages, str) else " ".join(messages)


# The part of a form that has a task's input: fields by its agent's schema, or one JSON text.

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
        found = fields(self._schema, self.typed, self.errors)
        return sorted(found, key=lambda each: not each.is_required)

    @property
    def can_have_fields(self) -> bool:
        return any(_properties(self._schema))

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
            return _parsed_input(self.text), {}
        return content_of(self._schema, self.typed)

    def refused(self, errors: Mapping[str, Any]) -> tuple["InputForm", str]:
        """The form with these errors beside its fields, and a sentence with the other ones."""
        if self.typed is None:
            return self, sentence_of(errors)
        own = {path: messages for path, messages in errors.items() if self._has_field(path)}
        others = {path: messages for path, messages in errors.items() if path not in own}
        found = by_property(self._schema, own, "input")
        return replace(self, errors=found), sentence_of(others) or "See below."

    def _has_field(self, path: str) -> bool:
        found = by_property(self._schema, {path: []}, "input")
        return path.startswith("input.") and "" not in found

    def switched(self) -> tuple["InputForm", str]:
        """The form with fields instead of JSON, or the other way round.

        It stays as it is if that would lose something, and the sentence says what.
        """
        try:
            return (self._with_fields() if self.typed is None else self._as_text()), ""
        except ValidationError as error:
            return self.refused(errors_of(error))

    def _with_fields(self) -> "InputForm":
        content = _parsed_input(self.text)
        if not isinstance(content, dict):
            raise ValidationError({"input": ["The form can show only an object."]})
        if lost := not_shown(self._schema, content):
            said = {name: ["The form cannot show it."] for name in lost[:MAX_ERRORS]}
            raise ValidationError(_under_input(said))
        return InputForm(self.schema, texts_of(self._schema, content))

    def _as_text(self) -> "InputForm":
        content, errors = content_of(self._schema, self.typed or {}, needs_all=False)
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
    form = InputForm(schema, defaults(_loads(schema)))
    return form if form.can_have_fields else InputForm(schema, None, "{}")


def with_input(schema: str, stored: str) -> InputForm:
    """The form that begins with an input: as JSON if fields cannot show all of it."""
    content = _loads(stored)
    form = InputForm(schema, None, pretty(stored))
    if form.can_have_fields and not not_shown(_loads(schema), content):
        return InputForm(schema, texts_of(_loads(schema), content))
    return form


def _loads(text: str) -> Json:
    value: Json = strict_json.loads(text.encode())
    return value


def _parsed_input(text: str) -> Any:
    """The JSON that is typed. Raises ValidationError."""
    try:
        return strict_json.loads(text.encode())
    except ValueError as error:
        raise ValidationError({"input": [f"It is not valid JSON: {error}."]}) from error


def _under_input(errors: Errors) -> Errors:
    return {f"input.{name}": messages for name, messages in errors.items()}


# Questions as pages show them: a form while one is open, and then how it ended.

# The list of tasks has forms of the oldest SHOWN_TASKS that ask, and counts up to MAX_TASKS.
SHOWN_TASKS = 10
MAX_TASKS = 100
# A page has the forms of its first questions, up to these numbers of characters of messages and
# schemas, of one question and of all; the other ones are links to a page of their own, and past
# MAX_SHOWN of the list, a number.
MAX_FORM, MAX_FORMS = 6_000, 24_000
MAX_SHOWN = 20
# A link has the beginning of the message.
MAX_LINK = 200
# The page of a task has this many questions that are no longer open.
SHOWN_ENDED = 20
# It shows answers of up to this many characters.
MAX_SHOWN_ANSWER = 16 * 1024
# A question with one choice of so few and so short options is answered by a click.
MAX_BUTTONS, MAX_BUTTON_LABEL = 4, 40
MAX_ANSWER = 200
# The list shows this many characters of a task's input.
MAX_INPUT = 80


class QuestionForm(NamedTuple):
    """An open question, and its fields."""

    id: str
    task_id: str
    message: str
    asked_at: str
    expires_at: str | None
    # None where its form is too large for the page: it has a page of its own.
    fields: list[Field] | None
    # Why it takes no answer: its schema is of an old import, which did not check it.
    problem: str | None = None

    @property
    def buttons(self) -> list[Choice]:
        """The options of its only field, if they are few and short."""
        if self.fields is None or len(self.fields) != 1 or self.fields[0].kind != CHOICE:
            return []
        choices = self.fields[0].choices
        is_short = all(len(choice.label) <= MAX_BUTTON_LABEL for choice in choices)
        fits = is_short and len(choices) <= MAX_BUTTONS and self.fields[0].is_required
        return choices if fits else []


class EndedQuestion(NamedTuple):
    """A question that is no longer open, and its answer: (label, text) of each value."""

    id: str
    message: str
    asked_at: str
    state: str
    answer: list[tuple[str, str]]
    answered_by: str | None


class AskingTask(NamedTuple):
    """A task that asks something."""

    id: str
    name: str
    agent_id: str
    created_at: str
    # Its beginning; empty if it says nothing.
    input: str
    questions: list[QuestionForm]
    # How many it has beside these.
    others: int


@dataclass(frozen=True)
class Asking:
    """The tasks that ask something: the first ones, and how many there are."""

    tasks: list[AskingTask]
    count: int

    @property
    def is_more(self) -> bool:
        return self.count >= MAX_TASKS


def loaded(row: AnyRow) -> Json:
    """A question as the API answers it."""
    question: Json = strict_json.loads(strict_json.dumps(question_schema.dump(row)))
    return question


def form(
    question: Json, task_id: str, typed: Texts | None = None, errors: Errors | None = None
) -> QuestionForm:
    """The form of an open question, by default with the defaults of its schema."""
    schema = question["schema"]
    typed = defaults(schema) if typed is None else typed
    return QuestionForm(
        id=question["id"],
        task_id=task_id,
        message=question["message"],
        asked_at=question["askedAt"],
        expires_at=question["expiresAt"],
        fields=fields(schema, typed, errors or {}),
        problem=question_keywords_problem(schema),
    )


@dataclass
class Space:
    """What is left of a page for questions: for their forms, and how many it can show."""

    characters: int = MAX_FORMS
    questions: int = MAX_SHOWN

    def form_or_link(self, question: Json, task_id: str) -> QuestionForm:
        """The question with its form if that has a place on the page, else without fields."""
        self.questions -= 1
        size = len(question["message"]) + len(strict_json.dumps(question["schema"]))
        if size <= min(MAX_FORM, self.characters):
            self.characters -= size
            return form(question, task_id)
        message = question["message"]
        return QuestionForm(
            id=question["id"],
            task_id=task_id,
            message=message if len(message) <= MAX_LINK else f"{message[:MAX_LINK]}…",
            asked_at=question["askedAt"],
            expires_at=question["expiresAt"],
            fields=None,
        )


def of_task(task: Any) -> list[QuestionForm]:
    """The open questions of a task, oldest first."""
    space = Space()
    return [space.form_or_link(question, task.id) for question in open_questions(task.questions)]


def ended(task_id: str) -> list[EndedQuestion]:
    """The last questions of a task that are no longer open, newest first."""
    rows = question_queries.ended(task_id, SHOWN_ENDED, MAX_SHOWN_ANSWER)
    return [_ended(loaded(row), task_id) for row in rows]


def _ended(question: Json, task_id: str) -> EndedQuestion:
    answer = shown(question["schema"], question["answer"] or {})
    if question["state"] == ANSWERED and question["answer"] is None:
        path = f"{API_PREFIX}/task/{task_id}/question/{question['id']}"
        answer = [("answer", f"too long for this page: GET {path}")]
    return EndedQuestion(
        id=question["id"],
        message=question["message"],
        asked_at=question["askedAt"],
        state=question["state"],
        answer=answer,
        answered_by=question["answeredBy"],
    )


def asking(caller: Caller) -> Asking:
    """The caller's tasks that ask something; an agent key may not answer, and sees none."""
    if caller.agent_id is not None:
        return Asking([], 0)
    rows = question_queries.asking_tasks(caller, SHOWN_TASKS + 1, MAX_INPUT + 1)
    space = Space()
    tasks = [_asking(row, space) for row in rows]
    # Upkeep has not yet seen that the questions of the others have expired.
    tasks = [task for task in tasks if task.questions or task.others]
    if len(rows) <= SHOWN_TASKS:
        return Asking(tasks, len(tasks))
    return Asking(tasks[:SHOWN_TASKS], question_queries.count_asking_tasks(caller, MAX_TASKS))


def _asking(row: AnyRow, space: Space) -> AskingTask:
    text = row.input if len(row.input) <= MAX_INPUT else f"{row.input[:MAX_INPUT]}…"
    given = "" if text == "{}" else visible(text)
    questions = open_questions(row.questions)
    shown = questions[: space.questions]
    forms = [space.form_or_link(question, row.id) for question in shown]
    others = len(questions) - len(shown)
    return AskingTask(row.id, row.name, row.agent_id, row.created_at, given, forms, others)


def closed_sentence(question: Json) -> str:
    """Why a question takes no answer any more, with the one that it has."""
    name = question["answeredBy"]
    by = f" by key “{name}”" if name else ""
    if question["state"] != ANSWERED:
        return f"Nothing was sent. The question is {question['state']}{by}."
    answer = answer_text(question["schema"], question["answer"])
    return f"Nothing was sent. The question is already answered{by}: {answer}"


def answer_text(schema: Json, content: Json) -> str:
    """An answer in one line."""
    pairs: Sequence[tuple[str, str]] = shown(schema, content)
    only_one = len(list(_properties(schema))) == 1
    text = "; ".join(value if only_one else f"{label}: {value}" for label, value in pairs)
    line = " ".join(text.split()) or "accepted"
    return line if len(line) <= MAX_ANSWER else f"{line[:MAX_ANSWER]}…"

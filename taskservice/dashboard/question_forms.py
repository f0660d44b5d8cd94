"""Questions as pages show them: a form while one is open, and then how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from taskservice.auth import Caller
from taskservice.dashboard import schema_form
from taskservice.dashboard.formatting import visible
from taskservice.dashboard.schema_form import CHOICE, Choice, Errors, Field, Json, Texts
from taskservice.database.types import AnyRow
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions
from taskservice.schemas.tasks import question_schema
from taskservice.services import questions as question_queries
from taskservice.terms import ANSWERED, API_PREFIX

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
    typed = schema_form.defaults(schema) if typed is None else typed
    return QuestionForm(
        id=question["id"],
        task_id=task_id,
        message=question["message"],
        asked_at=question["askedAt"],
        expires_at=question["expiresAt"],
        fields=schema_form.fields(schema, typed, errors or {}),
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
    answer = schema_form.shown(question["schema"], question["answer"] or {})
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
    pairs: Sequence[tuple[str, str]] = schema_form.shown(schema, content)
    only_one = len(schema["properties"]) == 1
    text = "; ".join(value if only_one else f"{label}: {value}" for label, value in pairs)
    line = " ".join(text.split()) or "accepted"
    return line if len(line) <= MAX_ANSWER else f"{line[:MAX_ANSWER]}…"

"""Forms for open questions, and outcomes of closed questions, on pages and for answer links."""

import re
from collections.abc import Sequence
from typing import Any

from flask import Blueprint, Response, flash, request

from taskservice.auth import Caller, caller
from taskservice.dashboard import schema_form
from taskservice.dashboard.pages import page, redirect_to, redirect_to_page, texts
from taskservice.dashboard.schema_form import CHOICE, Choice, Errors, Field, Json, Texts
from taskservice.database import clock
from taskservice.database.rows import QuestionRow
from taskservice.error_codes import QUESTION_CLOSED
from taskservice.errors import Problem
from taskservice.operations import request_log
from taskservice.schemas import answer_schema, strict_json
from taskservice.schemas.fields import open_questions
from taskservice.schemas.tasks import question_schema
from taskservice.services import links, tasks
from taskservice.services import questions as question_service
from taskservice.terminal import escaped, shortened
from taskservice.terms import ACCEPT, ANSWERED, DECLINE, LINK, OPEN

blueprint = Blueprint("questions", __name__)
answers = Blueprint("answer_links", __name__, url_prefix="/answer")

# Maximum number of questions in the Inbox.
SHOWN_QUESTIONS = 10
# Maximum number of closed questions on the task page.
SHOWN_ENDED = 20
# Maximum number of options that are shown as buttons, and maximum length of their labels.
MAX_BUTTONS, MAX_BUTTON_LABEL = 4, 40
# The line that opens a code block in Markdown; a fence of the same length closes the block.
FENCE = re.compile(r"(`{3,})[^`]*")
# Maximum number of characters of a task's input in the Inbox, including an ellipsis.
MAX_INPUT = 81


@blueprint.route("/tasks/<task_id>/questions/<question_id>", methods=["GET", "POST"])
def answer(task_id: str, question_id: str) -> Response:
    caller.require_user_key()
    question = loaded(question_service.get(caller, task_id, question_id))
    is_open, typed, errors = question["state"] == OPEN, None, Errors()
    if request.method == "POST":
        typed = texts(request.form)
        content, errors = submitted(question, typed)
        if not errors or not is_open:
            _answer(task_id, question, content)
            # Return to the page that contains the form: the Inbox or, by default, the task page.
            return redirect_to_page(request.form.get("back", ""), "tasks.show", task_id=task_id)
    elif not is_open:
        return redirect_to("tasks.show", task_id=task_id, _anchor="ended")
    return page(
        "question.html",
        422 if errors else 200,
        task=tasks.get(caller, task_id),
        question=form(question, task_id, typed, errors),
        back=request.values.get("back", ""),
    )


def _answer(task_id: str, question: Json, content: Json | None) -> None:
    """Answer the question, or decline it if `content` is None. The next page shows a message with
    the result, or with the earlier outcome if the question was already closed.
    """
    try:
        action = DECLINE if content is None else ACCEPT
        question_service.answer(caller, task_id, question["id"], action, content)
        flash(outcome_text(question, content))
    except Problem as problem:
        if problem.code != QUESTION_CLOSED:
            raise
        flash(_closed_sentence(loaded(question_service.get(caller, task_id, question["id"]))))


def submitted(question: Json, typed: Texts) -> tuple[Json | None, Errors]:
    """The answer in a submitted form, or None if the person declines, and the errors by field."""
    if request.form.get("action") == DECLINE:
        return None, {}
    schema = question["schema"]
    content, errors = schema_form.content_of(schema, typed)
    problems = answer_schema.answer_problems(schema, content)
    return content, schema_form.by_property(schema, problems, "content")[0] | errors


def outcome_text(question: Json, content: Json | None) -> str:
    """The message that confirms an answer, or a decline if `content` is None."""
    return "Declined." if content is None else f"Answered: {_answer_text(question, content)}"


def _closed_sentence(question: Json) -> str:
    """The message that a question is already closed, with its answer if it was answered."""
    name = question["answeredBy"]
    by = f" by {'an answer link' if name == LINK else f'key “{name}”'}" if name else ""
    if question["state"] != ANSWERED:
        return f"Nothing was sent. The question is {question['state']}{by}."
    answer = _answer_text(question, question["answer"])
    return f"Nothing was sent. The question is already answered{by}: {answer}"


def _answer_text(question: Json, content: Json) -> str:
    pairs = _in_words(question, content)
    only_one = len(schema_form.fields(question["schema"])) == 1
    text = "; ".join(value if only_one else f"{label}: {value}" for label, value in pairs)
    return shortened(" ".join(text.split()) or "accepted", 200)


def _in_words(question: Json, content: Json) -> list[tuple[str, str]]:
    """The label and the text of each value in an answer."""
    return [
        (field.label, field.in_words(content[field.name]))
        for field in schema_form.fields(question["schema"])
        if field.name in content
    ]


def loaded(row: QuestionRow) -> Json:
    """A stored question as the API returns it."""
    return dict(strict_json.loads(strict_json.dumps(question_schema.dump(row))))


# For the Inbox and the task page, each question is a dict as the API returns it, with `parts`,
# which are the texts and code blocks of its message. An open question also has `taskId`, `fields`
# and `buttons`.


def form(
    question: Json, task_id: str | None, typed: Texts | None = None, errors: Errors | None = None
) -> Json:
    """An open question with its form. On the page of an answer link, `task_id` is None."""
    fields = schema_form.fields(question["schema"], typed, errors)
    extra = {"taskId": task_id, "fields": fields, "buttons": _buttons(fields)}
    return {**question, **extra, "parts": _parts(question["message"])}


def _parts(message: str) -> list[tuple[str, str | None]]:
    """The message as pairs: a text, and the code block that follows the text, if any."""
    lines = message.replace("\r\n", "\n").split("\n")
    last = {line: number for number, line in enumerate(lines)}
    parts: list[tuple[str, str | None]] = []
    start = number = 0
    while number < len(lines):
        fence = FENCE.fullmatch(lines[number])
        if fence and last.get(fence[1], 0) > number:
            end = lines.index(fence[1], number + 1)
            parts.append(("\n".join(lines[start:number]), "\n".join(lines[number + 1 : end])))
            number, start = end, end + 1
        number += 1
    return [*parts, ("\n".join(lines[start:]), None)]


def _buttons(fields: Sequence[Field]) -> list[Choice]:
    """The options of the only field if they are few and short; otherwise an empty list."""
    if len(fields) != 1 or fields[0].kind != CHOICE or not fields[0].is_required:
        return []
    choices = fields[0].choices
    is_short = all(len(choice.label) <= MAX_BUTTON_LABEL for choice in choices)
    return choices if is_short and len(choices) <= MAX_BUTTONS else []


def forms(task: Any) -> list[Json]:
    """The open questions of a task, oldest first."""
    return [form(question, task.id) for question in open_questions(task.questions)]


def ended(task_id: str) -> list[Json]:
    """The last closed questions of a task, newest first, with their answers as text."""
    questions = map(loaded, question_service.ended(task_id, SHOWN_ENDED))
    return [
        {
            **question,
            "answer": _in_words(question, question["answer"] or {}),
            "parts": _parts(question["message"]),
        }
        for question in questions
    ]


def asking(caller: Caller) -> list[Json]:
    """The open questions that expire first, and then the oldest, each with its task."""
    asked: list[Json] = [
        {
            "task": task,
            "input": "" if task.input == "{}" else escaped(shortened(task.input, MAX_INPUT)),
            "question": question,
        }
        for task in question_service.asking_tasks(caller, SHOWN_QUESTIONS, MAX_INPUT + 1)
        for question in forms(task)
    ]
    return sorted(asked, key=lambda entry: _urgency(entry["question"]))[:SHOWN_QUESTIONS]


def _urgency(question: Json) -> tuple[bool, str, str]:
    expires_at = question["expiresAt"]
    return expires_at is None, expires_at or "", question["askedAt"]


# The page of an answer link: a question and its form.


@answers.route("/<path:token>", methods=["GET", "POST"])
def answer_by_link(token: str) -> Response:
    """Show the form of a question, or answer the question. Access requires only the token in the
    link, no session and no CSRF token.

    A link preview sends only a GET, so it can't answer.
    """
    row = links.find_question(token)
    question, typed, errors = loaded(row), None, Errors()
    if request.method == "POST":
        typed = texts(request.form)
        content, errors = submitted(question, typed)
        if not errors:
            links.answer(row, DECLINE if content is None else ACCEPT, content)
            request_log.add_details(user=row.user_name, key=LINK)
            return page("answer_link.html", outcome=outcome_text(question, content), at=clock.now())
    return page(
        "answer_link.html",
        422 if errors else 200,
        task_name=row.task_name,
        agent_name=row.agent_name,
        question=form(question, None, typed, errors),
    )

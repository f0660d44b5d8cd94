"""Links that let anyone view a task, and links that let anyone answer a question."""

import hmac
import secrets
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode
from uuid import UUID

from flask import current_app
from sqlalchemy import bindparam, delete, insert, select

from taskservice import auth
from taskservice.auth import Caller, is_of_agent
from taskservice.database import clock
from taskservice.database.models import Agent, Link, Question, Task, User
from taskservice.database.rows import LinkRow, QuestionRow
from taskservice.database.transactions import read_all, read_one, transaction
from taskservice.database.types import AnySelect, time_from_now
from taskservice.error_codes import TOO_MANY_LINKS
from taskservice.errors import Problem, invalid, not_found, require
from taskservice.schemas import answer_schema, strict_json
from taskservice.schemas.tasks import LINK_COLUMNS
from taskservice.services import questions, tasks
from taskservice.terms import LINK, LINK_DAYS, MAX_LINK_DAYS, MAX_LINKS, OPEN

_DAY_SECONDS = 86_400.0
_LIVE: AnySelect = (
    select(*LINK_COLUMNS)
    .where(Link.task_id == bindparam("task_id"), Link.expires_at > bindparam("now"))
    .order_by(Link.created_at, Link.id)
)


def create(caller: Caller, task_id: str, expires_at: str | None) -> Any:
    """Create a link to a task; returns it with its `token`. Raises 404, 409 and 422."""
    now = clock.now()
    expires_at = expires_at or clock.now(LINK_DAYS * _DAY_SECONDS)
    if not now < expires_at <= clock.now(MAX_LINK_DAYS * _DAY_SECONDS):
        raise invalid({"expiresAt": [f"Must be within the next {MAX_LINK_DAYS} days."]})
    token = secrets.token_urlsafe(24)
    link = {
        "id": clock.new_id(),
        "task_id": task_id,
        "digest": auth.digest(token),
        "created_at": now,
        "expires_at": expires_at,
    }
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        connection.execute(delete(Link).where(Link.task_id == task_id, Link.expires_at <= now))
        if len(connection.execute(_LIVE, {"task_id": task_id, "now": now}).all()) >= MAX_LINKS:
            raise Problem(409, f"The task has {MAX_LINKS} links already", code=TOO_MANY_LINKS)
        connection.execute(insert(Link), link)
    return SimpleNamespace(**link, token=token)


def list_all(caller: Caller, task_id: str) -> Sequence[LinkRow]:
    """The links to a task that have not expired, oldest first. Raises 404."""
    tasks.get_version(caller, task_id)
    return read_all(_LIVE, task_id=task_id, now=clock.now())


def revoke(caller: Caller, task_id: str, link_id: str) -> LinkRow:
    """Delete a link to a task; pages and streams that use it end within seconds. Raises 404."""
    with transaction() as connection:
        tasks.get_locked(connection, caller, task_id)
        this_link = (Link.task_id == task_id, Link.id == link_id)
        link = connection.execute(
            delete(Link).where(*this_link).returning(*LINK_COLUMNS)
        ).one_or_none()
    return cast(LinkRow, require(link, "link"))


# Answer links are not stored. Each link lets anyone answer one question, once, without a key.

# A token contains the ID of the question, and 128 bits of an HMAC with the service's secret key.
_ID_BYTES, _CODE_BYTES = 16, 16

_QUESTION = (
    select(
        *questions.COLUMNS,
        Question.task_id,
        Task.user_id,
        Task.name.label("task_name"),
        Agent.name.label("agent_name"),
        User.name.label("user_name"),
    )
    .join(Task, Task.id == Question.task_id)
    .join(User, User.id == Task.user_id)
    .join(Agent, is_of_agent)
    .where(
        Question.id == bindparam("question_id"),
        # A link is valid for a week, and only while its question is open.
        Question.asked_at > time_from_now(-7 * _DAY_SECONDS),
    )
)


def token_of(question_id: str) -> str:
    """The token of a question's answer link; a question always has the same token."""
    id_bytes = UUID(question_id).bytes
    key = str(current_app.config["SECRET_KEY"]).encode()
    code = hmac.digest(key, b"answer link " + id_bytes, "sha256")[:_CODE_BYTES]
    return urlsafe_b64encode(id_bytes + code).decode().rstrip("=")


def find_question(token: str) -> QuestionRow:
    """The open question that a token belongs to, with its task, agent and user. Raises 404."""
    try:
        question_id = str(UUID(bytes=urlsafe_b64decode(f"{token}==")[:_ID_BYTES]))
    except ValueError:
        raise not_found("question") from None
    is_ours = hmac.compare_digest(token.encode(), token_of(question_id).encode())
    question: QuestionRow | None = read_one(_QUESTION, question_id=question_id) if is_ours else None
    if question is None or question.state != OPEN:
        raise not_found("question")
    return question


def answer(question: QuestionRow, action: str, content: dict[str, Any] | None) -> None:
    """Answer or decline a question that `find_question` returned; raises 404, 409 and 422."""
    caller = Caller(question.user_id, None, "", LINK, question.user_name)
    ids = (question.task_id, question.id)
    questions.answer(caller, *ids, action, content, is_repeatable=False)


def choices(schema: Mapping[str, Any]) -> tuple[list[tuple[str, str]], list[str]]:
    """The label and the form data of each possible answer, if there are at most three; and the
    title and description of the field, which belong to the question.

    The lists are empty unless the question has only one field, or only one required field, since an
    answer can omit optional fields.
    """
    fields = schema["properties"]
    names = list(fields) if len(fields) == 1 else schema.get("required", [])
    if len(names) != 1:
        return [], []
    [name], field = names, fields[names[0]]
    options = [] if field["type"] == "array" else answer_schema.options(field)
    if len(options) > 3:
        return [], []
    title, description = (str(field.get(key) or "") for key in ("title", "description"))
    title = title if title.casefold() != name.casefold() else ""
    key = answer_schema.field_name(name)
    answers = [
        (label, urlencode({key: strict_json.dumps(value).decode()})) for value, label in options
    ]
    return answers, [text for text in (title, description) if options and text]

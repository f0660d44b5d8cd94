"""Answer links: each answers one question, once, without a key; nothing is stored for them."""

import hmac
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode
from uuid import UUID

from flask import current_app
from sqlalchemy import and_, bindparam, select

from taskservice import terms
from taskservice.auth import Caller
from taskservice.database.models import Agent, Question, Task, User
from taskservice.database.transactions import read_one
from taskservice.database.types import AnyRow, Identifier, time_from_now
from taskservice.errors import not_found
from taskservice.schemas import json_schema, strict_json
from taskservice.services import questions

# A link is valid for this time after its question was asked, if that stays open.
VALID_SECONDS = 7 * 86_400.0
# Maximum number of choices that become buttons of a message.
MAX_CHOICES = 3
# A token has the id of the question, and a code of 128 bits that proves that this service made it.
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
    .join(Agent, and_(Agent.user_id == Task.user_id, Agent.id == Task.agent_id))
    .where(
        Question.id == bindparam("question_id", type_=Identifier),
        Question.asked_at > time_from_now(-VALID_SECONDS),
    )
)


def token_of(question_id: str) -> str:
    """The token in the answer link of a question, always the same."""
    own = UUID(question_id).bytes
    key = str(current_app.config["SECRET_KEY"]).encode()
    code = hmac.digest(key, b"answer link " + own, "sha256")[:_CODE_BYTES]
    return urlsafe_b64encode(own + code).decode().rstrip("=")


def find(token: str) -> AnyRow:
    """The open question of a token, with `task_name`, `agent_name` and its user. Raises 404."""
    try:
        question_id = str(UUID(bytes=urlsafe_b64decode(f"{token}==")[:_ID_BYTES]))
    except ValueError:
        raise not_found("question") from None
    if not hmac.compare_digest(token.encode(), token_of(question_id).encode()):
        raise not_found("question")
    question: AnyRow | None = read_one(_QUESTION, question_id=question_id)
    if question is None or question.state != terms.OPEN:
        raise not_found("question")
    return question


def answer(question: AnyRow, action: str, content: dict[str, Any] | None) -> None:
    """Answer or decline a question that `find` returned; raises 404, 409 and 422."""
    caller = Caller(question.user_id, None, "", terms.LINK, question.user_name)
    here = (question.task_id, question.id)
    questions.answer(caller, *here, action, content, is_repeatable=False)


def choices(schema: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Label and form of each answer to a question with one field and few choices, else none."""
    if len(schema["properties"]) != 1:
        return []
    [(name, field)] = schema["properties"].items()
    options = [] if field["type"] == "array" else json_schema.options(field)
    if len(options) > MAX_CHOICES:
        return []
    key = json_schema.field_name(name)
    return [
        (label, urlencode({key: strict_json.dumps(value).decode()})) for value, label in options
    ]

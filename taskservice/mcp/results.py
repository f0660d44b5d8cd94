"""A task as the result of a tool, and as an MCP task."""

from itertools import accumulate
from typing import Any

from flask import current_app
from marshmallow import ValidationError

from taskservice import errors as problems
from taskservice.auth import caller
from taskservice.database import clock
from taskservice.database.types import AnyRow, TaskRow
from taskservice.errors import Problem, invalid
from taskservice.mcp.protocol import Call
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions, parse_id
from taskservice.schemas.requests import AnswerQuestionSchema
from taskservice.services import logs
from taskservice.services import questions as question_service
from taskservice.services.search import Found
from taskservice.terminal import escaped, shortened
from taskservice.terms import ACCEPT, API_PREFIX, CANCELLED, COMPLETE, ERROR, MAX_LINE, RUNNING

# The reason for a rejected call, for a model that can correct it.

# Not found, not possible in the current state, invalid.
CORRECTABLE = (404, 409, 422)
REFUSED = (Problem, ValidationError)


def reason(error: Exception) -> str:
    """The reason for an error. Raises the error itself if a corrected call would not help."""
    problem = problems.from_exception(error)
    if problem.status not in CORRECTABLE:
        raise error
    errors = problem.more.get("errors")
    if errors:
        return " ".join(problems.sentences(errors))
    answer = problem.more.get("question", {}).get("answer")
    text = "" if answer is None else f": {strict_json.dumps(answer).decode()}"
    return f"{problem.detail}{text}."


# Questions as MCP forms (elicitation), and the answers of clients.

# The person closed the form and can answer later.
CANCEL = "cancel"

_answer_schema = AnswerQuestionSchema()


def as_forms(questions: list[dict[str, Any]]) -> dict[str, Any]:
    """Id of a question -> the form that a client shows for it."""
    forms = {
        each["id"]: {"mode": "form", "message": each["message"], "requestedSchema": each["schema"]}
        for each in questions
    }
    return {id: {"method": "elicitation/create", "params": form} for id, form in forms.items()}


def answer_forms(task_id: str, responses: Any) -> set[str]:
    """Answer the questions of a task by id; returns those whose form was closed unanswered.

    Ids that the task does not have are ignored. Raises 404, and 422 if some answers are rejected:
    the others are accepted nevertheless.
    """
    if not isinstance(responses, dict):
        raise invalid({"inputResponses": ["Must be an object."]})
    closed, refused = set[str](), dict[str, list[str]]()
    by_id = {key: each for key, each in responses.items() if parse_id(key) == key}
    for question_id in question_service.ids_among(caller, task_id, by_id):
        response = by_id[question_id]
        if isinstance(response, dict) and response.get("action") == CANCEL:
            closed.add(question_id)
        elif response is not None:
            fields = response if isinstance(response, dict) else {}
            # Some clients send an empty content with every action.
            names = ("action", "content") if fields.get("action") == ACCEPT else ("action",)
            try:
                given = {name: fields[name] for name in names if name in fields}
                answer = {"content": None} | _answer_schema.load(given)
                question_service.answer(caller, task_id, question_id, **answer)
            except REFUSED as error:
                refused[f"question {question_id} of task {task_id}"] = [reason(error)]
    if refused:
        raise invalid(refused)
    return closed


# In bytes: of an output, and of a page of a log.
MAX_TEXT = 32 * 1024
# In characters: of a line and of an error in a result, and of a status message.
MAX_SHOWN_LINE = 1_000
MAX_SHOWN_ERROR = 8_000
MAX_STATUS_MESSAGE = 200
LINES_WHILE_RUNNING = 5
LINES_OF_ERROR = 20

POLL_MS, SLOW_POLL_MS = 2_000, 10_000
# The age from which a task is polled less often.
SLOW_POLL_AFTER_SECONDS = 600.0
DAY_SECONDS = 86_400.0

WAITING = "waits for a worker"
WAIT_NEXT = "Call wait_task with this taskId."
ASK_NEXT = (
    "Ask your user, then call answer_task with this taskId and the questionId. If somebody else "
    "will answer, call wait_task."
)


def tool_result(
    structured: dict[str, Any], text: str | None = None, *, is_error: bool = False
) -> dict[str, Any]:
    """The result of a tool; some clients show only the text, some only the structured content."""
    shown = strict_json.dumps(structured).decode() if text is None else text
    result = {"content": [{"type": "text", "text": shown}], "structuredContent": structured}
    return {**result, "isError": True} if is_error else result


def tool_result_of(task: TaskRow) -> dict[str, Any]:
    """The result of the tool that started a task, or that waited for it."""
    return _RESULTS[task.status](task)


def task_header(task: TaskRow | AnyRow) -> dict[str, Any]:
    return {"taskId": task.id, "agentId": task.agent_id, "status": task.status}


def _running_result(task: TaskRow) -> dict[str, Any]:
    structured = {**task_header(task), "log": _last_lines(task, LINES_WHILE_RUNNING)}
    note = task.note or (None if task.claimed_at or task.log_count else WAITING)
    if note:
        structured["note"] = note
    questions = open_questions(task.questions)
    if questions:
        structured["questions"] = [
            {"questionId": each["id"], "message": each["message"], "schema": each["schema"]}
            for each in questions
        ]
    return tool_result({**structured, "next": ASK_NEXT if questions else WAIT_NEXT})


def _complete_result(task: TaskRow) -> dict[str, Any]:
    size = len(task.output.encode())
    if size > MAX_TEXT:
        path = f"{API_PREFIX}/task/{task.id}?fields=output"
        more = {
            "outputStart": truncated(task.output, MAX_TEXT),
            "outputBytes": size,
            "next": f"The output is too long for one result; GET {path} returns all of it.",
        }
        return tool_result({**task_header(task), **more})
    output = strict_json.fragment(task.output)
    value = strict_json.loads(task.output.encode())
    is_text = value.keys() == {"text"} and isinstance(value["text"], str)
    text = value["text"] if is_text else task.output
    return tool_result({**task_header(task), "output": output}, text)


def _error_result(task: TaskRow) -> dict[str, Any]:
    lines = _last_lines(task, LINES_OF_ERROR)
    return tool_result({**task_header(task), "error": error_of(task), "log": lines}, is_error=True)


def error_of(task: TaskRow | AnyRow, length: int = MAX_SHOWN_ERROR) -> dict[str, Any] | None:
    if task.error_type is None:
        return None
    message = shortened(task.error_message or "", length)
    return {"type": task.error_type, "message": message}


_RESULTS = {RUNNING: _running_result, COMPLETE: _complete_result, ERROR: _error_result}


def input_required(task: TaskRow, questions: list[dict[str, Any]]) -> dict[str, Any]:
    """The result that makes a client show forms, and call again with the answers."""
    return {
        "resultType": "input_required",
        "inputRequests": as_forms(questions),
        "requestState": task.id,
    }


def summary(task: AnyRow) -> dict[str, Any]:
    more = {"name": task.name, "createdAt": task.created_at, "finishedAt": task.finished_at}
    optional = {"note": task.note, "error": error_of(task, MAX_SHOWN_LINE)}
    return {**task_header(task), **more, **{name: each for name, each in optional.items() if each}}


def search_result(found: Found, following: str | None) -> dict[str, Any]:
    """The lines that a search found; `following` is the cursor that continues it."""
    structured = found.as_json()
    lines = [f"{hit['taskId']}:{hit['line']}: {hit['text']}" for hit in found.hits]
    if following is not None:
        structured["next"] = following
        until = structured["searched"]["until"]
        lines.append(
            f"There are more tasks or lines: this search stopped at a task of {until}. "
            f"To continue, call search_logs with the same arguments and the cursor {following}"
        )
    return tool_result(structured, "\n".join(lines) or "No line contains this text.")


def background_task(task: TaskRow) -> dict[str, Any]:
    """The result of a call whose task continues in the background."""
    message = _status_message(task)
    return {"resultType": "task", "status": "working", **_polling(task), "statusMessage": message}


def task_state(call: Call, task: TaskRow) -> dict[str, Any]:
    state = _polling(task)
    if task.error_type == CANCELLED:
        return {**state, "status": "cancelled", "statusMessage": task.error_message}
    if task.status != RUNNING:
        # Even if the task failed: `failed` would mean that the call itself failed.
        result = {"resultType": "complete", **tool_result_of(task)}
        return {**state, "status": "completed", "result": result}
    state["statusMessage"] = _status_message(task)
    questions = open_questions(task.questions)
    if questions and call.takes_forms:
        return {**state, "status": "input_required", "inputRequests": as_forms(questions)}
    return {**state, "status": "working"}


def _polling(task: TaskRow) -> dict[str, Any]:
    age = clock.seconds_between(task.created_at, clock.now())
    return {
        "taskId": task.id,
        "createdAt": task.created_at,
        "lastUpdatedAt": task.updated_at,
        "ttlMs": _ttl(task),
        "pollIntervalMs": POLL_MS if age < SLOW_POLL_AFTER_SECONDS else SLOW_POLL_MS,
    }


def _ttl(task: TaskRow) -> int | None:
    """The milliseconds from the task's creation until retention removes it."""
    days: float = current_app.config["RETENTION_DAYS"]
    if not days or task.finished_at is None:
        return None
    lasted = clock.seconds_between(task.created_at, task.finished_at)
    return round((lasted + days * DAY_SECONDS) * 1000)


def _status_message(task: TaskRow) -> str:
    questions = open_questions(task.questions)
    if questions:
        message = f"asks: {questions[0]['message']}"
    else:
        last_line = logs.ends([task.id]).get(task.id, "").rstrip().rpartition("\n")[2].strip()
        message = task.note or last_line or ("is running" if task.claimed_at else WAITING)
    return shortened(escaped(message), MAX_STATUS_MESSAGE)


def _last_lines(task: TaskRow, count: int) -> list[str]:
    lines = logs.last_lines(task, count, count * MAX_LINE)
    return [shortened(line, MAX_SHOWN_LINE) for line in lines]


def last_page(task: TaskRow, count: int) -> tuple[list[str], int]:
    """The end of a log, at most 32 KiB of it, and the number of its last line."""
    lines = logs.last_lines(task, count, MAX_TEXT)
    # The last line alone can be longer.
    lines = lines or _fitting(logs.last_lines(task, 1, MAX_LINE))
    return lines, task.log_count


def page_after(task: TaskRow, after: int, count: int) -> tuple[list[str], int]:
    """Lines after number `after`, at most 32 KiB of them, and the number of the last one."""
    texts = [line.text for line in logs.lines_after(task, after, count)]
    lines = _fitting(texts)
    return lines, max(after, task.first_log - 1) + len(lines)


def _fitting(lines: list[str]) -> list[str]:
    """The first lines that fit on a page; a first line that does not fit is truncated."""
    sizes = accumulate(len(line.encode()) + 1 for line in lines)
    count = sum(size <= MAX_TEXT for size in sizes)
    return lines[:count] or [truncated(line, MAX_TEXT) for line in lines[:1]]


def truncated(text: str, size: int) -> str:
    """The first `size` bytes of a text, as whole characters."""
    return text.encode()[:size].decode(errors="ignore")

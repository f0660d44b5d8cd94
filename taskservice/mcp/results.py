"""Converts tasks to results of tools and to MCP tasks."""

from itertools import accumulate
from typing import Any

from flask import current_app
from marshmallow import ValidationError

from taskservice import errors as problems
from taskservice.auth import caller
from taskservice.database import clock
from taskservice.database.rows import QuestionRow, TaskRow
from taskservice.errors import Problem, invalid
from taskservice.mcp.protocol import Call
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions, parse_id
from taskservice.schemas.requests import AnswerQuestionSchema
from taskservice.services import logs
from taskservice.services import questions as question_service
from taskservice.terminal import escaped, shortened
from taskservice.terms import ACCEPT, API_PREFIX, CANCELLED, COMPLETE, MAX_LINE, RUNNING

REFUSED = (Problem, ValidationError)


def reason(error: Exception) -> str:
    """The text of an error that a model can correct. Re-raises any other error."""
    problem = problems.from_exception(error)
    # A model can correct an unknown ID (404), a conflict (409) and an invalid request (422).
    if problem.status not in (404, 409, 422):
        raise error
    if errors := problem.members.get("errors"):
        return " ".join(problems.sentences(errors))
    content = problem.members.get("question", {}).get("answer")
    text = "" if content is None else f": {strict_json.dumps(content).decode()}"
    return f"{problem.detail}{text}."


# The action if a person closes a form without an answer. The person can answer later.
CANCEL = "cancel"

_answer_schema = AnswerQuestionSchema()


def as_forms(questions: list[dict[str, Any]]) -> dict[str, Any]:
    """The form (elicitation) that a client shows for each question, by the question's ID."""
    return {
        question["id"]: {
            "method": "elicitation/create",
            "params": {
                "mode": "form",
                "message": question["message"],
                "requestedSchema": question["schema"],
            },
        }
        for question in questions
    }


def answer(task_id: str, question_id: str, fields: dict[str, Any]) -> QuestionRow:
    """Answer a question with `fields`: `action`, and `content` if the action is `accept`.

    Raises 404, 409 and 422.
    """
    loaded = {"content": None} | _answer_schema.load(fields)
    return question_service.answer(caller, task_id, question_id, **loaded)


def answer_forms(task_id: str, responses: Any) -> set[str]:
    """Answer questions of a task; returns the IDs of questions whose form was closed unanswered.

    `responses` maps IDs of questions to submitted forms. An ID is ignored if the task has no such
    question. Raises 404, and 422 if an answer is rejected; the other answers are stored
    nevertheless.
    """
    if not isinstance(responses, dict):
        raise invalid({"inputResponses": ["Must be an object."]})
    closed, refused = set[str](), dict[str, list[str]]()
    by_id = {key: response for key, response in responses.items() if parse_id(key) == key}
    for question_id in question_service.ids_among(caller, task_id, by_id):
        response = by_id[question_id]
        if isinstance(response, dict) and response.get("action") == CANCEL:
            closed.add(question_id)
        elif response is not None:
            fields = response if isinstance(response, dict) else {}
            # Some clients send an empty `content` with other actions too.
            names = ("action", "content") if fields.get("action") == ACCEPT else ("action",)
            known = {name: fields[name] for name in names if name in fields}
            try:
                answer(task_id, question_id, known)
            except REFUSED as error:
                refused[f"question {question_id} of task {task_id}"] = [reason(error)]
    if refused:
        raise invalid(refused)
    return closed


# Maximum size in bytes of an output, or of the lines of a log, in a result.
MAX_TEXT = 32 * 1024
# Maximum lengths in characters: a line and an error in a result, and a status message.
MAX_SHOWN_LINE = 1_000
MAX_SHOWN_ERROR = 8_000
MAX_STATUS_MESSAGE = 200
LINES_WHILE_RUNNING = 5
LINES_OF_ERROR = 20

POLL_MS, SLOW_POLL_MS = 2_000, 10_000
# The age of a task after which clients should poll it less often.
SLOW_POLL_AFTER_SECONDS = 600.0

WAITING = "waits for a worker"
WAIT_NEXT = "Call wait_task with this taskId."
NO_WORKER_NEXT = (
    "No worker has claimed this task. Tell your user that the agent needs a worker, which this "
    f"command starts: taskservice work --agent {{}} -- CMD. {WAIT_NEXT}"
)
ASK_NEXT = (
    "Ask your user, then call answer_task with this taskId and the questionId. If another "
    "person will answer, call wait_task."
)


def tool_result(
    structured: dict[str, Any], text: str | None = None, *, is_error: bool = False
) -> dict[str, Any]:
    """The result of a tool, both as text and as structured content: some clients show only one."""
    if text is None:
        text = strict_json.dumps(structured).decode()
    result = {"content": [{"type": "text", "text": text}], "structuredContent": structured}
    return {**result, "isError": True} if is_error else result


def tool_result_of(task: TaskRow, no_worker: str | None = None) -> dict[str, Any]:
    """The result of a tool that started a task or waited for it.

    `no_worker` is a message if the agent has no running worker, otherwise None.
    """
    if task.status == RUNNING:
        return _running_result(task, no_worker)
    if task.status == COMPLETE:
        return _complete_result(task)
    lines = _last_lines(task, LINES_OF_ERROR)
    return tool_result({**task_header(task), "error": error_of(task), "log": lines}, is_error=True)


def task_header(task: TaskRow) -> dict[str, Any]:
    return {"taskId": task.id, "agentId": task.agent_id, "status": task.status}


def _running_result(task: TaskRow, no_worker: str | None) -> dict[str, Any]:
    structured = {**task_header(task), "log": _last_lines(task, LINES_WHILE_RUNNING)}
    if note := task.note or (None if task.claimed_at or task.log_count else WAITING):
        structured["note"] = note
    if task.hanging_since:
        structured["hangingSince"] = task.hanging_since
    if questions := open_questions(task.questions):
        structured["questions"] = [
            {"questionId": row["id"], "message": row["message"], "schema": row["schema"]}
            for row in questions
        ]
    if no_worker:
        structured["noWorker"] = no_worker
        return tool_result({**structured, "next": NO_WORKER_NEXT.format(task.agent_id)})
    return tool_result({**structured, "next": ASK_NEXT if questions else WAIT_NEXT})


def _complete_result(task: TaskRow) -> dict[str, Any]:
    size = len(task.output.encode())
    if size > MAX_TEXT:
        path = f"{API_PREFIX}/task/{task.id}?fields=output"
        start = {
            "outputStart": truncated(task.output, MAX_TEXT),
            "outputBytes": size,
            "next": f"The output is too long for one result; GET {path} returns all of it.",
        }
        return tool_result({**task_header(task), **start})
    output = strict_json.fragment(task.output)
    value = strict_json.loads(task.output.encode())
    is_text = value.keys() == {"text"} and isinstance(value["text"], str)
    text = value["text"] if is_text else task.output
    return tool_result({**task_header(task), "output": output}, text)


def error_of(task: TaskRow, length: int = MAX_SHOWN_ERROR) -> dict[str, Any] | None:
    if task.error_type is None:
        return None
    return {"type": task.error_type, "message": shortened(task.error_message or "", length)}


def summary(task: TaskRow) -> dict[str, Any]:
    """A task as an item of a list."""
    fields = {"name": task.name, "createdAt": task.created_at, "finishedAt": task.finished_at}
    optional = {"note": task.note, "error": error_of(task, MAX_SHOWN_LINE)}
    optional["hangingSince"] = task.hanging_since
    present = {name: value for name, value in optional.items() if value}
    return {**task_header(task), **fields, **present}


def task_state(call: Call, task: TaskRow) -> dict[str, Any]:
    if task.error_type == CANCELLED:
        return {**_polling(task), "status": "cancelled", "statusMessage": task.error_message}
    if task.status != RUNNING:
        # A failed task is `completed` too: in MCP, `failed` means that the call itself failed.
        result = {"resultType": "complete", **tool_result_of(task)}
        return {**_polling(task), "status": "completed", "result": result}
    questions = open_questions(task.questions) if call.takes_forms else []
    forms = {"status": "input_required", "inputRequests": as_forms(questions)} if questions else {}
    return working_state(task) | forms


def working_state(task: TaskRow) -> dict[str, Any]:
    """The state of a running task; the message is a question, the note or the last log line."""
    if questions := open_questions(task.questions):
        message = f"asks: {questions[0]['message']}"
    else:
        last_line = logs.ends([task.id]).get(task.id, "").rstrip().rpartition("\n")[2].strip()
        message = task.note or last_line or ("is running" if task.claimed_at else WAITING)
    message = shortened(escaped(message), MAX_STATUS_MESSAGE)
    return {**_polling(task), "status": "working", "statusMessage": message}


def _polling(task: TaskRow) -> dict[str, Any]:
    age, ttl = clock.seconds_between(task.created_at, clock.now()), None
    days: float = current_app.config["RETENTION_DAYS"]
    if days and task.finished_at is not None:
        lasted = clock.seconds_between(task.created_at, task.finished_at)
        ttl = round((lasted + days * 86_400) * 1000)
    return {
        "taskId": task.id,
        "createdAt": task.created_at,
        "lastUpdatedAt": task.updated_at,
        # Milliseconds from the creation of the task until retention removes it.
        "ttlMs": ttl,
        "pollIntervalMs": POLL_MS if age < SLOW_POLL_AFTER_SECONDS else SLOW_POLL_MS,
    }


def _last_lines(task: TaskRow, count: int) -> list[str]:
    lines = logs.last_lines(task, count, count * MAX_LINE)
    return [shortened(line, MAX_SHOWN_LINE) for line in lines]


def log_page(task: TaskRow, after: int | None, count: int) -> tuple[list[str], int]:
    """Lines of a log, at most 32 KiB, and the number of the last line.

    Returns the lines after line number `after`, or the last lines of the log if `after` is None.
    """
    if after is None:
        lines = logs.last_lines(task, count, MAX_TEXT)
        # The last line alone can be longer than a page.
        return lines or _fitting(logs.last_lines(task, 1, MAX_LINE)), task.log_count
    lines = _fitting([text for text, _ in logs.lines_after(task, after, count)])
    return lines, max(after, task.first_log - 1) + len(lines)


def _fitting(lines: list[str]) -> list[str]:
    """The first lines that fit on a page. If not even the first line fits, it is truncated."""
    sizes = accumulate(len(line.encode()) + 1 for line in lines)
    count = sum(size <= MAX_TEXT for size in sizes)
    return lines[:count] or [truncated(line, MAX_TEXT) for line in lines[:1]]


def truncated(text: str, size: int) -> str:
    """The start of a text, at most `size` bytes and only whole characters."""
    return text.encode()[:size].decode(errors="ignore")

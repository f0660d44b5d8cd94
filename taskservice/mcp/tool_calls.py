"""What `tools/call` does: runs an agent, or one of the fixed tools."""

from collections.abc import Callable, Collection
from typing import Any

from taskservice.auth import caller
from taskservice.database.types import TaskVersion
from taskservice.mcp import questions, refusals, results
from taskservice.mcp.calls import Call
from taskservice.mcp.fixed_tools import FIXED, LAST_LINES, MAX_SECONDS, TASKS
from taskservice.mcp.protocol import INVALID_PARAMS, RpcError
from taskservice.mcp.tools import agent_of
from taskservice.schemas.fields import NO_QUESTIONS, open_questions, parse_id
from taskservice.schemas.requests import AnswerQuestionSchema, StartSchema
from taskservice.services import lists, reports, starts
from taskservice.services import questions as question_service
from taskservice.services import tasks as task_queries
from taskservice.services.lists import Position, Selection
from taskservice.services.tasks import Idempotency
from taskservice.terms import ACCEPT, DECLINE, RUNNING
from taskservice.web import waiting
from taskservice.web.request import checked_idempotency_key, idempotency_key, require_id

Arguments = dict[str, Any]
Result = dict[str, Any]

# How long a client that can follow a task waits for one that ends at once.
SHORT_SECONDS = 0.5
# Each reads a bounded number of tasks.
MAX_SEARCHES = 20
LABELS = {"via": "mcp"}
IDEMPOTENCY_KEY = "taskservice/idempotencyKey"

_start_schema = StartSchema()
_answer_schema = AnswerQuestionSchema()


def run(call: Call) -> Result:
    """The result of a tool. Raises RpcError if there is no such tool."""
    name, given = call.params.get("name"), call.params.get("arguments")
    arguments = {} if given is None else given
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, "A call has a name, and arguments that are an object")
    try:
        return _run(call, name, arguments)
    except refusals.REFUSED as error:
        return results.refusal(refusals.reason(error))


def _run(call: Call, name: str, arguments: Arguments) -> Result:
    if name in _FUNCTIONS:
        return _FUNCTIONS[name](call, FIXED[name].checked(arguments))
    agent_id = agent_of(name)
    if agent_id is None:
        raise RpcError(INVALID_PARAMS, f"Unknown tool: {name}")
    return _run_agent(call, agent_id, arguments)


# --- agents ------------------------------------------------------------------------------


def _run_agent(call: Call, agent_id: str, arguments: Arguments) -> Result:
    """Start a task, or go on with the one that the state of the call names, and wait for it."""
    if "requestState" in call.params:
        task_id = _task_of_state(call)
        if task_queries.get(caller, task_id).agent_id != agent_id:
            raise _wrong_state()
    else:
        task_id = _start(call, agent_id, arguments)
    # They may be a megabyte, and the wait long.
    arguments.clear()
    closed = _answered(call, task_id)
    if call.declares_tasks:
        return _in_background(task_id)
    return _waited(call, task_id, MAX_SECONDS, closed)


def _start(call: Call, agent_id: str, arguments: Arguments) -> str:
    body = {"agentId": agent_id, "input": arguments, "labels": LABELS}
    key = _idempotency_key(call)
    idempotency = None if key is None else Idempotency.of(key, body)
    task, _ = starts.start(caller, _start_schema.load(body), idempotency)
    return task.id


def _idempotency_key(call: Call) -> str | None:
    key = call.meta.get(IDEMPOTENCY_KEY)
    return checked_idempotency_key(key) if isinstance(key, str) else idempotency_key()


def _in_background(task_id: str) -> Result:
    """The result of a task that ends at once; otherwise what the client polls."""
    _wait(task_id, SHORT_SECONDS, lambda seen: seen.status != RUNNING)
    task = task_queries.get(caller, task_id)
    return results.created(task) if task.status == RUNNING else results.of_task(task)


def _waited(call: Call, task_id: str, seconds: float, closed: Collection[str]) -> Result:
    """The task when it has ended or asks something, at the latest after these seconds.

    A client that shows forms gets those of all questions but the `closed` ones, which its person
    has seen and left.
    """
    _wait(task_id, seconds, lambda seen: seen.status != RUNNING or _asks(seen))
    task = task_queries.get(caller, task_id)
    asked = [each for each in questions.open_of(task) if each["id"] not in closed]
    if asked and call.takes_forms and not call.declares_tasks:
        return results.input_required(task, asked)
    return results.of_task(task)


def _wait(task_id: str, seconds: float, is_enough: Callable[[TaskVersion], bool]) -> None:
    waiting.within(seconds, lambda: task_queries.get_version(caller, task_id), is_enough)


def _asks(seen: TaskVersion) -> bool:
    return seen.questions != NO_QUESTIONS and bool(open_questions(seen.questions))


def _answered(call: Call, task_id: str) -> Collection[str]:
    """Answer the forms that the call brings back; the questions whose form was only closed."""
    responses = call.params.get("inputResponses")
    return () if responses is None else questions.answer_forms(task_id, responses)


def _task_of_state(call: Call) -> str:
    task_id = parse_id(str(call.params["requestState"]))
    if task_id is None or task_queries.find(caller, task_id) is None:
        raise _wrong_state()
    return task_id


def _wrong_state() -> RpcError:
    return RpcError(INVALID_PARAMS, "The requestState is not one of this tool")


# --- fixed tools -------------------------------------------------------------------------


def _start_task(call: Call, arguments: Arguments) -> Result:
    task_id = _start(call, arguments["agentId"], arguments.get("input", {}))
    return results.of_task(task_queries.get(caller, task_id))


def _wait_task(call: Call, arguments: Arguments) -> Result:
    task_id = _task_id(arguments)
    if "requestState" in call.params and _task_of_state(call) != task_id:
        raise _wrong_state()
    closed = _answered(call, task_id)
    return _waited(call, task_id, arguments.get("seconds", MAX_SECONDS), closed)


def _read_log(call: Call, arguments: Arguments) -> Result:
    task = task_queries.get(caller, _task_id(arguments))
    count = arguments.get("limit", LAST_LINES)
    if "after" in arguments:
        lines, last = results.page_after(task, arguments["after"], count)
    else:
        lines, last = results.last_page(task, count)
    page = {"taskId": task.id, "status": task.status, "lines": lines, "next": last}
    return results.tool_result(page)


def _list_tasks(call: Call, arguments: Arguments) -> Result:
    selection = Selection(agent_id=arguments.get("agentId"), status=arguments.get("status"))
    positions = _newest(selection, arguments.get("limit", TASKS))
    tasks = map(results.summary, lists.summaries(caller, positions))
    return results.tool_result({"tasks": list(tasks)})


def _newest(selection: Selection, limit: int) -> list[Position]:
    """The first positions of a list; a search may stop before there are as many as it has."""
    found, reached = lists.page_positions(caller, selection, None, limit)
    for _ in range(MAX_SEARCHES):
        if reached is None or len(found) == limit:
            break
        more, reached = lists.page_positions(caller, selection, reached, limit - len(found))
        found += more
    return found


def _answer_task(call: Call, arguments: Arguments) -> Result:
    task_id, question_id = _task_id(arguments), require_id("question", arguments["questionId"])
    action = DECLINE if arguments.get("decline") else ACCEPT
    given = {name: arguments[name] for name in ("content",) if name in arguments}
    answer = _answer_schema.load({"action": action, **given})
    question = question_service.answer(caller, task_id, question_id, action, answer.get("content"))
    answered = {"taskId": task_id, "questionId": question.id, "state": question.state}
    return results.tool_result({**answered, "next": results.WAIT_NEXT})


def _cancel_task(call: Call, arguments: Arguments) -> Result:
    task, _ = reports.cancel(caller, _task_id(arguments))
    return results.tool_result(results.about(task) | {"error": results.error_of(task)})


def _task_id(arguments: Arguments) -> str:
    return require_id("task", arguments["taskId"])


_FUNCTIONS: dict[str, Callable[[Call, Arguments], Result]] = {
    "start_task": _start_task,
    "wait_task": _wait_task,
    "read_log": _read_log,
    "list_tasks": _list_tasks,
    "answer_task": _answer_task,
    "cancel_task": _cancel_task,
}

"""What `tools/call` does: runs an agent, or one of the fixed tools."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taskservice.auth import caller
from taskservice.database.types import AnyRow, TaskVersion
from taskservice.errors import invalid
from taskservice.mcp import results
from taskservice.mcp.protocol import INVALID_PARAMS, Call, RpcError
from taskservice.schemas import strict_json
from taskservice.schemas.fields import NO_QUESTIONS, open_questions, parse_id
from taskservice.schemas.json_schema import Input
from taskservice.schemas.requests import AnswerQuestionSchema, StartSchema
from taskservice.services import agents as agent_queries
from taskservice.services import lists, reports, starts
from taskservice.services import questions as question_service
from taskservice.services import tasks as task_queries
from taskservice.services.lists import Position, Selection
from taskservice.services.tasks import Idempotency
from taskservice.terms import ACCEPT, DECLINE, RUNNING, STATUSES
from taskservice.web import waiting
from taskservice.web.request import checked_idempotency_key, idempotency_key, require_id

# The definitions of the tools that every user has, for tasks of all agents.

MAX_SECONDS = 45
LAST_LINES = 100
MAX_LINES = 1_000
TASKS = 20
MAX_TASKS = 50

_TASK_ID = {"type": "string", "description": "The id of the task."}
_NUMBERS: dict[str, Callable[[float], float]] = {"integer": int, "number": float}
_READS = {"readOnlyHint": True, "openWorldHint": False}


@dataclass(frozen=True)
class FixedTool:
    """A tool, and the check of its arguments."""

    name: str
    title: str
    description: str
    properties: dict[str, Any]
    required: tuple[str, ...]
    annotations: dict[str, bool]

    @cached_property
    def schema(self) -> dict[str, Any]:
        return {
            "type": "object",
            "properties": self.properties,
            "required": list(self.required),
            "additionalProperties": False,
        }

    def checked(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """The arguments, with numbers that Python can use; raises 422 unless they fit."""
        text, schema = (strict_json.dumps(each).decode() for each in (arguments, self.schema))
        errors = Input(text).check(schema)
        if errors:
            raise invalid({name.removeprefix("input."): said for name, said in errors.items()})
        return {name: self._plain(name, value) for name, value in arguments.items()}

    def _plain(self, name: str, value: Any) -> Any:
        number = _NUMBERS.get(self.properties[name]["type"])
        # Until then, one that Python would round is its text, and an integer may be 5.0.
        return number(json.loads(strict_json.dumps(value))) if number else value

    @property
    def definition(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "description": self.description,
            "inputSchema": self.schema,
            "annotations": self.annotations,
        }


_TOOLS = (
    FixedTool(
        "start_task",
        "Start a task",
        "Starts a task of any agent and returns at once, with its taskId.",
        {
            "agentId": {"type": "string", "description": "The agent that works on it."},
            "input": {"type": "object", "description": "What the agent works on."},
        },
        ("agentId",),
        {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": True},
    ),
    FixedTool(
        "wait_task",
        "Wait for a task",
        "Returns when the task has ended or asks a question, at the latest after `seconds`. "
        "Call it again while the status is running.",
        {
            "taskId": _TASK_ID,
            "seconds": {
                "type": "number",
                "minimum": 0,
                "maximum": MAX_SECONDS,
                "default": MAX_SECONDS,
                "description": "How long to wait; 0 only looks.",
            },
        },
        ("taskId",),
        _READS,
    ),
    FixedTool(
        "read_log",
        "Read a log",
        "Reads lines of a task's log: the last ones, or those after a line's number. `next` is "
        "the `after` for the lines that follow.",
        {
            "taskId": _TASK_ID,
            "after": {
                "type": "integer",
                "minimum": 0,
                "maximum": 1 << 53,
                "description": "The number of a line; 0 for the beginning.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_LINES,
                "default": LAST_LINES,
                "description": "Maximum number of lines; a page has at most 32 KiB of them.",
            },
        },
        ("taskId",),
        _READS,
    ),
    FixedTool(
        "list_tasks",
        "List tasks",
        "Lists tasks, newest first. Look here before you start the same work again.",
        {
            "agentId": {"type": "string", "description": "Only tasks of this agent."},
            "status": {
                "type": "string",
                "enum": list(STATUSES),
                "description": "Only tasks with this status.",
            },
            "limit": {
                "type": "integer",
                "minimum": 1,
                "maximum": MAX_TASKS,
                "default": TASKS,
                "description": "Maximum number of tasks.",
            },
        },
        (),
        _READS,
    ),
    FixedTool(
        "answer_task",
        "Answer a question",
        "Answers a question of a task. Ask your user first: the question is for a person.",
        {
            "taskId": _TASK_ID,
            "questionId": {"type": "string", "description": "The id of the question."},
            "content": {
                "type": "object",
                "description": "The answer, which fits the schema of the question.",
            },
            "decline": {
                "type": "boolean",
                "default": False,
                "description": "true if the person refuses to answer; then without content.",
            },
        },
        ("taskId", "questionId"),
        {"readOnlyHint": False, "destructiveHint": False, "openWorldHint": False},
    ),
    FixedTool(
        "cancel_task",
        "Cancel a task",
        "Ends a running task.",
        {"taskId": _TASK_ID},
        ("taskId",),
        {
            "readOnlyHint": False,
            "destructiveHint": True,
            "idempotentHint": True,
            "openWorldHint": False,
        },
    ),
)
FIXED = {tool.name: tool for tool in _TOOLS}


# Agents as tools: their names and definitions.

# Clients send all tools to their model with each request; the other agents are for `start_task`.
MAX_AGENTS = 64
# How many of them are told by their ids.
MAX_OTHERS = 64
MAX_NAME = 40
# The characters of an id that a name can't have.
_UNFIT = re.compile("[^a-z0-9_]")


def agent_of(name: str) -> str | None:
    """The id of the agent that a tool runs; None if there is no such tool."""
    agent_id = _agents_by_name().get(name)
    return agent_id if agent_id in agent_queries.tool_ids(caller, MAX_AGENTS) else None


def _agents_by_name() -> dict[str, str]:
    """Name of a tool -> the id of its agent, for all agents of the caller.

    Those that are no tools have names too. Otherwise a name could pass to another agent, and a
    client that has kept its tools, or a prompt, would start that one. An id that is a name is
    always the name of its agent; of others with the same name none has it. Two agents with the
    same digest have no name.
    """
    names = {agent_id: _UNFIT.sub("_", agent_id) for agent_id in agent_queries.ids(caller)}
    claims = Counter(names.values())
    for agent_id, name in names.items():
        is_taken = agent_id != name and claims[name] > 1
        if is_taken or len(name) > MAX_NAME or name in FIXED:
            digest = hashlib.sha256(agent_id.encode()).hexdigest()
            names[agent_id] = f"{name[: MAX_NAME - 7]}_{digest[:6]}"
    claims = Counter(names.values())
    return {name: id for id, name in names.items() if id == name or claims[name] == 1}


def definitions() -> list[dict[str, Any]]:
    """What `tools/list` has of each tool."""
    names = {agent_id: name for name, agent_id in _agents_by_name().items()}
    agents = agent_queries.list_tools(caller, MAX_AGENTS + MAX_OTHERS)
    tools = [agent for agent in agents[:MAX_AGENTS] if agent.id in names]
    fixed = {name: tool.definition for name, tool in FIXED.items()}
    if others := ", ".join(agent.id for agent in agents if agent not in tools):
        fixed["start_task"]["description"] += f" These agents have no tool of their own: {others}."
    return [*(_definition(names[agent.id], agent) for agent in tools), *fixed.values()]


def _definition(name: str, agent: AnyRow) -> dict[str, Any]:
    return {
        "name": name,
        "title": agent.name,
        # Some models refuse a tool without one.
        "description": agent.description or f"Starts a task of the agent {agent.id}.",
        "inputSchema": strict_json.fragment(agent.input_schema),
        "annotations": _annotations(agent),
    }


def _annotations(agent: AnyRow) -> dict[str, Any]:
    hints: dict[str, Any] = strict_json.loads(agent.annotations.encode())
    if hints.get("readOnlyHint"):
        # Its default is meant for tools that change something.
        hints.pop("destructiveHint", None)
    return hints


# What `tools/call` does: runs an agent, or one of the fixed tools.

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
    except results.REFUSED as error:
        return results.refusal(results.reason(error))


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
    asked = [each for each in results.open_of(task) if each["id"] not in closed]
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
    return () if responses is None else results.answer_forms(task_id, responses)


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

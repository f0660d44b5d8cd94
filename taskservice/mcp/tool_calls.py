"""`tools/list` and `tools/call`: each agent is a tool, in addition to some fixed tools."""

import hashlib
import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

from taskservice.auth import caller
from taskservice.database.rows import AgentRow, TaskRow
from taskservice.errors import invalid
from taskservice.mcp import results
from taskservice.mcp.protocol import INVALID_PARAMS, Call, RpcError
from taskservice.schemas import strict_json
from taskservice.schemas.fields import open_questions, parse_id
from taskservice.schemas.input_schema import input_problems
from taskservice.schemas.requests import RerunSchema, SearchQuerySchema, StartSchema, dump_cursor
from taskservice.services import agents as agent_service
from taskservice.services import attention as attention_service
from taskservice.services import lists, reports, search
from taskservice.services import tasks as task_service
from taskservice.services.lists import Position, Selection, TaskList
from taskservice.services.tasks import Idempotency
from taskservice.terms import (
    ACCEPT,
    DECLINE,
    FAILED,
    HANGING,
    MAX_LABELS,
    MAX_SEARCHED_TEXT,
    READ,
    RUNNING,
    SORTS,
    STATUSES,
    TIMEOUT,
)
from taskservice.web import responses, waiting
from taskservice.web.request import idempotency_key, require_id

Arguments = dict[str, Any]
Result = dict[str, Any]

# Maximum number of agents with a tool, since clients send all tools to their model with each
# request. The tool `start_task` can start the other agents.
MAX_AGENTS = 64
# Maximum number of agents without a tool that the description of `start_task` lists.
MAX_OTHERS = 64
MAX_NAME = 40
# Maximum lengths of the two parts of a tool's name: `_` with the digest, and the part before it.
DIGEST = 7
BEGINNING = MAX_NAME - DIGEST
# The characters that the ID of an agent can contain, but the name of a tool can't.
_INVALID = re.compile("[^a-z0-9_]")


def _names(agents: Sequence[AgentRow]) -> dict[str, str]:
    """The name of each agent's tool, by the agent's ID. Agents without a tool are left out.

    A name that two agents of the user could have is not used, even if one of the agents gets no
    tool. Otherwise, the name could pass from one agent to the other, and a client with cached tools
    would start the wrong agent.
    """
    names = [name for agent in agents for name in _possible_names(agent.id)]
    # A user can have very many agents, so read only agents whose tools can have these names.
    beginnings = {name[:length] for name in names for length in (BEGINNING, -DIGEST)}
    ids = agent_service.ids_with_beginnings(caller, beginnings, BEGINNING)
    claims = Counter([*FIXED, *(name for agent_id in ids for name in _possible_names(agent_id))])
    tools = {}
    for agent in agents:
        for name in _possible_names(agent.id):
            if claims[name] == 1 and len(name) <= MAX_NAME:
                tools[agent.id] = name
                break
    return tools


def _possible_names(agent_id: str) -> tuple[str, str]:
    """The possible names of an agent's tool: without and with a digest."""
    plain = _INVALID.sub("_", agent_id)
    digest = hashlib.sha256(agent_id.encode()).hexdigest()
    return plain, f"{plain[:BEGINNING]}_{digest[: DIGEST - 1]}"


def definitions() -> list[dict[str, Any]]:
    """The definitions of all tools, for `tools/list`."""
    if caller.access == READ:
        return [tool.definition for tool in FIXED.values() if tool.is_read_only]
    agents = agent_service.list_tools(caller, MAX_AGENTS + MAX_OTHERS)
    names = _names(agents[:MAX_AGENTS])
    tools = [agent for agent in agents[:MAX_AGENTS] if agent.id in names]
    tools.sort(key=attrgetter("id"))
    fixed = {name: dict(tool.definition) for name, tool in FIXED.items()}
    if others := ", ".join(sorted(agent.id for agent in agents if agent not in tools)):
        fixed["start_task"]["description"] += f" These agents have no separate tool: {others}."
    return [*(_definition(names[agent.id], agent) for agent in tools), *fixed.values()]


def _definition(name: str, agent: AgentRow) -> dict[str, Any]:
    hints: dict[str, Any] = strict_json.loads(agent.annotations.encode())
    if hints.get("readOnlyHint"):
        # `destructiveHint` has a meaning only for tools that change something.
        hints.pop("destructiveHint", None)
    return {
        "name": name,
        "title": agent.name,
        # Some models reject a tool without a description.
        "description": agent.description or f"Starts a task of the agent {agent.id}.",
        "inputSchema": strict_json.fragment(agent.input_schema),
        "annotations": hints,
    }


MAX_SECONDS = 45
# How long a call waits for a task that may end at once, before it returns the running task to a
# client that can follow tasks.
SHORT_SECONDS = 0.5

# The label of each task that a tool starts.
LABELS = {"via": "mcp"}

_start_schema = StartSchema()
_rerun_schema = RerunSchema()
_search_query = SearchQuerySchema()


def run(call: Call) -> Result:
    """The result of a tool. Raises RpcError if there is no such tool."""
    name, arguments = call.params.get("name"), call.params.get("arguments")
    arguments = {} if arguments is None else arguments
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise RpcError(INVALID_PARAMS, "A call must have a name, and arguments must be an object")
    tool = FIXED.get(name)
    if tool is None or not tool.is_read_only or "inputResponses" in call.params:
        caller.require_full_access()
    try:
        if tool is None:
            return _run_agent(call, name, arguments)
        if errors := input_problems(tool.schema, strict_json.dumps(arguments).decode()):
            raise invalid({path.removeprefix("input."): errors[path] for path in errors})
        return tool.run(call, arguments)
    except results.REFUSED as error:
        reason = results.reason(error)
        return results.tool_result({"error": reason}, reason, is_error=True)


def _run_agent(call: Call, name: str, arguments: Arguments) -> Result:
    """Start a task, or continue with the task in the call's `requestState`, and wait for it."""
    names = _names(agent_service.list_tools(caller, MAX_AGENTS))
    agent_id = next((agent_id for agent_id in names if names[agent_id] == name), None)
    if agent_id is None:
        raise RpcError(INVALID_PARAMS, f"Unknown tool: {name}")
    if "requestState" in call.params:
        task_id = _task_of_state(call, agent_id=agent_id)
    else:
        task_id = _start(call, agent_id, arguments)
    # Free the arguments, which can take a megabyte, before a wait that can be long.
    arguments.clear()
    closed = _answered(call, task_id)
    if call.declares_tasks:
        task = _wait(task_id, SHORT_SECONDS, lambda seen: seen.status != RUNNING)
        if task.status == RUNNING:
            return {"resultType": "task", **results.working_state(task)}
        return results.tool_result_of(task)
    if attention_service.missing_worker(agent_service.get(caller, agent_id)):
        # If a worker is starting, give it time to claim the task.
        task = _wait(task_id, SHORT_SECONDS, lambda seen: seen.claimed_at is not None)
        if task.claimed_at is None:
            return _result_of(task)
    return _waited(call, task_id, MAX_SECONDS, closed)


def _start(call: Call, agent_id: str, arguments: Arguments) -> str:
    body = {"agentId": agent_id, "input": arguments, "labels": LABELS}
    idempotency = Idempotency.of(_idempotency_key(call), body)
    task, _ = task_service.start(caller, _start_schema.load(body), idempotency)
    return str(task.id)


def _idempotency_key(call: Call) -> str | None:
    key = call.meta.get("taskservice/idempotencyKey")
    return idempotency_key(key if isinstance(key, str) else None)


def _waited(call: Call, task_id: str, seconds: float, closed: Collection[str]) -> Result:
    """Wait at most `seconds` until the task has ended or asks a question; returns the result."""
    task = _wait(
        task_id,
        seconds,
        lambda seen: seen.status != RUNNING or bool(open_questions(seen.questions)),
    )
    # A client that shows forms gets a form for each question whose form was not closed before.
    questions = [row for row in open_questions(task.questions) if row["id"] not in closed]
    if questions and call.takes_forms and not call.declares_tasks:
        forms = {"inputRequests": results.as_forms(questions), "requestState": task.id}
        return {"resultType": "input_required", **forms}
    return _result_of(task)


def _result_of(task: TaskRow) -> Result:
    """The result of a tool for a task, with a notice if no worker of the agent is running."""
    if task.status != RUNNING or task.claimed_at is not None:
        return results.tool_result_of(task)
    agent = agent_service.get(caller, task.agent_id)
    return results.tool_result_of(task, attention_service.missing_worker(agent))


def _wait(task_id: str, seconds: float, is_enough: Callable[[TaskRow], bool]) -> TaskRow:
    waiting.within(seconds, lambda: task_service.get_version(caller, task_id), is_enough)
    return task_service.get(caller, task_id)


def _answered(call: Call, task_id: str) -> Collection[str]:
    """Answer the questions whose forms are in the call.

    Returns the IDs of questions whose form was closed unanswered.
    """
    responses = call.params.pop("inputResponses", None)
    return () if responses is None else results.answer_forms(task_id, responses)


def _task_of_state(call: Call, **expected: str) -> str:
    """The ID of the task in the call's `requestState`; raises RpcError if an attribute of the task
    differs from `expected`.
    """
    task_id = parse_id(str(call.params["requestState"]))
    task = None if task_id is None else task_service.find(caller, task_id)
    if task is None or any(getattr(task, name) != value for name, value in expected.items()):
        raise RpcError(INVALID_PARAMS, "The requestState does not belong to this tool")
    return str(task.id)


# The fixed tools, for tasks of all agents. Their docstrings are the descriptions for models.

LAST_LINES, MAX_LINES = 100, 1_000
TASKS, MAX_TASKS = 20, 50
HITS, MAX_HITS = 20, 50
# Maximum number of searches in one call; each reads a limited number of tasks.
MAX_SEARCHES = 21


def _argument(kind: str, description: str, **keywords: Any) -> dict[str, Any]:
    return {"type": kind, **keywords, "description": description}


def _limit(maximum: int, default: int, description: str) -> dict[str, Any]:
    return _argument("integer", description, minimum=1, maximum=maximum, default=default)


_TASK_ID = _argument("string", "The task's ID.")
_AGENT_ID = _argument("string", "Only tasks of this agent.")

Function = Callable[[Call, Arguments], Result]
READ_ONLY = {"readOnlyHint": True, "openWorldHint": False}
CHANGES = {"readOnlyHint": False, "destructiveHint": True, "openWorldHint": False}


class FixedTool(NamedTuple):
    definition: dict[str, Any]
    schema: str
    is_read_only: bool
    run: Function


FIXED: dict[str, FixedTool] = {}


def fixed_tool(
    title: str,
    required: Sequence[str],
    annotations: Mapping[str, bool] = READ_ONLY,
    **arguments: dict[str, Any],
) -> Callable[[Function], Function]:
    """Make a function a tool of the same name; `arguments` contains the schema of each argument."""

    def add(function: Function) -> Function:
        schema = {
            "type": "object",
            "properties": arguments,
            "required": required,
            "additionalProperties": False,
        }
        definition = {
            "name": function.__name__,
            "title": title,
            "description": " ".join((inspect.getdoc(function) or "").split()),
            "inputSchema": schema,
            "annotations": annotations,
        }
        text, is_read_only = strict_json.dumps(schema).decode(), annotations["readOnlyHint"]
        FIXED[function.__name__] = FixedTool(definition, text, is_read_only, function)
        return function

    return add


@fixed_tool(
    "Start a task",
    ["agentId"],
    CHANGES | {"openWorldHint": True},
    agentId=_argument("string", "The ID of the agent."),
    input=_argument("object", "The input of the task."),
)
def start_task(call: Call, arguments: Arguments) -> Result:
    """Starts a task of any agent, and returns its taskId immediately."""
    task_id = _start(call, arguments["agentId"], arguments.get("input", {}))
    return _result_of(task_service.get(caller, task_id))


@fixed_tool(
    "Rerun a task",
    ["taskId"],
    CHANGES | {"openWorldHint": True},
    taskId=_TASK_ID,
    input=_argument(
        "object", "The input of the new task; by default the input of the earlier task."
    ),
)
def rerun_task(call: Call, arguments: Arguments) -> Result:
    """Starts a new task like an earlier task, and returns the new taskId immediately."""
    task_id = require_id("task", arguments["taskId"])
    labels = strict_json.loads(task_service.get(caller, task_id).labels.encode())
    # If the task already has the maximum number of labels, the label is not added.
    body = {"labels": labels | LABELS if len(labels) < MAX_LABELS else labels}
    if "input" in arguments:
        body["input"] = arguments["input"]
    fields = _rerun_schema.load(body)
    idempotency = Idempotency.of(_idempotency_key(call), arguments, rerun_of=task_id)
    task, _ = task_service.rerun(caller, task_id, fields, idempotency)
    return _result_of(task_service.get(caller, task.id))


@fixed_tool(
    "Wait for a task",
    ["taskId"],
    taskId=_TASK_ID,
    seconds=_argument(
        "number",
        "How long to wait, in seconds; 0 returns immediately.",
        minimum=0,
        maximum=MAX_SECONDS,
        default=MAX_SECONDS,
    ),
)
def wait_task(call: Call, arguments: Arguments) -> Result:
    """Waits until the task has ended or asks a question, at most `seconds`. Call this
    tool again while the status is running.
    """
    task_id = require_id("task", arguments["taskId"])
    if "requestState" in call.params:
        _task_of_state(call, id=task_id)
    closed = _answered(call, task_id)
    return _waited(call, task_id, _number(arguments, "seconds", MAX_SECONDS), closed)


@fixed_tool(
    "Read a log",
    ["taskId"],
    taskId=_TASK_ID,
    after=_argument(
        "integer",
        "Return the lines after this line number; 0 for the beginning.",
        minimum=0,
        maximum=1 << 53,
    ),
    limit=_limit(
        MAX_LINES, LAST_LINES, "Maximum number of lines; their maximum total size is 32 KiB."
    ),
)
def read_log(call: Call, arguments: Arguments) -> Result:
    """Reads lines of a task's log: the last lines, or the lines after line number `after`. To
    continue, pass `next` as `after`.
    """
    task = task_service.get(caller, require_id("task", arguments["taskId"]))
    after = int(_number(arguments, "after", 0)) if "after" in arguments else None
    lines, last = results.log_page(task, after, int(_number(arguments, "limit", LAST_LINES)))
    page = {"taskId": task.id, "status": task.status, "lines": lines, "next": last}
    return results.tool_result(page)


# For each status, the filters of the lists that together contain the tasks with this status.
_LISTS: dict[str | None, Sequence[dict[str, Any]]] = {
    None: [{}],
    **{status: [{"status": status}] for status in STATUSES},
    FAILED: [{"errorType": FAILED}, {"errorType": TIMEOUT}],
    lists.WAITING: [{"status": RUNNING, "claimed": False}],
    HANGING: [{"hanging": True}],
}


@fixed_tool(
    "List tasks",
    [],
    agentId=_AGENT_ID,
    status=_argument(
        "string",
        "Only tasks with this status. failed: tasks that failed or timed out; waiting: tasks that "
        "no worker has claimed; hanging: tasks that have run or been silent for too long.",
        enum=[status for status in _LISTS if status],
    ),
    limit=_limit(MAX_TASKS, TASKS, "Maximum number of tasks."),
)
def list_tasks(call: Call, arguments: Arguments) -> Result:
    """Lists tasks, newest first. Call this before you start the same work again."""
    limit = int(_number(arguments, "limit", TASKS))
    selections = (
        Selection(agentId=arguments.get("agentId"), **filters)
        for filters in _LISTS[arguments.get("status")]
    )
    positions = sorted(
        (position for selection in selections for position in _newest(selection, limit)),
        reverse=True,
    )
    rows = lists.summaries(caller, positions[:limit])
    return results.tool_result({"tasks": [results.summary(row) for row in rows]})


def _newest(selection: Selection, limit: int) -> list[Position]:
    """The positions of the newest tasks; searches again if a search ends before it finds enough."""
    tasks, positions, reached = TaskList(caller, selection), list[Position](), None
    for _ in range(MAX_SEARCHES):
        page, reached = tasks.positions(reached, limit - len(positions))
        positions += page
        if reached is None or len(positions) == limit:
            break
    return positions


@fixed_tool(
    "Search in logs",
    ["text"],
    text=_argument(
        "string",
        "Text that a line must contain, not a pattern; the case of ASCII letters is ignored.",
        minLength=1,
        maxLength=MAX_SEARCHED_TEXT,
    ),
    agentId=_AGENT_ID,
    status=_argument("string", "Only tasks with this status.", enum=list(STATUSES)),
    limit=_limit(MAX_HITS, HITS, "Maximum number of lines."),
    cursor=_argument("string", "`next` of the previous result."),
)
def search_logs(call: Call, arguments: Arguments) -> Result:
    """Finds the lines that contain a text, in the logs of all tasks, newest task first. If the
    result contains `next`, even without lines, the search is incomplete: to continue, pass `next`
    as `cursor`. To read the lines around a match, call read_log.
    """
    limit = int(_number(arguments, "limit", HITS))
    query = _search_query.load({**arguments, "limit": str(limit)})
    selection = responses.selection(query)
    start = responses.end_of(query)
    page = search.search(caller, selection, query["text"], start=start, limit=limit)
    structured = page.as_json()
    lines = [f"{hit['taskId']}:{hit['line']}: {hit['text']}" for hit in page.hits]
    if page.end:
        cursor = structured["next"] = dump_cursor(SORTS[0], *page.end)
        lines.append(
            "There are more tasks or lines: this search stopped at a task created at "
            f"{structured['searched']['until']}. To continue, call search_logs with the same "
            f"arguments and the cursor {cursor}"
        )
    return results.tool_result(structured, "\n".join(lines) or "No line contains this text.")


@fixed_tool("List what needs attention", [])
def attention(call: Call, arguments: Arguments) -> Result:
    """Lists the items that need a person's attention, the most urgent kind first: open questions,
    agents that fail or are late, tasks that hang or that no worker claims, callbacks and hooks
    that fail.
    """
    return results.tool_result({"items": attention_service.list_all(caller)})


@fixed_tool(
    "Answer a question",
    ["taskId", "questionId"],
    CHANGES | {"destructiveHint": False},
    taskId=_TASK_ID,
    questionId=_argument("string", "The question's ID."),
    content=_argument("object", "The answer; it must match the question's schema."),
    decline=_argument(
        "boolean", "Set to true, without content, if the person refuses to answer.", default=False
    ),
)
def answer_task(call: Call, arguments: Arguments) -> Result:
    """Answers a question of a task. Ask your user first: the question is for a person."""
    task_id = require_id("task", arguments["taskId"])
    question_id = require_id("question", arguments["questionId"])
    fields = {"action": DECLINE if arguments.get("decline") else ACCEPT}
    if "content" in arguments:
        fields["content"] = arguments["content"]
    question = results.answer(task_id, question_id, fields)
    result = {"taskId": task_id, "questionId": question.id, "state": question.state}
    return results.tool_result({**result, "next": results.WAIT_NEXT})


@fixed_tool("Cancel a task", ["taskId"], CHANGES | {"idempotentHint": True}, taskId=_TASK_ID)
def cancel_task(call: Call, arguments: Arguments) -> Result:
    """Cancels a running task and asks its program to stop."""
    task, _ = reports.cancel(caller, require_id("task", arguments["taskId"]))
    return results.tool_result(results.task_header(task) | {"error": results.error_of(task)})


def _number(arguments: Arguments, name: str, default: int) -> float:
    # The strict parser returns a Fragment for a number that Python would round.
    return float(strict_json.dumps(arguments.get(name, default)))

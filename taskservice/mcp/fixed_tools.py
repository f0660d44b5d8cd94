"""The definitions of the tools that every user has, for tasks of all agents."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from taskservice.errors import invalid
from taskservice.schemas import strict_json
from taskservice.schemas.json_schema import Input
from taskservice.terms import STATUSES

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

"""The client for programs in Python: start, claim, report, list and follow tasks."""

import logging
import math
import os
import re
import time
from collections.abc import Iterator, Mapping
from threading import current_thread
from typing import Any, NotRequired, TypedDict
from uuid import uuid4

from taskservice.client import responses
from taskservice.client.http import PATIENCE_SECONDS, REPEAT_SECONDS, WAIT_SECONDS, Connection
from taskservice.client.responses import (
    SHORT_FIELDS,
    BadRequest,
    Conflict,
    Forbidden,
    Invalid,
    InvalidKey,
    LineGap,
    NotFound,
    NotTheService,
    OtherVersion,
    QuestionDeclined,
    QuestionExpired,
    QuestionNotAnswered,
    QuestionWithdrawn,
    Refused,
    SettingError,
    TaskCancelled,
    TaskFinished,
    TaskServiceError,
    TooLarge,
    Unavailable,
    UnexpectedResponse,
    Unreachable,
)
from taskservice.client.sender import Sender, heartbeat_for
from taskservice.client.task import (
    Failure,
    Line,
    Question,
    Task,
    claim_task,
    path_segment,
    read_task,
    register_agent,
    start_task,
)
from taskservice.terms import ErrorType, Sort, Status

__all__ = [
    "Agent",
    "Annotations",
    "BadRequest",
    "Client",
    "Conflict",
    "ErrorType",
    "Failure",
    "FinishedTask",
    "Forbidden",
    "Health",
    "Invalid",
    "InvalidKey",
    "Line",
    "LineGap",
    "NotFound",
    "NotTheService",
    "OtherVersion",
    "Question",
    "QuestionDeclined",
    "QuestionExpired",
    "QuestionNotAnswered",
    "QuestionWithdrawn",
    "Refused",
    "SettingError",
    "Sort",
    "Status",
    "Task",
    "TaskCancelled",
    "TaskFinished",
    "TaskHandler",
    "TaskServiceError",
    "TooLarge",
    "Unavailable",
    "UnexpectedResponse",
    "Unreachable",
    "current",
]

logger = logging.getLogger(__name__)

# A handler for Python's logging: each record becomes lines of a task's log.


class TaskHandler(logging.Handler):
    """Sends each record as lines of a task's log.

    Logging raises no TaskServiceError: a cancel shows when the program calls the task.
    """

    def __init__(self, task: Task, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self._task = task
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))

    def handle(self, record: logging.LogRecord) -> bool:
        """Like Handler.handle, without the lock: waiting for space must block no other thread."""
        if _is_of_sending(record):
            return False
        kept: Any = self.filter(record)  # since Python 3.12 it may be another record
        if kept:
            self.emit(kept if isinstance(kept, logging.LogRecord) else record)
        return bool(kept)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._task.log_at(int(record.created * 1000), self.format(record))
        except TaskServiceError:
            return  # the task's own methods raise it too
        except Exception:
            self.handleError(record)


def _is_of_sending(record: logging.LogRecord) -> bool:
    """Whether this is logged because lines are sent: sending a line would log the next one."""
    is_request = record.name.startswith(("urllib3", "requests"))
    # A sender would wait for itself when there is no space.
    return isinstance(current_thread(), Sender) or (is_request and record.levelno < logging.WARNING)


# The task of the `taskservice run` or `work` that started this program.


def own_task_id() -> str:
    """The id of the task that this program was started for; empty outside of a task."""
    # Bytes that are no text make no id; the service then says so.
    return os.environ.get("TASKSERVICE_TASK_ID", "").encode(errors="replace").decode()


def require_task_id() -> str:
    """The same; raises SettingError outside of a task."""
    task_id = own_task_id()
    if not task_id:
        raise SettingError(
            "TASKSERVICE_TASK_ID is not set: this program was not started by `taskservice run`"
        )
    return task_id


def current(connection: Connection | None = None) -> Task:
    """The task of the `taskservice run` or `work` that started this program.

    Lines that the program logs to it appear beside those that it prints. They are sent
    before the program ends, also without `with`. Raises SettingError outside of a task.
    """
    task_id = require_task_id()
    connection = connection or Connection()
    writer = os.environ.get("TASKSERVICE_WRITER", "python").encode(errors="replace").decode()
    data = read_task(connection, task_id)
    # Several processes may call this; each numbers its own lines.
    return Task(connection, data, f"{writer[:40]}-{uuid4().hex[:12]}", reports_end=False)


# The client: starts, claims, reads and lists tasks.

PAGE_TASKS = 100
_NEXT = re.compile(r'<\?([^>]*)>; rel="next"')


class FinishedTask(TypedDict):
    """One of an agent's last tasks; `seconds` is null if no agent claimed it."""

    id: str
    status: Status
    errorType: NotRequired[ErrorType | None]
    finishedAt: str
    seconds: float | None


class Health(TypedDict):
    """How an agent's last 30 tasks went, the oldest first; cancelled ones count for no rate."""

    recent: list[FinishedTask]
    successRate: float | None
    lastSuccessAt: str | None
    medianSeconds: float | None


class Annotations(TypedDict, total=False):
    """What an agent does, in the words of MCP's tools."""

    title: str
    readOnlyHint: bool
    destructiveHint: bool
    idempotentHint: bool
    openWorldHint: bool


class Agent(TypedDict):
    """An agent's JSON; `health` is there where it was asked for."""

    id: str
    name: str
    description: str
    userId: str
    createdAt: str
    inputSchema: dict[str, Any]
    annotations: Annotations
    tool: bool
    health: NotRequired[Health]


class Client:
    """The service, for programs.

    `url` and `apikey` are TASKSERVICE_URL and TASKSERVICE_APIKEY by default. `patience` is
    the number of seconds for which a call is retried while the service is away or busy.
    """

    def __init__(
        self,
        url: str | None = None,
        apikey: str | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.connection = Connection(url, apikey, patience)

    def __repr__(self) -> str:
        return f"<Client of {self.connection.url}>"

    def start(
        self,
        agent_id: str,
        *,
        name: str | None = None,
        input: Mapping[str, Any] | None = None,
        callback: str | None = None,
        timeout: int | None = None,
        claim: bool = True,
        labels: Mapping[str, str] | None = None,
        parent_id: str | None = None,
    ) -> Task:
        """Start a task; registers its agent if that is new.

        With `claim` the caller does the work, best in a `with` block; without, the task
        waits for a worker. `timeout` is the number of seconds that it may be silent.
        `parent_id` is the task that starts it: by default the one that this program was
        started for, if there is one and the key may see it; "" stands for none.
        """
        fields: dict[str, Any] = {"agentId": agent_id, "name": name, "input": input}
        fields |= {"callback": callback, "timeout": timeout, "claim": claim, "labels": labels}
        fields = {name: value for name, value in fields.items() if value is not None}
        parent = own_task_id() if parent_id is None else parent_id
        data = self._start(fields, parent, is_own=parent_id is None)
        return Task(self.connection, data, heartbeat=heartbeat_for(timeout))

    def _start(self, fields: dict[str, Any], parent: str, is_own: bool) -> dict[str, Any]:
        with_parent = fields | ({"parentId": parent} if parent else {})
        try:
            return start_task(self.connection, with_parent, uuid4().hex)
        except Invalid as error:
            if not is_own or "parentId" not in error.errors:
                raise
        logger.warning("Started without a parent, since this key may not see task %s", parent)
        return start_task(self.connection, fields, uuid4().hex)

    def claim(self, agent_id: str, wait: float = WAIT_SECONDS) -> Task | None:
        """Take the oldest unclaimed task of an agent; None if none comes in `wait` seconds."""
        until = time.monotonic() + wait
        while True:
            seconds = min(max(math.ceil(until - time.monotonic()), 0), WAIT_SECONDS)
            task = claim_task(self.connection, agent_id, seconds, uuid4().hex)
            if task is not None:
                return task
            if time.monotonic() + REPEAT_SECONDS > until:
                return None
            time.sleep(self.connection.seconds_before_repeat())

    def task(self, task_id: str) -> Task:
        """One task. Raises NotFound."""
        return Task(self.connection, read_task(self.connection, task_id))

    def tasks(
        self,
        *,
        status: Status | None = None,
        error_type: ErrorType | None = None,
        claimed: bool | None = None,
        agent_id: str | None = None,
        parent_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        q: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        finished_after: str | None = None,
        sort: Sort | None = None,
        fields: str = SHORT_FIELDS,
        page: int | None = None,
    ) -> Iterator[Task]:
        """All tasks that the key may see, newest first, without their logs, read page by page.

        `claimed` is whether an agent has claimed it; `labels` must all fit; `q` is a part of
        the name; moments are RFC 3339; `sort` is `-createdAt`, `createdAt` or `finishedAt`.
        `fields` names the fields to read, separated by commas; `page` is the number of tasks
        on a page.
        """
        query: dict[str, Any] = {"status": status, "errorType": error_type, "q": q, "sort": sort}
        query |= {"agentId": agent_id, "parentId": parent_id, "createdAfter": created_after}
        query |= {"createdBefore": created_before, "finishedAfter": finished_after}
        query["claimed"] = None if claimed is None else str(claimed).lower()
        query["label"] = [f"{key}:{value}" for key, value in (labels or {}).items()]
        given = {name: value for name, value in query.items() if value is not None}
        given |= {"fields": fields, "limit": str(page or PAGE_TASKS)}
        return self._pages(given, responses.tasks(fields))

    def _pages(self, query: dict[str, Any] | str, expected: responses.Expected) -> Iterator[Task]:
        while True:
            response = self.connection.call("GET", "/task", expected, params=query)
            for data in response.data:
                yield Task(self.connection, data)
            link = _NEXT.search(response.headers.get("Link", ""))
            if link is None:
                return
            query = link[1]

    def agents(self, health: bool = False) -> list[Agent]:
        """All agents that the key may see, by their ids; with `health` how their tasks went."""
        expected = responses.AGENTS_WITH_HEALTH if health else responses.FULL_AGENTS
        query = {"expand": "health"} if health else {}
        agents: list[Agent] = self.connection.call("GET", "/agent", expected, params=query).data
        return agents

    def register(
        self,
        agent_id: str,
        name: str | None = None,
        description: str | None = None,
        input_schema: dict[str, Any] | None = None,
        annotations: Annotations | None = None,
        tool: bool | None = None,
    ) -> None:
        """Register an agent, or change what is not None.

        `input_schema` is the JSON Schema of its tasks' input, by which the service checks each
        unclaimed start and each rerun.
        """
        fields = {
            "name": name,
            "description": description,
            "inputSchema": input_schema,
            "annotations": annotations,
            "tool": tool,
        }
        register_agent(self.connection, agent_id, fields)

    def delete_agent(self, agent_id: str) -> None:
        """Delete an agent and its keys. Raises Conflict while it has tasks."""
        self.connection.call("DELETE", f"/agent/{path_segment(agent_id)}", responses.AGENT)

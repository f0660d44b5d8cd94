"""The class `Client`, the entry point of the Python client."""

import logging
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, overload
from uuid import uuid4

from taskservice.client.current_task import current_task_id
from taskservice.client.http import REPEAT_SECONDS, RETRY_SECONDS, WAIT_SECONDS, Connection
from taskservice.client.objects import (
    Agent,
    Annotations,
    Attention,
    Delivery,
    Expect,
    Hook,
)
from taskservice.client.responses import AGENT, Expected, Invalid, Object, Objects
from taskservice.client.sender import heartbeat_for
from taskservice.client.task import (
    SHORT_FIELDS,
    Task,
    answer_schema,
    ask_alone,
    claim_task,
    not_none,
    pages,
    path_to,
    read_task,
    register_agent,
    start_task,
)
from taskservice.terms import BulkAction, ErrorType, Sort, Status

logger = logging.getLogger(__name__)

PAGE_TASKS = 100

_AGENTS: Expected[list[Agent]] = Expected(Agent, is_list=True)
_ATTENTION: Expected[list[Attention]] = Expected(Attention, is_list=True)
_HOOK: Expected[Hook] = Expected(Hook)
_HOOKS: Expected[list[Hook]] = Expected(Hook, is_list=True)


class Client:
    """Connects to a taskservice server with one API key.

    Threads and forked child processes can share a client. Creating a client sends no request.
    Each call blocks until the service has responded, and is retried for up to `retry_timeout`
    seconds while the service is unreachable or busy. A retried call takes effect only once.

    Args:
        url: Address of the service, such as "https://tasks.example.org"
            (default: the environment variable TASKSERVICE_URL, or the profile of
            `taskservice login`).
        apikey: A user key or an agent key (default: the environment variable
            TASKSERVICE_APIKEY, or the profile of `taskservice login`).
        retry_timeout: Seconds to keep retrying a call (default: 60).

    Raises:
        SettingError: The address or the key is missing or malformed.

    All calls can also raise Unreachable or Unavailable after `retry_timeout` seconds, NotTheService
    if another program responds at the address, and InvalidKey if the key is not valid.
    """

    def __init__(
        self,
        url: str | None = None,
        apikey: str | None = None,
        retry_timeout: float = RETRY_SECONDS,
    ) -> None:
        self.connection = Connection(url, apikey, retry_timeout)

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
        claimed_at: str | None = None,
    ) -> Task:
        """Start a task, and register its agent if the agent does not exist yet.

        If this program does the work, use the returned task in a `with` block. At its end, the
        block reports `complete`. If an exception leaves the block, it logs the traceback and
        reports `error`.

        Args:
            agent_id: ID of the agent: 1 to 64 characters of a-z, 0-9, ".", "_" and "-"; the
                first character is a letter or a digit.
            name: Display name, up to 200 characters (default: the agent's name).
            input: JSON object, up to 1 MiB. With `claim=False`, the input must match
                the agent's input schema.
            callback: http(s) URL, up to 2,000 bytes, that receives a signed webhook when the
                task ends.
            timeout: Seconds without a line, report or heartbeat after which the service ends
                the task, up to 366 days; 0 for no timeout (default: 24 hours, unless the
                service is configured otherwise). A `with` block sends heartbeats.
            claim: True if this program does the work; False leaves the task to a worker.
            labels: Up to 16 key-value pairs to filter tasks by; each value has 1 to 256
                characters.
            parent_id: ID of the parent task; "" for no parent (default: the current task, if
                there is a current task and the key has access to it).
            claimed_at: RFC 3339 time at which the work began, if it began before this call; at
                most 30 days ago. Log lines can have any time since then.

        Raises:
            Invalid: A value was rejected; `errors` maps each field to messages.
            TooLarge: The input is larger than 1 MiB.
            NotFound: An agent key was used for another agent.

        Example:
            >>> task = client.start("reader", input={"pages": 2}, claim=False)
            >>> task.status, task.input
            ('running', {'pages': 2})
        """
        fields = not_none(
            agentId=agent_id, name=name, input=input, callback=callback, labels=labels
        )
        fields |= not_none(timeout=timeout, claim=claim, claimedAt=claimed_at)
        parent = current_task_id() if parent_id is None else parent_id
        try:
            with_parent = fields | not_none(parentId=parent or None)
            data = start_task(self.connection, with_parent, uuid4().hex)
        except Invalid as error:
            if parent_id is not None or "parentId" not in error.errors:
                raise
            logger.warning("Started without a parent: the key has no access to task %s", parent)
            data = start_task(self.connection, fields, uuid4().hex)
        return Task(self.connection, data, heartbeat=heartbeat_for(timeout))

    @overload
    def ask(
        self,
        message: str,
        *,
        timeout: int | None = None,
        choices: Sequence[str] | None = None,
        agent_id: str | None = None,
    ) -> str: ...

    @overload
    def ask(
        self,
        message: str,
        schema: Mapping[str, Any],
        timeout: int | None = None,
        *,
        agent_id: str | None = None,
    ) -> dict[str, Any]: ...

    def ask(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        timeout: int | None = None,
        *,
        choices: Sequence[str] | None = None,
        agent_id: str | None = None,
    ) -> str | dict[str, Any]:
        """Ask a person a question, in a separate task, and wait for the answer.

        Returns a string, or a dictionary if `schema` is given. The task ends with the answer as its
        output; without an answer, with the output `{"state": "expired"}` or "declined". An
        exception that interrupts the wait, such as KeyboardInterrupt, cancels the task.

        Args:
            message: The question, 1 to 4,000 characters; its first line is the task's name.
            schema: JSON Schema of an object with simple properties.
            timeout: Seconds until the question expires (default: one day); 0 for no expiry.
            choices: The allowed answers.
            agent_id: ID of the agent (default: "ask", or the agent to which an agent key belongs).

        Raises:
            QuestionDeclined, QuestionExpired, QuestionWithdrawn: The question was not answered.
            TaskCancelled, TaskFinished, NotFound: Another program ended or deleted the task.
            Invalid: The question or its schema was rejected.

        Example:
            >>> client.ask("Delete 34 files?", choices=["yes", "no"], timeout=3600)
            'yes'
        """
        question = ask_alone(
            self.connection,
            message,
            answer_schema(schema, choices),
            timeout,
            agent_id=agent_id,
            parent_id=current_task_id(),
        )
        answer = question["answer"] or {}
        return answer if schema is not None else str(answer["answer"])

    def claim(self, agent_id: str, wait: float = WAIT_SECONDS) -> Task | None:
        """Claim the oldest waiting task of an agent; return None if no task is waiting.

        Blocks for up to `wait` seconds. Only one caller can claim a task.

        Args:
            agent_id: ID of the agent.
            wait: Seconds to wait for a task (default: 30); 0 returns immediately.

        Raises:
            NotFound: The agent does not exist, or the key has no access to it.

        Example:
            >>> waiting = client.start("reader", input={"pages": 2}, claim=False)
            >>> if task := client.claim("reader"):
            ...     with task:
            ...         task.output["read"] = task.input["pages"]
            >>> waiting.refresh().data["output"]
            {'read': 2}
        """
        until = time.monotonic() + wait
        while True:
            seconds = min(max(math.ceil(until - time.monotonic()), 0), WAIT_SECONDS)
            task = claim_task(self.connection, agent_id, seconds)
            if task is not None or time.monotonic() + REPEAT_SECONDS > until:
                return task
            time.sleep(self.connection.seconds_before_repeat())

    def task(self, task_id: str) -> Task:
        """Return one task, without its log.

        Raises:
            NotFound: The task does not exist or was deleted, or the key has no access to it.
        """
        return Task(self.connection, read_task(self.connection, task_id))

    def tasks(
        self,
        *,
        status: Status | None = None,
        error_type: ErrorType | None = None,
        claimed: bool | None = None,
        asking: bool | None = None,
        hanging: bool | None = None,
        agent_id: str | None = None,
        parent_id: str | None = None,
        labels: Mapping[str, str] | None = None,
        q: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        finished_after: str | None = None,
        sort: Sort | None = None,
        fields: str = SHORT_FIELDS,
        page_size: int | None = None,
    ) -> Iterator[Task]:
        """Iterate over the tasks that the key has access to, without their logs.

        A task must match all given filters. The iterator blocks while it requests the next
        page. Times are RFC 3339 strings, such as "2026-11-24T13:36:00Z".

        Args:
            status: "running", "complete" or "error".
            error_type: "failed", "cancelled" or "timeout".
            claimed: True for claimed tasks, False for waiting tasks.
            asking: True for tasks with open questions, False for all others.
            hanging: True for tasks that have run or been silent for too long, False for all others.
            agent_id: ID of the agent.
            parent_id: ID of the parent task.
            labels: Key-value pairs, all of which a task must have.
            q: Text in the name of a task; case is ignored.
            created_after, created_before, finished_after: Exclusive bounds.
            sort: "-createdAt" (default: newest first), "createdAt", or "finishedAt", which
                lists finished tasks only.
            fields: Names of the fields to read, separated by commas, including "id" (default:
                all fields except the log). A property whose field was not read raises KeyError.
            page_size: Tasks per request, 1 to 1,000 (default: 100).

        Raises:
            Invalid: A filter is invalid. The error is raised when the iteration starts.

        Example:
            >>> client.start("backup", name="nightly").fail("The disk is full")
            >>> for task in client.tasks(error_type="failed", q="night"):
            ...     print(task.name, task.error["message"])
            nightly The disk is full
        """
        query: dict[str, Any] = {"status": status, "errorType": error_type, "q": q, "sort": sort}
        query |= {"agentId": agent_id, "parentId": parent_id, "createdAfter": created_after}
        query |= {"createdBefore": created_before, "finishedAfter": finished_after}
        flags = not_none(claimed=claimed, asking=asking, hanging=hanging)
        for name, value in flags.items():
            query[name] = str(value).lower()
        query["label"] = [f"{key}:{value}" for key, value in (labels or {}).items()]
        query |= {"fields": fields, "limit": str(page_size or PAGE_TASKS)}
        responses = pages(self.connection, "/task", query, Objects(fields, is_list=True))
        return (Task(self.connection, data) for response in responses for data in response.data)

    def agents(self, health: bool = False) -> list[Agent]:
        """Return all agents that the key has access to, sorted by ID.

        Args:
            health: Whether to include `health`, statistics on each agent's last 30 finished tasks.

        Example:
            >>> client.register_agent("reader", name="Reader")
            >>> [agent["name"] for agent in client.agents() if agent["id"] == "reader"]
            ['Reader']
        """
        query = {"expand": "health"} if health else {}
        return self.connection.call("GET", "/agent", _AGENTS, params=query).data

    def attention(self) -> list[Attention]:
        """Return at most 100 items that need a person's attention, the most urgent first.

        Example:
            >>> with client.start("reader", name="nightly") as task:
            ...     task.fail("The disk is full")
            >>> [(item["kind"], item["text"]) for item in client.attention()]
            [('broken', 'The last task failed: The disk is full')]
        """
        return self.connection.call("GET", "/attention", _ATTENTION).data

    def bulk(self, action: BulkAction, task_ids: Iterable[str]) -> dict[str, Any]:
        """Cancel, delete or rerun many tasks. Requires a user key.

        Sends one request per 100 tasks, and blocks until the service has responded to all
        requests. If a response is lost and the request is retried, the tasks that the first
        request deleted count as refused, with the code "not_found".

        Args:
            action: "cancel", "delete" or "rerun".
            task_ids: IDs of the tasks; duplicates count once.

        Returns:
            A dictionary: `done` is the number of changed tasks, `refused` lists the other tasks,
            each with its `id` and an error `code`, and `tasks` lists the IDs of tasks that "rerun"
            has started.

        Example:
            >>> waiting = [client.start("reader", claim=False).id for _ in range(3)]
            >>> client.bulk("delete", waiting)["done"]
            3
        """
        ids = list(dict.fromkeys(task_ids))
        total: dict[str, Any] = {"done": 0, "refused": [], "tasks": []}
        for start in range(0, len(ids), PAGE_TASKS):
            body = {"action": action, "taskIds": ids[start : start + PAGE_TASKS]}
            headers = {"Idempotency-Key": uuid4().hex}
            part = self.connection.call(
                "POST", "/task/bulk", Object("done,refused"), json=body, headers=headers
            ).data
            total["done"] += part["done"]
            total["refused"] += part["refused"]
            total["tasks"] += part.get("tasks", [])
        return total

    def register_agent(
        self,
        agent_id: str,
        name: str | None = None,
        description: str | None = None,
        input_schema: dict[str, Any] | None = None,
        annotations: Annotations | None = None,
        tool: bool | None = None,
        expect: Expect | None = None,
    ) -> None:
        """Register an agent, or update an existing agent. Arguments that are None change nothing.

        Args:
            agent_id: 1 to 64 characters of a-z, 0-9, ".", "_" and "-".
            name: Display name, up to 200 characters (default of a new agent: its ID).
            description: What the agent does, up to 2,000 characters.
            input_schema: JSON Schema of the tasks' input, up to 16 KiB. The service validates
                the input of reruns, and of tasks that are started with `claim=False`.
            annotations: MCP tool hints; they replace all earlier hints.
            tool: Whether MCP clients get a tool for this agent; by default, they do if a worker of
                the agent was seen in the last 30 days.
            expect: When its tasks are expected to start, such as `{"every": 90_000}` or
                `{"cron": "0 2 * * *", "timeZone": "Europe/Berlin"}`, and how long they may run,
                such as `{"maxDuration": 7_200}`; `{}` removes these expectations.

        Raises:
            Invalid: The ID, the schema or another value was rejected; see `errors`.
            NotFound: An agent key was used for another agent.

        Example:
            >>> schema = {"type": "object", "properties": {"pages": {"type": "integer"}}}
            >>> client.register_agent("reader", description="Reads pages.", input_schema=schema)
        """
        fields = not_none(name=name, description=description, tool=tool, annotations=annotations)
        fields |= not_none(inputSchema=input_schema)
        if expect is not None:
            fields["expect"] = None if expect == {} else expect
        register_agent(self.connection, agent_id, fields)

    def delete_agent(self, agent_id: str) -> None:
        """Delete an agent and the agent keys that belong to it.

        Raises:
            Conflict: The agent has tasks; delete them first.
            NotFound: The agent does not exist.
            Forbidden: The key is an agent key.
        """
        self.connection.call("DELETE", path_to("agent", agent_id), AGENT)

    def hooks(self) -> list[Hook]:
        """Return all hooks of the user, oldest first. Requires a user key."""
        return self.connection.call("GET", "/hook", _HOOKS).data

    def add_hook(
        self,
        target: str,
        *,
        name: str | None = None,
        format: str | None = None,
        events: Sequence[str] | None = None,
        agent_id: str | None = None,
        label: str | None = None,
        token: str | None = None,
        answer_links: bool = False,
        after: int | None = None,
    ) -> Hook:
        """Create a hook, which notifies an address of future events.

        This call is not retried, since a second request would create a second hook.

        Args:
            target: http(s) URL, or "mailto:ADDRESS".
            name: Display name (default: the address without its secret part).
            format: "standard", "ntfy", "slack" or "mail" (default: depends on the target).
            events: Names of events, such as "agent.broken" (default: as in `taskservice hook add`).
            agent_id: ID of the only agent whose events are sent (default: all agents).
            label: Label that a task must have for its events to be sent, as "key:value".
            token: The access token of an ntfy server.
            answer_links: Whether a message about a question contains a link to answer the question.
            after: The number of failures in a row after which "agent.broken" is sent (default: 1).

        Raises:
            Invalid: A value was rejected; `errors` maps each field to messages.
            Conflict: The user has 50 hooks already.

        Example:
            >>> hook = client.add_hook("http://127.0.0.1:2586/alerts", format="ntfy")
            >>> hook["state"]
            'active'
        """
        fields = not_none(target=target, name=name, format=format, events=events, agentId=agent_id)
        fields |= not_none(label=label, token=token, answerLinks=answer_links, after=after)
        return self.connection.once("POST", "/hook", _HOOK, json=fields).data

    def update_hook(self, hook_id: str, **changes: Any) -> Hook:
        """Update fields of a hook, named as in the API; `state="active"` turns the hook on.

        Example:
            >>> hook = client.add_hook("http://127.0.0.1:2586/alerts", format="ntfy")
            >>> client.update_hook(hook["id"], agentId="reader", state="active")["agentId"]
            'reader'
        """
        return self.connection.call("PATCH", path_to("hook", hook_id), _HOOK, json=changes).data

    def delete_hook(self, hook_id: str) -> None:
        """Delete a hook, and send nothing more to it."""
        self.connection.call("DELETE", path_to("hook", hook_id), _HOOK)

    def test_hook(self, hook_id: str) -> dict[str, Any]:
        """Send a sample event to a hook, and return the outcome.

        The outcome contains `delivered`, `statusCode` (None without a response) and `message`. A
        user can send at most ten tests per minute, and one test per 10 seconds to the same address.
        This call is not retried, since a second request would send a second test.

        Raises:
            Unavailable: Too many tests were sent.
        """
        path, expected = path_to("hook", hook_id, "test"), Object("delivered,statusCode,message")
        return self.connection.once("POST", path, expected).data

    def hook_deliveries(self, hook_id: str) -> list[dict[str, Any]]:
        """Return the newest 100 deliveries of a hook, newest first.

        A delivery contains `event`, `agentId`, `taskId`, `createdAt`, `state`, `nextAttemptAt`,
        and `attempts`, oldest first. An attempt contains `at`, `durationMs`, `statusCode` and
        `message`.
        """
        path, expected = path_to("hook", hook_id, "deliveries"), Objects(Delivery, is_list=True)
        return self.connection.call("GET", path, expected).data

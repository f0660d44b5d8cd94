"""The class `Task`, for programs that work on a task or watch it."""

import json
import math
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import chain, count, repeat
from typing import Any, NamedTuple, NoReturn, cast, overload
from urllib.parse import quote
from uuid import uuid4

from taskservice import terms
from taskservice.client import responses, spool
from taskservice.client.http import RETRY_SECONDS, WAIT_SECONDS, Connection
from taskservice.client.responses import (
    Expected,
    Failure,
    Object,
    Question,
    T,
    TaskServiceError,
)
from taskservice.client.sender import (
    CLAIMED_HEARTBEAT_SECONDS,
    HEARTBEAT_SECONDS,
    Outbox,
    heartbeat_for,
)
from taskservice.quantities import seconds_text
from taskservice.terms import Status

# The fields of a task that the client reads: all except the log, which can be long.
SHORT_FIELDS = (
    "id,name,agentId,userId,createdAt,updatedAt,claimedAt,finishedAt,firstLog,logCount,input,output,"
    "status,error,progress,seconds,labels,questions,startedBy,endedBy,hangingSince,note,parentId,"
    "rerunOf,callback"
)
SHORT = {"fields": SHORT_FIELDS}
SHORT_TASK = Object(SHORT_FIELDS)
ONLY_ID: dict[str, Any] = {"params": {"fields": "id"}}
_NEXT = re.compile(r'<\?([^>]*)>; rel="next"')
_LOG_PAGE = Object("logs,next,status", is_log=True)
_TIMED_LOG_PAGE = Object("logs,next,status,times", is_log=True)
_LINK = Object("id,url,createdAt,expiresAt")
_CLAIMED: Expected[dict[str, Any] | None] = Expected(SHORT_FIELDS, is_optional=True)


def start_task(
    connection: Connection, fields: Mapping[str, Any], idempotency_key: str, **options: Any
) -> dict[str, Any]:
    """Start a task once per idempotency key; register the agent if it does not exist yet."""
    headers = {"Idempotency-Key": idempotency_key}
    start = partial(
        connection.call, "POST", "/task", SHORT_TASK, json=fields, headers=headers, **options
    )
    try:
        return start().data
    except responses.Invalid as error:
        if "agentId" not in error.errors:
            raise
        register_agent(connection, fields["agentId"], **options)
        return start().data


def read_task(connection: Connection, task_id: str) -> dict[str, Any]:
    return connection.call("GET", path_to("task", task_id), SHORT_TASK, params=SHORT).data


def claim_task(
    connection: Connection, agent_id: str, seconds: int, **options: Any
) -> "Task | None":
    """Claim an agent's oldest waiting task; return None if no task arrives within `seconds`."""
    # The key prevents a repeated request from claiming another task.
    options["headers"] = {"Idempotency-Key": uuid4().hex}
    path = path_to("agent", agent_id, "claim")
    response = connection.call("POST", path, _CLAIMED, wait=seconds, **options)
    if response.data is None:
        return None
    json_text = response.content.decode()
    return Task(connection, response.data, heartbeat=CLAIMED_HEARTBEAT_SECONDS, json_text=json_text)


def pages(
    connection: Connection, path: str, query: dict[str, Any] | str, expected: Expected[T]
) -> Iterator[responses.Response[T]]:
    """Generate the pages of a list or a search, by following the `Link` headers."""
    while True:
        response = connection.call("GET", path, expected, params=query)
        yield response
        link = _NEXT.search(response.headers.get("Link", ""))
        if link is None:
            return
        query = link[1]


def register_agent(
    connection: Connection, agent_id: str, body: Mapping[str, Any] = {}, **options: Any
) -> None:
    """Register an agent, or update an existing agent with the fields in `body`."""
    connection.call("PUT", path_to("agent", agent_id), responses.AGENT, json=body, **options)


def not_none(**fields: Any) -> dict[str, Any]:
    """The fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}


def path_to(*names: str) -> str:
    """The URL path of these names and IDs; a slash, or an ID of only dots, becomes a hyphen."""
    texts = [text.replace("/", "-") if text.strip(".") else "-" for text in names]
    return "".join(["/" + quote(text, safe="", errors="replace") for text in texts])


WITHDRAW_SECONDS = 5.0  # how long an interrupted program tries to withdraw its question
POLL_SECONDS = 2  # how often `Task.follow` checks for new questions


_QUESTION: Expected[Question] = Expected(Question)
_QUESTIONS: Expected[list[Question]] = Expected(Question, is_list=True)


def answer_schema(
    schema: Mapping[str, Any] | None, choices: Sequence[str] | None
) -> Mapping[str, Any] | None:
    """The schema of the answer. Raises ValueError if both a schema and choices are given."""
    if schema is not None and choices is not None:
        raise ValueError("a question has either a schema or choices")
    return schema if choices is None else schema_of_choices(choices)


def schema_of_choices(choices: Sequence[str]) -> dict[str, Any]:
    """The schema for an answer that is one of these strings."""
    choice = {"type": "string", "enum": list(dict.fromkeys(choices))}
    return {"type": "object", "properties": {"answer": choice}, "required": ["answer"]}


def ask(
    connection: Connection,
    task_id: str,
    message: str,
    schema: Mapping[str, Any] | None = None,
    timeout: int | None = None,
    **options: Any,
) -> Question:
    """Ask a question and wait for the answer; return the answered question."""
    # The message can contain lone surrogates, for example in a file name.
    text = message.encode(errors="replace").decode()
    post = partial(
        connection.call, "POST", path_to("task", task_id, "question"), _QUESTION,
        json=not_none(message=text, schema=schema, timeout=timeout),
        # The key prevents a repeated request from asking another question.
        headers={"Idempotency-Key": uuid4().hex},
    )  # fmt: skip
    until = time.monotonic() + seconds_open(timeout)
    try:
        question = post(**options).data
        while question["state"] == terms.OPEN:
            path = path_to("task", task_id, "question", question["id"])
            retry_timeout = max(until - time.monotonic(), RETRY_SECONDS)
            question = connection.call(
                "GET", path, _QUESTION, wait=WAIT_SECONDS, retry_timeout=retry_timeout, **options
            ).data
            if question["state"] == terms.OPEN:
                time.sleep(connection.seconds_before_repeat())
    except TaskServiceError:
        raise
    except BaseException:
        with suppress(TaskServiceError):
            opened = post(retry_timeout=WITHDRAW_SECONDS).data
            path = path_to("task", task_id, "question", opened["id"])
            connection.call("DELETE", path, _QUESTION, retry_timeout=WITHDRAW_SECONDS)
        raise
    if question["state"] != terms.ANSWERED:
        _raise_reason(connection, task_id, question)
    return question


# The timeout in seconds of a task that only asks a question.
ASKING_TIMEOUT = 600


def ask_alone(
    connection: Connection,
    message: str,
    schema: Mapping[str, Any] | None = None,
    timeout: int | None = None,
    *,
    agent_id: str | None = None,
    parent_id: str | None = None,
    on_start: Callable[["Task"], object] = lambda task: None,
    **options: Any,
) -> Question:
    """Like `ask`, but in a new task that only asks the question.

    The default agent is the agent of an agent key; for other keys, it is `ask`.
    """
    # Do not retry the start of the task for longer than the question's timeout.
    options_of_start = {**options, "retry_timeout": min(seconds_open(timeout), RETRY_SECONDS)}
    if agent_id is None and connection.agent_key_hint:
        user = connection.call("GET", "/user", responses.USER, **options_of_start).data
        agent_id = user["key"]["agentId"]
    name = message.strip().partition("\n")[0][: terms.MAX_NAME]
    fields = not_none(name=name or None, parentId=parent_id or None)
    fields |= {"agentId": agent_id or "ask", "claim": True, "timeout": ASKING_TIMEOUT}
    data = start_task(connection, fields, uuid4().hex, **options_of_start)
    question: Question | None = None
    try:
        with Task(connection, data, heartbeat=heartbeat_for(ASKING_TIMEOUT)) as task:
            on_start(task)
            question = _ask_and_end(connection, task, message, schema, timeout, **options)
    except TaskServiceError:
        # The answer is returned even if the end of the task could not be reported.
        if question is None or question["state"] != terms.ANSWERED:
            raise
    return question


def _ask_and_end(connection: Connection, task: "Task", *arguments: Any, **options: Any) -> Question:
    try:
        question = ask(connection, task.id, *arguments, **options)
    except (responses.QuestionNotAnswered, responses.Refused) as error:
        # No failure: a question without an answer must not break the agent and notify people.
        state = "refused"
        if isinstance(error, responses.QuestionNotAnswered):
            state = error.question["state"]
        with suppress(TaskServiceError):
            task.complete(state=state)
        raise
    except (KeyboardInterrupt, SystemExit):
        end_interrupted(task)
        raise
    task.output.update(question["answer"] or {})
    return question


def end_interrupted(task: "Task") -> None:
    """End a task whose program was interrupted, if the service is available."""
    # Only a user key can cancel a task.
    try:
        task.cancel()
    except TaskServiceError:
        with suppress(TaskServiceError):
            task.complete(state="interrupted")


def seconds_open(timeout: int | None) -> float:
    """The seconds until a question expires; infinite for a timeout of 0."""
    return math.inf if timeout == 0 else timeout or terms.QUESTION_TIMEOUT


def _raise_reason(connection: Connection, task_id: str, question: Question) -> NoReturn:
    """Raise the error for a question that was not answered."""
    if question["state"] == terms.DECLINED:
        raise responses.QuestionDeclined(question)
    if question["state"] == terms.EXPIRED:
        raise responses.QuestionExpired(question)
    # If the task has ended or was deleted, this heartbeat raises the error.
    path = path_to("task", task_id, "logs")
    connection.call("POST", path, responses.APPENDED, json={"logs": []})
    raise responses.QuestionWithdrawn(question)


def list_questions(connection: Connection, task_id: str) -> list[Question]:
    """All questions of a task, oldest first."""
    return connection.call("GET", path_to("task", task_id, "question"), _QUESTIONS).data


class Output(dict[str, Any]):
    """A task's output. Setting a value that is not JSON raises TypeError or ValueError."""

    def __setitem__(self, key: str, value: Any) -> None:
        _check_output({key: value})
        super().__setitem__(key, value)

    setdefault = MutableMapping.setdefault
    update = MutableMapping.update

    def __ior__(self, other: Any) -> "Output":  # type: ignore[misc, override]
        self.update(other)
        return self


def _check_output(members: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a key or value that is not JSON."""
    for key, value in members.items():
        if not isinstance(key, str):
            raise TypeError(f"The key {key!r} of an output must be a string")
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(f"output[{key!r}] is not JSON: {error}") from None


class Line(NamedTuple):
    """A line of a log; `str(line)` is its text.

    `number` counts from 1. `at` is the RFC 3339 time at which the program printed the line;
    None if times were not requested, or the time is unknown.
    """

    number: int
    text: str
    at: str | None = None

    def __str__(self) -> str:
        return self.text


class Task:
    """A task, in the state in which it was last read; `refresh` reads it again.

    `Client.start`, `Client.claim`, `Client.task`, `Client.tasks` and `current` return tasks. As a
    context manager, a task sends heartbeats. At the end of the block, it sends the remaining lines
    and reports the final status: `complete`, or `error` if an exception leaves the block. The
    exception is not suppressed. Without a `with` block, the program spends up to 5 seconds at exit
    sending the remaining lines.

    Calls that block are retried like the calls of a Client, and can raise the same errors. Threads
    and forked child processes can share a task.

    Attributes:
        id: The ID, a UUID.
        data: The task as the API returns it, without its log.

    Example:
        >>> with client.start("reader", labels={"env": "test"}) as task:
        ...     for page in range(1, 4):
        ...         task.log("page", page)
        ...         task.progress(page, 3, "pages")
        ...     task.output["pages"] = page
        >>> print(task.status, task.output, task.labels, task.data["note"])
        complete {'pages': 3} {'env': 'test'} 3 of 3 pages
        >>> [line.text for line in task.lines()]
        ['page 1', 'page 2', 'page 3']
    """

    def __init__(
        self,
        connection: Connection,
        data: Mapping[str, Any],
        writer: str = "python",
        reports_end: bool = True,
        heartbeat: float = HEARTBEAT_SECONDS,
        json_text: str = "",
    ) -> None:
        self.data = dict(data)
        self.json_text = json_text  # the JSON text of a claimed task, as the service sent it
        self.id = str(data["id"])
        self._output = Output(data.get("output") or {})
        self._connection = connection
        self._outbox = Outbox(connection, self.id, writer, heartbeat)
        # Whether the `with` block reports the final status. For a task from `current`, `taskservice
        # run` reports the status instead.
        self._reports_end = reports_end
        self._has_ended = False

    def __repr__(self) -> str:
        data = {"name": "?", "agentId": "?", "status": "?"} | self.data
        progress = data.get("progress")
        share = "" if progress is None or data["status"] != terms.RUNNING else f" {progress:.0%}"
        error = f" ({data['error']['type']})" if data.get("error") else ""
        name, agent = data["name"], data["agentId"]
        return f"<Task {self.id} {name!r} of {agent}: {data['status']}{share}{error}>"

    @property
    def output(self) -> dict[str, Any]:
        """The output, a dictionary of up to 1 MiB of JSON, which the `with` block reports.

        Setting a value that cannot be represented in JSON raises TypeError or ValueError.
        """
        return self._output

    @output.setter
    def output(self, members: Mapping[str, Any]) -> None:
        _check_output(members)
        self._output = Output(members)

    @property
    def url(self) -> str:
        """The address of the task in the API."""
        return f"{self._connection.url}{terms.API_PREFIX}/task/{self.id}"

    @property
    def page_url(self) -> str:
        """The address of the task page in the dashboard."""
        return f"{self._connection.url}/tasks/{self.id}"

    @property
    def name(self) -> str:
        """The display name."""
        return str(self.data["name"])

    @property
    def agent_id(self) -> str:
        """The ID of the agent."""
        return str(self.data["agentId"])

    @property
    def status(self) -> Status:
        """`running`, `complete` or `error`."""
        return cast(Status, self.data["status"])

    @property
    def error(self) -> Failure | None:
        """A dictionary with the `type` and `message` of the error; None without an error."""
        return cast(Failure | None, self.data["error"])

    @property
    def labels(self) -> Mapping[str, str]:
        """The key-value pairs to filter tasks by; `report(labels=...)` changes them."""
        return cast(Mapping[str, str], self.data["labels"])

    @property
    def questions(self) -> list[Question]:
        """The open questions of the task, oldest first."""
        return cast(list[Question], self.data["questions"])

    @property
    def input(self) -> Mapping[str, Any]:
        """The input that the task was started with."""
        return cast(Mapping[str, Any], self.data["input"])

    # --- doing the work ------------------------------------------------------------------

    def log(self, *values: object) -> None:
        """Add a line to the log: the values as text, separated by spaces, as in `print`.

        A line feed starts a new line. A line over 64 KiB is truncated, and ends with a marker.
        When the log has reached 100 MiB, a marker is added, and further lines are dropped. Returns
        immediately: a background thread sends the lines in order, each of them once. Blocks only
        while 16 MiB of lines are waiting to be sent.

        Raises:
            TaskCancelled: The task was cancelled. Stop working.
            NotFound: The task was deleted. Stop working.
            Unreachable: 16 MiB of lines are waiting, and the service has not responded for
                `retry_timeout` seconds. The waiting lines are sent later.
        """
        self.log_at(spool.now(), " ".join(map(str, values)))

    def log_at(self, milliseconds: int, text: str) -> None:
        """Add the lines of a text, like `log`, with the time at which they were printed.

        Args:
            milliseconds: The time when the text was printed, in milliseconds since 1970-01-01
                UTC. The service replaces a future time with the current time.
            text: One or more lines.

        Raises:
            TaskCancelled, NotFound, Unreachable: See `log`.
        """
        self._outbox.put_lines(milliseconds, text)

    def report(self, **changes: Any) -> None:
        """Update the task. Blocks until the service has stored the changes.

        Args:
            output: Dictionary to merge into the stored output; values of the same key are replaced.
            labels: Dictionary; a value of None removes the label.
            name, note: Up to 200 characters.
            progress: Number from 0 to 1.
            status: "complete" or "error", which ends the task. The waiting lines are sent first.
            error: `{"message": ...}`, up to 64 KiB, with the status "error".

        Raises:
            TaskCancelled, TaskFinished: The task has already ended.
            NotFound: The task was deleted.
            Invalid: A value was rejected; `errors` maps each field to messages.
            TypeError, ValueError: The output cannot be represented in JSON.

        Example:
            >>> task.report(output={"pages": 3}, labels={"env": None})
        """
        _check_output(changes.get("output") or {})
        sending = self._outbox.sender
        if "status" in changes and sending is not None:
            self._finish(changes)
        else:
            changes = (sending.pop_progress() if sending else {}) | changes
            self._update("PATCH", json=changes, pause=self._outbox.pause)
        self._has_ended = self._has_ended or "status" in changes

    def progress(
        self, done: float, total: float = 1, unit: str = "", *, note: str | None = None
    ) -> None:
        """Report the progress. Returns immediately, so a loop can call this in each iteration.

        A background thread sends the latest value, at most once a second.

        Args:
            done, total: The progress is `done / total`. Without a total, `done` is from 0 to 1.
            unit: Unit in the note: `progress(34, 68, "pages")` sets the note "34 of 68 pages".
            note: Note to set instead, truncated to 200 characters.

        Raises:
            ValueError: `done` is not from 0 to `total`, or `total` is not positive and finite.
            TaskCancelled, NotFound: The task was cancelled or deleted. Stop working.

        Example:
            >>> task.progress(34, 68, "pages")
            >>> task.progress(0.75, note="the last chapter")
        """
        if not 0 <= done <= total or not 0 < total < math.inf:
            raise ValueError(f"progress must be from 0 to its total, not {done} of {total}")
        if note is None and (unit or total != 1):
            note = f"{done:,} of {total:,} {unit}".rstrip()
        changes: dict[str, Any] = {"progress": done / total}
        if note is not None:
            text = note.encode(errors="replace").decode().replace("\0", "\ufffd")
            changes["note"] = text[: terms.MAX_NOTE]
        sending = self._outbox.start()
        self._outbox.check()
        sending.put_progress(changes)

    @overload
    def ask(
        self, message: str, *, timeout: int | None = None, choices: Sequence[str] | None = None
    ) -> str: ...

    @overload
    def ask(
        self, message: str, schema: Mapping[str, Any], timeout: int | None = None
    ) -> dict[str, Any]: ...

    def ask(
        self,
        message: str,
        schema: Mapping[str, Any] | None = None,
        timeout: int | None = None,
        *,
        choices: Sequence[str] | None = None,
    ) -> str | dict[str, Any]:
        """Ask a person a question, and wait for the answer.

        Blocks until the question is closed, even if the service is temporarily unavailable. An
        exception that interrupts the wait, such as KeyboardInterrupt, withdraws the question. A
        task can have up to 8 open questions.

        Args:
            message: The question, 1 to 4,000 characters.
            schema: JSON Schema of an object with simple properties, for an answer with several
                fields. Cannot be combined with `choices`.
            timeout: Seconds until the question expires, up to 366 days (default: one day); 0
                for no expiry.
            choices: The allowed answers.

        Returns:
            The answer as a string, or as a dictionary if `schema` is given.

        Raises:
            QuestionDeclined, QuestionExpired, QuestionWithdrawn: The question was not answered.
            TaskCancelled, TaskFinished, NotFound: The task ended or was deleted.
            Invalid: The question or its schema was rejected.
            Conflict: The task already has 8 open questions.

        Example:
            >>> task.ask("Delete 34 files?", choices=["yes", "no"], timeout=3600)
            'yes'
        """
        question = ask(
            self._connection,
            self.id,
            message,
            answer_schema(schema, choices),
            timeout,
            pause=self._outbox.pause,
        )
        answer = question["answer"] or {}
        return answer if schema is not None else str(answer["answer"])

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A context manager that logs how long its block took, or that the block failed.

        The line is "NAME took 2.13 s", or "NAME failed after 2.13 s: ERROR". Exceptions are not
        suppressed. Raises the same errors as `log`.
        """
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            took = _duration(time.monotonic() - began)
            if _is_success(error):
                self.log(f"{name} took {took}")
            else:
                with suppress(TaskServiceError):
                    self.log(f"{name} failed after {took}: {_message(error)}")
            raise
        self.log(f"{name} took {_duration(time.monotonic() - began)}")

    def raise_if_cancelled(self) -> None:
        """Raise an error if the task was cancelled or deleted. Sends no request.

        The service reports a cancellation or deletion in its responses to lines, reports and
        heartbeats. In a `with` block, a background thread sends heartbeats.

        Raises:
            TaskCancelled: The task was cancelled. Stop working.
            NotFound: The task was deleted. Stop working.
        """
        self._outbox.check()

    def complete(self, **output: Any) -> None:
        """Send the waiting lines, then end the task with the status `complete`. Blocks.

        Args:
            output: Values to store in addition to the property `output`.

        Raises:
            TaskCancelled, TaskFinished, NotFound: The task has already ended, or was deleted.
            Unreachable, Unavailable: Not everything was sent within `retry_timeout` seconds.
            TypeError, ValueError: The output cannot be represented in JSON.

        Example:
            >>> task.complete(pages=3)
            >>> task.status, task.data["output"]
            ('complete', {'pages': 3})
        """
        self._finish({"status": terms.COMPLETE, "output": self.output | output})

    def fail(self, message: object) -> None:
        """Send the waiting lines and the output, then end the task with the status `error`. Blocks.

        Args:
            message: The reason, converted with `str`; truncated to 64 KiB.

        Raises:
            TaskCancelled, TaskFinished, NotFound: The task has already ended, or was deleted.
            Unreachable, Unavailable: Not everything was sent within `retry_timeout` seconds.

        Example:
            >>> task.fail("The disk is full")
            >>> task.error
            {'type': 'failed', 'message': 'The disk is full'}
        """
        error = {"message": spool.truncate_message(str(message))}
        self._finish({"status": terms.ERROR, "error": error, "output": self.output})

    def _finish(self, report: dict[str, Any] | None) -> None:
        # Check the report in this thread, so that the program gets the error.
        _check_output((report or {}).get("output") or {})
        json.dumps(report, allow_nan=False)
        self._outbox.finish(report)
        self._has_ended = self._has_ended or "status" in (report or {})
        self.refresh()

    def __enter__(self) -> "Task":
        self._outbox.start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # Errors from the client must not hide the program's exception.
        quiet = nullcontext() if error is None else suppress(TaskServiceError)
        try:
            if self._has_ended or not self._reports_end:
                is_new = not self._has_ended and self.output != self.data["output"]
                with quiet:
                    self._finish({"output": self.output} if is_new else None)
            elif error is None or _is_success(error):
                try:
                    self.complete()
                except (TypeError, ValueError) as problem:  # a value in the output is not JSON
                    self._output = Output()
                    self._fail_with(problem)
                    raise
            else:
                with quiet:
                    self._fail_with(error)
        finally:
            self._outbox.drop()

    def _fail_with(self, error: BaseException) -> None:
        self.log("".join(traceback.format_exception(error)))
        self.fail(_message(error))

    # --- watching ------------------------------------------------------------------------

    def refresh(self) -> "Task":
        """Read the task again, without its log; returns the same object. Blocks.

        Raises:
            NotFound: The task was deleted.
        """
        return self._update("GET")

    def lines(self, after: int = 0, times: bool = False) -> Iterator[Line]:
        """Iterate over the current lines of the log. Blocks while it reads 10,000 lines at a time.

        Args:
            after: Number of the line to start after; 0 starts at the first line.
            times: Whether to read the time of each line.

        Raises:
            NotFound: The task was deleted.

        Example:
            >>> for line in task.lines(times=True):
            ...     print(line.at, line)
        """
        while True:
            page = self._page(after, times)
            yield from _numbered(page)
            if page["next"] <= after or not page["logs"]:
                return
            after = page["next"]

    def follow(
        self,
        after: int = 0,
        times: bool = False,
        on_question: Callable[[Question], None] | None = None,
    ) -> Iterator[Line]:
        """Iterate over the lines as they arrive, until the task ends. Blocks while it waits.

        If the connection is lost or the service restarts, requests are retried for up to
        `retry_timeout` seconds; no line is skipped or repeated. After the last line, `status`,
        `error` and `output` are final.

        Args:
            after: Number of the line to start after; 0 starts at the first line.
            times: Whether to read the time of each line.
            on_question: Function that is called once for each new question.

        Raises:
            NotFound: The task was deleted.

        Example:
            >>> watched = client.task(task.id)
            >>> task.log("page 1")
            >>> task.complete(pages=1)
            >>> for line in watched.follow():
            ...     print(line.number, line.text)
            1 page 1
            >>> watched.output
            {'pages': 1}
        """
        wait = WAIT_SECONDS if on_question is None else POLL_SECONDS
        seen, polled_at = set[str](), -math.inf
        while True:
            page = self._page(after, times, wait)
            yield from _numbered(page)
            is_running = page["status"] == terms.RUNNING
            is_due = is_running and time.monotonic() - polled_at >= POLL_SECONDS
            if on_question is not None and is_due:
                for question in self.refresh().questions:
                    if question["id"] not in seen:
                        seen.add(question["id"])
                        on_question(question)
                polled_at = time.monotonic()
            if not page["logs"] and not is_running:
                self._output = Output(self.refresh().data["output"])
                return
            if page["next"] <= after:
                time.sleep(self._connection.seconds_before_repeat())
            after = page["next"]

    def _page(self, after: int, times: bool, wait: int = 0) -> dict[str, Any]:
        query = {"limit": str(terms.MAX_LINES), "after": str(after)}
        query |= {"times": "true"} if times else {}
        path, expected = path_to("task", self.id, "logs"), _TIMED_LOG_PAGE if times else _LOG_PAGE
        return self._connection.call("GET", path, expected, params=query, wait=wait).data

    def answer(self, question_id: str, content: Mapping[str, Any]) -> Question:
        """Answer an open question of the task; return the question. Blocks. Requires a user key.

        Args:
            question_id: The `id` of a question in `questions`.
            content: An object that matches the question's schema. If the question was asked with
                choices, or without a schema, the only key is "answer".

        Raises:
            Conflict: The question is no longer open, or was answered differently.
            Invalid: The content does not match the schema.
            Forbidden: The key is an agent key.

        Example:
            >>> for question in task.refresh().questions:
            ...     task.answer(question["id"], {"answer": "yes"})
        """
        return self._answer(question_id, {"action": terms.ACCEPT, "content": content})

    def decline(self, question_id: str) -> Question:
        """Decline an open question of the task. Blocks. Requires a user key.

        Raises:
            Conflict: The question is no longer open.
            Forbidden: The key is an agent key.
        """
        return self._answer(question_id, {"action": terms.DECLINE})

    def _answer(self, question_id: str, body: Mapping[str, Any]) -> Question:
        path = path_to("task", self.id, "question", question_id, "answer")
        return self._connection.call("POST", path, _QUESTION, json=body).data

    def cancel(self) -> "Task":
        """End the task with an error of type `cancelled`, which stops its program. Blocks.

        Returns the same object, with the new state.

        Raises:
            TaskFinished: The task has already ended in another way.
            Forbidden: The key is an agent key.
        """
        return self._update("POST", "cancel")

    def rerun(
        self, input: Mapping[str, Any] | None = None, labels: Mapping[str, str] | None = None
    ) -> "Task":
        """Start a copy of the task, for a worker to claim. Blocks.

        Returns the new task, whose `data["rerunOf"]` is the ID of this task.

        Args:
            input: Input of the new task (default: the same input).
            labels: Labels of the new task (default: the same labels).

        Raises:
            Invalid: The agent's input schema rejected the input.

        Example:
            >>> task.rerun(input={"pages": 3}).data["rerunOf"] == task.id
            True
        """
        body, headers = not_none(input=input, labels=labels), {"Idempotency-Key": uuid4().hex}
        path = path_to("task", self.id, "rerun")
        started = self._connection.call("POST", path, SHORT_TASK, json=body, headers=headers)
        return Task(self._connection, started.data)

    def link(self, seconds: float | None = None) -> dict[str, Any]:
        """Create a link with which anyone can see the task without a key. Blocks.

        Args:
            seconds: Seconds until the link expires, up to 90 days (default: 7 days).

        Returns:
            The link: `id`, `url`, `createdAt` and `expiresAt`.

        Raises:
            Forbidden: The key is an agent key or a read key.
        """
        until = None if seconds is None else datetime.now(UTC) + timedelta(seconds=seconds)
        body, path = {"expiresAt": until and until.isoformat()}, path_to("task", self.id, "link")
        return self._connection.call("POST", path, _LINK, json=body).data

    def delete(self) -> None:
        """Delete the task permanently, with its log and its deliveries. Blocks.

        Raises:
            Forbidden: The key is an agent key.
        """
        self._connection.call("DELETE", path_to("task", self.id), Object("id"), **ONLY_ID)

    def _update(self, method: str, *rest: str, **options: Any) -> "Task":
        path = path_to("task", self.id, *rest)
        self.data |= self._connection.call(method, path, SHORT_TASK, params=SHORT, **options).data
        return self


def _numbered(page: Mapping[str, Any]) -> Iterable[Line]:
    first, times = page["next"] - len(page["logs"]) + 1, page.get("times", ())
    return map(Line, count(first), page["logs"], chain(times, repeat(None)))


def _duration(seconds: float) -> str:
    """Like `seconds_text`, but with two decimals below 10 s."""
    return f"{seconds:.2f} s" if seconds < 10 else seconds_text(seconds)


def _message(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)

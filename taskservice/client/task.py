"""A task for Python programs: do its work, or watch it."""

import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain, count, repeat
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, TypedDict, overload
from urllib.parse import quote
from uuid import uuid4
from weakref import WeakValueDictionary

from taskservice.client import responses, sender
from taskservice.client.http import PATIENCE_SECONDS, WAIT_SECONDS, Connection
from taskservice.client.outbox import Outbox
from taskservice.client.responses import (
    SHORT_FIELDS,
    Invalid,
    QuestionDeclined,
    QuestionExpired,
    QuestionWithdrawn,
    TaskFinished,
    TaskServiceError,
)
from taskservice.client.sender import CLAIMED_HEARTBEAT_SECONDS, HEARTBEAT_SECONDS
from taskservice.terms import (
    ACCEPT,
    ANSWERED,
    API_PREFIX,
    COMPLETE,
    DECLINE,
    DECLINED,
    ERROR,
    EXPIRED,
    MAX_LINES,
    OPEN,
    QUESTION_TIMEOUT,
    RUNNING,
    ErrorType,
    Status,
)

# Requests that the client and the runner both make.

# A task in a response comes without its log, which can be long.
SHORT = {"fields": SHORT_FIELDS}
SHORT_TASK = responses.task(SHORT_FIELDS)
STARTED = responses.task(SHORT_FIELDS, 201)
_CLAIMED = responses.task(SHORT_FIELDS, 200, 204)


def start_task(
    connection: Connection, fields: Mapping[str, Any], idempotency_key: str, **options: Any
) -> dict[str, Any]:
    """Start a task, once for each idempotency key; register its agent if that is new."""
    headers = {"Idempotency-Key": idempotency_key}
    start = partial(
        connection.call, "POST", "/task", STARTED, json=fields, headers=headers, **options
    )
    try:
        response = start()
    except Invalid as error:
        if "agentId" not in error.errors:
            raise
        register_agent(connection, fields["agentId"], {}, **options)
        response = start()
    task: dict[str, Any] = response.data
    return task


def read_task(connection: Connection, task_id: str) -> dict[str, Any]:
    path = f"/task/{path_segment(task_id)}"
    task: dict[str, Any] = connection.call("GET", path, SHORT_TASK, params=SHORT).data
    return task


def claim_task(
    connection: Connection, agent_id: str, seconds: int, idempotency_key: str
) -> "Task | None":
    """Claim the oldest waiting task of an agent; None if there is none within `seconds`.

    Repeated with the same key, it returns the same task.
    """
    headers = {"Idempotency-Key": idempotency_key}
    path = f"/agent/{path_segment(agent_id)}/claim"
    response = connection.call("POST", path, _CLAIMED, headers=headers, wait=seconds)
    if response.data is None:
        return None
    json_text = response.content.decode()
    heartbeat = CLAIMED_HEARTBEAT_SECONDS
    return Task(connection, response.data, heartbeat=heartbeat, json_text=json_text)


def register_agent(
    connection: Connection, agent_id: str, fields: Mapping[str, Any], **options: Any
) -> None:
    """Register an agent, or change those `fields` of it that are not None."""
    given = {name: value for name, value in fields.items() if value is not None}
    path = f"/agent/{path_segment(agent_id)}"
    connection.call("PUT", path, responses.AGENT, json=given, **options)


def path_segment(text: str) -> str:
    """An id as one segment of a path; text that would lead to another path matches no id."""
    return quote(text.replace("/", "-"), safe="", errors="replace") if text.strip(".") else "-"


# Questions of tasks: programs ask and wait for the answer, people answer.

# How long a program that is interrupted tries to withdraw its question.
WITHDRAW_SECONDS = 5.0
# How often a follower of a task asks for its questions.
POLL_SECONDS = 2


class Question(TypedDict):
    """A question's JSON; `answer` is the content of its answer."""

    id: str
    message: str
    schema: dict[str, Any]
    state: str
    askedAt: str
    expiresAt: str | None
    answer: dict[str, Any] | None
    answeredBy: str | None


def schema_of_choices(choices: Sequence[str]) -> dict[str, Any]:
    """The schema of an answer that is one of these texts."""
    choice = {"type": "string", "enum": list(dict.fromkeys(choices))}
    return {"type": "object", "properties": {"answer": choice}, "required": ["answer"]}


def ask(
    connection: Connection,
    task_id: str,
    message: str,
    schema: Mapping[str, Any] | None = None,
    timeout: int | None = None,
    rest: Callable[[float], None] = time.sleep,
) -> Question:
    """Ask once, and wait for the answer; returns the answered question.

    The wait goes on while the service is away, as long as the question may be open. An exception
    that interrupts it, such as KeyboardInterrupt, withdraws the question. Raises
    QuestionDeclined, QuestionExpired or QuestionWithdrawn; TaskFinished, TaskCancelled or
    NotFound when the task has ended.
    """
    # The name of a file may contain what no UTF-8 has.
    text = message.encode(errors="replace").decode()
    fields = {"message": text, "schema": schema, "timeout": timeout}
    post = partial(
        connection.call, "POST", _path(task_id), responses.QUESTION,
        json={name: value for name, value in fields.items() if value is not None},
        # With the same key, a repeated request asks no second question.
        headers={"Idempotency-Key": uuid4().hex},
    )  # fmt: skip
    until = time.monotonic() + seconds_open(timeout)
    try:
        question: Question = post(rest=rest).data
        while question["state"] == OPEN:
            question = connection.call(
                "GET", _path(task_id, question["id"]), responses.QUESTION, wait=WAIT_SECONDS,
                patience=max(until - time.monotonic(), PATIENCE_SECONDS), rest=rest,
            ).data  # fmt: skip
            if question["state"] == OPEN:
                time.sleep(connection.seconds_before_repeat())
    except TaskServiceError:
        raise
    except BaseException:
        with suppress(TaskServiceError):
            asked = post(patience=WITHDRAW_SECONDS).data
            withdraw(connection, task_id, asked["id"], patience=WITHDRAW_SECONDS)
        raise
    if question["state"] != ANSWERED:
        _raise_reason(connection, task_id, question)
    return question


def seconds_open(timeout: int | None) -> float:
    """How long a question may be open."""
    return math.inf if timeout == 0 else timeout or QUESTION_TIMEOUT


def _raise_reason(connection: Connection, task_id: str, question: Question) -> NoReturn:
    """Raise why a question has no answer."""
    reasons = {
        DECLINED: QuestionDeclined,
        EXPIRED: QuestionExpired,
    }
    if question["state"] in reasons:
        raise reasons[question["state"]](question)
    # Its task may have ended: a heartbeat is refused then.
    path = f"/task/{path_segment(task_id)}/logs"
    task = connection.call("POST", path, responses.APPENDED, json={"logs": []}).data
    if task["status"] != RUNNING:
        ended = {"id": task_id, "status": task["status"], "error": None}
        raise TaskFinished(409, {"detail": "The task is finished", "task": ended})
    raise QuestionWithdrawn(question)


def withdraw(
    connection: Connection, task_id: str, question_id: str, patience: float | None = None
) -> None:
    """Withdraw an open question. Raises Conflict if it was answered."""
    path = _path(task_id, question_id)
    connection.call("DELETE", path, responses.QUESTION, patience=patience)


def list_questions(connection: Connection, task_id: str) -> list[Question]:
    """All questions of a task, oldest first."""
    found: list[Question] = connection.call("GET", _path(task_id), responses.QUESTIONS).data
    return found


def answer(
    connection: Connection, task_id: str, question_id: str, content: Mapping[str, Any] | None
) -> Question:
    """Answer a question, or decline it with None; the same again changes nothing.

    Raises Invalid for an answer that does not fit its schema, and Conflict if it is no longer
    open.
    """
    body = {"action": DECLINE} if content is None else {"action": ACCEPT, "content": content}
    path = f"{_path(task_id, question_id)}/answer"
    question: Question = connection.call("POST", path, responses.QUESTION, json=body).data
    return question


def _path(task_id: str, question_id: str | None = None) -> str:
    end = "" if question_id is None else f"/{path_segment(question_id)}"
    return f"/task/{path_segment(task_id)}/question{end}"


# A task's output: a value that JSON lacks is refused where the program sets it.


class Output(dict[str, Any]):
    """A task's output. Setting a key to a value that JSON lacks raises TypeError or ValueError."""

    def __setitem__(self, key: str, value: Any) -> None:
        _check(key, value)
        super().__setitem__(key, value)

    setdefault = MutableMapping.setdefault
    update = MutableMapping.update

    def __ior__(self, other: Any) -> "Output":  # type: ignore[misc, override]
        self.update(other)
        return self


def _check_output(members: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a key or value that JSON lacks."""
    for key, value in members.items():
        _check(key, value)


def _check(key: str, value: Any) -> None:
    if not isinstance(key, str):
        raise TypeError(f"The key {key!r} of an output must be a string")
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except TypeError as error:
        raise TypeError(f"output[{key!r}] is not JSON: {error}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"output[{key!r}] is not JSON: {error}") from None


# A task for Python programs: do its work, or watch it.


class Line(NamedTuple):
    """A line of a log, and its number, counted from 1; `str` gives its text.

    `at` is when its agent printed it, where times were asked for; None if that is unknown.
    """

    number: int
    text: str
    at: str | None = None

    def __str__(self) -> str:
        return self.text


class Failure(TypedDict):
    """Why a task ended as `error`."""

    type: ErrorType
    message: str


class Task:
    """A task as it was when last read: `data` is its JSON, without the log.

    A Client makes it. The program that does the work uses it in a `with` block, which
    reports the end. Other processes may get it by a fork or by pickle and log to it too; a
    pickle contains the API key.
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
        self.json_text = json_text  # of a claimed task: `data` as the service wrote it
        self.id = str(data["id"])
        self._output = Output(data.get("output") or {})
        self._connection = connection
        self._outbox = Outbox(connection, self.id, writer, heartbeat)
        # Whether the `with` block reports the end: inside `taskservice run` that does it.
        self._reports_end = reports_end
        self._has_ended = False
        self._copy_id = uuid4().hex  # the same in every process that has this task

    def __reduce__(self) -> tuple[Any, ...]:
        _copies[self._copy_id] = self
        return _unpickle, (type(self), self.__dict__)

    def __repr__(self) -> str:
        data = {"name": "?", "agentId": "?", "status": "?"} | self.data
        progress = data.get("progress")
        share = "" if progress is None or data["status"] != RUNNING else f" {progress:.0%}"
        error = f" ({data['error']['type']})" if data.get("error") else ""
        name, agent = data["name"], data["agentId"]
        return f"<Task {self.id} {name!r} of {agent}: {data['status']}{share}{error}>"

    @property
    def output(self) -> dict[str, Any]:
        """The result, which the `with` block reports when it ends.

        Setting a key to a value that JSON lacks raises TypeError or ValueError.
        """
        return self._output

    @output.setter
    def output(self, members: Mapping[str, Any]) -> None:
        _check_output(members)
        self._output = Output(members)

    @property
    def url(self) -> str:
        return f"{self._connection.url}{API_PREFIX}/task/{self.id}"

    @property
    def page_url(self) -> str:
        """The address of its page in the dashboard."""
        return f"{self._connection.url}/tasks/{self.id}"

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def agent_id(self) -> str:
        return str(self.data["agentId"])

    @property
    def status(self) -> Status:
        """`running`, `complete` or `error`."""
        status: Status = self.data["status"]
        return status

    @property
    def error(self) -> Failure | None:
        """`{"type": ..., "message": ...}` if the status is `error`, else None."""
        error: Failure | None = self.data["error"]
        return error

    @property
    def labels(self) -> Mapping[str, str]:
        """The pairs by which it is found; `report(labels=...)` changes them."""
        labels: Mapping[str, str] = self.data["labels"]
        return labels

    @property
    def questions(self) -> list[Question]:
        """The questions of its agent that are open, oldest first."""
        found: list[Question] = self.data["questions"]
        return found

    @property
    def input(self) -> Mapping[str, Any]:
        given: Mapping[str, Any] = self.data["input"]
        return given

    # --- doing the work ------------------------------------------------------------------

    def log(self, *values: object) -> None:
        """Add a line: the texts of the values with spaces between, as `print` writes them.

        A line feed in it begins another line. A thread sends all lines in order, each once.

        Waits only while 16 MiB of lines are still to be sent. Raises TaskCancelled when the
        user has cancelled the task and NotFound when it was deleted: the program should stop
        then. Raises Unreachable when 16 MiB wait and the service has given no answer for
        `patience` seconds; those lines are still sent later.
        """
        self.log_at(sender.now(), " ".join(map(str, values)))

    def log_at(self, milliseconds: int, text: str) -> None:
        """Add the lines of a text like `log`, with this time in milliseconds since 1970."""
        self._outbox.put_lines(milliseconds, text)

    def report(self, **changes: Any) -> None:
        """Change it now; with `status`, after all lines.

        `changes` are those of a report: `output`, `name`, `labels`, `progress`, `note`,
        `status`, `error`. Raises TaskCancelled and the other refusals of the service; TypeError
        or ValueError for an output that JSON lacks.
        """
        _check_output(changes.get("output") or {})
        if "status" in changes and self._outbox.is_started:
            self._finish(changes)
        else:
            changes = self._outbox.pop_progress() | changes
            self._update("PATCH", f"/task/{self.id}", json=changes, rest=self._outbox.pause)
        self._has_ended = self._has_ended or "status" in changes

    def progress(
        self, done: float, total: float = 1, unit: str = "", *, note: str | None = None
    ) -> None:
        """Tell how far it is: `progress(34, 68, "pages")` is 0.5 and "34 of 68 pages".

        The newest state is sent at most once a second, by a thread, so that a loop may call
        this each time around. Raises what `log` raises when the program should stop; ValueError for
        numbers that are no part of a whole.
        """
        if not 0 <= done <= total or not 0 < total < math.inf:
            raise ValueError(f"progress must be from 0 to its total, not {done} of {total}")
        if note is None and (unit or total != 1):
            note = f"{done:,} of {total:,} {unit}".rstrip()
        changes = {} if note is None else {"note": sender.cut_note(note)}
        self._outbox.put_progress({"progress": done / total} | changes)

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
        """Ask a person, and wait for the answer: a text, with `choices` one of them.

        With a `schema`, a JSON Schema object with a few simple properties, it is an object that
        fits it. The wait goes on while the service is away. `timeout` is in seconds: a day by
        default, 0 for no limit. Raises QuestionDeclined or QuestionExpired, and what `log` raises
        when the program should stop; what interrupts the wait withdraws the question.
        """
        if schema is not None and choices is not None:
            raise ValueError("a question has either a schema or choices")
        wanted = schema_of_choices(choices) if choices is not None else schema
        asked = ask(self._connection, self.id, message, wanted, timeout, self._outbox.pause)
        answer = asked["answer"] or {}
        return answer if schema is not None else str(answer["answer"])

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """A step of the work: a line says at its end how long it took, or that it failed."""
        began = time.monotonic()
        try:
            yield
        except BaseException as error:
            took = sender.duration(time.monotonic() - began)
            if _is_success(error):
                self.log(f"{name} took {took}")
            else:
                with suppress(TaskServiceError):
                    self.log(f"{name} failed after {took}: {_message(error)}")
            raise
        self.log(f"{name} took {sender.duration(time.monotonic() - began)}")

    def raise_if_cancelled(self) -> None:
        """Raise TaskCancelled, or another reason to stop, if the service has told of one."""
        self._outbox.check()

    def complete(self, **output: Any) -> None:
        """Report `complete` after all lines, with these keys and those in `output`."""
        self._finish({"status": COMPLETE, "output": self.output | output})

    def fail(self, message: object) -> None:
        """Report `error` with this message, after all lines."""
        error = {"message": sender.cut_message(str(message))}
        self._finish({"status": ERROR, "error": error, "output": self.output})

    def _finish(self, report: dict[str, Any] | None) -> None:
        """Send all lines, then this report if there is one.

        Raises the TaskServiceError that keeps them from being sent; TypeError or ValueError
        for a report that JSON lacks.
        """
        # Checked here: in the sender's thread the program would not see the error.
        _check_output((report or {}).get("output") or {})
        json.dumps(report, allow_nan=False)
        self._outbox.finish(report)
        self._has_ended = self._has_ended or "status" in (report or {})
        self.refresh()

    def __enter__(self) -> "Task":
        self._outbox.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # The program's own exception counts for more than one of ours.
        quiet = nullcontext() if error is None else suppress(TaskServiceError)
        try:
            if self._has_ended or not self._reports_end:
                is_new = not self._has_ended and self.output != self.data["output"]
                with quiet:
                    self._finish({"output": self.output} if is_new else None)
            elif error is None or _is_success(error):
                self._complete_or_fail()
            else:
                with quiet:
                    self._fail_with(error)
        finally:
            self._outbox.drop()

    def _complete_or_fail(self) -> None:
        try:
            self.complete()
        except (TypeError, ValueError) as error:  # a value in the output has become no JSON
            self._output = Output()
            self._fail_with(error)
            raise

    def _fail_with(self, error: BaseException) -> None:
        self.log("".join(traceback.format_exception(error)))
        self.fail(_message(error))

    # --- watching ------------------------------------------------------------------------

    def refresh(self) -> "Task":
        """Read it again, without its log."""
        return self._update("GET", f"/task/{self.id}")

    def lines(self, after: int = 0, times: bool = False) -> Iterator[Line]:
        """The lines that the log has now, from number `after` + 1 on, with their `times`."""
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
        """The lines from number `after` + 1 on, each as it arrives, until the task ends.

        Resumes after a broken connection or a restart of the service; each line comes once.
        `on_question` is called with each question that opens. Afterwards `status`, `error` and
        `output` are those of the end. Raises NotFound when the task is deleted.
        """
        wait = WAIT_SECONDS if on_question is None else POLL_SECONDS
        told, looked_at = set[str](), -math.inf
        while True:
            page = self._page(after, times, wait)
            yield from _numbered(page)
            is_due = page["status"] == RUNNING and time.monotonic() - looked_at >= POLL_SECONDS
            if on_question is not None and is_due:
                for question in self.refresh().questions:
                    if question["id"] not in told:
                        told.add(question["id"])
                        on_question(question)
                looked_at = time.monotonic()
            if not page["logs"] and page["status"] != RUNNING:
                self.refresh()
                return
            if page["next"] <= after:
                time.sleep(self._connection.seconds_before_repeat())
            after = page["next"]

    def _page(self, after: int, times: bool, wait: int = 0) -> dict[str, Any]:
        query = {"limit": str(MAX_LINES), "after": str(after)}
        query |= {"times": "true"} if times else {}
        page: dict[str, Any] = self._connection.call(
            "GET", f"/task/{self.id}/logs", responses.LOG_PAGE, params=query, wait=wait
        ).data
        return page

    def answer(self, question_id: str, content: Mapping[str, Any]) -> Question:
        """Answer an open question of its agent, with an object that fits its schema.

        The first answer counts: raises Conflict after another one. Raises Invalid for one that
        does not fit.
        """
        return answer(self._connection, self.id, question_id, content)

    def decline(self, question_id: str) -> Question:
        """Decline an open question of its agent. Raises Conflict if it is no longer open."""
        return answer(self._connection, self.id, question_id, None)

    def cancel(self) -> "Task":
        """Cancel it: it becomes an `error` of type `cancelled`, and its agent is told."""
        return self._update("POST", f"/task/{self.id}/cancel")

    def rerun(self, input: Mapping[str, Any] | None = None) -> "Task":
        """Start it again, for a worker to claim: with the same input, or with this one."""
        data = self._connection.call(
            "POST", f"/task/{path_segment(self.id)}/rerun", STARTED,
            json={} if input is None else {"input": input},
            headers={"Idempotency-Key": uuid4().hex},
        ).data  # fmt: skip
        return Task(self._connection, data)

    def delete(self) -> None:
        """Delete it for good, with its log."""
        path = f"/task/{path_segment(self.id)}"
        self._connection.call("DELETE", path, responses.task("id"), params={"fields": "id"})

    def _update(self, method: str, path: str, **options: Any) -> "Task":
        response = self._connection.call(method, path, SHORT_TASK, params=SHORT, **options)
        self.data |= response.data
        return self


# Tasks that other processes have too.
_copies: WeakValueDictionary[str, Task] = WeakValueDictionary()


def _unpickle(kind: type[Task], state: dict[str, Any]) -> Task:
    """A task from another process: one object and one sender here, however often it comes."""
    task = kind.__new__(kind)
    task.__dict__ |= state
    return _copies.setdefault(state["_copy_id"], task)


def _numbered(page: Mapping[str, Any]) -> Iterable[Line]:
    first, times = page["next"] - len(page["logs"]) + 1, page.get("times", ())
    return map(Line, count(first), page["logs"], chain(times, repeat(None)))


def _message(error: BaseException) -> str:
    return traceback.format_exception_only(error)[-1].strip()


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)

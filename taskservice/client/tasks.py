"""Tasks for programs in Python: started, written to, watched."""

import atexit
import contextlib
import json
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import uuid4
from weakref import WeakValueDictionary

from taskservice.client import answers, text
from taskservice.client.answers import SHORT_FIELDS
from taskservice.client.errors import (
    PASSING,
    Invalid,
    NotFound,
    SettingError,
    TaskServiceError,
    Unreachable,
)
from taskservice.client.http import PATIENCE_SECONDS, Connection, delays, pause_after
from taskservice.client.memory import Memory
from taskservice.client.output import Output, checked, without_faults
from taskservice.client.sender import (
    CLAIMED_HEARTBEAT_SECONDS,
    HEARTBEAT_SECONDS,
    Sender,
    heartbeat_for,
)
from taskservice.contract.terms import API_PREFIX, COMPLETE, ERROR, MAX_LINES, RUNNING

PAGE_TASKS = 100
# How long a request may wait for news; the service allows 60 s.
WAIT_SECONDS = 30
# Where the service cannot let us wait, we ask so often.
_ASK_AGAIN_SECONDS = 1.0
# How often a program that waits for its lines to be sent looks what keeps them.
_LOOK_SECONDS = 0.2
# How long a program that ends waits for lines that were not awaited otherwise.
SECONDS_AT_EXIT = 5.0
_SHORT = {"fields": SHORT_FIELDS}
_SHORT_TASK = answers.task(SHORT_FIELDS)
_STARTED = answers.task(SHORT_FIELDS, 201)
_CLAIMED = answers.task(SHORT_FIELDS, 200, 204)
logger = logging.getLogger(__name__)
_NEXT = re.compile(r'<\?([^>]*)>; rel="next"')


class Line(NamedTuple):
    """A line of a log, and its number, counted from 1."""

    number: int
    text: str


class Task:
    """A task as it was when it was read last: `data` is its JSON.

    Made by a Client. Used with `with` by whoever does its work: that reports its end. Other
    processes get it by a fork or by pickle, and may log too; a pickle holds the API key.
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
        self.json_text = json_text  # of a claimed task: `data` as it came
        self.id = str(data["id"])
        self._output = Output(data.get("output") or {})
        self._connection = connection
        self._writer = writer
        # Whether `with` does; not where `taskservice run` does it.
        self._reports_end = reports_end
        self._has_ended = False
        self._heartbeat = heartbeat
        self._origin = uuid4().hex  # the same in all processes
        self._reset()

    def __reduce__(self) -> tuple[Any, ...]:
        _here[self._origin] = self
        own = ("_lock", "_memory", "_sender")
        state = {name: value for name, value in self.__dict__.items() if name not in own}
        return _arrived, (type(self), state)

    def _reset(self) -> None:
        """As if nothing had been logged; what waits is another process's after a fork."""
        self._lock = threading.Lock()
        self._memory = Memory()
        self._sender: Sender | None = None

    @property
    def output(self) -> dict[str, Any]:
        """What the `with` block has to say as its result; reported when it ends.

        Setting a key to what is no JSON raises TypeError or ValueError.
        """
        return self._output

    @output.setter
    def output(self, members: Mapping[str, Any]) -> None:
        self._output = Output(checked(members))

    @property
    def url(self) -> str:
        return f"{self._connection.url}{API_PREFIX}/task/{self.id}"

    @property
    def name(self) -> str:
        return str(self.data["name"])

    @property
    def agent_id(self) -> str:
        return str(self.data["agentId"])

    @property
    def status(self) -> str:
        """`running`, `complete` or `error`."""
        return str(self.data["status"])

    @property
    def error(self) -> Mapping[str, Any] | None:
        """Its type and message, where the status is `error`."""
        error: Mapping[str, Any] | None = self.data["error"]
        return error

    @property
    def input(self) -> Mapping[str, Any]:
        given: Mapping[str, Any] = self.data["input"]
        return given

    # --- for whoever does the work -------------------------------------------------------

    def log(self, *lines: object) -> None:
        """Add lines, each the text of what is given; a thread sends them, in order, each once.

        Waits only while 16 MiB wait already. Raises TaskCancelled when the user has
        cancelled the task, NotFound when it is deleted: then it is time to stop. Raises
        Unreachable when none of 16 MiB could be sent for long; they go on waiting.
        """
        sender, memory = self._started(), self._memory
        began = time.monotonic()
        while not memory.has_room(_LOOK_SECONDS):
            self._look_after(sender, began)
        self.check()
        memory.put([line for given in lines for line in text.lines_of(str(given))])

    def report(self, **changes: Any) -> None:
        """Change `output`, `name`, `status` or `error` at once; with `status` after all lines.

        Raises TaskCancelled, and what else the service refuses it for; TypeError or
        ValueError for an output that is no JSON.
        """
        checked(changes.get("output") or {})
        if "status" in changes and self._sender is not None:
            self.finish(changes)
        else:
            self._tell("PATCH", f"/task/{self.id}", json=changes, rest=self._rest)
        self._has_ended = self._has_ended or "status" in changes

    def check(self) -> None:
        """Raise TaskCancelled, or another reason to stop, once the service has told of it."""
        if self._sender is not None and self._sender.stopped is not None:
            raise self._sender.stopped

    def complete(self, **output: Any) -> None:
        """Report the end: `complete`, with these keys and those in `output`, after all lines."""
        self.finish({"status": COMPLETE, "output": self.output | output})

    def fail(self, message: object) -> None:
        """Report the end: `error`, with this message, after all lines."""
        error = {"message": text.message(str(message))}
        self.finish({"status": ERROR, "error": error, "output": self.output})

    def finish(self, report: dict[str, Any] | None) -> None:
        """Send all lines, then this report, if any; raises what keeps them from being sent."""
        # Here, where the program sees what is wrong with it.
        checked((report or {}).get("output") or {})
        json.dumps(report, allow_nan=False)
        sender = self._started()
        sender.finish(report)
        try:
            self._wait_for(sender)
        except TaskServiceError as error:
            if lines := self._memory.count():
                error.args = (f"{error}; {text.counted(lines)} not sent",)
            self._forget()
            raise
        self._forget()
        self._has_ended = self._has_ended or "status" in (report or {})
        self.refresh()

    def _wait_for(self, sender: Sender) -> None:
        """Wait until the sender is done; raises what keeps it from that."""
        began = time.monotonic()
        while sender.is_alive():
            sender.join(_LOOK_SECONDS)
            if sender.is_alive():
                self._look_after(sender, began)
        if not sender.delivered:
            raise sender.stopped or TaskServiceError("The end could not be sent")

    def _look_after(self, sender: Sender, began: float) -> None:
        """Raise what says that it need not be waited for the sender any longer."""
        sender.ask()
        if sender.stopped is not None:
            raise sender.stopped
        if time.monotonic() - max(sender.last_answer, began) > self._connection.patience:
            raise sender.trouble or Unreachable(f"{self._connection.url} gives no answer")

    def _rest(self, seconds: float) -> None:
        """Wait before another attempt, unless it is time to stop by then."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, _LOOK_SECONDS))
            if self._sender is not None:
                self._sender.ask()
            self.check()

    def _started(self) -> Sender:
        """The thread that sends; it starts with the first line, or with `with`."""
        with self._lock:
            return self._sender or self._start_sender()

    def _start_sender(self) -> Sender:
        _writing.difference_update([task for task in list(_writing) if task._is_done()])
        _writing.add(self)
        _drain_at_exit()
        memory = self._memory = Memory()
        self._sender = Sender(
            self._connection,
            memory,
            # A name that nobody else counts lines under.
            f"{self._writer}-{uuid4().hex[:12]}",
            lambda: self.id,
            heartbeat=self._heartbeat,
            # Whoever waits for room need not wait any longer.
            on_stop=lambda error: memory.discard(),
        )
        self._sender.start()
        return self._sender

    def _is_done(self) -> bool:
        """Whether none of its lines is still to be sent."""
        sender = self._sender
        return sender is not None and (sender.delivered or sender.stopped is not None)

    def __enter__(self) -> "Task":
        self._started()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._has_ended or not self._reports_end:
                with contextlib.nullcontext() if error is None else _quietly():
                    self._finish_lines()
            elif error is None or _is_success(error):
                self._complete_or_fail()
            else:
                # The program's own exception is what its caller should see.
                with _quietly():
                    self._fail_with(error)
        finally:
            self._forget()

    def _finish_lines(self) -> None:
        """Send the lines, and the output if it is new; somebody else reports the end."""
        is_new = not self._has_ended and self.output != self.data["output"]
        self.finish({"output": self.output} if is_new else None)

    def _complete_or_fail(self) -> None:
        try:
            self.complete()
        except (TypeError, ValueError) as error:  # its output has become no JSON
            self.output = without_faults(self.output)
            self._fail_with(error)
            raise

    def _fail_with(self, error: BaseException) -> None:
        self.log(*traceback.format_exception(error))
        self.fail(traceback.format_exception_only(error)[-1].strip())

    def _forget(self) -> None:
        with self._lock:
            if self._sender is not None:
                self._sender.abandon()
                self._memory.discard()
                self._sender = None
                _writing.discard(self)

    def _drain(self, until: float) -> None:
        """Send the lines that wait, as the program ends; at most until then."""
        sender = self._sender
        if sender is None:
            return
        sender.finish(None)
        sender.join(max(until - time.monotonic(), 0))
        if sender.is_alive():
            lines = text.counted(self._memory.count())
            logger.warning("%s of task %s could not be sent in time", lines, self.id)

    # --- for whoever watches -------------------------------------------------------------

    def refresh(self) -> "Task":
        """Read it again, without its log."""
        return self._tell("GET", f"/task/{self.id}")

    def lines(self, after: int = 0) -> Iterator[Line]:
        """The lines that are there now, those after number `after`."""
        query = {"limit": str(MAX_LINES)}
        while True:
            page = self._page(query | {"after": str(after)}, {})
            yield from _numbered(page)
            if page["next"] <= after or not page["logs"]:
                return
            after = page["next"]

    def follow(self, after: int = 0) -> Iterator[Line]:
        """The lines as they come, those after number `after`, until the task ends.

        Goes on where it was when the connection breaks or the service restarts; each line
        comes once. Afterwards `status`, `error` and `output` are those of the end. Raises
        NotFound when the task is deleted.
        """
        query = {"limit": str(MAX_LINES)}
        headers = {"Prefer": f"wait={WAIT_SECONDS}"}
        while True:
            asked = time.monotonic()
            page = self._page(query | {"after": str(after)}, headers)
            yield from _numbered(page)
            if not page["logs"] and page["status"] != RUNNING:
                self.refresh()
                return
            if page["next"] <= after:
                _rest(asked)
            after = page["next"]

    def _page(self, query: dict[str, str], headers: dict[str, str]) -> dict[str, Any]:
        path = f"/task/{self.id}/logs"
        page: dict[str, Any] = self._connection.call(
            "GET", path, answers.LOG_PAGE, params=query, headers=headers
        ).data
        return page

    def cancel(self) -> "Task":
        """Cancel it: it becomes an `error` of type `cancelled`, and its agent is told."""
        return self._tell("POST", f"/task/{self.id}/cancel")

    def delete(self) -> None:
        """Delete it for good, with its log."""
        _repeat_deletion(self._connection, f"/task/{self.id}")

    def _tell(self, method: str, path: str, **options: Any) -> "Task":
        self.data |= self._connection.call(method, path, _SHORT_TASK, params=_SHORT, **options).data
        return self


class Client:
    """The service, for programs.

    `url` and `apikey` are TASKSERVICE_URL and TASKSERVICE_APIKEY by default. `patience` is
    how many seconds a call is tried again while the service is away or busy.
    """

    def __init__(
        self,
        url: str | None = None,
        apikey: str | None = None,
        patience: float = PATIENCE_SECONDS,
    ) -> None:
        self.connection = Connection(url, apikey, patience)

    def start(
        self,
        agent_id: str,
        *,
        name: str | None = None,
        input: Mapping[str, Any] | None = None,
        callback: str | None = None,
        timeout: int | None = None,
        claim: bool = True,
    ) -> Task:
        """Start a task; registers its agent if it is new.

        With `claim` the caller does its work, best in a `with`; without, whoever claims it.
        """
        fields: dict[str, Any] = {"agentId": agent_id, "name": name, "input": input}
        fields |= {"callback": callback, "timeout": timeout, "claim": claim}
        fields = {name: value for name, value in fields.items() if value is not None}
        data = start(self.connection, fields, uuid4().hex)
        return Task(self.connection, data, heartbeat=heartbeat_for(timeout))

    def claim(self, agent_id: str, wait: float = WAIT_SECONDS) -> Task | None:
        """Take the oldest unclaimed task of an agent, or None when none came in `wait` seconds."""
        until = time.monotonic() + wait
        while True:
            asked = time.monotonic()
            seconds = min(max(math.ceil(until - asked), 0), WAIT_SECONDS)
            task = claim(self.connection, agent_id, seconds, uuid4().hex)
            if task is not None:
                return task
            if time.monotonic() + _ASK_AGAIN_SECONDS > until:
                return None
            _rest(asked)

    def task(self, task_id: str) -> Task:
        """One task. Raises NotFound."""
        path = f"/task/{_segment(task_id)}"
        return Task(self.connection, _read_task(self.connection, path))

    def tasks(
        self,
        *,
        status: str | None = None,
        agent_id: str | None = None,
        q: str | None = None,
        created_after: str | None = None,
        created_before: str | None = None,
        finished_after: str | None = None,
        sort: str | None = None,
        fields: str = SHORT_FIELDS,
        page: int | None = None,
    ) -> Iterator[Task]:
        """All tasks that the key may see, newest first, page after page; without their logs.

        `q` is a part of the name; moments are RFC 3339; `sort` is `-createdAt`, `createdAt`
        or `finishedAt`. `fields` are all that is read of each; `page` is how many are asked
        for at once.
        """
        query = {"status": status, "agentId": agent_id, "q": q, "createdAfter": created_after}
        query |= {"createdBefore": created_before, "finishedAfter": finished_after, "sort": sort}
        given = {name: value for name, value in query.items() if value is not None}
        given |= {"fields": fields, "limit": str(page or PAGE_TASKS)}
        return self._pages(given, answers.tasks(fields))

    def _pages(self, query: dict[str, str] | str, shape: answers.Shape) -> Iterator[Task]:
        while True:
            answer = self.connection.call("GET", "/task", shape, params=query)
            for data in answer.data:
                yield Task(self.connection, data)
            link = _NEXT.search(answer.headers.get("Link", ""))
            if link is None:
                return
            query = link[1]

    def register(
        self, agent_id: str, name: str | None = None, description: str | None = None
    ) -> None:
        """Register an agent, or change it."""
        register(self.connection, agent_id, {"name": name, "description": description})


def claim(connection: Connection, agent_id: str, seconds: int, idempotency_key: str) -> Task | None:
    """Ask once for the oldest unclaimed task; however often this is repeated, it takes one."""
    headers = {"Idempotency-Key": idempotency_key}
    if seconds:
        headers["Prefer"] = f"wait={seconds}"
    path = f"/agent/{_segment(agent_id)}/claim"
    data, _, json_text = connection.call("POST", path, _CLAIMED, headers=headers)
    if data is None:
        return None
    return Task(connection, data, heartbeat=CLAIMED_HEARTBEAT_SECONDS, json_text=json_text)


def current(connection: Connection | None = None) -> Task:
    """The task of the `taskservice run` or `work` that this program was started by.

    Its lines go beside those that the program prints, and are sent before the program ends,
    also without `with`. Raises SettingError without one.
    """
    task_id = os.environ.get("TASKSERVICE_TASK_ID", "")
    if not task_id:
        raise SettingError("TASKSERVICE_TASK_ID is not set: no `taskservice run` started this")
    connection = connection or Connection()
    writer = os.environ.get("TASKSERVICE_WRITER", "python")
    data = _read_task(connection, f"/task/{_segment(task_id)}")
    # Several processes may ask; each counts its own lines.
    return Task(connection, data, f"{writer[:40]}-{uuid4().hex[:12]}", reports_end=False)


def _arrived(kind: type[Task], state: dict[str, Any]) -> Task:
    """A task that comes from another process: one here, and one sender, however often it comes."""
    task = kind.__new__(kind)
    task.__dict__ |= state
    task._reset()
    return _here.setdefault(state["_origin"], task)


def _drain_all() -> None:
    """Send what waits, as the program ends; a service that is away is not waited for long."""
    until = time.monotonic() + SECONDS_AT_EXIT
    for task in list(_writing):
        task._drain(until)


def _reset_all() -> None:
    """In a child after a fork: its threads are gone, and what waits is its parent's."""
    for task in list(_writing):
        task._reset()
    _writing.clear()


def _drain_at_exit() -> None:
    """Once in a child of multiprocessing, which calls no exit handlers but its own."""
    util = sys.modules.get("multiprocessing.util")
    if util is not None and os.getpid() not in _draining:
        _draining.add(os.getpid())
        util.Finalize(None, _drain_all, exitpriority=10)


# Tasks with lines on their way; nobody else need keep them.
_writing: set[Task] = set()
_draining: set[int] = set()  # processes
# Tasks that other processes have too.
_here: WeakValueDictionary[str, Task] = WeakValueDictionary()
atexit.register(_drain_all)
os.register_at_fork(after_in_child=_reset_all)


def _quietly() -> contextlib.AbstractContextManager[None]:
    """For what goes wrong beside an exception of the program's own, which counts for more."""
    return contextlib.suppress(TaskServiceError)


def start(
    connection: Connection, fields: Mapping[str, Any], idempotency_key: str, **options: Any
) -> dict[str, Any]:
    """Start a task, once however often this is repeated, and its agent if it is new."""
    try:
        return _start(connection, fields, idempotency_key, options)
    except Invalid as error:
        if "agentId" not in error.errors:
            raise
    register(connection, fields["agentId"], {}, **options)
    return _start(connection, fields, idempotency_key, options)


def _start(
    connection: Connection, fields: Mapping[str, Any], key: str, options: Mapping[str, Any]
) -> dict[str, Any]:
    headers = {"Idempotency-Key": key}
    task: dict[str, Any] = connection.call(
        "POST", "/task", _STARTED, json=fields, headers=headers, **options
    ).data
    return task


def _read_task(connection: Connection, path: str) -> dict[str, Any]:
    task: dict[str, Any] = connection.call("GET", path, _SHORT_TASK, params=_SHORT).data
    return task


def register(
    connection: Connection, agent_id: str, fields: Mapping[str, str | None], **options: Any
) -> None:
    """Register an agent, or change it: its `name` or `description`."""
    given = {name: value for name, value in fields.items() if value is not None}
    path = f"/agent/{_segment(agent_id)}"
    connection.call("PUT", path, answers.AGENT, json=given, **options)


def _repeat_deletion(connection: Connection, path: str) -> None:
    """Delete what may be gone already, if an answer was lost on its way."""
    until = time.monotonic() + connection.patience
    is_repeated = False
    for delay in delays():
        try:
            connection.once("DELETE", path, answers.task("id"), params={"fields": "id"})
            return
        except NotFound:
            if is_repeated:
                return
            raise
        except PASSING as error:
            if time.monotonic() + pause_after(error, delay) > until:
                raise
            time.sleep(pause_after(error, delay))
            is_repeated = True


def _segment(text: str) -> str:
    """An id as a part of a path; what would be another path is an id of nothing."""
    return quote(text.replace("/", "-"), safe="") if text.strip(".") else "-"


def _numbered(page: Mapping[str, Any]) -> Iterable[Line]:
    first = page["next"] - len(page["logs"]) + 1
    return (Line(first + place, line) for place, line in enumerate(page["logs"]))


def _rest(asked: float) -> None:
    """Wait where the service did not: where it cannot, it answers at once."""
    pause = asked + _ASK_AGAIN_SECONDS - time.monotonic()
    if pause > 0:
        time.sleep(pause)


def _is_success(error: BaseException) -> bool:
    return isinstance(error, SystemExit) and error.code in (None, 0)

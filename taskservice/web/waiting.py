"""Long polling by `Prefer: wait=s` (RFC 7240), and event streams."""

import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from operator import attrgetter
from typing import TypeVar

from flask import Response, after_this_request, request, stream_with_context

from taskservice import resources
from taskservice.auth import caller, still_valid, worker_claims
from taskservice.database import clock
from taskservice.database.rows import TaskRow
from taskservice.database.transactions import end_shared_reading
from taskservice.database.watcher import WaitSlot, WaitSlots, Watcher
from taskservice.errors import invalid_key, not_found, overloaded
from taskservice.operations import metrics
from taskservice.schemas import strict_json
from taskservice.schemas.tasks import SHARED_FIELDS, TASK_COLUMNS, TASK_FIELDS
from taskservice.services import agents, logs, task_json, tasks, users
from taskservice.services.logs import LogDropped, TimedLine
from taskservice.services.task_json import Shape
from taskservice.terms import RUNNING
from taskservice.web.request import EVENTS

T = TypeVar("T")

MAX_SECONDS = 60
# The interval at which a waiting request checks that its client is still connected.
CLIENT_CHECK_SECONDS = 2.0
# If a preference is repeated, the first one is used.
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*"?([0-9]+)"?\s*(?:[,;]|$)', re.IGNORECASE)
# Seconds after which a client that got no slot should retry. A hundred such clients take 1% of a
# CPU.
RETRY_SECONDS = 15


def until(read: Callable[[], T], is_enough: Callable[[T], bool], *, by_time: bool = False) -> T:
    """The result of `read`. With `Prefer: wait`, `read` is repeated until `is_enough(result)` is
    true or the time is over.
    """
    # An invalid preference is ignored. Only 9 digits are parsed, since Python can't parse a number
    # with thousands of digits.
    wait = _WAIT.search(request.environ.get("HTTP_PREFER", ""))
    seconds = min(int(wait[1].lstrip("0")[:9] or 0), MAX_SECONDS) if wait else 0
    if not seconds:
        return read()
    result, has_waited = within(seconds, read, is_enough, by_time=by_time)
    header = {"Preference-Applied": f"wait={seconds}"} if has_waited else {}
    if not (has_waited or is_enough(result)):
        header = {"Retry-After": str(RETRY_SECONDS)}

    def add_header(response: Response) -> Response:
        if response.status_code < 400:
            response.headers.update(header)
        return response

    if header:
        after_this_request(add_header)
    return result


def within(
    seconds: float, read: Callable[[], T], is_enough: Callable[[T], bool], *, by_time: bool = False
) -> tuple[T, bool]:
    """The result of `read`, as soon as `is_enough(result)` is true or `seconds` have passed, and
    whether the call waited.

    The call does not wait if no slot is free, and stops waiting if it loses its slot or the client
    disconnects. While it waits, it holds no database connection. Raises 401 as soon as the key is
    invalid, or 404 as soon as the link is.
    """
    result = read()
    if not seconds or is_enough(result):
        return result, seconds > 0
    end_shared_reading()
    is_valid = _key_check()
    ends_at = time.monotonic() + seconds
    watch = resources.find(Watcher)
    since = None
    with _slot() as slot:
        if slot is None:
            return result, False
        with watch.watching():
            while True:
                # With `by_time`, the result can change with time, even if the database does not
                # change.
                if by_time or watch.changes != since:
                    since = watch.changes
                    result = read()
                    if is_enough(result):
                        break
                remaining = ends_at - time.monotonic()
                if remaining <= 0 or resources.stopping.is_set():
                    break
                watch.wait(since, min(remaining, CLIENT_CHECK_SECONDS))
                # The key and the connection are checked before the next `read`, which may claim a
                # task.
                if not is_valid():
                    raise not_found("link") if caller.task_id else invalid_key()
                if slot.is_over or not is_client_connected():
                    break
        return result, not slot.is_over


def _key_check() -> Callable[[], bool]:
    """A function that checks whether the request's key is still valid; it reads the key only if the
    database has changed.
    """
    watch = resources.find(Watcher)
    since, expires_at = None, ""

    def is_valid() -> bool:
        nonlocal since, expires_at
        if watch.changes != since:
            since = watch.changes
            key = still_valid()
            # "~" sorts after any timestamp.
            expires_at = "" if key is None else key.expires_at or "~"
        return clock.now() < expires_at

    return is_valid


@contextmanager
def _slot(*, is_stream: bool = False) -> Iterator[WaitSlot | None]:
    """Hold a slot, and start a thread that replaces this thread; yield None if no slot is free."""
    slots = resources.find(WaitSlots)
    slot = WaitSlot(caller.user_id, is_stream, caller.key_id if caller.task_id else "")
    if not slots.acquire(slot):
        yield None
        return
    metrics.requests.add_wait(1)
    try:
        resources.replace_thread()
        yield slot
    finally:
        metrics.requests.add_wait(-1)
        slots.release(slot)


def for_claim(agent_id: str, key: str | None) -> tuple[TaskRow | None, bool]:
    """The task that the caller claims, or None; and whether an earlier request with the same key
    claimed the task. Raises 404.
    """

    def claim_if_any() -> tuple[TaskRow | None, bool]:
        # This read is cheap, whereas a claim waits for the write lock. An earlier request with the
        # same idempotency key may still be waiting although its connection was lost, and may claim
        # the task first.
        has_task = tasks.has_task_for_claim(caller, agent_id, key)
        worker_claims[caller.user_id, agent_id] = clock.now()
        return tasks.claim(caller, agent_id, key) if has_task else (None, False)

    # A claim in memory was stored, or will be stored by the next round of maintenance.
    if (caller.user_id, agent_id) not in worker_claims:
        _make_tool(agent_id)
    return until(claim_if_any, lambda claim: claim[0] is not None)


def _make_tool(agent_id: str) -> None:
    """Make the agent an MCP tool if this claim is the first of its workers in a long time: a person
    who has started a worker may look for the tool before the next round of maintenance.
    """
    if not agents.has_worker(agents.get(caller, agent_id)):
        worker_claims[caller.user_id, agent_id] = clock.now()
        users.record_last_uses()


def is_client_connected() -> bool:
    """Whether the client's connection is still open."""
    client: socket.socket | None = request.environ.get("gunicorn.socket")
    if client is None:
        return True
    try:
        return client.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


# A stream of a task's changes, as Server-Sent Events.

# Seconds without an event after which a comment is sent, so that proxies do not close the stream.
COMMENT_SECONDS = 15.0
COMMENT = b":\n\n"

# Columns whose changes cause no `task` event: they never change, or they change at each append.
_UNNOTICED = {"input", "first_log", "log_count", "log_bytes", "updated_at", "version"}
_state = attrgetter(*(it.key for it in TASK_COLUMNS if it.key not in _UNNOTICED))

WITHOUT_LOGS = Shape(fields=tuple(name for name in TASK_FIELDS if name != "logs"))
# The fields that viewers of a link can read.
SHARED = Shape(fields=tuple(name for name in SHARED_FIELDS if name != "logs"))


# Seconds after which a client that got no stream should retry. The number of streams is limited,
# since each stream takes a thread.
STREAM_RETRY_SECONDS = 5
HEADERS = {"X-Accel-Buffering": "no"}


def follow(
    task_id: str,
    after: int,
    is_allowed: Callable[[], bool] = lambda: True,
    *,
    has_times: bool = False,
) -> Response:
    """A stream of a task's changes; it ends when the key becomes invalid or `is_allowed()` returns
    false. Raises 503.
    """
    if request.method == "HEAD":
        # The body is an iterator, since an empty string would set Content-Length.
        return Response(iter(()), headers=HEADERS, content_type=EVENTS)
    stack = ExitStack()
    slot = stack.enter_context(_slot(is_stream=True))
    if slot is None:
        raise overloaded("Too many streams and waits are open", STREAM_RETRY_SECONDS)
    text = stream_with_context(_text(_events(task_id, after, has_times), slot, is_allowed))
    response = Response(text, headers=HEADERS, content_type=EVENTS)
    response.call_on_close(stack.close)
    return response


def _text(
    events: Iterator[bytes | None], slot: WaitSlot, is_allowed: Callable[[], bool]
) -> Iterator[bytes]:
    """The events until the client loses access, with comments while nothing changes."""
    is_key_valid = _key_check()
    sent_at = checked_at = time.monotonic()
    for event in events:
        if slot.is_over or (event is None and not is_client_connected()):
            return
        # A stream can last for days, and the key can be revoked during this time.
        if time.monotonic() - checked_at >= CLIENT_CHECK_SECONDS:
            if not (is_allowed() and is_key_valid()):
                return
            checked_at = time.monotonic()
        if event is None and time.monotonic() - sent_at < COMMENT_SECONDS:
            continue
        sent_at = time.monotonic()
        yield event or COMMENT


def _events(task_id: str, after: int, has_times: bool) -> Iterator[bytes | None]:
    """Yields the task, its lines after number `after`, and each change, until the task ends.

    A `task` event is the first and the last event, and follows each change other than new lines.
    Yields None if nothing changes between two checks of the client. The iterator also ends when the
    task is deleted or the process stops.
    """
    shown: tuple[object, ...] | None = None
    watch = resources.find(Watcher)
    since = None
    with watch.watching():
        while not resources.stopping.is_set():
            if watch.changes == since:
                yield None
                watch.wait(since, CLIENT_CHECK_SECONDS)
                continue
            since = watch.changes
            row = tasks.find(caller, task_id)
            if row is None:
                return
            if shown is None:
                yield _task(row)
                # If `after` were greater than the number of the last line, new lines would be
                # skipped.
                after = min(after, row.log_count)
            begin = after = max(after, row.first_log - 1)
            # The log was dropped by retention or because the task was deleted; the next read of the
            # task shows which.
            with suppress(LogDropped):
                for page in logs.pages(row, after):
                    lines = page.timed_lines()
                    yield _lines(after + 1, lines, has_times)
                    after += len(lines)
            has_ended = row.status != RUNNING
            is_news = shown is not None and shown != _state(row)
            if is_news or (has_ended and after > begin):
                yield _task(row)
            shown = _state(row)
            if has_ended and after >= row.log_count:
                return


def _task(row: TaskRow) -> bytes:
    shape = SHARED if caller.task_id else WITHOUT_LOGS
    return b"event: task\ndata: " + b"".join(task_json.task(row, shape)) + b"\n\n"


def _lines(first: int, lines: list[TimedLine], has_times: bool) -> bytes:
    data = [{"at": at, "line": text} if has_times else text for text, at in lines]
    return b"".join(
        b"id: %d\nevent: log\ndata: %b\n\n" % (number, strict_json.dumps(line))
        for number, line in enumerate(data, first)
    )

"""Formats tasks as text for people, with times in this machine's time zone."""

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from taskservice.client import Task
from taskservice.quantities import percent_done, seconds_text
from taskservice.reasons import is_generic, reason_line
from taskservice.terminal import local_time, print_table, shortened, with_offset
from taskservice.terms import CANCELLED, COMPLETE, FAILED, HANGING, RUNNING, TIMEOUT

WAITING = "waiting"

# Only the fields that the table needs, since other fields, such as the output, can be long.
ROW_FIELDS = (
    "id,name,agentId,createdAt,claimedAt,finishedAt,seconds,logCount,status,error,progress,note,labels,"
    "questions,hangingSince"
)
HEADER = ("ID", "STATUS", "STARTED", "TOOK", "LINES", "AGENT", "NAME", "NOTE", "LABELS")
# Columns that are omitted if all their cells are empty. A name is shown only if it differs from the
# agent's ID.
OFTEN_EMPTY = ("NAME", "NOTE", "LABELS")
# Columns that are left out on a narrow terminal, in this order.
OPTIONAL = ("LABELS", "LINES", "TOOK")
# ANSI colours: green, blue, yellow, red and grey.
COLOURS = {
    COMPLETE: "32", RUNNING: "34", WAITING: "33", FAILED: "31", TIMEOUT: "31", HANGING: "31",
    CANCELLED: "90",
}  # fmt: skip
# Lengths of the ID prefixes in tables. The shorter prefix contains the start time in milliseconds;
# the longer prefix also contains 12 random bits.
SHORT_ID, LONGER_ID = 13, 18
MAX_CELL = 60
# If an error message contains no reason, the reason is taken from the log: from at most MAX_LOGS
# logs, and from the last END_LINES lines of each log.
MAX_LOGS, END_LINES = 20, 100


def print_tasks(tasks: Sequence[Task]) -> None:
    """Print a table with a row for each task."""
    length = id_length([task.id for task in tasks])
    generic = [task for task in tasks if task.error and is_generic(task.error["message"])]
    log_ends = {task.id: _log_end(task) for task in generic[:MAX_LOGS]}
    rows = [
        dict(zip(HEADER, _row(task, length, log_ends.get(task.id, "")), strict=True))
        for task in tasks
    ]
    columns = [name for name in HEADER if name not in OFTEN_EMPTY or any(row[name] for row in rows)]
    cells = ([shortened(row[name], MAX_CELL) for name in columns] for row in rows)
    print_table([columns, *cells], colours={"STATUS": COLOURS}, optional=OPTIONAL)


def id_length(ids: Collection[str]) -> int:
    """How many characters of each ID a table shows."""
    is_short_unique = len({task_id[:SHORT_ID] for task_id in ids}) == len(ids)
    return SHORT_ID if is_short_unique else LONGER_ID


def _log_end(task: Task) -> str:
    lines = task.lines(after=max(task.data["logCount"] - END_LINES, 0))
    return "\n".join(line.text for line in lines)


def _row(task: Task, length: int, log_end: str) -> tuple[str, ...]:
    data = task.data
    if task.error:
        note = reason_line(task.error["message"], log_end)
    elif task.questions:
        note = asks(task.questions[0]["message"])
    else:
        note = _progress(task)
    lines = f"{data['logCount']:>{len('LINES')}}"
    started = local_time(data["createdAt"])
    name = "" if task.name == task.agent_id else task.name
    took, labels = duration(task), labels_text(task)
    return (task.id[:length], state(task), started, took, lines, task.agent_id, name, note, labels)


def heading(hit: Mapping[str, Any]) -> str:
    """The heading above the lines of a task in the results of a search."""
    name = "" if hit["name"] == hit["agentId"] else f"  {hit['name']}"
    return f"{hit['taskId'][:LONGER_ID]}  {hit['agentId']}{name}  {hit['status']}"


def details(task: Task) -> Iterator[str]:
    """Lines with the name and value of each field of a task, without its log."""
    data = task.data
    for word, value in (
        ("name", task.name),
        ("status", outcome(task)),
        ("progress", _progress(task)),
        ("id", task.id),
        ("agent", task.agent_id),
        ("labels", labels_text(task)),
        ("created", with_offset(data["createdAt"])),
        ("claimed", with_offset(data["claimedAt"])),
        ("finished", with_offset(data["finishedAt"])),
        ("hanging", with_offset(data.get("hangingSince"))),
        ("took", duration(task)),
        ("started by", data["startedBy"]),
        ("ended by", data["endedBy"]),
        ("parent", data["parentId"]),
        ("rerun of", data["rerunOf"]),
        ("callback", data["callback"]),
        ("lines", str(data["logCount"])),
        ("page", task.page_url),
    ):
        yield f"{word:10}  {value or '-'}"
    for word in ("input", "output"):
        first, *others = json.dumps(data[word], indent=2, ensure_ascii=False).split("\n")
        yield f"{word:10}  {first}"
        yield from (f"{'':12}{line}" for line in others)


def outcome(task: Task) -> str:
    if not task.error:
        return state(task)
    return f"{task.status}: {task.error['type']}: {task.error['message']}"


def state(task: Task) -> str:
    """The status of a task, or `hanging`, `waiting` or the type of its error."""
    if task.data.get("hangingSince"):
        return HANGING
    if task.status == RUNNING and task.data["claimedAt"] is None:
        return WAITING
    return task.error["type"] if task.error else task.status


def duration(task: Task) -> str:
    """The reported duration, or the time from the claim to the end or to now; `-` if unclaimed."""
    claimed, finished = task.data["claimedAt"], task.data["finishedAt"]
    if claimed is None:
        return "-"
    if task.data["seconds"] is not None:
        return seconds_text(task.data["seconds"])
    end = datetime.fromisoformat(finished) if finished else datetime.now(UTC)
    return seconds_text(max((end - datetime.fromisoformat(claimed)).total_seconds(), 0))


def labels_text(task: Task) -> str:
    return " ".join(f"{key}={value}" for key, value in task.labels.items())


def asks(message: str) -> str:
    """The message of a question on one line."""
    return f"asks: {' '.join(message.split())}"


def _progress(task: Task) -> str:
    """The progress and the note, such as `50% 34 of 68 pages`; empty without both."""
    share, note = task.data["progress"], task.data["note"]
    return " ".join(([] if share is None else [percent_done(share)]) + ([note] if note else []))

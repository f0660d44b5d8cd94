"""A plain Python model of the service, for the state machine."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import ANY

from tests.support.api_client import ApiClient

Json = dict[str, Any]
# Stands for the time of a change, which only the service knows.
NOW = object()


@dataclass(eq=False)
class User:
    """A user and all that belongs to it."""

    id: str
    name: str
    agents: dict[str, Json] = field(default_factory=dict)
    keys: list["Key"] = field(default_factory=list)
    tasks: list["Task"] = field(default_factory=list)

    def task_of(self, idempotency_key: str | None) -> "Task | None":
        """The task that was started under this key."""
        if idempotency_key is None:
            return None
        matches = (task for task in self.tasks if task.idempotency_key == idempotency_key)
        return next(matches, None)

    def caller(self, agent_id: str | None = None) -> "Key | None":
        """A valid key of the user, or one that is narrowed to this agent."""
        valid = (key for key in self.keys if key.valid and key.agent_id == agent_id)
        return next(valid, None)

    def oldest_waiting(self, agent_id: str) -> "Task | None":
        waiting = [
            task
            for task in self.tasks
            if task.json["agentId"] == agent_id
            and task.json["status"] == "running"
            and task.json["claimedAt"] is None
        ]
        return min(waiting, key=Task.creation, default=None)


@dataclass(eq=False)
class Key:
    """A caller with an API key."""

    id: str
    user: User
    person: ApiClient
    agent_id: str | None = None
    valid: bool = True

    def sees(self, task: "Task") -> bool:
        return task in self.user.tasks and self.agent_id in (None, task.json["agentId"])

    def sees_agent(self, agent_id: str) -> bool:
        return agent_id in self.user.agents and self.agent_id in (None, agent_id)

    def is_the_last(self) -> bool:
        others = [key for key in self.user.keys if key.agent_id is None and key is not self]
        return self.agent_id is None and not any(key.valid for key in others)


@dataclass(eq=False)
class Task:
    """A task as it was last read, and its hidden state."""

    user: User
    json: Json
    idempotency_key: str | None = None
    body: Json | None = None
    writers: dict[str, int] = field(default_factory=dict)
    # The states of its deliveries, oldest first.
    deliveries: list[str] = field(default_factory=list)
    # The task by its ETag; `json` is another object after each change.
    etag: str = '"none"'
    known: Json | None = None

    def creation(self) -> tuple[str, str]:
        return self.json["createdAt"], self.json["id"]

    @property
    def running(self) -> bool:
        return bool(self.json["status"] == "running")

    @property
    def error_type(self) -> str | None:
        error = self.json["error"]
        return error and str(error["type"])

    @property
    def is_open(self) -> bool:
        """Whether lines may be added: it runs, or the service ended it."""
        return self.running or self.error_type == "timeout"

    def changed_to(self, seen: Json, expected: Json) -> None:
        """Store a response, which must be `expected` except for the new times."""
        was = self.json
        if expected == was:
            assert seen == was
            return
        updated_at = seen["updatedAt"]
        assert updated_at >= was["updatedAt"]
        expected = {name: updated_at if value is NOW else value for name, value in expected.items()}
        assert seen == expected | {"updatedAt": updated_at}
        self.json = seen


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON, in which 1, 1.0 and true differ."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def stored(text: str) -> str:
    """Text as it is stored."""
    return text.replace("\0", "\ufffd")


def lines_of(texts: Iterable[str]) -> list[str]:
    """The lines in JSON strings."""
    lines = []
    for text in texts:
        parts = stored(text).split("\n")
        # The text after the last line feed is a line unless it is empty and not the only one.
        ended, rest = parts[:-1], parts[-1]
        lines += [part[:-1] if part.endswith("\r") else part for part in ended]
        lines += [rest] if rest or not ended else []
    return lines


def fresh_lines(task: Task, lines: list[str], writer: str, seq: int | None) -> list[str] | None:
    """The new ones of `lines`; None where some before them are missing."""
    if seq is None:
        return lines
    known = task.writers.get(writer, 0)
    if seq > known + 1:
        return None
    return [line for number, line in enumerate(lines, seq) if number > known]


def reported(task: Task, changes: Json) -> Json | None:
    """The task after a report; None if the report is refused."""
    was = task.json
    now = was | {"output": was["output"] | changes.get("output", {})}
    status = changes.get("status")
    if status in ("running", "complete"):
        now |= {"status": status, "error": None}
    elif status == "error" and changes.get("error"):
        now |= {"status": "error", "error": {"type": "failed"} | changes["error"]}
    elif status == "error" and task.error_type not in ("failed", "cancelled"):
        now |= {"status": "error", "error": {"type": "failed", "message": ANY}}
    changed = now["error"] != was["error"] or not all(
        same(now[name], was[name]) for name in ("output", "status")
    )
    if "labels" in changes:
        labels = was["labels"] | changes["labels"]
        now["labels"] = {key: value for key, value in labels.items() if value is not None}
    plain = ("progress", "note", "seconds")
    now |= {name: changes[name] for name in plain if name in changes}
    changed = changed or any(now[name] != was[name] for name in plain)
    late_report = task.error_type == "timeout" and status in ("complete", "error")
    if changed and not (task.running or late_report):
        return None
    if now["status"] != "running" and (now["status"], now["error"]) != (
        was["status"],
        was["error"],
    ):
        now |= {"finishedAt": NOW, "endedBy": ANY}
    return now | {"name": stored((was | changes)["name"])}


FILTERS: dict[str, Callable[[Json, str], bool]] = {
    "status": lambda task, value: bool(task["status"] == value),
    "agentId": lambda task, value: bool(task["agentId"] == value),
    "q": lambda task, value: value.casefold() in task["name"].casefold(),
    "createdAfter": lambda task, value: bool(task["createdAt"] > value),
    "createdBefore": lambda task, value: bool(task["createdAt"] < value),
    "finishedAfter": lambda task, value: bool(task["finishedAt"] and task["finishedAt"] > value),
}


def listed(key: Key, fields: dict[str, str]) -> list[Json]:
    """The list that this key gets with these parameters."""
    tasks = [
        task.json
        for task in key.user.tasks
        if key.sees(task)
        and all(fits(task.json, fields[name]) for name, fits in FILTERS.items() if name in fields)
    ]
    tasks.sort(key=lambda task: (task["createdAt"], task["id"]))
    if fields.get("sort") == "finishedAt":
        ended = [task for task in tasks if task["finishedAt"]]
        return sorted(ended, key=lambda task: (task["finishedAt"], task["id"]))
    return tasks if fields.get("sort") == "createdAt" else tasks[::-1]

"""The numbers in the outputs of an agent's last tasks, exactly as they were reported."""

import json
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import bindparam, select

from taskservice.auth import Caller, tasks_of_user
from taskservice.database.connections import Statement
from taskservice.database.models import Task
from taskservice.database.transactions import read_all, read_one
from taskservice.database.types import AnyRow
from taskservice.schemas.strict_json import fragment
from taskservice.services import agents
from taskservice.terms import MAX_LIMIT

# The tasks whose outputs are searched for paths.
RECENT = 100
MAX_PATHS = 50
# The numbers of one output that count, and the bytes of outputs that one call reads.
MAX_PER_OUTPUT = 100
MAX_BYTES = 4 * 1024 * 1024
# Outputs whose numbers a process keeps.
CACHE_SIZE = 1_000

_ENDED = Statement[AnyRow](
    select(Task.id, Task.version, Task.finished_at)
    .where(tasks_of_user, Task.agent_id == bindparam("agent_id"), Task.finished_at.is_not(None))
    .order_by(Task.finished_at.desc())
    .limit(bindparam("count"))
)
_OUTPUT = Statement[AnyRow](select(Task.output).where(Task.id == bindparam("task_id")))


class _Number(str):
    """A number as it is written; other texts of an output are plain strings."""

    __slots__ = ()


# A list of very many numbers, none of which counts; inside of a string it does not matter either.
_LONG_LIST = re.compile(r"\[[-+.,0-9eE]{200,}\]")
_decoder = json.JSONDecoder(parse_int=_Number, parse_float=_Number)


class Number(NamedTuple):
    """A number of one output; `text` is JSON."""

    task_id: str
    finished_at: str
    text: str


def by_path(caller: Caller, agent_id: str) -> dict[str, list[Number]]:
    """Path -> its RECENT numbers, oldest first; the MAX_PATHS most frequent. Raises 404."""
    found: dict[str, list[Number]] = {}
    for task, numbers in reversed([*_outputs(caller, agent_id, RECENT)]):
        for path, text in numbers.items():
            found.setdefault(path, []).append(Number(task.id, task.finished_at, text))
    paths = sorted(found, key=lambda path: -len(found[path]))
    return {path: found[path] for path in paths[:MAX_PATHS]}


def list_paths(caller: Caller, agent_id: str) -> list[dict[str, Any]]:
    """The paths that `by_path` finds, as in NumberPathSchema. Raises 404."""
    return [
        {"path": path, "last": fragment(found[-1].text), "count": len(found)}
        for path, found in by_path(caller, agent_id).items()
    ]


def at_path(caller: Caller, agent_id: str, path: str, limit: int) -> list[dict[str, Any]]:
    """The newest numbers at a path, oldest first, as in OutputNumberSchema. Raises 404."""
    found = (
        {"taskId": task.id, "finishedAt": task.finished_at, "value": fragment(numbers[path])}
        for task, numbers in _outputs(caller, agent_id, MAX_LIMIT)
        if path in numbers
    )
    return list(islice(found, limit))[::-1]


def _outputs(
    caller: Caller, agent_id: str, count: int
) -> Iterator[tuple[AnyRow, Mapping[str, str]]]:
    """The last ended tasks with their numbers by path, newest first, up to MAX_BYTES."""
    agent = agents.get(caller, agent_id)
    ended = read_all(_ENDED, user_id=agent.user_id, agent_id=agent.id, count=count)
    left = MAX_BYTES
    for task in ended:
        size, numbers = _numbers(task.id, task.version)
        left -= size
        if left < 0:
            return
        yield task, numbers


@lru_cache(CACHE_SIZE)
def _numbers(task_id: str, version: int) -> tuple[int, Mapping[str, str]]:
    """The length of a task's output in this version, and its first numbers by their paths."""
    row = read_one(_OUTPUT, task_id=task_id)
    text = row.output if row else "{}"
    output = _decoder.decode(_LONG_LIST.sub("[]", text))
    # A key with a dot wins over a nested one.
    numbers = dict(islice(_top_level(output), MAX_PER_OUTPUT))
    for path, number in islice(_nested(output), MAX_PER_OUTPUT - len(numbers)):
        numbers.setdefault(path, number)
    return len(text), numbers


def _top_level(output: dict[str, Any]) -> Iterator[tuple[str, str]]:
    return ((key, str(value)) for key, value in output.items() if isinstance(value, _Number))


def _nested(output: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in output.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{inner}", number) for inner, number in _top_level(value))

"""The processes that a program has started, found so that they can be stopped with it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class FoundProcess(NamedTuple):
    """A process that runs; `started` tells it from a later one with the same id."""

    parent: int
    group: int
    started: str
    is_paused: bool


class ProcessTree:
    """A process, its children, theirs, and so on; with `group` all of its process group too.

    Who has been seen once belongs to it, also when the parent between has ended.
    """

    def __init__(self, first: int, group: int | None) -> None:
        self._first, self._group = first, group
        self._seen: dict[int, FoundProcess] = {}

    def members(self) -> list[int]:
        """The ids of those that run now."""
        found = processes()
        self._seen = {
            id: found[id]
            for id, before in self._seen.items()
            if id in found and found[id].started == before.started
        }
        self._add(found, lambda id: id == self._first or found[id].group == self._group)
        while self._add(found, lambda id: found[id].parent in self._seen):
            pass
        return list(self._seen)

    def is_paused(self) -> bool:
        """Whether none of those that ran at the last look goes on."""
        return all(found.is_paused for found in self._seen.values())

    def outside_group(self) -> list[int]:
        """The ids of those that ran at the last look and are not in the process group."""
        return [id for id, found in self._seen.items() if found.group != self._group]

    def _add(self, found: dict[int, FoundProcess], belongs: Callable[[int], bool]) -> bool:
        new = {id: found[id] for id in found if id not in self._seen and belongs(id)}
        self._seen |= new
        return bool(new)


def processes() -> dict[int, FoundProcess]:
    """All processes of this machine, but for those that have ended and were not waited for."""
    return dict(_of_proc() if Path("/proc/self/stat").exists() else _of_ps())


def _of_proc() -> Iterator[tuple[int, FoundProcess]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError:  # it ends at this moment
            continue
        # Its name, in brackets, may have brackets and spaces.
        state, parent, group, *rest = text.rpartition(")")[2].split()
        if state not in "ZX":
            yield int(name), FoundProcess(int(parent), int(group), rest[16], state in "Tt")


def _of_ps() -> Iterator[tuple[int, FoundProcess]]:
    command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    for line in listed.stdout.splitlines():
        id, parent, group, state, started = line.split(maxsplit=4)
        if not state.startswith("Z"):
            yield int(id), FoundProcess(int(parent), int(group), started, state[0] in "Tt")

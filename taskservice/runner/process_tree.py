"""Finds the descendants of a process, so that they can be stopped with it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple


class FoundProcess(NamedTuple):
    """A running process; `started` tells it from a later one with the same id."""

    parent: int
    group: int
    started: str
    is_paused: bool


class ProcessTree:
    """A process and its descendants; with `group`, the members of that process group too.

    A process seen once stays a member, even if the parent between has ended.
    """

    def __init__(self, first: int, group: int | None) -> None:
        self._first, self._group = first, group
        self._seen: dict[int, FoundProcess] = {}

    def members(self) -> list[int]:
        """The ids of the processes that run now."""
        found = processes()
        self._seen = {
            pid: found[pid]
            for pid, before in self._seen.items()
            if pid in found and found[pid].started == before.started
        }
        self._add(found, lambda pid: pid == self._first or found[pid].group == self._group)
        while self._add(found, lambda pid: found[pid].parent in self._seen):
            pass
        return list(self._seen)

    def is_paused(self) -> bool:
        """Whether all that `members` last found are paused."""
        return all(found.is_paused for found in self._seen.values())

    def outside_group(self) -> list[int]:
        """The ids of those that `members` last found outside the process group."""
        return [pid for pid, found in self._seen.items() if found.group != self._group]

    def _add(self, found: dict[int, FoundProcess], belongs: Callable[[int], bool]) -> bool:
        new = {pid: found[pid] for pid in found if pid not in self._seen and belongs(pid)}
        self._seen |= new
        return bool(new)


def processes() -> dict[int, FoundProcess]:
    """All processes of this machine except zombies, by id."""
    return dict(_from_proc() if Path("/proc/self/stat").exists() else _from_ps())


def _from_proc() -> Iterator[tuple[int, FoundProcess]]:
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            text = Path("/proc", name, "stat").read_text(errors="replace")
        except OSError:  # it has just ended
            continue
        # The name before, in brackets, may contain brackets and spaces.
        state, parent, group, *rest = text.rpartition(")")[2].split()
        if state not in "ZX":
            yield int(name), FoundProcess(int(parent), int(group), rest[16], state in "Tt")


def _from_ps() -> Iterator[tuple[int, FoundProcess]]:
    command = ["ps", "-A", "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    listed = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    for line in listed.stdout.splitlines():
        pid, parent, group, state, started = line.split(maxsplit=4)
        if not state.startswith("Z"):
            yield int(pid), FoundProcess(int(parent), int(group), started, state[0] in "Tt")

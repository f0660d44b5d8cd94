"""Finds the descendants of a process, so that they can be stopped with it."""

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# From Linux's <sys/prctl.h>.
_PR_SET_CHILD_SUBREAPER = 36


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
        self._adopted: set[int] = set()
        # While orphans come to us: our children that are none.
        self._not_adopted: set[int] | None = None

    def members(self) -> list[int]:
        """The ids of the processes that run now."""
        found = processes()
        self._seen = {
            pid: found[pid]
            for pid, before in self._seen.items()
            if pid in found and found[pid].started == before.started
        }
        self._add(found, lambda pid: pid == self._first or found[pid].group == self._group)
        if self._not_adopted is not None:
            self._adopted |= _our_children(found) - self._not_adopted
            self._add(found, lambda pid: pid in self._adopted)
        while self._add(found, lambda pid: found[pid].parent in self._seen):
            pass
        return list(self._seen)

    def is_paused(self) -> bool:
        """Whether all that `members` last found are paused."""
        return all(found.is_paused for found in self._seen.values())

    def outside_group(self) -> list[int]:
        """The ids of those that `members` last found outside the process group."""
        return [pid for pid, found in self._seen.items() if found.group != self._group]

    def holding_back(self, number: int) -> list[int]:
        """The ids of those that `members` last found and that block this signal, sent to them."""
        return [pid for pid in self._seen if _holds_back(pid, number)]

    @contextlib.contextmanager
    def adopting(self) -> Iterator[None]:
        """Meanwhile, a member whose parent ends becomes our child, so that it is found.

        Only Linux can do this.
        """
        self._not_adopted = _our_children(processes())
        _adopt_orphans(True)
        try:
            yield
        finally:
            _adopt_orphans(False)
            self._not_adopted = None

    def reap(self) -> None:
        """Forget the adopted ones that have ended: the system keeps their ids until then."""
        for pid in list(self._adopted):
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG) == (0, 0):
                    continue
            self._adopted.discard(pid)

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


def _our_children(found: dict[int, FoundProcess]) -> set[int]:
    return {pid for pid in found if found[pid].parent == os.getpid()}


def _adopt_orphans(adopt: bool) -> None:
    """Become the parent of descendants whose parent ends, or leave them to the system."""
    with contextlib.suppress(AttributeError):  # no prctl here
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _holds_back(process_id: int, number: int) -> bool:
    """Whether a process blocks a signal that was sent to it; False where /proc can't tell."""
    try:
        lines = Path("/proc", str(process_id), "status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    masks = {name: value for name, _, value in (line.partition(":") for line in lines)}
    blocked, sent = int(masks["SigBlk"], 16), int(masks["SigPnd"], 16) | int(masks["ShdPnd"], 16)
    return bool(blocked & sent & 1 << number - 1)

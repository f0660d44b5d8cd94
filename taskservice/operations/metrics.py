"""Prometheus metrics. Counts requests in shared memory; `health` adds metrics of the database."""

import mmap
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import accumulate
from operator import add
from struct import pack_into, unpack_from
from threading import Lock

from taskservice import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Upper bounds of the histogram's buckets in seconds; the last bucket has no bound.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Unknown methods and paths are counted together, since clients can invent any number of them.
OTHER = "other"

# The maximum number of processes that count requests at the same time: 64 workers, and twice as
# many during a reload.
SLOTS = 128
# The maximum number of combinations of route, method and status that each process counts.
RECORDS = 1024
# A record consists of words of 8 bytes: its labels as text, a count for each bucket, and the sum of
# the durations in microseconds.
_WORD = 8
_LABELS = 16
_TEXT = f"{_LABELS * _WORD}s"
_BUCKETS = len(BOUNDS) + 1
_RECORD = _LABELS + _BUCKETS + 1
# A slot begins with the number of its records, and the number of open streams and waits.
_HEAD = 2
# The extra record is never read: requests are counted in it when no other record is free.
_SLOT = _HEAD + (RECORDS + 1) * _RECORD


HELP = {
    "agents": "Agents by the outcome of their last task, and agents that are late.",
    "build_info": "The version of the service, and of Python.",
    "database_size_bytes": "Size of the database, and of SQLite's write-ahead log.",
    "database_up": "Whether the database can be read and written.",
    "deliveries": "Deliveries by state.",
    "last_backup_timestamp_seconds": "Time of the last backup; 0 if none has succeeded.",
    "oldest_due_delivery_age_seconds": (
        "Age of the oldest due delivery in seconds; 0 when none is due."
    ),
    "request_duration_seconds": "Seconds until the first byte of the response, by route.",
    "requests_total": "Requests by route, method and status.",
    "tasks": "Tasks by status.",
    "tasks_hanging": "Number of running tasks that hang.",
    "waits": "Number of open streams and waits.",
    "waits_limit": "Maximum number of streams and waits.",
}


def metric(kind: str, name: str, samples: Mapping[str, float]) -> str:
    """A metric in Prometheus' text format 0.0.4, with a sample for each suffix of its name."""
    lines = [f"# HELP taskservice_{name} {HELP[name]}", f"# TYPE taskservice_{name} {kind}"]
    lines += [f"taskservice_{name}{suffix} {value}" for suffix, value in samples.items()]
    return "\n".join([*lines, ""])


def gauge(name: str, value: float | Mapping[str, float], label: str = "") -> str:
    """A gauge with one value, or with a value for each value of its label."""
    if isinstance(value, Mapping):
        samples = {f'{{{label}="{text}"}}': number for text, number in value.items()}
        return metric("gauge", name, samples)
    return metric("gauge", name, {"": value})


_VERSIONS = f'{{version="{__version__}",python="{sys.version.partition(" ")[0]}"}}'
BUILD = metric("gauge", "build_info", {_VERSIONS: 1})


class RequestCounts:
    """Counts the requests of all worker processes, in memory inherited from their parent.

    Each process writes to its own slot, so that no process waits for another. A later process takes
    over the slot of a process that died, with its counts, so that no count is lost or doubled.
    """

    def __init__(self) -> None:
        # Anonymous memory needs no clean-up and no disk, and unused pages take no space.
        # The extra slot is never read: processes use it if no other slot is free.
        self._bytes = memoryview(mmap.mmap(-1, (SLOTS + 1) * _SLOT * _WORD))
        self._words = self._bytes.cast("Q")
        self._lock = Lock()
        self.use_free_slot(())

    def use_free_slot(self, taken: Collection[int]) -> int:
        """Switch to a slot that no other process uses; returns the number of the slot.

        `taken` contains the slots of other processes.
        """
        slot = next(slot for slot in range(SLOTS + 1) if slot not in taken or slot == SLOTS)
        self._start = slot * _SLOT
        self._offsets = dict(self._records(self._start))
        # A process that used this slot before is dead, so its waits have ended.
        self._words[self._start + 1] = 0
        return slot

    def add(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request whose response began after `seconds`; `route` is a URL rule."""
        labels = (route or OTHER, method if method in METHODS else OTHER, status)
        with self._lock:
            offset = self._offsets.get(labels) or self._add_record(labels)
            self._words[offset + bisect_left(BOUNDS, seconds)] += 1
            self._words[offset + _BUCKETS] += int(seconds * 1_000_000)

    def add_wait(self, change: int) -> None:
        """Change the number of open streams and waits, by 1 at a start and by -1 at an end."""
        with self._lock:
            self._words[self._start + 1] += change

    def metrics(self, waits_limit: int) -> list[str]:
        """The counts of all processes since the service started, and their open waits."""
        requests: Counter[tuple[str, str, int]] = Counter()
        durations: dict[str, list[int]] = {}
        waits = 0
        for slot in range(SLOTS):
            waits += self._words[slot * _SLOT + 1]
            for labels, offset in self._records(slot * _SLOT):
                numbers = self._words[offset : offset + _BUCKETS + 1].tolist()
                requests[labels] += sum(numbers[:_BUCKETS])
                before = durations.get(labels[0], [0] * len(numbers))
                durations[labels[0]] = list(map(add, before, numbers))
        # The duration of requests without a route is meaningless.
        durations.pop(OTHER, None)
        counts = {
            f'{{route="{route}",method="{method}",status="{status}"}}': count
            for (route, method, status), count in sorted(requests.items())
        }
        seconds: dict[str, float] = {}
        for route, (*buckets, microseconds) in sorted(durations.items()):
            for bound, count in zip([*BOUNDS, "+Inf"], accumulate(buckets), strict=True):
                seconds[f'_bucket{{route="{route}",le="{bound}"}}'] = count
            seconds[f'_sum{{route="{route}"}}'] = microseconds / 1_000_000
            seconds[f'_count{{route="{route}"}}'] = sum(buckets)
        return [
            metric("counter", "requests_total", counts),
            metric("histogram", "request_duration_seconds", seconds),
            gauge("waits", waits),
            gauge("waits_limit", waits_limit),
        ]

    def _records(self, start: int) -> Iterator[tuple[tuple[str, str, int], int]]:
        """For each record of the slot at `start`, its labels and the offset of its counts."""
        for number in range(self._words[start]):
            offset = start + _HEAD + number * _RECORD
            (text,) = unpack_from(_TEXT, self._bytes, offset * _WORD)
            status, method, route = text.rstrip(b"\0").decode().split(" ", 2)
            yield (route, method, int(status)), offset + _LABELS

    def _add_record(self, labels: tuple[str, str, int]) -> int:
        number = self._words[self._start]
        offset = self._start + _HEAD + number * _RECORD
        if number < RECORDS:
            route, method, status = labels
            route = route.replace("<task:", "<")  # the name of the ID's converter
            pack_into(_TEXT, self._bytes, offset * _WORD, f"{status} {method} {route}".encode())
            # This is the last step, so that a process that dies leaves no incomplete record.
            self._words[self._start] = number + 1
            self._offsets[labels] = offset + _LABELS
        return offset + _LABELS


# Created at import, before the workers are forked, so that they share it.
requests = RequestCounts()

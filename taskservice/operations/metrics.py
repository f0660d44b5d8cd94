"""Counts requests in memory that all workers share, and writes the Prometheus text format."""

import mmap
import sys
from bisect import bisect_left
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import accumulate
from threading import Lock
from typing import NamedTuple

from taskservice import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Upper bounds of the histogram's buckets in seconds; the last bucket has no bound.
BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}
# Unknown methods and paths are counted together, since clients can invent any number of them.
OTHER = "other"

# Processes that can count at the same time: WORKERS is at most 64, and a reload doubles them.
SLOTS = 128
# Combinations of route, method and status that each process can count.
RECORDS = 1024
# A record, in words of 8 bytes: its labels as text, a count for each bucket, microseconds.
_WORD = 8
_LABELS = 16
_BUCKETS = len(BOUNDS) + 1
_RECORD = _LABELS + _BUCKETS + 1
# The start of a slot: how many records it has, and how many streams and waits are open.
_HEAD = 2
# The extra record is never read: it takes the counts when no record is free.
_SLOT = _HEAD + (RECORDS + 1) * _RECORD


class Labels(NamedTuple):
    """The labels of a request; `route` is the rule that it matched, not its path."""

    route: str
    method: str
    status: int


class Sample(NamedTuple):
    """One value of a metric; `suffix` goes behind the metric's name."""

    labels: Mapping[str, object]
    value: float
    suffix: str = ""


class Metric(NamedTuple):
    """A metric, of the kind counter, gauge or histogram, with its samples."""

    name: str
    kind: str
    help: str
    samples: Iterable[Sample]


def gauge(name: str, help: str, *samples: Sample) -> Metric:
    return Metric(f"taskservice_{name}", "gauge", help, samples)


class RequestCounts:
    """Counts the requests of all worker processes, in memory inherited from their parent.

    Each process writes to its own slot, so that none waits for another. A later process takes over
    the slot of a process that died, with its counts, so that no count is lost or doubled.
    """

    def __init__(self) -> None:
        # Anonymous memory needs no clean-up and no disk, and unused pages take no space.
        # The extra slot is never read: it is for processes that find no free slot.
        self._bytes = memoryview(mmap.mmap(-1, (SLOTS + 1) * _SLOT * _WORD))
        self._words = self._bytes.cast("Q")
        self._lock = Lock()
        self.use_free_slot(())

    def use_free_slot(self, taken: Collection[int]) -> int:
        """Use a free slot from now on, and return it; living processes have the slots `taken`."""
        slot = next(slot for slot in range(SLOTS + 1) if slot not in taken or slot == SLOTS)
        self._start = slot * _SLOT
        self._offsets: dict[tuple[str, str, int], int] = dict(self._records(self._start))
        # The waits of a process that died ended with it.
        self._words[self._start + 1] = 0
        return slot

    def add(self, route: str | None, method: str, status: int, seconds: float) -> None:
        """Count a request whose response began after `seconds`."""
        labels = (route or OTHER, method if method in METHODS else OTHER, status)
        with self._lock:
            offset = self._offsets.get(labels) or self._add_record(Labels(*labels))
            self._words[offset + bisect_left(BOUNDS, seconds)] += 1
            self._words[offset + _BUCKETS] += int(seconds * 1_000_000)

    def add_wait(self, change: int) -> None:
        """Count a stream or wait that begins (1) or ends (-1)."""
        with self._lock:
            self._words[self._start + 1] += change

    def waits(self, limit: int) -> list[Metric]:
        """The number of open streams and waits in all processes, and its maximum."""
        number = sum(self._words[slot * _SLOT + 1] for slot in range(SLOTS))
        return [
            gauge("waits", "Number of open streams and waits.", Sample({}, number)),
            gauge("waits_limit", "Maximum number of streams and waits.", Sample({}, limit)),
        ]

    def metrics(self) -> list[Metric]:
        """The counts of all processes since the service started."""
        requests: Counter[Labels] = Counter()
        durations: dict[str, list[int]] = {}
        for slot in range(SLOTS):
            for labels, offset in self._records(slot * _SLOT):
                numbers = self._words[offset : offset + _BUCKETS + 1].tolist()
                requests[labels] += sum(numbers[:_BUCKETS])
                before = durations.get(labels.route, [0] * len(numbers))
                durations[labels.route] = [a + b for a, b in zip(before, numbers, strict=True)]
        # The duration of requests without a route means nothing.
        durations.pop(OTHER, None)
        counts = [Sample(labels._asdict(), count) for labels, count in sorted(requests.items())]
        help = "Requests by route, method and status."
        buckets = [each for item in sorted(durations.items()) for each in _histogram(*item)]
        seconds = "Seconds until the first byte of the response, by route."
        return [
            Metric("taskservice_requests_total", "counter", help, counts),
            Metric("taskservice_request_duration_seconds", "histogram", seconds, buckets),
        ]

    def _records(self, start: int) -> Iterator[tuple[Labels, int]]:
        """The labels of each record of the slot at `start`, and the offset of its counts."""
        for number in range(self._words[start]):
            offset = start + _HEAD + number * _RECORD
            text = bytes(self._bytes[offset * _WORD : (offset + _LABELS) * _WORD])
            status, method, route = text.rstrip(b"\0").decode().split(" ", 2)
            yield Labels(route, method, int(status)), offset + _LABELS

    def _add_record(self, labels: Labels) -> int:
        number = self._words[self._start]
        offset = self._start + _HEAD + number * _RECORD
        if number < RECORDS:
            text = f"{labels.status} {labels.method} {labels.route}".encode()
            text = text[: _LABELS * _WORD].ljust(_LABELS * _WORD, b"\0")
            self._bytes[offset * _WORD : (offset + _LABELS) * _WORD] = text
            # Last, so that the record is complete even if this process dies.
            self._words[self._start] = number + 1
            self._offsets[labels] = offset + _LABELS
        return offset + _LABELS


# Created at import, before the workers are forked, so that they share it.
requests = RequestCounts()


def build() -> Metric:
    """The versions of the service and of Python."""
    labels = {"version": __version__, "python": sys.version.partition(" ")[0]}
    return gauge("build_info", "The version of the service, and of Python.", Sample(labels, 1))


def text(metrics: Iterable[Metric]) -> str:
    """Metrics in Prometheus' text format, version 0.0.4."""
    return "".join(f"{line}\n" for metric in metrics for line in _lines(metric))


def _lines(metric: Metric) -> Iterator[str]:
    yield f"# HELP {metric.name} {metric.help}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for sample in metric.samples:
        labels = ",".join(f'{name}="{_escaped(value)}"' for name, value in sample.labels.items())
        shown = f"{{{labels}}}" if labels else ""
        yield f"{metric.name}{sample.suffix}{shown} {sample.value}"


def _escaped(value: object) -> str:
    return str(value).replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _histogram(route: str, numbers: list[int]) -> Iterator[Sample]:
    *buckets, microseconds = numbers
    for bound, count in zip([*BOUNDS, "+Inf"], accumulate(buckets), strict=True):
        yield Sample({"route": route, "le": bound}, count, "_bucket")
    yield Sample({"route": route}, microseconds / 1_000_000, "_sum")
    yield Sample({"route": route}, sum(buckets), "_count")

"""The small chart above the list: tasks over time by status."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Lock

from taskservice.auth.caller import Caller
from taskservice.contract.terms import COMPLETE, ERROR, RUNNING
from taskservice.database import timestamps
from taskservice.queries import lists as list_queries
from taskservice.queries.lists import Selection

# From the bottom of a bar to its top.
STATUSES = (COMPLETE, ERROR, RUNNING)
# The height of the drawing, and the least that a single task is drawn with.
HEIGHT = 88
LEAST = 2.0
# A chart that took a while to count is shown again for so many times as long.
REST = 20.0
KEPT = 200


@dataclass(frozen=True)
class Period:
    """A stretch of time until now, in so many bars."""

    words: str
    seconds: int
    bars: int

    @property
    def since(self) -> str:
        return timestamps.now(-self.seconds)


PERIODS = {
    "1h": Period("last hour", 3_600, 30),
    "24h": Period("last 24 hours", 86_400, 24),
    "7d": Period("last 7 days", 7 * 86_400, 28),
    "30d": Period("last 30 days", 30 * 86_400, 30),
}
DEFAULT = "24h"


@dataclass(frozen=True)
class Bar:
    """The tasks that were started in one part of the period, by status."""

    since: str
    until: str
    counts: dict[str, int]

    @property
    def bounds(self) -> dict[str, str]:
        """The filters of the list, which are exclusive, that lead to just these tasks."""
        before = timestamps.rfc3339(datetime.fromisoformat(self.since) - timedelta(milliseconds=1))
        return {"createdAfter": before, "createdBefore": self.until}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def drawn(self, highest: int) -> Iterator[tuple[str, float, float]]:
        """(status, top, height) of its parts, where `highest` tasks reach up to the top."""
        top = float(HEIGHT)
        for status, count in self.counts.items():
            if count:
                height = round(max(LEAST, count / highest * (HEIGHT - 3 * LEAST)), 2)
                top = round(top - height, 2)
                yield status, top, height


@dataclass(frozen=True)
class Chart:
    """The bars of a period, oldest first."""

    period: Period
    bars: list[Bar]

    @property
    def highest(self) -> int:
        return max(bar.total for bar in self.bars)

    @property
    def totals(self) -> dict[str, int]:
        return {
            status: sum(bar.counts[status] for bar in self.bars) for status in self.bars[0].counts
        }


_lock = Lock()
_kept: OrderedDict[tuple[str, str | None, Selection, str], tuple[float, Chart]] = OrderedDict()


def of(caller: Caller, selection: Selection, name: str) -> Chart:
    """The chart of a list whatever its own period; `name` is a key of PERIODS.

    Counting a million tasks takes a while, and every open page asks again and again.
    """
    selection = replace(selection, created_after=None, created_before=None)
    wanted = caller.user_id, caller.agent_id, selection, name
    with _lock:
        good_until, chart = _kept.get(wanted, (0.0, None))
    began = time.monotonic()
    if chart is not None and began < good_until:
        return chart
    chart = _count(caller, selection, PERIODS[name])
    ended = time.monotonic()
    with _lock:
        _kept[wanted] = ended + REST * (ended - began), chart
        _kept.move_to_end(wanted)
        while len(_kept) > KEPT:
            _kept.popitem(last=False)
    return chart


def _count(caller: Caller, selection: Selection, period: Period) -> Chart:
    moments = _moments(period)
    statuses = [status for status in STATUSES if selection.status in (None, status)]
    counts = list_queries.starts(caller, selection, moments, statuses)
    bars = [
        Bar(since, until, dict(zip(statuses, of_bar, strict=True)))
        for (since, until), of_bar in zip(pairwise(moments), zip(*counts, strict=True), strict=True)
    ]
    return Chart(period, bars)


def _moments(period: Period) -> list[str]:
    """Where the bars begin, and where the last one ends: at whole hours, minutes or the like."""
    step = period.seconds // period.bars
    end = (int(time.time()) // step + 1) * step
    first = datetime.fromtimestamp(end, UTC) - timedelta(seconds=step * period.bars)
    return [
        timestamps.rfc3339(first + timedelta(seconds=step * place))
        for place in range(period.bars + 1)
    ]

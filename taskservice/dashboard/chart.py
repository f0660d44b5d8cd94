"""The chart above the list of tasks: how many were started over time, by status."""

import time
from collections import OrderedDict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from threading import Lock
from typing import NamedTuple

from taskservice.auth import Caller
from taskservice.database import clock
from taskservice.services import counts
from taskservice.services.lists import Selection
from taskservice.terms import COMPLETE, ERROR, RUNNING

# From the bottom of a bar to its top.
STATUSES = (COMPLETE, ERROR, RUNNING)
# The height of the chart and the minimum height of a part, in pixels.
HEIGHT = 88
MIN_HEIGHT = 2.0
# A bar is a spike if it is this many times as high as that of which USUAL_SHARE are lower. Where
# there is one, the chart is half as high as that.
SPIKE, USUAL_SHARE = 20, 0.8
MILLISECOND = 0.001
# A chart is cached for this many times as long as it took to count.
CACHE_FACTOR = 20.0
CACHE_SIZE = 200


class Period(NamedTuple):
    """A period until now; `label` completes "started in the ..."."""

    label: str
    seconds: int
    bars: int

    @property
    def boundaries(self) -> list[str]:
        """The start of each bar and the end of the last one, at whole multiples of its length.

        One bar more than the period has, since the first and the last one reach beyond it.
        """
        step = self.seconds // self.bars
        end = (int(time.time()) // step + 1) * step
        last = datetime.fromtimestamp(end, UTC)
        return [
            clock.rfc3339(last - timedelta(seconds=step * index))
            for index in range(self.bars + 1, -1, -1)
        ]

    @property
    def since(self) -> str:
        """The filter, exclusive like that of the API, that lists the tasks of all bars."""
        return clock.moved(self.boundaries[0], -MILLISECOND)


PERIODS = {
    "1h": Period("last hour", 3_600, 30),
    "24h": Period("last 24 hours", 86_400, 24),
    "7d": Period("last 7 days", 7 * 86_400, 28),
    "30d": Period("last 30 days", 30 * 86_400, 30),
}
DEFAULT = "24h"


class Bar(NamedTuple):
    """The tasks that were started in one part of the period, by status."""

    since: str
    until: str
    counts: dict[str, int]

    @property
    def bounds(self) -> dict[str, str]:
        """The filters, exclusive like those of the API, that list exactly these tasks."""
        before = clock.moved(self.since, -MILLISECOND)
        return {"createdAfter": before, "createdBefore": self.until}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def parts(self, highest: int) -> Iterator[tuple[str, float, float]]:
        """(status, top, height) in pixels of each part, where `highest` tasks fill the chart.

        A bar with more is as high as the chart.
        """
        top, highest = float(HEIGHT), max(highest, self.total)
        for status, count in self.counts.items():
            if count:
                height = round(max(MIN_HEIGHT, count / highest * (HEIGHT - 3 * MIN_HEIGHT)), 2)
                top = round(top - height, 2)
                yield status, top, height


def bar_start(created_after: str) -> str:
    """The start of the bar with this bound."""
    return clock.moved(created_after, MILLISECOND)


class Chart(NamedTuple):
    """The bars of a period, oldest first."""

    period: Period
    bars: list[Bar]
    is_complete: bool

    @property
    def highest(self) -> int:
        return max(bar.total for bar in self.bars)

    @property
    def top(self) -> int:
        """The number of tasks that fills the chart; bars with more are cut.

        A few bars that are many times as high as the others would leave nothing to see of them.
        """
        heights = sorted(bar.total for bar in self.bars if bar.total) or [0]
        usual = heights[int((len(heights) - 1) * USUAL_SHARE)]
        return SPIKE // 2 * usual if self.highest > SPIKE * usual else self.highest

    @property
    def totals(self) -> dict[str, int]:
        return {
            status: sum(bar.counts[status] for bar in self.bars) for status in self.bars[0].counts
        }


_lock = Lock()
_cache: OrderedDict[tuple[str, str | None, Selection, str], tuple[float, Chart]] = OrderedDict()


def count(caller: Caller, selection: Selection, name: str) -> Chart:
    """The chart of a list in the period `name`, a key of PERIODS; the list's own period is ignored.

    Cached, since counting a million tasks takes long and every open page asks each second.
    """
    selection = selection._replace(created_after=None, created_before=None)
    cache_key = caller.user_id, caller.agent_id, selection, name
    with _lock:
        expires, chart = _cache.get(cache_key, (0.0, None))
    began = time.monotonic()
    if chart is not None and began < expires:
        return chart
    chart = _count(caller, selection, PERIODS[name])
    ended = time.monotonic()
    with _lock:
        _cache[cache_key] = ended + CACHE_FACTOR * (ended - began), chart
        _cache.move_to_end(cache_key)
        while len(_cache) > CACHE_SIZE:
            _cache.popitem(last=False)
    return chart


def _count(caller: Caller, selection: Selection, period: Period) -> Chart:
    boundaries = period.boundaries
    only = ERROR if selection.error_type else selection.status
    statuses = tuple(status for status in STATUSES if only in (None, status))
    counted = counts.by_start(caller, selection, boundaries, statuses)
    bars = [
        Bar(since, until, dict(zip(statuses, of_bar, strict=True)))
        for (since, until), of_bar in zip(
            pairwise(boundaries), zip(*counted.counts, strict=True), strict=True
        )
    ]
    return Chart(period, bars, counted.are_complete)

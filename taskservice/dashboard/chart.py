"""The chart above the list of tasks: how many were started over time, by status."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from taskservice import quantities
from taskservice.auth import Caller
from taskservice.dashboard import formatting
from taskservice.database import clock
from taskservice.database.types import AnyRow
from taskservice.services import lists
from taskservice.services.agents import Number, seconds
from taskservice.services.lists import Selection
from taskservice.terms import COMPLETE, ERROR, RUNNING

# From the bottom of a bar to its top.
STATUSES = (COMPLETE, ERROR, RUNNING)
# The height of the chart and the minimum height of a part, in pixels.
HEIGHT = 56
MIN_HEIGHT = 2.0
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
        """The filter, exclusive as in the API, that lists the tasks of all bars."""
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
        """The filters, exclusive as in the API, that list exactly these tasks."""
        before = clock.moved(self.since, -MILLISECOND)
        return {"createdAfter": before, "createdBefore": self.until}

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def parts(self, highest: int) -> Iterator[tuple[str, float, float]]:
        """(status, top, height) in pixels of each part, where `highest` tasks fill the chart."""
        top = float(HEIGHT)
        for status, count in self.counts.items():
            if count:
                height = round(max(MIN_HEIGHT, count / highest * (HEIGHT - 3 * MIN_HEIGHT)), 2)
                top = round(top - height, 2)
                yield status, top, height


def bar_start(created_after: str) -> str:
    """The start of the bar with this bound: the bound itself if there is no later time."""
    try:
        return clock.moved(created_after, MILLISECOND)
    except OverflowError:
        return created_after


class Chart(NamedTuple):
    """The bars of a period, oldest first."""

    period: Period
    bars: list[Bar]
    is_complete: bool

    @property
    def highest(self) -> int:
        return max(bar.total for bar in self.bars)

    @property
    def totals(self) -> dict[str, int]:
        return {
            status: sum(bar.counts[status] for bar in self.bars) for status in self.bars[0].counts
        }


@dataclass
class _Cached:
    chart: Chart | None = None
    expires: float = 0.0


@lru_cache(CACHE_SIZE)
def _cached(user_id: str, agent_id: str | None, selection: Selection, name: str) -> _Cached:
    return _Cached()


def count(caller: Caller, selection: Selection, name: str) -> Chart:
    """The chart of a list in the period `name`, a key of PERIODS; the list's own period is ignored.

    Cached, since counting a million tasks takes long and every open page requests it once a second.
    """
    selection = selection._replace(created_after=None, created_before=None)
    cached = _cached(caller.user_id, caller.agent_id, selection, name)
    began = time.monotonic()
    if cached.chart is None or began >= cached.expires:
        cached.chart = _count(caller, selection, PERIODS[name])
        ended = time.monotonic()
        cached.expires = ended + CACHE_FACTOR * (ended - began)
    return cached.chart


def _count(caller: Caller, selection: Selection, period: Period) -> Chart:
    boundaries = period.boundaries
    only = ERROR if selection.error_type else selection.status
    statuses = tuple(status for status in STATUSES if only in (None, status))
    counted = lists.count_by_start(caller, selection, boundaries, statuses)
    bars = [
        Bar(since, until, dict(zip(statuses, of_bar, strict=True)))
        for (since, until), of_bar in zip(
            pairwise(boundaries), zip(*counted.counts, strict=True), strict=True
        )
    ]
    return Chart(period, bars, counted.are_complete)


# The plot of an agent's last runs: how long each took, by when it ended.

# In pixels.
PLOT_HEIGHT = 200
# The lines of the scale, in seconds; it is logarithmic, since durations differ by magnitudes.
TICKS = (0.01, 0.1, 1, 10, 60, 600, 3_600, 36_000, 86_400, 864_000, 8_640_000, 86_400_000)


class Point(NamedTuple):
    """One finished task with its outcome, at `x` percent of the width and `y` pixels."""

    task: AnyRow
    x: float
    y: float
    outcome: str
    seconds: float


class Plot(NamedTuple):
    """The points, the lines of the scale as (text, y), and the y of the usual duration."""

    points: list[Point]
    ticks: list[tuple[str, float]]
    usual: float | None


def plot(runs: Sequence[AnyRow], usual: float | None) -> Plot | None:
    """The plot of finished tasks, oldest first; None if no agent claimed any of them."""
    lasted = [(task, found) for task in runs if (found := seconds(task)) is not None]
    if not lasted:
        return None
    durations = [found for _, found in lasted]
    # The ticks below and above all durations.
    low = max((tick for tick in TICKS if tick <= min(durations)), default=TICKS[0])
    high = min((tick for tick in TICKS if tick > max(durations)), default=TICKS[-1])
    ends = [datetime.fromisoformat(task.finished_at).timestamp() for task, _ in lasted]
    points = [
        Point(task, _share(end, ends[0], ends[-1]) * 100, _y(found, low, high),
              formatting.outcome_of(task), found)
        for (task, found), end in zip(lasted, ends, strict=True)
    ]  # fmt: skip
    ticks = [(_words(tick), _y(tick, low, high)) for tick in TICKS if low <= tick <= high]
    return Plot(points, ticks, None if usual is None else _y(usual, low, high))


def _y(duration: float, low: float, high: float) -> float:
    share = _share(math.log(min(max(duration, low), high)), math.log(low), math.log(high))
    return round(PLOT_HEIGHT * (1 - share), 1)


def _share(value: float, first: float, last: float) -> float:
    return 0.5 if first == last else round((value - first) / (last - first), 4)


def _words(duration: float) -> str:
    if duration < 1:
        return f"{duration:g} s"
    return quantities.duration(int(duration)).removesuffix(" 0 s")


# The charts of the numbers in an agent's outputs.

# A path with fewer numbers has no chart.
MIN_NUMBERS = 3
# The size of a chart, in units of its own, and the space for half a dot.
SERIES_WIDTH, SERIES_HEIGHT, DOT = 300, 60, 5


class Series(NamedTuple):
    """The numbers at one path, oldest first, each with its x and y; and texts about all of them."""

    path: str
    points: list[tuple[Number, float, float]]
    last: str
    median: str
    total: str


def series(path: str, numbers: Sequence[Number]) -> Series:
    """The chart of at least MIN_NUMBERS numbers."""
    # Imported here, since few requests need it.
    from statistics import median

    # Not as floats: an integer may be larger than these.
    values = [Decimal(number.text) for number in numbers]
    low, high = min(values), max(values)
    step = (SERIES_WIDTH - 2 * DOT) / (len(values) - 1)
    points = []
    for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
        share = float((value - low) / (high - low)) if high - low else 0.5
        y = DOT + (SERIES_HEIGHT - 2 * DOT) * (1 - share)
        points.append((number, round(DOT + index * step, 1), round(y, 1)))
    texts = map(_amount, (values[-1], median(values), Decimal(sum(values))))
    return Series(path, points, *texts)


def _amount(value: Decimal) -> str:
    """A number for people: 1,843 or 0.0413; a very large or small one as 1.2e+30."""
    if value and not Decimal("0.0001") <= abs(value) < Decimal("1e15"):
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")

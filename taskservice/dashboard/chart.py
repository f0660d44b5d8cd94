"""The chart above the list of tasks: how many were started over time, by status."""

import math
import time
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, NamedTuple

from taskservice.auth import Caller
from taskservice.dashboard import formatting
from taskservice.database import clock
from taskservice.database.rows import EndedTaskRow
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
        """The start of each bar and the end of the last one, at whole multiples of its length."""
        # One bar more than the period has, since the first and the last one reach beyond it.
        step = self.seconds // self.bars
        end = (int(time.time()) // step + 1) * step
        return [
            clock.from_milliseconds((end - step * index) * 1000)
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


def bar_start(created_after: str) -> str:
    """The start of the bar with this bound: the bound itself if there is no later time."""
    try:
        return clock.moved(created_after, MILLISECOND)
    except OverflowError:
        return created_after


# The chart of a list, and until when it is shown.
_cached = lru_cache(CACHE_SIZE)(lambda *_key: SimpleNamespace(chart=None, expires=0.0))


def count(caller: Caller, selection: Selection, name: str) -> dict[str, Any]:
    """The chart of a list in the period `name`, a key of PERIODS, in place of the list's own."""
    selection = selection._replace(createdAfter=None, createdBefore=None)
    # Counting a million tasks takes long, and every open page requests it once a second.
    cached = _cached(caller.user_id, caller.agent_id, selection, name)
    began = time.monotonic()
    if began >= cached.expires:
        cached.chart = _count(caller, selection, PERIODS[name])
        ended = time.monotonic()
        cached.expires = ended + CACHE_FACTOR * (ended - began)
    chart: dict[str, Any] = cached.chart
    return chart


def _count(caller: Caller, selection: Selection, period: Period) -> dict[str, Any]:
    boundaries = period.boundaries
    only = ERROR if selection.errorType else selection.status
    statuses = tuple(status for status in STATUSES if only in (None, status))
    of_bars, is_complete = lists.count_by_start(caller, selection, boundaries, statuses)
    highest = max(map(sum, of_bars))
    return {
        "period": period,
        "bars": [
            _bar(*bounds, dict(zip(statuses, counts, strict=True)), highest)
            for bounds, counts in zip(pairwise(boundaries), of_bars, strict=True)
        ],
        "highest": highest,
        "totals": dict(zip(statuses, map(sum, zip(*of_bars, strict=True)), strict=True)),
        "is_complete": is_complete,
    }


def _bar(since: str, until: str, counts: dict[str, int], highest: int) -> dict[str, Any]:
    """The tasks that were started in one part of the period, of which `highest` fill the chart."""
    # (status, top, height) in pixels.
    parts, top = [], float(HEIGHT)
    for status, number in counts.items():
        if number:
            height = round(max(MIN_HEIGHT, number / highest * (HEIGHT - 3 * MIN_HEIGHT)), 2)
            top = round(top - height, 2)
            parts.append((status, top, height))
    # The filters, exclusive as in the API, that list exactly these tasks.
    bounds = {"createdAfter": clock.moved(since, -MILLISECOND), "createdBefore": until}
    total = sum(counts.values())
    return {"since": since, "bounds": bounds, "counts": counts, "total": total, "parts": parts}


# The plot of an agent's last runs: how long each took, by when it ended.

# In pixels.
PLOT_HEIGHT = 200
# The lines of the scale, in seconds; it is logarithmic, since durations differ by magnitudes.
TICKS = {
    0.01: "0.01 s", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3_600: "1 h",
    36_000: "10 h", 86_400: "1 d", 864_000: "10 d", 8_640_000: "100 d", 86_400_000: "1000 d",
}  # fmt: skip


def plot(runs: Sequence[EndedTaskRow], usual: float | None) -> dict[str, Any] | None:
    """The plot of finished tasks, oldest first; None if no agent claimed any of them."""
    lasted = [(task, duration) for task in runs if (duration := seconds(task)) is not None]
    if not lasted:
        return None
    durations = [duration for _, duration in lasted]
    # The ticks below and above all durations.
    low = max((tick for tick in TICKS if tick <= min(durations)), default=min(TICKS))
    high = min((tick for tick in TICKS if tick > max(durations)), default=max(TICKS))

    def y(duration: float) -> float:
        share = _share(math.log(min(max(duration, low), high)), math.log(low), math.log(high))
        return round(PLOT_HEIGHT * (1 - share), 1)

    # Points are at `x` percent of the width and `y` pixels.
    ends = [datetime.fromisoformat(task.finished_at).timestamp() for task, _ in lasted]
    points = [
        {"task": task, "x": _share(end, ends[0], ends[-1]) * 100, "y": y(duration),
         "seconds": duration, "outcome": formatting.outcome_of(task)}
        for (task, duration), end in zip(lasted, ends, strict=True)
    ]  # fmt: skip
    ticks = [(text, y(tick)) for tick, text in TICKS.items() if low <= tick <= high]
    return {"points": points, "ticks": ticks, "usual": None if usual is None else y(usual)}


def _share(value: float, first: float, last: float) -> float:
    return 0.5 if first == last else round((value - first) / (last - first), 4)


# The charts of the numbers in an agent's outputs.

# A path with fewer numbers has no chart.
MIN_NUMBERS = 3
# The size of a chart, in units of its own, and the space for half a dot.
SERIES_WIDTH, SERIES_HEIGHT, DOT = 300, 60, 5


def series(path: str, numbers: Sequence[Number]) -> dict[str, Any]:
    """The chart of at least MIN_NUMBERS numbers, oldest first; `points` are (number, x, y)."""
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
    about = {"last": values[-1], "median": median(values), "total": Decimal(sum(values))}
    texts = {name: _amount(value) for name, value in about.items()}
    return {"path": path, "points": points, **texts}


def _amount(value: Decimal) -> str:
    """A number for people: 1,843 or 0.0413; a very large or small one as 1.2e+30."""
    if value and not Decimal("0.0001") <= abs(value) < Decimal("1e15"):
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")

"""The plot of an agent's last runs: how long each took, by when it ended."""

import math
from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from taskservice import quantities
from taskservice.dashboard import formatting
from taskservice.database.types import AnyRow
from taskservice.services.agents import seconds

# In pixels.
HEIGHT = 200
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


def of(runs: Sequence[AnyRow], usual: float | None) -> Plot | None:
    """The plot of finished tasks, oldest first; None if no agent claimed any of them."""
    lasted = [(task, found) for task in runs if (found := seconds(task)) is not None]
    if not lasted:
        return None
    low, high = _bounds([found for _, found in lasted])
    moments = [datetime.fromisoformat(task.finished_at).timestamp() for task, _ in lasted]
    points = [
        Point(task, _share(moment, moments[0], moments[-1]) * 100, _y(found, low, high),
              formatting.outcome_of(task), found)
        for (task, found), moment in zip(lasted, moments, strict=True)
    ]  # fmt: skip
    ticks = [(_words(tick), _y(tick, low, high)) for tick in TICKS if low <= tick <= high]
    return Plot(points, ticks, None if usual is None else _y(usual, low, high))


def _bounds(durations: Sequence[float]) -> tuple[float, float]:
    """The ticks below and above all durations."""
    low = max((tick for tick in TICKS if tick <= min(durations)), default=TICKS[0])
    high = min((tick for tick in TICKS if tick > max(durations)), default=TICKS[-1])
    return low, high


def _y(duration: float, low: float, high: float) -> float:
    share = _share(math.log(min(max(duration, low), high)), math.log(low), math.log(high))
    return round(HEIGHT * (1 - share), 1)


def _share(value: float, first: float, last: float) -> float:
    return 0.5 if first == last else round((value - first) / (last - first), 4)


def _words(duration: float) -> str:
    if duration < 1:
        return f"{duration:g} s"
    return quantities.duration(int(duration)).removesuffix(" 0 s")

"""The charts of the agent page: the durations of its runs, and the numbers in its outputs."""

import math
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from taskservice.dashboard import formatting
from taskservice.database.rows import EndedTaskRow
from taskservice.services.agents import Number, seconds

# The plot of an agent's last runs: duration against end time.

# Minimum number of dots in a plot or chart.
MIN_DOTS = 3
# The height of the plot in pixels.
PLOT_HEIGHT = 160
# The lines of the scale: duration in seconds -> label. The scale is logarithmic, since durations
# differ by orders of magnitude.
TICKS = {
    0.01: "0.01 s", 0.1: "0.1 s", 1: "1 s", 10: "10 s", 60: "1 min", 600: "10 min", 3_600: "1 h",
    36_000: "10 h", 86_400: "1 d", 864_000: "10 d", 8_640_000: "100 d", 86_400_000: "1000 d",
}  # fmt: skip


def plot(runs: Sequence[EndedTaskRow], usual: float | None) -> dict[str, Any] | None:
    """The plot of finished tasks, oldest first, or None if too few of them were claimed."""
    lasted = [(task, duration) for task in runs if (duration := seconds(task)) is not None]
    if len(lasted) < MIN_DOTS:
        return None
    durations = [duration for _, duration in lasted]
    # The scale extends from the nearest tick below all durations to the nearest tick above.
    low = max((tick for tick in TICKS if tick <= min(durations)), default=min(TICKS))
    high = min((tick for tick in TICKS if tick > max(durations)), default=max(TICKS))

    def y(duration: float) -> float:
        share = _share(math.log(min(max(duration, low), high)), math.log(low), math.log(high))
        return round(PLOT_HEIGHT * (1 - share), 1)

    # `x` is a percentage of the width, `y` is in pixels.
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

# The size of a chart, and the margin that keeps dots inside it, in SVG units.
SERIES_WIDTH, SERIES_HEIGHT, DOT = 300, 60, 5


def series(path: str, numbers: Sequence[Number]) -> dict[str, Any]:
    """The chart of at least two numbers, oldest first. A point is (number, x, y), in SVG units."""
    # Imported here, since few requests need this module.
    from statistics import median

    # Use decimals, since a JSON integer can be too large for a float.
    values = [Decimal(number.text) for number in numbers]
    low, high = min(values), max(values)
    step = (SERIES_WIDTH - 2 * DOT) / (len(values) - 1)
    points = []
    for index, (number, value) in enumerate(zip(numbers, values, strict=True)):
        share = float((value - low) / (high - low)) if high - low else 0.5
        y = DOT + (SERIES_HEIGHT - 2 * DOT) * (1 - share)
        points.append((number, round(DOT + index * step, 1), round(y, 1)))
    about = {"last": values[-1], "median": median(values), "low": low, "high": high}
    texts = {name: _amount(value) for name, value in about.items()}
    return {"path": path, "points": points, **texts}


def _amount(value: Decimal) -> str:
    """A readable number: 1,843 or 0.0413, but 1.2e+30 if it is very large or small."""
    if value and not Decimal("0.0001") <= abs(value) < Decimal("1e15"):
        return f"{value:.4g}"
    return f"{value:,.4f}".rstrip("0").rstrip(".")

"""The table: each of our paths and a yardstick, and whether it is as fast as it should be."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Samples = Sequence[float]


@dataclass(frozen=True)
class Run:
    """How long and how often to measure, and in which directory."""

    folder: Path
    seconds: float
    rounds: int
    # Of the numbers of tasks and lines; less than 1 for a quick try.
    scale: float

    def subfolder(self, name: str) -> Path:
        folder = self.folder / name
        folder.mkdir()
        return folder


@dataclass(frozen=True)
class Goal:
    """A path, what it is compared with, and the ratio that it should reach.

    Where `is_absolute`, `at_least` is our figure in `unit`, not a ratio.
    """

    path: str
    beside: str
    unit: str
    at_least: float | None
    is_less_better: bool = False
    is_absolute: bool = False

    def is_reached(self, figure: float) -> bool | None:
        if self.at_least is None or math.isnan(figure):
            return None
        return figure <= self.at_least if self.is_less_better else figure >= self.at_least

    def bound_text(self) -> str:
        if self.at_least is None:
            return ""
        sign = "≤" if self.is_less_better else "≥"
        return f"{sign} {figure_text(self.at_least, self.unit if self.is_absolute else '')}"


@dataclass
class Row:
    """A line of the table: medians, and medians of the ratios of each round."""

    goal: Goal
    ours: float = math.nan
    beside: float = math.nan
    ratio: float = math.nan
    left_out: str = ""
    rounds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        is_reached = self.goal.is_reached(self.ours if self.goal.is_absolute else self.ratio)
        return {None: "", True: "yes", False: "NO"}[is_reached]


def row(goal: Goal, ours: Samples, beside: Samples = (), *, inverted: bool = False) -> Row:
    """The row of figures that were measured in turn; `inverted` for how many times as fast."""
    if not beside:
        return Row(goal, statistics.median(ours), rounds={"ours": list(ours)})
    ratio = statistics.median(figure / other for figure, other in zip(ours, beside, strict=True))
    return Row(
        goal,
        statistics.median(ours),
        statistics.median(beside),
        1 / ratio if inverted else ratio,
        rounds={"ours": list(ours), "beside": list(beside)},
    )


def interleaved(
    rounds: int, measurements: Mapping[str, Callable[[], float]]
) -> dict[str, list[float]]:
    """The figures of each measurement, all of them taken in turn in each round."""
    figures: dict[str, list[float]] = {name: [] for name in measurements}
    for _ in range(rounds):
        for name, measure in measurements.items():
            figures[name].append(measure())
    return figures


HEAD = ("path", "ours", "yardstick", "ratio", "goal", "reached")


def cells(row: Row) -> list[str]:
    goal = row.goal
    return [
        " / ".join(filter(None, (goal.path, goal.beside))),
        f"left out: {row.left_out}" if row.left_out else figure_text(row.ours, goal.unit),
        figure_text(row.beside, goal.unit),
        figure_text(row.ratio),
        goal.bound_text(),
        row.verdict,
    ]


def figure_text(value: float | None, unit: str = "") -> str:
    if value is None or math.isnan(value):
        return ""
    number = f"{value:,.0f}" if value >= 100 else f"{value:.{1 if value >= 20 else 2}f}"
    return f"{number} {unit}".strip()


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table as in the documents."""
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, rule, *lines])

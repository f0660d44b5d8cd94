"""Line charts as SVG, with logarithmic axes, readable on a light and on a dark page."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 860, 440
LEFT, RIGHT, TOP, BOTTOM = 64, 300, 52, 48
LABEL_GAP = 17
COLORS = (
    ("#0969da", "#58a6ff"), ("#bc4c00", "#f0883e"), ("#1a7f37", "#56d364"),
    ("#8250df", "#bc8cff"), ("#bf3989", "#f778ba"), ("#9a6700", "#e3b341"),
    ("#0e7490", "#39c5cf"),
)  # fmt: skip
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.page { fill: #ffffff }
.grid { stroke: #d1d9e0; stroke-width: 1 }
.line { fill: none; stroke-width: 2 }
"""


@dataclass(frozen=True)
class Plot:
    """Milliseconds by size: for each name, and each size, the figures of all rounds."""

    title: str
    unit: str
    sizes: Sequence[int]
    series: Mapping[str, Sequence[Sequence[float]]]

    def svg(self) -> str:
        parts = "\n".join([*self._grid(), *self._lines()])
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">\n'
            f"<title>{escape(self.title)}</title>\n<style>{self._style()}</style>\n"
            f'<rect class="page" width="{WIDTH}" height="{HEIGHT}"/>\n'
            f'<text class="title" x="16" y="28">{escape(self.title)}</text>\n{parts}\n</svg>\n'
        )

    def _style(self) -> str:
        def colors(place: int) -> str:
            return "".join(
                f".s{number} {{ stroke: {pair[place]} }} .f{number} {{ fill: {pair[place]} }}\n"
                for number, pair in enumerate(COLORS)
            )

        dark = "text { fill: #e6edf3 } .page { fill: #0d1117 } .grid { stroke: #30363d }\n"
        query = "@media (prefers-color-scheme: dark)"
        return f"{STYLE}{colors(0)}{query} {{\n{dark}{colors(1)}}}\n"

    def _medians(self) -> dict[str, list[float]]:
        return {
            name: [statistics.median(rounds) for rounds in sizes]
            for name, sizes in self.series.items()
        }

    def _decades(self) -> range:
        """The powers of ten from below the least to above the most."""
        values = [value for medians in self._medians().values() for value in medians]
        least, most = math.log10(min(values)), math.log10(max(values))
        return range(math.floor(least), max(math.ceil(most), math.floor(least) + 1) + 1)

    def _x(self, size: float) -> float:
        first, last = math.log10(self.sizes[0]), math.log10(self.sizes[-1])
        share = (math.log10(size) - first) / ((last - first) or 1)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def _y(self, milliseconds: float) -> float:
        decades = self._decades()
        share = (math.log10(milliseconds) - decades[0]) / (decades[-1] - decades[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    def _grid(self) -> Iterator[str]:
        for power in self._decades():
            y = self._y(10.0**power)
            yield f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>'
            label = f"{10.0**power:g} ms"
            yield f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
        for size in self.sizes:
            x = self._x(size)
            yield f'<path class="grid" d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}"/>'
            y = HEIGHT - BOTTOM + 20
            yield f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{size:,}</text>'
        middle = (LEFT + WIDTH - RIGHT) / 2
        yield f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{self.unit}</text>'

    def _lines(self) -> Iterator[str]:
        medians = self._medians()
        heights = self._label_heights({name: self._y(line[-1]) for name, line in medians.items()})
        for number, (name, line) in enumerate(medians.items()):
            color = number % len(COLORS)
            points = [
                (self._x(size), self._y(ms)) for size, ms in zip(self.sizes, line, strict=True)
            ]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            yield f'<polyline class="line s{color}" points="{path}"/>'
            for x, y in points:
                yield f'<circle class="f{color}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>'
            label = f"{escape(name)}, {line[-1]:.3g} ms"
            x = WIDTH - RIGHT + 12
            yield f'<text class="f{color}" x="{x}" y="{heights[name] + 4:.1f}">{label}</text>'

    @staticmethod
    def _label_heights(wanted: Mapping[str, float]) -> dict[str, float]:
        """Where the labels go, so that none covers another: from the bottom up."""
        heights: dict[str, float] = {}
        limit = float(HEIGHT - BOTTOM)
        for name in sorted(wanted, key=lambda name: -wanted[name]):
            heights[name] = min(wanted[name], limit)
            limit = heights[name] - LABEL_GAP
        return heights

"""Line charts: the geometry that `line_chart.html.jinja` draws as inline SVG."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, isfinite, log10

WIDTH, HEIGHT = 800.0, 360.0
LEFT, RIGHT, TOP, BOTTOM = 70.0, 20.0, 15.0, 50.0
"""Margins around the plot area, in the units of the view box."""

NUM_TICKS = 6
COLORS = 6
"""Line colors in the stylesheet; further lines repeat them."""

TINY = 1e-15
"""Values and differences below this are drawn as 0."""

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    """A mark on an axis: its position in the view box and its label."""

    position: float
    label: str


@dataclass(frozen=True)
class Line:
    """One line: its legend, the number of its color, and `points` as SVG expects them."""

    name: str
    color: int
    points: str


@dataclass(frozen=True)
class LineChart:
    """A chart to draw."""

    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]

    width: float = WIDTH
    height: float = HEIGHT
    left: float = LEFT
    right: float = WIDTH - RIGHT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM
    """Edges of the plot area."""


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> LineChart | None:
    """Lay out a line chart; None if no series has a finite point.

    Args:
        series: Legend -> points (x, y); points that are not finite are left out.
        x_label: Label of the horizontal axis, with its unit.
        y_label: Label of the vertical axis, with its unit.
    """
    finite = {name: [point for point in points if all(map(isfinite, point))] for name, points in series.items()}
    xs, ys = ([point[axis] for points in finite.values() for point in points] for axis in (0, 1))
    if not xs:
        return None
    (x_low, x_high), (y_low, y_high) = _range(xs), _range(ys)

    def place_x(x: float) -> float:
        return LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def place_y(y: float) -> float:
        return HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM)

    lines = [
        Line(name, number % COLORS, " ".join(f"{place_x(x):.1f},{place_y(y):.1f}" for x, y in points))
        for number, (name, points) in enumerate(finite.items())
    ]
    x_ticks = [Tick(place_x(value), f"{value:g}") for value in _round_values(x_low, x_high)]
    y_ticks = [Tick(place_y(value), f"{value:g}") for value in _round_values(y_low, y_high)]
    return LineChart(x_label, y_label, lines, x_ticks, y_ticks)


def _range(values: list[float]) -> tuple[float, float]:
    """Return the smallest and the largest value, or a range around them if they are nearly equal."""
    low, high = min(values), max(values)
    size = max(abs(low), abs(high))
    if high - low > max(1e-9 * size, TINY):
        return low, high
    margin = size / 10 if size > TINY else 1.0
    return low - margin, high + margin


def _round_values(low: float, high: float) -> list[float]:
    """Return about `NUM_TICKS` values in a range that are multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / NUM_TICKS
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return [number * step for number in range(ceil(low / step), floor(high / step) + 1)]

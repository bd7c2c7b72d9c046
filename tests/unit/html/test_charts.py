"""Where a chart puts its points and ticks."""

import re
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuneline.html.charts import COLORS, HEIGHT, WIDTH, line_chart


def points_of(line):
    return [tuple(map(float, point.split(","))) for point in line.points.split()]


def test_a_line_spans_the_plot_area_and_larger_values_are_higher():
    chart = line_chart({"loss": [(1, 4.0), (6, 3.0), (11, 2.0)]}, "step", "loss")

    assert points_of(chart.lines[0]) == [
        (chart.left, chart.top),
        ((chart.left + chart.right) / 2, (chart.top + chart.bottom) / 2),
        (chart.right, chart.bottom),
    ]


def test_ticks_are_round_values():
    chart = line_chart({"loss": [(0, 0.31), (230, 1.97)]}, "step", "loss")

    assert [tick.label for tick in chart.x_ticks] == ["0", "50", "100", "150", "200"]
    assert [tick.label for tick in chart.y_ticks] == ["0.5", "1", "1.5"]
    assert chart.x_ticks[1].position == pytest.approx(chart.left + 50 / 230 * (chart.right - chart.left))


def test_values_that_are_not_finite_are_left_out():
    chart = line_chart({"loss": [(1, nan), (2, 1.0), (3, inf), (4, 2.0)]}, "step", "loss")

    assert len(points_of(chart.lines[0])) == 2
    assert line_chart({"loss": [(1, nan)], "other": []}, "step", "loss") is None


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(-1e6, 1e6)), min_size=1, max_size=30))
def test_every_point_and_tick_is_inside_the_picture(points):
    chart = line_chart({"loss": points}, "step", "loss")

    for x, y in points_of(chart.lines[0]):
        assert chart.left - 0.1 <= x <= chart.right + 0.1
        assert chart.top - 0.1 <= y <= chart.bottom + 0.1
    assert all(0 <= tick.position <= WIDTH for tick in chart.x_ticks)
    assert all(0 <= tick.position <= HEIGHT for tick in chart.y_ticks)
    assert len(chart.y_ticks) <= 7


def test_colors_repeat_after_the_last_one():
    from tuneline.html import render

    chart = line_chart({f"run {i}": [(0, i), (1, i)] for i in range(COLORS + 1)}, "step", "loss")
    stylesheet = (render.FOLDER / "style.css").read_text()

    assert [line.color for line in chart.lines] == [*range(COLORS), 0]
    assert set(re.findall(r"^\.line-(\d)", stylesheet, re.MULTILINE)) == {str(i) for i in range(COLORS)}

"""Ranking of the settings of a sweep, and significance of their differences."""

import math

import numpy as np
import pytest

from tuneline.tracking.experiments import sweep
from tuneline.tracking.experiments.sweep import SettingResult


def line(name, *scores):
    return SettingResult(name, [f"{name}-{i}" for i in range(len(scores))], list(scores))


def test_settings_are_ranked_with_significant_differences():
    results = sweep.rank([line("a", 0.10, 0.11, 0.12), line("b", 0.30, 0.31, 0.32), line("c", 0.29, 0.32, 0.30)])

    assert [result.name for result in results] == ["b", "c", "a"]
    assert results[0].differs == "best"
    assert results[1].differs.startswith("not significantly different")
    assert results[2].differs.startswith("significantly worse")


def test_one_seed_has_no_confidence_band():
    results = sweep.rank([line("a", 0.1), line("b", 0.3)])

    assert [result.differs for result in results] == ["best", "unknown: one seed has no variance"]
    assert math.isnan(results[0].band)


def test_the_band_is_the_interval_of_the_mean():
    assert line("a", 0.1, 0.2, 0.3).band == pytest.approx(4.303 * 0.1 / math.sqrt(3), rel=1e-3)


def test_equal_settings_rarely_differ_significantly():
    """At most one sweep in twenty of equal settings finds a difference, within two Monte-Carlo errors."""
    generator = np.random.default_rng(0)
    trials, num_significant = 1000, 0
    for _ in range(trials):
        lines = [line(str(i), *generator.normal(size=4)) for i in range(2)]
        num_significant += any(result.differs.startswith("significantly") for result in sweep.rank(lines))
    assert num_significant / trials <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / trials)


def test_the_page_has_settings_and_metric():
    page = sweep.to_html("sweep of demo", "rougeL", sweep.rank([line("<r> 2", 0.1, 0.2), line("r 4", 0.3, 0.2)]))

    assert "&lt;r&gt; 2" in page
    assert "rougeL" in page

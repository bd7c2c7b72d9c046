"""What the benchmarks make of their measurements; the measuring itself takes minutes and is no test."""

import pytest

from benchmarks import data_memory, data_preparation, exam_throughput


def taken(rows, *rounds):
    return [{"rows": rows, "cpu": cpu} for cpu in rounds]


def test_a_ratio_compares_the_medians_of_the_pieces_that_both_sides_did():
    ours = taken(100, {"align": 1.0, "tokenize_pack": 1.0}, {"align": 1.0, "tokenize_pack": 3.0})
    slow_start = {"load": 50.0, "align": 4.0, "tokenize_pack": 8.0}
    rounds = {
        "whole": taken(100, {"ingest": 1.0, "align": 1.0, "merge": 1.0, "tokenize_pack": 1.0}),
        "prepare": [*ours, *taken(100, {"align": 1.0, "tokenize_pack": 1.0})],
        "llamafactory packed": taken(100, slow_start),
        "llamafactory unpacked": taken(100, slow_start),
        "trl packed": taken(50, {"tokenize_pack": 5.0}),
    }

    found = data_preparation.compared(rounds)

    assert found["cold_ratio"] == 6.0
    assert found["from_file"] == 15.5
    assert found["vs_trl"] == 10.0
    assert found["ratios_are"]["vs_trl_with_align"].endswith("align + tokenize_pack / tokenize_pack")


def test_a_peer_that_was_not_measured_gives_no_ratio():
    only_ours = {name: taken(10, {"align": 1.0, "tokenize_pack": 1.0}) for name in ("whole", "prepare")}

    found = data_preparation.compared(only_ours)

    assert found["cold_ratio"] is None
    assert found["ratios_are"]["cold_ratio"].endswith("not measured")


def test_the_cost_of_a_row_leaves_out_what_every_run_needs():
    def peak(size):
        names = ("anonymous_before", "anonymous", "file", "peak_rss", "maxrss")
        return {**dict.fromkeys(names, size), "split_bytes": {}}

    steps = {"align": [peak(10_000), peak(19_000)], "merge": [peak(10_000), peak(23_500)]}

    found = data_memory.report([10, 100], steps)

    assert found["bytes_per_row"]["align"]["anonymous"] == pytest.approx(100)
    assert found["within_bound"] == {"align": True, "merge": False}


def test_exam_engines_are_compared_by_cpu_seconds_and_by_their_answers():
    runs = {
        "ours": [{"cpu_seconds": 2.0, "answers": ["A", "B"]}],
        "lm_eval": [{"cpu_seconds": seconds, "answers": ["A", "B"]} for seconds in (10.0, 18.0, 99.0)],
        "llamafactory_loop": [{"cpu_seconds": 8.0, "answers": ["A", "C"]}],
    }

    found = exam_throughput.report(runs, right=["A", "D"])

    assert (found["vs_lm_eval"], found["vs_llamafactory_loop"], found["accuracy"]) == (9.0, 4.0, 0.5)
    assert not found["same_answers"]
    assert found["differing_answers"] == {"ours": 0, "lm_eval": 0, "llamafactory_loop": 1}

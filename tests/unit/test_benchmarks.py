"""Reports that the benchmarks compute from measurements; the measurements take minutes and are not tested."""

import pytest
from datasets import Dataset

from benchmarks import answer_throughput, data_memory, data_preparation, exam_throughput, training_throughput
from benchmarks.peers import steps


def measurements(rows, *rounds):
    return [{"rows": rows, "cpu": cpu} for cpu in rounds]


def test_a_ratio_compares_medians_over_the_stages_that_both_sides_ran():
    ours = measurements(100, {"align": 1.0, "tokenize_pack": 1.0}, {"align": 1.0, "tokenize_pack": 3.0})
    slow_start = {"load": 50.0, "align": 4.0, "tokenize_pack": 8.0}
    rounds = {
        "whole": measurements(100, {"ingest": 1.0, "align": 1.0, "merge": 1.0, "tokenize_pack": 1.0}),
        "prepare": [*ours, *measurements(100, {"align": 1.0, "tokenize_pack": 1.0})],
        "llamafactory packed": measurements(100, slow_start),
        "llamafactory unpacked": measurements(100, slow_start),
        "trl packed": measurements(50, {"tokenize_pack": 5.0}),
    }

    result = data_preparation.compare(rounds)

    assert result["cold_ratio"] == 6.0
    assert result["from_file"] == 15.5
    assert result["vs_trl"] == 10.0
    assert result["ratios_are"]["vs_trl_with_align"].endswith("align + tokenize_pack / tokenize_pack")


def test_a_peer_that_was_not_measured_gives_no_ratio():
    only_ours = {name: measurements(10, {"align": 1.0, "tokenize_pack": 1.0}) for name in ("whole", "prepare")}

    result = data_preparation.compare(only_ours)

    assert result["cold_ratio"] is None
    assert result["ratios_are"]["cold_ratio"].endswith("not measured")


def test_bytes_per_row_exclude_the_fixed_memory_of_a_run():
    def peak(size):
        names = ("anonymous_before", "anonymous", "file", "peak_rss", "maxrss")
        return {**dict.fromkeys(names, size), "split_bytes": {}}

    steps = {"align": [peak(10_000), peak(19_000)], "merge": [peak(10_000), peak(23_500)]}

    result = data_memory.report([10, 100], steps)

    assert result["bytes_per_row"]["align"]["anonymous"] == pytest.approx(100)
    assert result["within_bound"] == {"align": True, "merge": False}


def training_measurement(cpu, tokens=100, peak_mib=1000):
    return {
        "cpu": cpu,
        "tokens": tokens,
        "all_tokens": 150,
        "steps": 3,
        "peak_rss": peak_mib * 2**20,
        "cpu_to_first_step": 5.0,
    }


def test_training_throughput_is_compared_per_real_token_and_with_the_cost_of_the_matrix_products():
    ours, trl, best = training_throughput.OURS, training_throughput.TRL, training_throughput.TRL_BEST
    rounds = {
        ours: [training_measurement(1.0), training_measurement(2.0), training_measurement(9.0)],
        training_throughput.OURS_RECOMPUTING: [training_measurement(3.0)],
        trl: [training_measurement(12.0, peak_mib=4000)],
        best: [training_measurement(3.0, tokens=50)],
    }
    floor = {
        "floor_seconds": 0.5,
        "flops": 1e9,
        "rate_at_model_shapes": 2e9,
        "best_rates": {"float32": 4e9, "bfloat16": 1e9},
        "dtype": "float32",
    }
    losses = {**dict.fromkeys(rounds, 1.0), trl: 1.02, "none": 3.0}

    result = training_throughput.report(rounds, [floor], losses)

    assert (result["vs_trl"], result["vs_trl_best"]) == (6.0, 3.0)
    assert result["contenders"][ours]["cpu_seconds_per_step"] == 1.0
    assert (result["floor_share"], result["mfu"]) == (0.5, 0.25)
    assert result["peak_memory_ratio"] == 0.25
    assert result["loss_difference"] == pytest.approx(0.02)
    assert result["missed"] == ["floor_share", "loss_difference"]
    assert result["vs_llamafactory"] is None
    assert "no --llamafactory" in training_throughput.NOT_MEASURED


def test_padding_tokens_are_not_counted():
    padded = Dataset.from_list([{"input_ids": [1, 2, 3, 0], "attention_mask": [1, 2, 2, 0]}] * 3)
    plain = Dataset.from_list([{"input_ids": [1, 2, 3]}] * 3)

    assert steps.tokens_by_step(padded, 2) == steps.tokens_by_step(plain, 2) == [6, 3]


def test_answer_throughput_compares_cpu_seconds_and_counts_equal_answers():
    runs = {
        "transformers": [{"cpu_seconds": seconds, "answers": ["a", "b"]} for seconds in (9.0, 6.0, 40.0)],
        "ours": [{"cpu_seconds": 3.0, "answers": ["a", "c"]}],
    }

    result = answer_throughput.report(runs)

    assert (result["prompts"], result["vs_transformers"], result["same_answers"]) == (2, 3.0, 1)


def test_exam_throughput_compares_cpu_seconds_and_answers():
    runs = {
        "ours": [{"cpu_seconds": 2.0, "answers": ["A", "B"]}],
        "lm_eval": [{"cpu_seconds": seconds, "answers": ["A", "B"]} for seconds in (10.0, 18.0, 99.0)],
        "llamafactory_loop": [{"cpu_seconds": 8.0, "answers": ["A", "C"]}],
    }

    result = exam_throughput.report(runs, correct=["A", "D"])

    assert (result["vs_lm_eval"], result["vs_llamafactory_loop"], result["accuracy"]) == (9.0, 4.0, 0.5)
    assert not result["same_answers"]
    assert result["differing_answers"] == {"ours": 0, "lm_eval": 0, "llamafactory_loop": 1}

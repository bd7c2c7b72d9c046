"""What the benchmarks make of their measurements; the measuring itself takes minutes and is no test."""

import pytest
from datasets import Dataset

from benchmarks import answer_throughput, data_memory, data_preparation, exam_throughput, training_throughput
from benchmarks.peers import steps


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


def trained(cpu, tokens=100, peak_mib=1000):
    return {
        "cpu": cpu,
        "tokens": tokens,
        "all_tokens": 150,
        "steps": 3,
        "peak_rss": peak_mib * 2**20,
        "cpu_to_first_step": 5.0,
    }


def test_a_step_of_training_is_compared_by_real_tokens_and_with_what_products_cost():
    ours, trl, best = training_throughput.OURS, training_throughput.TRL, training_throughput.TRL_BEST
    found = {
        ours: [trained(1.0), trained(2.0), trained(9.0)],
        training_throughput.OURS_RECOMPUTING: [trained(3.0)],
        trl: [trained(12.0, peak_mib=4000)],
        best: [trained(3.0, tokens=50)],
    }
    floor = {
        "floor_seconds": 0.5,
        "flops": 1e9,
        "rate_at_model_shapes": 2e9,
        "best_rates": {"float32": 4e9, "bfloat16": 1e9},
        "dtype": "float32",
    }
    losses = {**dict.fromkeys(found, 1.0), trl: 1.02, "none": 3.0}

    told = training_throughput.report(found, [floor], losses)

    assert (told["vs_trl"], told["vs_trl_best"]) == (6.0, 3.0)
    assert told["contenders"][ours]["cpu_seconds_a_step"] == 1.0
    assert (told["floor_share"], told["mfu"]) == (0.5, 0.25)
    assert told["peak_memory_ratio"] == 0.25
    assert told["loss_difference"] == pytest.approx(0.02)
    assert told["missed"] == ["floor_share", "loss_difference"]
    assert told["vs_llamafactory"] is None
    assert "no --llamafactory" in training_throughput.NOT_MEASURED


def test_padding_counts_for_nobody():
    padded = Dataset.from_list([{"input_ids": [1, 2, 3, 0], "attention_mask": [1, 2, 2, 0]}] * 3)
    plain = Dataset.from_list([{"input_ids": [1, 2, 3]}] * 3)

    assert steps.tokens_by_step(padded, 2) == steps.tokens_by_step(plain, 2) == [6, 3]


def test_answers_are_compared_by_cpu_seconds_and_counted_where_they_are_equal():
    runs = {
        "transformers": [{"cpu_seconds": seconds, "answers": ["a", "b"]} for seconds in (9.0, 6.0, 40.0)],
        "ours": [{"cpu_seconds": 3.0, "answers": ["a", "c"]}],
    }

    found = answer_throughput.report(runs)

    assert (found["prompts"], found["vs_transformers"], found["same_answers"]) == (2, 3.0, 1)


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

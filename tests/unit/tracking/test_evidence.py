"""Preconditions of the gate, and the documents of a decision."""

import pytest

from tuneline.config.sections.gate import GateConfig, PreconditionsConfig
from tuneline.tracking import evidence, gate, html_reports
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Evidence

MERGE = {"kl": 1e-6, "greedy_agreement": 1.0, "positions": 40}


def make_evidence(**changes):
    facts = {
        "gate": GateConfig(),
        "kind": "merged",
        "fidelity": MERGE,
        "max_kl": 1e-4,
        "tokenizer_of_rows": "a",
        "tokenizer_of_model": "a",
        "coverage": 0.4,
        "contaminated": {"mmlu": ["q1", "q2"], "held_out": ["x"]},
    }
    return Evidence(**(facts | changes))


def run_checks(config=None, **changes):
    results = evidence.check_preconditions(make_evidence(**changes), PreconditionsConfig.model_validate(config or {}))
    return {check.name: check for check in results}


def failed_checks(config=None, **changes):
    return [name for name, check in run_checks(config, **changes).items() if not check.passed]


def test_a_valid_model_passes_every_precondition():
    assert list(run_checks()) == ["template_parity", "merge_fidelity", "mask_coverage"]
    assert failed_checks() == []


@pytest.mark.parametrize(
    ("config", "facts", "names"),
    [
        ({}, {"tokenizer_of_model": "b"}, ["template_parity"]),
        ({"template_parity": False}, {"tokenizer_of_model": "b"}, []),
        ({}, {"fidelity": MERGE | {"kl": 1e-3}}, ["merge_fidelity"]),
        ({"max_kl": 1e-2}, {"fidelity": MERGE | {"kl": 1e-3}}, []),
        ({"max_kl": 1e-7}, {}, ["merge_fidelity"]),
        ({}, {"fidelity": MERGE | {"greedy_agreement": 0.8}}, ["merge_fidelity"]),
        ({}, {"fidelity": {}}, ["merge_fidelity"]),
        ({}, {"fidelity": {}, "kind": "full"}, []),
        ({}, {"fidelity": {"merged": False, "reason": "prefix has no merged form"}, "kind": "adapter"}, []),
        ({}, {"coverage": 0.0}, ["mask_coverage"]),
        ({"min_coverage": 0.5}, {}, ["mask_coverage"]),
        ({"min_coverage": 0.5}, {"coverage": None}, []),
    ],
)
def test_a_precondition_fails_if_its_measurement_is_out_of_bounds(config, facts, names):
    assert failed_checks(config, **facts) == names


def test_an_unmerged_model_has_the_reason():
    facts = {"fidelity": {"merged": False, "reason": "prefix has no merged form"}, "kind": "adapter"}

    assert run_checks(**facts)["merge_fidelity"].sentence == "nothing was merged: prefix has no merged form"


def test_contaminated_items_of_all_sets_are_joined():
    assert make_evidence().contaminated_items() == {"q1", "q2", "x"}


def test_evidence_survives_a_round_trip_through_json():
    facts = make_evidence()

    assert Evidence.model_validate_json(facts.model_dump_json()) == facts


def make_decision():
    config = GateConfig.model_validate({"guards": [{"metric": "mmlu_accuracy", "margin": 0.2}], "num_resamples": 1000})
    candidate = {
        "rougeL": {str(i): 0.6 for i in range(60)},
        "mmlu_accuracy": {f"q{i}": float(i % 2) for i in range(20)},
    }
    opponent = {"rougeL": {str(i): 0.5 for i in range(60)}, "mmlu_accuracy": candidate["mmlu_accuracy"]}
    findings = gate.evaluate(candidate, opponent, "the <base> model", config, {"q1", "q2"})
    checks = evidence.check_preconditions(make_evidence(coverage=0.0), PreconditionsConfig())
    return Decision(
        model_name="m",
        version="1",
        new=True,
        promoted=False,
        aliases=[],
        sentence="Kept as challenger: so it is.",
        findings=findings,
        checks=checks,
    )


def test_the_documents_have_the_reason_and_both_results():
    decision = make_decision()

    text, page = decision.to_markdown(), html_reports.decision_page(decision)

    assert text.splitlines()[:3] == ["# m version 1", "", "Kept as challenger: so it is."]
    assert (
        "| rougeL | target | the <base> model | bounded_mean | 60 (32 needed) | 50.0 | 60.0 | +10.0 | +4.6 at 95% |"
        in text
    )
    assert "2 were found in the training rows" in text
    assert "- mask_coverage: FAILED, 0.00% of the training tokens carry loss" in text
    assert "the &lt;base&gt; model" in page
    assert "<base>" not in page
    assert "http" not in page, "the page has no external resources"


def test_a_decision_survives_a_round_trip_through_json():
    decision = make_decision()

    assert Decision.model_validate_json(decision.model_dump_json()) == decision

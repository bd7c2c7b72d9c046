"""Promotion in a real MLflow registry: register, compare, move aliases."""

import shutil

import pytest

from tests.promotions import aliases, champion_of, decide, finding, moves
from tuneline.errors import NotFoundError, TrackingError
from tuneline.tracking import integrity, ledger, promotion, registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check


def test_the_same_content_is_registered_once(make_version):
    first, new = make_version("one")
    again, new_again = make_version("one")

    assert (new, new_again) == (True, False)
    assert again == first
    assert len(registry.list_versions(first.name)) == 1
    assert first.tags == {registry.CONTENT_HASH_TAG: first.content_hash, "zenml.run": "run of one"}


def test_different_content_is_a_new_version_and_the_newest_comes_first(make_version):
    first, second = make_version("one")[0], make_version("two")[0]

    assert (
        [version.version for version in registry.list_versions(first.name)]
        == [second.version, first.version]
        == ["2", "1"]
    )


def test_a_version_gives_the_folder_of_its_weights(make_version):
    version, _ = make_version("one")

    assert (version.folder() / "model.safetensors").read_text() == "one"


def test_an_unknown_version_is_reported_with_the_known_ones(make_version):
    version = champion_of(make_version)

    with pytest.raises(NotFoundError, match=r"'champoin'. Did you mean 'champion'\? Known: 1, challenger, champion"):
        registry.find_version(version.name, "champoin")


def test_the_first_version_that_passes_becomes_champion(make_version):
    version, new = make_version("one")

    decision = decide(version)

    assert decision == Decision(
        model_name=version.name,
        version="1",
        new=new,
        promoted=True,
        aliases=["challenger", "champion"],
        sentence=f"Promoted to champion: {finding().sentence()}.",
        findings=[finding()],
    )
    assert moves(version.name) == [("challenger", None, "1"), ("champion", None, "1")]
    assert ledger.entries(version.name)[1]["report"] == [finding().model_dump()]


def test_the_first_version_that_fails_stays_challenger(make_version):
    version, _ = make_version("one")

    decision = decide(version, gain=-0.1)

    assert (decision.promoted, decision.aliases) == (False, ["challenger"])
    assert registry.get_champion(version.name) is None


def test_a_later_version_that_fails_leaves_the_champion(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    decision = decide(version, champion=champion, gain=0.0)

    assert (decision.promoted, decision.aliases) == (False, ["challenger"])
    assert decision.sentence == f"Kept as challenger: {finding(0.0).sentence()}."
    assert aliases(version.name) == {"champion": "1", "challenger": "2"}
    assert moves(version.name, start=2) == [("challenger", "1", "2")]


def test_a_later_version_that_passes_moves_champion_and_previous(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    decision = decide(version, champion=champion)

    assert (decision.promoted, decision.aliases) == (True, ["challenger", "champion"])
    assert aliases(version.name) == {"previous": "1", "champion": "2", "challenger": "2"}
    assert moves(version.name, start=2) == [("challenger", "1", "2"), ("previous", None, "1"), ("champion", "1", "2")]
    assert ledger.verify() == 5


def test_one_failed_comparison_prevents_promotion(make_version):
    version, _ = make_version("one")
    won, lost = finding(0.1), finding(-0.1, against="champion version 1")

    decision = promotion.decide(version, new=True, champion=None, findings=[won, lost])

    assert not decision.promoted
    assert decision.sentence == f"Kept as challenger: {lost.sentence()}."
    assert decision.findings == [won, lost]


def test_deciding_on_the_champion_changes_nothing(make_version):
    champion = champion_of(make_version)
    before = moves(champion.name)

    decision = promotion.decide(champion, new=False, champion=champion, findings=[])

    assert "the same weights as the champion" in decision.sentence
    assert (decision.promoted, decision.new, decision.aliases) == (False, False, ["challenger", "champion"])
    assert moves(champion.name) == before


def test_rollback_restores_the_previous_champion(make_version):
    champion = champion_of(make_version)
    decide(make_version("two")[0], champion=champion)

    restored = promotion.rollback(champion.name, "it answers in French")

    assert (restored.version, restored.tags["zenml.run"]) == ("1", "run of one")
    assert aliases(champion.name) == {"champion": "1", "challenger": "2"}
    assert moves(champion.name, start=5) == [("champion", "2", "1"), ("previous", "1", None)]
    assert ledger.entries()[-2]["why"] == "it answers in French"


def test_rollback_of_the_first_champion_leaves_none(make_version):
    champion = champion_of(make_version)

    assert promotion.rollback(champion.name) is None
    assert aliases(champion.name) == {"challenger": "1"}
    assert moves(champion.name, start=2) == [("champion", "1", None)]


def test_rollback_without_a_champion_is_refused(make_version):
    version, _ = make_version("one")

    with pytest.raises(TrackingError, match="has no champion, so nothing can be rolled back"):
        promotion.rollback(version.name)
    assert ledger.entries() == []


@pytest.mark.parametrize("now", ["another", "none"])
def test_a_champion_that_changed_during_the_comparison_is_not_replaced(make_version, now):
    champion = champion_of(make_version)
    late, _ = make_version("two")
    if now == "another":
        decide(make_version("three")[0], champion=champion)
    else:
        promotion.rollback(champion.name)
    before = aliases(champion.name), moves(champion.name)

    with pytest.raises(TrackingError, match=f"The champion of {champion.name} changed while"):
        decide(late, champion=champion)
    assert (aliases(champion.name), moves(champion.name)) == before


def test_force_records_the_reason(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    forced = promotion.force(version.name, "2", "the exam was wrong")

    assert (forced.version, forced.aliases) == ("2", ("champion",))
    assert aliases(champion.name) == {"previous": "1", "champion": "2", "challenger": "1"}
    assert moves(version.name, start=2) == [("previous", None, "1"), ("champion", "1", "2")]
    assert ledger.entries()[-1]["why"] == "forced: the exam was wrong"


def test_a_champion_with_missing_files_is_detected(make_version):
    champion = champion_of(make_version)
    integrity.check_champion(champion.name)
    shutil.rmtree(champion.folder())

    with pytest.raises(TrackingError, match=r"version 1 \(challenger, champion\) are missing in .*tuneline rollback"):
        integrity.check_champion(champion.name)


def test_without_a_champion_there_is_nothing_to_check(make_version):
    version, _ = make_version("one")
    shutil.rmtree(version.folder())

    integrity.check_champion(version.name)


@pytest.mark.parametrize("move", ["rollback", "force"])
def test_a_version_with_missing_files_never_becomes_champion(make_version, move):
    first = champion_of(make_version)
    decide(make_version("two")[0], champion=first)
    shutil.rmtree(first.folder())
    before = aliases(first.name), len(ledger.entries())

    with pytest.raises(TrackingError, match=r"version 1 \(previous\) are missing in"):
        promotion.rollback(first.name) if move == "rollback" else promotion.force(first.name, "1", "I want it")
    assert (aliases(first.name), len(ledger.entries())) == before


def test_a_failed_precondition_prevents_promotion(make_version):
    version, _ = make_version("one")
    checks = [
        Check(name="template_parity", passed=True, sentence="the same"),
        Check(name="merge_fidelity", passed=False, sentence="KL too large"),
    ]

    decision = promotion.decide(version, new=True, champion=None, findings=[finding()], checks=checks)

    assert (decision.promoted, decision.aliases) == (False, ["challenger"])
    assert decision.sentence == "Kept as challenger: precondition merge_fidelity: KL too large."


def test_a_folder_that_cannot_be_served_is_refused(tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()

    with pytest.raises(TrackingError, match=r"has no tokenizer \(tokenizer\*\), so the model cannot be served"):
        registry.check_servable(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    registry.check_servable(tmp_path)

"""Promotion in a real MLflow registry: compare, set, write down."""

import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from tests import tiny
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import NotFoundError, TrackingError
from tuneline.tracking import gate, integrity, ledger, promotion, registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check

CONFIG = GateConfig(num_resamples=1000)


@pytest.fixture(scope="module")
def run_id(tmp_path_factory):
    """A finished run in an MLflow of our own, which lives as long as this module's tests."""
    folder = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as env:
        env.delenv("MLFLOW_TRACKING_URI", raising=False)
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        experiment = mlflow.create_experiment("promotion", artifact_location=(folder / "artifacts").as_uri())
        with mlflow.start_run(experiment_id=experiment) as run:
            pass
        yield run.info.run_id
        mlflow.set_tracking_uri(None)


@pytest.fixture
def make_version(run_id, home, tmp_path):
    """Register a model directory under the test's own name; returns the version and whether it is new."""

    def make(content):
        folder = tmp_path / f"m {content}"
        sha256 = tiny.store_model(folder, content)
        return registry.register(tmp_path.name, sha256, folder.as_uri(), run_id, {"zenml.run": f"run of {content}"})

    return make


def finding(gain=0.1, against="the base model"):
    """Compare two models that differ by `gain` on every item."""
    scores = {f"item-{i}": 0.3 + i / 100 for i in range(60)}
    better = {item: value + gain for item, value in scores.items()}
    (found,) = gate.evaluate({"rougeL": better}, {"rougeL": scores}, against, CONFIG)
    return found


def decide(version, *, champion=None, gain=0.1):
    return promotion.decide(version, new=True, champion=champion, findings=[finding(gain)])


def champion_of(make_version, content="one"):
    version, _ = make_version(content)
    decide(version)
    return registry.find_version(version.name, version.version)


def aliases(name):
    return {alias: version.version for version in registry.list_versions(name) for alias in version.aliases}


def moves(name, start=0):
    return [(line["alias"], line["from"], line["to"]) for line in ledger.entries(name)][start:]


def test_the_same_content_is_registered_once(make_version):
    first, new = make_version("one")
    again, new_again = make_version("one")

    assert (new, new_again) == (True, False)
    assert again == first
    assert len(registry.list_versions(first.name)) == 1
    assert first.tags == {registry.CONTENT_HASH_TAG: first.content_hash, "zenml.run": "run of one"}


def test_other_content_is_another_version_and_the_newest_comes_first(make_version):
    first, second = make_version("one")[0], make_version("two")[0]

    assert (
        [version.version for version in registry.list_versions(first.name)]
        == [second.version, first.version]
        == ["2", "1"]
    )


def test_a_version_knows_where_its_weights_lie(make_version):
    version, _ = make_version("one")

    assert (version.folder() / "model.safetensors").read_text() == "one"


def test_a_version_that_does_not_exist_is_told_with_those_that_do(make_version):
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


def test_one_lost_comparison_is_enough(make_version):
    version, _ = make_version("one")
    won, lost = finding(0.1), finding(-0.1, against="champion version 1")

    decision = promotion.decide(version, new=True, champion=None, findings=[won, lost])

    assert not decision.promoted
    assert decision.sentence == f"Kept as challenger: {lost.sentence()}."
    assert decision.findings == [won, lost]


def test_the_champion_itself_is_left_alone(make_version):
    champion = champion_of(make_version)
    before = moves(champion.name)

    decision = promotion.decide(champion, new=False, champion=champion, findings=[])

    assert "the very weights of the champion" in decision.sentence
    assert (decision.promoted, decision.new, decision.aliases) == (False, False, ["challenger", "champion"])
    assert moves(champion.name) == before


def test_rollback_gives_the_champion_back(make_version):
    champion = champion_of(make_version)
    decide(make_version("two")[0], champion=champion)

    back = promotion.rollback(champion.name, "it answers in French")

    assert (back.version, back.tags["zenml.run"]) == ("1", "run of one")
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
def test_a_champion_that_changed_while_a_model_was_judged_is_not_replaced(make_version, now):
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


def test_force_writes_the_reason_down(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    forced = promotion.force(version.name, "2", "the exam was wrong")

    assert (forced.version, forced.aliases) == ("2", ("champion",))
    assert aliases(champion.name) == {"previous": "1", "champion": "2", "challenger": "1"}
    assert moves(version.name, start=2) == [("previous", None, "1"), ("champion", "1", "2")]
    assert ledger.entries()[-1]["why"] == "forced: the exam was wrong"


def test_a_champion_whose_files_are_gone_is_found_out(make_version):
    champion = champion_of(make_version)
    integrity.check_champion(champion.name)
    shutil.rmtree(champion.folder())

    with pytest.raises(TrackingError, match=r"version 1 \(challenger, champion\) are gone from .*tuneline rollback"):
        integrity.check_champion(champion.name)


def test_without_a_champion_there_is_nothing_to_check(make_version):
    version, _ = make_version("one")
    shutil.rmtree(version.folder())

    integrity.check_champion(version.name)


def test_of_two_that_decide_at_once_one_wins_and_nothing_is_lost(make_version, monkeypatch):
    """Both judged themselves against no champion; the pause lets both look before either moves, were it not locked."""
    rivals = [make_version(content)[0] for content in ("one", "two")]
    look = registry.get_champion
    monkeypatch.setattr(registry, "get_champion", lambda name: (look(name), time.sleep(0.3))[0])

    with ThreadPoolExecutor(2) as pool:
        tries = [pool.submit(decide, version) for version in rivals]
    refused = [attempt.exception() for attempt in tries if attempt.exception()]
    won = [attempt.result() for attempt in tries if not attempt.exception()]

    assert [type(error) for error in refused] == [TrackingError]
    assert [decision.promoted for decision in won] == [True]
    winner = won[0].version
    assert aliases(rivals[0].name) == {"challenger": winner, "champion": winner}
    assert moves(rivals[0].name) == [("challenger", None, winner), ("champion", None, winner)]
    assert ledger.verify() == 2

    loser = next(version for version in rivals if version.version != winner)
    assert decide(loser, champion=look(loser.name)).promoted, "the loser may try again against the new champion"
    assert aliases(loser.name) == {"challenger": loser.version, "champion": loser.version, "previous": winner}
    assert ledger.verify() == 5


RIVAL = """
import sys, time
import mlflow
from tests.unit.tracking.test_promotion import decide
from tuneline.errors import TrackingError
from tuneline.tracking import registry

uri, name, number, seconds = sys.argv[1:]
mlflow.set_tracking_uri(uri)
version = registry.find(name, number)
print("ready", flush=True)
sys.stdin.readline()
end, won, late = time.monotonic() + float(seconds), 0, 0
while time.monotonic() < end:
    champion = registry.champion(name)
    if champion and champion.version == number:
        continue
    try:
        won += decide(version, champion=champion).promoted
    except TrackingError as error:
        assert "changed while this model was judged" in str(error)
        late += 1
print(won, late)
"""


def test_two_processes_that_promote_against_each_other_lose_nothing(make_version):
    """Each takes the title from the other as often as it can; the ledger holds every change of hands, in order."""
    name = make_version("one")[0].name
    make_version("two")
    command = [sys.executable, "-c", RIVAL, mlflow.get_tracking_uri(), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([*command, number, "5"], **pipes) for number in ("1", "2")]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 2

    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    told = [rival.communicate(timeout=120)[0].split() for rival in rivals]

    assert [rival.returncode for rival in rivals] == [0, 0]
    changes = [(line["from"], line["to"]) for line in ledger.entries(name) if line["alias"] == "champion"]
    assert len(changes) == sum(int(won) for won, _ in told) > 0, "each promotion that was told is written down, once"
    assert [before for before, _ in changes] == [None, *(after for _, after in changes[:-1])], "none was overwritten"
    assert aliases(name)["champion"] == changes[-1][1]
    assert promotion.verify() == len(ledger.entries())


def test_the_registry_and_the_ledger_agree_or_it_is_told(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")
    decide(version, champion=champion)
    assert promotion.verify() == 5

    mlflow.MlflowClient().set_registered_model_alias(champion.name, "champion", "1")

    with pytest.raises(
        TrackingError, match="champion stands at version 1, and the ledger's last line of it says 2. It"
    ):
        promotion.verify()


def test_a_missing_last_line_is_found_by_the_registry(make_version):
    champion = champion_of(make_version)
    promotion.force(champion.name, "1", "so it is")
    lines = ledger.path().read_text().splitlines(keepends=True)
    ledger.path().write_text("".join(lines[:-1]))
    with pytest.raises(TrackingError, match="has 2 lines, and had 3: the last ones were taken out"):
        promotion.verify()
    (ledger.path().parent / ledger.MARKER).unlink()
    assert ledger.verify() == 2, "the chain alone cannot know"

    with pytest.raises(TrackingError, match="the last lines of .*ledger.jsonl are missing"):
        promotion.verify()


def test_a_process_that_dies_between_ledger_and_registry_is_found_and_mended(make_version, monkeypatch):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            decide(version, champion=champion)
    with pytest.raises(
        TrackingError, match="alias challenger stands at version 1, and the ledger's last line of it says 2"
    ):
        promotion.verify()

    decide(version, champion=champion)

    assert promotion.verify() == len(ledger.entries())
    assert aliases(version.name) == {"champion": "2", "challenger": "2", "previous": "1"}


def delete_version(version):
    """Delete a version as MLflow's own UI does: its aliases go with it."""
    mlflow.MlflowClient().delete_model_version(version.name, version.version)


def two_champions(make_version):
    """Return the first champion, which is `previous` now, and the one after it."""
    first = champion_of(make_version)
    second, _ = make_version("two")
    decide(second, champion=first)
    return first, registry.find_version(first.name, "champion")


def test_rollback_after_the_champion_was_deleted_gives_it_to_the_previous(make_version):
    first, second = two_champions(make_version)
    delete_version(second)
    with pytest.raises(TrackingError, match="challenger stands at version none, and the ledger's last line"):
        promotion.verify()

    back = promotion.rollback(first.name, "it was deleted")

    assert (back.version, back.aliases) == ("1", ("champion",))
    assert moves(first.name, start=5) == [
        ("challenger", "2", None),
        ("champion", "2", None),
        ("champion", None, "1"),
        ("previous", "1", None),
    ]
    assert "deleted outside of Tuneline" in ledger.entries(first.name)[5]["why"]
    assert promotion.verify() == 9


@pytest.mark.parametrize("way", ["decide", "force"])
def test_a_previous_that_becomes_champion_is_not_previous_any_more(make_version, way):
    first, second = two_champions(make_version)
    delete_version(second)

    decide(first) if way == "decide" else promotion.force(first.name, "1", "the only one left")

    expected = {"champion": "1"} | ({"challenger": "1"} if way == "decide" else {})
    assert aliases(first.name) == expected
    assert promotion.verify() == len(ledger.entries())


def test_a_deleted_model_is_told_in_one_line_and_written_down_by_rollback(make_version):
    first, _ = two_champions(make_version)
    name = first.name
    mlflow.MlflowClient().delete_registered_model(name)

    with pytest.raises(TrackingError, match=f"{name}: the ledger says .*no model of that name.*rollback {name}"):
        promotion.verify()
    assert promotion.rollback(name, "it was deleted") is None

    assert moves(name, start=5) == [("challenger", "2", None), ("champion", "2", None), ("previous", "1", None)]
    assert promotion.verify() == 8
    with pytest.raises(NotFoundError, match=f"Unknown model '{name}'"):
        promotion.rollback(name)


def test_a_model_that_is_made_again_after_it_was_deleted_starts_without_aliases(make_version):
    first, _ = two_champions(make_version)
    mlflow.MlflowClient().delete_registered_model(first.name)

    champion = champion_of(make_version, "three")

    assert aliases(champion.name) == {"challenger": "1", "champion": "1"}
    assert ledger.alias_positions(champion.name) == {"challenger": "1", "champion": "1", "previous": None}
    assert promotion.verify() == len(ledger.entries())


def test_a_move_that_the_registry_refuses_is_taken_back_in_the_ledger(make_version, monkeypatch):
    champion = champion_of(make_version)

    def refuse(*_):
        raise mlflow.MlflowException("Permission denied", 7)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "delete_registered_model_alias", refuse)
        with pytest.raises(TrackingError, match="champion could not be moved to version none: the registry refused"):
            promotion.rollback(champion.name)

    assert moves(champion.name, start=2) == [("champion", "1", None), ("champion", None, "1")]
    assert promotion.verify() == 4


def test_rollback_of_a_model_that_nobody_knows_names_those_there_are(make_version):
    version, _ = make_version("one")

    with pytest.raises(NotFoundError, match=f"Unknown model 'nobody'.*{version.name}"):
        promotion.rollback("nobody")


@pytest.mark.parametrize("move", ["rollback", "force"])
def test_a_version_whose_files_are_gone_never_becomes_champion(make_version, move):
    first = champion_of(make_version)
    decide(make_version("two")[0], champion=first)
    shutil.rmtree(first.folder())
    before = aliases(first.name), len(ledger.entries())

    with pytest.raises(TrackingError, match=r"version 1 \(previous\) are gone from"):
        promotion.rollback(first.name) if move == "rollback" else promotion.force(first.name, "1", "I want it")
    assert (aliases(first.name), len(ledger.entries())) == before


def test_a_precondition_that_fails_keeps_a_better_model_back(make_version):
    version, _ = make_version("one")
    checks = [
        Check(name="template_parity", passed=True, sentence="the same"),
        Check(name="merge_fidelity", passed=False, sentence="it strays"),
    ]

    decision = promotion.decide(version, new=True, champion=None, findings=[finding()], checks=checks)

    assert (decision.promoted, decision.aliases) == (False, ["challenger"])
    assert decision.sentence == "Kept as challenger: precondition merge_fidelity: it strays."


def test_a_folder_that_cannot_be_served_is_refused(tmp_path):
    for name in ("model.safetensors", "config.json"):
        (tmp_path / name).touch()

    with pytest.raises(TrackingError, match=r"has no tokenizer \(tokenizer\*\), so the model could not be served"):
        registry.check_servable(tmp_path)
    (tmp_path / "tokenizer.json").touch()
    registry.check_servable(tmp_path)

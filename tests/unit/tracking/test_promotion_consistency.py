"""Registry and ledger stay consistent: concurrent promotions, killed processes, deletions by other programs."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import mlflow
import pytest

from tests.promotions import aliases, champion_of, decide, moves
from tuneline.errors import NotFoundError, TrackingError
from tuneline.tracking import ledger, promotion, registry


def test_of_two_concurrent_decisions_one_succeeds(make_version, monkeypatch):
    """Both were compared without a champion; without the lock, the pause would let both read before either moves."""
    rivals = [make_version(content)[0] for content in ("one", "two")]
    get_champion = registry.get_champion
    monkeypatch.setattr(registry, "get_champion", lambda name: (get_champion(name), time.sleep(0.3))[0])

    with ThreadPoolExecutor(2) as pool:
        attempts = [pool.submit(decide, version) for version in rivals]
    errors = [attempt.exception() for attempt in attempts if attempt.exception()]
    decisions = [attempt.result() for attempt in attempts if not attempt.exception()]

    assert [type(error) for error in errors] == [TrackingError]
    assert [decision.promoted for decision in decisions] == [True]
    winner = decisions[0].version
    assert aliases(rivals[0].name) == {"challenger": winner, "champion": winner}
    assert moves(rivals[0].name) == [("challenger", None, winner), ("champion", None, winner)]
    assert ledger.verify() == 2

    loser = next(version for version in rivals if version.version != winner)
    assert decide(loser, champion=get_champion(loser.name)).promoted, "the loser can be compared with the new champion"
    assert aliases(loser.name) == {"challenger": loser.version, "champion": loser.version, "previous": winner}
    assert ledger.verify() == 5


RIVAL = """
import sys, time
import mlflow
from tests.promotions import decide
from tuneline.errors import TrackingError
from tuneline.tracking import registry

uri, name, number, seconds = sys.argv[1:]
mlflow.set_tracking_uri(uri)
version = registry.find_version(name, number)
print("ready", flush=True)
sys.stdin.readline()
end, won, late = time.monotonic() + float(seconds), 0, 0
while time.monotonic() < end:
    champion = registry.get_champion(name)
    if champion and champion.version == number:
        continue
    try:
        won += decide(version, champion=champion).promoted
    except TrackingError as error:
        assert "changed while this model was compared with it" in str(error)
        late += 1
print(won, late)
"""


def test_concurrent_promotions_of_two_processes_are_all_recorded(make_version):
    """Each process promotes its version as often as possible; the ledger has every move in order."""
    name = make_version("one")[0].name
    make_version("two")
    command = [sys.executable, "-c", RIVAL, mlflow.get_tracking_uri(), name]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    rivals = [subprocess.Popen([*command, number, "5"], **pipes) for number in ("1", "2")]
    assert [rival.stdout.readline() for rival in rivals] == ["ready\n"] * 2

    for rival in rivals:
        rival.stdin.write("go\n")
        rival.stdin.flush()
    outputs = [rival.communicate(timeout=120)[0].split() for rival in rivals]

    assert [rival.returncode for rival in rivals] == [0, 0]
    changes = [(line["from"], line["to"]) for line in ledger.entries(name) if line["alias"] == "champion"]
    assert len(changes) == sum(int(won) for won, _ in outputs) > 0, "each promotion is recorded once"
    assert [before for before, _ in changes] == [None, *(after for _, after in changes[:-1])], "none was overwritten"
    assert aliases(name)["champion"] == changes[-1][1]
    assert promotion.verify() == len(ledger.entries())


def test_a_difference_between_registry_and_ledger_is_reported(make_version):
    champion = champion_of(make_version)
    version, _ = make_version("two")
    decide(version, champion=champion)
    assert promotion.verify() == 5

    mlflow.MlflowClient().set_registered_model_alias(champion.name, "champion", "1")

    with pytest.raises(
        TrackingError, match="champion is version 1, but 2 according to the last line of the ledger. It"
    ):
        promotion.verify()


def test_a_missing_last_line_is_detected_by_the_registry(make_version):
    champion = champion_of(make_version)
    promotion.force(champion.name, "1", "so it is")
    lines = ledger.path().read_text().splitlines(keepends=True)
    ledger.path().write_text("".join(lines[:-1]))
    with pytest.raises(TrackingError, match="has 2 lines, and had 3: the last lines were removed"):
        promotion.verify()
    (ledger.path().parent / ledger.MARKER).unlink()
    assert ledger.verify() == 2, "the chain alone cannot detect it"

    with pytest.raises(TrackingError, match="the last lines of .*ledger.jsonl are missing"):
        promotion.verify()


def test_a_process_killed_between_ledger_and_registry_is_detected_and_repaired(make_version, monkeypatch):
    champion = champion_of(make_version)
    version, _ = make_version("two")

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_registered_model_alias", die)
        with pytest.raises(KeyboardInterrupt):
            decide(version, champion=champion)
    with pytest.raises(
        TrackingError, match="alias challenger is version 1, but 2 according to the last line of the ledger"
    ):
        promotion.verify()

    decide(version, champion=champion)

    assert promotion.verify() == len(ledger.entries())
    assert aliases(version.name) == {"champion": "2", "challenger": "2", "previous": "1"}


def delete_version(version):
    """Delete a version as MLflow's own UI does: its aliases go with it."""
    mlflow.MlflowClient().delete_model_version(version.name, version.version)


def two_champions(make_version):
    """Return the first champion, which is now `previous`, and the second one."""
    first = champion_of(make_version)
    second, _ = make_version("two")
    decide(second, champion=first)
    return first, registry.find_version(first.name, "champion")


def test_rollback_after_a_deleted_champion_restores_the_previous_one(make_version):
    first, second = two_champions(make_version)
    delete_version(second)
    with pytest.raises(
        TrackingError, match="challenger is version none, but .* according to the last line of the ledger"
    ):
        promotion.verify()

    restored = promotion.rollback(first.name, "it was deleted")

    assert (restored.version, restored.aliases) == ("1", ("champion",))
    assert moves(first.name, start=5) == [
        ("challenger", "2", None),
        ("champion", "2", None),
        ("champion", None, "1"),
        ("previous", "1", None),
    ]
    assert "deleted outside of Tuneline" in ledger.entries(first.name)[5]["why"]
    assert promotion.verify() == 9


@pytest.mark.parametrize("command", ["decide", "force"])
def test_a_previous_version_that_becomes_champion_loses_the_alias_previous(make_version, command):
    first, second = two_champions(make_version)
    delete_version(second)

    decide(first) if command == "decide" else promotion.force(first.name, "1", "the only one left")

    expected = {"champion": "1"} | ({"challenger": "1"} if command == "decide" else {})
    assert aliases(first.name) == expected
    assert promotion.verify() == len(ledger.entries())


def test_a_deleted_model_is_reported_in_one_line_and_recorded_by_rollback(make_version):
    first, _ = two_champions(make_version)
    name = first.name
    mlflow.MlflowClient().delete_registered_model(name)

    with pytest.raises(
        TrackingError, match=f"{name}: according to the ledger, .*no model of that name.*rollback {name}"
    ):
        promotion.verify()
    assert promotion.rollback(name, "it was deleted") is None

    assert moves(name, start=5) == [("challenger", "2", None), ("champion", "2", None), ("previous", "1", None)]
    assert promotion.verify() == 8
    with pytest.raises(NotFoundError, match=f"Unknown model '{name}'"):
        promotion.rollback(name)


def test_a_model_recreated_after_its_deletion_starts_without_aliases(make_version):
    first, _ = two_champions(make_version)
    mlflow.MlflowClient().delete_registered_model(first.name)

    champion = champion_of(make_version, "three")

    assert aliases(champion.name) == {"challenger": "1", "champion": "1"}
    assert ledger.alias_positions(champion.name) == {"challenger": "1", "champion": "1", "previous": None}
    assert promotion.verify() == len(ledger.entries())


def test_a_move_that_the_registry_rejects_is_reverted_in_the_ledger(make_version, monkeypatch):
    champion = champion_of(make_version)

    def refuse(*_):
        raise mlflow.MlflowException("Permission denied", 7)

    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "delete_registered_model_alias", refuse)
        with pytest.raises(
            TrackingError, match="champion could not be moved to version none: the registry rejected it"
        ):
            promotion.rollback(champion.name)

    assert moves(champion.name, start=2) == [("champion", "1", None), ("champion", None, "1")]
    assert promotion.verify() == 4


def test_rollback_of_an_unknown_model_names_the_known_ones(make_version):
    version, _ = make_version("one")

    with pytest.raises(NotFoundError, match=f"Unknown model 'nobody'.*{version.name}"):
        promotion.rollback("nobody")

"""Pushing to a hub: the right files with the right bytes arrive as one commit, and what goes wrong is told as it is."""

import hashlib
import logging

import pytest
from huggingface_hub import constants

from tests import fake_hub
from tuneline.config.sections.export import PushConfig
from tuneline.errors import DeliveryError
from tuneline.export import hub as pushing

NAME = "tester/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub that huggingface_hub takes for its own, and somebody who may write to it."""
    with fake_hub.Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield running


@pytest.fixture
def folder(tmp_path, home):
    """An export with a small and a large file, and one in a folder."""
    folder = tmp_path / "export"
    (folder / "more").mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("# 你好\n")
    (folder / "more" / "note.txt").write_text("a note")
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 4096)
    return folder


def config(**more):
    return PushConfig(repo_id=NAME, **more)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(function, *arguments):
    with pytest.raises(DeliveryError) as caught:
        function(*arguments)
    assert fake_hub.TOKEN not in str(caught.value)
    return str(caught.value)


def test_every_file_arrives_with_its_bytes_as_one_commit_of_a_private_repository(hub, folder, home):
    assert pushing.check_push(config()) == "tester"

    commit, url = pushing.push_folder(folder, config(), "model version 1")

    repository = hub.repositories[NAME]
    assert repository.branches["main"] == contents(folder)
    assert repository.private
    assert repository.commits == [(commit, "model version 1")]
    assert url == f"{hub.url}/{NAME}/commit/{commit}"
    assert repository.by_lfs == {"model.safetensors"}, "large files go by LFS"
    assert set(hub.uploads) == {hashlib.sha256(contents(folder)["model.safetensors"]).hexdigest()}


def test_a_branch_is_made_and_the_recipes_message_and_visibility_are_taken(hub, folder):
    chosen = config(revision="v2", private=False, commit_message="Second one")

    pushing.push_folder(folder, chosen, "not this")

    repository = hub.repositories[NAME]
    assert set(repository.branches["v2"]) == set(contents(folder))
    assert repository.branches["main"] == {}
    assert repository.commits[0][1] == "Second one"
    assert not repository.private


def test_a_second_push_takes_away_weights_of_the_first_and_keeps_other_files(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=True)
    hub.repositories[NAME].branches["main"] = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"theirs"}

    pushing.push_folder(folder, config(), "again")

    assert hub.repositories[NAME].branches["main"] == contents(folder) | {"LICENSE": b"theirs"}


def test_a_name_that_is_taken_is_refused_where_the_recipe_says_so(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=True)

    told = refused(pushing.check_push, config(exist_ok=False))

    assert told.startswith("push.repo_id: tester/model is there already, and push.exist_ok is false.")


def test_nothing_private_goes_into_a_public_repository(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=False)

    assert "is there and public, so everybody would see" in refused(pushing.check_push, config())
    assert "is there and public" in refused(pushing.push_folder, folder, config(), "x")
    assert hub.repositories[NAME].commits == []


def test_a_token_that_is_not_accepted_is_told_with_what_to_do(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    told = refused(pushing.check_push, config())

    assert f"{hub.url} does not accept your token (401: " in told
    assert "Set HF_TOKEN, or run `hf auth login`" in told
    assert "hf_wrong" not in told


def test_no_token_is_told_before_anything_is_asked(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")

    assert "push: the hub does not know who you are. Set HF_TOKEN" in refused(pushing.check_push, config())
    assert hub.requests == []


@pytest.mark.parametrize(
    ("request_", "status", "expected"),
    [
        ("POST /api/repos/create", 403, "push.repo_id: you may not write to tester/model (403: Forbidden by test)"),
        (f"POST /api/models/{NAME}/commit", 403, "you may not write to tester/model"),
        (f"POST /api/models/{NAME}/commit", 409, "tester/model is taken, or was changed meanwhile (409: "),
        (f"POST /api/models/{NAME}/commit", 404, "tester/model or its branch main is not there for you (404: "),
        (f"POST /api/models/{NAME}/commit", 500, "refused with 500: Forbidden by test"),
    ],
)
def test_each_refusal_of_the_hub_has_its_own_words(hub, folder, request_, status, expected):
    hub.fail[request_] = status, "Forbidden by test"

    told = refused(pushing.push_folder, folder, config(), "x")

    assert expected in told
    assert told.endswith(".")
    assert not hub.repositories.get(NAME, fake_hub.Repository(True)).commits, "nothing was committed"


def test_a_storage_that_refuses_leaves_no_commit(hub, folder):
    hub.fail["PUT /storage/"] = 403, "Expired"

    told = refused(pushing.push_folder, folder, config(), "x")

    assert "Nothing was committed" in told or "(403" in told
    assert hub.repositories[NAME].branches["main"] == {}


def test_a_hub_that_is_down_is_told_with_its_address(hub):
    hub.stop()

    told = refused(pushing.check_push, config())

    assert told.startswith(f"push: {hub.url} is out of reach, or broke off: ")
    assert "the export is kept." in told


def test_offline_mode_is_told(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert refused(pushing.check_push, config()) == "push: HF_HUB_OFFLINE is set, so nothing can be pushed. Unset it."


def test_a_hub_that_lost_a_file_is_found_out(hub, folder):
    hub.lose = "config.json"

    told = refused(pushing.push_folder, folder, config(), "x")

    assert "has nothing as config.json at commit" in told


def test_the_token_is_in_no_log(hub, folder, caplog):
    caplog.set_level(logging.DEBUG)

    pushing.push_folder(folder, config(), "x")

    assert fake_hub.TOKEN not in caplog.text


def test_a_card_that_the_hub_does_not_read_is_told(hub, folder):
    (folder / "README.md").write_text("---\nlicense: see its card\n---\n")

    told = refused(pushing.push_folder, folder, config(), "x")

    assert "does not take what is in the export: " in told
    assert hub.repositories[NAME].commits == []

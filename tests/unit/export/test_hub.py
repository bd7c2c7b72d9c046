"""Pushing to the Hub: all files arrive in one commit, and each failure has a specific message."""

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
    """A fake Hub configured as the endpoint of huggingface_hub, with a valid token."""
    with fake_hub.Hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no token"))
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield running


@pytest.fixture
def folder(tmp_path, home):
    """An export with small and large files, one of them in a subfolder."""
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


def error_message(function, *arguments):
    with pytest.raises(DeliveryError) as error:
        function(*arguments)
    assert fake_hub.TOKEN not in str(error.value)
    return str(error.value)


def test_every_file_is_pushed_in_one_commit_to_a_private_repository(hub, folder, home):
    assert pushing.check_push(config()) == "tester"

    commit, url = pushing.push_folder(folder, config(), "model version 1")

    repository = hub.repositories[NAME]
    assert repository.branches["main"] == contents(folder)
    assert repository.private
    assert repository.commits == [(commit, "model version 1")]
    assert url == f"{hub.url}/{NAME}/commit/{commit}"
    assert repository.by_lfs == {"model.safetensors"}, "large files use LFS"
    assert set(hub.uploads) == {hashlib.sha256(contents(folder)["model.safetensors"]).hexdigest()}


def test_branch_message_and_visibility_come_from_the_recipe(hub, folder):
    options = config(revision="v2", private=False, commit_message="Second one")

    pushing.push_folder(folder, options, "not this")

    repository = hub.repositories[NAME]
    assert set(repository.branches["v2"]) == set(contents(folder))
    assert repository.branches["main"] == {}
    assert repository.commits[0][1] == "Second one"
    assert not repository.private


def test_a_second_push_removes_old_weights_and_keeps_other_files(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=True)
    hub.repositories[NAME].branches["main"] = {"model-00001-of-00002.safetensors": b"old", "LICENSE": b"theirs"}

    pushing.push_folder(folder, config(), "again")

    assert hub.repositories[NAME].branches["main"] == contents(folder) | {"LICENSE": b"theirs"}


def test_an_existing_repository_is_rejected_without_exist_ok(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=True)

    message = error_message(pushing.check_push, config(exist_ok=False))

    assert message.startswith("push.repo_id: tester/model already exists, and push.exist_ok is false.")


def test_a_private_push_to_a_public_repository_is_rejected(hub, folder):
    hub.repositories[NAME] = fake_hub.Repository(private=False)

    assert "already exists and is public, so everybody would see" in error_message(pushing.check_push, config())
    assert "already exists and is public" in error_message(pushing.push_folder, folder, config(), "x")
    assert hub.repositories[NAME].commits == []


def test_an_invalid_token_is_reported_with_advice(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")

    message = error_message(pushing.check_push, config())

    assert f"{hub.url} rejects your token (401: " in message
    assert "Set HF_TOKEN, or run `hf auth login`" in message
    assert "hf_wrong" not in message


def test_a_missing_token_is_reported_before_any_request(hub, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")

    assert "push: you are not logged in to the Hub. Set HF_TOKEN" in error_message(pushing.check_push, config())
    assert hub.requests == []


@pytest.mark.parametrize(
    ("request_", "status", "expected"),
    [
        (
            "POST /api/repos/create",
            403,
            "push.repo_id: you have no write permission for tester/model (403: Forbidden by test)",
        ),
        (f"POST /api/models/{NAME}/commit", 403, "you have no write permission for tester/model"),
        (f"POST /api/models/{NAME}/commit", 409, "tester/model already exists, or was changed during the push (409: "),
        (
            f"POST /api/models/{NAME}/commit",
            404,
            "tester/model or its branch main was not found with your token (404: ",
        ),
        (f"POST /api/models/{NAME}/commit", 500, "returned 500: Forbidden by test"),
    ],
)
def test_each_http_error_has_a_specific_message(hub, folder, request_, status, expected):
    hub.fail[request_] = status, "Forbidden by test"

    message = error_message(pushing.push_folder, folder, config(), "x")

    assert expected in message
    assert message.endswith(".")
    assert not hub.repositories.get(NAME, fake_hub.Repository(True)).commits, "nothing was committed"


def test_a_failed_upload_leaves_no_commit(hub, folder):
    hub.fail["PUT /storage/"] = 403, "Expired"

    message = error_message(pushing.push_folder, folder, config(), "x")

    assert "Nothing was committed" in message or "(403" in message
    assert hub.repositories[NAME].branches["main"] == {}


def test_an_unreachable_hub_is_reported_with_its_url(hub):
    hub.stop()

    message = error_message(pushing.check_push, config())

    assert message.startswith(f"push: {hub.url} is unreachable or closed the connection: ")
    assert "the export is not deleted." in message


def test_offline_mode_is_reported(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    assert (
        error_message(pushing.check_push, config()) == "push: HF_HUB_OFFLINE is set, which disables pushing. Unset it."
    )


def test_a_file_missing_after_the_push_is_reported(hub, folder):
    hub.lose = "config.json"

    message = error_message(pushing.push_folder, folder, config(), "x")

    assert "has nothing for config.json at commit" in message


def test_the_token_is_never_logged(hub, folder, caplog):
    caplog.set_level(logging.DEBUG)

    pushing.push_folder(folder, config(), "x")

    assert fake_hub.TOKEN not in caplog.text


def test_a_model_card_rejected_by_the_hub_is_reported(hub, folder):
    (folder / "README.md").write_text("---\nlicense: see its card\n---\n")

    message = error_message(pushing.push_folder, folder, config(), "x")

    assert "rejects the contents of the export: " in message
    assert hub.repositories[NAME].commits == []

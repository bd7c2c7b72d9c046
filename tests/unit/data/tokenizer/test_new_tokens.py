"""Tokenizers with new tokens, and the record of their ids."""

import json
import shutil
from pathlib import Path

import pytest

from tuneline.data.chat_template import selection
from tuneline.data.tokenizer import new_tokens
from tuneline.data.tokenizer.loader import load_tokenizer, load_tokenizer_from
from tuneline.errors import RecipeError
from tuneline.model import source

WORDS, SPECIAL = ["<tool>", "two words"], ["<think>", "</think>"]


@pytest.fixture
def own(tiny_model, home):
    return source.tokenizer_manifest(tiny_model)


@pytest.fixture
def grown(own):
    return new_tokens.add_new_tokens(own, WORDS, SPECIAL)


def copy_record(folder, copy):
    """Write the record of a tokenizer into a copy of it."""
    for name, text in new_tokens.record_files(folder).items():
        (copy / name).write_text(text)


def folder_of(manifest):
    return Path(manifest.only().location)


def test_without_new_tokens_the_tokenizer_is_unchanged(own):
    assert new_tokens.add_new_tokens(own, [], []) is own
    assert new_tokens.new_token_ids(folder_of(own)) == ()


def test_new_tokens_are_never_split(grown):
    tokenizer = load_tokenizer(grown)

    assert tokenizer.tokenize("A<tool>B<think>two words") == ["A", "<tool>", "B", "<think>", "two words"]


def test_only_special_tokens_are_omitted_from_decoded_answers(grown):
    tokenizer = load_tokenizer(grown)

    text = tokenizer.decode(tokenizer("A<tool><think>two words</think>")["input_ids"], skip_special_tokens=True)

    assert text == "A<tool>two words"


def test_special_tokens_and_template_are_preserved(own, grown):
    assert load_tokenizer(grown).special_tokens_map == load_tokenizer(own).special_tokens_map
    assert load_tokenizer(grown).decode([1, 2], skip_special_tokens=True) == ""
    assert load_tokenizer(grown).chat_template == load_tokenizer(own).chat_template


def test_the_record_names_the_new_ids(own, grown):
    before, after = load_tokenizer(own), load_tokenizer(grown)

    ids = new_tokens.new_token_ids(folder_of(grown))

    assert ids == tuple(range(len(before), len(after)))
    assert after.convert_ids_to_tokens(ids) == WORDS + SPECIAL


def test_equal_tokens_give_equal_files(own, grown, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "elsewhere"))

    second = new_tokens.add_new_tokens(own, WORDS, SPECIAL)

    assert second.content_hash() == grown.content_hash() != own.content_hash()
    assert folder_of(second) != folder_of(grown)


def test_different_tokens_give_a_different_tokenizer(own, grown):
    assert new_tokens.add_new_tokens(own, SPECIAL, WORDS).content_hash() != grown.content_hash()


def test_a_second_call_reuses_the_copy(own, grown):
    assert new_tokens.add_new_tokens(own, WORDS, SPECIAL) == grown


@pytest.mark.parametrize(
    ("words", "special", "key"), [(["A"], [], "new_tokens"), ([], ["<|im_end|>"], "new_special_tokens")]
)
def test_an_existing_token_is_refused(own, words, special, key):
    with pytest.raises(RecipeError, match=rf"load.{key}: '.+' is already in the vocabulary, with id \d+\."):
        new_tokens.add_new_tokens(own, words, special)


def test_a_copy_of_the_tokenizer_keeps_the_record(own, grown, tmp_path):
    load_tokenizer(grown).save_pretrained(tmp_path)
    assert new_tokens.new_token_ids(tmp_path) == ()

    copy_record(folder_of(grown), tmp_path)

    assert new_tokens.new_token_ids(tmp_path) == new_tokens.new_token_ids(folder_of(grown))


def test_a_tokenizer_without_a_record_copies_none(own, tmp_path):
    copy_record(folder_of(own), tmp_path)

    assert new_tokens.new_token_ids(tmp_path) == ()
    assert not (tmp_path / new_tokens.RECORD_FILE).exists()


def test_a_complete_model_folder_has_no_new_tokens(tiny_model, grown, tmp_path):
    merged = shutil.copytree(tiny_model, tmp_path / "merged")
    shutil.copytree(folder_of(grown), merged, dirs_exist_ok=True)

    assert new_tokens.new_token_ids(merged) == ()
    copy_record(merged, tmp_path)
    assert not (tmp_path / new_tokens.RECORD_FILE).exists()


def test_tokens_can_be_added_to_a_tokenizer_with_new_tokens(grown):
    extended = new_tokens.add_new_tokens(grown, ["<more>"], [])

    assert new_tokens.new_token_ids(folder_of(extended)) == (len(load_tokenizer(grown)),)


def test_the_copy_contains_no_path_of_this_machine(grown, tiny_model):
    text = "".join(path.read_text() for path in folder_of(grown).iterdir())

    assert str(tiny_model) not in text
    assert json.loads((folder_of(grown) / new_tokens.RECORD_FILE).read_text())["tokens"] == WORDS + SPECIAL
    assert len(load_tokenizer_from(folder_of(grown))) > 0


@pytest.mark.parametrize("words", [[], ["<tool>"]], ids=["a template", "a template and tokens"])
def test_a_tokenizer_saved_with_the_weights_keeps_its_hash(own, words, tmp_path):
    expected, _ = selection.select_template(new_tokens.add_new_tokens(own, words, SPECIAL), "zephyr")
    for path in expected.only().paths():
        shutil.copy2(path, tmp_path / path.name)
    (tmp_path / "config.json").write_text("{}")

    saved_with_weights = source.tokenizer_manifest(tmp_path)

    assert saved_with_weights.content_hash() == expected.content_hash()
    assert selection.select_template(saved_with_weights, "auto")[0] == saved_with_weights

"""Tokenizers with new tokens, and the record of which ids are new."""

import json
import shutil
from pathlib import Path

import pytest

from tuneline.data.chat_template import selection
from tuneline.data.tokenizer import new_tokens
from tuneline.data.tokenizer.loader import load_tokenizer, load_tokenizer_from
from tuneline.errors import RecipeError
from tuneline.model import source

WORDS, MARKS = ["<tool>", "two words"], ["<think>", "</think>"]


@pytest.fixture
def own(tiny_model, home):
    return source.tokenizer_manifest(tiny_model)


@pytest.fixture
def grown(own):
    return new_tokens.add_new_tokens(own, WORDS, MARKS)


def keep_record(folder, copy):
    """Lay the record of a tokenizer into its copy."""
    for name, text in new_tokens.record_files(folder).items():
        (copy / name).write_text(text)


def folder_of(manifest):
    return Path(manifest.only().location)


def test_nothing_new_leaves_the_tokenizer_as_it_is(own):
    assert new_tokens.add_new_tokens(own, [], []) is own
    assert new_tokens.new_token_ids(folder_of(own)) == ()


def test_new_tokens_are_never_split(grown):
    tokenizer = load_tokenizer(grown)

    assert tokenizer.tokenize("A<tool>B<think>two words") == ["A", "<tool>", "B", "<think>", "two words"]


def test_only_special_ones_are_left_out_of_answers(grown):
    tokenizer = load_tokenizer(grown)

    shown = tokenizer.decode(tokenizer("A<tool><think>two words</think>")["input_ids"], skip_special_tokens=True)

    assert shown == "A<tool>two words"


def test_what_was_special_before_still_is(own, grown):
    assert load_tokenizer(grown).special_tokens_map == load_tokenizer(own).special_tokens_map
    assert load_tokenizer(grown).decode([1, 2], skip_special_tokens=True) == ""
    assert load_tokenizer(grown).chat_template == load_tokenizer(own).chat_template


def test_the_record_names_the_new_ids(own, grown):
    before, after = load_tokenizer(own), load_tokenizer(grown)

    ids = new_tokens.new_token_ids(folder_of(grown))

    assert ids == tuple(range(len(before), len(after)))
    assert after.convert_ids_to_tokens(ids) == WORDS + MARKS


def test_the_same_tokens_make_the_same_bytes(own, grown, monkeypatch, tmp_path):
    monkeypatch.setenv("TUNELINE_HOME", str(tmp_path / "elsewhere"))

    again = new_tokens.add_new_tokens(own, WORDS, MARKS)

    assert again.content_hash() == grown.content_hash() != own.content_hash()
    assert folder_of(again) != folder_of(grown)


def test_other_tokens_make_another_tokenizer(own, grown):
    assert new_tokens.add_new_tokens(own, MARKS, WORDS).content_hash() != grown.content_hash()


def test_a_second_call_finds_the_copy(own, grown):
    assert new_tokens.add_new_tokens(own, WORDS, MARKS) == grown


@pytest.mark.parametrize(
    ("words", "marks", "key"), [(["A"], [], "new_tokens"), ([], ["<|im_end|>"], "new_special_tokens")]
)
def test_a_token_that_exists_is_refused_by_name(own, words, marks, key):
    with pytest.raises(RecipeError, match=rf"load.{key}: '.+' is in the vocabulary already, with id \d+\."):
        new_tokens.add_new_tokens(own, words, marks)


def test_a_copy_of_the_tokenizer_keeps_the_record(own, grown, tmp_path):
    load_tokenizer(grown).save_pretrained(tmp_path)
    assert new_tokens.new_token_ids(tmp_path) == ()

    keep_record(folder_of(grown), tmp_path)

    assert new_tokens.new_token_ids(tmp_path) == new_tokens.new_token_ids(folder_of(grown))


def test_a_tokenizer_without_a_record_has_none_to_keep(own, tmp_path):
    keep_record(folder_of(own), tmp_path)

    assert new_tokens.new_token_ids(tmp_path) == ()
    assert not (tmp_path / new_tokens.RECORD_FILE).exists()


def test_beside_a_whole_model_nothing_is_new(tiny_model, grown, tmp_path):
    merged = shutil.copytree(tiny_model, tmp_path / "merged")
    shutil.copytree(folder_of(grown), merged, dirs_exist_ok=True)

    assert new_tokens.new_token_ids(merged) == ()
    keep_record(merged, tmp_path)
    assert not (tmp_path / new_tokens.RECORD_FILE).exists()


def test_a_grown_tokenizer_can_grow_again(grown):
    again = new_tokens.add_new_tokens(grown, ["<more>"], [])

    assert new_tokens.new_token_ids(folder_of(again)) == (len(load_tokenizer(grown)),)


def test_the_copy_names_no_place_on_this_machine(grown, tiny_model):
    text = "".join(path.read_text() for path in folder_of(grown).iterdir())

    assert str(tiny_model) not in text
    assert json.loads((folder_of(grown) / new_tokens.RECORD_FILE).read_text())["tokens"] == WORDS + MARKS
    assert len(load_tokenizer_from(folder_of(grown))) > 0


@pytest.mark.parametrize("words", [[], ["<tool>"]], ids=["a template", "a template and tokens"])
def test_beside_the_weights_a_tokenizer_has_the_hash_of_the_rows(own, words, tmp_path):
    wanted, _ = selection.select_template(new_tokens.add_new_tokens(own, words, MARKS), "zephyr")
    for path in wanted.only().paths():
        shutil.copy2(path, tmp_path / path.name)
    (tmp_path / "config.json").write_text("{}")

    beside_the_weights = source.tokenizer_manifest(tmp_path)

    assert beside_the_weights.content_hash() == wanted.content_hash()
    assert selection.select_template(beside_the_weights, "auto")[0] == beside_the_weights

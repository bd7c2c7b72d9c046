"""Selection of the chat template of a tokenizer, and the token that ends its turns."""

import pytest

from tuneline.config.stages import SFTRecipe
from tuneline.data.chat_template import selection
from tuneline.data.tokenizer.loader import load_tokenizer, load_tokenizer_from
from tuneline.errors import DataError, NotFoundError, SourceError
from tuneline.identity import Manifest
from tuneline.model import source

pytestmark = pytest.mark.usefixtures("home")
CHAT = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]


@pytest.fixture
def bare(tiny_model, tmp_path) -> Manifest:
    """The tokenizer of a base model: no template, and another end-of-sequence token."""
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template, tokenizer.eos_token = None, "<|endoftext|>"
    tokenizer.save_pretrained(tmp_path / "bare")
    return source.tokenizer_manifest(tmp_path / "bare")


def test_the_models_own_template_is_used_unchanged(tiny_model):
    manifest = source.tokenizer_manifest(tiny_model)

    selected, description = selection.select_template(manifest, "auto", "llama")

    assert selected == manifest
    assert description == "chat template: the model's own"


def test_a_base_model_gets_a_template_that_fits_its_vocabulary(bare):
    selected, description = selection.select_template(bare, "auto", "qwen2")
    tokenizer = load_tokenizer(selected)

    assert description.startswith(
        "chat template: qwen, as the tokenizer has none and the model is qwen2; answers end with"
    )
    assert tokenizer.eos_token == "<|im_end|>"
    text = tokenizer.apply_chat_template(CHAT, tokenize=False)
    assert text == "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>\n"


def test_a_template_whose_tags_are_not_tokens_is_skipped(bare):
    assert "chatml, as the tokenizer has none" in selection.select_template(bare, "auto", "gemma2")[1]


def test_a_named_template_is_part_of_the_tokenizers_identity(tiny_model):
    manifest = source.tokenizer_manifest(tiny_model)
    alpaca, zephyr = (selection.select_template(manifest, name)[0] for name in ("alpaca", "zephyr"))

    assert len({manifest.content_hash(), alpaca.content_hash(), zephyr.content_hash()}) == 3
    assert selection.select_template(manifest, "alpaca")[0].content_hash() == alpaca.content_hash()
    assert "### Instruction:\nQ" in load_tokenizer(alpaca).apply_chat_template(CHAT, tokenize=False)


def test_template_arguments_are_inserted_into_the_template(tiny_model):
    manifest = source.tokenizer_manifest(tiny_model)
    own = load_tokenizer(manifest).chat_template

    selected, _ = selection.select_template(manifest, "auto", arguments={"enable_thinking": False, "name": "x"})

    text = load_tokenizer(selected).chat_template
    assert text == '{%- set enable_thinking = false -%}\n{%- set name = "x" -%}\n' + own


def test_a_template_whose_turns_do_not_end_with_a_token_is_refused(tiny_model):
    with pytest.raises(
        SourceError, match="template: gemma ends its turns with text that is not a token.*alpaca, chatml"
    ):
        selection.select_template(source.tokenizer_manifest(tiny_model), "gemma")


def test_an_unknown_template_suggests_the_nearest(tiny_model):
    with pytest.raises(NotFoundError, match="Did you mean 'llama3'"):
        selection.select_template(source.tokenizer_manifest(tiny_model), "lama3")


def test_a_custom_template_file_is_used(tiny_model, tmp_path):
    path = tmp_path / "own.jinja"
    path.write_text(selection.read_template("zephyr"))

    assert selection.select_template(source.tokenizer_manifest(tiny_model), str(path))[1].startswith("chat template: ")
    with pytest.raises(SourceError, match=r"file not found: .*absent.jinja"):
        selection.select_template(source.tokenizer_manifest(tiny_model), str(tmp_path / "absent.jinja"))


def test_a_template_for_images_is_refused(tiny_model, tmp_path):
    path = tmp_path / "vision.jinja"
    path.write_text("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}")

    with pytest.raises((SourceError, DataError), match="images|refuses"):
        selection.select_template(source.tokenizer_manifest(tiny_model), str(path))


def test_the_built_in_templates_are_known_by_name():
    assert SFTRecipe.model_fields["template"].default == "auto"
    names = "alpaca chatml deepseek default empty gemma llama2 llama3 mistral phi qwen vicuna zephyr"
    assert " ".join(selection.template_names()) == names

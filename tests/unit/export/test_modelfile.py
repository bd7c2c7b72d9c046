"""Ollama's Modelfile: stop tokens, how answers are drawn, what cannot be written; and folders of the user's."""

import json
import shutil

import pytest

from tests import tiny
from tuneline.config.sections.export import ExportRecipe, ExportStepConfig
from tuneline.errors import DeliveryError, RecipeError, VerificationError
from tuneline.export import modelfile, place

CONFIG = ExportStepConfig()


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model, to be changed."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def say(folder, **about):
    (folder / "generation_config.json").write_text(json.dumps(about))


def set_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def test_answers_stop_at_the_tokens_of_tokenizer_and_generation_config(folder):
    say(folder, eos_token_id=[0, 2])

    text = modelfile.build_modelfile(folder, CONFIG, None).text

    assert text.count("PARAMETER stop") == 2
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in text


def test_answers_are_drawn_as_the_generation_config_says(folder):
    say(folder, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert modelfile.sampling_parameters(folder) == {"temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.1}

    say(folder, temperature=0.6)
    assert modelfile.sampling_parameters(folder) == {"temperature": 0}, "greedy, as nothing is sampled"

    say(folder, do_sample=True, temperature=0.6)
    asked = ExportStepConfig(parameters={"temperature": 1, "num_ctx": 512})
    assert modelfile.build_modelfile(folder, asked, None).text.endswith(
        "PARAMETER temperature 1\nPARAMETER num_ctx 512\n"
    )


def test_the_default_system_message_is_written_and_one_that_would_end_it_is_refused(folder):
    assert (
        'SYSTEM """Be brief.\nSay "yes"."""\n'
        in modelfile.build_modelfile(folder, CONFIG, 'Be brief.\nSay "yes".').text
    )
    for wrong in ('say """ so', 'say "yes"'):
        with pytest.raises(RecipeError, match="system: a Modelfile ends its texts with"):
            modelfile.build_modelfile(folder, CONFIG, wrong)


def test_a_template_without_an_equal_is_refused_with_the_way_out(folder):
    set_template(folder, "{{ strftime_now('%Y') }}" + tiny.CHATML)

    with pytest.raises(VerificationError, match=r"^modelfile: exact: .*today's date.*Set modelfile: none"):
        modelfile.build_modelfile(folder, CONFIG, None)


def test_a_limited_template_is_refused_unless_asked_for_and_then_told(folder):
    set_template(folder, tiny.CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"))

    with pytest.raises(VerificationError, match="Set modelfile: limited"):
        modelfile.build_modelfile(folder, CONFIG, None)
    made = modelfile.build_modelfile(folder, ExportStepConfig(modelfile="limited"), None)
    assert "# Not so: thoughts (<think>...</think>) in earlier answers.\n" in made.text
    assert not made.facts["modelfile.exact"]
    assert ", but not with thoughts" in made.sentence


def test_the_first_token_is_ollamas_where_the_tokenizer_adds_it(folder):
    about = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(about | {"add_bos_token": True, "bos_token": "<|im_start|>"})
    )

    text = modelfile.build_modelfile(folder, CONFIG, None).text

    assert '{{- "user\\n" }}' in text, "the first <|im_start|> is added by Ollama"


def test_a_folder_that_is_not_an_export_is_left_alone(tmp_path):
    export = tmp_path / "made"
    export.mkdir()
    (export / "SHA256SUMS").write_text("")
    (tmp_path / "new").mkdir()
    place.copy_export(export, tmp_path / "new")
    assert (tmp_path / "new" / "SHA256SUMS").is_file()

    (tmp_path / "file").write_text("x")
    with pytest.raises(DeliveryError, match="is a file. Name a folder"):
        place.copy_export(export, tmp_path / "file")
    (tmp_path / "new" / "mine.txt").write_text("x")
    with pytest.raises(DeliveryError, match=r"holds mine.txt, which is no part of the export"):
        place.copy_export(export, tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").read_text() == "x"


def test_a_recipe_hands_each_step_its_own_part():
    recipe = ExportRecipe.model_validate(
        {
            "stage": "export",
            "model": {"type": "hub", "repo_id": "a/b"},
            "adapters": ["one"],
            "to": "out",
            "push": {"repo_id": "me/it"},
            "dtype": "float16",
        }
    )

    assert recipe.for_export() == ExportStepConfig(dtype="float16")
    assert recipe.for_locate().adapters == recipe.adapters
    assert recipe.for_publish().push.private, "private unless the recipe says otherwise"
    assert recipe.step_names() == ["locate", "export", "publish"]

"""Ollama Modelfile: stop tokens, sampling parameters, texts that cannot be quoted; and copying an export."""

import json
import shutil

import pytest

from tests import tiny
from tuneline.config.sections.export import ExportRecipe, ExportStepConfig
from tuneline.errors import DeliveryError, RecipeError, VerificationError
from tuneline.export import local_folder, modelfile

CONFIG = ExportStepConfig()


@pytest.fixture
def folder(tiny_model, tmp_path):
    """A copy of the tiny model that tests may modify."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def write_generation_config(folder, **config):
    (folder / "generation_config.json").write_text(json.dumps(config))


def set_template(folder, text):
    (folder / "chat_template.jinja").write_text(text)


def test_stop_tokens_come_from_tokenizer_and_generation_config(folder):
    write_generation_config(folder, eos_token_id=[0, 2])

    text = modelfile.build_modelfile(folder, CONFIG, None).text

    assert text.count("PARAMETER stop") == 2
    assert 'PARAMETER stop "<|im_end|>"\nPARAMETER stop "<|endoftext|>"\n' in text


def test_sampling_parameters_come_from_the_generation_config(folder):
    write_generation_config(folder, do_sample=True, temperature=0.6, top_p=0.9, repetition_penalty=1.1)
    assert modelfile.sampling_parameters(folder) == {"temperature": 0.6, "top_p": 0.9, "repeat_penalty": 1.1}

    write_generation_config(folder, temperature=0.6)
    assert modelfile.sampling_parameters(folder) == {"temperature": 0}, "greedy without do_sample"

    write_generation_config(folder, do_sample=True, temperature=0.6)
    config = ExportStepConfig(parameters={"temperature": 1, "num_ctx": 512})
    assert modelfile.build_modelfile(folder, config, None).text.endswith(
        "PARAMETER temperature 1\nPARAMETER num_ctx 512\n"
    )


def test_the_system_message_is_quoted_and_one_with_closing_quotes_is_rejected(folder):
    assert (
        'SYSTEM """Be brief.\nSay "yes"."""\n'
        in modelfile.build_modelfile(folder, CONFIG, 'Be brief.\nSay "yes".').text
    )
    for text in ('say """ so', 'say "yes"'):
        with pytest.raises(RecipeError, match="system: a Modelfile delimits texts with"):
            modelfile.build_modelfile(folder, CONFIG, text)


def test_a_template_without_an_equivalent_is_rejected_with_advice(folder):
    set_template(folder, "{{ strftime_now('%Y') }}" + tiny.CHATML)

    with pytest.raises(VerificationError, match=r"^modelfile: exact: .*today's date.*Set modelfile: none"):
        modelfile.build_modelfile(folder, CONFIG, None)


def test_a_limited_template_is_rejected_unless_requested_and_its_limits_are_listed(folder):
    set_template(folder, tiny.CHATML.replace("m['content']", "m['content'].split('</think>')[-1]"))

    with pytest.raises(VerificationError, match="Set modelfile: limited"):
        modelfile.build_modelfile(folder, CONFIG, None)
    result = modelfile.build_modelfile(folder, ExportStepConfig(modelfile="limited"), None)
    assert "# Differs for: thoughts (<think>...</think>) in earlier answers.\n" in result.text
    assert not result.facts["modelfile.exact"]
    assert ", except with thoughts" in result.sentence


def test_the_bos_token_is_omitted_if_the_tokenizer_adds_it(folder):
    tokenizer_config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(
        json.dumps(tokenizer_config | {"add_bos_token": True, "bos_token": "<|im_start|>"})
    )

    text = modelfile.build_modelfile(folder, CONFIG, None).text

    assert '{{- "user\\n" }}' in text, "Ollama adds the first <|im_start|>"


def test_a_folder_with_other_files_is_not_overwritten(tmp_path):
    export = tmp_path / "made"
    export.mkdir()
    (export / "SHA256SUMS").write_text("")
    (tmp_path / "new").mkdir()
    local_folder.copy_export(export, tmp_path / "new")
    assert (tmp_path / "new" / "SHA256SUMS").is_file()

    (tmp_path / "file").write_text("x")
    with pytest.raises(DeliveryError, match="is a file. Give a folder"):
        local_folder.copy_export(export, tmp_path / "file")
    (tmp_path / "new" / "mine.txt").write_text("x")
    with pytest.raises(DeliveryError, match=r"contains mine.txt, which is not part of the export"):
        local_folder.copy_export(export, tmp_path / "new")
    assert (tmp_path / "new" / "mine.txt").read_text() == "x"


def test_a_recipe_gives_each_step_its_section():
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
    assert recipe.for_publish().push.private, "repositories are private by default"
    assert recipe.step_names() == ["locate", "export", "publish"]

"""Every kind of MODEL is located, and every error is one line that says what to do."""

import shutil

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from tests import tiny
from tests.unit.train.checkpoint.trainings import DiedError, dying_at, parts_of, trained
from tuneline import state
from tuneline.config.sections.serve import ServeConfig
from tuneline.errors import RecipeError, SourceError, TunelineError
from tuneline.model.load import load_model
from tuneline.serve.deploy import locate, memory


def located(model, **changes):
    return locate.locate(ServeConfig(model=str(model), **changes))


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    """A peft adapter whose config names its base by path."""
    folder = tmp_path_factory.mktemp("adapters") / "poet"
    base = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(folder)
    return folder


@pytest.fixture
def checkpoint(tiny_model, home):
    """A checkpoint of a training that was interrupted."""
    with pytest.raises(DiedError):
        trained(parts_of(tiny_model), listeners=dying_at(5))
    (folder,) = (state.root() / "training").iterdir()
    return folder / "checkpoint-3"


def test_a_directory_is_served_under_its_name(tiny_model, home):
    model = located(tiny_model)

    assert (model.name, model.folder, model.adapters, model.version) == ("model", tiny_model, {}, None)
    assert model.created > 1_600_000_000
    assert model.content_hash == located(tiny_model).content_hash


def test_a_registered_version_is_located_by_number_and_alias(make_version, move, name):
    first, second = make_version(1), make_version(2)
    move(second)

    assert located(f"{name}/1").folder == first.folder()
    for text in (name, f"{name}@champion", f"models:/{name}@champion", f"models:/{name}/2"):
        model = located(text)
        assert (model.name, model.folder, model.content_hash) == (f"{name}/2", second.folder(), second.content_hash)


def test_an_adapter_is_served_on_the_base_model_that_it_names(adapter, tiny_model, home):
    model = located(adapter)

    assert (model.name, model.adapter, model.adapters) == ("poet", "poet", {"poet": adapter})
    assert (model.folder, model.base_name) == (tiny_model, "model")
    assert model.content_hash != located(tiny_model).content_hash


def test_the_base_model_of_an_adapter_can_be_given(adapter, own_model, home):
    assert located(adapter, base=str(own_model)).folder == own_model


def test_adapters_are_added_by_name(adapter, tiny_model, home):
    model = located(tiny_model, adapters={"verse": str(adapter), "prose": str(adapter)})

    assert (model.name, model.adapter) == ("model", None)
    assert model.adapters == {"verse": adapter, "prose": adapter}


def test_a_checkpoint_is_served_from_files_of_its_own(checkpoint, home):
    model = located(checkpoint)
    shutil.rmtree(checkpoint.parent)

    assert model.name == f"{checkpoint.parent.name[:8]}/checkpoint-3"
    assert load_model(model.folder)
    model.discard()
    assert not model.folder.exists()


def test_a_training_is_served_at_its_latest_checkpoint(checkpoint, home):
    assert located(checkpoint.parent).name.endswith("/checkpoint-3")


def test_an_adapter_can_be_a_checkpoint(checkpoint, tiny_model, home):
    model = located(tiny_model, adapters={"latest": str(checkpoint)})

    assert (model.adapters["latest"] / "adapter_model.safetensors").is_file()


def test_a_gguf_file_is_converted_or_read_by_llama_cpp(home, tmp_path):
    from tests.unit.model.test_gguf_split import write

    file = tmp_path / "export" / "tiny-f32.gguf"
    file.parent.mkdir()
    write(file)
    converted, read, folder = located(file), located(file, engine="llama_cpp"), located(file.parent, engine="llama_cpp")

    assert (converted.name, read.name) == ("tiny-f32", "tiny-f32")
    assert converted.gguf is None
    assert any(converted.folder.glob("*.safetensors"))
    assert read.gguf == folder.gguf == file
    assert any(read.folder.glob("tokenizer*"))
    assert memory.needed_bytes(read, ServeConfig(model="m")) > file.stat().st_size


def test_a_folder_with_several_gguf_files_is_ambiguous(home, tmp_path):
    for name in ("a-q8_0.gguf", "a-f16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")

    with pytest.raises(RecipeError, match="several GGUF models: a-f16.gguf, a-q8_0.gguf"):
        located(tmp_path, engine="llama_cpp")


def test_a_template_is_given_to_a_model_that_has_none(own_model, home):
    (own_model / "chat_template.jinja").unlink(missing_ok=True)
    config = own_model / "tokenizer_config.json"
    config.write_text(config.read_text().replace('"chat_template"', '"unused"'))
    from tuneline.data.tokenizer.loader import load_tokenizer_from

    model = located(own_model, template="chatml")

    assert model.folder == own_model
    assert "im_start" in load_tokenizer_from(model.tokenizer_folder).chat_template


ERRORS = {
    "no such folder": ("./nothing/here/at/all", {}, "./nothing/here/at/all does not exist"),
    "no such name": ("a b", {}, "'a b' is neither an existing path nor a valid name"),
    "null byte": ("a\0b", {}, "neither an existing path"),
    "too long": ("x/" * 5000, {}, "at most 4096|neither an existing path"),
    "file": ("{tmp}/file.txt", {}, "unsupported kind. Give a .gguf file"),
    "empty folder": ("{tmp}/empty", {}, "does not contain config.json"),
    "pickle": ("{tmp}/pickle", {}, "pickle files.*allow_pickle"),
    "own code": ("{tmp}/code", {}, "trust_remote_code"),
    "adapter without base": ("{tmp}/adapter", {}, "base model 'nowhere/at-all'.*--base"),
    "adapter as base": ("{adapter}", {"base": "{adapter}"}, "base: expected a whole model, got an adapter"),
    "model as adapter": ("{model}", {"adapters": {"a": "{model}"}}, "adapters.a: expected an adapter"),
    "missing adapter": ("{model}", {"adapters": {"a": "./no"}}, "./no does not exist"),
    "pickled adapter": ("{model}", {"adapters": {"a": "{tmp}/pickled_adapter"}}, "does not contain .*safetensors"),
    "same name": ("{adapter}", {"adapters": {"poet": "{adapter}"}}, "poet is the name of the adapter"),
    "llama.cpp without GGUF": ("{model}", {"engine": "llama_cpp"}, "needs a GGUF file"),
    "unknown template": ("{model}", {"template": "nothing"}, "template.*'nothing'"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_every_error_is_one_line(case, tiny_model, adapter, tmp_path, home):
    (tmp_path / "file.txt").write_text("text")
    (tmp_path / "empty").mkdir()
    shutil.copytree(tiny_model, tmp_path / "pickle")
    (tmp_path / "pickle" / "model.safetensors").rename(tmp_path / "pickle" / "pytorch_model.bin")
    shutil.copytree(tiny_model, tmp_path / "code")
    config = tmp_path / "code" / "config.json"
    config.write_text(config.read_text().replace('"llama"', '"theirs"').replace("{", '{"auto_map": {"A": "m.M"},', 1))
    shutil.copytree(adapter, tmp_path / "adapter")
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text(config.read_text().replace(str(tiny_model), "nowhere/at-all"))
    shutil.copytree(adapter, tmp_path / "pickled_adapter")
    weights = tmp_path / "pickled_adapter" / "adapter_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))

    def fill(value):
        if isinstance(value, dict):
            return {key: fill(each) for key, each in value.items()}
        return value.format(tmp=tmp_path, model=tiny_model, adapter=adapter)

    model, changes, message = ERRORS[case]
    with pytest.raises((TunelineError, ValueError), match=message) as caught:
        located(fill(model), **fill(changes))
    if isinstance(caught.value, TunelineError):
        assert "\n" not in str(caught.value)


def test_a_bundle_needs_the_transformers_engine(checkpoint, home):
    with pytest.raises(RecipeError, match="engine: llama_cpp cannot serve step 3 of training"):
        located(checkpoint, engine="llama_cpp")


def test_the_base_of_a_checkpoint_is_verified(checkpoint, home, tmp_path):
    other = tiny.build_model(tmp_path / "other", seed=1)

    with pytest.raises(SourceError, match="was trained on another base model"):
        located(checkpoint, base=str(other))


def test_memory_is_estimated_from_the_headers_of_the_weights(tiny_model, adapter, home):
    model = load_model(tiny_model)
    num_bytes = 4 * sum(part.numel() for part in model.parameters())

    needed = memory.needed_bytes(located(tiny_model), ServeConfig(model="m", dtype="float32"))
    half = memory.needed_bytes(located(tiny_model), ServeConfig(model="m", dtype="bfloat16"))
    more = memory.needed_bytes(located(adapter), ServeConfig(model="m", dtype="float32"))

    assert needed - memory.FIXED_BYTES == int(1.2 * num_bytes)
    assert half - memory.FIXED_BYTES == int(0.6 * num_bytes)
    assert needed < more < needed + 10_000
    assert memory.available_bytes() > 1 << 20

"""Quantization table: which kinds are refused for training and merging."""

import subprocess
import sys
from typing import get_args

import pytest

from tuneline.config.sections.load import Quantization
from tuneline.config.validation import quantization
from tuneline.errors import RecipeError

TABLE = quantization.table()
ON_THE_FLY = [name for name, entry in TABLE.items() if "on_the_fly" in entry.when]


def config_with(**quantization_config):
    return {"model_type": "llama", "quantization_config": quantization_config}


@pytest.fixture
def set_installed(monkeypatch):
    """Pretend that exactly these modules are installed."""

    def only(*modules):
        monkeypatch.setattr(quantization, "_is_installed", lambda module: module in modules)

    return only


def test_the_recipe_supports_every_on_the_fly_kind():
    offered = {kind.model_fields["type"].annotation.__args__[0] for kind in get_args(get_args(Quantization)[0])}

    assert offered == set(ON_THE_FLY)


def test_every_quantization_of_transformers_is_in_the_table():
    from transformers.utils.quantization_config import QuantizationMethod

    methods = {method.value for method in QuantizationMethod} - {"bitsandbytes", "gguf"}

    assert methods <= set(TABLE), "GGUF files are converted, all else is in the table"


def test_transformers_and_the_table_agree_on_what_needs_no_gpu():
    assert all("cpu" in TABLE[name].runs_on for name in [*ON_THE_FLY, "fp8", "mxfp4", "compressed-tensors"])


@pytest.mark.parametrize("name", TABLE)
def test_the_table_knows_the_on_the_fly_kinds_and_gives_reasons_for_exclusions(name):
    assert ("on_the_fly" in TABLE[name].when) == (name in ON_THE_FLY)
    assert all(reason and not reason.endswith(".") for reason in TABLE[name].cannot.values())


def test_the_table_is_read_without_torch():
    code = "import sys; from tuneline.config.validation import quantization as q; "
    code += "q.check_trainable('bnb_4bit', trains_all=False); "

    done = subprocess.run(
        [sys.executable, "-c", code + "print('torch' in sys.modules)"], capture_output=True, text=True
    )

    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        ({}, None),
        ({"quantization_config": None}, None),
        (config_with(quant_method="bitsandbytes", load_in_4bit=True), "bnb_4bit"),
        (config_with(quant_method="bitsandbytes", load_in_8bit=True, load_in_4bit=False), "bnb_8bit"),
        (config_with(load_in_4bit=True), "bnb_4bit"),
        (
            config_with(quant_method="torchao", quant_type={"default": {"_type": "Int8WeightOnlyConfig"}}),
            "torchao_int8",
        ),
        (config_with(quant_method="torchao", quant_type={"default": {"_type": "Int4WeightOnlyConfig"}}), "torchao"),
        (config_with(quant_method="gptq", bits=4), "gptq"),
        (config_with(quant_method="fp8"), "fp8"),
        ({"text_config": config_with(quant_method="awq")}, "awq"),
        (config_with(quant_method="tomorrow"), "tomorrow"),
    ],
)
def test_the_kind_is_read_from_the_model_config(config, kind):
    assert quantization.quantization_kind(config) == kind


def test_an_unquantized_model_is_not_refused():
    quantization.check_trainable(None, trains_all=True, device="cpu")
    quantization.check_mergeable(None)
    quantization.check_not_quantized(None, "bnb_4bit")
    quantization.check_not_quantized("gptq", None)


@pytest.mark.parametrize("name", ["bnb_4bit", "bnb_8bit"])
def test_on_the_fly_kinds_train_adapters_on_a_cpu(name):
    quantization.check_trainable(name, trains_all=False, device="cpu", key="load.quantization")
    quantization.check_mergeable(name)


@pytest.mark.parametrize("name", [name for name, entry in TABLE.items() if entry.loads == "quantized"])
@pytest.mark.parametrize("key", ["model", "load.quantization"])
def test_quantized_weights_are_never_trained(name, key):
    with pytest.raises(RecipeError, match=rf"^{key}: "):
        quantization.check_trainable(name, trains_all=True, key=key)


def test_full_tuning_is_refused_with_an_alternative():
    with pytest.raises(RecipeError, match=r"in 4 bits without gradients.*Set method.type: lora"):
        quantization.check_trainable("bnb_4bit", trains_all=True, key="load.quantization")


@pytest.mark.parametrize("name", ["fp8", "mxfp4"])
def test_dequantized_kinds_support_full_tuning(name):
    quantization.check_trainable(name, trains_all=True, device="cpu")
    quantization.check_mergeable(name)


def test_missing_packages_are_reported(set_installed):
    set_installed("optimum")

    with pytest.raises(
        RecipeError, match=r"model: gptq requires gptqmodel>=7. Install with: pip install 'gptqmodel>=7'\."
    ):
        quantization.check_trainable("gptq", trains_all=False, device="cpu")


@pytest.mark.parametrize("name", ["gptq", "awq", "aqlm"])
def test_quantized_models_train_if_their_library_is_installed(set_installed, name):
    set_installed(*TABLE[name].needs)

    quantization.check_trainable(name, trains_all=False, device="cpu")


def test_a_module_of_a_package_that_is_missing_is_missing():
    assert not quantization._is_installed("no_such_package.module")


def test_an_unsupported_device_is_refused(set_installed):
    set_installed(*TABLE["eetq"].needs)

    with pytest.raises(RecipeError, match=r"model: eetq runs on cuda, but the device is cpu\."):
        quantization.check_trainable("eetq", trains_all=False, device="cpu")
    quantization.check_trainable("eetq", trains_all=False, device="cuda")


def test_unloadable_kinds_are_refused_with_the_reason():
    with pytest.raises(RecipeError, match=r"hqq cannot be trained: transformers 5 raises NotImplementedError"):
        quantization.check_trainable("hqq", trains_all=False, device="cuda")


@pytest.mark.parametrize("name", ["quanto", "gptq", "awq", "aqlm", "eetq", "hqq", "torchao"])
def test_kinds_that_cannot_be_merged_are_refused(name):
    with pytest.raises(RecipeError, match=rf"an adapter on {name} cannot be merged: .* Keep the adapter separate"):
        quantization.check_mergeable(name)


def test_an_unknown_quantization_is_refused_with_those_known():
    with pytest.raises(RecipeError, match=r"model: unknown quantization 'gptk'. Did you mean 'gptq'\? Known: "):
        quantization.check_trainable("gptk", trains_all=False)


def test_a_model_is_not_quantized_twice():
    with pytest.raises(RecipeError, match=r"load.quantization: bnb_4bit, but the model is already quantized as gptq\."):
        quantization.check_not_quantized("gptq", "bnb_4bit")


def test_the_rendered_table_has_every_kind_with_its_reason():
    lines = quantization.to_markdown().splitlines()

    assert len(lines) == 2 + len(TABLE)
    assert all(line.count("|") == 7 for line in lines)
    assert all(reason in quantization.to_markdown() for entry in TABLE.values() for reason in entry.cannot.values())

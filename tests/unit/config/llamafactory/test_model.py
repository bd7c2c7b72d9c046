"""Model and method keys of LlamaFactory."""

import pytest

from tests.llamafactory_files import recipe_of


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({"bf16": True}, "bfloat16"), ({"fp16": True}, "float16"), ({"pure_bf16": True}, "pure_bfloat16"), ({}, "auto")],
)
def test_precision_is_translated(project, options, dtype):
    assert recipe_of(**options).load.dtype == dtype


def test_quantization_patches_and_adapters_are_translated(project):
    load = recipe_of(
        quantization_bit=4,
        quantization_type="fp4",
        flash_attn="disabled",
        rope_scaling="yarn",
        add_tokens="<a>,<b>",
        enable_liger_kernel=True,
        disable_gradient_checkpointing=True,
    ).load
    merged = recipe_of(adapter_name_or_path="one,two", create_new_adapter=True).load.adapters
    further = recipe_of(adapter_name_or_path="one,two").load.adapters

    assert (load.quantization.type, load.quantization.bnb_4bit_quant_type) == ("bnb_4bit", "fp4")
    assert (load.attention, load.rope_scaling.rope_type, load.kernels) == ("eager", "yarn", "liger")
    assert (load.new_tokens, load.gradient_checkpointing) == (["<a>", "<b>"], "none")
    assert [adapter.use for adapter in merged] == ["merge", "merge"]
    assert [adapter.use for adapter in further] == ["merge", "continue"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"lora_target": "q_proj,v_proj", "use_dora": True},
            {"target_modules": ["q_proj", "v_proj"], "use_dora": True},
        ),
        ({"pissa_init": True, "pissa_iter": 16}, {"init_lora_weights": "pissa"}),
        ({"finetuning_type": "oft", "oft_block_size": 16}, {"type": "oft", "oft_block_size": 16}),
        (
            {"finetuning_type": "freeze", "freeze_trainable_layers": -3, "freeze_trainable_modules": "mlp"},
            {"type": "freeze", "layers": -3, "trainable_modules": ["mlp"]},
        ),
        ({"finetuning_type": "full"}, {"type": "full"}),
    ],
)
def test_methods_are_translated(project, options, expected):
    method = recipe_of(**options).method

    assert {key: getattr(method, key) for key in expected} == expected

"""Bugs of upstream libraries as strict expected failures; a test that passes makes its workaround obsolete."""

import inspect

import pytest
import torch
import yaml

from tuneline.model.load import load_model

upstream_bug = pytest.mark.xfail(strict=True, reason="docs/upstream.md")


@upstream_bug
def test_zenml_refuses_unknown_keys():
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    with pytest.raises(ValueError, match="paramters"):
        PipelineRunConfiguration.model_validate(yaml.safe_load("paramters: {}"))


@upstream_bug
def test_zenml_checks_the_outputs_of_a_cached_step():
    from zenml.orchestrators import cache_utils

    assert "outputs" in inspect.getsource(cache_utils.get_cached_step_run)


@upstream_bug
def test_zenmls_local_orchestrator_supports_schedules():
    from zenml.orchestrators.local.local_orchestrator import LocalOrchestratorConfig

    assert LocalOrchestratorConfig().is_schedulable


@upstream_bug
def test_the_trainer_logs_a_nan_loss():
    from transformers import TrainingArguments

    assert not TrainingArguments(output_dir="unused", use_cpu=True).logging_nan_inf_filter


@upstream_bug
def test_packed_examples_do_not_attend_to_each_other_with_a_mask_of_ones(tiny_model):
    from tuneline.model import attention

    model = load_model(tiny_model)
    ids = torch.arange(10, 20)
    alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids.split([4, 6])])
    inputs = attention.packed_inputs([4, 6]) | {"attention_mask": torch.ones(1, 10, dtype=torch.long)}

    torch.testing.assert_close(model(input_ids=ids[None], **inputs).logits[0], alone, rtol=1e-3, atol=1e-4)


@upstream_bug
def test_peft_reads_back_every_part_of_an_adapter(tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict

    from tests import architectures

    adapted = get_peft_model(architectures.build("laguna"), LoraConfig(r=2, target_modules=["shared_experts.up_proj"]))
    torch.nn.init.ones_(next(part for name, part in adapted.named_parameters() if ".lora_B." in name))
    adapted.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(architectures.build("laguna"), tmp_path)

    first, second = (get_peft_model_state_dict(model) for model in (adapted, again))
    assert all(torch.equal(first[name], second[name]) for name in first)


@upstream_bug
def test_pefts_all_linear_excludes_routers():
    from peft import LoraConfig, get_peft_model

    from tests import architectures

    model = get_peft_model(architectures.build("phimoe"), LoraConfig(r=2, target_modules="all-linear"))

    assert model(input_ids=torch.arange(3, 9)[None]).logits.isfinite().all()


@upstream_bug
def test_the_text_model_of_a_composite_model_reloads(tmp_path):
    from transformers import AutoModelForCausalLM

    from tests import architectures

    architectures.build("emu3").save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tmp_path)


@upstream_bug
def test_pefts_all_linear_includes_fused_experts():
    from peft import LoraConfig, get_peft_model

    from tests import architectures

    adapted = get_peft_model(architectures.build("gpt_oss"), LoraConfig(r=2, target_modules="all-linear"))

    assert any("experts" in name for name, part in adapted.named_parameters() if part.requires_grad)


@upstream_bug
def test_lora_on_tied_embeddings_merges_into_both(tiny_model):
    from peft import LoraConfig, get_peft_model

    adapted = with_moved_factors(get_peft_model(load_model(tiny_model), LoraConfig(target_modules=["embed_tokens"])))
    before = logits(adapted)

    torch.testing.assert_close(logits(adapted.merge_and_unload()), before, rtol=1e-3, atol=1e-3)


@upstream_bug
def test_disabling_a_pissa_adapter_restores_the_base_model(tiny_model):
    from peft import LoraConfig, get_peft_model

    before = logits(load_model(tiny_model))
    adapted = get_peft_model(load_model(tiny_model), pissa(LoraConfig, "pissa"))

    with adapted.disable_adapter():
        torch.testing.assert_close(logits(adapted), before, rtol=1e-3, atol=1e-3)


@upstream_bug
def test_randomized_pissa_reloads_equal(tiny_model, tmp_path):
    from peft import LoraConfig, PeftModel, get_peft_model

    torch.manual_seed(0)
    adapted = with_moved_factors(get_peft_model(load_model(tiny_model), pissa(LoraConfig, "pissa_niter_1")))
    before = logits(adapted)
    adapted.save_pretrained(tmp_path)
    torch.manual_seed(1)
    again = PeftModel.from_pretrained(load_model(tiny_model), tmp_path)

    torch.testing.assert_close(logits(again), before, rtol=1e-4, atol=1e-5)


def pissa(config_class, start):
    return config_class(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=start)


def with_moved_factors(model):
    with torch.no_grad():
        for name, part in model.named_parameters():
            if "lora_" in name:
                part.add_(torch.linspace(-1, 1, part.numel()).view_as(part))
    return model


@torch.no_grad()
def logits(model):
    return model.eval()(input_ids=torch.arange(10, 20)[None], use_cache=False).logits


def training_arguments(tmp_path, **options):
    from transformers import TrainingArguments

    low_rank = {"optim_target_modules": ["mlp"]} if "galore" in options["optim"] else {}
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, **low_rank, **options)


def optimizer_class_and_options(tiny_model, args):
    from transformers import Trainer

    return Trainer.get_optimizer_cls_and_kwargs(args, load_model(tiny_model))


@upstream_bug
def test_transformers_passes_numbers_to_rmsprop_of_bitsandbytes(tiny_model, tmp_path):
    _, options = optimizer_class_and_options(
        tiny_model, training_arguments(tmp_path, optim="rmsprop_bnb_8bit", optim_args="alpha=0.9")
    )

    assert options["alpha"] == 0.9


@upstream_bug
def test_transformers_passes_false_to_stable_adamw_as_false(tiny_model, tmp_path):
    pytest.importorskip("optimi")
    _, options = optimizer_class_and_options(
        tiny_model, training_arguments(tmp_path, optim="stable_adamw", optim_args="kahan_sum=false")
    )

    assert options["kahan_sum"] is False


@upstream_bug
def test_transformers_passes_weight_decay_to_galore(tiny_model, tmp_path):
    pytest.importorskip("galore_torch")
    _, options = optimizer_class_and_options(
        tiny_model, training_arguments(tmp_path, optim="galore_adamw", weight_decay=0.1)
    )

    assert any("weight_decay" in group for group in (options, *options["params"]))


@upstream_bug
def test_transformers_supports_layerwise_galore_adafactor(tiny_model, tmp_path):
    pytest.importorskip("galore_torch")
    optimizer_class_and_options(tiny_model, training_arguments(tmp_path, optim="galore_adafactor_layerwise"))


@upstream_bug
def test_transformers_supports_a_warmup_ratio_for_schedule_free(tiny_model, tmp_path):
    """It passes 0.1 as a number of steps, so the first step is ten times too large."""
    pytest.importorskip("schedulefree")
    _, options = optimizer_class_and_options(
        tiny_model, training_arguments(tmp_path, optim="schedule_free_adamw", warmup_steps=0.1)
    )

    assert not 0 < options["warmup_steps"] < 1


@upstream_bug
def test_the_state_of_galore_loads_with_weights_only(tmp_path):
    """Its projector is not a tensor, and another test may have added it to the safe globals of this process."""
    galore = pytest.importorskip("galore_torch.galore_projector")
    torch.save({"projector": galore.GaLoreProjector(rank=2)}, tmp_path / "state.pt")

    safe_globals = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        torch.load(tmp_path / "state.pt", weights_only=True)
    finally:
        torch.serialization.add_safe_globals(safe_globals)


@upstream_bug
def test_the_state_of_badam_contains_its_block(tiny_model):
    badam = pytest.importorskip("badam")
    model = load_model(tiny_model)
    optimizer = badam.BlockOptimizer(
        torch.optim.AdamW(model.parameters()), list(model.named_parameters()), switch_mode="ascending"
    )

    assert set(optimizer.state_dict()) > {"state", "param_groups"}


@upstream_bug
def test_badam_excludes_norms_from_weight_decay(tiny_model):
    badam = pytest.importorskip("badam")
    model = load_model(tiny_model)
    groups = [{"params": list(model.parameters()), "weight_decay": 0.1}]
    optimizer = badam.BlockOptimizer(torch.optim.AdamW(groups), list(model.named_parameters()), switch_mode="ascending")

    norms = [part for group in optimizer.base_optimizer.param_groups[1:] for part in group["params"]]
    assert norms
    assert all(part.ndim == 1 for part in norms)


@upstream_bug
def test_adam_mini_supports_heads_whose_total_width_is_not_the_hidden_size():
    """Gemma and Qwen3 have such heads."""
    adam_mini = pytest.importorskip("adam_mini")
    part = torch.nn.Parameter(torch.ones(4 * 10, 8))  # four heads of ten on a width of eight
    optimizer = adam_mini.Adam_mini([("q_proj", part)], dim=8, n_heads=4, verbose=False)
    part.sum().backward()
    optimizer.step()

    assert optimizer.state[part]["vmean"].shape == (4, 1)


@upstream_bug
def test_mlflows_registry_creates_its_tables_in_one_process_at_a_time():
    import inspect

    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore

    assert "_safe_initialize_tables" in inspect.getsource(SqlAlchemyStore.__init__)


@upstream_bug
def test_a_rich_spinner_does_not_interpret_markup():
    from rich.spinner import Spinner

    assert str(Spinner("dots", "[b]bold[/b]").text) == "[b]bold[/b]"

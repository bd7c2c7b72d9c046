"""Optimizers: each learns, resumes from a checkpoint, and has the behaviour that it is named for."""

import json
import shutil

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from tests import architectures
from tests.unit.test_support_matrix import COMPILED, OPTIMIZERS, RATE_FACTORS
from tests.unit.train.checkpoint import trainings
from tuneline.config.sections.method import FullMethod, LoraMethod
from tuneline.config.training.optimizers import OPTIMIZER_SPECS
from tuneline.errors import RecipeError
from tuneline.model.load import load_model
from tuneline.train import training_run
from tuneline.train.objectives.reward import REWARD_HEAD
from tuneline.train.optim import optimizer_factory

FULL = FullMethod(type="full")
FAST = ("schedule_free_adamw", "muon", "badam", "galore_adamw", "apollo_adamw")
"""Optimizers with different kinds of state."""
ARGUMENTS = {
    "badam": "switch_block_every=5,switch_mode=random,include_embedding=true,include_lm_head=true",
    "apollo_adamw": "rank=1,scale=128,scale_type=tensor,update_proj_gap=2",
    "sgd": "momentum=0.9,nesterov=true",
    "rmsprop_bnb_8bit": "alpha=0.9",
    "adafactor": "beta1=0.9",
}


def options(name):
    """The `train` section for full training, with options that add optimizer state."""
    free = {"lr_scheduler_type": "constant"} if OPTIMIZER_SPECS[name].schedule_free else {}
    args = {"optim_args": ARGUMENTS[name]} if name in ARGUMENTS else {}
    decay = {"weight_decay": 0.1} if OPTIMIZER_SPECS[name].supports_weight_decay else {}
    rate = 2e-3 * RATE_FACTORS.get(name, 1)
    return {"optim": name, "learning_rate": rate, **OPTIMIZERS.get(name, {}), **free, **decay, **args}


def run(parts, name, method=FULL, listeners=(), **changes):
    return trainings.run_training(
        parts, method, listeners, **{**options(name), "max_steps": trainings.STEPS, **changes}
    )


def slow_unless(names):
    return [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in names]


@pytest.fixture(scope="module")
def model(tiny_model, tmp_path_factory):
    """A tiny model whose matrices are large enough for 8-bit state, which bitsandbytes begins at 4096 numbers."""
    folder = tmp_path_factory.mktemp("wider") / "model"
    shutil.copytree(tiny_model, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"intermediate_size": 160}))
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


@pytest.fixture
def parts(model, home):
    return trainings.parts_of(model)


@pytest.mark.parametrize("name", slow_unless(sorted(set(OPTIMIZER_SPECS) - set(optimizer_factory.CUDA_OPTIMIZERS))))
def test_every_optimizer_learns_and_resumes_to_the_same_weights(parts, name):
    undisturbed, straight = run(parts, name)
    expected = trainings.weights(undisturbed)

    with pytest.raises(trainings.DiedError):
        run(parts, name, FULL, trainings.fail_at(8))
    resumed, report = run(parts, name)

    resume = "resumed from step 6 of 11" if OPTIMIZER_SPECS[name].resumable else None
    assert report.decisions.get("resume") == resume
    assert trainings.weights(resumed) == expected
    assert straight.summary["final_loss"] < straight.summary["first_loss"]
    assert straight.summary["trainable_parameters"] == straight.summary["parameters"]


@pytest.mark.parametrize("name", optimizer_factory.CUDA_OPTIMIZERS)
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_optimizers_with_state_on_a_gpu_are_refused_without_one(parts, name):
    with pytest.raises(RecipeError, match="keeps its state on a CUDA GPU, and none is available. Set train.optim"):
        run(parts, name)


def record_at_the_end(monkeypatch):
    """Return the optimizer and the weights at the end of a training, before the final weights are set."""
    recorded, original = {}, optimizer_factory.EvalModeCallback.on_train_end

    def record(self, args, state, control, optimizer=None, model=None, **more):
        recorded["optimizer"] = optimizer.optimizer
        recorded["before"] = {name: part.detach().clone() for name, part in model.named_parameters()}
        recorded["parts"] = dict(model.named_parameters())
        original(self, args, state, control, optimizer=optimizer, model=model, **more)

    monkeypatch.setattr(optimizer_factory.EvalModeCallback, "on_train_end", record)
    return recorded


def test_schedule_free_training_saves_the_average(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)
    checkpoint, report = run(parts, "schedule_free_adamw", learning_rate=1e-2)
    saved = dict(load_model(checkpoint.path).named_parameters())
    optimizer = recorded["optimizer"]

    for name, part in recorded["parts"].items():
        average = recorded["before"][name].lerp(optimizer.state[part]["z"], 1 - 1 / 0.9)
        assert torch.equal(saved[name], average), name
    assert not torch.equal(saved["model.norm.weight"], recorded["before"]["model.norm.weight"])
    loss = training_run.mean_loss(load_model(checkpoint.path), parts[0], "validation")
    assert report.summary["validation_loss"] == pytest.approx(loss, rel=1e-5)


def test_an_evaluation_uses_the_average_and_changes_no_weights(parts):
    name, rate = "schedule_free_adamw", {"learning_rate": 1e-2}
    plain, _ = run(parts, name, max_steps=6, **rate)
    expected = trainings.weights(plain)

    evaluated, report = run(parts, name, max_steps=6, eval_steps=3, **rate)
    _, short = run(parts, name, max_steps=3, **rate)

    assert trainings.weights(evaluated) == expected
    losses = [entry["validation_loss"] for entry in report.history if "validation_loss" in entry]
    assert losses == pytest.approx([short.summary["validation_loss"], report.summary["validation_loss"]], rel=1e-5)


def test_badam_refuses_a_reward_head(model, tmp_path):
    rewarding = load_model(model)
    rewarding.add_module(REWARD_HEAD, torch.nn.Linear(32, 1))
    args = optimizer_factory.StageTrainingArguments(output_dir=str(tmp_path), use_cpu=True, custom_optim="badam")

    with pytest.raises(RecipeError, match="the new reward head belongs to no layer"):
        optimizer_factory.CUSTOM_OPTIMIZERS["badam"](rewarding, [], args, {})


def test_8_bit_optimizers_store_8_bit_state(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, "lion_8bit", max_steps=1)

    states = {name: recorded["optimizer"].state[part]["state1"].dtype for name, part in recorded["parts"].items()}
    assert states["model.layers.0.mlp.up_proj.weight"] == torch.uint8
    assert states["model.norm.weight"] == torch.float32


def test_muon_trains_hidden_matrices_and_adamw_the_rest(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, "muon", max_steps=1, optim_args="adamw_learning_rate=1e-3,momentum=0.9,beta2=0.95")

    muon, adamw = recorded["optimizer"]._parts
    names = {id(part): name for name, part in recorded["parts"].items()}
    of_muon, of_adamw = ({names[id(p)] for g in part.param_groups for p in g["params"]} for part in (muon, adamw))
    assert of_muon == {name for name in recorded["parts"] if name.endswith("proj.weight")}
    assert of_adamw == set(recorded["parts"]) - of_muon
    assert {group["momentum"] for group in muon.param_groups} == {0.9}
    assert {group["betas"] for group in adamw.param_groups} == {(0.9, 0.95)}
    assert {group["initial_lr"] for group in adamw.param_groups} == {1e-3}
    assert {group["initial_lr"] for group in muon.param_groups} == {2e-3}


def test_muon_makes_updates_orthogonal(parts, model, monkeypatch):
    recorded = record_at_the_end(monkeypatch)
    run(parts, "muon", max_steps=1, weight_decay=0.0, lr_scheduler_type="constant")
    name = "model.layers.0.self_attn.q_proj.weight"

    update = load_model(model).get_parameter(name) - recorded["before"][name]
    spread = torch.linalg.svdvals(update / (2e-3 * 0.2 * 32**0.5))

    assert spread.max() < 1.3
    assert (spread > 0.4).float().mean() > 0.6  # of a plain gradient it is a handful


def test_loraplus_keeps_its_ratio_under_muon(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, "muon", LoraMethod(type="lora", r=4, lora_alpha=8, loraplus_lr_ratio=8), max_steps=1)

    muon, *_ = recorded["optimizer"]._parts
    assert {group["initial_lr"] for group in muon.param_groups} == {2e-3, 16e-3}


def test_badam_changes_one_block_at_a_time_and_prints_nothing(parts, model, capsys):
    checkpoint, _ = run(parts, "badam", max_steps=2, optim_args="switch_block_every=50,start_block=1,switch_mode=fixed")
    before, after = (dict(load_model(path).named_parameters()) for path in (model, checkpoint.path))

    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith("model.layers.1.") for name in changed)
    assert "prefix" not in capsys.readouterr().out


def test_a_missing_block_is_refused(parts):
    with pytest.raises(RecipeError, match="start_block 2: this model has 2 blocks"):
        run(parts, "badam", optim_args="start_block=2")


def test_adam_mini_keeps_one_second_moment_per_head(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, "adam_mini", max_steps=1)

    state = {name: recorded["optimizer"].state[part]["vmean"] for name, part in recorded["parts"].items()}
    assert state["model.layers.0.self_attn.q_proj.weight"].shape == (4, 1)
    assert state["model.layers.0.self_attn.k_proj.weight"].shape == (2, 1)
    assert state["model.layers.0.mlp.down_proj.weight"].shape == (32, 1)


def adam_mini(model, tmp_path):
    args = optimizer_factory.StageTrainingArguments(output_dir=str(tmp_path), use_cpu=True, custom_optim="adam_mini")
    return optimizer_factory.CUSTOM_OPTIMIZERS["adam_mini"](model, [], args, {})


def test_adam_mini_supports_heads_with_another_width(tmp_path):
    shape = {"vocab_size": 16, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 10}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads))
    optimizer = adam_mini(model, tmp_path)
    ids = torch.arange(10)[None]

    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()

    layer = model.model.layers[0].self_attn
    assert len(optimizer.state[layer.q_proj.weight]["vmean"]) == 4
    assert len(optimizer.state[layer.k_proj.weight]["vmean"]) == 2


def test_adam_mini_refuses_experts_in_one_parameter(tmp_path):
    with pytest.raises(RecipeError, match="adam_mini splits .*experts.gate_up_proj by rows, but its shape is"):
        adam_mini(architectures.build("mixtral"), tmp_path)


def test_optimizers_in_the_backward_pass_report_no_gradient_norm(parts):
    assert "grad_norm" not in run(parts, "lomo", max_steps=1)[1].history[0]


@pytest.mark.parametrize("name", ["galore_adamw", "apollo_adamw"])
def test_low_rank_optimizers_get_weight_decay_except_for_norms(parts, name, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, name, max_steps=1)

    names = {id(part): key for key, part in recorded["parts"].items()}
    decay = {
        names[id(p)]: group["weight_decay"] for group in recorded["optimizer"].param_groups for p in group["params"]
    }
    assert decay.keys() == recorded["parts"].keys()
    assert {key for key, value in decay.items() if not value} == {key for key in decay if "norm" in key}
    low = [group for group in recorded["optimizer"].param_groups if "rank" in group]
    assert {names[id(p)] for group in low for p in group["params"]} == {key for key in decay if "proj" in key}


def test_adam_arguments_are_passed_on(parts, monkeypatch):
    recorded = record_at_the_end(monkeypatch)

    run(parts, "adamw_torch", max_steps=1, optim_args="beta2=0.95,eps=1e-6")

    assert {(group["betas"], group["eps"]) for group in recorded["optimizer"].param_groups} == {((0.9, 0.95), 1e-6)}


def test_gradients_are_not_clipped_without_a_limit(parts):
    clipped, plain = (run(parts, "sgd", max_steps=2, max_grad_norm=norm)[1] for norm in (1e-6, None))

    assert clipped.history[1]["loss"] == pytest.approx(clipped.history[0]["loss"], rel=0.1)
    assert plain.history[0]["grad_norm"] == pytest.approx(clipped.history[0]["grad_norm"], rel=1e-5)


def test_compiled_optimizers_are_optimizers():
    assert set(COMPILED) < set(OPTIMIZER_SPECS)

"""The support matrix: each combination that it allows trains, reloads and merges; all others are refused."""

import math
import os
from pathlib import Path

import pytest

from tests import tiny
from tuneline.config import load as loading
from tuneline.config.recipe import Recipe
from tuneline.config.validation import compatibility, compatibility_docs, quantization
from tuneline.data import prepare
from tuneline.errors import RecipeError
from tuneline.model import merge, resolve
from tuneline.model.load import load_model
from tuneline.model.methods import families
from tuneline.train import training_run

pytestmark = pytest.mark.matrix(every=6)

DOCS = Path("docs/support-matrix.md")
HEAD = """# Support matrix

This page lists which fine-tuning methods can be combined with which other options.

Each table combines the methods with the values of one option; all other options have their defaults. A test trains
every `yes` on a CPU (a few steps of a tiny model: the loss decreases, the saved model reloads equal, and merges equal
if the method has a merged form). What needs more than a CPU is refused where that is missing. The tables are generated
from `tuneline/config/validation/compatibility.yaml`, which also validates recipes when they are read.

"""
METHODS = {
    "full": {"type": "full"},
    "freeze": {"type": "freeze", "layers": 1},
    "lora": {"type": "lora", "r": 4, "lora_alpha": 8},
    "rslora": {"type": "lora", "r": 4, "lora_alpha": 8, "use_rslora": True},
    "dora": {"type": "lora", "r": 4, "lora_alpha": 8, "use_dora": True},
    "pissa": {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "pissa"},
    "olora": {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "olora"},
    "gaussian": {"type": "lora", "r": 4, "lora_alpha": 8, "init_lora_weights": "gaussian"},
    "lora_plus": {"type": "lora", "r": 4, "lora_alpha": 8, "loraplus_lr_ratio": 8},
    "adalora": {"type": "adalora", "init_r": 4, "target_r": 2},
    "vera": {"type": "vera", "r": 16},
    "oft": {"type": "oft", "oft_block_size": 4},
    "ia3": {"type": "ia3"},
    "prefix": {"type": "prefix", "num_virtual_tokens": 4},
    "prompt": {"type": "prompt", "num_virtual_tokens": 4},
    "p_tuning": {"type": "p_tuning", "num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "bottleneck": {"type": "bottleneck", "bottleneck_size": 8},
}
RATES = {"full": 1e-3, "freeze": 2e-3, "prefix": 0.1, "prompt": 0.5, "p_tuning": 0.1, "ia3": 0.1, "vera": 0.1}
LOW_RANK = {
    "optim_args": "rank=4,update_proj_gap=2,scale=1.0",
    "optim_target_modules": ["self_attn", "mlp"],
}
OPTIMIZERS = {
    "galore_adamw": LOW_RANK,
    "galore_adamw_8bit": LOW_RANK,
    "galore_adafactor": LOW_RANK,
    "galore_adamw_layerwise": {**LOW_RANK, "max_grad_norm": None},
    "galore_adamw_8bit_layerwise": {**LOW_RANK, "max_grad_norm": None},
    "apollo_adamw": LOW_RANK,
    "apollo_adamw_layerwise": {**LOW_RANK, "max_grad_norm": None},
    "badam": {"optim_args": "switch_block_every=2"},
    "schedule_free_radam": {
        "max_steps": 12
    },  # it makes no update in the first five steps, while its variance is unknown
    "lomo": {"max_grad_norm": None},
    "adalomo": {"max_grad_norm": None},
}
"""Optimizer -> the training options that it needs."""
RATE_FACTORS = {"sgd": 10, "schedule_free_sgd": 10, "lomo": 10, "adagrad": 3}
"""Optimizer -> its learning rate relative to AdamW's; plain gradient descent needs larger ones."""
FAST_WITH_ALL_METHODS = (
    "adamw_torch",
    "adamw_torch_fused",
    "adamw_bnb_8bit",
    "paged_adamw_8bit",
    "adafactor",
    "galore_adamw",
)
FAST_WITH_LORA = ("lion_8bit", "sgd", "schedule_free_adamw", "muon")
COMPILED = ("adamw_torch_8bit", "adamw_torch_4bit")
EQUAL_ON_CPU = ("paged_adamw_32bit", "paged_lion", "paged_ademamix", "ademamix_8bit", "lion_32bit", "rmsprop_bnb_32bit")
"""Equal to another optimizer here: a CPU pages nothing, and the tiny model is too small for 8-bit state."""
LOAD = {
    "quantization": lambda value: {"quantization": None if value == "none" else {"type": value}},
    "dtype": lambda value: {"dtype": value},
    "attention": lambda value: {"attention": value},
    "s2": lambda value: {"s2_group_size_ratio": 0.25 if value == "on" else None},
    "gradient_checkpointing": lambda value: {"gradient_checkpointing": value},
    "vocabulary": lambda value: {"new_tokens": ["tuneline"] if value == "extended" else []},
    "start": lambda value: {"train_from_scratch": value == "random"},
    "kernels": lambda value: {"kernels": value},
}
CHOICES = {
    tuple(sorted(choice.items())): choice
    for axis in compatibility.table().axes
    if axis != "method"
    for choice in compatibility.table().pairs(axis)
}
NAMES = [
    "-".join([c["method"], *(v for a, v in c.items() if compatibility.table().defaults[a] != v and a != "method")])
    for c in CHOICES.values()
]


def stage_options(stage: str) -> dict:
    """Return the sources and the registry of a stage's recipe; none for SFT."""
    if stage == "sft":
        return {}
    name, format, metric = STAGES.get(stage, ("pairs", "preference", "preference_accuracy"))
    return {
        "sources": [{"name": name, "path": f"data/{name}.jsonl", "format": format}],
        "registry": {"model_name": "tiny", "gate": {"metric": metric}},
    }


STAGES = {
    "pretrain": ("texts", "text", "log_likelihood"),
    "kto": ("labelled", "kto", "signed_log_likelihood"),
    "ppo": ("first", "alpaca", "reward"),
    "grpo": ("first", "alpaca", "reward"),
}
"""Stage -> name and format of its rows, and the metric of its gate; other stages train on pairs."""
REPRESENTATIVE_METHODS = ("lora", "full")
"""Methods that represent all others in preference and reward stages, unless slow tests run."""


def param(choice: dict[str, str], name: str):
    """Mark a combination as slow unless a representative method or optimizer is enough for CI.

    Half precision is many times slower on CPUs without instructions for it.
    """
    method, optimizer = choice["method"], choice["optimizer"]
    slow = choice["dtype"] != "float32" and method not in ("lora", "full")
    if optimizer not in FAST_WITH_ALL_METHODS:
        representative = method == "full" or (method == "lora" and optimizer in FAST_WITH_LORA)
        slow |= optimizer in COMPILED or optimizer.startswith(EQUAL_ON_CPU)
        slow |= not representative and not compatibility.table().incompatibilities(choice)
    if choice["stage"] not in ("sft", "pretrain"):
        slow |= method not in REPRESENTATIVE_METHODS and not compatibility.table().incompatibilities(choice)
    return pytest.param(choice, id=name, marks=pytest.mark.slow if slow else ())


def recipe_of(choice: dict[str, str]) -> dict:
    optimizer = choice["optimizer"]
    train = {
        "learning_rate": RATES.get(choice["method"], 1e-2) * RATE_FACTORS.get(optimizer, 1),
        "max_steps": 6,
        "lr_scheduler_type": "constant",
        "per_device_train_batch_size": 2 if choice["rows"] == "batched" else 1,
        "optim": optimizer,
        **OPTIMIZERS.get(optimizer, {}),
        "neftune_noise_alpha": 5 if choice["noise"] == "on" else None,
    }
    if choice["stage"] in ("ppo", "grpo"):
        train |= {"max_steps": 2, "reward_function": "tests.rewards:vowels", "max_completion_length": 4}
        train["per_device_train_batch_size"] = 2
    elif choice["stage"] == "kto":
        train["per_device_train_batch_size"] = 2
    load: dict = {}
    for axis, part in LOAD.items():
        load |= part(choice[axis])
    method = METHODS[choice["method"]]
    if choice["method"] == "freeze" and choice["vocabulary"] == "extended":
        method = method | {"extra_modules": ["embed_tokens"]}
    return tiny.recipe(
        stage=choice["stage"],
        **stage_options(choice["stage"]),
        load=load,
        method=method,
        train=train,
        tokenize={"max_length": 64, "packing": choice["rows"] == "packed"},
        merge_adapter={"max_kl": 1e-3 if "bfloat16" in choice["dtype"] else 1e-4},
    )


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A project for all combinations, and a cache of prepared rows and losses."""
    folder = tiny.build_project(tmp_path_factory.mktemp("matrix") / "project")
    tiny.write_texts(folder / "data" / "texts.jsonl")
    tiny.write_preferences(folder / "data")
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(folder / "state"))
        env.setenv("OMP_NUM_THREADS", "1")
        yield folder, {}


def read_recipe(world, choice: dict[str, str]) -> Recipe:
    return loading.load(tiny.write_config(world[0] / "pair.yaml", recipe_of(choice))).recipe


def prepare_inputs(world, recipe: Recipe):
    """Return rows, tokenizer and base model; prepared once for each kind of rows and vocabulary."""
    _, cache = world
    key = (recipe.stage, recipe.tokenize.packing, recipe.load.train_from_scratch, *recipe.load.new_tokens)
    if key not in cache:
        tokenizer, base_model, _ = resolve.resolve_inputs(recipe.for_resolve())
        cache[key] = prepare.prepare(recipe, tokenizer), tokenizer, base_model
    return cache[key]


def train_model(world, recipe: Recipe):
    rows, tokenizer, base_model = prepare_inputs(world, recipe)
    resolve.check_inputs(base_model, tokenizer, recipe.for_resolve())
    outputs = training_run.train(rows, base_model, tokenizer, recipe.for_load(), recipe.method, recipe.train)
    return rows, tokenizer, base_model, *outputs


@pytest.mark.parametrize("choice", [param(*pair) for pair in zip(CHOICES.values(), NAMES, strict=True)])
def test_a_combination_is_supported_as_the_matrix_says(world, choice):
    refused, needs = compatibility.table().incompatibilities(choice), compatibility.table().needs(choice)
    if refused:
        with pytest.raises(RecipeError, match="is not supported"):
            read_recipe(world, choice)
        return
    recipe = read_recipe(world, choice)
    if needs:
        with pytest.raises(RecipeError, match=r"load\.(attention|dtype|kernels)|train\.optim"):
            train_model(world, recipe)
        return
    check_training_and_merge(world, recipe, choice)


def check_training_and_merge(world, recipe, choice):
    rows, _, _, checkpoint, report = train_model(world, recipe)
    losses = [entry["loss"] for entry in report.history]
    if choice["stage"] not in ("sft", "pretrain"):
        assert all(map(math.isfinite, losses))
        assert merge_and_check(world, recipe, checkpoint).is_dir()  # compared with the trained model in `merge_adapter`
        return
    model = load_model(merge_and_check(world, recipe, checkpoint))
    trained_loss, validation_loss = (
        training_run.mean_loss(model, rows, split, loaded_method(recipe)) for split in ("train", "validation")
    )

    assert all(map(math.isfinite, losses))
    assert trained_loss < base_loss(world, recipe)
    rounding = 0.05 if "bfloat16" in choice["dtype"] or choice["quantization"] == "bnb_8bit" else 1e-3
    assert validation_loss == pytest.approx(report.summary["validation_loss"], rel=rounding)


def loaded_method(recipe) -> str:
    """Return the method to load the saved model with: its own if it stays an adapter, else `full`."""
    return recipe.method.type if not families[recipe.method.type].mergeable else "full"


def merge_and_check(world, recipe, checkpoint) -> Path:
    rows, tokenizer, base_model = prepare_inputs(world, recipe)
    model = merge.merge_adapter(checkpoint, base_model, tokenizer, rows, recipe.for_load(), recipe.merge_adapter)

    stays_adapter = recipe.stage == "rm" and checkpoint.kind == "adapter"
    assert (model.kind in ("merged", "full")) == (families[recipe.method.type].mergeable and not stays_adapter)
    return model.path


def base_loss(world, recipe) -> float:
    """Return the base model's loss on the training rows."""
    rows, tokenizer, base_model = prepare_inputs(world, recipe)
    key = ("base_loss", recipe.stage, recipe.tokenize.packing, recipe.load.train_from_scratch, *recipe.load.new_tokens)
    if key not in world[1]:
        load_options = recipe.for_load().model_copy(update={"quantization": None})
        from tuneline.model.load import load_for_inference

        world[1][key] = training_run.mean_loss(load_for_inference(base_model, tokenizer, load_options), rows, "train")
    return world[1][key]


def test_the_page_of_the_matrix_is_up_to_date():
    text = f"{HEAD}{compatibility_docs.to_markdown()}\n## Quantized models\n\n{quantization.to_markdown()}"
    if os.environ.get("TUNELINE_WRITE_DOCS"):
        DOCS.write_text(text)

    assert DOCS.read_text() == text


def test_the_matrix_has_every_method_of_the_config():
    from typing import get_args

    from tuneline.config.sections.method import Method

    types = {get_args(kind.model_fields["type"].annotation)[0] for kind in get_args(get_args(Method)[0])}

    assert types <= set(compatibility.table().axes["method"])
    assert set(METHODS) == set(compatibility.table().axes["method"])

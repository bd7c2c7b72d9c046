"""Translate LlamaFactory's training keys to the sections `train` and `evaluate`."""

from typing import Any, get_args

from tuneline.config.llamafactory.translation import Translation
from tuneline.config.parsing.located_yaml import suggest
from tuneline.config.stages import RECIPES
from tuneline.config.training.base import SFTConfig

SAME_NAME = (
    "learning_rate",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "weight_decay",
    "seed",
)
ALIASES = {"adamw_8bit": "adamw_bnb_8bit"}
STAGES = {"pt": "pretrain"}
LOSS_STAGES = ("orpo", "simpo")
"""Losses of LlamaFactory's `stage: dpo` that are separate stages in Tuneline."""

STAGE_KEYS: dict[str, dict[str, str]] = {
    "dpo": {
        "pref_loss": "loss_type",
        "pref_beta": "beta",
        "dpo_label_smoothing": "label_smoothing",
        "ld_alpha": "ld_alpha",
    },
    "kto": {"pref_beta": "beta", "kto_chosen_weight": "desirable_weight", "kto_rejected_weight": "undesirable_weight"},
    "orpo": {"pref_beta": "beta"},
    "simpo": {"pref_beta": "beta", "simpo_gamma": "simpo_gamma"},
}
"""Stage -> LlamaFactory key -> field of the `train` section (trl's name)."""

GALORE_VARIANTS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adafactor": "adafactor",
}
"""Optimizer -> suffix of its GaLore variant in transformers."""

IN_LAYERS = r".*\.\d+\..*"
"""Matches modules in a numbered layer: every linear module except the head, for any architecture."""


def translate_stage(translation: Translation) -> str:
    """Return the stage of the recipe. Stages without a counterpart are rejected."""
    source_stage, loss = translation.config.stage, translation.config.pref_loss
    is_loss_stage = source_stage == "dpo" and loss in LOSS_STAGES
    stage = loss if is_loss_stage else STAGES.get(source_stage, source_stage)
    if stage not in RECIPES:
        translation.refuse("stage", f"{source_stage!r} is not supported. Set one of {', '.join(sorted(RECIPES))}.")
    else:
        translation.set_value("stage", stage, *(("stage", "pref_loss") if stage in LOSS_STAGES else ("stage",)))
    return stage


def translate_training(translation: Translation, stage: str) -> None:
    """Translate the training arguments."""
    config = translation.config
    for key in SAME_NAME:
        translation.set_value(f"train.{key}", getattr(config, key), key)
    translation.set_value("train.max_steps", config.max_steps if config.max_steps > 0 else -1, "max_steps")
    translation.set_if_enabled("train.neftune_noise_alpha", config.neftune_noise_alpha or None, "neftune_noise_alpha")
    if stage == "kto" and config.per_device_train_batch_size == 1:
        _kto_batch_size(translation)
    _schedule(translation)
    _optimizer(translation)
    _gradient_clipping(translation)
    _saving(translation)
    _evaluation(translation)
    translation.set_if_enabled("evaluate.max_new_tokens", config.max_new_tokens, "max_new_tokens")
    translation.set_if_enabled("evaluate.batch_size", config.per_device_eval_batch_size, "per_device_eval_batch_size")
    if stage in RECIPES and stage not in ("sft", "pretrain"):
        _stage_options(translation, stage)


def _kto_batch_size(translation: Translation) -> None:
    """Raise the batch size to at least 2: KTO estimates the KL divergence on the completions of a batch."""
    steps = translation.config.gradient_accumulation_steps
    size = 2 if steps % 2 == 0 else steps
    translation.set_value("train.per_device_train_batch_size", size, "per_device_train_batch_size")
    translation.set_value("train.gradient_accumulation_steps", steps // size, "gradient_accumulation_steps")
    translation.note(
        "per_device_train_batch_size",
        f"1 becomes {size}, with the same effective batch size: the KL estimate requires more than one completion",
    )


def _schedule(translation: Translation) -> None:
    config = translation.config
    known = get_args(SFTConfig.model_fields["lr_scheduler_type"].annotation)
    if config.lr_scheduler_type not in known:
        translation.refuse(
            "lr_scheduler_type",
            f"{config.lr_scheduler_type!r} is not supported.{suggest(config.lr_scheduler_type, known)}",
        )
    translation.set_value("train.lr_scheduler_type", config.lr_scheduler_type, "lr_scheduler_type")
    translation.set_if_enabled("train.lr_scheduler_kwargs", config.lr_scheduler_kwargs or None, "lr_scheduler_kwargs")
    if config.warmup_steps:
        translation.set_value("train.warmup_steps", config.warmup_steps, "warmup_steps")
        if config.warmup_ratio:
            translation.note(
                "warmup_ratio", "not used, because warmup_steps is set and takes precedence, as in transformers"
            )
    else:
        translation.set_value("train.warmup_steps", config.warmup_ratio, "warmup_ratio", "warmup_steps")


def _gradient_clipping(translation: Translation) -> None:
    """Translate gradient clipping. Layerwise optimizers do not clip, which LlamaFactory does not report."""
    config = translation.config
    if str(translation.recipe.get("train", {}).get("optim", "")).endswith("_layerwise"):
        translation.set_value("train.max_grad_norm", None, "max_grad_norm")
        if config.is_set("max_grad_norm"):
            translation.note(
                "max_grad_norm", "layerwise optimizers do not clip gradients, neither in LlamaFactory nor in Tuneline"
            )
        return
    translation.set_value("train.max_grad_norm", config.max_grad_norm or None, "max_grad_norm")


def _saving(translation: Translation) -> None:
    config = translation.config
    if config.save_steps >= 1:
        translation.set_value("train.save_steps", int(config.save_steps), "save_steps")
    else:
        translation.note(
            "save_steps",
            "checkpoints are saved by number of steps and by time; a fraction of all steps is not supported",
        )
    if config.save_total_limit:
        translation.set_value("train.save_total_limit", config.save_total_limit, "save_total_limit")


def _evaluation(translation: Translation) -> None:
    """Translate evaluation during training. Without `eval_steps`, transformers evaluates at each log step."""
    config = translation.config
    if config.eval_steps is not None and config.eval_steps < 1:
        translation.refuse("eval_steps", f"{config.eval_steps} is a fraction of all steps. Set a number of steps.")
        return
    translation.set_if_enabled("train.eval_steps", int(config.eval_steps or 0), "eval_steps")
    if config.load_best_model_at_end or config.early_stopping_steps:
        key = "load_best_model_at_end" if config.load_best_model_at_end else "early_stopping_steps"
        if not config.eval_steps:
            translation.refuse(key, "requires eval_steps. Set the number of steps between two evaluations.")
            return
    translation.set_if_enabled("train.load_best_model_at_end", config.load_best_model_at_end, "load_best_model_at_end")
    translation.set_if_enabled("train.early_stopping_patience", config.early_stopping_steps, "early_stopping_steps")


def _optimizer(translation: Translation) -> None:
    config = translation.config
    switches = [key for key in OPTIMIZER_SWITCHES if getattr(config, key)]
    if len(switches) > 1:
        translation.refuse(switches[1], f"cannot be combined with {switches[0]}. Remove one of the two.")
    if switches:
        OPTIMIZER_SWITCHES[switches[0]](translation)
        return
    name = ALIASES.get(config.optim, config.optim)
    if name not in optimizer_names():
        translation.refuse("optim", f"{config.optim!r} is not supported.{suggest(name, optimizer_names())}")
    translation.set_value("train.optim", name, "optim")


def optimizer_names() -> tuple[str, ...]:
    """Return the names of the supported optimizers."""
    return get_args(SFTConfig.model_fields["optim"].annotation)


def _set_optimizer(
    translation: Translation, switch: str, name: str, arguments: dict[str, Any], keys: tuple[str, ...]
) -> bool:
    """Set an optimizer and its arguments. Reject an optimizer without a counterpart."""
    if name not in optimizer_names():
        translation.refuse(
            switch,
            f"not supported: train.optim does not have {name!r}.{suggest(name, optimizer_names())} Remove it to train "
            "with AdamW.",
        )
        return False
    layerwise = [key for key in keys if key.endswith("_layerwise")]
    translation.set_value("train.optim", name, switch, *layerwise, "optim")
    optim_args = [f"{argument}={_as_text(value)}" for argument, value in arguments.items() if value is not None]
    if optim_args:
        argument_keys = [key for key in keys if key not in layerwise]
        translation.set_value("train.optim_args", ",".join(optim_args), *argument_keys)
    return True


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _targets(translation: Translation, key: str) -> None:
    modules = getattr(translation.config, key)
    translation.set_value("train.optim_target_modules", [IN_LAYERS] if modules == ["all"] else modules, key)


def _galore(translation: Translation) -> None:
    config = translation.config
    base = ALIASES.get(config.optim, config.optim)
    name = f"galore_{GALORE_VARIANTS.get(base, base)}{'_layerwise' if config.galore_layerwise else ''}"
    arguments = {
        "rank": config.galore_rank,
        "update_proj_gap": config.galore_update_interval,
        "scale": config.galore_scale,
        "proj_type": config.galore_proj_type,
    }
    keys = ("galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type", "galore_layerwise")
    if _set_optimizer(translation, "use_galore", name, arguments, keys):
        _targets(translation, "galore_target")


def _apollo(translation: Translation) -> None:
    config = translation.config
    arguments = {
        "rank": config.apollo_rank,
        "proj": config.apollo_proj,
        "proj_type": config.apollo_proj_type,
        "update_proj_gap": config.apollo_update_interval,
        "scale": config.apollo_scale,
        "scale_type": config.apollo_scale_type,
        "scale_front": config.apollo_scale_front or None,
    }
    suffixes = ("rank", "proj", "proj_type", "update_interval", "scale", "scale_type", "scale_front", "layerwise")
    name = f"apollo_adamw{'_layerwise' if config.apollo_layerwise else ''}"
    if _set_optimizer(translation, "use_apollo", name, arguments, tuple(f"apollo_{suffix}" for suffix in suffixes)):
        _targets(translation, "apollo_target")


def _badam(translation: Translation) -> None:
    config = translation.config
    if config.badam_mode != "layer":
        translation.refuse(
            "badam_mode", f"{config.badam_mode!r} is not supported. Set layer, which trains one block at a time."
        )
        return
    arguments = {
        "start_block": config.badam_start_block,
        "switch_mode": config.badam_switch_mode,
        "switch_block_every": config.badam_switch_interval,
    }
    keys = ("badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval")
    _set_optimizer(translation, "use_badam", "badam", arguments, keys)


def _adam_mini(translation: Translation) -> None:
    _set_optimizer(translation, "use_adam_mini", "adam_mini", {}, ())


def _muon(translation: Translation) -> None:
    _set_optimizer(translation, "use_muon", "muon", {}, ())


OPTIMIZER_SWITCHES = {
    "use_galore": _galore,
    "use_apollo": _apollo,
    "use_badam": _badam,
    "use_adam_mini": _adam_mini,
    "use_muon": _muon,
}
"""Switch -> function that translates its optimizer."""


def _stage_options(translation: Translation, stage: str) -> None:
    """Translate the options of a preference loss for which the stage's recipe has a field."""
    config, recipe = translation.config, RECIPES[stage]
    fields = getattr(recipe.model_fields["train"].annotation, "model_fields", {})
    for key, field in STAGE_KEYS.get(stage, {}).items():
        value = getattr(config, key)
        if value is None:
            continue
        if field not in fields:
            if config.is_set(key) and value != type(config).model_fields[key].default:
                translation.refuse(key, f"{value!r} is not supported: stage {stage} has no train.{field}. Remove it.")
            continue
        known = literal_choices(fields[field].annotation)
        if known and isinstance(value, str) and value not in known:
            translation.refuse(key, f"{value!r} is not supported.{suggest(value, known)}")
        translation.set_value(f"train.{field}", value, key)
    if stage == "dpo" and config.pref_ftx:
        translation.set_value("train.loss_type", [config.pref_loss, "sft"], "pref_loss", "pref_ftx")
        translation.set_value("train.loss_weights", [1.0, config.pref_ftx], "pref_ftx")


def literal_choices(annotation: Any) -> list[str]:
    """Return the strings that a type allows, including nested types; empty if any string is allowed."""
    arguments = get_args(annotation)
    return [
        choice
        for argument in arguments
        for choice in ([argument] if isinstance(argument, str) else literal_choices(argument))
    ]

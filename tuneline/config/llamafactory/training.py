"""LlamaFactory's keys of the training -> `train`, `evaluate` and the stage's own values of a recipe."""

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
"""Losses that LlamaFactory has under `stage: dpo`, and that are stages here."""

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
"""Stage -> key -> field of its `train` section; trl's names."""

GALORE_VARIANTS = {
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
    "adamw_bnb_8bit": "adamw_8bit",
    "adafactor": "adafactor",
}
"""Optimizer -> the one of transformers that projects its gradients."""

IN_LAYERS = r".*\.\d+\..*"
"""Matches what stands in a numbered layer: every linear module but the head, whatever the architecture calls them."""


def translate_stage(notes: Translation) -> str:
    """Return the stage of a recipe; one that is not here is refused."""
    theirs, loss = notes.written.stage, notes.written.pref_loss
    ours = loss if theirs == "dpo" and loss in LOSS_STAGES else STAGES.get(theirs, theirs)
    if ours not in RECIPES:
        notes.refuse(
            "stage",
            f"{theirs!r} has no counterpart yet: recipes have the stages "
            f"{', '.join(sorted(RECIPES))}. Take one of them.",
        )
    else:
        notes.put("stage", ours, *(("stage", "pref_loss") if ours in LOSS_STAGES else ("stage",)))
    return ours


def translate_training(notes: Translation, stage: str) -> None:
    """Translate the optimisation."""
    written = notes.written
    for key in SAME_NAME:
        notes.put(f"train.{key}", getattr(written, key), key)
    notes.put("train.max_steps", written.max_steps if written.max_steps > 0 else -1, "max_steps")
    notes.put_if("train.neftune_noise_alpha", written.neftune_noise_alpha or None, "neftune_noise_alpha")
    if stage == "kto" and written.per_device_train_batch_size == 1:
        _answers_in_a_pass(notes)
    _schedule(notes)
    _optimizer(notes)
    _limit(notes)
    _saving(notes)
    _watching(notes)
    notes.put_if("evaluate.max_new_tokens", written.max_new_tokens, "max_new_tokens")
    notes.put_if("evaluate.batch_size", written.per_device_eval_batch_size, "per_device_eval_batch_size")
    if stage in RECIPES and stage not in ("sft", "pretrain"):
        _of_stage(notes, stage)


def _answers_in_a_pass(notes: Translation) -> None:
    """KTO estimates on the answers of a pass how far the policy has moved, and one is too few."""
    steps = notes.written.gradient_accumulation_steps
    size = 2 if steps % 2 == 0 else steps
    notes.put("train.per_device_train_batch_size", size, "per_device_train_batch_size")
    notes.put("train.gradient_accumulation_steps", steps // size, "gradient_accumulation_steps")
    notes.tell(
        "per_device_train_batch_size",
        f"1 becomes {size}, with as many answers a step: on one answer, how far the policy has moved is noise",
    )


def _schedule(notes: Translation) -> None:
    written = notes.written
    known = get_args(SFTConfig.model_fields["lr_scheduler_type"].annotation)
    if written.lr_scheduler_type not in known:
        notes.refuse(
            "lr_scheduler_type",
            f"{written.lr_scheduler_type!r} has no counterpart.{suggest(written.lr_scheduler_type, known)}",
        )
    notes.put("train.lr_scheduler_type", written.lr_scheduler_type, "lr_scheduler_type")
    notes.put_if("train.lr_scheduler_kwargs", written.lr_scheduler_kwargs or None, "lr_scheduler_kwargs")
    if written.warmup_steps:
        notes.put("train.warmup_steps", written.warmup_steps, "warmup_steps")
        if written.warmup_ratio:
            notes.tell("warmup_ratio", "is not read: warmup_steps is set, and comes first, as in transformers")
    else:
        notes.put("train.warmup_steps", written.warmup_ratio, "warmup_ratio", "warmup_steps")


def _limit(notes: Translation) -> None:
    """Translate the limit of the gradients; layer by layer there is none, which LlamaFactory does not say."""
    written = notes.written
    if str(notes.recipe.get("train", {}).get("optim", "")).endswith("_layerwise"):
        notes.put("train.max_grad_norm", None, "max_grad_norm")
        if written.is_written("max_grad_norm"):
            notes.tell("max_grad_norm", "nothing limits gradients that are used layer by layer, there or here")
        return
    notes.put("train.max_grad_norm", written.max_grad_norm or None, "max_grad_norm")


def _saving(notes: Translation) -> None:
    written = notes.written
    if written.save_steps >= 1:
        notes.put("train.save_steps", int(written.save_steps), "save_steps")
    else:
        notes.tell("save_steps", "training state is saved by numbers of steps and by time, not by a share of all steps")
    if written.save_total_limit:
        notes.put("train.save_total_limit", written.save_total_limit, "save_total_limit")


def _watching(notes: Translation) -> None:
    """Translate evaluations while training; transformers evaluates at each log step where no number is given."""
    written = notes.written
    if written.eval_steps is not None and written.eval_steps < 1:
        notes.refuse("eval_steps", f"{written.eval_steps} is a share of all steps. Write a number of steps.")
        return
    notes.put_if("train.eval_steps", int(written.eval_steps or 0), "eval_steps")
    if written.load_best_model_at_end or written.early_stopping_steps:
        key = "load_best_model_at_end" if written.load_best_model_at_end else "early_stopping_steps"
        if not written.eval_steps:
            notes.refuse(key, "needs eval_steps, the steps between two evaluations. Write how many.")
            return
    notes.put_if("train.load_best_model_at_end", written.load_best_model_at_end, "load_best_model_at_end")
    notes.put_if("train.early_stopping_patience", written.early_stopping_steps, "early_stopping_steps")


def _optimizer(notes: Translation) -> None:
    written = notes.written
    asked = [key for key in OPTIMIZER_SWITCHES if getattr(written, key)]
    if len(asked) > 1:
        notes.refuse(asked[1], f"{asked[0]} is set as well, and a training has one optimizer. Keep one of the two.")
    if asked:
        OPTIMIZER_SWITCHES[asked[0]](notes)
        return
    name = ALIASES.get(written.optim, written.optim)
    if name not in optimizer_names():
        notes.refuse("optim", f"{written.optim!r} has no counterpart.{suggest(name, optimizer_names())}")
    notes.put("train.optim", name, "optim")


def optimizer_names() -> tuple[str, ...]:
    """Return the optimizers that a recipe may name."""
    return get_args(SFTConfig.model_fields["optim"].annotation)


def _take(notes: Translation, key: str, name: str, arguments: dict[str, Any], theirs: tuple[str, ...]) -> bool:
    """Write an optimizer and its arguments; refuse one that is not here."""
    if name not in optimizer_names():
        notes.refuse(
            key,
            f"has no counterpart yet: train.optim has no {name!r}.{suggest(name, optimizer_names())} Remove it "
            "to train with AdamW.",
        )
        return False
    notes.put("train.optim", name, key, *(each for each in theirs if each.endswith("_layerwise")), "optim")
    given = [f"{argument}={_as_text(value)}" for argument, value in arguments.items() if value is not None]
    if given:
        notes.put("train.optim_args", ",".join(given), *(each for each in theirs if not each.endswith("_layerwise")))
    return True


def _as_text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def _targets(notes: Translation, key: str) -> None:
    words = getattr(notes.written, key)
    notes.put("train.optim_target_modules", [IN_LAYERS] if words == ["all"] else words, key)


def _galore(notes: Translation) -> None:
    written = notes.written
    base = ALIASES.get(written.optim, written.optim)
    name = f"galore_{GALORE_VARIANTS.get(base, base)}{'_layerwise' if written.galore_layerwise else ''}"
    arguments = {
        "rank": written.galore_rank,
        "update_proj_gap": written.galore_update_interval,
        "scale": written.galore_scale,
        "proj_type": written.galore_proj_type,
    }
    theirs = ("galore_rank", "galore_update_interval", "galore_scale", "galore_proj_type", "galore_layerwise")
    if _take(notes, "use_galore", name, arguments, theirs):
        _targets(notes, "galore_target")


def _apollo(notes: Translation) -> None:
    written = notes.written
    arguments = {
        "rank": written.apollo_rank,
        "proj": written.apollo_proj,
        "proj_type": written.apollo_proj_type,
        "update_proj_gap": written.apollo_update_interval,
        "scale": written.apollo_scale,
        "scale_type": written.apollo_scale_type,
        "scale_front": written.apollo_scale_front or None,
    }
    theirs = ("rank", "proj", "proj_type", "update_interval", "scale", "scale_type", "scale_front", "layerwise")
    name = f"apollo_adamw{'_layerwise' if written.apollo_layerwise else ''}"
    if _take(notes, "use_apollo", name, arguments, tuple(f"apollo_{each}" for each in theirs)):
        _targets(notes, "apollo_target")


def _badam(notes: Translation) -> None:
    written = notes.written
    if written.badam_mode != "layer":
        notes.refuse(
            "badam_mode", f"{written.badam_mode!r} has no counterpart. Set layer, which trains block by block."
        )
        return
    arguments = {
        "start_block": written.badam_start_block,
        "switch_mode": written.badam_switch_mode,
        "switch_block_every": written.badam_switch_interval,
    }
    theirs = ("badam_mode", "badam_start_block", "badam_switch_mode", "badam_switch_interval")
    _take(notes, "use_badam", "badam", arguments, theirs)


def _adam_mini(notes: Translation) -> None:
    _take(notes, "use_adam_mini", "adam_mini", {}, ())


def _muon(notes: Translation) -> None:
    _take(notes, "use_muon", "muon", {}, ())


OPTIMIZER_SWITCHES = {
    "use_galore": _galore,
    "use_apollo": _apollo,
    "use_badam": _badam,
    "use_adam_mini": _adam_mini,
    "use_muon": _muon,
}
"""Switch -> what it asks for."""


def _of_stage(notes: Translation, stage: str) -> None:
    """Translate the values of a loss over pairs or labels, as far as the stage's recipe has a field for them."""
    written, recipe = notes.written, RECIPES[stage]
    fields = getattr(recipe.model_fields["train"].annotation, "model_fields", {})
    for key, field in STAGE_KEYS.get(stage, {}).items():
        value = getattr(written, key)
        if value is None:
            continue
        if field not in fields:
            if written.is_written(key) and value != type(written).model_fields[key].default:
                notes.refuse(key, f"{value!r} has no counterpart: stage {stage} has no train.{field}. Remove it.")
            continue
        known = literal_choices(fields[field].annotation)
        if known and isinstance(value, str) and value not in known:
            notes.refuse(key, f"{value!r} has no counterpart.{suggest(value, known)}")
        notes.put(f"train.{field}", value, key)
    if stage == "dpo" and written.pref_ftx:
        notes.put("train.loss_type", [written.pref_loss, "sft"], "pref_loss", "pref_ftx")
        notes.put("train.loss_weights", [1.0, written.pref_ftx], "pref_ftx")


def literal_choices(annotation: Any) -> list[str]:
    """Return the words that a field may hold, however deep they stand in its type; none where any is allowed."""
    found = get_args(annotation)
    return [word for each in found for word in ([each] if isinstance(each, str) else literal_choices(each))]

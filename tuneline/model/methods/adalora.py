"""AdaLoRA: ranks fall during training and stay where they matter (Zhang et al. 2023, arXiv:2303.10512).

peft adds the penalty for factors that are not orthogonal only where the model computes the loss itself, which it does
not do here; so it is computed by `penalty`.
"""

import warnings
from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import AdaLoraConfig
from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model import targets
from tuneline.model.methods import adapter_io, trainable_embedding_rows
from tuneline.model.methods.base import families
from tuneline.model.methods.peft_family import ADAPTER_NAME, PeftFamily, layer_options

IMPORTANCE_SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What peft's allocator remembers of each rank: name of a parameter -> tensor."""

SCHEDULE_KEYS = frozenset({"tinit", "tfinal", "deltaT", "target_r"})


class Adalora(PeftFamily):
    """Low-rank adapters with a budget of ranks."""

    name = "adalora"
    trains_new_tokens = True
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})
    ignored_keys: ClassVar[frozenset[str]] = PeftFamily.ignored_keys | SCHEDULE_KEYS

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse ranks that no layer has, and schedules without a step in which ranks fall."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        found = self.find(model, config)
        targets.check_rank(model, found, config.init_r, "method.init_r")
        trainable_embedding_rows.check(model, new_ids, [])
        if total_steps and config.tinit >= total_steps - config.tfinal:
            raise RecipeError(
                f"method.tinit: {config.tinit} steps before ranks fall and {config.tfinal} (tfinal) after it leave "
                f"none of the {total_steps} steps of training. Lower them, or train longer."
            )

    def peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> AdaLoraConfig:
        """Translate the recipe."""
        if total_steps < 1:
            raise RecipeError("method.type: adalora plans its ranks by the number of steps. Set train.max_steps.")
        options = config.model_dump(exclude={"type", "target_modules"})
        layers = layer_options(model, self.find(model, config))
        return AdaLoraConfig(
            total_step=total_steps,
            **options,
            **layers,
            **trainable_embedding_rows.lora_config_options(model, new_ids, []),
        )

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the ranks that are left, or all of them while some that were given up have grown again."""
        about = model.peft_config[ADAPTER_NAME]
        pattern = about.rank_pattern
        about.rank_pattern = pattern if pattern and _is_fully_masked(model, pattern) else None
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*tensor\\(s\\) have invalid shape")  # no ranks left: meant
            super().save(model, folder, base_name=base_name)
        about.rank_pattern = pattern

    def shapes(self, model: nn.Module, about: Any) -> dict[str, torch.Size]:
        """Cut the ranks that were given up; peft's own way reads values, and there are none."""
        pattern, about.rank_pattern = about.rank_pattern or {}, None
        shapes = super().shapes(model, about)
        for name, kept in pattern.items():
            layer, rank = f"base_model.model.{name.partition('.lora_')[0]}", sum(kept)
            for part in ("lora_A", "lora_E"):
                shapes[f"{layer}.{part}"] = torch.Size([rank, shapes[f"{layer}.{part}"][1]])
            shapes[f"{layer}.lora_B"] = torch.Size([shapes[f"{layer}.lora_B"][0], rank])
        return shapes

    def build(self, model: PreTrainedModel, about: Any) -> Any:
        """Give each layer the ranks that it was left with; peft would do so too, in the precision of the base."""
        pattern, about.rank_pattern = about.rank_pattern, None
        adapted = super().build(model, about)
        if pattern:
            adapted.base_model.resize_modules_by_rank_pattern(pattern, ADAPTER_NAME)
            adapted.base_model._cast_adapter_dtype(ADAPTER_NAME)
        return adapted

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Read an adapter; trained further, it keeps the ranks that it has."""
        adapted = super().attach_saved(model, folder, trainable=trainable)
        adapted.base_model.rankallocator = None
        adapted.peft_config[ADAPTER_NAME].rank_pattern = adapter_io.read_config(folder).get("rank_pattern")
        return adapted

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return the mean distance of the factors' Gram matrices from the identity, weighted."""
        weight = model.peft_config[ADAPTER_NAME].orth_reg_weight
        grams = [
            part @ part.T if ".lora_A." in name else part.T @ part
            for name, part in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        if not weight or not grams:
            return None
        distances = [torch.linalg.norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]
        return weight * torch.stack(distances).mean()

    def after_step(self, model: Any, step: int) -> None:
        """Weigh the ranks, and give up the least useful where the schedule says so."""
        tuner = model.base_model
        if getattr(tuner, "rankallocator", None) is None:
            return
        for name, part in tuner.named_parameters():
            if ".lora_" in name and part.requires_grad and part.grad is None:
                part.grad = torch.zeros_like(part)  # an expert that saw no token
        tuner.update_and_allocate(step + 1)

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Return how useful each rank was, and which are left."""
        allocator = getattr(model.base_model, "rankallocator", None)
        kept = {name: dict(getattr(allocator, name)) for name in IMPORTANCE_SCORES if allocator is not None}
        return {**kept, "rank_pattern": model.peft_config[ADAPTER_NAME].rank_pattern}

    def load_extra_state(self, model: Any, kept: dict[str, Any]) -> None:
        """Go on from there."""
        allocator = getattr(model.base_model, "rankallocator", None)
        for name in IMPORTANCE_SCORES if allocator is not None else ():
            setattr(allocator, name, dict(kept[name]))
        model.peft_config[ADAPTER_NAME].rank_pattern = kept["rank_pattern"]


def _is_fully_masked(model: Any, pattern: dict[str, Any]) -> bool:
    """Tell whether what a pattern leaves out is zero, so that the file may leave it out."""
    for name, kept in pattern.items():
        layer = name.partition(".lora_")[0]
        values = model.base_model.model.get_submodule(layer).lora_E[ADAPTER_NAME].detach()
        mask = torch.as_tensor(kept, device=values.device).view(-1)
        if len(mask) == len(values) and values[~mask].any():
            return False
    return True


families.register("adalora")(Adalora())

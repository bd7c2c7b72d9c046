"""AdaLoRA: reduces ranks during training by their importance (Zhang et al. 2023, arXiv:2303.10512).

`peft` adds the orthogonality penalty only when the model computes the loss itself. Here the loss is computed outside
the model, so `penalty` returns it.
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
"""State of `peft`'s rank allocator: dicts from parameter name to tensor."""

SCHEDULE_KEYS = frozenset({"tinit", "tfinal", "deltaT", "target_r"})


class Adalora(PeftFamily):
    """Low-rank adapters with a rank budget."""

    name = "adalora"
    trains_new_tokens = True
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})
    ignored_keys: ClassVar[frozenset[str]] = PeftFamily.ignored_keys | SCHEDULE_KEYS

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject ranks above a layer's size, and schedules without a step in which ranks decrease."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        layers = self.find_targets(model, config)
        targets.check_rank(model, layers, config.init_r, "method.init_r")
        trainable_embedding_rows.check(model, new_ids, [])
        if total_steps and config.tinit >= total_steps - config.tfinal:
            raise RecipeError(
                f"method.tinit: {config.tinit} initial steps and {config.tfinal} final steps (tfinal) leave none of "
                f"the {total_steps} training steps for reducing ranks. Lower them, or train longer."
            )

    def build_peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> AdaLoraConfig:
        """Translate the recipe."""
        if total_steps < 1:
            raise RecipeError("method.type: adalora needs the number of training steps. Set train.max_steps.")
        options = config.model_dump(exclude={"type", "target_modules"})
        layers = layer_options(model, self.find_targets(model, config))
        return AdaLoraConfig(
            total_step=total_steps,
            **options,
            **layers,
            **trainable_embedding_rows.lora_config_options(model, new_ids, []),
        )

    def save(self, model: Any, folder: Path, *, base_name: str = "") -> None:
        """Write the active ranks, or all ranks if a pruned one has become nonzero again."""
        peft_config = model.peft_config[ADAPTER_NAME]
        pattern = peft_config.rank_pattern
        peft_config.rank_pattern = pattern if pattern and _is_fully_masked(model, pattern) else None
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*tensor\\(s\\) have invalid shape"
            )  # a layer with no ranks left
            super().save(model, folder, base_name=base_name)
        peft_config.rank_pattern = pattern

    def expected_shapes(self, model: nn.Module, peft_config: Any) -> dict[str, torch.Size]:
        """Leave out pruned ranks; `peft` would read values, which a model on the meta device lacks."""
        pattern, peft_config.rank_pattern = peft_config.rank_pattern or {}, None
        shapes = super().expected_shapes(model, peft_config)
        for name, mask in pattern.items():
            layer, rank = f"base_model.model.{name.partition('.lora_')[0]}", sum(mask)
            for factor in ("lora_A", "lora_E"):
                shapes[f"{layer}.{factor}"] = torch.Size([rank, shapes[f"{layer}.{factor}"][1]])
            shapes[f"{layer}.lora_B"] = torch.Size([shapes[f"{layer}.lora_B"][0], rank])
        return shapes

    def build_adapter(self, model: PreTrainedModel, peft_config: Any) -> Any:
        """Give each layer its saved ranks in float32; `peft` would use the dtype of the base."""
        pattern, peft_config.rank_pattern = peft_config.rank_pattern, None
        adapted = super().build_adapter(model, peft_config)
        if pattern:
            adapted.base_model.resize_modules_by_rank_pattern(pattern, ADAPTER_NAME)
            adapted.base_model._cast_adapter_dtype(ADAPTER_NAME)
        return adapted

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Load an adapter; in further training its ranks stay fixed."""
        adapted = super().attach_saved(model, folder, trainable=trainable)
        adapted.base_model.rankallocator = None
        adapted.peft_config[ADAPTER_NAME].rank_pattern = adapter_io.read_config(folder).get("rank_pattern")
        return adapted

    def penalty(self, model: Any) -> torch.Tensor | None:
        """Return the weighted mean distance of the factors' Gram matrices from the identity."""
        coefficient = model.peft_config[ADAPTER_NAME].orth_reg_weight
        grams = [
            weight @ weight.T if ".lora_A." in name else weight.T @ weight
            for name, weight in model.named_parameters()
            if ".lora_A." in name or ".lora_B." in name
        ]
        if not coefficient or not grams:
            return None
        distances = [torch.linalg.norm(gram - torch.eye(len(gram)).to(gram)) for gram in grams]
        return coefficient * torch.stack(distances).mean()

    def after_step(self, model: Any, step: int) -> None:
        """Update the importance of ranks, and prune the least important ones by the schedule."""
        tuner = model.base_model
        if getattr(tuner, "rankallocator", None) is None:
            return
        for name, parameter in tuner.named_parameters():
            if ".lora_" in name and parameter.requires_grad and parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)  # an expert that received no token
        tuner.update_and_allocate(step + 1)

    def extra_state(self, model: Any) -> dict[str, Any]:
        """Return the importance of each rank, and the active ranks."""
        allocator = getattr(model.base_model, "rankallocator", None)
        scores = {name: dict(getattr(allocator, name)) for name in IMPORTANCE_SCORES if allocator is not None}
        return {**scores, "rank_pattern": model.peft_config[ADAPTER_NAME].rank_pattern}

    def load_extra_state(self, model: Any, state: dict[str, Any]) -> None:
        """Restore importance scores and active ranks."""
        allocator = getattr(model.base_model, "rankallocator", None)
        for name in IMPORTANCE_SCORES if allocator is not None else ():
            setattr(allocator, name, dict(state[name]))
        model.peft_config[ADAPTER_NAME].rank_pattern = state["rank_pattern"]


def _is_fully_masked(model: Any, pattern: dict[str, Any]) -> bool:
    """Return whether all ranks outside of a pattern are zero, so that the file can omit them."""
    for name, active in pattern.items():
        layer = name.partition(".lora_")[0]
        values = model.base_model.model.get_submodule(layer).lora_E[ADAPTER_NAME].detach()
        mask = torch.as_tensor(active, device=values.device).view(-1)
        if len(mask) == len(values) and values[~mask].any():
            return False
    return True


families.register("adalora")(Adalora())

"""VeRA: frozen random projections shared by all layers, and trained scales (Kopiczko et al. 2023, arXiv:2310.11454).

The projections are saved, because the same seed may give other random numbers on another machine.
"""

from typing import Any

from peft import VeraConfig
from torch import nn
from transformers import PreTrainedModel

from tuneline.model.methods.base import families
from tuneline.model.methods.peft_family import PeftFamily, layer_options


class Vera(PeftFamily):
    """Shared projections and two trained vectors per layer."""

    name = "vera"
    tensor_prefix = "vera_lambda_"
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject target names that this model does not have."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        self.find_targets(model, config)

    def build_peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> VeraConfig:
        """Translate the recipe."""
        options = config.model_dump(exclude={"type", "target_modules"})
        return VeraConfig(save_projection=True, **options, **layer_options(model, self.find_targets(model, config)))


families.register("vera")(Vera())

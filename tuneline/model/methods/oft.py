"""OFT: orthogonal blocks rotate the weights and keep angles between neurons (Qiu et al. 2023, arXiv:2306.07280)."""

from typing import Any

from peft import OFTConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneline.errors import RecipeError
from tuneline.model.methods.base import families
from tuneline.model.methods.peft_family import PeftFamily, layer_options


class Oft(PeftFamily):
    """Block-diagonal rotations of layer inputs."""

    name = "oft"
    tensor_prefix = "oft_R"
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject a block size that does not divide the inputs: `peft` would silently use another size."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        for name in self.find_targets(model, config).modules:
            layer: Any = model.get_submodule(name)
            if isinstance(layer, Conv1D):
                raise RecipeError(
                    f"method.type: oft supports linear layers only, and {name} is a Conv1D, which peft cannot rotate. "
                    "Set method.type: lora."
                )
            inputs = layer.in_features
            if inputs % config.oft_block_size:
                divisors = [str(size) for size in range(2, 129) if inputs % size == 0]
                raise RecipeError(
                    f"method.oft_block_size: {config.oft_block_size} does not divide the {inputs} inputs of {name}. "
                    f"Sizes that do: {', '.join(divisors)}."
                )

    def build_peft_config(
        self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]
    ) -> OFTConfig:
        """Translate the recipe."""
        options = config.model_dump(exclude={"type", "target_modules"})
        return OFTConfig(r=0, **options, **layer_options(model, self.find_targets(model, config)))


families.register("oft")(Oft())

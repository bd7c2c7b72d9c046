"""OFT: weights are turned by orthogonal blocks, and angles between neurons stay (Qiu et al. 2023, arXiv:2306.07280)."""

from typing import Any

from peft import OFTConfig
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from tuneline.errors import RecipeError
from tuneline.model.methods.base import families
from tuneline.model.methods.peft_family import PeftFamily, layer_options


class Oft(PeftFamily):
    """Block-diagonal rotations of the inputs."""

    name = "oft"
    marker = "oft_R"
    supported_quantization = frozenset({"bnb_4bit", "bnb_8bit", "torchao_int8"})

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse a block that does not divide: peft would take another size in silence."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        for name in self.find(model, config).modules:
            layer: Any = model.get_submodule(name)
            if isinstance(layer, Conv1D):
                raise RecipeError(
                    f"method.type: oft turns linear layers, and {name} is a Conv1D, which peft cannot turn. Set lora."
                )
            inputs = layer.in_features
            if inputs % config.oft_block_size:
                divisors = [str(size) for size in range(2, 129) if inputs % size == 0]
                raise RecipeError(
                    f"method.oft_block_size: {config.oft_block_size} does not divide the {inputs} inputs of {name}. "
                    f"Sizes that do: {', '.join(divisors)}."
                )

    def peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> OFTConfig:
        """Translate the recipe."""
        options = config.model_dump(exclude={"type", "target_modules"})
        return OFTConfig(r=0, **options, **layer_options(model, self.find(model, config)))


families.register("oft")(Oft())

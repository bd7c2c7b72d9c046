"""Prompt learning: prefix tuning, prompt tuning and P-tuning. None of them can be merged.

`peft` prepends the virtual tokens to the whole row and builds mask and positions itself. Therefore a row contains one
example, and packing arguments are dropped. With prompt tuning and P-tuning the logits start with those of the virtual
tokens; with prefix tuning, which writes keys and values into the cache, they do not.
"""

from pathlib import Path
from typing import Any, ClassVar

import torch
from peft import PrefixTuningConfig, PromptEncoderConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from tuneline.errors import RecipeError
from tuneline.model.methods import adapter_io
from tuneline.model.methods.base import ANY_QUANTIZATION, families, merge_error
from tuneline.model.methods.peft_family import ADAPTER_NAME, TASK_TYPE, PeftFamily


class PromptLearning(PeftFamily):
    """Base class of methods that train virtual tokens."""

    mergeable = False
    supports_packing = False
    supported_quantization = ANY_QUANTIZATION
    config_class: ClassVar[type]
    prepends_logits: ClassVar[bool] = True
    """Whether the logits start with those of the virtual tokens."""

    base_model_keys: ClassVar[tuple[str, ...]] = ("token_dim",)
    """Keys of a saved config whose values depend on the base model."""

    def build_peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Translate the recipe."""
        peft_config = self.config_class(task_type=TASK_TYPE, **config.model_dump(exclude={"type"}))
        if "num_attention_heads" not in self.base_model_keys:
            peft_config.num_attention_heads = 1  # peft requires it from every model, but uses it for the cache only
        return peft_config

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject a prompt that is longer than the context of the model."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        limit = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if limit is not None and config.num_virtual_tokens >= limit:
            raise RecipeError(
                f"method.num_virtual_tokens: {config.num_virtual_tokens} virtual tokens leave no room in the {limit} "
                "positions of this model. Set a lower number."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Add the virtual tokens and check that the model uses them."""
        adapted = super().attach(model, config, total_steps=total_steps, new_ids=new_ids)
        self.check_gradient_flow(adapted)
        return adapted

    def check_gradient_flow(self, model: Any) -> None:
        """Check that a gradient reaches the virtual tokens.

        Raises:
            RecipeError: The architecture does not support virtual tokens.
        """
        training = model.training
        ids = torch.tensor([[1, 2, 3]], device=model.device)
        try:
            with torch.enable_grad():
                prompt: torch.Tensor = model.prompt_encoder[ADAPTER_NAME].embedding.weight
                output = model.eval()(input_ids=ids).logits[0, -1].float().square().sum()
                (gradient,) = torch.autograd.grad(output, prompt)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise self._unsupported(model, f"{type(error).__name__}: {error}") from error
        finally:
            model.train(training)
        if not self.gradient_reaches_all(model, gradient):
            raise self._unsupported(model, "the output does not depend on them")

    def gradient_reaches_all(self, model: Any, gradient: torch.Tensor) -> bool:
        """Return whether a gradient with respect to the virtual tokens shows that the model uses them."""
        return bool(gradient.any())

    def _unsupported(self, model: Any, reason: str) -> RecipeError:
        return RecipeError(
            f"method.type: {self.name} prepends virtual tokens, which {type(model.get_base_model()).__name__} does not "
            f"support ({reason}). Set method.type: lora."
        )

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare the recipe with the files; reject virtual tokens whose encoder network was not saved."""
        self._check_method(folder)
        self._check_no_network(folder)
        super().check_continuation(folder, config, model)

    def _check_no_network(self, folder: Path) -> None:
        uses_network = adapter_io.read_config(folder).get("prefix_projection", False) or self.name == "p_tuning"
        if uses_network:
            raise RecipeError(
                f"load.adapters: {folder} contains virtual tokens computed by a small network during training; peft "
                "saves the tokens, not the network, so it cannot be trained further. Train a new adapter, or use lora."
            )

    def expected_shapes(self, model: nn.Module, peft_config: Any) -> dict[str, torch.Size]:
        """Take sizes from this model instead of the file, and compare the two."""
        saved_sizes = {key: getattr(peft_config, key) for key in self.base_model_keys}
        for key in self.base_model_keys:
            setattr(peft_config, key, None)
        shapes = super().expected_shapes(model, peft_config)
        for key, size in saved_sizes.items():
            if size not in (None, getattr(peft_config, key)):
                raise ValueError(f"the adapter has {key} {size}, the model has {getattr(peft_config, key)}")
        return shapes

    def build_adapter(self, model: PreTrainedModel, peft_config: Any) -> Any:
        """Build in the requested mode: for inference `peft` keeps the tokens only, without the encoder network."""
        return get_peft_model(model, peft_config)

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Build the virtual tokens from the saved config and load them."""
        if trainable:
            self._check_no_network(folder)
        return super().attach_saved(model, folder, trainable=trainable)

    def merge(self, model: Any) -> PreTrainedModel:
        """Raise an error: virtual tokens cannot be merged into weights."""
        raise merge_error(self.name)

    def num_prefix_logits(self, model: Any) -> int:
        """Return the number of logits before those of the text."""
        active = self.prepends_logits and not getattr(model, "_adapters_disabled", False)
        return int(model.peft_config[ADAPTER_NAME].num_virtual_tokens) if active else 0

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Compute logits at positions of the text; packing arguments are dropped."""
        keep = keep + self.num_prefix_logits(model)
        return model(input_ids=inputs["input_ids"], logits_to_keep=keep).logits[0]


class PrefixTuning(PromptLearning):
    """Trained keys and values prepended in every layer (Li and Liang 2021, arXiv:2101.00190)."""

    name = "prefix"
    supports_gradient_checkpointing = False
    config_class = PrefixTuningConfig
    prepends_logits = False
    base_model_keys = ("token_dim", "num_layers", "num_attention_heads")

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Reject architectures without keys and values of one shape in every layer."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise RecipeError(
                "load.gradient_checkpointing: prefix tuning uses the cache, which gradient checkpointing disables. Set "
                "gradient_checkpointing: none, or method.type: prompt."
            )
        text_config = model.config.get_text_config() if isinstance(model, PreTrainedModel) else None
        stateful = getattr(model, "_is_stateful", False) or not hasattr(text_config, "num_attention_heads")
        if stateful or getattr(text_config, "kv_lora_rank", None):
            raise RecipeError(
                f"method.type: prefix writes keys and values into the cache, and the cache of {type(model).__name__} "
                "has a different layout. Set method.type: prompt or lora."
            )

    def gradient_reaches_all(self, model: Any, gradient: torch.Tensor) -> bool:
        """Check keys and values of every layer: a layer without a cache would ignore them."""
        peft_config = model.peft_config[ADAPTER_NAME]
        if peft_config.prefix_projection:
            return super().gradient_reaches_all(model, gradient)
        return bool(gradient.view(len(gradient), 2 * peft_config.num_layers, -1).any(-1).any(0).all())


class PromptTuning(PromptLearning):
    """Trained embeddings prepended to the text (Lester et al. 2021, arXiv:2104.08691)."""

    name = "prompt"
    config_class = PromptTuningConfig

    def build_peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Initialize from embeddings of the vocabulary, which the paper found better than noise (section 3.2)."""
        peft_config = super().build_peft_config(model, config, total_steps, new_ids)
        peft_config.prompt_tuning_init = "SAMPLE_VOCAB"
        return peft_config


class PTuning(PromptLearning):
    """A prompt computed by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    name = "p_tuning"
    config_class = PromptEncoderConfig


for _family in (PrefixTuning, PromptTuning, PTuning):
    families.register(_family.name)(_family())

"""Virtual tokens in front of the text: prefix tuning, prompt tuning, P-tuning. None of them can be merged.

peft puts the virtual tokens in front of the whole row and makes mask and positions itself. So a row holds one example,
and what a packed row tells the model is left out. With prompt tuning and P-tuning the logits begin with those of the
virtual tokens; with prefix tuning, which writes keys and values into the cache, they do not.
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
    """What the three have in common."""

    mergeable = False
    supports_packing = False
    supported_quantization = ANY_QUANTIZATION
    config_class: ClassVar[type]
    prepends_logits: ClassVar[bool] = True
    """Logits begin with those of the virtual tokens."""

    sizes: ClassVar[tuple[str, ...]] = ("token_dim",)
    """What in a saved config follows from the base."""

    def peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Translate the recipe."""
        made = self.config_class(task_type=TASK_TYPE, **config.model_dump(exclude={"type"}))
        if "num_attention_heads" not in self.sizes:
            made.num_attention_heads = 1  # peft asks every model for it, and needs it for a cache alone
        return made

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse a prompt that is longer than the model's positions."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        longest = getattr(getattr(model, "config", None), "max_position_embeddings", None)
        if longest is not None and config.num_virtual_tokens >= longest:
            raise RecipeError(
                f"method.num_virtual_tokens: {config.num_virtual_tokens} leave no room in the {longest} positions of "
                "this model. Set fewer."
            )

    def attach(
        self, model: PreTrainedModel, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()
    ) -> Any:
        """Add the virtual tokens, and see that the model takes notice of them."""
        adapted = super().attach(model, config, total_steps=total_steps, new_ids=new_ids)
        self.check_gradient_flow(adapted)
        return adapted

    def check_gradient_flow(self, model: Any) -> None:
        """Compute a gradient, which reaches every virtual token where the architecture can do this.

        Raises:
            RecipeError: It cannot.
        """
        training = model.training
        ids = torch.tensor([[1, 2, 3]], device=model.device)
        try:
            with torch.enable_grad():
                prompt: torch.Tensor = model.prompt_encoder[ADAPTER_NAME].embedding.weight
                seen = model.eval()(input_ids=ids).logits[0, -1].float().square().sum()
                (gradient,) = torch.autograd.grad(seen, prompt)
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
            raise self._unfit(model, f"{type(error).__name__}: {error}") from error
        finally:
            model.train(training)
        if not self.gradient_reaches_all(model, gradient):
            raise self._unfit(model, "what is computed does not depend on them")

    def gradient_reaches_all(self, model: Any, gradient: torch.Tensor) -> bool:
        """Tell whether a gradient with respect to the virtual tokens says that the model looks at them."""
        return bool(gradient.any())

    def _unfit(self, model: Any, why: str) -> RecipeError:
        return RecipeError(
            f"method.type: {self.name} puts virtual tokens in front, and {type(model.get_base_model()).__name__} does "
            f"not take them ({why}). Set method.type: lora."
        )

    def check_continuation(self, folder: Path, config: Any, model: nn.Module | None = None) -> None:
        """Compare with the files, and refuse those that hold what a network made, but not the network."""
        self._check_kind(folder)
        self._refuse_network(folder)
        super().check_continuation(folder, config, model)

    def _refuse_network(self, folder: Path) -> None:
        made = adapter_io.read_config(folder).get("prefix_projection", False) or self.name == "p_tuning"
        if made:
            raise RecipeError(
                f"load.adapters: {folder} holds virtual tokens that a small network made while training; peft saves "
                "the tokens, not the network, so it cannot be trained further. Train a new adapter, or use lora."
            )

    def shapes(self, model: nn.Module, about: Any) -> dict[str, torch.Size]:
        """Let peft take the sizes from this model, not from the file."""
        saved_sizes = {key: getattr(about, key) for key in self.sizes}
        for key in self.sizes:
            setattr(about, key, None)
        shapes = super().shapes(model, about)
        for key, size in saved_sizes.items():
            if size not in (None, getattr(about, key)):
                raise ValueError(f"it has {key} {size}, and this model {getattr(about, key)}")
        return shapes

    def build(self, model: PreTrainedModel, about: Any) -> Any:
        """Build for what follows: for answering, peft keeps the tokens alone, without the network that made them."""
        return get_peft_model(model, about)

    def attach_saved(self, model: PreTrainedModel, folder: Path, *, trainable: bool = False) -> Any:
        """Build the virtual tokens as the files say, and read them."""
        if trainable:
            self._refuse_network(folder)
        return super().attach_saved(model, folder, trainable=trainable)

    def merge(self, model: Any) -> PreTrainedModel:
        """Refuse: there are no weights that virtual tokens could be folded into."""
        raise merge_error(self.name)

    def num_prefix_logits(self, model: Any) -> int:
        """Return how many logits stand before those of the text."""
        active = self.prepends_logits and not getattr(model, "_adapters_disabled", False)
        return int(model.peft_config[ADAPTER_NAME].num_virtual_tokens) if active else 0

    def logits(self, model: Any, inputs: dict[str, Any], keep: torch.Tensor) -> torch.Tensor:
        """Compute logits at positions of the text; what tells a packed row apart is left out."""
        keep = keep + self.num_prefix_logits(model)
        return model(input_ids=inputs["input_ids"], logits_to_keep=keep).logits[0]


class PrefixTuning(PromptLearning):
    """Keys and values in front of each layer (Li and Liang 2021, arXiv:2101.00190)."""

    name = "prefix"
    supports_gradient_checkpointing = False
    config_class = PrefixTuningConfig
    prepends_logits = False
    sizes = ("token_dim", "num_layers", "num_attention_heads")

    def check(self, model: nn.Module, config: Any, *, total_steps: int = 0, new_ids: tuple[int, ...] = ()) -> None:
        """Refuse architectures without keys and values of one shape in every layer."""
        super().check(model, config, total_steps=total_steps, new_ids=new_ids)
        if any(getattr(module, "gradient_checkpointing", False) for module in model.modules()):
            raise RecipeError(
                "load.gradient_checkpointing: prefix tuning writes into the cache, which checkpointing switches off. "
                "Set gradient_checkpointing: none, or method.type: prompt."
            )
        about = model.config.get_text_config() if isinstance(model, PreTrainedModel) else None
        stateful = getattr(model, "_is_stateful", False) or not hasattr(about, "num_attention_heads")
        if stateful or getattr(about, "kv_lora_rank", None):
            raise RecipeError(
                f"method.type: prefix writes keys and values in front of each layer, and {type(model).__name__} holds "
                "something else in its cache. Set method.type: prompt or lora."
            )

    def gradient_reaches_all(self, model: Any, gradient: torch.Tensor) -> bool:
        """Ask it of the keys and of the values of every layer; a layer without a cache has no use for them."""
        about = model.peft_config[ADAPTER_NAME]
        if about.prefix_projection:
            return super().gradient_reaches_all(model, gradient)
        return bool(gradient.view(len(gradient), 2 * about.num_layers, -1).any(-1).any(0).all())


class PromptTuning(PromptLearning):
    """Embeddings in front of the text (Lester et al. 2021, arXiv:2104.08691)."""

    name = "prompt"
    config_class = PromptTuningConfig

    def peft_config(self, model: PreTrainedModel, config: Any, total_steps: int, new_ids: tuple[int, ...]) -> Any:
        """Start from words of the vocabulary, which the paper found better than noise (section 3.2)."""
        made = super().peft_config(model, config, total_steps, new_ids)
        made.prompt_tuning_init = "SAMPLE_VOCAB"
        return made


class PTuning(PromptLearning):
    """A prompt made by a small network (Liu et al. 2021, arXiv:2103.10385)."""

    name = "p_tuning"
    config_class = PromptEncoderConfig


for _family in (PrefixTuning, PromptTuning, PTuning):
    families.register(_family.name)(_family())

"""Load a base model or a checkpoint for training or answering."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers import logging as transformers_logging
from transformers.utils import is_flash_attn_2_available

from tuneline.errors import RecipeError
from tuneline.model import attention as _registers_segment  # noqa: F401


def load_model(folder: Path, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """Load a causal language model from a directory onto the device that there is.

    Args:
        folder: As `save_pretrained` leaves it.
        dtype: Type of the weights.
        attention: `sdpa`, or `segment` or `flash_attention_2` for packed rows.

    Raises:
        RecipeError: The attention needs what this machine lacks.
    """
    if attention == "flash_attention_2" and not is_flash_attn_2_available():
        raise RecipeError(
            "train.attention: flash_attention_2 needs a CUDA device and the package flash-attn, and they are not both "
            "here. Set train.attention: segment."
        )
    transformers_logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention)
    return model.to("cuda" if torch.cuda.is_available() else "cpu")

"""BAdam (Luo et al. 2024, arXiv:2404.02827): the optimizer of its library, with a state that can be saved.

The library trains one block of layers at a time with AdamW on float32 copies, and freezes all others. This module adds
a resumable state, weight decay that excludes norms and biases, and suppresses its output.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from badam import BlockOptimizer  # type: ignore[import-untyped]
from torch.optim import AdamW


class ResumableBAdam(BlockOptimizer):
    """Trains one block of layers at a time."""

    def __init__(
        self,
        model: Any,
        groups: list[dict[str, Any]],
        blocks: list[list[str]],
        adamw_options: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        """Initialize the optimizer with its first block.

        Args:
            model: All its parameters are trained.
            groups: Parameters and their weight decay.
            blocks: For each block, the prefixes of its parameter names.
            adamw_options: Options of AdamW.
            options: Options of the library: `switch_block_every`, `switch_mode`, `start_block`.
        """
        self._decay = {id(part): group["weight_decay"] for group in groups for part in group["params"]}
        self._active = 0
        fixed = {"start_block": 0} if options.get("switch_mode") == "fixed" else {}
        with _suppress_output():
            super().__init__(
                base_optimizer=AdamW(groups, **adamw_options),
                named_parameters_list=list(model.named_parameters()),
                block_prefix_list=blocks,
                **{"switch_mode": "random", **fixed, **options},
                verbose=0,
            )
        del self.__dict__["state_dict"]  # bound to the state of AdamW alone

    def switch_trainable_params(self, verbose: int | None = None) -> None:
        """Switch to the next block, with parameter groups by weight decay."""
        self._active = self.current_block_idx
        with _suppress_output():
            super().switch_trainable_params(verbose=0)
        groups: dict[float, list[torch.Tensor]] = {}
        for index, copy in self.param_idx2hp.items():
            groups.setdefault(self._decay[id(self.param_idx2lp[index])], []).append(copy)
        self.base_optimizer.param_groups = [
            {**self.defaults, "weight_decay": decay, "params": parts} for decay, parts in groups.items()
        ]

    def eval(self) -> None:
        """Mark all parameters as trainable, as before the training."""
        for _, part in self.named_parameters_list:
            part.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Return the active block, its AdamW state and float32 copies, and the order of blocks."""
        return {
            "adamw": self.base_optimizer.state_dict(),
            "copies": [copy.detach() for copy in self.param_idx2hp.values()],
            "active": self._active,
            "next": self.current_block_idx,
            "order": list(getattr(self, "block_order", [])),
            "step": self.global_step,
            "rates": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Switch to the block of a state and restore it."""
        if state_dict["active"] != self._active:
            mode: str = self.switch_mode
            self.switch_mode: str = "fixed"  # prevents a random choice of the next block
            self.current_block_idx = state_dict["active"]
            self.switch_trainable_params()
            self.switch_mode = mode
        with torch.no_grad():
            for copy, value in zip(self.param_idx2hp.values(), state_dict["copies"], strict=True):
                copy.copy_(value)
        self.base_optimizer.load_state_dict(state_dict["adamw"])
        self.current_block_idx, self.global_step = state_dict["next"], state_dict["step"]
        self.block_order = list(state_dict["order"])
        for group, rate in zip(self.param_groups, state_dict["rates"], strict=True):
            group["lr"] = rate


@contextlib.contextmanager
def _suppress_output() -> Iterator[None]:
    """Suppress the library's prints of its blocks and its warnings about float32."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

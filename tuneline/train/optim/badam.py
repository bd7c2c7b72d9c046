"""BAdam (Luo et al. 2024, arXiv:2404.02827) of its own library, made to be resumed.

The library trains one block of layers at a time, with AdamW on float32 copies of it, and freezes all others. What it
lacks is here: a state that can be saved, weight decay that leaves norms and biases out, and silence.
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
    """One block at a time."""

    def __init__(
        self,
        model: Any,
        groups: list[dict[str, Any]],
        blocks: list[list[str]],
        of_adamw: dict[str, Any],
        options: dict[str, Any],
    ) -> None:
        """Begin with the first block.

        Args:
            model: Every parameter of it is trained.
            groups: Parameters and their weight decay.
            blocks: For each block, what the names of its parameters begin with.
            of_adamw: Options of AdamW.
            options: Options of the library: `switch_block_every`, `switch_mode`, `start_block`.
        """
        self._decay = {id(part): group["weight_decay"] for group in groups for part in group["params"]}
        self._active = 0
        fixed = {"start_block": 0} if options.get("switch_mode") == "fixed" else {}
        with _quiet():
            super().__init__(
                base_optimizer=AdamW(groups, **of_adamw),
                named_parameters_list=list(model.named_parameters()),
                block_prefix_list=blocks,
                **{"switch_mode": "random", **fixed, **options},
                verbose=0,
            )
        del self.__dict__["state_dict"]  # that of AdamW alone

    def switch_trainable_params(self, verbose: int | None = None) -> None:
        """Go to the next block, in groups by weight decay."""
        self._active = self.current_block_idx
        with _quiet():
            super().switch_trainable_params(verbose=0)
        groups: dict[float, list[torch.Tensor]] = {}
        for index, copied in self.param_idx2hp.items():
            groups.setdefault(self._decay[id(self.param_idx2lp[index])], []).append(copied)
        self.base_optimizer.param_groups = [
            {**self.defaults, "weight_decay": decay, "params": parts} for decay, parts in groups.items()
        ]

    def eval(self) -> None:
        """Let all weights be trained again, as they were before."""
        for _, part in self.named_parameters_list:
            part.requires_grad_(True)

    def state_dict(self) -> dict[str, Any]:
        """Return where it stands, and AdamW's state of the block."""
        return {
            "adamw": self.base_optimizer.state_dict(),
            "copies": [copied.detach() for copied in self.param_idx2hp.values()],
            "active": self._active,
            "next": self.current_block_idx,
            "order": list(getattr(self, "block_order", [])),
            "step": self.global_step,
            "rates": [group["lr"] for group in self.param_groups],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the block of a state, and on from there."""
        if state_dict["active"] != self._active:
            mode: str = self.switch_mode
            self.switch_mode: str = "fixed"  # no other block is drawn
            self.current_block_idx = state_dict["active"]
            self.switch_trainable_params()
            self.switch_mode = mode
        with torch.no_grad():
            for copied, saved in zip(self.param_idx2hp.values(), state_dict["copies"], strict=True):
                copied.copy_(saved)
        self.base_optimizer.load_state_dict(state_dict["adamw"])
        self.current_block_idx, self.global_step = state_dict["next"], state_dict["step"]
        self.block_order = list(state_dict["order"])
        for group, rate in zip(self.param_groups, state_dict["rates"], strict=True):
            group["lr"] = rate


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Let the library neither print its blocks nor warn of float32."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield

"""Muon (Jordan et al. 2024) for hidden matrices and AdamW for all other parameters, as one optimizer.

Muon orthogonalizes the update of a hidden matrix; embeddings, the head and vectors are trained by AdamW. With
`adjust_lr_fn: match_rms_adamw` its steps are as long as those of AdamW (Liu et al. 2025, arXiv:2502.16982), so one
learning rate suits both.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Two optimizers that share their parameter groups with this one, so that a scheduler updates both."""

    def __init__(
        self,
        model: Any,
        groups: list[dict[str, Any]],
        muon_options: dict[str, Any],
        adamw_options: dict[str, Any],
    ) -> None:
        """Split the parameter groups between the two optimizers.

        Args:
            model: Defines which parameters are embeddings and head.
            groups: Parameters and their weight decay.
            muon_options: Options of `torch.optim.Muon`.
            adamw_options: Options of `torch.optim.AdamW`.
        """
        outer = {id(part) for part in _embeddings_and_head(model)}
        hidden: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in groups:
            for target, by_muon in ((hidden, True), (rest, False)):
                parts = [part for part in group["params"] if (_is_matrix(part) and id(part) not in outer) is by_muon]
                target.append({**group, "params": parts})
        self._parts: list[Optimizer] = []
        for optimizer, members, options in ((Muon, hidden, muon_options), (AdamW, rest, adamw_options)):
            non_empty = [_scale_lr(group, options["lr"], muon_options["lr"]) for group in members if group["params"]]
            if non_empty:
                self._parts.append(optimizer(non_empty, **options))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step with both optimizers."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both optimizers."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the states of both optimizers."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def _scale_lr(group: dict[str, Any], optimizer_lr: float, recipe_lr: float) -> dict[str, Any]:
    """Keep the ratio between the learning rate of a group and that of the recipe (LoRA+)."""
    return {**group, "lr": optimizer_lr * group["lr"] / recipe_lr} if "lr" in group else group


def _is_matrix(part: nn.Parameter) -> bool:
    return part.ndim == 2 and min(part.shape) > 1


def _embeddings_and_head(model: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of the embeddings and the head, including their adapters."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield from module.parameters()

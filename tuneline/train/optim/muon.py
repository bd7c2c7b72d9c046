"""Muon (Jordan et al. 2024) on matrices, AdamW on the rest, as one optimizer.

Muon makes the update of a hidden matrix orthogonal; embeddings, the head and vectors are AdamW's. With
`adjust_lr_fn: match_rms_adamw` its steps are as long as AdamW's (Liu et al. 2025, arXiv:2502.16982), so that one
learning rate does for both.
"""

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import AdamW, Muon, Optimizer


class MuonWithAdamW(Optimizer):
    """Two optimizers that share their groups with this one, so that a schedule reaches them."""

    def __init__(
        self,
        model: Any,
        groups: list[dict[str, Any]],
        of_muon: dict[str, Any],
        of_adamw: dict[str, Any],
    ) -> None:
        """Part the groups.

        Args:
            model: It says what are its embeddings and its head.
            groups: Parameters and their weight decay.
            of_muon: Options of `torch.optim.Muon`.
            of_adamw: Options of `torch.optim.AdamW`.
        """
        outside = {id(part) for part in _outside(model)}
        hidden: list[dict[str, Any]] = []
        rest: list[dict[str, Any]] = []
        for group in groups:
            for taken, wanted in ((hidden, True), (rest, False)):
                parts = [part for part in group["params"] if (_is_matrix(part) and id(part) not in outside) is wanted]
                taken.append({**group, "params": parts})
        self._parts: list[Optimizer] = []
        for kind, taken, options in ((Muon, hidden, of_muon), (AdamW, rest, of_adamw)):
            filled = [_with_rate(group, options["lr"], of_muon["lr"]) for group in taken if group["params"]]
            if filled:
                self._parts.append(kind(filled, **options))
        super().__init__([group for part in self._parts for group in part.param_groups], {})
        self._share()

    def _share(self) -> None:
        self.param_groups = [group for part in self._parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Let both take a step."""
        for part in self._parts:
            part.step()

    def state_dict(self) -> dict[str, Any]:
        """Return both states."""
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give both their states."""
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self._share()


def _with_rate(group: dict[str, Any], own: float, asked: float) -> dict[str, Any]:
    """Keep the ratio of a group's learning rate to the recipe's (LoRA+)."""
    return {**group, "lr": own * group["lr"] / asked} if "lr" in group else group


def _is_matrix(part: nn.Parameter) -> bool:
    return part.ndim == 2 and min(part.shape) > 1


def _outside(model: Any) -> Iterator[nn.Parameter]:
    """Yield the parameters of embeddings and head, adapters of theirs included."""
    for module in (model.get_input_embeddings(), model.get_output_embeddings()):
        if module is not None:
            yield from module.parameters()

"""Switch the levers on that a recipe asks for and a model allows, and hold them against the plain model first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from tuneline.config.training.base import LeversConfig
from tuneline.model.methods.base import MethodFamily
from tuneline.train import token_losses
from tuneline.train.levers import attention, fused, head, memory, pointwise

Inputs = dict[str, Any]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest relative difference of loss and gradients that is rounding; `ROUNDED` in 16 bits."""

HALF_PRECISION_TOLERANCE = 0.2
PROBE_SCALE = 0.01
PROBE_SEED = 0


@dataclass
class Levers:
    """What is on."""

    family: MethodFamily
    model: Any
    decisions: dict[str, str] = field(default_factory=dict)
    """Lever -> on, or why not."""

    undo: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Lever -> what switches it off, of those that need nothing else."""

    head_loss: bool = False
    fused_layers: list[Any] = field(default_factory=list)
    keeps_memory: bool = False

    def token_losses(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropies (nats) [N] of a row's trained tokens, and the positions [N] they stand behind."""
        if self.head_loss:
            return head.token_losses(self.model, inputs)
        return token_losses.token_losses(self.family, self.model, inputs)

    def switch_head(self, *, on: bool) -> None:
        """Compute the loss chunk by chunk, or as the model does."""
        self.head_loss = on

    def switch_layers(self, *, on: bool) -> None:
        """Fuse LoRA's layers, or leave them to peft."""
        fused.disable(self.fused_layers)
        self.fused_layers = fused.find_layers(self.model) if on else []
        fused.enable(self.fused_layers, self.model)

    def switch(self, name: str, enable: Callable[[], Callable[[], None]], *, on: bool) -> None:
        """Switch a lever on by a function that returns what undoes it, or off by what that returned."""
        self.undo.pop(name, lambda: None)()
        if on:
            self.undo[name] = enable()

    def keep_memory(self) -> str:
        """Keep what is freed for the next step."""
        memory.enable()
        self.keeps_memory = True
        return "on"

    def remove(self) -> None:
        """Leave a plain model behind."""
        self.switch_head(on=False)
        self.switch_layers(on=False)
        while self.undo:
            self.undo.popitem()[1]()
        if self.keeps_memory:
            memory.disable()
            self.keeps_memory = False


def apply_levers(
    family: MethodFamily,
    model: Any,
    config: LeversConfig,
    inputs: Inputs,
    autocast: torch.dtype | None,
    *,
    recomputes_parts: bool = False,
) -> Levers:
    """Switch levers on, one by one, each held against the plain model.

    Args:
        family: The method's.
        model: With its adapter, in training mode.
        config: What the recipe asks for.
        inputs: A short packed row, on the model's device.
        autocast: Type of the computation where weights have several.
        recomputes_parts: Activations are recomputed but for products.
    """
    levers = Levers(family, model)
    probe = _Probe(levers, inputs, autocast)
    for name, why, switch in _ways(levers, probe.computed, recomputes_parts=recomputes_parts):
        if not getattr(config, name):
            levers.decisions[f"levers.{name}"] = "off, as the recipe says"
        elif why:
            levers.decisions[f"levers.{name}"] = f"stepped aside: {why}"
        else:
            levers.decisions[f"levers.{name}"] = probe.held(switch) if switch else levers.keep_memory()
    return levers


def _ways(
    levers: Levers, computed: torch.dtype, *, recomputes_parts: bool
) -> list[tuple[str, str, Callable[..., None] | None]]:
    """Return each lever, what keeps it from working here, and what switches it."""
    model = levers.model
    norms, gates, rotation = pointwise.find_norms(model), pointwise.find_gates(model), pointwise.find_rotation(model)

    def fuses(name: str, fuse: Callable[[Any], Callable[[], None]], found: Any) -> Callable[..., None]:
        return partial(levers.switch, name, partial(fuse, found))

    why_not_blocks = attention.unsupported_reason(model, computed, recomputes_parts=recomputes_parts)
    blocks = partial(levers.switch, "blocked_attention", partial(attention.enable, model))
    return [
        ("head_loss", head.unsupported_reason(levers.family, model), levers.switch_head),
        ("fused_lora", fused.unsupported_reason(model, recomputes_parts=recomputes_parts), levers.switch_layers),
        ("blocked_attention", why_not_blocks, blocks),
        ("fused_norms", pointwise.unsupported_reason(norms), fuses("fused_norms", pointwise.fuse_norms, norms)),
        (
            "fused_rotation",
            pointwise.unsupported_reason(rotation),
            fuses("fused_rotation", pointwise.fuse_rotation, rotation),
        ),
        ("fused_gates", pointwise.unsupported_reason(gates), fuses("fused_gates", pointwise.fuse_gates, gates)),
        ("keep_memory", memory.unsupported_reason(), None),
    ]


class _Probe:
    """Compares loss and gradients on a short row; leaves weights, gradients and random numbers as they were."""

    def __init__(self, levers: Levers, inputs: Inputs, autocast: torch.dtype | None) -> None:
        self._levers, self._inputs, self._autocast = levers, inputs, autocast
        self._plain: tuple[float, list[torch.Tensor]] | None = None

    def held(self, switch: Callable[..., None]) -> str:
        """Switch a lever on and keep it on if it computes the same; say what was done."""
        with torch.random.fork_rng(), _nowhere_zero(self._levers.model):
            if self._plain is None:
                self._plain = self._measure()
            switch(on=True)
            difference = self._difference()
        if difference <= TOLERANCE.get(self.computed, HALF_PRECISION_TOLERANCE):
            return f"on, relative difference {difference:.1e} from the plain model"
        switch(on=False)
        return f"switched off: loss or gradients differ from the plain model's by {difference:.1e}, relatively"

    @property
    def computed(self) -> torch.dtype:
        """Type of the computation."""
        return self._autocast or next(self._levers.model.parameters()).dtype

    def _difference(self) -> float:
        assert self._plain is not None, "the plain model is measured first"
        (before, gradients), (after, others) = self._plain, self._measure()
        norm = sum(float(one.double().square().sum()) for one in gradients) ** 0.5
        apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(gradients, others, strict=True))
        return max(abs(after - before) / max(abs(before), 1e-9), apart**0.5 / max(norm, 1e-30))

    def _measure(self) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(PROBE_SEED)
        trained = [part for part in self._levers.model.parameters() if part.requires_grad]
        kind = self._inputs["input_ids"].device.type
        with torch.autocast(kind, self._autocast, enabled=self._autocast is not None):
            losses, _ = self._levers.token_losses(self._inputs)
        loss = losses.mean()
        found = torch.autograd.grad(loss, trained, allow_unused=True)
        gradients = [torch.zeros_like(a) if one is None else one for a, one in zip(trained, found, strict=True)]
        return float(loss.detach()), gradients


@contextmanager
def _nowhere_zero(model: Any) -> Iterator[None]:
    """Let adapters that begin at zero hold small numbers meanwhile, so that the gradients of their other half show."""
    zero = [part for part in model.parameters() if part.requires_grad and not part.detach().any()]
    generator = torch.Generator().manual_seed(PROBE_SEED)
    for part in zero:
        part.data.copy_(torch.randn(part.shape, generator=generator) * PROBE_SCALE)
    try:
        yield
    finally:
        for part in zero:
            part.data.zero_()

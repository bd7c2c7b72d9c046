"""Switch the levers on that a recipe asks for and a model allows, and hold them against the plain model first."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from tuneline.config.train import LeversConfig
from tuneline.model.methods.base import Family
from tuneline.train import trainer
from tuneline.train.levers import fused, head, memory

Inputs = dict[str, Any]
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
"""Largest relative difference of loss and gradients that is rounding; `ROUNDED` in 16 bits."""

ROUNDED = 0.2
SCALE = 0.01
SEED = 0


class Switch(Protocol):
    """Switches a lever."""

    def __call__(self, *, on: bool) -> None:
        """Switch it on or off."""


@dataclass
class Levers:
    """What is on."""

    family: Family
    model: Any
    decisions: dict[str, str] = field(default_factory=dict)
    """Lever -> on, or why not."""

    head_loss: bool = False
    fused_layers: list[Any] = field(default_factory=list)
    keeps_memory: bool = False

    def token_losses(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropies (nats) [N] of a row's trained tokens, and the positions [N] they stand behind."""
        if self.head_loss:
            return head.token_losses(self.model, inputs)
        return trainer.token_losses(self.family, self.model, inputs)

    def switch_head(self, *, on: bool) -> None:
        """Compute the loss chunk by chunk, or as the model does."""
        self.head_loss = on

    def switch_layers(self, *, on: bool) -> None:
        """Fuse LoRA's layers, or leave them to peft."""
        fused.disable(self.fused_layers)
        self.fused_layers = fused.layers(self.model) if on else []
        fused.enable(self.fused_layers)

    def keep_memory(self) -> str:
        """Keep what is freed for the next step."""
        memory.enable()
        self.keeps_memory = True
        return "on"

    def remove(self) -> None:
        """Leave a plain model behind."""
        self.switch_head(on=False)
        self.switch_layers(on=False)
        if self.keeps_memory:
            memory.disable()
            self.keeps_memory = False


def apply(
    family: Family,
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
    ways: list[tuple[str, str, Callable[[], str]]] = [
        ("head_loss", head.why_not(family, model), lambda: probe.held(levers.switch_head)),
        (
            "fused_lora",
            fused.why_not(model, recomputes_parts=recomputes_parts),
            lambda: probe.held(levers.switch_layers),
        ),
        ("keep_memory", memory.why_not(), levers.keep_memory),
    ]
    for name, why, switch_on in ways:
        if not getattr(config, name):
            levers.decisions[f"levers.{name}"] = "off, as the recipe says"
        else:
            levers.decisions[f"levers.{name}"] = f"stepped aside: {why}" if why else switch_on()
    return levers


class _Probe:
    """Compares loss and gradients on a short row; leaves weights, gradients and random numbers as they were."""

    def __init__(self, levers: Levers, inputs: Inputs, autocast: torch.dtype | None) -> None:
        self._levers, self._inputs, self._autocast = levers, inputs, autocast
        self._plain: tuple[float, list[torch.Tensor]] | None = None

    def held(self, switch: Switch) -> str:
        """Switch a lever on and keep it on if it computes the same; say what was done."""
        with torch.random.fork_rng(), _nowhere_zero(self._levers.model):
            if self._plain is None:
                self._plain = self._measure()
            switch(on=True)
            difference = self._difference()
        if difference <= TOLERANCE.get(self._computed(), ROUNDED):
            return f"on, relative difference {difference:.1e} from the plain model"
        switch(on=False)
        return f"switched off: loss or gradients differ from the plain model's by {difference:.1e}, relatively"

    def _computed(self) -> torch.dtype:
        return self._autocast or next(self._levers.model.parameters()).dtype

    def _difference(self) -> float:
        assert self._plain is not None, "the plain model is measured first"
        (before, gradients), (after, others) = self._plain, self._measure()
        norm = sum(float(one.double().square().sum()) for one in gradients) ** 0.5
        apart = sum(float((a.double() - b.double()).square().sum()) for a, b in zip(gradients, others, strict=True))
        return max(abs(after - before) / max(abs(before), 1e-9), apart**0.5 / max(norm, 1e-30))

    def _measure(self) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(SEED)
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
    generator = torch.Generator().manual_seed(SEED)
    for part in zero:
        part.data.copy_(torch.randn(part.shape, generator=generator) * SCALE)
    try:
        yield
    finally:
        for part in zero:
            part.data.zero_()

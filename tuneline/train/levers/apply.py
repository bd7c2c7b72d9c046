"""Enables the levers that a recipe requests and a model supports, after verifying them against the plain model."""

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
"""Largest relative difference of loss and gradients that is attributed to rounding."""

HALF_PRECISION_TOLERANCE = 0.2
"""The same in 16 bits."""

PROBE_SCALE = 0.01
PROBE_SEED = 0


@dataclass
class Levers:
    """The levers that are enabled on a model."""

    family: MethodFamily
    model: Any
    decisions: dict[str, str] = field(default_factory=dict)
    """Lever -> on, or the reason why it is off."""

    undo: dict[str, Callable[[], None]] = field(default_factory=dict)
    """Lever -> function that disables it; only levers that keep no other state."""

    head_loss: bool = False
    fused_layers: list[Any] = field(default_factory=list)
    keeps_memory: bool = False

    def token_losses(self, inputs: Inputs) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the cross entropies (nats) [N] of the trained tokens, and the positions [N] that predict them."""
        if self.head_loss:
            return head.token_losses(self.model, inputs)
        return token_losses.token_losses(self.family, self.model, inputs)

    def switch_head(self, *, on: bool) -> None:
        """Compute the loss in chunks, or with the logits of the model."""
        self.head_loss = on

    def switch_layers(self, *, on: bool) -> None:
        """Fuse LoRA layers, or restore those of peft."""
        fused.disable(self.fused_layers)
        self.fused_layers = fused.find_layers(self.model) if on else []
        fused.enable(self.fused_layers, self.model)

    def switch(self, name: str, enable: Callable[[], Callable[[], None]], *, on: bool) -> None:
        """Enable a lever with a function that returns its undo function, or disable it."""
        self.undo.pop(name, lambda: None)()
        if on:
            self.undo[name] = enable()

    def keep_memory(self) -> str:
        """Keep freed memory for the next step."""
        memory.enable()
        self.keeps_memory = True
        return "on"

    def remove(self) -> None:
        """Disable all levers and restore the plain model."""
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
    """Enable levers one by one, each verified against the plain model.

    Args:
        family: Family of the method.
        model: With its adapter, in training mode.
        config: The levers that the recipe requests.
        inputs: A short packed row, on the device of the model.
        autocast: Dtype of the computation, or None if it is that of the weights.
        recomputes_parts: Selective gradient checkpointing: all activations except those of products are recomputed.
    """
    levers = Levers(family, model)
    probe = _Probe(levers, inputs, autocast)
    for name, reason, switch in _candidates(levers, probe.compute_dtype, recomputes_parts=recomputes_parts):
        if not getattr(config, name):
            levers.decisions[f"levers.{name}"] = "off, as the recipe says"
        elif reason:
            levers.decisions[f"levers.{name}"] = f"disabled: {reason}"
        else:
            levers.decisions[f"levers.{name}"] = probe.enable(switch) if switch else levers.keep_memory()
    return levers


def _candidates(
    levers: Levers, compute_dtype: torch.dtype, *, recomputes_parts: bool
) -> list[tuple[str, str, Callable[..., None] | None]]:
    """Return each lever, the reason why it is not supported here (or an empty text), and its switch."""
    model = levers.model
    norms, gates = pointwise.find_norms(model), pointwise.find_gates(model)
    rotation = pointwise.find_rotation(model)

    def fuses(name: str, fuse: Callable[[Any], Callable[[], None]], target: Any) -> Callable[..., None]:
        return partial(levers.switch, name, partial(fuse, target))

    attention_reason = attention.unsupported_reason(model, compute_dtype, recomputes_parts=recomputes_parts)
    blocks = partial(levers.switch, "blocked_attention", partial(attention.enable, model))
    return [
        ("head_loss", head.unsupported_reason(levers.family, model), levers.switch_head),
        ("fused_lora", fused.unsupported_reason(model, recomputes_parts=recomputes_parts), levers.switch_layers),
        ("blocked_attention", attention_reason, blocks),
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
    """Compares loss and gradients on a short row; restores weights, gradients and random number generators."""

    def __init__(self, levers: Levers, inputs: Inputs, autocast: torch.dtype | None) -> None:
        self._levers, self._inputs, self._autocast = levers, inputs, autocast
        self._plain: tuple[float, list[torch.Tensor]] | None = None

    def enable(self, switch: Callable[..., None]) -> str:
        """Enable a lever, and disable it again if its results differ; return the decision as text."""
        with torch.random.fork_rng(), _replace_zero_weights(self._levers.model):
            if self._plain is None:
                self._plain = self._measure()
            switch(on=True)
            difference = self._max_relative_difference()
        if difference <= TOLERANCE.get(self.compute_dtype, HALF_PRECISION_TOLERANCE):
            return f"on, relative difference {difference:.1e} from the plain model"
        switch(on=False)
        return f"disabled: loss or gradients differ from the plain model, relative difference {difference:.1e}"

    @property
    def compute_dtype(self) -> torch.dtype:
        """Dtype of the computation."""
        return self._autocast or next(self._levers.model.parameters()).dtype

    def _max_relative_difference(self) -> float:
        assert self._plain is not None, "the plain model is measured first"
        (plain_loss, plain_gradients), (loss, gradients) = self._plain, self._measure()
        norm = sum(float(gradient.double().square().sum()) for gradient in plain_gradients) ** 0.5
        pairs = zip(plain_gradients, gradients, strict=True)
        distance = sum(float((a.double() - b.double()).square().sum()) for a, b in pairs) ** 0.5
        return max(abs(loss - plain_loss) / max(abs(plain_loss), 1e-9), distance / max(norm, 1e-30))

    def _measure(self) -> tuple[float, list[torch.Tensor]]:
        torch.manual_seed(PROBE_SEED)
        trainable = [part for part in self._levers.model.parameters() if part.requires_grad]
        device_type = self._inputs["input_ids"].device.type
        with torch.autocast(device_type, self._autocast, enabled=self._autocast is not None):
            losses, _ = self._levers.token_losses(self._inputs)
        loss = losses.mean()
        gradients = torch.autograd.grad(loss, trainable, allow_unused=True)
        pairs = zip(trainable, gradients, strict=True)
        return float(loss.detach()), [torch.zeros_like(part) if grad is None else grad for part, grad in pairs]


@contextmanager
def _replace_zero_weights(model: Any) -> Iterator[None]:
    """Temporarily set weights that are all zero to small random numbers, so that both halves of LoRA have gradients."""
    zero = [part for part in model.parameters() if part.requires_grad and not part.detach().any()]
    generator = torch.Generator().manual_seed(PROBE_SEED)
    for part in zero:
        part.data.copy_(torch.randn(part.shape, generator=generator) * PROBE_SCALE)
    try:
        yield
    finally:
        for part in zero:
            part.data.zero_()

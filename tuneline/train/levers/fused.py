"""LoRA's layer as one operation of autograd: y = x W' + b + s (x A') B'.

peft's own way makes the frozen product, the adapter's and their sum apart, and keeps what each needs for the backward
pass. Here x and x A' are kept, products are added in place, and no gradient of W is thought of (as Unsloth does on
GPUs). It computes the same numbers, to rounding. Thin products are made the long way round, rank by tokens: with the
few columns last, a CPU has a third to a tenth of that speed (docs/log.md).
"""

from types import MethodType
from typing import Any

import torch
from peft.tuners import lora
from torch import nn

# T tokens, I inputs, O outputs, R rank

NAME = "default"


class _FusedLora(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scaling: float,
    ) -> torch.Tensor:
        x_TI = x.reshape(-1, x.shape[-1]).to(weight_OI.dtype)
        inner_RT = a_RI.to(x_TI.dtype) @ x_TI.T
        y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
        y_TO.addmm_(inner_RT.T, b_OR.T.to(y_TO.dtype), alpha=scaling)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, inner_RT)
        ctx.scaling, ctx.shape, ctx.dtype = scaling, x.shape, x.dtype
        return y_TO.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, weight_OI, a_RI, b_OR, inner_RT = ctx.saved_tensors
        out_TO = gradient.reshape(-1, gradient.shape[-1]).to(weight_OI.dtype)
        inner_gradient_RT = b_OR.T.to(out_TO.dtype) @ out_TO.T
        of_a = (inner_gradient_RT @ x_TI).mul_(ctx.scaling).to(a_RI.dtype)
        of_b = (inner_RT.to(out_TO.dtype) @ out_TO).T.mul(ctx.scaling).to(b_OR.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (out_TO @ weight_OI).addmm_(inner_gradient_RT.T, a_RI.to(out_TO.dtype), alpha=ctx.scaling)
            of_x = of_x.view(ctx.shape).to(ctx.dtype)
        return of_x, None, None, of_a, of_b, None


def layers(model: nn.Module) -> list[lora.Linear]:
    """Return the adapted layers that can be fused: plain LoRA on a plain, frozen matrix, without dropout."""
    return [module for module in model.modules() if isinstance(module, lora.Linear) and _is_plain(module)]


def why_not(model: nn.Module, *, recomputes_parts: bool = False) -> str:
    """Return what keeps every layer from being fused, or an empty text.

    Args:
        model: With its adapter.
        recomputes_parts: Products are kept and the rest is recomputed, which forbids to add into a product.
    """
    if recomputes_parts:
        return "load.gradient_checkpointing: selective keeps the products that it would add into"
    return "" if layers(model) else "no layer has a plain LoRA without dropout on a plain matrix"


def enable(found: list[lora.Linear]) -> None:
    """Let layers compute in one operation."""
    for layer in found:
        layer.forward = MethodType(_forward, layer)


def disable(found: list[lora.Linear]) -> None:
    """Let layers compute as peft does."""
    for layer in found:
        vars(layer).pop("forward", None)


def _is_plain(layer: lora.Linear) -> bool:
    base = layer.get_base_layer()
    return (
        type(layer) is lora.Linear
        and type(base) is nn.Linear
        and not base.weight.requires_grad
        and NAME in layer.lora_A
        and not layer.lora_variant  # DoRA and its like
        and isinstance(layer.lora_dropout[NAME], nn.Identity)
        and layer.lora_B[NAME].bias is None
        and not layer.fan_in_fan_out
    )


def _forward(layer: lora.Linear, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
    if layer.disable_adapters or layer.merged or args or named or layer.active_adapters != [NAME]:
        return lora.Linear.forward(layer, x, *args, **named)
    base = layer.get_base_layer()
    a, b = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    return _FusedLora.apply(x, base.weight, base.bias, a, b, layer.scaling[NAME])

"""LoRA's layer as one operation of autograd: y = x W' + b + s (x A') B'.

peft's own way makes the frozen product, the adapter's and their sum apart, and keeps what each needs for the backward
pass. Here x and x A' are kept, products are added in place, and no gradient of W is thought of (as Unsloth does on
GPUs). It computes the same numbers, to rounding. Thin products are made the long way round, rank by tokens: with the
few columns last, a CPU has a third to a tenth of that speed (docs/log.md). Layers that read the same input, like those
of queries, keys and values, are one operation: their A are one matrix, and the gradient of x is summed in its products.
"""

from collections.abc import Iterable
from types import MethodType
from typing import Any

import torch
from peft.tuners import lora
from torch import nn

# T tokens, I inputs, O outputs of a layer, R rank of a layer, S ranks of all layers

ADAPTER_NAME = "default"
SHARED_INPUT_LAYERS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Names, in one module, of layers that are given the same input; whether they are is seen at each call."""


class _FusedLora(torch.autograd.Function):
    """Layers of one input; of each, `tensors` has weight_OI, bias_O or None, a_RI and b_OR."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scalings: tuple[float, ...], *tensors: Any) -> tuple[torch.Tensor, ...]:
        weights, biases, a, b = (tensors[i::4] for i in range(4))
        x_TI = x.reshape(-1, x.shape[-1]).to(weights[0].dtype)
        a_SI = torch.cat(a).to(x_TI.dtype) if len(a) > 1 else a[0].to(x_TI.dtype)
        inner_ST = a_SI @ x_TI.T
        found = []
        for weight_OI, bias_O, b_OR, inner_RT, scaling in zip(
            weights, biases, b, _by_layer(inner_ST, a), scalings, strict=True
        ):
            y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
            found.append(y_TO.addmm_(inner_RT.T, b_OR.T.to(y_TO.dtype), alpha=scaling).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_TI, inner_ST, *weights, *a, *b)
        ctx.scalings, ctx.shape, ctx.dtype = scalings, x.shape, x.dtype
        return tuple(found)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_ST, *saved = ctx.saved_tensors
        weights, a, b = (saved[i : i + len(gradients)] for i in range(0, len(saved), len(gradients)))
        given = [gradient.reshape(-1, gradient.shape[-1]).to(x_TI.dtype) for gradient in gradients]
        back = [
            (b_OR.T.to(out_TO.dtype) @ out_TO.T).mul_(scaling)
            for b_OR, out_TO, scaling in zip(b, given, ctx.scalings, strict=True)
        ]
        back_ST = torch.cat(back) if len(back) > 1 else back[0]
        of_a = _by_layer(back_ST @ x_TI, a)
        of_b = [
            (inner_RT.to(out_TO.dtype) @ out_TO).T.mul(scaling)
            for inner_RT, out_TO, scaling in zip(_by_layer(inner_ST, a), given, ctx.scalings, strict=True)
        ]
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = given[0] @ weights[0]
            for out_TO, weight_OI in zip(given[1:], weights[1:], strict=True):
                of_x.addmm_(out_TO, weight_OI)
            a_SI = torch.cat(list(a)) if len(a) > 1 else a[0]
            of_x = of_x.addmm_(back_ST.T, a_SI.to(of_x.dtype)).view(ctx.shape).to(ctx.dtype)
        of_tensors: list[torch.Tensor | None] = []
        for own_a, own_b, a_RI, b_OR in zip(of_a, of_b, a, b, strict=True):
            of_tensors += [None, None, own_a.to(a_RI.dtype), own_b.to(b_OR.dtype)]
        return of_x, None, *of_tensors


def _by_layer(x_S: torch.Tensor, a: Iterable[Any]) -> tuple[torch.Tensor, ...]:
    """Split what layers have in common by their ranks."""
    return x_S.split([len(a_RI) for a_RI in a])


class _Together:
    """Layers that are given the same input: the first that is asked answers for all, until one is given another."""

    def __init__(self, members: list[lora.Linear]) -> None:
        self._members = members
        self._given: tuple[torch.Tensor, bool] | None = None
        self._waiting: dict[int, torch.Tensor] = {}
        self._apart = False

    def answer(self, layer: lora.Linear, x: torch.Tensor) -> torch.Tensor:
        """Return what a layer makes of an input."""
        with_gradient = torch.is_grad_enabled()
        same = self._given is not None and self._given[0] is x and self._given[1] == with_gradient
        if not same or id(layer) not in self._waiting:
            self._apart |= bool(self._waiting)  # somebody was not asked: this architecture gives another input
            members = [layer] if self._apart else self._members
            found = _FusedLora.apply(x, tuple(one.scaling[ADAPTER_NAME] for one in members), *_tensors(members))
            self._given = x, with_gradient
            self._waiting = {id(one): y for one, y in zip(members, found, strict=True)}
        y = self._waiting.pop(id(layer))
        if not self._waiting:
            self._given = None
        return y


def _tensors(members: list[lora.Linear]) -> list[torch.Tensor | None]:
    found: list[torch.Tensor | None] = []
    for layer in members:
        base = layer.get_base_layer()
        found += [base.weight, base.bias, layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight]
    return found


def find_layers(model: nn.Module) -> list[lora.Linear]:
    """Return the adapted layers that can be fused: plain LoRA on a plain, frozen matrix, without dropout."""
    return [module for module in model.modules() if isinstance(module, lora.Linear) and _is_plain(module)]


def unsupported_reason(model: nn.Module, *, recomputes_parts: bool = False) -> str:
    """Return what keeps every layer from being fused, or an empty text.

    Args:
        model: With its adapter.
        recomputes_parts: Products are kept and the rest is recomputed, which forbids to add into a product.
    """
    if recomputes_parts:
        return "load.gradient_checkpointing: selective keeps the products that it would add into"
    return "" if find_layers(model) else "no layer has a plain LoRA without dropout on a plain matrix"


def enable(found: list[lora.Linear], model: nn.Module) -> None:
    """Let layers compute in one operation, those of one input together."""
    fused = {id(layer) for layer in found}
    for layer in found:
        _let_answer(layer, _Together([layer]))
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SHARED_INPUT_LAYERS:
            members: list[Any] = [children[name] for name in names if id(children.get(name)) in fused]
            if len(members) > 1 and len({_input_of(member) for member in members}) == 1:
                together = _Together(members)
                for member in members:
                    _let_answer(member, together)


def disable(found: list[lora.Linear]) -> None:
    """Let layers compute as peft does."""
    for layer in found:
        vars(layer).pop("forward", None)


def _let_answer(layer: lora.Linear, together: _Together) -> None:
    def forward(layer: lora.Linear, x: torch.Tensor, *args: Any, **named: Any) -> torch.Tensor:
        if layer.disable_adapters or layer.merged or args or named or layer.active_adapters != [ADAPTER_NAME]:
            return lora.Linear.forward(layer, x, *args, **named)
        return together.answer(layer, x)

    layer.forward = MethodType(forward, layer)


def _input_of(layer: lora.Linear) -> tuple[int, torch.dtype, torch.device]:
    weight = layer.get_base_layer().weight
    return weight.shape[1], weight.dtype, weight.device


def _is_plain(layer: lora.Linear) -> bool:
    base = layer.get_base_layer()
    return (
        type(layer) is lora.Linear
        and type(base) is nn.Linear
        and not base.weight.requires_grad
        and ADAPTER_NAME in layer.lora_A
        and not layer.lora_variant  # DoRA and its like
        and isinstance(layer.lora_dropout[ADAPTER_NAME], nn.Identity)
        and layer.lora_B[ADAPTER_NAME].bias is None
        and not layer.fan_in_fan_out
    )

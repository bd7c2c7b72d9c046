"""A LoRA layer as one autograd operation: y = x W' + b + s (x A') B'.

peft computes the frozen product, the adapter product and their sum separately, and stores the inputs of each for the
backward pass. Here x and x A' are stored, products are added in place, and no gradient of W is computed (as in Unsloth
on GPUs). The results are equal up to rounding. The narrow products are computed as [rank, tokens]: with the few columns
last, a CPU reaches a third to a tenth of that speed (docs/log.md). Layers with the same input, like those of queries,
keys and values, are one operation: their A are concatenated, and the gradient of x is summed within the products.
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
"""Names of layers in one module that usually get the same input; each call checks whether they do."""


class _FusedLora(torch.autograd.Function):
    """Layers with the same input; per layer, `tensors` contains weight_OI, bias_O or None, a_RI and b_OR."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, scalings: tuple[float, ...], *tensors: Any) -> tuple[torch.Tensor, ...]:
        weights, biases, a, b = (tensors[i::4] for i in range(4))
        x_TI = x.reshape(-1, x.shape[-1]).to(weights[0].dtype)
        a_SI = torch.cat(a).to(x_TI.dtype) if len(a) > 1 else a[0].to(x_TI.dtype)
        inner_ST = a_SI @ x_TI.T
        outputs = []
        for weight_OI, bias_O, b_OR, inner_RT, scaling in zip(
            weights, biases, b, _by_layer(inner_ST, a), scalings, strict=True
        ):
            y_TO = x_TI @ weight_OI.T if bias_O is None else torch.addmm(bias_O, x_TI, weight_OI.T)
            outputs.append(y_TO.addmm_(inner_RT.T, b_OR.T.to(y_TO.dtype), alpha=scaling).view(*x.shape[:-1], -1))
        ctx.save_for_backward(x_TI, inner_ST, *weights, *a, *b)
        ctx.scalings, ctx.shape, ctx.dtype = scalings, x.shape, x.dtype
        return tuple(outputs)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        x_TI, inner_ST, *saved = ctx.saved_tensors
        weights, a, b = (saved[i : i + len(gradients)] for i in range(0, len(saved), len(gradients)))
        gradients_TO = [gradient.reshape(-1, gradient.shape[-1]).to(x_TI.dtype) for gradient in gradients]
        grad_inner = [
            (b_OR.T.to(grad_TO.dtype) @ grad_TO.T).mul_(scaling)
            for b_OR, grad_TO, scaling in zip(b, gradients_TO, ctx.scalings, strict=True)
        ]
        grad_inner_ST = torch.cat(grad_inner) if len(grad_inner) > 1 else grad_inner[0]
        grads_a = _by_layer(grad_inner_ST @ x_TI, a)
        grads_b = [
            (inner_RT.to(grad_TO.dtype) @ grad_TO).T.mul(scaling)
            for inner_RT, grad_TO, scaling in zip(_by_layer(inner_ST, a), gradients_TO, ctx.scalings, strict=True)
        ]
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = gradients_TO[0] @ weights[0]
            for grad_TO, weight_OI in zip(gradients_TO[1:], weights[1:], strict=True):
                grad_x.addmm_(grad_TO, weight_OI)
            a_SI = torch.cat(list(a)) if len(a) > 1 else a[0]
            grad_x = grad_x.addmm_(grad_inner_ST.T, a_SI.to(grad_x.dtype)).view(ctx.shape).to(ctx.dtype)
        grads: list[torch.Tensor | None] = []
        for grad_a, grad_b, a_RI, b_OR in zip(grads_a, grads_b, a, b, strict=True):
            grads += [None, None, grad_a.to(a_RI.dtype), grad_b.to(b_OR.dtype)]
        return grad_x, None, *grads


def _by_layer(x_S: torch.Tensor, a: Iterable[Any]) -> tuple[torch.Tensor, ...]:
    """Split a tensor of all layers by their ranks."""
    return x_S.split([len(a_RI) for a_RI in a])


class _SharedInput:
    """Layers with the same input: the first call computes all of them, until one gets another input."""

    def __init__(self, members: list[lora.Linear]) -> None:
        self._members = members
        self._last_input: tuple[torch.Tensor, bool] | None = None
        self._outputs: dict[int, torch.Tensor] = {}
        self._separate = False

    def forward(self, layer: lora.Linear, x: torch.Tensor) -> torch.Tensor:
        """Return the output of a layer."""
        with_gradient = torch.is_grad_enabled()
        last = self._last_input
        same = last is not None and last[0] is x and last[1] == with_gradient
        if not same or id(layer) not in self._outputs:
            self._separate |= bool(self._outputs)  # an output was not used: the layers get different inputs
            members = [layer] if self._separate else self._members
            scalings = tuple(member.scaling[ADAPTER_NAME] for member in members)
            outputs = _FusedLora.apply(x, scalings, *_tensors(members))
            self._last_input = x, with_gradient
            self._outputs = {id(member): y for member, y in zip(members, outputs, strict=True)}
        y = self._outputs.pop(id(layer))
        if not self._outputs:
            self._last_input = None
        return y


def _tensors(members: list[lora.Linear]) -> list[torch.Tensor | None]:
    tensors: list[torch.Tensor | None] = []
    for layer in members:
        base = layer.get_base_layer()
        tensors += [base.weight, base.bias, layer.lora_A[ADAPTER_NAME].weight, layer.lora_B[ADAPTER_NAME].weight]
    return tensors


def find_layers(model: nn.Module) -> list[lora.Linear]:
    """Return the layers that can be fused: plain LoRA without dropout on a plain frozen matrix."""
    return [module for module in model.modules() if isinstance(module, lora.Linear) and _is_plain(module)]


def unsupported_reason(model: nn.Module, *, recomputes_parts: bool = False) -> str:
    """Return why no layer can be fused, or an empty text.

    Args:
        model: With its adapter.
        recomputes_parts: Selective gradient checkpointing stores the products, so they must not be modified in place.
    """
    if recomputes_parts:
        return "load.gradient_checkpointing: selective stores the products, which this lever modifies in place"
    return "" if find_layers(model) else "no layer has a plain LoRA without dropout on a plain matrix"


def enable(layers: list[lora.Linear], model: nn.Module) -> None:
    """Fuse layers; layers with the same input are computed together."""
    fused = {id(layer) for layer in layers}
    for layer in layers:
        _replace_forward(layer, _SharedInput([layer]))
    for parent in model.modules():
        children = dict(parent.named_children())
        for names in SHARED_INPUT_LAYERS:
            members: list[Any] = [children[name] for name in names if id(children.get(name)) in fused]
            if len(members) > 1 and len({_input_shape(member) for member in members}) == 1:
                shared = _SharedInput(members)
                for member in members:
                    _replace_forward(member, shared)


def disable(layers: list[lora.Linear]) -> None:
    """Restore the forward methods of peft."""
    for layer in layers:
        vars(layer).pop("forward", None)


def _replace_forward(layer: lora.Linear, shared: _SharedInput) -> None:
    def forward(layer: lora.Linear, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if layer.disable_adapters or layer.merged or args or kwargs or layer.active_adapters != [ADAPTER_NAME]:
            return lora.Linear.forward(layer, x, *args, **kwargs)
        return shared.forward(layer, x)

    layer.forward = MethodType(forward, layer)


def _input_shape(layer: lora.Linear) -> tuple[int, torch.dtype, torch.device]:
    weight = layer.get_base_layer().weight
    return weight.shape[1], weight.dtype, weight.device


def _is_plain(layer: lora.Linear) -> bool:
    base = layer.get_base_layer()
    return (
        type(layer) is lora.Linear
        and type(base) is nn.Linear
        and not base.weight.requires_grad
        and ADAPTER_NAME in layer.lora_A
        and not layer.lora_variant  # DoRA and other variants
        and isinstance(layer.lora_dropout[ADAPTER_NAME], nn.Identity)
        and layer.lora_B[ADAPTER_NAME].bias is None
        and not layer.fan_in_fan_out
    )

"""Norms, rotations and gates as one autograd operation each: fewer passes over memory, fewer stored tensors.

Written in PyTorch, each is several operations, and autograd stores the inputs of all of them (Liger Kernel, Hsu et al.
2024, arXiv:2410.10989, fuses them on GPUs). Modules are identified by the names in transformers; their results are
verified against the plain model before the training. In 16 bits, each fused operation rounds once, at its end; the code
of the architectures rounds after each operation.
"""

import inspect
import sys
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import nn

# T tokens, D width, I width of the feed-forward layer

Undo = Callable[[], None]
ROTARY_FUNCTION = "apply_rotary_pos_emb"


class _Norm(torch.autograd.Function):
    """RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467) with a frozen weight."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight_D: torch.Tensor, epsilon: float) -> torch.Tensor:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=accumulation_dtype(x))
        inverse = length.square_().div_(x.shape[-1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight_D, inverse)
        return (x * inverse).mul_(weight_D).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        x, weight_D, inverse = ctx.saved_tensors
        dtype, x = gradient.dtype, x.to(accumulation_dtype(x))
        grad_x = gradient.to(x.dtype) * weight_D
        projection = torch.linalg.vecdot(grad_x, x).unsqueeze(-1)
        grad_x.mul_(inverse)
        return grad_x.addcmul_(x, projection.mul_(inverse.pow(3)).div_(-x.shape[-1])).to(dtype), None, None


class _Rotation(torch.autograd.Function):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): x cos + [-x2, x1] sin."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        half = gradient.shape[-1] // 2
        grad_x = gradient * cos
        grad_x[..., :half].addcmul_(gradient[..., half:], sin[..., half:])
        grad_x[..., half:].addcmul_(gradient[..., :half], sin[..., :half], value=-1)
        return grad_x, None, None


class _Gate(torch.autograd.Function):
    """SwiGLU (Shazeer 2020, arXiv:2002.05202): silu(gate) * up; the backward pass recomputes silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate_TI: torch.Tensor, up_TI: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(gate_TI, up_TI)
        return nn.functional.silu(gate_TI).mul_(up_TI)

    @staticmethod
    def backward(ctx: Any, gradient_TI: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        gate_TI, up_TI = ctx.saved_tensors
        grad_up = nn.functional.silu(gate_TI).mul_(gradient_TI)
        return torch.ops.aten.silu_backward(gradient_TI * up_TI, gate_TI), grad_up


def accumulation_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype of sums over a tensor: float32 for 16 bits, otherwise that of the tensor."""
    return torch.promote_types(x.dtype, torch.float32)


def find_norms(model: nn.Module) -> list[nn.Module]:
    """Return all RMSNorm modules with a frozen weight."""
    return [
        module
        for module in model.modules()
        if type(module).__name__.endswith("RMSNorm")
        and isinstance(getattr(module, "variance_epsilon", None), float)
        and [name for name, _ in module.named_parameters()] == ["weight"]
        and not module.weight.requires_grad
        and _has_single_input(module)
    ]


def find_gates(model: nn.Module) -> list[nn.Module]:
    """Return all SwiGLU feed-forward layers."""
    parts = ("gate_proj", "up_proj", "down_proj")
    return [
        module
        for module in model.modules()
        if {name for name, _ in module.named_children()} == {*parts, "act_fn"}
        and _is_silu(module.act_fn)
        and _has_single_input(module)
    ]


def find_rotation(model: Any) -> Any:
    """Return the Python module whose layers call `apply_rotary_pos_emb`, or None."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    code = sys.modules[type(base).__module__]
    function = getattr(code, ROTARY_FUNCTION, None)
    if function is None or list(inspect.signature(function).parameters)[:4] != ["q", "k", "cos", "sin"]:
        return None
    return code


def unsupported_reason(targets: Any) -> str:
    """Return why an operation cannot be fused, or an empty text.

    Args:
        targets: The modules that contain the operation; empty or None if there are none.
    """
    return "" if targets else "the architecture has no module of the supported form"


def fuse_norms(modules: list[nn.Module]) -> Undo:
    """Compute each norm in one operation; return a function that restores the modules."""
    return _replace(modules, _norm)


def fuse_gates(modules: list[nn.Module]) -> Undo:
    """Compute each gate in one operation; return a function that restores the modules."""
    return _replace(modules, _feed_forward)


def fuse_rotation(code: Any) -> Undo:
    """Rotate queries and keys in one operation each; return a function that restores the Python module."""
    plain = getattr(code, ROTARY_FUNCTION)

    def rotate(
        q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        same_type = len({q.dtype, k.dtype, cos.dtype}) == 1 and cos.shape[-1] == q.shape[-1] == k.shape[-1]
        if args or kwargs or not same_type or (q.dim(), cos.dim()) != (4, 3):
            return plain(q, k, cos, sin, *args, **kwargs)
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _Rotation.apply(q, cos, sin), _Rotation.apply(k, cos, sin)

    setattr(code, ROTARY_FUNCTION, rotate)
    return lambda: setattr(code, ROTARY_FUNCTION, plain)


def _replace(modules: list[nn.Module], forward: Callable[..., torch.Tensor]) -> Undo:
    for module in modules:
        module.forward = MethodType(forward, module)

    def undo() -> None:
        for module in modules:
            vars(module).pop("forward", None)

    return undo


def _norm(module: Any, hidden_states: torch.Tensor) -> torch.Tensor:
    if hidden_states.dtype != module.weight.dtype:
        return type(module).forward(module, hidden_states)
    return _Norm.apply(hidden_states, module.weight, module.variance_epsilon)


def _feed_forward(module: Any, x: torch.Tensor) -> torch.Tensor:
    return module.down_proj(_Gate.apply(module.gate_proj(x), module.up_proj(x)))


def _has_single_input(module: nn.Module) -> bool:
    return len(inspect.signature(type(module).forward).parameters) == 2  # self and the input


def _is_silu(activation: Any) -> bool:
    return isinstance(activation, nn.SiLU) or type(activation).__name__ == "SiLUActivation"

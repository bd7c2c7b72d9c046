"""Trained weights of the base itself, held in float32 inside a model of 16 bits.

peft does so for the weights that it adds, not for modules that are trained whole (`modules_to_save`), and nothing does
it for freeze tuning. A module that owns such a weight reads its inputs in the weight's precision and answers in the
model's, so that all else stays as it was.
"""

from typing import Any

import torch
from torch import nn

HALF_DTYPES = (torch.float16, torch.bfloat16)
_HOOKS_ATTRIBUTE = "_held_in_float32"


def upcast_trained_params(model: nn.Module) -> None:
    """Give every trained weight of 16 bits, and the modules that own one, float32."""
    trained = [
        parameter for parameter in model.parameters() if parameter.requires_grad and parameter.dtype in HALF_DTYPES
    ]
    dtypes = {id(parameter): parameter.dtype for parameter in trained}
    for module in model.modules():
        owned = [dtypes[id(p)] for p in module.parameters(recurse=False) if id(p) in dtypes]
        if owned:
            _register_casts(module, owned[0])
    for parameter in trained:
        parameter.data = parameter.data.float()


def restore_dtype(model: nn.Module) -> None:
    """Undo `hold_in_float32`: plain modules again, in the model's precision."""
    for module in model.modules():
        if not hasattr(module, _HOOKS_ATTRIBUTE):
            continue
        dtype, handles = getattr(module, _HOOKS_ATTRIBUTE)
        for handle in handles:
            handle.remove()
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        delattr(module, _HOOKS_ATTRIBUTE)


def _register_casts(module: nn.Module, outside: torch.dtype) -> None:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        inside = next(module.parameters(recurse=False)).dtype
        return _cast(args, inside), _cast(kwargs, inside)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, outside)

    handles = (module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after))
    setattr(module, _HOOKS_ATTRIBUTE, (outside, handles))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return type(value)(_cast(item, dtype) for item in value) if type(value) in (tuple, list) else value

"""Keep trained base weights in float32 inside a 16-bit model.

`peft` does so for the weights that it adds, but not for `modules_to_save`, and nothing does it for freeze tuning. A
module with such weights casts its inputs to float32 and its outputs back to the dtype of the model.
"""

from typing import Any

import torch
from torch import nn

HALF_DTYPES = (torch.float16, torch.bfloat16)
_HOOKS_ATTRIBUTE = "_held_in_float32"


def upcast_trained_params(model: nn.Module) -> None:
    """Convert every trained 16-bit weight to float32 and register casts on the modules that own one."""
    trained = [
        parameter for parameter in model.parameters() if parameter.requires_grad and parameter.dtype in HALF_DTYPES
    ]
    dtypes = {id(parameter): parameter.dtype for parameter in trained}
    for module in model.modules():
        module_dtypes = [dtypes[id(p)] for p in module.parameters(recurse=False) if id(p) in dtypes]
        if module_dtypes:
            _register_casts(module, module_dtypes[0])
    for parameter in trained:
        parameter.data = parameter.data.float()


def restore_dtype(model: nn.Module) -> None:
    """Undo `upcast_trained_params`: remove the casts and restore the dtype of the model."""
    for module in model.modules():
        if not hasattr(module, _HOOKS_ATTRIBUTE):
            continue
        dtype, handles = getattr(module, _HOOKS_ATTRIBUTE)
        for handle in handles:
            handle.remove()
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        delattr(module, _HOOKS_ATTRIBUTE)


def _register_casts(module: nn.Module, output_dtype: torch.dtype) -> None:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        weight_dtype = next(module.parameters(recurse=False)).dtype
        return _cast(args, weight_dtype), _cast(kwargs, weight_dtype)

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return _cast(output, output_dtype)

    handles = (module.register_forward_pre_hook(before, with_kwargs=True), module.register_forward_hook(after))
    setattr(module, _HOOKS_ATTRIBUTE, (output_dtype, handles))


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, dict):
        return {key: _cast(item, dtype) for key, item in value.items()}
    return type(value)(_cast(item, dtype) for item in value) if type(value) in (tuple, list) else value

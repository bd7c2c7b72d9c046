"""Lower bound of the time per step: the matrix products of LoRA training at the measured rate of this machine."""

import time
from pathlib import Path

import torch

from benchmarks.peers import process
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.model.load import build_meta_model, read_config

SQUARE = 1024
ROUNDS = 3
HEAD_ROWS = 384
"""Maximum rows per product with the head, whose results are large."""


def work(arguments: process.Result) -> process.Result:
    """Measure FLOP/s (of CPU time, one thread) at the shapes of a model, in the faster of two dtypes.

    The lower bound in seconds counts 4 operations per frozen weight and token (forward, and the gradient of the input),
    6 per LoRA weight, and the head at trained tokens only. Attention, norms, rotations, activations, softmax and the
    optimizer are not counted.
    """
    tokens, trained, rank = arguments["tokens"], arguments["trained_tokens"], arguments["lora"]["r"]
    folder = Path(arguments["model"])
    model = build_meta_model(read_config(folder, ModelLoadOptions()))
    head = model.get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    best = {dtype: _rate(SQUARE, SQUARE, SQUARE, dtype) for dtype in (torch.float32, torch.bfloat16)}
    dtype = max(best, key=lambda name: best[name])
    shapes = {(layer.out_features, layer.in_features) for layer in layers}
    wide = min(tokens, 1024)
    rates = {shape: _mean_rate(wide, *shape, dtype) for shape in shapes}
    layer_seconds = sum(4 * tokens * n * k / rates[n, k] for n, k in ((a.out_features, a.in_features) for a in layers))
    head_seconds = 4 * trained * head.weight.numel() / _mean_rate(min(trained, HEAD_ROWS), *head.weight.shape, dtype)
    lora_flops = 6 * tokens * rank * sum(layer.out_features + layer.in_features for layer in layers)
    flops = 4 * tokens * sum(layer.weight.numel() for layer in layers) + 4 * trained * head.weight.numel() + lora_flops
    mean_rate = (flops - lora_flops) / (layer_seconds + head_seconds)
    return {
        "dtype": str(dtype).removeprefix("torch."),
        "best_rates": {str(name).removeprefix("torch."): rate for name, rate in best.items()},
        "rate_at_model_shapes": mean_rate,
        "flops": flops,
        "floor_seconds": layer_seconds + head_seconds + lora_flops / mean_rate,
    }


def _mean_rate(rows: int, outputs: int, inputs: int, dtype: torch.dtype) -> float:
    """Return the mean rate of the product of a layer and of the product for the gradient of its input."""
    forward, back = _rate(rows, inputs, outputs, dtype, transposed=True), _rate(rows, outputs, inputs, dtype)
    return 2 / (1 / forward + 1 / back)


@torch.no_grad()
def _rate(rows: int, inputs: int, outputs: int, dtype: torch.dtype, *, transposed: bool = False) -> float:
    x = torch.randn(rows, inputs).to(dtype)
    weight = torch.randn(outputs, inputs).to(dtype).T if transposed else torch.randn(inputs, outputs).to(dtype)
    flops, seconds = 2.0 * rows * inputs * outputs, []
    repeats = max(1, round(2e9 / flops))
    x @ weight
    for _ in range(ROUNDS):
        start = time.process_time()
        for _ in range(repeats):
            x @ weight
        seconds.append((time.process_time() - start) / repeats)
    return flops / min(seconds)


if __name__ == "__main__":
    process.run_as_job(work)

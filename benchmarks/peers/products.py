"""What a step costs at least: the matrix products of LoRA training, at the rate that this machine has for them."""

import time
from pathlib import Path

import torch

from benchmarks.peers import process
from tuneline.config.sections.load import ModelLoadOptions
from tuneline.model.load import build_meta_model, read_config

SQUARE = 1024
ROUNDS = 3
HEAD_ROWS = 384
"""Rows of a product with the head, whose results are large."""


def work(arguments: process.Result) -> process.Result:
    """Measure rates at a model's shapes, in the faster of two number formats; FLOP/s of one thread's CPU time.

    A floor in seconds follows: 4 operations a weight and token (forward, and the gradient of the input; none for a
    frozen weight), 6 for LoRA's own weights, the head at trained tokens only. Attention, norms, rotations, activations,
    softmax and the optimizer are left out.
    """
    tokens, trained, rank = arguments["tokens"], arguments["trained_tokens"], arguments["lora"]["r"]
    folder = Path(arguments["model"])
    model = build_meta_model(read_config(folder, ModelLoadOptions()))
    head = model.get_output_embeddings()
    layers = [part for part in model.modules() if isinstance(part, torch.nn.Linear) and part is not head]
    best = {kind: _rate(SQUARE, SQUARE, SQUARE, kind) for kind in (torch.float32, torch.bfloat16)}
    kind = max(best, key=lambda name: best[name])
    shapes = {(layer.out_features, layer.in_features) for layer in layers}
    wide = min(tokens, 1024)
    rates = {shape: _both(wide, *shape, kind) for shape in shapes}
    of_layers = sum(4 * tokens * n * k / rates[n, k] for n, k in ((a.out_features, a.in_features) for a in layers))
    of_head = 4 * trained * head.weight.numel() / _both(min(trained, HEAD_ROWS), *head.weight.shape, kind)
    own = 6 * tokens * rank * sum(layer.out_features + layer.in_features for layer in layers)
    flops = 4 * tokens * sum(layer.weight.numel() for layer in layers) + 4 * trained * head.weight.numel() + own
    mean_rate = (flops - own) / (of_layers + of_head)
    return {
        "dtype": str(kind).removeprefix("torch."),
        "best_rates": {str(name).removeprefix("torch."): rate for name, rate in best.items()},
        "rate_at_model_shapes": mean_rate,
        "flops": flops,
        "floor_seconds": of_layers + of_head + own / mean_rate,
    }


def _both(rows: int, outputs: int, inputs: int, kind: torch.dtype) -> float:
    """Return the mean rate of a layer's product and of the one for the gradient of its input."""
    forward, back = _rate(rows, inputs, outputs, kind, transposed=True), _rate(rows, outputs, inputs, kind)
    return 2 / (1 / forward + 1 / back)


@torch.no_grad()
def _rate(rows: int, inputs: int, outputs: int, kind: torch.dtype, *, transposed: bool = False) -> float:
    x = torch.randn(rows, inputs).to(kind)
    weight = torch.randn(outputs, inputs).to(kind).T if transposed else torch.randn(inputs, outputs).to(kind)
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
    process.job(work)

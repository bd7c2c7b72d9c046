"""Write an export: weights, tokenizer with chat template, generation config, model card, Modelfile, checksums.

Unchanged weights are hard-linked. If weights change (an adapter is merged, or weights are rounded), the outputs before
and after are compared, as in `merge_adapter`. The format is always safetensors.
"""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tuneline import filesystem, owner
from tuneline.config.sections.export import ExportStepConfig
from tuneline.config.sections.load import LoadStepConfig, ModelLoadOptions
from tuneline.config.training.base import MergeAdapterConfig
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import RecipeError, VerificationError
from tuneline.export import modelfile
from tuneline.export.gguf.quantize import Kind, gguf_file_name
from tuneline.export.gguf.write import write_gguf
from tuneline.export.origin import Origin
from tuneline.identity import Manifest, digest, file_entries
from tuneline.model import divergence, merge, quantize, source
from tuneline.model.checkpoint import Checkpoint
from tuneline.model.load import load_model, read_config
from tuneline.model.methods import adapter_method, families

CHECKSUMS_FILE = "SHA256SUMS"
CARD_FILE = "README.md"
MAX_SHARD_SIZE = "5GB"
MAX_LENGTH = 2048
DTYPES_BY_CODE = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Dtype codes of safetensors -> torch dtype names."""

PROBE_PROMPTS = (
    "Explain in two sentences why the sky is blue, and why a sunset is red.",
    "Write a function in Python that returns the largest of three numbers, with a test.",
    "Translate into French: the meeting was moved from Monday to Thursday, at half past nine.",
    "List the planets of the solar system by their distance from the sun, with one fact about each.",
)
"""Prompts for comparing the outputs before and after weights change."""


def export_model(tokenizer: Manifest, base_model: Manifest, origin: Origin, config: ExportStepConfig) -> Checkpoint:
    """Write a model in the requested format.

    Args:
        tokenizer: Tokenizer with the chat template to use.
        base_model: Weights, followed by the adapters to merge.
        origin: Origin of the model.
        config: Export options.

    Raises:
        VerificationError: The output changes by more than `config.max_kl`, the Modelfile cannot be exact, or llama.cpp
            computes something else.
        RecipeError: The model does not support these options.
        SourceError: The architecture or tokenizer cannot be exported to GGUF.
    """
    key = digest([tokenizer.content_hash(), base_model.content_hash(), config.model_dump(mode="json"), origin.card])
    target = owner.scratch_folder() / f"export-{key[:32]}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in tokenizer.only().paths():
        shutil.copy2(file, target / file.name)
    facts: dict[str, Any] = {}
    if config.modelfile != "none":  # first, because it may fail, and weights take long
        facts = _write_modelfile(target, base_model, origin, config)
    facts |= _write_weights(target, base_model, tokenizer, config)
    merge.add_eos_token(target)
    if config.gguf != "none":
        facts |= _write_gguf(target, origin, config, config.gguf)
    kind = "merged" if len(base_model.items) > 1 else "full"
    identity = {"base_model": base_model.content_hash(), "tokenizer": tokenizer.content_hash()}
    return Checkpoint(target, kind, identity, facts, disposable=True)


def write_card_and_checksums(exported: Checkpoint, card: str) -> Checkpoint:
    """Write the model card and the hashes of all files: `sha256sum --check SHA256SUMS`."""
    (exported.path / CARD_FILE).write_text(card, encoding="utf-8")
    paths = sorted(path for path in exported.path.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    lines = [f"{entry.sha256}  {entry.name}\n" for entry in file_entries(exported.path, paths)]
    (exported.path / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")
    return exported


def _write_modelfile(target: Path, base_model: Manifest, origin: Origin, config: ExportStepConfig) -> dict[str, Any]:
    generation = source.manifest_folder(base_model) / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, target / generation.name)
    merge.add_eos_token(target)
    system = config.system if config.system is not None else origin.system
    result = modelfile.build_modelfile(target, config, system)
    (target / modelfile.FILE_NAME).write_text(result.text, encoding="utf-8")
    return {**result.facts, "modelfile.sentence": result.sentence}


def _write_gguf(target: Path, origin: Origin, config: ExportStepConfig, kind: Kind) -> dict[str, Any]:
    """Write and verify the GGUF file of the exported folder."""
    name = f"{origin.name} version {origin.version}" if origin.version else origin.name
    file = target / gguf_file_name(kind)
    return write_gguf(target, file, kind, options=_load_options(config), name=name).facts()


def _write_weights(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    folder = source.manifest_folder(base_model)
    if len(base_model.items) > 1:
        facts = _merge_adapter(target, base_model, tokenizer, config)
    elif _can_link(base_model, config):
        _link_files(base_model.items[0].paths(), folder, target)
        return {"weights": "unchanged", "dtype": ", ".join(sorted(_dtypes(folder)))}
    else:
        facts = _rewrite(target, base_model, tokenizer, config)
    _link_files([path for path in base_model.items[0].paths() if path.suffix == ".py"], folder, target)
    return facts | {"dtype": ", ".join(sorted(_dtypes(target)))}


def _can_link(base_model: Manifest, config: ExportStepConfig) -> bool:
    """Return whether the weight files can be linked unchanged."""
    folder = source.manifest_folder(base_model)
    if config.max_shard_size or not any(folder.glob("*.safetensors")):
        return False
    return config.dtype == "keep" or _dtypes(folder) == {config.dtype}


def _dtypes(folder: Path) -> set[str]:
    """Return the dtypes of the weights, from the file headers."""
    codes = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            codes |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {DTYPES_BY_CODE.get(code, code) for code in codes}


def _rewrite(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    """Load, round and save the weights; outputs are compared only if values change."""
    folder, options = source.manifest_folder(base_model), _load_options(config)
    model_config = read_config(folder, options)
    kind = quantize.quantization_kind(model_config.to_dict())
    if kind and config.dtype != "keep":
        raise RecipeError(
            f"dtype: {config.dtype}: the model is quantized ({kind}) and cannot be converted. Set dtype: keep."
        )
    size = config.max_shard_size or MAX_SHARD_SIZE
    if config.dtype == "keep":
        model = load_model(folder, model_config.dtype or torch.float32, allowed=options)
        model.save_pretrained(target, max_shard_size=size)
        return {"weights": "same values, rewritten files"}
    model = load_model(folder, torch.float32, allowed=options).eval()
    rows = _probe_rows(tokenizer)
    before = list(_distributions(model, rows))
    model = model.to(getattr(torch, config.dtype))
    facts = divergence.compare_distributions(before, _distributions(model, rows))
    if not facts["kl"] <= config.max_kl:
        raise VerificationError(
            f"dtype: {config.dtype}: KL divergence between the model and the rounded model: {facts['kl']:.2e} nats per "
            f"token, at most {config.max_kl:.0e} allowed (max_kl). Set dtype: keep or float32, or raise max_kl."
        )
    model.save_pretrained(target, max_shard_size=size)
    return facts | {"weights": "rounded"}


@torch.no_grad()
def _distributions(model: Any, rows: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities of the next token for each probe row, [positions, vocabulary]."""
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        yield model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)


def _merge_adapter(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    """Merge the last adapter into the base with the earlier adapters, verified on `PROBE_PROMPTS`."""
    last = source.adapter_folders(base_model)[-1]
    family = families[adapter_method(last)]
    if not family.mergeable:
        raise RecipeError(f"adapters: {last} was trained with {family.name}, which cannot be merged. Remove it.")
    before = Manifest(kind=base_model.kind, items=base_model.items[:-1])
    load = LoadStepConfig(
        **_load_options(config).model_dump(), max_length=MAX_LENGTH, uses=["merge"] * (len(before.items) - 1)
    )
    model_config = read_config(source.manifest_folder(base_model), load)
    model_dtype = str(model_config.dtype or "float32").removeprefix("torch.")
    merge_config = MergeAdapterConfig(
        max_kl=config.max_kl,
        dtype=model_dtype if config.dtype == "keep" else config.dtype,  # type: ignore[arg-type]
        max_shard_size=config.max_shard_size or MAX_SHARD_SIZE,
    )
    checkpoint = Checkpoint(last, "adapter", {"method": {"type": adapter_method(last)}})
    inputs = merge.MergeInputs(checkpoint, before, tokenizer, load)
    return merge.merge_into(target, inputs, _probe_rows(tokenizer), merge_config) | {"weights": "merged"}


def _probe_rows(tokenizer: Manifest) -> list[dict[str, Any]]:
    """Return rows of the probe prompts in which every token except the first has a label."""
    loaded = load_tokenizer_from(source.manifest_folder(tokenizer))
    rows = []
    for prompt in PROBE_PROMPTS:
        ids = loaded(prompt, add_special_tokens=True)["input_ids"]
        rows.append({"input_ids": ids, "labels": list(ids), "lengths": [len(ids)]})
    return rows


def _load_options(config: ExportStepConfig) -> ModelLoadOptions:
    return ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)


def _link_files(paths: Iterable[Path], folder: Path, target: Path) -> None:
    """Copy files unchanged; weights are hard links if the file system supports them."""
    for path in paths:
        destination = target / path.relative_to(folder)
        destination.parent.mkdir(parents=True, exist_ok=True)
        if destination.exists():
            continue
        (filesystem.link_or_copy if path.suffix == ".safetensors" else shutil.copy2)(path, destination)

"""Write an export: weights, tokenizer with its chat template, generation config, card, Modelfile, hashes.

A model that is merged already and is to stay as it is gives its weights as hard links. Where weights change (an adapter
is folded in, or they are rounded) the model is compared with itself before, as `merge_adapter` does. Weights are
safetensors, whatever they were.
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
"""How safetensors call what torch calls otherwise."""

PROBE_PROMPTS = (
    "Explain in two sentences why the sky is blue, and why a sunset is red.",
    "Write a function in Python that returns the largest of three numbers, with a test.",
    "Translate into French: the meeting was moved from Monday to Thursday, at half past nine.",
    "List the planets of the solar system by their distance from the sun, with one fact about each.",
)
"""What a model is asked where its weights change."""


def export_model(tokenizer: Manifest, base_model: Manifest, origin: Origin, config: ExportStepConfig) -> Checkpoint:
    """Write a model in the form that others take.

    Args:
        tokenizer: With the chat template to use.
        base_model: Weights, and behind them the adapters to fold in.
        origin: What is known of it.
        config: The form.

    Raises:
        ProofError: The model changes by more than `config.max_kl`, or the Modelfile cannot be exact.
        RecipeError: The model has no such form.
    """
    key = digest([tokenizer.content_hash(), base_model.content_hash(), config.model_dump(mode="json"), origin.card])
    target = owner.scratch_folder() / f"export-{key[:32]}"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir()
    for file in tokenizer.only().paths():
        shutil.copy2(file, target / file.name)
    told: dict[str, Any] = {}
    if config.modelfile != "none":  # first, as it may refuse, and weights take long
        told = _write_modelfile(target, base_model, origin, config)
    told |= _write_weights(target, base_model, tokenizer, config)
    merge.add_eos_token(target)
    kind = "merged" if len(base_model.items) > 1 else "full"
    identity = {"base_model": base_model.content_hash(), "tokenizer": tokenizer.content_hash()}
    return Checkpoint(target, kind, identity, told, disposable=True)


def write_card_and_checksums(made: Checkpoint, card: str) -> Checkpoint:
    """Lay the card beside the model, and the hashes of all files: `sha256sum --check SHA256SUMS`."""
    (made.path / CARD_FILE).write_text(card, encoding="utf-8")
    paths = sorted(path for path in made.path.rglob("*") if path.is_file() and path.name != CHECKSUMS_FILE)
    lines = [f"{entry.sha256}  {entry.name}\n" for entry in file_entries(made.path, paths)]
    (made.path / CHECKSUMS_FILE).write_text("".join(lines), encoding="utf-8")
    return made


def _write_modelfile(target: Path, base_model: Manifest, origin: Origin, config: ExportStepConfig) -> dict[str, Any]:
    generation = source.manifest_folder(base_model) / "generation_config.json"
    if generation.is_file():
        shutil.copy2(generation, target / generation.name)
    merge.add_eos_token(target)
    system = config.system if config.system is not None else origin.system
    made = modelfile.build_modelfile(target, config, system)
    (target / modelfile.FILE_NAME).write_text(made.text, encoding="utf-8")
    return {**made.facts, "modelfile.sentence": made.sentence}


def _write_weights(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    folder = source.manifest_folder(base_model)
    if len(base_model.items) > 1:
        facts = _merge_adapter(target, base_model, tokenizer, config)
    elif _can_link(base_model, config):
        _link_files(base_model.items[0].paths(), folder, target)
        return {"weights": "as they were", "dtype": ", ".join(sorted(_dtypes(folder)))}
    else:
        facts = _rewrite(target, base_model, tokenizer, config)
    _link_files([path for path in base_model.items[0].paths() if path.suffix == ".py"], folder, target)
    return facts | {"dtype": ", ".join(sorted(_dtypes(target)))}


def _can_link(base_model: Manifest, config: ExportStepConfig) -> bool:
    """Tell whether the files can be taken as they are."""
    folder = source.manifest_folder(base_model)
    if config.max_shard_size or not any(folder.glob("*.safetensors")):
        return False
    return config.dtype == "keep" or _dtypes(folder) == {config.dtype}


def _dtypes(folder: Path) -> set[str]:
    """Return the types of the weights, from the headers of their files."""
    found = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return {DTYPES_BY_CODE.get(name, name) for name in found}


def _rewrite(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    """Load, round and save; nothing is measured where only the files change."""
    folder, holding = source.manifest_folder(base_model), _load_options(config)
    about = read_config(folder, holding)
    if quantize.quantization_kind(about.to_dict()) and config.dtype != "keep":
        raise RecipeError(
            f"dtype: {config.dtype}: the model comes in {quantize.quantization_kind(about.to_dict())}, which has no such form. "
            "Set dtype: keep."
        )
    size = config.max_shard_size or MAX_SHARD_SIZE
    if config.dtype == "keep":
        model = load_model(folder, about.dtype or torch.float32, allowed=holding)
        model.save_pretrained(target, max_shard_size=size)
        return {"weights": "the same values in other files"}
    model = load_model(folder, torch.float32, allowed=holding).eval()
    rows = _probe_rows(tokenizer)
    before = list(_distributions(model, rows))
    model = model.to(getattr(torch, config.dtype))
    facts = divergence.compare_distributions(before, _distributions(model, rows))
    if not facts["kl"] <= config.max_kl:
        raise VerificationError(
            f"dtype: {config.dtype}: the rounded model strays from the model by {facts['kl']:.2e} nats a token, at "
            f"most {config.max_kl:.0e} allowed (max_kl). Set dtype: keep or float32, or raise max_kl."
        )
    model.save_pretrained(target, max_shard_size=size)
    return facts | {"weights": "rounded"}


@torch.no_grad()
def _distributions(model: Any, rows: list[dict[str, Any]]) -> Iterator[torch.Tensor]:
    """Yield log-probabilities of the next token, [positions, vocabulary]; our prompts are short."""
    for row in rows:
        ids = torch.tensor([row["input_ids"]], device=model.device)
        yield model(input_ids=ids).logits[0, :-1].float().log_softmax(-1)


def _merge_adapter(target: Path, base_model: Manifest, tokenizer: Manifest, config: ExportStepConfig) -> dict[str, Any]:
    """Merge the last adapter into the base and those before it, measured on prompts of our own."""
    last = source.adapter_folders(base_model)[-1]
    family = families[adapter_method(last)]
    if not family.mergeable:
        raise RecipeError(f"adapters: {last} was made by {family.name}, which has no merged form. Leave it out.")
    before = Manifest(kind=base_model.kind, items=base_model.items[:-1])
    load = LoadStepConfig(
        **_load_options(config).model_dump(), max_length=MAX_LENGTH, uses=["merge"] * (len(before.items) - 1)
    )
    about = read_config(source.manifest_folder(base_model), load)
    kept = str(about.dtype or "float32").removeprefix("torch.")
    form = MergeAdapterConfig(
        max_kl=config.max_kl,
        dtype=kept if config.dtype == "keep" else config.dtype,  # type: ignore[arg-type]
        max_shard_size=config.max_shard_size or MAX_SHARD_SIZE,
    )
    checkpoint = Checkpoint(last, "adapter", {"method": {"type": adapter_method(last)}})
    parts = merge.MergeInputs(checkpoint, before, tokenizer, load)
    return merge.merge_into(target, parts, _probe_rows(tokenizer), form) | {"weights": "merged"}


def _probe_rows(tokenizer: Manifest) -> list[dict[str, Any]]:
    """Return rows in which every token but the first counts."""
    loaded = load_tokenizer_from(source.manifest_folder(tokenizer))
    rows = []
    for asked in PROBE_PROMPTS:
        ids = loaded(asked, add_special_tokens=True)["input_ids"]
        rows.append({"input_ids": ids, "labels": list(ids), "lengths": [len(ids)]})
    return rows


def _load_options(config: ExportStepConfig) -> ModelLoadOptions:
    return ModelLoadOptions(trust_remote_code=config.trust_remote_code, allow_pickle=config.allow_pickle)


def _link_files(paths: Iterable[Path], folder: Path, target: Path) -> None:
    """Take files as they are: weights as hard links where the file system has them, small files as copies."""
    for path in paths:
        place = target / path.relative_to(folder)
        place.parent.mkdir(parents=True, exist_ok=True)
        if place.exists():
            continue
        (filesystem.link_or_copy if path.suffix == ".safetensors" else shutil.copy2)(path, place)

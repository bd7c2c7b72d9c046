"""Model cards (Mitchell et al. 2019, arXiv:1810.03993), generated only from the records of a run.

A card starts with the keys that the Hugging Face Hub reads. Facts that were not recorded are given as unknown.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tuneline.config.recipe import Recipe
from tuneline.identity import Located, Manifest
from tuneline.statistics import Interval
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Evidence

MAX_DESCRIPTION_LENGTH = 5000
"""Maximum number of characters of a description in a registry database."""


@dataclass(frozen=True)
class CardInputs:
    """The facts of a model card."""

    recipe: Recipe
    sources: Manifest
    base_model: Manifest
    counts: Mapping[str, Any]
    """Counts of the mixture."""

    metrics: Mapping[str, Mapping[str, Interval]]
    """Metric -> `base`, `model`, `gain`."""

    evidence: Evidence
    decision: Decision
    content_hash: str
    """Content hash of the model."""


def render(inputs: CardInputs) -> str:
    """Return the card as Markdown."""
    decision, base = inputs.decision, inputs.base_model.items[0]
    parts = [
        _front(inputs),
        f"# {decision.model_name} version {decision.version}",
        f"{_description(inputs)} When it was registered: {decision.sentence}",
        f"## Base model\n\n{base.name} ({base.source}), license {base.licence}, sha256 {base.content_hash()[:16]}.",
        f"## Data\n\n{_data(inputs)}",
        f"## Method\n\n{_method(inputs.recipe)}",
        f"## Scores\n\n{_scores(inputs)}",
        f"## License\n\n{_describe_licenses(inputs)}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(inputs)),
        f"## Identity\n\nContent hash {inputs.content_hash}. Weights, tokenizer, chat template and generation config "
        "are in one folder, which the registry refers to.",
    ]
    return "\n\n".join(parts) + "\n"


def shorten(card: str) -> str:
    """Return the sections of a card that fit into a registry description, without the keys for the Hub."""
    text = card.split("---\n", 2)[-1].strip()
    more = "\n\nThe full card is `model_card.md` of the run."
    while len(text) > MAX_DESCRIPTION_LENGTH - len(more):
        text = text.rpartition("\n\n" if "\n\n" in text else " ")[0]
    return text if text == card.split("---\n", 2)[-1].strip() else text + more


def _front(inputs: CardInputs) -> str:
    base = inputs.base_model.items[0]
    keys = {
        "base_model": _repository(base),
        "license": _identifier(base.licence),
        "datasets": [name for name in map(_repository, inputs.sources.items) if name],
        "tags": ["tuneline", inputs.recipe.stage, inputs.recipe.method.type],
    }
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items() if value) + "\n---"


def _repository(item: Located) -> str | None:
    """Return the Hub repository of an item; the Hub rejects a card with any other value."""
    match = re.match(r"hub (?P<name>[^\s@]+)@", item.source)
    return match["name"] if match else None


def _identifier(licence: str) -> str:
    """Return a license identifier that the Hub accepts."""
    return licence if re.fullmatch(r"[a-z0-9.-]+", licence) and licence != "unknown" else "other"


def _description(inputs: CardInputs) -> str:
    recipe = inputs.recipe
    return f"{inputs.base_model.items[0].name}, fine-tuned: stage {recipe.stage}, method {recipe.method.type}."


def _data(inputs: CardInputs) -> str:
    rows = inputs.counts["by_source"]
    lines = ["| dataset | source | license | training rows | held-out rows | sha256 |", "|---|---|---|---:|---:|---|"]
    for item in inputs.sources.items:
        count = rows.get(item.name, {})
        cells = (item.name, item.source, item.licence, count.get("train", "?"), count.get("validation", "?"))
        lines.append(f"| {' | '.join(map(str, cells))} | {item.content_hash()[:16]} |")
    dropped = sum(sum(source["dropped"].values()) for source in inputs.counts["sources"])
    copies = inputs.counts["exact_copies_dropped"]
    return "\n".join(lines) + f"\n\n{copies} exact copies and {dropped} unusable rows were dropped."


def _method(recipe: Recipe) -> str:
    method, train = (part.model_dump(mode="json", exclude_unset=True) for part in (recipe.method, recipe.train))
    return f"Method: `{json.dumps(method)}`. Training: `{json.dumps(train)}`; other values are defaults."


def _scores(inputs: CardInputs) -> str:
    lines = ["| metric | items | base model | this model | gain, 95 % interval |", "|---|---:|---:|---:|---|"]
    for name, parts in inputs.metrics.items():
        gain = parts["gain"]
        means = f"{parts['base'].mean:.4f} | {parts['model'].mean:.4f}"
        lines.append(f"| {name} | {gain.num_items} | {means} | {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] |")
    return "\n".join(lines)


def _describe_licenses(inputs: CardInputs) -> str:
    data = {item.licence for item in inputs.sources.items}
    unknown = ["base model"] if inputs.base_model.items[0].licence == "unknown" else []
    unknown += [item.name for item in inputs.sources.items if item.licence == "unknown"]
    summary = f"Base model: {inputs.base_model.items[0].licence}. Data: {', '.join(sorted(data))}."
    return f"{summary} Not recorded: {', '.join(unknown)}; check them before redistribution." if unknown else summary


def _limits(inputs: CardInputs) -> list[str]:
    limits = ["Measured only on the held-out rows and exams above; nothing was measured on safety or bias."]
    for finding in inputs.decision.findings:
        if finding.role == "target":
            detect = finding.show(finding.detectable)
            limits.append(f"{finding.metric}, {finding.num_items} items: gains below {detect} are not detectable.")
    for name, items in inputs.evidence.contaminated.items():
        limits.append(f"{len(items)} items of {name} were found in the training rows.")
    limits += [f"{check.name}: {check.sentence}." for check in inputs.decision.checks if not check.passed]
    return list(dict.fromkeys(limits))


def render_export(card: str, name: str, source: str, licence: str, facts: Mapping[str, Any]) -> str:
    """Return the card of an export: that of the registered version, or the known facts, and a section on the export.

    Args:
        card: Card of the registered version; empty if there is none.
        name: Name of the model.
        source: Origin of the model.
        licence: License, if known.
        facts: Facts of the export: `weights`, `dtype`, `kl`, `modelfile.sentence`.
    """
    keys = {"license": _identifier(licence), "tags": ["tuneline"]}
    front = "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()) + "\n---"
    text = card.rstrip("\n") or (
        f"{front}\n\n# {name}\n\nSource: {source}. License: {licence}. Nothing else was recorded: training "
        "method, data and scores are unknown."
    )
    return f"{text}\n\n## Export\n\n" + "\n".join(f"- {line}" for line in _export_facts(facts)) + "\n"


def _export_facts(facts: Mapping[str, Any]) -> list[str]:
    lines = [f"Weights: {facts['weights']}, {facts['dtype']}, as safetensors."]
    if "kl" in facts:
        lines.append(
            f"Compared with the original model: KL {facts['kl']:.1e} nats per token, equal most likely tokens at "
            f"{facts['greedy_agreement']:.1%} of {facts['positions']} positions."
        )
    if "gguf.file" in facts:
        lines.append(
            f"GGUF for llama.cpp: {facts['gguf.file']}, KL {facts['gguf.mean_kl']:.1e} nats per token to the "
            f"safetensors weights (mean of {facts['gguf.positions']} positions, maximum {facts['gguf.max_kl']:.1e}), "
            f"equal token ids for {facts['gguf.texts']} texts, equal prompts for {facts['gguf.conversations']} "
            "conversations."
        )
        lines += [str(note) for note in facts.get("gguf.notes", [])]
    if "modelfile.sentence" in facts:
        lines.append(f"Ollama's Modelfile: {facts['modelfile.sentence']}.")
        lines += [str(note) for note in facts.get("modelfile.notes", [])]
    return [*lines, "Hashes of all files: SHA256SUMS."]

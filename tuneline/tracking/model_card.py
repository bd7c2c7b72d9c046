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


def render(known: CardInputs) -> str:
    """Return the card as Markdown."""
    decision, base = known.decision, known.base_model.items[0]
    parts = [
        _front(known),
        f"# {decision.model_name} version {decision.version}",
        f"{_what(known)} When it was registered: {decision.sentence}",
        f"## Base model\n\n{base.name} ({base.source}), licence {base.licence}, sha256 {base.content_hash()[:16]}.",
        f"## Data\n\n{_data(known)}",
        f"## Method\n\n{_method(known.recipe)}",
        f"## Scores\n\n{_scores(known)}",
        f"## Licence\n\n{_licence(known)}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in _limits(known)),
        f"## Identity\n\nContent hash {known.content_hash}. Weights, tokenizer, chat template and generation config "
        "lie in one folder, which the registry points at.",
    ]
    return "\n\n".join(parts) + "\n"


def shorten(card: str) -> str:
    """Return the sections of a card that fit into a registry description, without the keys for the Hub."""
    text = card.split("---\n", 2)[-1].strip()
    more = "\n\nThe full card is `model_card.md` of the run."
    while len(text) > MAX_DESCRIPTION_LENGTH - len(more):
        text = text.rpartition("\n\n" if "\n\n" in text else " ")[0]
    return text if text == card.split("---\n", 2)[-1].strip() else text + more


def _front(known: CardInputs) -> str:
    base = known.base_model.items[0]
    keys = {
        "base_model": _repository(base),
        "license": _identifier(base.licence),
        "datasets": [name for name in map(_repository, known.sources.items) if name],
        "tags": ["tuneline", known.recipe.stage, known.recipe.method.type],
    }
    return "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items() if value) + "\n---"


def _repository(item: Located) -> str | None:
    """Return the repository that something came from; the hub refuses a card that names anything else there."""
    found = re.match(r"hub (?P<name>[^\s@]+)@", item.source)
    return found["name"] if found else None


def _identifier(licence: str) -> str:
    """Return a licence identifier that the Hub accepts."""
    return licence if re.fullmatch(r"[a-z0-9.-]+", licence) and licence != "unknown" else "other"


def _what(known: CardInputs) -> str:
    recipe = known.recipe
    return f"{known.base_model.items[0].name}, fine-tuned: stage {recipe.stage}, method {recipe.method.type}."


def _data(known: CardInputs) -> str:
    rows = known.counts["by_source"]
    lines = ["| data set | from | licence | trained on | held out | sha256 |", "|---|---|---|---:|---:|---|"]
    for item in known.sources.items:
        count = rows.get(item.name, {})
        cells = (item.name, item.source, item.licence, count.get("train", "?"), count.get("validation", "?"))
        lines.append(f"| {' | '.join(map(str, cells))} | {item.content_hash()[:16]} |")
    dropped = sum(sum(source["dropped"].values()) for source in known.counts["sources"])
    copies = known.counts["exact_copies_dropped"]
    return "\n".join(lines) + f"\n\n{copies} exact copies and {dropped} unusable rows were dropped."


def _method(recipe: Recipe) -> str:
    method, train = (part.model_dump(mode="json", exclude_unset=True) for part in (recipe.method, recipe.train))
    return f"Method: `{json.dumps(method)}`. Training: `{json.dumps(train)}`; other values are defaults."


def _scores(known: CardInputs) -> str:
    lines = ["| metric | items | base model | this model | gain, 95 % interval |", "|---|---:|---:|---:|---|"]
    for name, parts in known.metrics.items():
        gain = parts["gain"]
        means = f"{parts['base'].mean:.4f} | {parts['model'].mean:.4f}"
        lines.append(f"| {name} | {gain.num_items} | {means} | {gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] |")
    return "\n".join(lines)


def _licence(known: CardInputs) -> str:
    data = {item.licence for item in known.sources.items}
    unknown = ["base model"] if known.base_model.items[0].licence == "unknown" else []
    unknown += [item.name for item in known.sources.items if item.licence == "unknown"]
    summary = f"Base model: {known.base_model.items[0].licence}. Data: {', '.join(sorted(data))}."
    return f"{summary} Not recorded: {', '.join(unknown)}; check them before redistribution." if unknown else summary


def _limits(known: CardInputs) -> list[str]:
    limits = ["Measured only on the held-out rows and exams above; nothing was measured on safety or bias."]
    for finding in known.decision.findings:
        if finding.role == "target":
            detect = finding.show(finding.detectable)
            limits.append(f"{finding.metric}, {finding.num_items} items: gains below {detect} are not detectable.")
    for name, items in known.evidence.contaminated.items():
        limits.append(f"{len(items)} items of {name} were found in the training rows.")
    limits += [f"{check.name}: {check.sentence}." for check in known.decision.checks if not check.passed]
    return list(dict.fromkeys(limits))


def render_export(card: str, name: str, source: str, licence: str, facts: Mapping[str, Any]) -> str:
    """Return the card of an export: that of the registered version, or the known facts, and a section on the export.

    Args:
        card: Card of the registered version; empty if there is none.
        name: Name of the model.
        source: Origin of the model.
        licence: Licence, if known.
        facts: Facts of the export: `weights`, `dtype`, `kl`, `modelfile.sentence`.
    """
    keys = {"license": _identifier(licence), "tags": ["tuneline"]}
    front = "---\n" + "\n".join(f"{key}: {json.dumps(value)}" for key, value in keys.items()) + "\n---"
    known = card.rstrip("\n") or (
        f"{front}\n\n# {name}\n\nFrom {source}. Licence: {licence}. Nothing else was recorded: training "
        "method, data and scores are unknown."
    )
    return f"{known}\n\n## Export\n\n" + "\n".join(f"- {line}" for line in _exported(facts)) + "\n"


def _exported(facts: Mapping[str, Any]) -> list[str]:
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
            f"equal token ids for {facts['gguf.texts']} texts, equal prompts for {facts['gguf.conversations']} conversations."
        )
        lines += [str(note) for note in facts.get("gguf.notes", [])]
    if "modelfile.sentence" in facts:
        lines.append(f"Ollama's Modelfile: {facts['modelfile.sentence']}.")
        lines += [str(note) for note in facts.get("modelfile.notes", [])]
    return [*lines, "Hashes of all files: SHA256SUMS."]

"""Ollama's Modelfile: the chat template in Go's language, the tokens at which an answer stops, and how it is drawn.

https://docs.ollama.com/modelfile. `FROM .` is the folder beside it: Ollama converts its safetensors itself.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tuneline.config.sections.export import ExportOptions
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import RecipeError, VerificationError
from tuneline.export import proof
from tuneline.export.chat import NotExpressibleError

FILE_NAME = "Modelfile"
PARAMETER_NAMES = {"repetition_penalty": "repeat_penalty"}
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""What of a generation config a Modelfile has a parameter for."""


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile, and how far it is proven."""

    text: str
    facts: dict[str, Any]
    sentence: str


def build_modelfile(folder: Path, config: ExportOptions, system: str | None) -> Modelfile:
    """Write the Modelfile of a model directory.

    Args:
        folder: Tokenizer with its chat template, generation config.
        config: How exact it must be, and parameters.
        system: Default system message.

    Raises:
        ProofError: The chat template has no equal in Go's template language, or not for all texts.
        RecipeError: The system message cannot be written.
    """
    tokenizer = load_tokenizer_from(folder)
    try:
        text, found = proof.translate_template(tokenizer, bos=proof.adds_bos_token(folder))
    except NotExpressibleError as error:
        raise VerificationError(
            f"modelfile: {config.modelfile}: {_truncate(str(error))}. Set modelfile: none to export without one."
        ) from error
    if found.limits and config.modelfile == "exact":
        raise VerificationError(
            f"modelfile: exact: the chat template treats some texts in a way that Go's template language cannot: "
            f"{'; '.join(found.limits)}. Set modelfile: limited for a Modelfile that is exact without them, or none."
        )
    notes = [f"Not so: {limit}." for limit in found.limits] + found.told
    lines = [
        "# TEMPLATE is the chat template of this folder in Ollama's language: rendered by both,",
        f"# {found.conversations} conversations gave the same {found.tokens} tokens.",
        *(f"# {' '.join(note.split())}" for note in notes),
        "FROM .",
        f"TEMPLATE {quote_block(text)}",
        *([f"SYSTEM {quote_block(system, 'system')}"] if system else []),
        *(f"PARAMETER stop {_quote_stop_token(token)}" for token in stop_tokens(folder)),
        *(f"PARAMETER {name} {value}" for name, value in (sampling_parameters(folder) | config.parameters).items()),
    ]
    facts: dict[str, Any] = {"modelfile.conversations": found.conversations, "modelfile.tokens": found.tokens}
    facts |= {"modelfile.exact": found.exact, "modelfile.notes": notes}
    return Modelfile("\n".join(lines) + "\n", facts, _sentence(found))


def _sentence(found: proof.TemplateComparison) -> str:
    same = f"{found.conversations} conversations give the {found.tokens} tokens of the chat template"
    return f"{same}, but not with {'; '.join(found.limits)}" if found.limits else same


def _truncate(text: str, longest: int = 500) -> str:
    return text if len(text) <= longest else f"{text[:longest]} ..."


def quote_block(text: str, key: str = "template") -> str:
    """Write a text of several lines.

    Raises:
        RecipeError: It holds the marks that end it.
    """
    if '"""' in text or text.endswith('"'):
        raise RecipeError(
            f'{key}: a Modelfile ends its texts with """, and this one has that inside or ends with ": {text[-40:]!r}. '
            "Change it, or set modelfile: none."
        )
    return f'"""{text}"""'


def _quote_stop_token(token: str) -> str:
    return quote_block(token, "stop token") if '"' in token or "\n" in token else f'"{token}"'


def stop_tokens(folder: Path) -> list[str]:
    """Return the tokens at which an answer stops, as in training and evaluation: those of tokenizer and config."""
    tokenizer = load_tokenizer_from(folder)
    told = _read_generation_config(folder).get("eos_token_id")
    ids = told if isinstance(told, list) else [told] if told is not None else []
    ids = [tokenizer.eos_token_id, *ids]
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in dict.fromkeys(i for i in ids if i is not None)]


def sampling_parameters(folder: Path) -> dict[str, Any]:
    """Return how answers are drawn: by the generation config, which is greedy unless it says otherwise."""
    about = _read_generation_config(folder)
    if not about.get("do_sample"):
        return {"temperature": 0}
    return {PARAMETER_NAMES.get(name, name): about[name] for name in SAMPLING_KEYS if about.get(name) is not None}


def _read_generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

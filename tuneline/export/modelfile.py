"""Ollama Modelfile: chat template in Go's template language, stop tokens, and sampling parameters.

https://docs.ollama.com/modelfile. `FROM .` refers to the folder of the Modelfile: Ollama converts its safetensors. If
there is a GGUF file, `FROM` names it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.export import ExportOptions
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import RecipeError, VerificationError
from tuneline.export import template_comparison
from tuneline.export.gguf.quantize import gguf_file_name
from tuneline.export.template_analysis import NotExpressibleError

FILE_NAME = "Modelfile"
PARAMETER_NAMES = {"repetition_penalty": "repeat_penalty"}
SAMPLING_KEYS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
"""Keys of a generation config that a Modelfile supports."""


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile and the result of its verification."""

    text: str
    facts: dict[str, Any]
    sentence: str


def build_modelfile(folder: Path, config: ExportOptions, system: str | None) -> Modelfile:
    """Build the Modelfile of a model directory.

    Args:
        folder: Folder with tokenizer, chat template and generation config.
        config: Required exactness, and parameters.
        system: Default system message.

    Raises:
        VerificationError: The chat template has no equivalent in Go's template language, or not for all texts.
        RecipeError: The system message cannot be quoted.
    """
    tokenizer = load_tokenizer_from(folder)
    try:
        text, comparison = template_comparison.translate_template(
            tokenizer, bos=template_comparison.adds_bos_token(folder)
        )
    except NotExpressibleError as error:
        raise VerificationError(
            f"modelfile: {config.modelfile}: {_truncate(str(error))}. Set modelfile: none to export without it."
        ) from error
    if comparison.limits and config.modelfile == "exact":
        raise VerificationError(
            f"modelfile: exact: Go's template language cannot reproduce the chat template for some texts: "
            f"{'; '.join(comparison.limits)}. Set modelfile: limited for a Modelfile that is exact for all others, or "
            "none."
        )
    notes = [f"Differs for: {limit}." for limit in comparison.limits] + comparison.notes
    lines = [
        "# TEMPLATE is the chat template of this folder in Ollama's template language. Both rendered",
        f"# {comparison.conversations} conversations to the same {comparison.tokens} tokens.",
        *(f"# {' '.join(note.split())}" for note in notes),
        f"FROM {_base(folder, tokenizer, config)}",
        f"TEMPLATE {quote_block(text)}",
        *([f"SYSTEM {quote_block(system, 'system')}"] if system else []),
        *(f"PARAMETER stop {_quote_stop_token(token)}" for token in stop_tokens(folder)),
        *(f"PARAMETER {name} {value}" for name, value in (sampling_parameters(folder) | config.parameters).items()),
    ]
    facts: dict[str, Any] = {"modelfile.conversations": comparison.conversations, "modelfile.tokens": comparison.tokens}
    facts |= {"modelfile.exact": comparison.exact, "modelfile.notes": notes}
    return Modelfile("\n".join(lines) + "\n", facts, _sentence(comparison))


def _base(folder: Path, tokenizer: PreTrainedTokenizerBase, config: ExportOptions) -> str:
    """Return the value of FROM: the GGUF file, unless Ollama would prepend BOS tokens differently with it."""
    if config.gguf == "none":
        return "."
    sample = tokenizer("a")["input_ids"]
    adds_bos = bool(sample) and tokenizer.bos_token_id is not None and sample[0] == tokenizer.bos_token_id
    return f"./{gguf_file_name(config.gguf)}" if adds_bos == template_comparison.adds_bos_token(folder) else "."


def _sentence(comparison: template_comparison.TemplateComparison) -> str:
    sentence = f"{comparison.conversations} conversations give the {comparison.tokens} tokens of the chat template"
    return f"{sentence}, except with {'; '.join(comparison.limits)}" if comparison.limits else sentence


def _truncate(text: str, max_length: int = 500) -> str:
    return text if len(text) <= max_length else f"{text[:max_length]} ..."


def quote_block(text: str, key: str = "template") -> str:
    """Quote a text of several lines.

    Raises:
        RecipeError: The text contains the closing quotes.
    """
    if '"""' in text or text.endswith('"'):
        raise RecipeError(
            f'{key}: a Modelfile delimits texts with """, and this text contains it or ends with ": {text[-40:]!r}. '
            "Change the text, or set modelfile: none."
        )
    return f'"""{text}"""'


def _quote_stop_token(token: str) -> str:
    return quote_block(token, "stop token") if '"' in token or "\n" in token else f'"{token}"'


def stop_tokens(folder: Path) -> list[str]:
    """Return the stop tokens, as in training and evaluation: those of the tokenizer and the generation config."""
    tokenizer = load_tokenizer_from(folder)
    eos = _read_generation_config(folder).get("eos_token_id")
    ids = eos if isinstance(eos, list) else [eos] if eos is not None else []
    ids = [tokenizer.eos_token_id, *ids]
    return [str(tokenizer.convert_ids_to_tokens(i)) for i in dict.fromkeys(i for i in ids if i is not None)]


def sampling_parameters(folder: Path) -> dict[str, Any]:
    """Return the sampling parameters of the generation config; greedy unless `do_sample` is set."""
    config = _read_generation_config(folder)
    if not config.get("do_sample"):
        return {"temperature": 0}
    return {PARAMETER_NAMES.get(name, name): config[name] for name in SAMPLING_KEYS if config.get(name) is not None}


def _read_generation_config(folder: Path) -> dict[str, Any]:
    path = folder / "generation_config.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

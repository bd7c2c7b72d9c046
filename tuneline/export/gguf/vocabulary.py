"""Tokenizer of a GGUF file: tokens, merges, pre-tokenizer, special tokens and chat template.

Only `tokenizer.json` is read. llama.cpp implements pre-tokenizers by name. The name is chosen by the structure of the
pre-tokenizer, and `proof` then compares the tokens of many texts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
from transformers import PreTrainedTokenizerBase

from tuneline.errors import SourceError

GPT4_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASE_PATTERN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+SUFFIX|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*SUFFIX|\p{{N}}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS: dict[tuple[tuple[str, ...], bool], str] = {
    (("bytes with regex",), False): "gpt-2",
    (("digits", "bytes with regex"), False): "smollm",
    ((GPT4_PATTERN.replace("DIGITS", "{1,3}"), "bytes"), True): "llama-bpe",
    ((GPT4_PATTERN.replace("DIGITS", "{1,3}"), "bytes"), False): "dbrx",
    ((GPT4_PATTERN.replace("DIGITS", ""), "bytes"), False): "qwen2",
    ((CASE_PATTERN.replace("SUFFIX", "").replace("DIGITS", ""), "bytes"), True): "tekken",
    ((CASE_PATTERN.replace("SUFFIX", CONTRACTION).replace("DIGITS", "{1,3}"), "bytes"), False): "gpt-4o",
}
"""Structure of a pre-tokenizer, and whether whole words skip the merges -> name in llama.cpp."""

SPACE = "\u2581"
"""Space in the tokens of SentencePiece."""


@dataclass(frozen=True)
class Vocabulary:
    """Tokenizer of a GGUF file."""

    model: str
    """`gpt2` (byte-level BPE) or `llama` (SentencePiece BPE with byte fallback)."""

    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float]
    """Priority of merges; empty for `gpt2`."""

    merges: list[str]
    """Empty for `llama`."""

    space_prefix: bool
    """Whether a space is inserted before a text."""

    normalizes: bool
    """Whether the tokenizer normalizes texts to NFC, which llama.cpp does not."""


def read_vocabulary(folder: Path, size: int) -> Vocabulary:
    """Read a tokenizer.

    Args:
        folder: Folder with `tokenizer.json`.
        size: Number of rows of the embeddings; missing tokens are filled.

    Raises:
        SourceError: llama.cpp has no such tokenizer.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise SourceError(f"gguf: {folder} has no tokenizer.json, which the export needs. Save a fast tokenizer there.")
    content = json.loads(path.read_text(encoding="utf-8"))
    model = content["model"]
    if model["type"] != "BPE":
        raise SourceError(
            f"gguf: a tokenizer of type {model['type']} cannot be exported; expected BPE. Set gguf: none."
        )
    added = {token["id"]: token for token in content["added_tokens"]}
    texts: dict[int, str] = {index: text for text, index in model["vocab"].items()}
    texts |= {index: token["content"] for index, token in added.items()}
    if max(texts) >= size:
        raise SourceError(f"gguf: the tokenizer has {max(texts) + 1} tokens, but the embeddings have {size} rows.")
    tokens = [texts.get(index, f"[PAD{index}]") for index in range(size)]
    is_sentencepiece = bool(model.get("byte_fallback"))
    normalizers = _flatten(content["normalizer"], "normalizers")
    return Vocabulary(
        model="llama" if is_sentencepiece else "gpt2",
        pre="default" if is_sentencepiece else _pre_tokenizer(content),
        tokens=tokens,
        types=[int(_token_type(index, texts, added, model)) for index in range(size)],
        scores=_scores(tokens, model["merges"]) if is_sentencepiece else [],
        merges=[] if is_sentencepiece else gguf.SpecialVocab(folder, load_merges=True, special_token_types=()).merges,
        space_prefix=_has_space_prefix(content, normalizers),
        normalizes=any(part["type"] == "NFC" for part in normalizers),
    )


def add_vocabulary(writer: gguf.GGUFWriter, known: Vocabulary, tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the tokenizer to a GGUF file."""
    writer.add_tokenizer_model(known.model)
    writer.add_tokenizer_pre(known.pre)
    writer.add_token_list(known.tokens)
    writer.add_token_types(known.types)
    if known.scores:
        writer.add_token_scores(known.scores)
    if known.merges:
        writer.add_token_merges(known.merges)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "unk", "pad", "sep", "mask")}
    for name, index in ids.items():
        if index is not None:
            getattr(writer, f"add_{name}_token_id")(index)
    sample = tokenizer("a")["input_ids"]
    writer.add_add_bos_token(bool(sample) and sample[0] == ids["bos"] and ids["bos"] is not None)
    writer.add_add_eos_token(bool(sample) and sample[-1] == ids["eos"] and ids["eos"] is not None)
    writer.add_add_space_prefix(known.space_prefix)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _flatten(node: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    """Return the parts of a normalizer or pre-tokenizer."""
    if node is None:
        return []
    return list(node[key]) if node["type"] == "Sequence" else [node]


def _pre_tokenizer(content: dict[str, Any]) -> str:
    """Return llama.cpp's name of a byte-level pre-tokenizer.

    Raises:
        SourceError: There is none.
    """
    names = []
    for part in _flatten(content["pre_tokenizer"], "pretokenizers"):
        if part["type"] == "ByteLevel" and not part.get("add_prefix_space"):
            names.append("bytes with regex" if part.get("use_regex", True) else "bytes")
        elif part["type"] == "Digits" and part.get("individual_digits"):
            names.append("digits")
        elif part["type"] == "Split" and part["behavior"] == "Isolated" and not part["invert"]:
            names.append(str(part["pattern"].get("Regex") or part["pattern"].get("String")))
        else:
            names.append(json.dumps(part))
    normalizers = {part["type"] for part in _flatten(content["normalizer"], "normalizers")}
    key = (tuple(names), bool(content["model"].get("ignore_merges")))
    if key not in PRE_TOKENIZERS or normalizers - {"NFC"}:
        raise SourceError(
            f"gguf: llama.cpp has no pre-tokenizer for {names}, ignore_merges {key[1]}, normalizers "
            f"{sorted(normalizers)}, as far as is known here. Known: {', '.join(sorted(PRE_TOKENIZERS.values()))}. Set "
            "gguf: none."
        )
    return PRE_TOKENIZERS[key]


def _token_type(
    index: int, texts: dict[int, str], added: dict[int, dict[str, Any]], model: dict[str, Any]
) -> gguf.TokenType:
    if index not in texts:
        return gguf.TokenType.UNUSED
    text = texts[index]
    if index in added:
        if text == model.get("unk_token") and model.get("byte_fallback"):
            return gguf.TokenType.UNKNOWN
        return gguf.TokenType.CONTROL if added[index]["special"] else gguf.TokenType.USER_DEFINED
    if model.get("byte_fallback") and len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return gguf.TokenType.BYTE
    return gguf.TokenType.NORMAL


def _scores(tokens: list[str], merges: list[Any]) -> list[float]:
    """Return scores that make llama.cpp merge in the order of the merges: the negative rank of the first merge."""
    ranks: dict[str, int] = {}
    for rank, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        ranks.setdefault("".join(pair), rank)
    return [-float(ranks.get(token, len(merges))) for token in tokens]


def _has_space_prefix(content: dict[str, Any], normalizers: list[dict[str, Any]]) -> bool:
    if any(part["type"] == "Prepend" and part["prepend"] == SPACE for part in normalizers):
        return True
    parts = _flatten(content["pre_tokenizer"], "pretokenizers")
    return any(part["type"] == "Metaspace" and part.get("prepend_scheme", "always") != "never" for part in parts)

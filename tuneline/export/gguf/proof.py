"""Verification of a GGUF file: llama.cpp runs it, and its outputs are compared with those of transformers.

Compared are the log-probabilities of the next token at many positions, the token ids of many texts, and the prompts
that llama.cpp renders with the chat template.
"""

import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import DataError, VerificationError
from tuneline.export import template_analysis as chats
from tuneline.export import template_comparison as templates
from tuneline.export.gguf.llama_server import LlamaClient, running_server
from tuneline.export.gguf.quantize import Kind
from tuneline.model.load import load_model

PROMPTS = (
    "Explain in two sentences why the sky is blue, and why a sunset is red.",
    'def largest(a, b, c):\n    """Return the largest number."""\n    return max(a, b, c)\n\nassert largest(1, 22, 3)',
    "Übersetze: Das Treffen wurde von Montag auf Donnerstag, halb zehn, verlegt. 会议改到星期四。",
    "The planets by distance from the sun: Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and",
)
MAX_ROW = 256
"""Tokens per prompt."""

POSITIONS = 8
"""Compared positions per prompt, evenly spaced, with the last one."""

CANDIDATES = 512
"""Most probable tokens that llama.cpp reports per position; the others are compared as one."""


@dataclass(frozen=True)
class Bounds:
    """Maximum distances of a file type, in nats."""

    mean_kl: float
    max_kl: float


BOUNDS: dict[Kind, Bounds] = {
    "f16": Bounds(3e-4, 3e-3),
    "q8_0": Bounds(2e-2, 0.1),
    "q4_k_m": Bounds(0.2, 1.0),
}
"""Bounds by file type; docs/log.md has the measurements."""

TEXTS = (
    "",
    "Hello, world!",
    "  two  spaces,\ttabs\t\t and trailing   ",
    "line one\nline two\r\n\r\n\n  indented\n\n\n",
    "It's what we're/they'll/I'd/you've ISN'T it? CamelCaseWord snake_case_word",
    "0 1 12 123 1234 12345 3.14159 1e-9 0x1F ١٢٣ ½ ²",
    "你好，世界。日本語のテキスト 한국어 텍스트 ภาษาไทย हिन्दी العربية עברית",
    "naïve café Ångström Straße ﬁ ĳ İstanbul ǅ",
    "👩‍👩‍👧 🇩🇪 👍🏽 🏴‍☠️ 😀😀",
    "<b>tag</b> & \"quotes\" 'single' `code` $x^2$ {% raw %} {{ y }} \\n \\ // ## @@",
    "\u00a0nbsp\u2003em\u3000wide\u200bzero\ufeffbom\u202edir",
    'def f(x):\n    return [i**2 for i in range(10)]  # comment\n\nprint(f"{f(3)!r}")\n',
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!!!!!!!!!!!!!!!!----------------==========",
    "https://example.org/a?b=c&d=%20e#f mail@example.org 2026-11-30T08:42:37Z",
    "\x00\x01\x7f control \x1b[0m",
)
"""Texts whose token ids are compared, in addition to texts with every special token."""

MAX_SPECIAL_TOKENS = 64


@dataclass(frozen=True)
class GgufReport:
    """Result of comparing a GGUF file with the model."""

    kind: Kind
    file: str
    bytes: int
    architecture: str
    positions: int
    mean_kl: float
    """Mean KL divergence from transformers' to llama.cpp's distribution, in nats per token."""

    max_kl: float
    max_difference: float
    """Largest difference of log-probabilities of tokens with a probability above 1e-3."""

    greedy_agreement: float
    """Share of positions with the same most probable token."""

    texts: int
    """Texts with equal token ids."""

    conversations: int
    """Conversations that llama.cpp renders to the same prompt."""

    context_length: int
    notes: list[str] = field(default_factory=list)
    """Known differences."""

    def facts(self) -> dict[str, Any]:
        """Return the figures for metadata of an artifact."""
        names = ("kind", "bytes", "positions", "mean_kl", "max_kl", "max_difference", "greedy_agreement", "texts")
        facts = {f"gguf.{name}": getattr(self, name) for name in (*names, "conversations", "context_length", "notes")}
        return {**facts, "gguf.file": self.file}


def verify(folder: Path, file: Path, kind: Kind, options: ModelLoadOptions, context: int) -> GgufReport:
    """Compare a GGUF file with the model directory that it was made from.

    Raises:
        VerificationError: Token ids, prompts or log-probabilities differ, or llama.cpp cannot load the file.
    """
    tokenizer = load_tokenizer_from(folder)
    model = load_model(folder, torch.float32, allowed=options).eval()
    rows = [row[: min(MAX_ROW, context - 1)] for text in PROMPTS if (row := tokenizer(text)["input_ids"])]
    notes: list[str] = []
    with running_server(file, context=min(context, 512)) as client:
        texts = compare_tokens(tokenizer, client, notes)
        distances = compare_outputs(model, rows, client)
        conversations = compare_prompts(tokenizer, client, notes)
    trained = int(getattr(model.config, "max_position_embeddings", None) or context)
    if context < trained:
        notes.append(f"llama.cpp has no sliding window for this architecture: the context is {context}, not {trained}.")
    report = GgufReport(
        kind=kind,
        file=file.name,
        bytes=file.stat().st_size,
        architecture=str(model.config.model_type),
        texts=texts,
        conversations=conversations,
        context_length=context,
        notes=notes,
        **distances,
    )
    bounds = BOUNDS[kind]
    if not (report.mean_kl <= bounds.mean_kl and report.max_kl <= bounds.max_kl):
        raise VerificationError(
            f"gguf: {kind}: llama.cpp and transformers disagree on {report.architecture}: KL divergence "
            f"{report.mean_kl:.2e} (mean), {report.max_kl:.2e} (max) nats per token at {report.positions} positions, "
            f"at most {bounds.mean_kl:.0e} and {bounds.max_kl:.0e} allowed. Set gguf: none, or another type."
        )
    return report


@torch.no_grad()
def compare_outputs(model: Any, rows: list[list[int]], client: LlamaClient) -> dict[str, Any]:
    """Compare the distributions of the next token; returns figures by their names in `GgufReport`."""
    divergences, differences, agreements = [], [], []
    for row in rows:
        expected = model(input_ids=torch.tensor([row], device=model.device)).logits[0].float().log_softmax(-1).cpu()
        for length in sorted({round(len(row) * (i + 1) / POSITIONS) or 1 for i in range(POSITIONS)}):
            p = expected[length - 1]
            ids, q = next_token(client, row[:length], min(CANDIDATES, len(p)), rows[0][-1])
            divergences.append(_divergence(p, ids, q))
            likely = p[ids].exp() > 1e-3
            differences.append(float((p[ids] - q)[likely].abs().max()) if likely.any() else 0.0)
            agreements.append(int(p.argmax()) == int(ids[0]))
    if not all(value == value for value in divergences):
        raise VerificationError("gguf: llama.cpp computes log-probabilities that are not numbers.")
    return {
        "positions": len(divergences),
        "mean_kl": sum(divergences) / len(divergences),
        "max_kl": max(divergences),
        "max_difference": max(differences),
        "greedy_agreement": sum(agreements) / len(agreements),
    }


def next_token(client: LlamaClient, ids: list[int], count: int, forced: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the most probable next tokens, and their log-probabilities before sampling.

    llama.cpp reports nothing if it generates a stop token or a part of a character, so `forced` is generated.
    """
    body = {"prompt": ids, "n_predict": 1, "n_probs": count, "temperature": 0.0, "cache_prompt": True}
    body["logit_bias"] = [[forced, 1000.0]]
    top = client.post("/completion", body)["completion_probabilities"][0]["top_logprobs"]
    values = [float("nan") if item["logprob"] is None else item["logprob"] for item in top]
    return torch.tensor([item["id"] for item in top]), torch.tensor(values)


def _divergence(p: torch.Tensor, ids: torch.Tensor, q: torch.Tensor) -> float:
    """Return the KL divergence over some tokens and the others as one."""
    known = p[ids].double()
    kl = float((known.exp() * (known - q.double())).sum())
    rest_p, rest_q = 1 - float(known.exp().sum()), 1 - float(q.double().exp().sum())
    if len(ids) < len(p) and rest_p > 1e-9:
        kl += rest_p * float(torch.log(torch.tensor(rest_p / max(rest_q, 1e-9))))
    return kl


def compare_tokens(tokenizer: PreTrainedTokenizerBase, client: LlamaClient, notes: list[str]) -> int:
    """Compare token ids of many texts; returns the number of texts.

    Raises:
        VerificationError: Token ids differ.
    """
    special = [str(token) for token in tokenizer.added_tokens_decoder.values()][:MAX_SPECIAL_TOKENS]
    texts = [*TEXTS, *PROMPTS, *(f"before{token}after\n{token}{token} end" for token in special)]
    normalized = [unicodedata.normalize("NFC", text) for text in texts]
    decomposed = "e\u0301 A\u030a \u1112\u1161\u11ab"
    for text in normalized:
        _compare_text(tokenizer, client, text)
    try:
        _compare_text(tokenizer, client, decomposed)
    except VerificationError:
        if tokenizer(decomposed)["input_ids"] != tokenizer(unicodedata.normalize("NFC", decomposed))["input_ids"]:
            raise
        notes.append("The tokenizer normalizes texts to NFC, llama.cpp does not: decomposed characters differ.")
    return len(normalized)


def _compare_text(tokenizer: PreTrainedTokenizerBase, client: LlamaClient, text: str) -> None:
    for add_special in (False, True):
        expected = tokenizer(text, add_special_tokens=add_special)["input_ids"]
        body = {"content": text, "add_special": add_special, "parse_special": True}
        actual = client.post("/tokenize", body)["tokens"]
        if actual != expected:
            raise VerificationError(
                f"gguf: llama.cpp tokenizes {text!r} as {_clip(actual)}, the tokenizer as {_clip(expected)}. Set "
                "gguf: none."
            )


def _clip(ids: list[int]) -> str:
    return str(ids) if len(ids) <= 40 else f"{ids[:40]} ..."


def compare_prompts(tokenizer: PreTrainedTokenizerBase, client: LlamaClient, notes: list[str]) -> int:
    """Compare rendered conversations; returns the number of equal ones.

    Raises:
        VerificationError: A conversation of plain texts is rendered differently.
    """
    if not isinstance(tokenizer.chat_template, str):
        return 0
    equal, different = 0, []
    for number, chat in enumerate(templates.pattern_conversations(templates.ROLE_PATTERNS)):
        try:
            expected = chats.render_prompt(tokenizer, chat)
        except DataError:
            continue
        actual = client.post("/apply-template", {"messages": chat})["prompt"]
        if actual == expected:
            equal += 1
        elif all(message["content"].strip() == message["content"] != "" for message in chat) or number == 0:
            raise VerificationError(
                f"gguf: llama.cpp renders {chat!r} as {actual!r}, the chat template of the tokenizer as {expected!r}."
            )
        else:
            different.append(chat)
    if different:
        notes.append(
            f"llama.cpp renders {len(different)} of {equal + len(different)} conversations differently, such as "
            f"{different[0]!r}. Tuneline's server renders prompts itself."
        )
    return equal

"""HTML preview of token sequences: text with trained tokens marked, a histogram of lengths, and counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenization.loss_mask import TokenizedSequence
from tuneline.html import render

BAR_WIDTH_PX = 500
"""Width of the longest bar of the histogram, in pixels."""


CONTROL_PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters, and the Unicode symbols that are displayed for them."""


class TextSpan(NamedTuple):
    """Text of adjacent tokens that agree in whether they have loss (`trained`) and whether they are special tokens."""

    text: str
    trained: bool
    special: bool


class PreviewSequence(NamedTuple):
    """A sequence of a preview; `name` is the location of its example and, for a pair, the role of the answer."""

    tokens: TokenizedSequence
    name: str = ""

    @property
    def title(self) -> str:
        """Name and size of the sequence."""
        size = f"{len(self.tokens.input_ids):,} tokens, {count_trained_tokens(self.tokens):,} trained"
        return f"{self.name}: {size}" if self.name else size


@dataclass(frozen=True)
class DatasetPreview:
    """A dataset's preview: the displayed sequences, counts over all (`lengths` is a histogram), and formatted facts."""

    title: str
    shown: list[PreviewSequence]
    counts: dict[str, Any]
    facts: list[tuple[str, str]]


def text_spans(tokens: TokenizedSequence, tokenizer: PreTrainedTokenizerBase) -> list[TextSpan]:
    """Split the text of a sequence into spans; the first token has no loss because it has no context."""
    ids = tokens.input_ids
    trained = [False] * len(ids)
    for start, end in tokens.trained:
        trained[start:end] = [True] * (end - start)
    trained[:1] = [False] * len(trained[:1])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    spans = []
    for (is_trained, is_special), group in groupby(range(len(ids)), key=lambda i: (trained[i], ids[i] in special)):
        positions = list(group)
        text = _decode_span(ids, positions[0], positions[-1] + 1, tokenizer)
        spans.append(TextSpan(show_control_characters(text), is_trained, is_special))
    return spans


def show_control_characters(text: str) -> str:
    """Replace control characters by their Unicode symbols; line breaks and tabs are kept."""
    return text.translate(CONTROL_PICTURES)


def count_trained_tokens(tokens: TokenizedSequence) -> int:
    """Count the tokens of a sequence that have loss."""
    return sum(end - max(start, 1) for start, end in tokens.trained)


def _decode_span(ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode a span after the token before it: some tokenizers omit a space at the start of a text."""
    before = ids[max(start - 1, 0) : start]
    options = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(before + ids[start:end], **options))[len(tokenizer.decode(before, **options)) :]


def preview(shown: list[PreviewSequence], tokenizer: PreTrainedTokenizerBase) -> list[dict[str, Any]]:
    """Return sequences as JSON-able values: `title`, and `parts` with `text`, `trained` and `special`."""
    return [
        {"title": each.title, "parts": [part._asdict() for part in text_spans(each.tokens, tokenizer)]}
        for each in shown
    ]


def render_split(sequences: list[dict[str, Any]], counts: dict[str, Any]) -> str:
    """Return an HTML page: the first sequences with trained text marked, a histogram of lengths, and the counts.

    Args:
        sequences: From `preview`.
        counts: Counts of the split, with `lengths`.
    """
    return _page("Training rows", [], [_section("", format_counts(counts), counts, sequences)])


def render_page(
    title: str, sentences: Iterable[str], sections: Iterable[DatasetPreview], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Return an HTML page with some sentences and a section for each dataset."""
    return _page(
        title,
        sentences,
        [_section(each.title, each.facts, each.counts, preview(each.shown, tokenizer)) for each in sections],
    )


def _page(title: str, sentences: Iterable[str], sections: list[dict[str, Any]]) -> str:
    return render.page("data_preview", title=title, sentences=sentences, sections=sections)


def format_counts(counts: dict[str, Any]) -> list[tuple[str, str]]:
    """Format counts as pairs of a readable name and a value."""
    return [(name.replace("_", " "), _format_value(name, value)) for name, value in counts.items() if name != "lengths"]


def histogram_bars(counts: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Return the histogram as (from, to, number of sequences), without empty bins at the ends."""
    lengths = counts["lengths"]
    bins = list(zip(lengths["edges"], lengths["edges"][1:], lengths["counts"], strict=False))
    filled = [i for i, (*_, count) in enumerate(bins) if count] or [0]
    return bins[filled[0] : filled[-1] + 1]


def _format_value(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_format_value('', item)}" for key, item in value.items()) or "none"
    if isinstance(value, list):
        return "\n".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.1%}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _section(
    title: str, lines: list[tuple[str, str]], counts: dict[str, Any], sequences: list[dict[str, Any]]
) -> dict[str, Any]:
    histogram = histogram_bars(counts)
    most = max([count for *_, count in histogram], default=0) or 1
    longest = counts.get("max_length", histogram[-1][1] if histogram else 0)
    return {
        "title": title,
        "facts": [(name, text.split("\n")) for name, text in lines],
        "bars": [
            (f"{low:,}", f"{high:,}", f"{count:,}", round(BAR_WIDTH_PX * count / most), low > longest)
            for low, high, count in histogram
        ],
        "sequences": sequences,
    }

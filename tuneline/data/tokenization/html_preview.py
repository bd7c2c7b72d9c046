"""HTML preview of token sequences: text with trained tokens marked, a histogram of lengths, and counts."""

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from tuneline.data.tokenization.loss_mask import TokenizedSequence

STYLE = """
:root { color-scheme: light dark; --trained: #c9f2d0; --special: #7a3fb5; --line: #8886 }
@media (prefers-color-scheme: dark) { :root { --trained: #14532d; --special: #cfa8f7 } }
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1.5rem }
h2 { border-bottom: 1px solid var(--line); margin-top: 2.5rem }
h3 { font-size: 1rem; font-weight: 600; margin: 1.4rem 0 .3rem }
pre { border: 1px solid var(--line); border-radius: 6px; font-size: 13px; line-height: 1.55; margin: 0;
  overflow-wrap: anywhere; padding: .7rem .9rem; white-space: pre-wrap }
mark { background: var(--trained); border-radius: 2px; color: inherit }
b { color: var(--special); font-weight: 600 }
i::before { color: #999; content: "↵"; font-style: normal }
table { border-collapse: collapse }
td { padding: .1rem 1rem .1rem 0; vertical-align: top }
td:first-child { color: #888; white-space: nowrap }
.bars td { font-variant-numeric: tabular-nums; text-align: right }
.bars td:last-child { text-align: left }
.bar { background: #3b9a63; display: inline-block; height: .8rem }
.over .bar { background: #c2554d }
"""
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


def render_split(shown: list[PreviewSequence], tokenizer: PreTrainedTokenizerBase, counts: dict[str, Any]) -> str:
    """Render an HTML page for one split: its first sequences, a histogram of lengths, and the counts."""
    return render_page("Training rows", [], [DatasetPreview("", shown, counts, format_counts(counts))], tokenizer)


def render_page(
    title: str, sentences: Iterable[str], sections: Iterable[DatasetPreview], tokenizer: PreTrainedTokenizerBase
) -> str:
    """Render an HTML page with some sentences and a section per dataset."""
    body = "".join(_section(section, tokenizer) for section in sections)
    paragraphs = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1>{paragraphs}"
        "<p>The text as the model receives it: <mark>marked</mark> text has loss, <b>special tokens</b> are coloured, "
        f"and <i></i> is a line break.</p>{body}</html>\n"
    )


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


def _section(section: DatasetPreview, tokenizer: PreTrainedTokenizerBase) -> str:
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(value).replace(chr(10), '<br>')}</td></tr>"
        for name, value in section.facts
    )
    heading = f"<h2>{escape(section.title)}</h2>" if section.title else ""
    sequences = "".join(_sequence(number, shown, tokenizer) for number, shown in enumerate(section.shown, start=1))
    return f"{heading}<table>{rows}</table><h3>Tokens per sequence</h3>{_bars(section.counts)}{sequences}"


def _sequence(number: int, shown: PreviewSequence, tokenizer: PreTrainedTokenizerBase) -> str:
    text = "".join(map(_span, text_spans(shown.tokens, tokenizer)))
    return f"<h3>{number}: {escape(shown.title)}</h3><pre>{text}</pre>"


def _span(span: TextSpan) -> str:
    text = escape(span.text).replace("\n", "<i></i>\n")
    text = f"<b>{text}</b>" if span.special else text
    return f"<mark>{text}</mark>" if span.trained else text


def _bars(counts: dict[str, Any]) -> str:
    bars = histogram_bars(counts)
    highest = max([count for *_, count in bars], default=0) or 1
    max_length = counts.get("max_length", bars[-1][1] if bars else 0)
    lines = [
        f"<tr{' class=over' if low > max_length else ''}><td>{low:,} to {high:,}</td><td>{count:,}</td>"
        f"<td><span class=bar style='width:{round(BAR_WIDTH_PX * count / highest)}px'></span></td></tr>"
        for low, high, count in bars
    ]
    return f"<table class=bars>{''.join(lines)}</table>"

"""What the model will see: sequences as text, trained tokens apart from the others, and how long they are."""

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


class TextSpan(NamedTuple):
    """A piece of a sequence: whether its tokens carry loss, and whether they are special ones."""

    text: str
    trained: bool
    special: bool


class PreviewSequence(NamedTuple):
    """A sequence to look at, and what it is: where its example stands, and which answer of a pair it has."""

    tokens: TokenizedSequence
    name: str = ""

    @property
    def title(self) -> str:
        """Its name and its size."""
        size = f"{len(self.tokens.input_ids):,} tokens, {count_trained_tokens(self.tokens):,} trained"
        return f"{self.name}: {size}" if self.name else size


@dataclass(frozen=True)
class DatasetPreview:
    """Some sequences of a data set, what was counted of all (with a histogram in `lengths`), and that for people."""

    title: str
    shown: list[PreviewSequence]
    counts: dict[str, Any]
    facts: list[tuple[str, str]]


def text_spans(tokens: TokenizedSequence, tokenizer: PreTrainedTokenizerBase) -> list[TextSpan]:
    """Return the text of a sequence in parts; its first token carries no loss, as nothing stands before it."""
    ids = tokens.input_ids
    trained = [False] * len(ids)
    for start, end in tokens.trained:
        trained[start:end] = [True] * (end - start)
    trained[:1] = [False] * len(trained[:1])
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = []
    for (is_trained, is_special), places in groupby(range(len(ids)), key=lambda i: (trained[i], ids[i] in special)):
        here = list(places)
        text = _text(ids, here[0], here[-1] + 1, tokenizer)
        found.append(TextSpan(show_control_characters(text), is_trained, is_special))
    return found


def show_control_characters(text: str) -> str:
    """Show signs that would move a cursor as pictures of themselves; line breaks and tabs stay."""
    return text.translate(CONTROL_PICTURES)


def count_trained_tokens(tokens: TokenizedSequence) -> int:
    """Count the tokens of a sequence that carry loss."""
    return sum(end - max(start, 1) for start, end in tokens.trained)


def _text(ids: list[int], start: int, end: int, tokenizer: PreTrainedTokenizerBase) -> str:
    """Decode behind the token before: some tokenizers leave out a space where a text begins."""
    before = ids[max(start - 1, 0) : start]
    keep = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return str(tokenizer.decode(before + ids[start:end], **keep))[len(tokenizer.decode(before, **keep)) :]


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
    """Return an HTML page with some sentences and a section for each data set."""
    return _page(
        title,
        sentences,
        [_section(each.title, each.facts, each.counts, preview(each.shown, tokenizer)) for each in sections],
    )


def _page(title: str, sentences: Iterable[str], sections: list[dict[str, Any]]) -> str:
    return render.page("data_preview", title=title, sentences=sentences, sections=sections)


def format_counts(counts: dict[str, Any]) -> list[tuple[str, str]]:
    """Return counts as lines for people: a name and what it is."""
    return [(name.replace("_", " "), _said(name, value)) for name, value in counts.items() if name != "lengths"]


def histogram_bars(counts: dict[str, Any]) -> list[tuple[int, int, int]]:
    """Return the histogram as (from, to, sequences), without empty ends."""
    lengths = counts["lengths"]
    found = list(zip(lengths["edges"], lengths["edges"][1:], lengths["counts"], strict=False))
    filled = [i for i, (*_, count) in enumerate(found) if count] or [0]
    return found[filled[0] : filled[-1] + 1]


def _said(name: str, value: Any) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{key} {_said('', each)}" for key, each in value.items()) or "none"
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

"""`tuneline data preview`: the first rows of a recipe as the model will see them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuneline.cli import imports, show

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuneline.data.preview.sample_rows import PreviewResult
    from tuneline.data.tokenization.html_preview import DatasetPreview, TextSpan

HEAD_CHARS, TAIL_CHARS = 2000, 1000
"""Characters printed of the start and the end of a long sequence; the HTML page shows all."""

MARKERS = ("⟦", "⟧")
"""Enclose trained text on output without colors."""

STYLES = {(True, False): "green", (True, True): "bold green", (False, True): "magenta", (False, False): ""}
"""Styles by (is trained, is a special token)."""

BAR_WIDTH = 40


def preview(
    recipe: Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml.")],
    rows: Annotated[int, typer.Option(min=0, help="Number of rows to show per dataset.")] = 5,
    source: Annotated[str | None, typer.Option(help="Name of the dataset to show; default: all.")] = None,
    html: Annotated[Path | None, typer.Option(help="HTML file to write, with sequences in full length.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the first rows of each dataset as the model will see them: trained text, lengths, and rejected rows."""
    from tuneline.config import existence

    checked = imports.read_config(recipe)
    existence.check(checked.recipe)
    with show.status(f"Reading the first rows of {recipe}"):
        from tuneline.data.preview import sample_rows
        from tuneline.data.tokenizer.loader import load_tokenizer
        from tuneline.model import resolve

        manifest, facts = resolve.locate_tokenizer(checked.training.for_resolve())
        tokenizer = load_tokenizer(manifest)
        result = sample_rows.preview_sources(checked.training, tokenizer, num_shown=rows, only=source)
    if html:
        _write(html, recipe, facts, result, tokenizer)
    if as_json:
        typer.echo(json.dumps(_as_json(facts, result, tokenizer), indent=1, ensure_ascii=False))
    else:
        _show(facts, result, tokenizer, html)
    if result.problem:
        raise result.problem


def _write(
    html: Path, recipe: Path, facts: list[str], result: "PreviewResult", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    from tuneline.data.tokenization import html_preview as pages

    sentences = [*facts, f"A run would fail: {result.problem}"] if result.problem else facts
    html.write_text(
        pages.render_page(f"Preview of {recipe.name}", sentences, result.sections, tokenizer), encoding="utf-8"
    )


def _as_json(facts: list[str], result: "PreviewResult", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    from tuneline.data.tokenization import html_preview as pages

    sources = []
    for section in result.sections:
        shown = [
            {
                "name": name,
                "example_id": tokens.example_id,
                "tokens": len(tokens.input_ids),
                "trained_tokens": pages.count_trained_tokens(tokens),
                "parts": [part._asdict() for part in pages.text_spans(tokens, tokenizer)],
            }
            for tokens, name in section.shown
        ]
        sources.append({"name": section.title, **section.counts, "shown": shown})
    problem = str(result.problem) if result.problem else None
    return {"model": facts[0], "template": facts[1], "sources": sources, "problem": problem}


def _show(facts: list[str], result: "PreviewResult", tokenizer: "PreTrainedTokenizerBase", html: Path | None) -> None:
    console = show.console()
    for sentence in [*facts, _legend(console)]:
        console.print(Text(sentence), soft_wrap=True)
    for section in result.sections:
        console.print()
        console.rule(Text(section.title, "bold"), align="left")
        _show_sequences(console, section, tokenizer)
        _show_facts(console, section)
    if html:
        console.print(f"\nPage: {html}", soft_wrap=True)


def _legend(console: Console) -> str:
    style = "is green" if _has_colors(console) else f"is enclosed in {MARKERS[0]} {MARKERS[1]}"
    return f"Model input; trained text {style}"


def _has_colors(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color


def _show_sequences(console: Console, section: "DatasetPreview", tokenizer: "PreTrainedTokenizerBase") -> None:
    from tuneline.data.tokenization import html_preview as pages

    for number, shown in enumerate(section.shown, start=1):
        parts = pages.text_spans(shown.tokens, tokenizer)
        console.print(Text(f"\n{number}: {shown.title}", "bold"))
        console.print(_color_text(parts) if _has_colors(console) else Text(_mark_text(parts)), soft_wrap=True)


def _color_text(parts: "list[TextSpan]") -> Text:
    text = Text()
    for part in _shorten(parts):
        style = STYLES[part.trained, part.special]
        for i, line in enumerate(part.text.split("\n")):
            if i:
                text.append("↵\n", f"dim {style}")
            text.append(line, style)
    return text


def _mark_text(parts: "list[TextSpan]") -> str:
    text = "".join(f"{MARKERS[0]}{part.text}{MARKERS[1]}" if part.trained else part.text for part in _shorten(parts))
    return text.replace("".join(reversed(MARKERS)), "")


def _shorten(parts: "list[TextSpan]") -> "Iterator[TextSpan]":
    """Omit the middle of a long sequence."""
    total = sum(len(part.text) for part in parts)
    resume = total - TAIL_CHARS if total > 1.5 * (HEAD_CHARS + TAIL_CHARS) else HEAD_CHARS
    start = 0
    for part in parts:
        yield part._replace(text=part.text[: max(HEAD_CHARS - start, 0)])
        if start <= HEAD_CHARS < start + len(part.text) and resume > HEAD_CHARS:
            yield part._replace(text=f" […{resume - HEAD_CHARS:,} characters…] ", trained=False, special=False)
        yield part._replace(text=part.text[max(resume - start, 0) :])
        start += len(part.text)


def _show_facts(console: Console, section: "DatasetPreview") -> None:
    from tuneline.data.tokenization import html_preview as pages

    facts = Table.grid(padding=(0, 3, 0, 0))
    for name, value in section.facts:
        facts.add_row(Text(name, "dim"), Text(pages.show_control_characters(value)))
    console.print()
    console.print(facts)
    histogram = pages.histogram_bars(section.counts)
    most = max([count for *_, count in histogram], default=0) or 1
    bars = Table.grid(padding=(0, 2, 0, 0))
    bars.add_column(justify="right")
    bars.add_column(justify="right")
    for low, high, count in histogram:
        bars.add_row(f"{low:,} to {high:,}", f"{count:,}", "█" * round(BAR_WIDTH * count / most))
    console.print("\ntokens per sequence")
    console.print(bars)

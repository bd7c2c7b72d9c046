"""`tuneline data preview`: what the model will see of a recipe's first rows, before anything is trained."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tuneline.cli import imports, show
from tuneline.config import existence

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tuneline.data.preview.sample_rows import PreviewResult
    from tuneline.data.tokenization.html_preview import DatasetPreview, TextSpan

HEAD_CHARS, TAIL_CHARS = 2000, 1000
"""Characters shown of the beginning and the end of a long sequence; the HTML page shows all."""

MARKERS = ("⟦", "⟧")
"""Stand around trained text where there are no colours."""

STYLES = {(True, False): "green", (True, True): "bold green", (False, True): "magenta", (False, False): ""}
"""By whether text is trained, and special."""

BAR_WIDTH = 40


def preview(
    recipe: Annotated[Path, typer.Argument(help="Run configuration, like configs/demo.yaml.")],
    rows: Annotated[int, typer.Option(min=0, help="Rows to show of each data set.")] = 5,
    source: Annotated[str | None, typer.Option(help="Name of the one data set to look at.")] = None,
    html: Annotated[Path | None, typer.Option(help="Write it as a page, with the sequences in full length.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Show the first rows of each data set as the model will see them, with lengths and losses; trains nothing."""
    checked = imports.read_config(recipe)
    existence.check(checked.recipe)
    with show.status(f"Reading the first rows of {recipe}"):
        from tuneline.data.preview import sample_rows as looking
        from tuneline.data.tokenizer.loader import load_tokenizer
        from tuneline.model import resolve

        manifest, said = resolve.locate_tokenizer(checked.training.for_resolve())
        tokenizer = load_tokenizer(manifest)
        seen = looking.preview_sources(checked.training, tokenizer, num_shown=rows, only=source)
    if html:
        _write(html, recipe, said, seen, tokenizer)
    if as_json:
        typer.echo(json.dumps(_as_json(said, seen, tokenizer), indent=1, ensure_ascii=False))
    else:
        _show(said, seen, tokenizer, html)
    if seen.problem:
        raise seen.problem


def _write(
    html: Path, recipe: Path, said: list[str], seen: "PreviewResult", tokenizer: "PreTrainedTokenizerBase"
) -> None:
    from tuneline.data.tokenization import html_preview as pages

    told = [*said, f"A run would stop: {seen.problem}"] if seen.problem else said
    html.write_text(pages.render_page(f"Preview of {recipe.name}", told, seen.sections, tokenizer), encoding="utf-8")


def _as_json(said: list[str], seen: "PreviewResult", tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    from tuneline.data.tokenization import html_preview as pages

    found = []
    for section in seen.sections:
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
        found.append({"name": section.title, **section.counts, "shown": shown})
    problem = str(seen.problem) if seen.problem else None
    return {"model": said[0], "template": said[1], "sources": found, "problem": problem}


def _show(said: list[str], seen: "PreviewResult", tokenizer: "PreTrainedTokenizerBase", html: Path | None) -> None:
    console = show.console()
    for sentence in [*said, _legend(console)]:
        console.print(Text(sentence), soft_wrap=True)
    for section in seen.sections:
        console.print()
        console.rule(Text(section.title, "bold"), align="left")
        _show_sequences(console, section, tokenizer)
        _show_facts(console, section)
    if html:
        console.print(f"\nThe page: {html}", soft_wrap=True)


def _legend(console: Console) -> str:
    how = "is green" if _has_colours(console) else f"stands in {MARKERS[0]} {MARKERS[1]}"
    return f"what the model sees: trained text {how}"


def _has_colours(console: Console) -> bool:
    return console.is_terminal and console.color_system is not None and not console.no_color


def _show_sequences(console: Console, section: "DatasetPreview", tokenizer: "PreTrainedTokenizerBase") -> None:
    from tuneline.data.tokenization import html_preview as pages

    for number, shown in enumerate(section.shown, start=1):
        parts = pages.text_spans(shown.tokens, tokenizer)
        console.print(Text(f"\n{number}: {shown.title}", "bold"))
        console.print(_coloured(parts) if _has_colours(console) else Text(_marked(parts)), soft_wrap=True)


def _coloured(parts: "list[TextSpan]") -> Text:
    text = Text()
    for part in _shortened(parts):
        style = STYLES[part.trained, part.special]
        for i, line in enumerate(part.text.split("\n")):
            if i:
                text.append("↵\n", f"dim {style}")
            text.append(line, style)
    return text


def _marked(parts: "list[TextSpan]") -> str:
    text = "".join(f"{MARKERS[0]}{part.text}{MARKERS[1]}" if part.trained else part.text for part in _shortened(parts))
    return text.replace("".join(reversed(MARKERS)), "")


def _shortened(parts: "list[TextSpan]") -> "Iterator[TextSpan]":
    """Leave out the middle of a long sequence."""
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
    for name, said in section.facts:
        facts.add_row(Text(name, "dim"), Text(pages.show_control_characters(said)))
    console.print()
    console.print(facts)
    found = pages.histogram_bars(section.counts)
    most = max([count for *_, count in found], default=0) or 1
    bars = Table.grid(padding=(0, 2, 0, 0))
    bars.add_column(justify="right")
    bars.add_column(justify="right")
    for low, high, count in found:
        bars.add_row(f"{low:,} to {high:,}", f"{count:,}", "█" * round(BAR_WIDTH * count / most))
    console.print("\ntokens a sequence")
    console.print(bars)

"""Tokenizes conversations with every chat template of trl and Tuneline; prints the table of docs/templates.md.

    python -m benchmarks.chat_templates [--write]

Each template gets a byte-level tokenizer with the tags of the template as special tokens. `exact` means: the ids of the
compiled template equal those of the template, every answer ends with a stop token, and the ids of the prompt are a
prefix of those of the example.
"""

import argparse
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from tuneline.config.sections.data import TokenizeConfig
from tuneline.data import schema
from tuneline.data.chat_template import selection
from tuneline.data.tokenization.loss_mask import TokenizedSequence
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import TunelineError

DOC = Path(__file__).parents[1] / "docs" / "templates.md"
TAG = re.compile(r"<[^<>\s'\"{}]{1,40}>|\[/?[A-Z_]{3,24}\]|<\|[^|]{1,40}\|>")
REFUSED = "refused"
UNSPECIFIC_REASONS = ("rewrites earlier turns", "does not write turn")
"""Parts of refusals that are replaced by a more specific refusal of another choice."""

CHOICES: tuple[tuple[str, str, selection.TemplateArguments], ...] = (
    ("exact", "refuse", {}),
    ("each_turn", "each_turn", {}),
    ("thinking off", "refuse", {"enable_thinking": False, "thinking": False}),
    ("thinking off, each_turn", "each_turn", {"enable_thinking": False, "thinking": False}),
)
"""Choices in the order in which they are tried: name, `tokenize.rewritten_history`, `template_arguments`."""


def chats() -> dict[str, schema.Content]:
    """Return the conversations that each template must render."""
    system = schema.message("system", "Be brief.")
    question, answer = schema.message("user", "What is 2+2?\n\nSay it."), schema.message("assistant", "It is 4.")
    thinking = schema.message("assistant", "<think>\nTwo and two.\n</think>\n\nIt is 4.")
    question_2, answer_2 = (
        schema.message("user", "And 3+3?"),
        schema.message("assistant", "6, of course.\n\n```\n6\n```"),
    )
    call = '[{"type":"function","function":{"name":"add","arguments":{"a":2,"b":2}}}]'
    tools = (
        '[{"type":"function","function":{"name":"add","description":"Adds.","parameters":{"type":"object",'
        '"properties":{"a":{"type":"integer","description":"one"},"b":{"type":"integer","description":"two"}},'
        '"required":["a","b"]}}}]'
    )
    calling = [question, schema.message("assistant", "", call), schema.message("tool", "4"), answer]
    return {
        "one round": schema.content([question, answer]),
        "system": schema.content([system, question, answer]),
        "two rounds": schema.content([question, answer, question_2, answer_2]),
        "thoughts": schema.content([question, thinking]),
        "tools": schema.content(calling, tools=tools),
    }


def tokenizer_for(text: str, folder: Path) -> Any:
    """Return a tokenizer with the tags of a template, whose EOS token is the end of the turns of the template."""
    tokenizer = load_tokenizer_from(folder)
    tokenizer.bos_token = "<s>"
    tokenizer.add_special_tokens({"additional_special_tokens": sorted({*TAG.findall(text), "</s>", "<s>"})})
    tokenizer.eos_token = "</s>"
    tokenizer.chat_template = text
    end = selection.find_turn_end_token(tokenizer, text)
    if end:
        tokenizer.eos_token = end
    return tokenizer


@lru_cache(maxsize=len(CHOICES))
def sequencer_for(text: str, history: str, folder: Path) -> tuple[Sequencer, Any]:
    """Return a sequencer for a template, and its tokenizer."""
    tokenizer = tokenizer_for(text, folder)
    config = TokenizeConfig(max_length=8192, rewritten_history=history)  # type: ignore[arg-type]
    return Sequencer(tokenizer, config, suggests_settings=False), tokenizer


def check_template(text: str, chat: schema.Content, folder: Path) -> str:
    """Return `exact`, the choice under which a conversation is exact, or why it is refused."""
    reasons = []
    for name, history, arguments in CHOICES:
        try:
            sequencer, tokenizer = sequencer_for(selection.prepend_arguments(text, arguments), history, folder)
            sequencer.start()
            sequences = [tokens for _, tokens in sequencer.sequences([schema.example("s", chat)])]
        except TunelineError as error:
            reasons.append(str(error))
            continue
        by_template = " (by template)" if sequencer.counts["rendered_by_template"] else ""
        lost = missing_content(chat, sequences, tokenizer)
        return f"{name}{by_template}{f', without {lost}' if lost else ''}"
    specific = [reason for reason in reasons if not any(words in reason for words in UNSPECIFIC_REASONS)]
    return f"{REFUSED}: {shorten_reason([*specific, *reasons][0])}"


def missing_content(chat: schema.Content, sequences: list[TokenizedSequence], tokenizer: Any) -> str:
    """Return the parts of a conversation that the template does not render."""
    rendered = "".join(tokenizer.decode(tokens.input_ids) for tokens in sequences)
    answers = "".join(tokenizer.decode(tokens.input_ids[a:b]) for tokens in sequences for a, b in tokens.trained)
    texts = {
        "the system message": "Be brief." if chat["messages"][0]["role"] == "system" else "",
        "thoughts": "Two and two." if "<think>" in chat["messages"][-1]["content"] else "",
        "functions": "Adds." if chat["tools"] else "",
    }
    lost = [what for what, text in texts.items() if text not in rendered]
    return " and ".join([*lost, *(["calls"] if chat["tools"] and "add" not in answers else [])])


def shorten_reason(reason: str) -> str:
    """Shorten an error to the message of the template."""
    match = re.search(r"refuses a conversation of [\w, ]+: (.*)", reason, re.S)
    text = match.group(1) if match else reason.split(". ")[0]
    return re.sub(r"(answer|turn) \d+", r"\1 N", " ".join(text.split())).rstrip(".")


def templates() -> dict[str, str]:
    """Return all templates by name: those of trl, their training variants, and those of Tuneline."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    trl_templates = {f"trl: {path.stem}": path.read_text() for path in sorted(folder.glob("*.jinja"))}
    return trl_templates | {f"tuneline: {name}": selection.read_template(name) for name in selection.template_names()}


def table(folder: Path) -> list[str]:
    """Return the lines of the table, followed by the reasons for refusals."""
    names, reasons = list(chats()), dict[str, int]()
    lines = [f"| template | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for name, text in templates().items():
        cells = [check_template(text, chat, folder) for chat in chats().values()]
        for i, cell in enumerate(cells):
            result, _, reason = cell.partition(": ")
            if result == REFUSED:
                cells[i] = f"{REFUSED} ({reasons.setdefault(reason, len(reasons) + 1)})"
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return [*lines, "", "Reasons for refusals:", "", *(f"{number}. `{reason}`" for reason, number in reasons.items())]


def main() -> None:
    """Print the table, or write it into docs/templates.md."""
    import tempfile

    from tests import tiny

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write it into docs/templates.md")
    write = parser.parse_args().write
    with tempfile.TemporaryDirectory() as scratch:
        lines = table(tiny.build_model(Path(scratch) / "model"))
    if write:
        before, mark, _ = DOC.read_text().partition("<!-- table -->\n")
        DOC.write_text(before + mark + "\n".join(lines) + "\n")
    else:
        print("\n".join(lines))


if __name__ == "__main__":
    main()

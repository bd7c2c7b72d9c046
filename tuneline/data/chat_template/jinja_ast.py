"""What a chat template looks for in what it is given, read from its syntax tree."""

from collections.abc import Callable, Iterator

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from tuneline.errors import DataError

SEARCH_METHODS = frozenset(
    {"startswith", "endswith", "split", "rsplit", "replace", "find", "rfind", "index", "count"}
) | {*("partition", "rpartition", "removeprefix", "removesuffix", "strip", "lstrip", "rstrip")}
"""Methods and filters whose words are looked for in a text."""


class GenerationTag(Extension):
    """`{% generation %}`, with which templates mark answers; transparent here."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def keyword_matcher(template: str) -> Callable[[str], bool]:
    """Return a test for texts that hold a word for which a template looks.

    A word that is compared for equality counts where it is the whole text.

    Raises:
        DataError: The template is no valid Jinja.
    """
    tree = parse_template(template)
    inside = sorted({word for word in _searched(tree) if word.strip()})
    whole = {word.strip() for word in _compared(tree) if word.strip()}

    def found(text: str) -> bool:
        return text.strip() in whole or (bool(inside) and any(word in text for word in inside))

    return found


def find_keywords(template: str) -> list[str]:
    """Return the words that a template looks for in texts, or compares them with.

    Raises:
        DataError: The template is no valid Jinja.
    """
    tree = parse_template(template)
    return sorted({word.strip() for word in (*_searched(tree), *_compared(tree)) if word.strip()})


def parse_template(template: str) -> nodes.Template:
    """Parse a chat template with the extensions that transformers gives it.

    Raises:
        DataError: The template is no valid Jinja.
    """
    environment = Environment(extensions=["jinja2.ext.loopcontrols", GenerationTag])
    try:
        return environment.parse(template)
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"The chat template is no valid Jinja: {error} (its line {line}). Correct it there.") from error
    except RecursionError:
        raise DataError(
            "The chat template is no valid Jinja: its brackets are nested too deep. Write it flatter."
        ) from None


def _searched(tree: nodes.Template) -> Iterator[str]:
    for test in tree.find_all(nodes.Compare):
        if isinstance(test.expr, nodes.Const) and any(operand.op in ("in", "notin") for operand in test.ops):
            yield from _strings(test.expr)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in SEARCH_METHODS:
            yield from (word for argument in call.args for word in _strings(argument))
    for used in tree.find_all(nodes.Filter):
        if used.name in SEARCH_METHODS:
            yield from (word for argument in used.args for word in _strings(argument))


def _compared(tree: nodes.Template) -> Iterator[str]:
    for test in tree.find_all(nodes.Compare):
        if not isinstance(test.expr, nodes.Const) or test.ops[0].op in ("eq", "ne"):
            yield from _strings(test)


def _strings(node: nodes.Node) -> Iterator[str]:
    found = [node] if isinstance(node, nodes.Const) else node.find_all(nodes.Const)
    return (word.value for word in found if isinstance(word.value, str))

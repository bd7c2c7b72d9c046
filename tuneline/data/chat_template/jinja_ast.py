"""Syntax trees of chat templates: parse a template, and find the keywords that it searches for in contents."""

from collections.abc import Callable, Iterator

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from tuneline.errors import DataError

SEARCH_METHODS = frozenset(
    {"startswith", "endswith", "split", "rsplit", "replace", "find", "rfind", "index", "count"}
) | {*("partition", "rpartition", "removeprefix", "removesuffix", "strip", "lstrip", "rstrip")}
"""Methods and filters whose arguments are searched for in a text."""


class GenerationTag(Extension):
    """The tag `{% generation %}`, with which templates mark answers; it has no effect here."""

    tags = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def keyword_matcher(template: str) -> Callable[[str], bool]:
    """Return a test for texts that contain a keyword of a template.

    A keyword that is compared for equality matches only the whole text.

    Raises:
        DataError: The template is not valid Jinja.
    """
    tree = parse_template(template)
    substrings = sorted({word for word in _search_arguments(tree) if word.strip()})
    whole_texts = {word.strip() for word in _comparands(tree) if word.strip()}

    def matches(text: str) -> bool:
        return text.strip() in whole_texts or (bool(substrings) and any(word in text for word in substrings))

    return matches


def find_keywords(template: str) -> list[str]:
    """Return the keywords that a template searches for in texts, or compares texts with.

    Raises:
        DataError: The template is not valid Jinja.
    """
    tree = parse_template(template)
    return sorted({word.strip() for word in (*_search_arguments(tree), *_comparands(tree)) if word.strip()})


def parse_template(template: str) -> nodes.Template:
    """Parse a chat template with the extensions that transformers enables.

    Raises:
        DataError: The template is not valid Jinja.
    """
    environment = Environment(extensions=["jinja2.ext.loopcontrols", GenerationTag])
    try:
        return environment.parse(template)
    except TemplateError as error:
        line = getattr(error, "lineno", 1)
        raise DataError(f"The chat template is not valid Jinja: {error} (line {line}). Fix that line.") from error
    except RecursionError:
        raise DataError(
            "The chat template is not valid Jinja: its brackets are nested too deeply. Reduce the nesting."
        ) from None


def _search_arguments(tree: nodes.Template) -> Iterator[str]:
    for comparison in tree.find_all(nodes.Compare):
        if isinstance(comparison.expr, nodes.Const) and any(item.op in ("in", "notin") for item in comparison.ops):
            yield from _strings(comparison.expr)
    for call in tree.find_all(nodes.Call):
        if isinstance(call.node, nodes.Getattr) and call.node.attr in SEARCH_METHODS:
            yield from (word for argument in call.args for word in _strings(argument))
    for applied in tree.find_all(nodes.Filter):
        if applied.name in SEARCH_METHODS:
            yield from (word for argument in applied.args for word in _strings(argument))


def _comparands(tree: nodes.Template) -> Iterator[str]:
    for comparison in tree.find_all(nodes.Compare):
        if not isinstance(comparison.expr, nodes.Const) or comparison.ops[0].op in ("eq", "ne"):
            yield from _strings(comparison)


def _strings(node: nodes.Node) -> Iterator[str]:
    constants = [node] if isinstance(node, nodes.Const) else node.find_all(nodes.Const)
    return (constant.value for constant in constants if isinstance(constant.value, str))

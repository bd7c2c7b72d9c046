"""Keywords that a chat template searches for in contents, read from its syntax tree."""

import pytest

from tuneline.data.chat_template import jinja_ast
from tuneline.errors import DataError


@pytest.mark.parametrize(
    ("template", "matching", "other"),
    [
        ("{{ m.content.split('</think>')[-1] }}", "a</think>b", "a think b"),
        ("{% if '<tool>' in m.content %}x{% endif %}", "a <tool>", "a tool"),
        ("{{ m.content | replace('secret', 'x') }}", "my secret", "mine"),
        ("{% if m.content.startswith('/no') %}x{% endif %}", "/no more", "none"),
        ("{% if m.content == 'stop' %}x{% endif %}", " stop\n", "stop it"),
        ("{% if m.content in ['yes', 'no'] %}x{% endif %}", "no", "nothing"),
        ("{% generation %}{{ m.content.find('x1') }}{% endgeneration %}", "x1", "x2"),
    ],
)
def test_texts_with_a_keyword_of_the_template_match(template, matching, other):
    matches = jinja_ast.keyword_matcher(template)

    assert matches(matching)
    assert not matches(other)


@pytest.mark.parametrize(
    "template",
    ["{{ m.role + '\n' + m.content }}", "{{ tools | tojson(indent=4) }}", "{{ ['a', 'b'] | join('word') }}"],
)
def test_text_that_a_template_only_writes_is_not_a_keyword(template):
    matches = jinja_ast.keyword_matcher(template)

    assert not matches("a word, indent=4\n")


def test_a_template_that_does_not_parse_is_refused_with_its_line():
    with pytest.raises(DataError, match=r"not valid Jinja: .* \(line 2\). Fix that line."):
        jinja_ast.keyword_matcher("a\n{% if %}")


def test_deeply_nested_brackets_are_refused():
    with pytest.raises(DataError, match="nested too deep"):
        jinja_ast.find_keywords("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")

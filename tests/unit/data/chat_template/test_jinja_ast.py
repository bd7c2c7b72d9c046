"""What a template looks for in contents, read from its text."""

import pytest

from tuneline.data.chat_template import jinja_ast
from tuneline.errors import DataError


@pytest.mark.parametrize(
    ("template", "found", "passed"),
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
def test_a_word_that_a_template_looks_for_is_known(template, found, passed):
    looks = jinja_ast.keyword_matcher(template)

    assert looks(found)
    assert not looks(passed)


@pytest.mark.parametrize(
    "template",
    ["{{ m.role + '\n' + m.content }}", "{{ tools | tojson(indent=4) }}", "{{ ['a', 'b'] | join('word') }}"],
)
def test_what_a_template_only_writes_is_not_looked_for(template):
    looks = jinja_ast.keyword_matcher(template)

    assert not looks("a word, indent=4\n")


def test_a_template_that_does_not_parse_is_told_with_its_line():
    with pytest.raises(DataError, match=r"no valid Jinja: .* \(its line 2\). Correct it there."):
        jinja_ast.keyword_matcher("a\n{% if %}")


def test_brackets_without_end_are_refused():
    with pytest.raises(DataError, match="nested too deep"):
        jinja_ast.find_keywords("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")

"""The page docs/templates.md: its table is the one that the benchmark writes."""

from benchmarks import chat_templates


def test_the_table_of_chat_templates_is_current(tiny_model):
    _, _, table = chat_templates.DOC.read_text().partition("<!-- table -->\n")

    assert table.splitlines() == chat_templates.table(tiny_model), "python -m benchmarks.chat_templates --write"

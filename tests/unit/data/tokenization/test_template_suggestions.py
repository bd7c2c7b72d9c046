"""The settings that a refusal by a chat template suggests work for the refused row."""

import re

import pytest

from benchmarks import chat_templates
from tuneline.config.sections.data import TokenizeConfig
from tuneline.data import schema
from tuneline.data.chat_template import selection
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.errors import TunelineError

OPENS_THINKING = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{%- set content = m.content.split('</think>')[-1] %}"
    "{{- '<|im_start|>assistant\\n' + content.lstrip('\\n') + '<|im_end|>\\n' }}"
    "{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n<think>\\n' }}{%- endif %}"
)
"""Like the template of QwQ-32B: the prompt opens a thinking block, and answers are rendered without one."""

THINKING = "<think>\nHm.\n</think>\n\n"
ROWS = {
    "one": ["What?", "It is 4."],
    "two": ["What?", "It is 4.", "And?", "5."],
    "thoughts": ["What?", f"{THINKING}It is 4."],
    "two with thoughts": ["What?", f"{THINKING}It is 4.", "And?", f"{THINKING}5."],
}
CASES = [
    ("thinks", "refuse", "one"),
    ("thinks", "each_turn", "one"),
    ("thinks", "last_turn", "two"),
    ("thinks", "refuse", "two with thoughts"),
    ("trl: qwen3", "refuse", "two"),
    ("trl: qwen3", "refuse", "two with thoughts"),
    ("trl: nemotron_3_nano", "each_turn", "one"),
    ("trl: qwen3_5_nothink", "each_turn", "thoughts"),
    ("trl: deepseek_r1_distill_training", "last_turn", "one"),
    ("trl: glm4moe", "refuse", "one"),
]


@pytest.fixture(scope="module")
def templates():
    return {**chat_templates.templates(), "thinks": OPENS_THINKING}


def example(contents):
    turns = [schema.message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return schema.example("chats", schema.content(turns))


def rows(text, tiny_model, history, contents):
    tokenizer = chat_templates.tokenizer_for(text, tiny_model)
    sequencer = Sequencer(tokenizer, TokenizeConfig(rewritten_history=history))
    return list(sequencer.sequences([example(contents)]))


def refusal(*arguments):
    with pytest.raises(TunelineError) as error:
        rows(*arguments)
    return str(error.value)


def follow(contents, suggestion):
    """Apply a suggestion: return the template arguments, the history and the row."""
    arguments = re.search(r"template_arguments: \{(\w+): (true|false)\}", suggestion)
    history = re.search(r"tokenize.rewritten_history: (\w+)", suggestion)
    if "thinking blocks in its answers" in suggestion:
        contents = [f"{THINKING}{text}" if i % 2 and "<think>" not in text else text for i, text in enumerate(contents)]
    changed = {arguments[1]: arguments[2] == "true"} if arguments else {}
    return changed, history[1] if history else None, contents


@pytest.mark.parametrize(("name", "history", "row"), CASES)
def test_every_suggested_setting_works(templates, tiny_model, name, history, row):
    contents = ROWS[row]
    message = refusal(templates[name], tiny_model, history, contents)
    suggestions = message.partition("This row can be trained with ")[2].rstrip(".").split("; or with ")

    assert "a row of chats that begins with 'What?'" in message
    assert suggestions[0]
    assert f"rewritten_history: {history}" not in message
    for suggestion in suggestions:
        if suggestion.startswith("template: "):
            for built_in in suggestion.removeprefix("template: ").split(" or "):
                assert rows(selection.read_template(built_in), tiny_model, history, contents)
        else:
            arguments, other, changed = follow(contents, suggestion)
            text = selection.prepend_arguments(templates[name], arguments)
            assert rows(text, tiny_model, other or history, changed)


def test_an_argument_that_is_already_set_is_tried_with_the_other_value(templates, tiny_model):
    text = selection.prepend_arguments(templates["trl: nemotron_3_nano"], {"enable_thinking": True})

    message = refusal(text, tiny_model, "refuse", ROWS["one"])

    assert "template_arguments: {enable_thinking: false}" in message


def test_a_refusal_without_suggestions(templates, tiny_model, monkeypatch):
    monkeypatch.setattr(selection, "template_names", lambda: [])
    text = "{{ raise_exception('Ask in verse.') if messages[1:] else '' }}{{ messages[0].content }}"
    tokenizer = chat_templates.load_tokenizer_from(tiny_model)
    tokenizer.chat_template = text

    with pytest.raises(
        TunelineError,
        match=r"Ask in verse\.\. Affected row: a row of chats.* No value of tokenize.rewritten_history, no",
    ):
        list(Sequencer(tokenizer, TokenizeConfig()).sequences([example(ROWS["one"])]))


def test_an_unusable_template_error_names_the_compatible_ones(tiny_model, tmp_path):
    from tuneline.errors import SourceError
    from tuneline.model import source

    path = tmp_path / "vision.jinja"
    path.write_text("{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}")

    with pytest.raises(SourceError, match=r"vision.jinja cannot be used: .* Use a compatible one: alpaca, chatml"):
        selection.select_template(source.tokenizer_manifest(tiny_model), str(path))

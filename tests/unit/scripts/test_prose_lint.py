"""The prose linter reports phrases and unknown words at their place, and skips what is not prose."""

import importlib.util
from pathlib import Path

import pytest
import yaml

SCRIPT = Path("scripts/prose/lint.py")


@pytest.fixture(scope="module")
def linter():
    spec = importlib.util.spec_from_file_location("prose_lint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.register_checks()
    return module


def test_a_phrase_is_reported_with_its_place_and_its_replacement(linter):
    problems = linter.lint("First line.\nThe file is no JSON.\n", "page.md")

    assert problems == ["page.md:2:10: phrases.riddles: write 'is not a ...', not 'is no'"]


def test_a_phrase_that_spans_a_line_end_is_reported(linter):
    assert linter.lint("A score held\nagainst another.\n", "page.md") == [
        "page.md:1:9: phrases.claims: write 'compared with', not 'held against'"
    ]


def test_a_rate_is_written_with_per(linter):
    assert "write '... per ...', not 'nats a token'" in linter.lint("It reaches 0.3 nats a token.\n", "page.md")[0]


@pytest.mark.parametrize("text", ["It is no longer used.", "A row is held out.", "There is no file.", "As it is not."])
def test_plain_english_that_resembles_a_phrase_passes(linter, text):
    assert linter.lint(text, "page.md") == []


def test_an_unknown_word_is_reported(linter):
    assert linter.lint("The tokenizer recieves rows.\n", "page.md") == [
        "page.md:1:15: spelling.dictionary: unknown word 'recieves'"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "Call `recieve is no` here.",
        "```\nrecieve, held against\n```",
        "Code over\ntwo lines, `recieve\nrecieve`, is one.",
        "A lone ` tick.\n\n| `recieve` | x |\n| a ` tick | x |\n| `recieve` | x |\n",
        "   ```yaml\n   recieve\n   ```",
        "[page](recieve.md#recieve)",
        "See https://recieve.example/recieve today.",
        "<a href='recieve'>x</a>",
        "<!-- prose off -->\nrecieve is no\n<!-- prose on -->",
        "Set recieve_path or recieve2 or a/recieve.py or LlamaFactory or MMLU.",
    ],
)
def test_what_is_not_prose_is_skipped(linter, text):
    assert linter.lint(text, "page.md") == []


def test_a_heading_may_repeat_the_first_words_of_its_section(linter):
    assert linter.lint("# Tuneline\n\nTuneline runs.\n", "page.md") == []
    assert "Tuneline Tuneline" in linter.lint("# Tuneline Tuneline\n", "page.md")[0]


def test_checking_resumes_after_a_skipped_part(linter):
    text = "<!-- prose off -->\nrecieve\n<!-- prose on -->\n\n```\nrecieve\n```\n\nrecieve\n"

    assert linter.lint(text, "page.md") == ["page.md:9:1: spelling.dictionary: unknown word 'recieve'"]


def test_every_rule_has_advice_and_the_vocabulary_is_sorted():
    rules = yaml.safe_load(Path("scripts/prose/rules.yaml").read_text())
    words = Path("scripts/prose/vocabulary.txt").read_text().split()

    assert all(isinstance(advice, str) and advice for group in rules.values() for advice in group.values())
    assert words == sorted(set(words), key=lambda word: (word.lower(), word))


def test_the_command_fails_on_a_problem_and_passes_without_one(linter, tmp_path, capsys):
    (tmp_path / "bad.md").write_text("recieve\n")
    (tmp_path / "good.md").write_text("A plain sentence.\n")

    assert linter.main([str(tmp_path / "good.md")]) == 0
    assert linter.main([str(tmp_path)]) == 1
    assert "bad.md:1:1: spelling.dictionary" in capsys.readouterr().out
    assert linter.main([]) == 2

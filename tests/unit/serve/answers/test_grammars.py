"""Grammars of requests: answers that follow them are valid JSON, or tool calls in the syntax of the template."""

import json

import pytest

from benchmarks import chat_templates
from tests.grammar_sampling import sample
from tuneline.serve.answers import parser, prompts
from tuneline.serve.answers.grammars import GrammarError, grammar_for
from tuneline.serve.answers.parser import AnswerParser
from tuneline.serve.engines.interface import Grammar, Token

TEMPLATES = chat_templates.templates()
PARAMETERS = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 99},
        "b": {"enum": ["one", "two"]},
        "c": {"type": "boolean"},
        "d": {"type": "string"},
    },
    "required": ["a", "b"],
    "additionalProperties": False,
}
ADD = {"type": "function", "function": {"name": "add", "description": "Adds.", "parameters": PARAMETERS}}
NOW = {"type": "function", "function": {"name": "now", "description": "The time."}}
TOOLS = [ADD, NOW]
FORCED = {"type": "function", "function": {"name": "add"}}
NAMES = ("trl: qwen2_5", "trl: qwen3", "trl: qwen3_5_think", "trl: glm4moe", "trl: gptoss", "trl: llama3_1")
NAMES += ("trl: gemma4_v2", "trl: lfm2_v2", "trl: deepseekv3", "tuneline: chatml")
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": PARAMETERS}}
QUESTION = [{"role": "user", "content": "Q"}]


@pytest.fixture(scope="module")
def tokenizers(tiny_model):
    return {name: chat_templates.tokenizer_for(TEMPLATES[name], tiny_model) for name in NAMES}


def answer(tokenizer, grammar, prompt, seed):
    ids = sample(tokenizer, grammar, seed)
    if ids is None:
        return None
    tokens = [*map(Token, ids), Token(tokenizer.eos_token_id, finish="stop")]
    return parser.parse_answer(AnswerParser(tokenizer, prompt, parse_tools=True, tools=TOOLS), tokens)


def is_valid(name, arguments):
    if name == "now":
        return arguments == {}
    optional = {"c": bool, "d": str}
    return (
        0 <= arguments.pop("a") <= 99
        and arguments.pop("b") in ("one", "two")
        and all(isinstance(value, optional[key]) for key, value in arguments.items())
    )


@pytest.mark.parametrize("choice", ["required", FORCED], ids=["required", "named"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "tuneline: chatml"])
def test_a_forced_call_has_the_syntax_of_the_template_and_valid_arguments(name, choice, tokenizers):
    tokenizer = tokenizers[name]
    prompt = prompts.encode_chat(tokenizer, QUESTION)
    grammar = grammar_for(None, TOOLS, choice, tokenizer, prompt_ids=prompt)

    deltas = [delta for seed in range(4) if (delta := answer(tokenizer, grammar, prompt, seed))]

    assert deltas
    for delta in deltas:
        assert delta.finish == "tool_calls"
        assert delta.content == ""
        assert all(is_valid(call.name, json.loads(call.arguments)) for call in delta.tool_calls)
        assert choice == "required" or [call.name for call in delta.tool_calls] == ["add"]


def test_parallel_calls_can_be_switched_off(tokenizers):
    tokenizer = tokenizers["trl: qwen2_5"]
    grammar = grammar_for(None, [NOW], "required", tokenizer, parallel_tool_calls=False)
    several = grammar_for(None, [NOW], "required", tokenizer)

    assert [len(answer(tokenizer, grammar, [], seed).tool_calls) for seed in range(3)] == [1, 1, 1]
    assert "*" in several.text
    assert "*" not in grammar.text.replace("(?s:.*)", "")


@pytest.mark.parametrize("name", ["trl: qwen3", "trl: qwen3_5_think", "trl: gptoss", "tuneline: chatml"])
def test_a_json_answer_follows_its_schema_after_the_thoughts(name, tokenizers):
    tokenizer = tokenizers[name]
    prompt = prompts.encode_chat(tokenizer, QUESTION)
    grammar = grammar_for(SCHEMA, None, None, tokenizer, prompt_ids=prompt)

    deltas = [delta for seed in range(4) if (delta := answer(tokenizer, grammar, prompt, seed))]

    assert deltas
    assert all(is_valid("add", json.loads(delta.content)) for delta in deltas)


def test_json_or_tool_calls_may_follow_with_both(tokenizers):
    tokenizer = tokenizers["trl: qwen2_5"]
    grammar = grammar_for(SCHEMA, [NOW], "auto", tokenizer)

    deltas = [answer(tokenizer, grammar, [], seed) for seed in range(8)]

    assert {bool(delta.tool_calls) for delta in deltas if delta} == {True, False}
    assert all(delta.tool_calls or is_valid("add", json.loads(delta.content)) for delta in deltas if delta)


def test_free_answers_have_no_grammar(tokenizers):
    tokenizer = tokenizers["trl: qwen2_5"]

    assert grammar_for(None, None, None, tokenizer) is None
    assert grammar_for({"type": "text"}, TOOLS, "auto", tokenizer) is None
    assert grammar_for(None, TOOLS, "none", tokenizer) is None
    assert grammar_for({"type": "json_object"}, None, None, tokenizer) == Grammar("json_object", '{"type": "object"}')


@pytest.mark.parametrize(
    ("response_format", "tools", "choice", "reason"),
    [
        (
            {"type": "json"},
            None,
            None,
            "response_format.type must be one of text, .*, got 'json'",
        ),
        ({"type": "json_schema"}, None, None, "response_format.json_schema.schema must be a JSON schema, got None"),
        (
            {"type": "json_schema", "json_schema": {"schema": {"type": "array", "uniqueItems": True}}},
            None,
            None,
            "response_format: The json_schema is not supported: Unimplemented keys",
        ),
        (None, None, "required", "tool_choice is 'required', and the request has no tools"),
        (None, TOOLS, "always", "tool_choice must be none, auto, required or"),
        (None, TOOLS, {"type": "function", "function": {"name": "ad"}}, "tool_choice names 'ad'.*Did you mean 'add'"),
        (None, [{"function": {"name": "a b"}}], "auto", "The name of a function must consist of"),
        (
            None,
            [{"function": {"name": "f", "parameters": {"properties": {"x": {"type": "objekt"}}}}}],
            "required",
            "tools: .* Invalid type: objekt",
        ),
    ],
)
def test_what_cannot_be_honored_is_refused(response_format, tools, choice, reason, tokenizers):
    with pytest.raises(GrammarError, match=reason):
        grammar_for(response_format, tools, choice, tokenizers["trl: qwen2_5"])


def test_tools_are_refused_for_a_template_without_tool_calls(tokenizers):
    with pytest.raises(GrammarError, match="so tools are not supported"):
        grammar_for(None, TOOLS, "auto", tokenizers["tuneline: chatml"])


def test_a_limit_that_tags_cannot_enforce_is_refused(tokenizers):
    tool = {"function": {"name": "f", "parameters": {"properties": {"x": {"type": "string", "pattern": "a+"}}}}}

    with pytest.raises(GrammarError, match=r"parameter f.x has 'pattern', which cannot be enforced"):
        grammar_for(None, [tool], "required", tokenizers["trl: qwen3_5_think"])
    assert grammar_for(None, [tool], "required", tokenizers["trl: qwen2_5"])

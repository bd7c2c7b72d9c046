"""Answers while their tokens arrive: text, thoughts, tool calls and stop strings, however the text is split."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import chat_templates
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.serve.answers import markup, parser, probes, prompts
from tuneline.serve.answers.parser import AnswerParser
from tuneline.serve.engines.interface import Token

TEMPLATES = chat_templates.templates()
MISTRAL = (
    "{% for m in messages %}{% if m.tool_calls %}[TOOL_CALLS] [{% for c in m.tool_calls %}"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments|tojson }}}'
    "{% if not loop.last %}, {% endif %}{% endfor %}]</s>"
    "{% elif m.role == 'user' %}[INST] {{ m.content }}[/INST]{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
WITH_CALLS = {
    "hermes": TEMPLATES["trl: qwen2_5"],
    "thinking": TEMPLATES["trl: qwen3"],
    "coder": TEMPLATES["trl: qwen3_5_think"],
    "glm": TEMPLATES["trl: glm4moe"],
    "deepseek": TEMPLATES["trl: deepseekv3"],
    "gptoss": TEMPLATES["trl: gptoss"],
    "llama": TEMPLATES["trl: llama3_1"],
    "python": TEMPLATES["trl: lfm2_v2"],
    "mistral": MISTRAL,
    "gemma": TEMPLATES["trl: gemma4_v2"],
}
PARALLEL = [name for name in WITH_CALLS if name not in ("gptoss", "llama")]
OPEN_PROMPTS = ("coder", "deepseek")
KINDS = {"hermes": "json", "thinking": "json", "llama": "json", "mistral": "json", "coder": "parameters"} | {
    "glm": "parameters",
    "deepseek": "named_json",
    "gptoss": "named_json",
    "gemma": "named_json",
    "python": "python",
}
CALLS = [
    ("add", {"numbers": [1, 2.5], "exact": True, "note": 'a "b"\n<c> {d} ü', "more": {"x": None}}),
    ("now", {"zone": "UTC"}),
]
BROKEN = {
    "hermes": '<tool_call>\n{"name": "add", "arguments": {"a": 1}, oops}\n</tool_call>',
    "coder": "<tool_call>\n<function=add>\n1 and 2\n</function>\n</tool_call>",
    "python": "<|tool_call_start|>[add(1)]<|tool_call_end|>",
    "gemma": "<|tool_call>call:add{a:}<tool_call|>",
    "llama": '{"answer": 3}',
    "mistral": "[TOOL_CALLS] [add]",
}


@pytest.fixture(scope="module")
def tokenizers(tiny_model):
    return {name: chat_templates.tokenizer_for(text, tiny_model) for name, text in WITH_CALLS.items()}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def encode(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def answer(ids, tokenizer, finish="stop"):
    return [*(Token(i) for i in ids), Token(tokenizer.eos_token_id, finish=finish)]


def parse(tokenizer, ids, *, prompt=(), finish="stop", **options):
    return parser.parse_answer(AnswerParser(tokenizer, prompt, **options), answer(ids, tokenizer, finish))


def calls_of(delta):
    return [(call.name, json.loads(call.arguments)) for call in delta.tool_calls]


def written_calls(tokenizer, calls):
    tags = markup.find_markup(tokenizer)
    pair = (tags.thinking_open, tags.thinking_close) if tags.shows_thinking else None
    return probes.render_calls(tokenizer, calls, pair)


@pytest.mark.parametrize("name", WITH_CALLS)
def test_the_syntax_of_tool_calls_is_derived_from_the_template(name, tokenizers):
    derived = parser.tool_format(tokenizers[name])

    assert derived.kind == KINDS[name]
    assert derived.is_parallel == (name in PARALLEL)


@pytest.mark.parametrize("name", ["trl: llama3", "trl: gemma3", "tuneline: chatml", "trl: muse_glimmer"])
def test_a_template_without_a_known_syntax_has_no_tools(name, tiny_model):
    assert parser.tool_format(chat_templates.tokenizer_for(TEMPLATES[name], tiny_model)) is None


@pytest.mark.parametrize("name", WITH_CALLS)
def test_tool_calls_are_parsed_as_the_template_writes_them(name, tokenizers):
    calls = CALLS if name in PARALLEL else CALLS[:1]
    if name == "python":  # this template does not escape strings
        calls = [(calls[0][0], calls[0][1] | {"note": "plain"}), calls[1]]
    ids = encode(tokenizers[name], written_calls(tokenizers[name], calls))

    delta = parse(tokenizers[name], ids, parse_tools=True)

    assert calls_of(delta) == calls
    assert (delta.content, delta.reasoning, delta.finish) == ("", "", "tool_calls")
    assert delta.tokens == tuple(answer(ids, tokenizers[name]))


@pytest.mark.parametrize("name", PARALLEL)
def test_text_before_a_call_is_content_and_thoughts_are_reasoning(name, tokenizers):
    tokenizer, tags = tokenizers[name], markup.find_markup(tokenizers[name])
    opens = name in OPEN_PROMPTS
    prompt = prompts.encode_chat(tokenizer, [{"role": "user", "content": "Q"}]) if opens else []
    thoughts = (
        f"{'' if opens else tags.thinking_open}\nI think.\n{tags.thinking_close}\n\n" if tags.shows_thinking else ""
    )
    text = f"{thoughts}Let me see.\n{written_calls(tokenizer, CALLS[1:])}"

    delta = parse(tokenizer, encode(tokenizer, text), prompt=prompt, parse_tools=True)

    assert calls_of(delta) == CALLS[1:]
    assert delta.content == "Let me see."
    assert delta.reasoning == ("I think." if tags.shows_thinking else "")


def test_channels_of_gpt_oss_become_reasoning_and_content(tokenizers):
    text = "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant<|channel|>final<|message|>It is 4."
    calling = (
        "<|channel|>analysis<|message|>I think.<|end|><|start|>assistant to=functions.now<|channel|>commentary json"
        '<|message|>{"zone": "UTC"}<|call|>'
    )

    deltas = [
        parse(tokenizers["gptoss"], encode(tokenizers["gptoss"], each), parse_tools=True) for each in (text, calling)
    ]

    assert [(delta.reasoning, delta.content) for delta in deltas] == [("I think.", "It is 4."), ("I think.", "")]
    assert calls_of(deltas[1]) == [("now", {"zone": "UTC"})]


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("ending", ["", " And more."])
def test_malformed_calls_stay_text(name, ending, tokenizers):
    text = f"See: {BROKEN[name]}{ending}" if name != "llama" else BROKEN[name] + ending

    delta = parse(tokenizers[name], encode(tokenizers[name], text), parse_tools=True)

    assert (delta.content, delta.tool_calls, delta.finish) == (text, (), "stop")


def test_a_call_after_a_malformed_one_is_parsed(tokenizers):
    text = f"{BROKEN['hermes']}\n{written_calls(tokenizers['hermes'], CALLS)}"

    delta = parse(tokenizers["hermes"], encode(tokenizers["hermes"], text), parse_tools=True)

    assert calls_of(delta) == CALLS
    assert delta.content == BROKEN["hermes"]


def test_a_call_that_is_cut_stays_text_and_calls_are_text_without_tools(tokenizers):
    text = written_calls(tokenizers["hermes"], CALLS[1:])
    ids = encode(tokenizers["hermes"], text)

    cut = parse(tokenizers["hermes"], ids[:-6], finish="length", parse_tools=True)

    assert cut.finish == "length"
    assert text.startswith(cut.content)
    assert not cut.tool_calls
    assert parse(tokenizers["hermes"], ids).content == text.removeprefix("<tool_call>").removesuffix("</tool_call>")


def test_tags_may_have_other_white_space_than_in_the_template(tokenizers):
    answers = {
        "hermes": '<tool_call>{"name": "now", "arguments": {"zone": "UTC"}}</tool_call>',
        "coder": "<tool_call><function=now>\n\n<parameter=zone>UTC</parameter></function></tool_call>",
        "mistral": '[TOOL_CALLS][{"name": "now", "arguments": {"zone": "UTC"}}]',
        "llama": '\n<|python_tag|>{"name": "now", "parameters": {"zone": "UTC"}}',
    }

    for name, text in answers.items():
        assert calls_of(parse(tokenizers[name], encode(tokenizers[name], text), parse_tools=True)) == CALLS[1:], name


def test_special_tokens_of_tool_calls_have_no_text_without_tools(tokenizers):
    ids = encode(tokenizers["python"], written_calls(tokenizers["python"], CALLS[1:]))

    assert parse(tokenizers["python"], ids).content == "[now(zone='UTC')]"


def test_an_answer_that_is_not_a_call_is_streamed_as_content(tokenizers):
    reader = AnswerParser(tokenizers["llama"], [], parse_tools=True)

    deltas = [reader.feed(Token(i)) for i in encode(tokenizers["llama"], "It is 4.")]

    assert deltas[0].content == "It"
    assert parser.join([delta for delta in deltas if delta]).content == "It is 4."


def test_closing_tags_inside_of_arguments_do_not_end_a_call(tokenizers):
    calls = [("add", {"note": "</tool_call> and <tool_call>"})]
    ids = encode(tokenizers["hermes"], written_calls(tokenizers["hermes"], calls))

    delta = parse(tokenizers["hermes"], ids, parse_tools=True)

    assert calls_of(delta) == calls


def test_types_of_tagged_parameters_follow_the_schema(tokenizers):
    tokenizer = tokenizers["coder"]
    schema = {"type": "object", "properties": {"zip": {"type": "string"}, "count": {"type": "integer"}}}
    tools = [{"type": "function", "function": {"name": "find", "parameters": schema}}]
    ids = encode(tokenizer, written_calls(tokenizer, [("find", {"zip": "01234", "count": 2})]))

    delta = parse(tokenizer, ids, parse_tools=True, tools=tools)

    assert calls_of(delta) == [("find", {"zip": "01234", "count": 2})]


def test_a_thinking_block_is_read_at_the_start_of_a_chat_answer(tokenizers, tokenizer):
    text = "<think>\nhm\n</think>\n\nyes"

    plain = parse(tokenizer, encode(tokenizer, text))
    thinking = parse(tokenizers["thinking"], encode(tokenizers["thinking"], text))
    later = parse(tokenizers["thinking"], encode(tokenizers["thinking"], f"Use {text}"))
    completion = parse(tokenizers["thinking"], encode(tokenizers["thinking"], text), parse_reasoning=False)

    assert (plain.content, plain.reasoning) == ("yes", "hm")
    assert (thinking.content, thinking.reasoning) == ("yes", "hm")
    assert (later.content, later.reasoning) == (f"Use {text}", "")
    assert completion.reasoning == ""


def test_thoughts_that_do_not_end_are_reasoning(tokenizers):
    prompt = prompts.encode_chat(tokenizers["coder"], [{"role": "user", "content": "Q"}])

    delta = parse(tokenizers["coder"], encode(tokenizers["coder"], "still thinking "), prompt=prompt, finish="length")

    assert (delta.content, delta.reasoning, delta.finish) == ("", "still thinking", "length")


def test_each_delta_is_certain_when_it_is_returned(tokenizers):
    tokenizer = tokenizers["thinking"]
    reader = AnswerParser(tokenizer, [], parse_tools=True)
    thoughts = ["<think>", "\n", "hm", "\n", "</think>", "\n\n"]
    pieces = [*thoughts, "Yes", " <", "b> ", "<tool_call>", '\n{"name": "f"}\n', "</tool_call>"]

    deltas = [reader.feed(token) for piece in pieces for token in map(Token, encode(tokenizer, piece))]

    shown = [(delta.reasoning, delta.content, len(delta.tool_calls)) for delta in deltas if delta]
    assert "".join(part[0] for part in shown) == "hm"
    assert "".join(part[1] for part in shown) == "Yes <b>"
    assert shown[-1] == ("", "", 1)
    assert reader.finish().finish == "tool_calls"


def test_the_stop_token_has_no_text_and_special_tokens_are_skipped(tokenizer):
    ids = encode(tokenizer, "The<|im_start|> fox")

    delta = parse(tokenizer, ids)

    assert delta.content == "The fox"
    assert len(delta.tokens) == len(ids) + 1


def test_stop_strings_end_the_answer_and_are_not_part_of_it(tokenizer):
    reader = AnswerParser(tokenizer, [], stop=["fox answers", "END"])

    deltas = [reader.feed(Token(i)) for i in encode(tokenizer, "The brown fox answers: A")]

    done = parser.join([delta for delta in deltas if delta])
    assert (done.content, done.finish, reader.finished) == ("The brown ", "stop", True)
    assert reader.feed(Token(5)) is None
    assert parse(tokenizer, encode(tokenizer, "The brown fox ans"), stop=["fox answers"]).content == "The brown fox ans"


texts = st.text(st.sampled_from("abAB <>/\n{}é你😀"), max_size=24)
stops = st.lists(st.text(st.sampled_from("abAB <é你"), min_size=1, max_size=4), max_size=3)


@settings(deadline=None, max_examples=150)
@given(ids=st.lists(st.integers(0, 310), max_size=24), stop=stops)
def test_the_streamed_text_is_the_decoded_text_up_to_the_first_stop(tokenizer, ids, stop):
    ids = [i for i in ids if i < len(tokenizer) and i != tokenizer.eos_token_id]
    whole = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    ends = [(whole.find(each) + len(each), whole.find(each)) for each in stop if each in whole]

    delta = parse(tokenizer, ids, stop=stop)

    assert delta.content == (whole[: min(ends)[1]] if ends else whole)
    assert delta.finish == "stop"


@settings(deadline=None, max_examples=100)
@given(text=texts, stop=stops, data=st.data())
def test_any_split_into_tokens_gives_the_same_text(tokenizer, text, stop, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    whole = parse(tokenizer, encode(tokenizer, text), stop=stop)
    split = parse(tokenizer, [i for piece in pieces for i in encode(tokenizer, piece)], stop=stop)

    assert split.content == whole.content


@settings(deadline=None, max_examples=60)
@given(before=texts, after=texts, data=st.data())
@pytest.mark.parametrize("name", ["thinking", "coder", "deepseek", "python", "llama"])
def test_any_split_gives_the_same_thoughts_and_calls(tokenizers, name, before, after, data):
    tokenizer, tags = tokenizers[name], markup.find_markup(tokenizers[name])
    thoughts = f"{tags.thinking_open}{before}{tags.thinking_close}" if tags.shows_thinking else ""
    call = written_calls(tokenizer, CALLS[1:])
    text = thoughts + call if name == "llama" else f"{thoughts}{before}{call}{after}"
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]

    whole = parse(tokenizer, encode(tokenizer, text), parse_tools=True)
    split = parse(tokenizer, [i for piece in pieces for i in encode(tokenizer, piece)], parse_tools=True)

    assert calls_of(whole) == calls_of(split) == CALLS[1:]
    assert (whole.content, whole.reasoning) == (split.content, split.reasoning)

"""Prompts have the ids of training, for every chat template; requests that have no prompt are refused by name."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import chat_templates
from tuneline.config.sections.data import TokenizeConfig
from tuneline.data import schema
from tuneline.data.tokenization import tokenize
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import SourceError, TunelineError
from tuneline.serve.answers import prompts
from tuneline.serve.answers.messages import PromptError

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
TEMPLATES = {name: text for name, text in chat_templates.templates().items() if not name.endswith("_training")}
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n"
    "</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant"
    "\n{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
REFUSED = ("trl: glm4moe",)
"""Templates that cannot be trained: their answers end without a token that stops the model."""

ADD = {"type": "function", "function": {"name": "add", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def with_template(tiny_model, template):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def templated(request, tiny_model):
    return chat_templates.tokenizer_for(TEMPLATES[f"tuneline: {request.param}"], tiny_model)


def to_openai(messages):
    calls = [{"tool_calls": json.loads(turn["tool_calls"])} if turn["tool_calls"] else {} for turn in messages]
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    return [turn | call for turn, call in zip(turns, calls, strict=True)]


@pytest.mark.parametrize("name", TEMPLATES)
def test_prompts_start_the_training_rows_of_every_template(name, tiny_model):
    try:
        tokenizer = chat_templates.tokenizer_for(TEMPLATES[name], tiny_model)
    except TunelineError:
        pytest.skip("the template is for images")
    num_compared = 0
    for chat in chat_templates.chats().values():
        for history in ("refuse", "each_turn"):
            sequencer = Sequencer(tokenizer, TokenizeConfig(rewritten_history=history), suggests_settings=False)
            try:
                sequences = [tokens for _, tokens in sequencer.sequences([schema.example("s", chat)])]
            except TunelineError:
                continue
            tools = json.loads(chat["tools"]) if chat["tools"] else None
            for tokens in sequences:
                for answer in tokens.answers:
                    prompt = to_openai(chat["messages"][: answer.message])
                    ids = prompts.encode_chat(tokenizer, prompt, tools, splits_answers=history == "refuse")
                    assert ids == tokens.input_ids[: answer.start]
                    num_compared += 1
            break

    assert (num_compared == 0) == (name in REFUSED)


@settings(deadline=None, max_examples=60)
@given(contents=st.lists(words, min_size=4, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
@pytest.mark.parametrize("templated", ["chatml", "vicuna", "llama2"], indirect=True)
def test_prompts_of_later_turns_start_the_training_row(templated, contents):
    tokenizer, roles = templated, ["user", "assistant"] * 3
    messages = [schema.message(*turn) for turn in zip(roles, contents, strict=False)]
    (tokens,) = tokenize.tokenize(schema.example("s", schema.content(messages)), tokenizer)

    for answer in tokens.answers:
        assert prompts.encode_chat(tokenizer, to_openai(messages[: answer.message])) == tokens.input_ids[: answer.start]


def test_text_parts_are_joined_and_a_developer_is_the_system(tokenizer):
    parts = [{"type": "text", "text": "What "}, {"type": "text", "text": "is it?"}]

    ids = prompts.encode_chat(
        tokenizer, [{"role": "developer", "content": "Short."}, {"role": "user", "content": parts}]
    )

    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nShort.<|im_end|>\n<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_template_with_a_developer_gets_one(tiny_model):
    template = "{% for m in messages %}{{ m.role if m.role == 'developer' else 'other' }}{% endfor %}"

    ids = prompts.encode_chat(with_template(tiny_model, template), [{"role": "developer", "content": "Short."}])

    assert with_template(tiny_model, template).decode(ids) == "developer"


def test_tool_calls_and_results_are_rendered_as_in_training(tiny_model):
    tokenizer = chat_templates.tokenizer_for(TEMPLATES["tuneline: qwen"], tiny_model)
    call = {"id": "call_1", "type": "function", "function": {"name": "add", "arguments": '{"b": 2, "a": 1}'}}
    messages = [
        {"role": "user", "content": "Add."},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "3"},
    ]

    text = tokenizer.decode(prompts.encode_chat(tokenizer, messages, [ADD]))

    assert '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": 1}}\n</tool_call>' in text
    assert "<tool_response>\n3\n</tool_response>" in text
    assert '{"type": "function", "function": {"name": "add"' in text


def test_earlier_thoughts_are_passed_in_the_form_of_the_template(tiny_model):
    turns = [
        {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A", "reasoning_content": "hm"},
        {"role": "user", "content": "R"},
    ]
    by_key = with_template(tiny_model, THINKING)
    in_content = with_template(tiny_model, by_key.chat_template.replace("m.reasoning_content", "false"))

    texts = [tokenizer.decode(prompts.encode_chat(tokenizer, turns)) for tokenizer in (by_key, in_content)]

    assert texts[0] == texts[1]
    assert "<|im_start|>assistant\n<think>\nhm\n</think>\n\nA<|im_end|>" in texts[0]


def test_variables_of_the_template_can_be_set_and_others_are_refused(tiny_model):
    tokenizer = with_template(tiny_model, THINKING)
    question = [{"role": "user", "content": "Q"}]

    ids = prompts.encode_chat(tokenizer, question, template_kwargs={"enable_thinking": False})

    assert tokenizer.decode(ids).endswith("<think>\n\n</think>\n\n")
    with pytest.raises(PromptError, match=r"chat_template_kwargs.enable_thinkin .* Did you mean 'enable_thinking'"):
        prompts.encode_chat(tokenizer, question, template_kwargs={"enable_thinkin": False})
    for name in ("chat_template", "tokenize", "messages", "add_generation_prompt", "bos_token"):
        with pytest.raises(PromptError, match=f"chat_template_kwargs.{name} is not a variable"):
            prompts.encode_chat(tokenizer, question, template_kwargs={name: "x"})


def test_a_variable_that_the_version_fixes_cannot_be_changed(tiny_model):
    tokenizer = with_template(tiny_model, "{%- set enable_thinking = true -%}\n" + THINKING)

    with pytest.raises(PromptError, match="or the template sets it itself"):
        prompts.encode_chat(tokenizer, [{"role": "user", "content": "Q"}], template_kwargs={"enable_thinking": False})


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([], "messages must be a list of at least one message"),
        ("hello", "messages must be a list"),
        ([{"role": "usr", "content": "x"}], r"messages\[0\].role must be one of .*, got 'usr'. Did you mean 'user'"),
        ([{"role": "user"}], r"messages\[0\].content is missing"),
        ([{"role": "user", "content": None}], r"messages\[0\].content is missing"),
        ([{"role": "user", "content": 3}], r"messages\[0\].content must be a text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            r"messages\[0\].content\[0\] has the type 'image_url', and this model reads text only",
        ),
        ([{"role": "user", "content": "x", "tool_calls": [{}]}], r"messages\[0\].tool_calls must be in a message"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            r"messages\[0\].tool_calls: a tool call is not valid JSON",
        ),
        ([{"role": "user", "content": "x", "audio": {"id": "1"}}], r"messages\[0\].audio is not supported"),
        ([{"role": "assistant", "content": "x", "reasoning_content": 1}], "reasoning_content must be a text"),
    ],
)
def test_malformed_messages_are_refused_with_their_place(messages, reason, tokenizer):
    with pytest.raises(PromptError, match=reason):
        prompts.encode_chat(tokenizer, messages)


def test_what_the_template_refuses_or_omits_is_refused(tokenizer, tiny_model):
    refusing = with_template(tiny_model, "{{ raise_exception('Roles must alternate') }}")
    question = [{"role": "user", "content": "Q"}]

    with pytest.raises(PromptError, match="refuses a conversation of user: Roles must alternate"):
        prompts.encode_chat(refusing, question)
    with pytest.raises(PromptError, match="does not render tool schemas"):
        prompts.encode_chat(tokenizer, question, [ADD])
    with pytest.raises(PromptError, match=r"tools\[0\].type must be 'function', got 'web_search'"):
        prompts.encode_chat(tokenizer, question, [{"type": "web_search"}])
    with pytest.raises(SourceError, match="Send a text to /v1/completions"):
        prompts.encode_chat(with_template(tiny_model, None), question)


def test_a_template_without_bound_is_stopped(tiny_model):
    endless = with_template(
        tiny_model, "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    )

    with pytest.raises(PromptError, match="steps for one conversation"):
        prompts.encode_chat(endless, [{"role": "user", "content": "Q"}])


def test_a_raw_text_gets_the_start_token_but_no_end_token(tiny_model):
    from tokenizers.processors import TemplateProcessing

    plain, both = load_tokenizer_from(tiny_model), load_tokenizer_from(tiny_model)
    special = [("<|endoftext|>", 0), ("<|im_end|>", 2)]
    both._tokenizer.post_processor = TemplateProcessing(single="<|endoftext|> $A <|im_end|>", special_tokens=special)

    ids = prompts.encode_text(plain, "The fox")

    assert plain.decode(ids) == "The fox"
    assert prompts.encode_text(both, "The fox") == [0, *ids]
    with pytest.raises(PromptError, match="prompt is empty"):
        prompts.encode_text(plain, "")

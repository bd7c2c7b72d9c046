"""Empty thinking blocks of a chat template have no loss; thinking blocks of a row are never lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import chat_templates
from tuneline.config.sections.data import TokenizeConfig
from tuneline.data import schema
from tuneline.data.chat_template import render, selection, thinking, unsupported_content
from tuneline.data.tokenization import loss_mask, preference_rows, truncation
from tuneline.data.tokenization.sequencer import CompiledTemplateMismatchError, Sequencer
from tuneline.data.tokenizer import fast_encoder
from tuneline.errors import DataError, TunelineError

TEMPLATES_WITH_BLOCK = ("glm4moe_training", "qwen3", "qwen3_training", "qwen3_5_think", "qwen3_6", "qwen3_8")
"""Templates of trl that insert an empty block; the last three write only its end, because their prompt opens it."""

FAMILIES = {name.removesuffix("_training") for name in TEMPLATES_WITH_BLOCK}
HEADERS = {"<|channel|>final<|message|>", "to=user<|message|>"}
"""Text before every answer of gptoss and muse_glimmer; the models generate it, a server does not add it."""

CONTENT = st.text(st.sampled_from("ab <>/\n\t(.é你") | st.characters(codec="utf-8"), min_size=1, max_size=12)
contents = st.lists(CONTENT.filter(lambda text: text.strip() and "think" not in text), min_size=2, max_size=2)
TOOL_CHAT = chat_templates.chats()["tools"]


@pytest.fixture(scope="module")
def templates():
    return chat_templates.templates()


@pytest.fixture(scope="module", params=TEMPLATES_WITH_BLOCK)
def tokenizer(request, templates, tiny_model):
    return chat_templates.tokenizer_for(templates[f"trl: {request.param}"], tiny_model)


@pytest.fixture(scope="module")
def qwen3(templates, tiny_model):
    return chat_templates.tokenizer_for(templates["trl: qwen3"], tiny_model)


def chat(*contents, source="s", **more):
    turns = [schema.message(("user", "assistant")[i % 2], text) for i, text in enumerate(contents)]
    return schema.example(source, schema.content(turns, **more))


def tokenize(example, tokenizer, **config):
    sequencer = Sequencer(tokenizer, TokenizeConfig(**config))
    return [tokens for _, tokens in sequencer.sequences([example])], sequencer


def trained_text(sequence, tokenizer):
    return "".join(tokenizer.decode(sequence.input_ids[a:b]) for a, b in sequence.trained)


@pytest.mark.parametrize("thinking", ["train", "mask"])
def test_an_empty_block_that_the_template_inserts_has_no_loss(tokenizer, thinking):
    (sequence,), sequencer = tokenize(chat("What?", "It is 4."), tokenizer, thinking=thinking)

    assert trained_text(sequence, tokenizer) == f"It is 4.{tokenizer.eos_token}"
    assert "</think>" in tokenizer.decode(sequence.input_ids)
    assert sequencer.counts["empty_thoughts"] == 1
    start = sequence.answers[0].start
    assert sequencer.counts["empty_thought_tokens"] == sequence.trained[0][0] - start > 0


def test_tool_calls_after_an_empty_block_are_trained(tokenizer):
    example = schema.example("s", {**TOOL_CHAT, "messages": TOOL_CHAT["messages"][:2]})
    try:
        (sequence,), _ = tokenize(example, tokenizer)
    except TunelineError as error:
        pytest.skip(str(error))  # the tool calls of this template do not end with a stop token

    assert trained_text(sequence, tokenizer).startswith("<tool_call>")


@settings(deadline=None, max_examples=25)
@given(turns=contents)
def test_the_compiled_and_the_original_template_train_the_same_tokens(qwen3, turns):
    example = chat(*turns)
    plain = Sequencer(qwen3, TokenizeConfig())
    plain.disable_compiled_template()
    ((_, rendered),) = plain.sequences([example])

    (sequence,), _ = tokenize(example, qwen3)

    assert sequence.input_ids == rendered.input_ids
    assert sequence.trained == rendered.trained
    assert turns[1].strip() in trained_text(sequence, qwen3)
    assert "think" not in trained_text(sequence, qwen3)


def test_a_template_with_an_empty_block_is_compiled(qwen3):
    _, sequencer = tokenize(chat("What?", "It is 4."), qwen3)

    assert sequencer.rendering.startswith("compiled")
    assert sequencer.counts["rendered_by_template"] == 0


def test_a_block_that_the_compiled_template_misses_is_detected(qwen3, monkeypatch):
    monkeypatch.setattr(thinking, "skip_white_space", lambda ids, start, margin, width: start)

    with pytest.raises(CompiledTemplateMismatchError):
        tokenize(chat("What?", "It is 4."), qwen3)


def test_an_empty_block_in_the_row_is_trained(qwen3):
    (sequence,), sequencer = tokenize(chat("What?", "<think>\n\n</think>\n\nIt is 4."), qwen3)

    assert trained_text(sequence, qwen3) == f"<think>\n\n</think>\n\nIt is 4.{qwen3.eos_token}"
    assert sequencer.counts["empty_thoughts"] == 0


@pytest.mark.parametrize(("thinking", "before"), [("train", "<think>\nHm.\n</think>\n\n"), ("mask", "")])
def test_thinking_in_the_row_is_trained_with_its_tags(qwen3, thinking, before):
    (sequence,), sequencer = tokenize(chat("What?", "<think>\nHm.\n</think>\n\nIt is 4."), qwen3, thinking=thinking)

    assert trained_text(sequence, qwen3) == f"{before}It is 4.{qwen3.eos_token}"
    assert sequencer.counts["empty_thoughts"] == 0


def test_a_block_whose_tags_are_not_tokens_has_no_loss_either(templates, tiny_model):
    tokenizer = chat_templates.load_tokenizer_from(tiny_model)
    tokenizer.chat_template = templates["trl: qwen3"]

    for answer in ("It is 4.", "(4)", "  4"):
        (sequence,), sequencer = tokenize(chat("What?", answer), tokenizer)
        assert answer in trained_text(sequence, tokenizer)
        assert "think" not in trained_text(sequence, tokenizer)
        assert sequencer.counts["empty_thoughts"] == 1


@pytest.mark.parametrize("thinking", ["train", "mask"])
def test_empty_blocks_have_no_loss_with_train_on_all(qwen3, thinking):
    answer = "<think>\nHm.\n</think>\n\nIt is 4."

    (empty,), _ = tokenize(chat("What?", "It is 4."), qwen3, train_on="all", thinking=thinking)
    (full,), _ = tokenize(chat("What?", answer), qwen3, train_on="all", thinking=thinking)

    assert trained_text(empty, qwen3) == qwen3.decode(empty.input_ids).replace("<think>\n\n</think>\n\n", "")
    assert ("Hm." in trained_text(full, qwen3)) is (thinking == "train")


@pytest.mark.parametrize("policy", ["right", "left", "proportional", "split"])
def test_truncation_keeps_the_block_and_leaves_it_without_loss(qwen3, policy):
    encoder = loss_mask.ConversationEncoder(
        qwen3, fast_encoder.build_encoder(qwen3), loss_mask.stop_token_ids(qwen3), thinking.find_empty_block(qwen3)
    )
    messages = chat("What is it? " * 9, "It is one and two. " * 9)["messages"]
    ids, (answer,) = encoder.encode(messages, "", "all")
    block = ids[answer.start : answer.content_start]

    for length in range(answer.content_start - 60, len(ids), 7):
        for _, truncated, answers in truncation.truncate(
            messages, lambda part: encoder.encode(part, "", "all"), policy, length
        ):
            last = answers[-1]
            assert truncated[last.start : last.content_start] == block
            assert len(truncated) <= length
            assert last.end - last.content_start >= truncation.MIN_ANSWER_TOKENS
            assert truncated[last.end - 1] in encoder.stop_ids


@pytest.mark.parametrize(
    ("chosen", "rejected", "in_prompt", "count"),
    [("Yes.", "No.", True, 2), ("<think>\nHm.\n</think>\n\nYes.", "No.", False, 1)],
)
def test_a_block_of_both_answers_of_a_pair_belongs_to_the_prompt(qwen3, chosen, rejected, in_prompt, count):
    pair = (("chosen", chosen), ("rejected", rejected))
    answers = {name: [schema.message("assistant", text)] for name, text in pair}
    example = schema.example("s", schema.content([schema.message("user", "What?")], **answers))
    sequencer = Sequencer(qwen3, TokenizeConfig())

    row = preference_rows.build_row(example, sequencer, TokenizeConfig(), "preference")

    assert qwen3.decode(row["prompt_ids"]).endswith("</think>\n\n") is in_prompt
    assert qwen3.decode(row["rejected_ids"]).endswith(f"No.{qwen3.eos_token}")
    assert ("think" in qwen3.decode(row["rejected_ids"])) is not in_prompt
    assert sequencer.counts["empty_thoughts"] == count


def test_a_prompt_for_generation_equals_the_prompt_of_a_server(qwen3):
    example = chat("What?", "It is 4.")
    row = preference_rows.build_row(example, Sequencer(qwen3, TokenizeConfig()), TokenizeConfig(), "prompt")

    assert qwen3.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert qwen3.decode(row["completion_ids"]) == f"It is 4.{qwen3.eos_token}"


def test_no_template_inserts_other_text_into_an_answer(templates, tiny_model):
    messages = [schema.message("user", "What?"), schema.message("assistant", "It is 4.")]
    num_checked = 0
    for name, text in templates.items():
        try:
            tokenizer = chat_templates.tokenizer_for(text, tiny_model)
            rendered = render.render(messages, "", tokenizer)
        except TunelineError:
            continue
        block, (span,) = thinking.find_empty_block(tokenizer), rendered.answers
        answer = rendered.text[span.start : span.end]
        before = answer[block.length_with_white_space(answer, "It is 4.") if block else 0 :].partition("It is 4.")[0]
        assert before.strip() in {"", *HEADERS}, name
        assert (block is not None) is (name.removeprefix("trl: ").removesuffix("_training") in FAMILIES), name
        num_checked += 1
    assert num_checked > 60


@pytest.mark.parametrize("name", ["phi3", "phi3_5_training"])
def test_text_after_the_stop_token_is_not_part_of_the_answer(templates, tiny_model, name):
    tokenizer = chat_templates.tokenizer_for(templates[f"trl: {name}"], tiny_model)
    plain = Sequencer(tokenizer, TokenizeConfig())
    plain.disable_compiled_template()

    (sequence,), _ = tokenize(chat("What?", "end"), tokenizer)
    ((_, rendered),) = plain.sequences([chat("What?", "end")])

    assert tokenizer.decode(sequence.input_ids).endswith("end<|end|>\n<|end|>")
    assert trained_text(sequence, tokenizer) == "end<|end|>"
    assert (rendered.input_ids, rendered.trained) == (sequence.input_ids, sequence.trained)


WITHOUT_THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip() }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_omits_thinking_is_refused(tiny_model):
    tokenizer = chat_templates.load_tokenizer_from(tiny_model)
    tokenizer.chat_template = WITHOUT_THINKING
    contents = ("What?", "<think>\nHm.\n</think>\n\n4.", "And?", "5.")

    for config in ({}, {"rewritten_history": "each_turn"}):
        with pytest.raises(
            DataError, match=r"Answer 2 has a thinking block \('Hm.'\), and the chat template silently omits"
        ):
            tokenize(chat(*contents), tokenizer, **config)
    (sequence,), _ = tokenize(
        chat(*contents), tokenizer, rewritten_history="last_turn"
    )  # only the last answer is trained
    assert trained_text(sequence, tokenizer) == "5.<|im_end|>"


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_thinking_after_an_empty_block_is_refused(templates, tiny_model, arguments):
    text = selection.prepend_arguments(templates["trl: qwen3_8"], arguments)
    tokenizer = chat_templates.tokenizer_for(text, tiny_model)

    with pytest.raises(DataError, match="writes an empty thinking block before it.*trained with template: "):
        tokenize(chat("What?", "<think>\nHm.\n</think>\n\n4."), tokenizer)


def test_a_final_tool_call_is_not_lost_by_a_template_that_refuses_tool_results(templates, tiny_model):
    tokenizer = chat_templates.tokenizer_for(templates["tuneline: alpaca"], tiny_model)

    with pytest.raises(DataError, match="tool calls, and the chat template silently omits"):
        tokenize(schema.example("s", {**TOOL_CHAT, "messages": TOOL_CHAT["messages"][:2], "tools": ""}), tokenizer)


def test_a_template_that_omits_text_in_messages_with_tool_calls_is_refused(templates, tiny_model):
    tokenizer = chat_templates.tokenizer_for(templates["trl: llama3_1"], tiny_model)
    turns = TOOL_CHAT["messages"]
    with_text = [turns[0], {**turns[1], "content": "Let me add."}, *turns[2:]]

    assert unsupported_content.find_unsupported(tokenizer) == [unsupported_content.TEXT_WITH_TOOL_CALLS]
    tokenize(schema.example("s", TOOL_CHAT), tokenizer)
    with pytest.raises(DataError, match="text in messages with tool calls, and the chat template silently omits"):
        tokenize(schema.example("s", {**TOOL_CHAT, "messages": with_text}), tokenizer)

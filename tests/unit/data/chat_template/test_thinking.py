"""Thinking blocks that a chat template writes itself carry no loss; thoughts that a row has are never lost."""

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

WRITES = ("glm4moe_training", "qwen3", "qwen3_training", "qwen3_5_think", "qwen3_6", "qwen3_8")
"""Templates of trl that write an empty block; the last three write its end, as their header begins it."""

FAMILIES = {writes.removesuffix("_training") for writes in WRITES}
HEADERS = {"<|channel|>final<|message|>", "to=user<|message|>"}
"""What the models of gptoss and muse_glimmer write in front of every answer; servers do not write it for them."""

LIST_LIKE = st.text(st.sampled_from("ab <>/\n\t(.é你") | st.characters(codec="utf-8"), min_size=1, max_size=12)
contents = st.lists(LIST_LIKE.filter(lambda text: text.strip() and "think" not in text), min_size=2, max_size=2)
CALLING = chat_templates.chats()["tools"]


@pytest.fixture(scope="module")
def templates():
    return chat_templates.templates()


@pytest.fixture(scope="module", params=WRITES)
def tokenizer(request, templates, tiny_model):
    return chat_templates.tokenizer_for(templates[f"trl: {request.param}"], tiny_model)


@pytest.fixture(scope="module")
def qwen3(templates, tiny_model):
    return chat_templates.tokenizer_for(templates["trl: qwen3"], tiny_model)


def chat(*said, source="s", **more):
    turns = [schema.message(("user", "assistant")[i % 2], text) for i, text in enumerate(said)]
    return schema.example(source, schema.content(turns, **more))


def made(example, tokenizer, **config):
    sequencer = Sequencer(tokenizer, TokenizeConfig(**config))
    return [tokens for _, tokens in sequencer.sequences([example])], sequencer


def trained_text(sequence, tokenizer):
    return "".join(tokenizer.decode(sequence.input_ids[a:b]) for a, b in sequence.trained)


@pytest.mark.parametrize("thinking", ["train", "mask"])
def test_what_the_template_writes_where_an_answer_has_no_thoughts_carries_no_loss(tokenizer, thinking):
    (sequence,), sequencer = made(chat("What?", "It is 4."), tokenizer, thinking=thinking)

    assert trained_text(sequence, tokenizer) == f"It is 4.{tokenizer.eos_token}"
    assert "</think>" in tokenizer.decode(sequence.input_ids)
    assert sequencer.counts["empty_thoughts"] == 1
    start = sequence.answers[0].start
    assert sequencer.counts["empty_thought_tokens"] == sequence.trained[0][0] - start > 0


def test_calls_behind_an_empty_block_are_trained(tokenizer):
    example = schema.example("s", {**CALLING, "messages": CALLING["messages"][:2]})
    try:
        (sequence,), _ = made(example, tokenizer)
    except TunelineError as error:
        pytest.skip(str(error))  # a template whose calls end with no stop token

    assert trained_text(sequence, tokenizer).startswith("<tool_call>")


@settings(deadline=None, max_examples=25)
@given(said=contents)
def test_both_ways_of_rendering_train_the_same_tokens(qwen3, said):
    example = chat(*said)
    plain = Sequencer(qwen3, TokenizeConfig())
    plain.disable_compiled_template()
    ((_, rendered),) = plain.sequences([example])

    (sequence,), _ = made(example, qwen3)

    assert sequence.input_ids == rendered.input_ids
    assert sequence.trained == rendered.trained
    assert said[1].strip() in trained_text(sequence, qwen3)
    assert "think" not in trained_text(sequence, qwen3)


def test_a_compiled_template_writes_the_block_as_fast_as_others(qwen3):
    _, sequencer = made(chat("What?", "It is 4."), qwen3)

    assert sequencer.rendering.startswith("compiled")
    assert sequencer.counts["rendered_by_template"] == 0


def test_a_block_that_the_compiled_template_misses_is_noticed(qwen3, monkeypatch):
    monkeypatch.setattr(thinking, "skip_white_space", lambda ids, start, margin, width: start)

    with pytest.raises(CompiledTemplateMismatchError):
        made(chat("What?", "It is 4."), qwen3)


def test_a_block_that_the_row_writes_is_trained(qwen3):
    (sequence,), sequencer = made(chat("What?", "<think>\n\n</think>\n\nIt is 4."), qwen3)

    assert trained_text(sequence, qwen3) == f"<think>\n\n</think>\n\nIt is 4.{qwen3.eos_token}"
    assert sequencer.counts["empty_thoughts"] == 0


@pytest.mark.parametrize(("thinking", "before"), [("train", "<think>\nHm.\n</think>\n\n"), ("mask", "")])
def test_real_thoughts_are_trained_with_the_tags_around_them(qwen3, thinking, before):
    (sequence,), sequencer = made(chat("What?", "<think>\nHm.\n</think>\n\nIt is 4."), qwen3, thinking=thinking)

    assert trained_text(sequence, qwen3) == f"{before}It is 4.{qwen3.eos_token}"
    assert sequencer.counts["empty_thoughts"] == 0


def test_a_tag_that_is_no_token_is_left_out_of_the_loss_too(templates, tiny_model):
    tokenizer = chat_templates.load_tokenizer_from(tiny_model)
    tokenizer.chat_template = templates["trl: qwen3"]

    for said in ("It is 4.", "(4)", "  4"):
        (sequence,), sequencer = made(chat("What?", said), tokenizer)
        assert said in trained_text(sequence, tokenizer)
        assert "think" not in trained_text(sequence, tokenizer)
        assert sequencer.counts["empty_thoughts"] == 1


@pytest.mark.parametrize("thinking", ["train", "mask"])
def test_where_everything_is_trained_empty_blocks_are_not(qwen3, thinking):
    said = "<think>\nHm.\n</think>\n\nIt is 4."

    (empty,), _ = made(chat("What?", "It is 4."), qwen3, train_on="all", thinking=thinking)
    (full,), _ = made(chat("What?", said), qwen3, train_on="all", thinking=thinking)

    assert trained_text(empty, qwen3) == qwen3.decode(empty.input_ids).replace("<think>\n\n</think>\n\n", "")
    assert ("Hm." in trained_text(full, qwen3)) is (thinking == "train")


@pytest.mark.parametrize("policy", ["right", "left", "proportional", "split"])
def test_a_cut_keeps_the_block_whole_and_out_of_the_loss(qwen3, policy):
    reader = loss_mask.ConversationEncoder(
        qwen3, fast_encoder.build_encoder(qwen3), loss_mask.stop_token_ids(qwen3), thinking.find_empty_block(qwen3)
    )
    messages = chat("What is it? " * 9, "It is one and two. " * 9)["messages"]
    ids, (answer,) = reader.read(messages, "", "all")
    block = ids[answer.start : answer.said]

    for length in range(answer.said - 60, len(ids), 7):
        for _, cut, answers in truncation.truncate(messages, lambda said: reader.read(said, "", "all"), policy, length):
            last = answers[-1]
            assert cut[last.start : last.said] == block
            assert len(cut) <= length
            assert last.end - last.said >= truncation.MIN_ANSWER_TOKENS
            assert cut[last.end - 1] in reader.stop_ids


@pytest.mark.parametrize(
    ("chosen", "rejected", "in_prompt", "count"),
    [("Yes.", "No.", True, 2), ("<think>\nHm.\n</think>\n\nYes.", "No.", False, 1)],
)
def test_a_block_of_both_answers_of_a_pair_belongs_to_the_prompt(qwen3, chosen, rejected, in_prompt, count):
    answers = {name: [schema.message("assistant", said)] for name, said in (("chosen", chosen), ("rejected", rejected))}
    example = schema.example("s", schema.content([schema.message("user", "What?")], **answers))
    sequencer = Sequencer(qwen3, TokenizeConfig())

    row = preference_rows.build_row(example, sequencer, TokenizeConfig(), "preference")

    assert qwen3.decode(row["prompt_ids"]).endswith("</think>\n\n") is in_prompt
    assert qwen3.decode(row["rejected_ids"]).endswith(f"No.{qwen3.eos_token}")
    assert ("think" in qwen3.decode(row["rejected_ids"])) is not in_prompt
    assert sequencer.counts["empty_thoughts"] == count


def test_a_prompt_to_be_answered_ends_where_a_servers_does(qwen3):
    example = chat("What?", "It is 4.")
    row = preference_rows.build_row(example, Sequencer(qwen3, TokenizeConfig()), TokenizeConfig(), "prompt")

    assert qwen3.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")
    assert qwen3.decode(row["completion_ids"]) == f"It is 4.{qwen3.eos_token}"


def test_no_template_writes_other_text_into_an_answer(templates, tiny_model):
    said = [schema.message("user", "What?"), schema.message("assistant", "It is 4.")]
    looked_at = 0
    for name, text in templates.items():
        try:
            tokenizer = chat_templates.tokenizer_for(text, tiny_model)
            rendered = render.render(said, "", tokenizer)
        except TunelineError:
            continue
        block, (turn,) = thinking.find_empty_block(tokenizer), rendered.turns
        answer = rendered.text[turn.start : turn.end]
        before = answer[block.length_with_white_space(answer, "It is 4.") if block else 0 :].partition("It is 4.")[0]
        assert before.strip() in {"", *HEADERS}, name
        assert (block is not None) is (name.removeprefix("trl: ").removesuffix("_training") in FAMILIES), name
        looked_at += 1
    assert looked_at > 60


@pytest.mark.parametrize("name", ["phi3", "phi3_5_training"])
def test_what_stands_behind_the_stop_token_is_no_answer(templates, tiny_model, name):
    tokenizer = chat_templates.tokenizer_for(templates[f"trl: {name}"], tiny_model)
    plain = Sequencer(tokenizer, TokenizeConfig())
    plain.disable_compiled_template()

    (sequence,), _ = made(chat("What?", "end"), tokenizer)
    ((_, rendered),) = plain.sequences([chat("What?", "end")])

    assert tokenizer.decode(sequence.input_ids).endswith("end<|end|>\n<|end|>")
    assert trained_text(sequence, tokenizer) == "end<|end|>"
    assert (rendered.input_ids, rendered.trained) == (sequence.input_ids, sequence.trained)


THINKS_NOTHING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1].lstrip() }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def test_a_template_that_leaves_thoughts_out_says_so(tiny_model):
    tokenizer = chat_templates.load_tokenizer_from(tiny_model)
    tokenizer.chat_template = THINKS_NOTHING
    said = ("What?", "<think>\nHm.\n</think>\n\n4.", "And?", "5.")

    for config in ({}, {"rewritten_history": "each_turn"}):
        with pytest.raises(DataError, match=r"Answer 2 has thoughts \('Hm.'\), and the chat template leaves them out"):
            made(chat(*said), tokenizer, **config)
    (sequence,), _ = made(chat(*said), tokenizer, rewritten_history="last_turn")  # it trains the last answer alone
    assert trained_text(sequence, tokenizer) == "5.<|im_end|>"


@pytest.mark.parametrize("arguments", [{}, {"enable_thinking": False}])
def test_thoughts_behind_an_empty_block_are_refused(templates, tiny_model, arguments):
    text = selection.prepend_arguments(templates["trl: qwen3_8"], arguments)
    tokenizer = chat_templates.tokenizer_for(text, tiny_model)

    with pytest.raises(DataError, match="writes an empty thinking block in front of them.*trained with template: "):
        made(chat("What?", "<think>\nHm.\n</think>\n\n4."), tokenizer)


def test_calls_at_the_end_are_not_lost_by_a_template_that_refuses_their_results(templates, tiny_model):
    tokenizer = chat_templates.tokenizer_for(templates["tuneline: alpaca"], tiny_model)

    with pytest.raises(DataError, match="calls of functions, and the chat template leaves them out"):
        made(schema.example("s", {**CALLING, "messages": CALLING["messages"][:2], "tools": ""}), tokenizer)


def test_a_template_that_leaves_out_texts_beside_calls_says_so(templates, tiny_model):
    tokenizer = chat_templates.tokenizer_for(templates["trl: llama3_1"], tiny_model)
    turns = CALLING["messages"]
    beside = [turns[0], {**turns[1], "content": "Let me add."}, *turns[2:]]

    assert unsupported_content.find_unsupported(tokenizer) == [unsupported_content.TEXT_WITH_TOOL_CALLS]
    made(schema.example("s", CALLING), tokenizer)
    with pytest.raises(DataError, match="texts beside calls of functions, and the chat template leaves them out"):
        made(schema.example("s", {**CALLING, "messages": beside}), tokenizer)

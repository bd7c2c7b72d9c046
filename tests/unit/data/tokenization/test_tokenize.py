"""From a mixture to training rows: loss masks, parity with the template, truncation, packing, counts."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from tuneline.config.sections.data import TokenizeConfig, TokenizeStepConfig
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import html_preview, tokenize
from tuneline.data.tokenization.sequencer import Sequencer
from tuneline.data.tokenization.template_compiler import CompiledTemplate, RolePattern
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import DataError, SourceError, VerificationError
from tuneline.model import source

words = st.text(st.characters(codec="utf-8"), min_size=1, max_size=12).filter(str.strip)
chats = st.lists(words, min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0)
REWRITES = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}<|im_start|>{{ m.role }}\n…<|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
OPENS_THINKING = REWRITES.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}").replace(
    "{{ m.content }}", "{{ m.content.split('</think>')[-1].lstrip() }}"
)


@pytest.fixture(scope="session")
def tokenizer(tiny_model):
    return load_tokenizer_from(tiny_model)


def with_template(tiny_model, template):
    tokenizer = load_tokenizer_from(tiny_model)
    tokenizer.chat_template = template
    return tokenizer


def chat(*contents, trains=None, source="s"):
    roles = ["user", "assistant"] * len(contents)
    trains = trains or [None] * len(contents)
    turns = [schema.message(*part) for part in zip(roles, contents, [None] * len(contents), trains, strict=False)]
    return schema.example(source, schema.content(turns))


def only(example, tokenizer, **config):
    (tokens,) = tokenize.tokenize(example, tokenizer, TokenizeConfig(**config))
    return tokens


def trained_text(tokens, tokenizer):
    return "".join(tokenizer.decode(tokens.input_ids[a:b]) for a, b in tokens.trained)


@settings(deadline=None, max_examples=60)
@given(contents=chats)
def test_only_the_answers_and_their_stop_tokens_have_loss(tokenizer, contents):
    tokens = only(chat(*contents), tokenizer)

    assert trained_text(tokens, tokenizer) == "".join(f"{answer}<|im_end|>" for answer in contents[1::2])
    assert all(tokens.input_ids[end - 1] == tokenizer.eos_token_id for _, end in tokens.trained)


@settings(deadline=None, max_examples=60)
@given(contents=chats)
def test_every_prompt_has_the_ids_of_a_server(tokenizer, contents):
    example = chat(*contents)
    tokens = only(example, tokenizer)

    for answer in tokens.answers:
        prompt = [{"role": m["role"], "content": m["content"]} for m in example["messages"][: answer.message]]
        if answer.message == 1:  # later prompts contain answers that were generated token by token
            served = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True)["input_ids"]
            assert tokens.input_ids[: answer.start] == served


@settings(deadline=None, max_examples=60)
@given(contents=chats)
def test_compiled_and_rendered_conversations_have_the_same_ids(tokenizer, contents):
    example = chat(*contents)
    uncompiled = Sequencer(tokenizer, TokenizeConfig())
    uncompiled.disable_compiled_template()

    ((_, rendered),) = uncompiled.sequences([example])

    assert only(example, tokenizer).input_ids == rendered.input_ids
    assert only(example, tokenizer).trained == rendered.trained


def test_training_on_the_last_turn_only(tokenizer):
    assert (
        trained_text(only(chat("a", "one", "b", "two"), tokenizer, train_on="last_assistant"), tokenizer)
        == "two<|im_end|>"
    )


def test_training_on_the_prompt(tokenizer):
    tokens = only(chat("a", "one"), tokenizer, train_on="all")

    assert trained_text(tokens, tokenizer) == tokenizer.decode(tokens.input_ids)


def test_a_turn_with_train_false_has_no_loss(tokenizer):
    tokens = only(chat("a", "one", "b", "two", trains=[None, False, None, None]), tokenizer)

    assert trained_text(tokens, tokenizer) == "two<|im_end|>"


def test_an_example_without_loss_is_refused(tokenizer):
    with pytest.raises(VerificationError, match="has no tokens with loss"):
        only(chat("a", "one", trains=[None, False]), tokenizer)


def test_thinking_can_be_masked(tokenizer):
    example = chat("a", "<think>\nhm\n</think>\n\nYes.")

    assert trained_text(only(example, tokenizer), tokenizer) == "<think>\nhm\n</think>\n\nYes.<|im_end|>"
    assert trained_text(only(example, tokenizer, thinking="mask"), tokenizer) == "Yes.<|im_end|>"


@pytest.mark.parametrize(
    ("template", "error", "message"),
    [
        ("{% for m in messages %}{{ m['content'] }}{% endfor %}", VerificationError, "would not learn to stop"),
        (REWRITES, VerificationError, "rewrites earlier turns.* tokenize.rewritten_history: each_turn"),
        (None, SourceError, "has no chat template"),
    ],
)
def test_an_incompatible_template_is_refused(tiny_model, template, error, message):
    with pytest.raises(error, match=message):
        only(chat("a", "b", "c", "d"), with_template(tiny_model, template))


def test_a_rewriting_template_can_train_the_last_turn_or_each_turn_separately(tiny_model):
    tokenizer, example = with_template(tiny_model, REWRITES), chat("a", "one", "b", "two")

    last = tokenize.tokenize(example, tokenizer, TokenizeConfig(rewritten_history="last_turn"))
    each_turn = tokenize.tokenize(example, tokenizer, TokenizeConfig(rewritten_history="each_turn"))

    assert [trained_text(tokens, tokenizer) for tokens in last] == ["two<|im_end|>"]
    assert [trained_text(tokens, tokenizer) for tokens in each_turn] == ["one<|im_end|>", "two<|im_end|>"]


def test_an_answer_with_thinking_follows_a_prompt_that_opens_the_block(tiny_model):
    tokenizer = with_template(tiny_model, OPENS_THINKING)
    config = TokenizeConfig(rewritten_history="each_turn")

    (tokens,) = tokenize.tokenize(chat("a", "<think>\nhm\n</think>\n\nYes."), tokenizer, config)

    assert tokenizer.decode(tokens.input_ids).endswith("assistant\n<think>\nhm\n</think>\n\nYes.<|im_end|>\n")
    assert trained_text(tokens, tokenizer) == "hm\n</think>\n\nYes.<|im_end|>"
    with pytest.raises(
        VerificationError, match="opens a thinking block before answer 2, and that answer has no thinking block"
    ):
        tokenize.tokenize(chat("a", "Yes."), tokenizer, config)


def test_a_template_that_modifies_contents_is_followed(tiny_model):
    template = tokenizer_template(tiny_model).replace("m['content']", "m['content'].replace('secret', 'xxx')")
    tokenizer = with_template(tiny_model, template)

    assert trained_text(only(chat("a", "my secret"), tokenizer), tokenizer) == "my xxx<|im_end|>"


def test_a_template_that_omits_tool_calls_or_schemas_is_refused(tokenizer):
    call = '[{"type":"function","function":{"name":"add","arguments":{}}}]'
    turns = [schema.message("user", "q"), schema.message("assistant", "", call), schema.message("tool", "4")]
    with_calls = schema.content([*turns, schema.message("assistant", "4")])
    with_schemas = schema.content([*turns[:1], schema.message("assistant", "4")], tools='[{"type":"function"}]')

    with pytest.raises(DataError, match="row has tool calls, and the chat template silently omits"):
        tokenize.tokenize(schema.example("s", with_calls), tokenizer)
    with pytest.raises(DataError, match="row has tool schemas, and the chat template silently omits"):
        tokenize.tokenize(schema.example("s", with_schemas), tokenizer)


def test_a_template_that_strips_contents_is_followed(tiny_model):
    tokenizer = with_template(tiny_model, tokenizer_template(tiny_model).replace("m['content']", "m['content']|trim"))
    sequencer = Sequencer(tokenizer, TokenizeConfig())

    ((_, tokens),) = sequencer.sequences([chat("a", "\n b c \n")])

    assert trained_text(tokens, tokenizer) == "b c<|im_end|>"
    assert sequencer.counts["rendered_by_template"] == 0


def tokenizer_template(tiny_model):
    return load_tokenizer_from(tiny_model).chat_template


def test_a_compiled_template_that_differs_is_replaced_by_the_original(manifest, monkeypatch, caplog):
    pattern = CompiledTemplate.pattern
    monkeypatch.setattr(CompiledTemplate, "pattern", lambda *chat: RolePattern([[7], *pattern(*chat).pieces]))

    rows = tokenize.tokenize_pack(corpus("one"), manifest, config())

    assert rows.counts["train"]["rendered_by_template"] == 1
    assert rows.counts["train"]["rendering"].startswith("template, example by example")
    assert "produces different token ids than the original template" in caplog.text


def corpus(*answers, source="s"):
    rows = Dataset.from_list([chat("q", answer, source=source) for answer in answers], features=schema.EXAMPLE)
    return Corpus({"train": rows, "validation": rows.select(range(1))})


def texts(*texts):
    examples = [schema.example("s", schema.content(text=text)) for text in texts]
    rows = Dataset.from_list(examples, features=schema.EXAMPLE)
    return Corpus({"train": rows, "validation": rows.select(range(1))})


def config(**more):
    return TokenizeStepConfig(**{"max_length": 256, "max_cut_fraction": 1.0} | more)


@pytest.fixture
def manifest(tiny_model, home):
    return source.tokenizer_manifest(tiny_model)


def test_packed_rows_restart_their_positions(manifest):
    (row,) = tokenize.tokenize_pack(corpus("one", "two", "three"), manifest, config()).splits["train"]

    assert [p for p in row["position_ids"] if p == 0] == [0, 0, 0]
    assert sum(row["lengths"]) == len(row["input_ids"]) == len(row["labels"])
    assert set(row["example_ids"]) == set(corpus("one", "two", "three").splits["train"]["id"])


def test_a_packed_row_is_its_examples_end_to_end(manifest, tokenizer):
    mixture = corpus("one", "two", "three")
    (row,) = tokenize.tokenize_pack(mixture, manifest, config()).splits["train"]
    separate = {example["id"]: only(example, tokenizer) for example in mixture.splits["train"]}

    start = 0
    for example_id, length in zip(row["example_ids"], row["lengths"], strict=True):
        tokens = separate[example_id]
        assert row["input_ids"][start : start + length] == tokens.input_ids
        with_loss = [i for i, label in enumerate(row["labels"][start : start + length]) if label != schema.IGNORE_INDEX]
        assert with_loss == [i for a, b in tokens.trained for i in range(a, b)]
        start += length


def test_without_packing_each_example_is_a_row(manifest):
    rows = tokenize.tokenize_pack(corpus("one", "two"), manifest, config(packing=False))

    assert rows.num_rows()["train"] == 2


def test_texts_are_packed_by_document_or_as_one_stream(manifest, tokenizer):
    documents = texts("one document. " * 8, "another one. " * 8)

    packed = tokenize.tokenize_pack(documents, manifest, config(max_length=128)).splits["train"]
    wrapped = tokenize.tokenize_pack(documents, manifest, config(max_length=32, packing="wrapped", overlong="split"))

    assert sorted(map(len, packed["lengths"])) == [1, 1] or packed.num_rows == 1
    assert all(len(row["input_ids"]) == 32 for row in list(wrapped.splits["train"])[:-1])
    counts = wrapped.counts["train"]
    assert counts["trained_tokens"] == counts["tokens"] - counts["sequences"]
    ids = [token for row in wrapped.splits["train"] for token in row["input_ids"]]
    assert ids.count(tokenizer.eos_token_id) == 2


def test_a_long_text_is_split_into_rows_and_its_end_token_is_kept(manifest, tokenizer):
    ids = tokenizer("word " * 30)["input_ids"]
    limit = next(n for n in range(8, 40) if (len(ids) + 1) % n == 1)

    rows = tokenize.tokenize_pack(
        texts("word " * 30), manifest, config(max_length=limit, overlong="split", packing=False)
    ).splits["train"]

    assert [token for row in rows for token in row["input_ids"]] == [*ids, tokenizer.eos_token_id]
    assert min(len(row["input_ids"]) for row in rows) > 1


def test_wrapped_packing_accepts_texts_of_any_length(manifest):
    counts = tokenize.tokenize_pack(texts("word " * 60), manifest, config(max_length=32, packing="wrapped")).counts

    assert counts["train"]["overlong"] == 0
    assert counts["train"]["rows"] > 1


def test_a_held_out_split_of_only_long_examples_is_refused(manifest):
    rows = mixture(chat("q", "a"), chat("q", "word " * 60))
    split = Corpus({"train": rows.splits["train"].select([0]), "validation": rows.splits["train"].select([1])})

    with pytest.raises(DataError, match="Every held-out example is longer than tokenize.max_length 32"):
        tokenize.tokenize_pack(split, manifest, config(max_length=32, overlong="drop"))


def test_an_overlong_example_is_refused_with_its_length_and_the_alternatives(manifest):
    with pytest.raises(DataError, match=r"has \d+ tokens, more than tokenize.max_length 64. .*overlong: drop, right"):
        tokenize.tokenize_pack(corpus("one", "word " * 40), manifest, config(max_length=64))


@pytest.mark.parametrize("overlong", ["right", "left", "proportional", "split"])
def test_a_truncated_example_keeps_its_generation_prompt_and_its_stop_token(manifest, tokenizer, overlong):
    long = chat("question " * 30, "answer " * 30)
    sequences = tokenize.tokenize(long, tokenizer, TokenizeConfig(max_length=64, overlong=overlong, max_cut_fraction=1))

    if overlong == "right":  # the question alone fills the row, so no answer would remain
        assert sequences == []
        return
    (tokens,) = sequences
    text = tokenizer.decode(tokens.input_ids)
    assert len(tokens.input_ids) <= 64
    assert "<|im_start|>assistant\n" in text
    assert tokens.input_ids[tokens.trained[-1][1] - 1] == tokenizer.eos_token_id


def test_truncated_examples_are_counted_and_bounded(manifest):
    long = corpus("one", "two", "word " * 40)

    counts = tokenize.tokenize_pack(long, manifest, config(max_length=64, overlong="right")).counts["train"]
    dropped = tokenize.tokenize_pack(long, manifest, config(max_length=64, overlong="drop")).counts["train"]

    assert (counts["overlong"], counts["cut"], counts["dropped"]) == (1, 1, 0)
    assert (dropped["overlong"], dropped["cut"], dropped["dropped"], dropped["sequences"]) == (1, 0, 1, 2)
    with pytest.raises(DataError, match="1 of 3 examples are longer .*max_cut_fraction allows 10%"):
        tokenize.tokenize_pack(long, manifest, config(max_length=64, overlong="drop", max_cut_fraction=0.1))


def test_a_token_budget_limits_a_source_and_is_counted(manifest, tokenizer):
    one = len(only(chat("q", "one"), tokenizer).input_ids)

    counts = tokenize.tokenize_pack(corpus("one", "one ", "one  "), manifest, config(max_tokens={"s": one})).counts

    assert counts["train"]["sequences"] == 1
    assert counts["train"]["beyond_max_tokens"] == {"s": 2}
    assert counts["validation"]["sequences"] == 1


def test_coverage_fill_and_lengths_are_counted(manifest):
    counts = tokenize.tokenize_pack(corpus("one", "two"), manifest, config()).counts["train"]

    assert counts["coverage"] == round(counts["trained_tokens"] / counts["tokens"], 4)
    assert counts["fill"] == round(counts["tokens"] / 256, 4)
    assert sum(counts["lengths"]["counts"]) == 2


def pair(good, bad, question="q"):
    chosen, rejected = ([schema.message("assistant", text)] for text in (good, bad))
    content = schema.content([schema.message("user", question)], chosen=chosen, rejected=rejected)
    return schema.example("s", content)


def mixture(*examples):
    rows = Dataset.from_list(list(examples), features=schema.EXAMPLE)
    return Corpus({"train": rows, "validation": rows.select(range(1))})


def test_pairs_share_their_prompt_and_end_with_a_stop_token(manifest, tokenizer):
    rows = tokenize.tokenize_pack(mixture(pair("good", "bad")), manifest, config(stage="preference"))
    (row,) = rows.splits["train"]

    assert tokenizer.decode(row["prompt_ids"]).endswith("q<|im_end|>\n<|im_start|>assistant\n")
    assert tokenizer.decode(row["chosen_ids"]) == "good<|im_end|>"
    assert tokenizer.decode(row["rejected_ids"]) == "bad<|im_end|>"
    assert rows.counts["train"]["coverage"] > 0


def test_labelled_answers_keep_their_label(manifest, tokenizer):
    turns = [schema.message("user", "q"), schema.message("assistant", "a")]
    labelled = schema.example("s", schema.content(turns, label=False))

    (row,) = tokenize.tokenize_pack(mixture(labelled), manifest, config(stage="kto")).splits["train"]

    assert tokenizer.decode(row["completion_ids"]) == "a<|im_end|>"
    assert row["label"] is False


@pytest.mark.parametrize("overlong", ["right", "left", "proportional"])
@pytest.mark.parametrize("question", ["ask " * 3, "ask " * 40])
def test_both_answers_of_a_long_pair_are_truncated_with_the_same_prompt(manifest, tokenizer, overlong, question):
    long = pair("good " * 40, "bad", question)
    rows = tokenize.tokenize_pack(
        mixture(pair("a", "b"), long), manifest, config(stage="preference", max_length=64, overlong=overlong)
    )
    counts = rows.counts["train"]

    assert counts["overlong"] == counts["cut"] + counts["dropped"] == 1
    for row in rows.splits["train"]:
        assert len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])) <= 64
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == tokenizer.eos_token_id
        assert tokenizer.decode(row["prompt_ids"]).endswith("<|im_start|>assistant\n")


def test_a_stage_refuses_examples_of_another_kind(manifest):
    with pytest.raises(DataError, match="examples of kind preference; stage sft trains on chat or text"):
        tokenize.tokenize_pack(mixture(pair("good", "bad")), manifest, config())


def test_the_preview_page_marks_trained_text(manifest):
    rows = tokenize.tokenize_pack(corpus("one <b>"), manifest, config())

    page = html_preview.render_split(rows.preview, rows.counts["train"])

    assert "<mark>one &lt;b&gt;</mark><mark><b>&lt;|im_end|&gt;</b></mark>" in page

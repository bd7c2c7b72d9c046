"""Tables of LlamaFactory's keys and chat templates."""

import os
from pathlib import Path

import pytest

from tuneline.config.llamafactory import keys
from tuneline.config.llamafactory.schema import LlamaFactoryConfig

DOCS = Path("docs/llamafactory.md")


def test_defaults_match_transformers():
    from dataclasses import fields

    from transformers import Seq2SeqTrainingArguments

    transformers_defaults = {field.name: field.default for field in fields(Seq2SeqTrainingArguments)}
    defaults = {
        name: field.default for name, field in LlamaFactoryConfig.model_fields.items() if name in transformers_defaults
    }

    assert transformers_defaults.keys() <= set(keys.table().all_keys())
    assert {k for k, v in defaults.items() if (v or None) != (transformers_defaults[k] or None)} == {
        "optim",  # fused or not, by version
        "per_device_eval_batch_size",  # only used for generation, if the file sets it
    }


def test_every_key_is_in_the_table_once():
    table_keys = keys.table().all_keys()

    assert len(table_keys) == len(set(table_keys))
    assert set(keys.table().mapped) == set(LlamaFactoryConfig.model_fields)


TURNS = {
    "chatml": ("<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "{}<|im_end|>\n"),
    "deepseek3": ("<｜User｜>{}<｜Assistant｜>", "{}<eos>"),
    "gemma": ("<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "{}<end_of_turn>\n"),
    "llama3": (
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        "{}<|eot_id|>",
    ),
    "mistral": ("[INST] {}[/INST]", " {}<eos>"),
    "phi": ("<|user|>\n{}<|end|>\n<|assistant|>\n", "{}<|end|>\n"),
    "alpaca": ("### Instruction:\n{}\n\n### Response:\n", "{}<eos>\n\n"),
    "default": ("Human: {}<eos>\nAssistant:", "{}<eos>\n"),
    "empty": ("{}", "{}"),
    "llama2": ("<bos>[INST] {} [/INST]", "{}<eos>"),
    "vicuna": ("USER: {} ASSISTANT:", "{}<eos>"),
    "zephyr": ("<|user|>\n{}<eos><|assistant|>\n", "{}<eos>"),
}
"""LlamaFactory's format of a question and of an answer, per template."""


BEGIN = {"deepseek3", "gemma", "llama3", "mistral"}
"""Templates that start with a BOS token."""


LIKE = {"gemma2": "gemma", "qwen": "chatml", "qwen3_nothink": "chatml", "smollm": "chatml", "smollm2": "chatml"}


@pytest.mark.parametrize("name", keys.templates().same)
def test_a_template_renders_the_same_text_or_its_difference_is_listed(name):
    import jinja2

    template, form = keys.templates().same[name], LIKE.get(name, name)
    turns = [("How are you?", "Fine."), ("And now?", "Still fine.")]
    expected = "".join(TURNS[form][0].format(question) + TURNS[form][1].format(answer) for question, answer in turns)
    messages = [
        {"role": role, "content": text}
        for pair in turns
        for role, text in zip(("user", "assistant"), pair, strict=True)
    ]
    source = Path("tuneline/data/chat_template/templates", f"{template.builtin}.jinja").read_text()
    rendered = jinja2.Environment().from_string(source).render(messages=messages, bos_token="<bos>", eos_token="<eos>")

    assert (rendered == ("<bos>" if form in BEGIN else "") + expected) == (template.differs is None)


def test_every_mapped_template_is_built_in():
    catalogue = {path.stem for path in Path("tuneline/data/chat_template/templates").glob("*.jinja")}

    assert {template.builtin for template in keys.templates().same.values()} <= catalogue
    assert len(keys.templates().all_names()) == len(set(keys.templates().all_names())) == 121


def test_the_docs_contain_the_current_table():
    head, mark, _ = DOCS.read_text().partition("<!-- table -->\n")
    text = f"{head}{mark}\n{keys.to_markdown()}"
    if os.environ.get("TUNELINE_WRITE_DOCS"):
        DOCS.write_text(text)

    assert DOCS.read_text() == text

"""Compares our packed rows token by token with those of the chat template of the tokenizer, and with those of trl.

The reference does not use our data steps: the template renders prompt and conversation, the tokenizer encodes the
prompt and the rest separately, and the rest up to and including the stop token has a loss.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars

from benchmarks.peers import ours, process, trl_preparation
from tuneline.data import corpus, schema
from tuneline.data.corpus import Corpus
from tuneline.data.schema import IGNORE_INDEX, Message
from tuneline.data.tokenizer.loader import load_tokenizer_from

Sequence = tuple[list[int], list[int]]


def unpack_examples(rows: Corpus) -> Iterator[tuple[str, list[int], list[int], list[int]]]:
    """Yield each packed example: id, `input_ids`, `labels`, `position_ids`."""
    names = ("input_ids", "labels", "position_ids")
    for row in rows.splits["train"]:
        end = 0
        for example, length in zip(row["example_ids"], row["lengths"], strict=True):
            start, end = end, end + length
            ids, labels, positions = (row[name][start:end] for name in names)
            yield example, ids, labels, positions


def reference_encoding(messages: list[Message], tokenizer: Any) -> tuple[Sequence, bool]:
    """Return ids and labels of a single-turn conversation, and whether encoding it in one piece gives other ids."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in messages]
    prompt = tokenizer.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(turns, tokenize=False)
    assert whole.startswith(prompt)
    texts = [prompt, whole[len(prompt) :], whole]
    head, answer, joined = tokenizer(texts, add_special_tokens=False)["input_ids"]
    end = len(answer) - answer[::-1].index(tokenizer.eos_token_id)
    labels = [IGNORE_INDEX] * len(head) + answer[:end] + [IGNORE_INDEX] * (len(answer) - end)
    return (head + answer, labels), joined != head + answer


def compare(arguments: process.Result) -> process.Result:
    """Compare all packed examples with the template, and one of `trl_every` with trl."""
    disable_progress_bars()
    model = Path(arguments["model"])
    tokenizer = load_tokenizer_from(model)
    examples = ours.align_records(ours.ingest_file(Path(arguments["data"])))
    messages = {example["id"]: example["messages"] for example in _examples(examples)}
    sampled = set(examples.only()["id"][:: arguments["trl_every"]])
    num_compared, different, differing_in_one_piece = Counter[str](), list[str](), set[str]()
    ours_by_id: dict[str, list[int]] = {}
    for name, ids, labels, positions in unpack_examples(
        ours.pack_rows(ours.without_validation(examples), model, arguments["max_length"])
    ):
        expected, differs_in_one_piece = reference_encoding(messages[name], tokenizer)
        num_compared[name] += 1
        different += [] if (ids, labels, positions) == (*expected, list(range(len(ids)))) else [name]
        differing_in_one_piece |= {name} if differs_in_one_piece else set()
        ours_by_id |= {name: ids} if name in sampled else {}
    same_rows = num_compared == Counter(examples.only()["id"])
    return {
        "same_as_template": same_rows and not different,
        "compared": num_compared.total(),
        "different": different[:5],
        "whole_text_differs": len(differing_in_one_piece),
        **_compare_with_trl(
            arguments, examples, {name: ours_by_id[name] for name in ours_by_id.keys() - differing_in_one_piece}
        ),
    }


def _examples(examples: Corpus) -> Iterator[dict[str, Any]]:
    for batch in corpus.iter_batches(examples.only()):
        yield from schema.from_arrow_batch(batch, ("id", "messages"))


def _compare_with_trl(arguments: process.Result, examples: Corpus, ours_by_id: dict[str, list[int]]) -> process.Result:
    """Compare ids where encoding the whole text, as trl does, gives the same ids; trl keeps the order of rows."""
    every, tokenizer = arguments["trl_every"], load_tokenizer_from(Path(arguments["model"]))
    sampled = trl_preparation.conversations(examples, every)
    scratch = Path(arguments["scratch"])
    trl_rows = trl_preparation.prepare_with_trl(sampled, tokenizer, arguments["max_length"], scratch, packing=False)
    by_name = zip(examples.only()["id"][::every], trl_rows["input_ids"], strict=True)
    pairs = [(ours_by_id[name], ids) for name, ids in by_name if name in ours_by_id]
    return {"same_as_trl": all(ours_ids == trl_ids for ours_ids, trl_ids in pairs), "compared_with_trl": len(pairs)}


if __name__ == "__main__":
    process.run_as_job(compare)

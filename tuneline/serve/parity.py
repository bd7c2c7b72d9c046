"""Proof of the prompt format, before a server listens: its prompts have the token ids that the model was trained on.

For stored training rows of a registered version, the ids of the front (`encode_chat`) must start the ids of the row,
and equal those of the tokenizer in the served folder. A model without stored rows, such as a directory, is compared
with transformers' own rendering of a few conversations.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerBase

from tuneline.data import corpus, schema
from tuneline.data.chat_template import render
from tuneline.data.corpus import Corpus
from tuneline.errors import DataError, NotFoundError, VerificationError
from tuneline.export import template_analysis
from tuneline.serve.answers import prompts
from tuneline.serve.answers.messages import PromptError

if TYPE_CHECKING:
    from tuneline.tracking.registry import Version

NUM_EXAMPLES = 32
"""Number of stored examples that are compared; loading and comparing them takes less than a second."""

NUM_SPARE_TOKENS = 16
"""Tokens by which the number in a row may differ, as answers are encoded separately."""

_ANSWER_COLUMNS = ("chosen_ids", "rejected_ids", "completion_ids")
_CONVERSATIONS: tuple[list[dict[str, Any]], ...] = (
    [{"role": "user", "content": "What is 2+2?\n\nSay it."}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Grüß Gott, 你好! "}],
    [
        {"role": "user", "content": "First question"},
        {"role": "assistant", "content": "First answer."},
        {"role": "user", "content": "Second question"},
    ],
)
"""Conversations for models without stored rows; one that the template refuses is left out."""


@dataclass(frozen=True)
class StoredExample:
    """An example of the training data, and its rows."""

    id: str
    content: schema.Content
    sequences: list[list[int]]
    """Token ids of the rows made of this example: one, or one per answer."""


@dataclass(frozen=True)
class StoredRows:
    """Some examples of the training data of a version."""

    source: str
    """Description of the version, or why its rows are not available."""

    examples: list[StoredExample] = field(default_factory=list)
    max_length: int = 0
    """Maximum number of tokens per row; longer examples were truncated, so they are not compared."""

    trains_last_only: bool = False
    """Whether only the last answer of a row was trained."""

    each_turn: bool = False
    """Whether each answer became a row."""

    is_wrapped: bool = False
    """Whether texts were cut into rows, so that the first example is only compared up to the end of its row."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared."""

    source: str
    num_examples: int
    num_prompts: int
    num_tokens: int
    num_truncated: int = 0
    """Examples that were not compared because their rows are truncated."""

    note: str = ""

    @property
    def sentence(self) -> str:
        """The result in one sentence."""
        compared = f"{self.num_prompts} prompts of {self.num_examples} examples ({self.num_tokens} tokens)"
        note = f" {self.note}" if self.note else ""
        return f"Prompt format verified: {compared} have the ids of {self.source}.{note}"


def stored_rows(version: "Version", num_examples: int = NUM_EXAMPLES) -> StoredRows:
    """Load some training examples of a version with their rows; none, with the reason, if they are not available."""
    from tuneline.zenml_integration import training_data  # ZenML is only loaded for registered versions

    try:
        data = training_data.load_training_data(version)
    except NotFoundError as error:
        return StoredRows(str(error))
    return select_rows(data.mixture, data.rows, f"the training rows of {version.name}/{version.version}", num_examples)


def select_rows(mixture: Corpus, rows: Corpus, source: str, num_examples: int = NUM_EXAMPLES) -> StoredRows:
    """Select the first examples in the rows of a corpus, with their messages from the mixture."""
    config = rows.identity
    sequences: dict[str, list[list[int]]] = {}
    for example_id, ids in _sequences(rows):
        if example_id not in sequences and len(sequences) == num_examples:
            break
        sequences.setdefault(example_id, []).append(ids)
    contents = _contents(mixture, set(sequences))
    history = config.get("rewritten_history", "refuse")
    return StoredRows(
        source,
        [StoredExample(key, contents[key], ids) for key, ids in sequences.items() if key in contents],
        max_length=int(config.get("max_length", 0)),
        trains_last_only=config.get("train_on") == "last_assistant" or history != "refuse",
        each_turn=history == "each_turn" and "input_ids" in rows.splits["train"].column_names,
        is_wrapped=config.get("packing") == "wrapped",
    )


def _sequences(rows: Corpus) -> Iterator[tuple[str, list[int]]]:
    """Yield the id and the tokens of each example in the training rows; of wrapped rows, only the first example."""
    train = rows.splits["train"]
    for row in train:
        if "input_ids" not in row:
            answer = next(row[name] for name in _ANSWER_COLUMNS if row.get(name) is not None)
            yield row["example_id"], [*row["prompt_ids"], *answer]
            continue
        start = 0
        for example_id, length in zip(row["example_ids"], row["lengths"], strict=False):
            yield example_id, row["input_ids"][start : start + length]
            start += length
        if rows.identity.get("packing") == "wrapped":
            return


def _contents(mixture: Corpus, ids: set[str]) -> dict[str, schema.Content]:
    contents: dict[str, schema.Content] = {}
    wanted = pa.array(sorted(ids), pa.string())
    for batch in corpus.iter_batches(mixture.splits["train"]):
        matches = batch.filter(pc.is_in(batch.column("id"), value_set=wanted))
        for example in schema.from_arrow_batch(matches):
            contents.setdefault(example["id"], example)  # type: ignore[arg-type]
        if len(contents) == len(ids):
            break
    return contents


def verify_template(tokenizer: PreTrainedTokenizerBase, rows: StoredRows | None = None) -> ParityReport:
    """Prove that the prompts of the front have the ids of the training rows, or of transformers' rendering.

    Args:
        tokenizer: Tokenizer of the served folder.
        rows: Stored rows of the version, if it has any.

    Raises:
        VerificationError: The ids of a prompt differ; the model must not be served with this tokenizer.
    """
    texts_only = rows is not None and bool(rows.examples) and all(row.content["text"] for row in rows.examples)
    if not tokenizer.chat_template and not texts_only:
        return ParityReport("the tokenizer", 0, 0, 0, note="The tokenizer has no chat template: texts only.")
    if rows is None or not rows.examples:
        note = f"Training rows are not available: {rows.source}" if rows else "There are no training rows to compare."
        return _verify_rendering(tokenizer, note)
    if tokenizer.chat_template and not texts_only and template_analysis.writes_date(tokenizer):
        note = "The chat template writes the current date, so the training rows of another day have other ids."
        return _verify_rendering(tokenizer, note)
    num_examples = num_prompts = num_tokens = num_truncated = 0
    for number, example in enumerate(rows.examples, start=1):
        counts = _verify_example(tokenizer, example, rows, f"row {number} of {rows.source} (example {example.id[:12]})")
        num_truncated += counts is None
        for length in counts or ():
            num_prompts, num_tokens = num_prompts + 1, num_tokens + length
        num_examples += counts is not None
    if not num_examples and tokenizer.chat_template:
        return _verify_rendering(tokenizer, f"All compared rows of {rows.source} are truncated.")
    return ParityReport(rows.source, num_examples, num_prompts, num_tokens, num_truncated)


def _verify_example(
    tokenizer: PreTrainedTokenizerBase, example: StoredExample, rows: StoredRows, where: str
) -> list[int] | None:
    """Return the number of tokens of each compared prompt; None if the rows of the example are truncated."""
    content = example.content
    if content["text"]:
        ids = prompts.encode_text(tokenizer, content["text"])
        row = example.sequences[0]
        if len(ids) >= rows.max_length and not rows.is_wrapped:
            return None
        _compare(ids[: len(row)], row, tokenizer, where)
        return [len(ids)]
    if rows.max_length and _full_length(tokenizer, content, where) > rows.max_length:
        return None
    messages, lengths = _to_openai(content["messages"]), list[int]()
    tools = json.loads(content["tools"]) if content["tools"] else None
    for end in _prompt_ends(content, rows):
        ids = _encode(tokenizer, messages[:end], tools, where, splits=not rows.trains_last_only)
        row = max(example.sequences, key=lambda sequence: _num_equal(ids, sequence))
        _compare(ids, row, tokenizer, f"{where}, prompt before message {end + 1}")
        _compare_rendering(tokenizer, messages[:end], tools, where)
        lengths.append(len(ids))
    return lengths


def _prompt_ends(content: schema.Content, rows: StoredRows) -> list[int]:
    """Return the number of messages in each prompt: those before a trained answer."""
    messages = content["messages"]
    if content["chosen"]:
        return [len(messages)]
    if content["label"] is not None:
        return [len(messages) - 1]
    ends = [i for i, turn in enumerate(messages) if turn["role"] == "assistant" and turn["train"] is not False and i]
    return ends[-1:] if rows.trains_last_only and not rows.each_turn else ends


def _full_length(tokenizer: PreTrainedTokenizerBase, content: schema.Content, where: str) -> int:
    """Return the number of tokens of a conversation, at least; a longer one than a row was truncated."""
    try:
        text = render.apply_chat_template([*content["messages"], *content["chosen"]], content["tools"], tokenizer)
    except DataError as error:
        raise VerificationError(f"Prompt format: {where} cannot be rendered: {error}") from error
    return len(tokenizer(text, add_special_tokens=False)["input_ids"]) + NUM_SPARE_TOKENS


def _to_openai(messages: Sequence[schema.Message]) -> list[dict[str, Any]]:
    converted = []
    for turn in messages:
        calls = {"tool_calls": json.loads(turn["tool_calls"])} if turn["tool_calls"] else {}
        converted.append({"role": turn["role"], "content": turn["content"], **calls})
    return converted


def _encode(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, where: str, *, splits: bool
) -> list[int]:
    try:
        return prompts.encode_chat(tokenizer, messages, tools, splits_answers=splits)
    except PromptError as error:
        raise VerificationError(f"Prompt format: {where} cannot be rendered: {error}") from error


def _compare_rendering(
    tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], tools: Any, where: str
) -> int:
    """Compare with transformers' rendering, which encodes the conversation as one text; return the number of tokens."""
    ids = _encode(tokenizer, messages, tools, where, splits=False)
    try:
        rendered = tokenizer.apply_chat_template(
            messages, tools=tools, add_generation_prompt=True, tokenize=True, return_dict=False
        )
    except Exception as error:  # the template may require arguments as text, which the front tries as well
        if any("tool_calls" in turn for turn in messages):
            return len(ids)
        raise VerificationError(f"Prompt format: {where} cannot be rendered by transformers: {error}") from error
    _compare(ids, list(rendered), tokenizer, f"{where}, rendered by transformers", is_whole=True)
    return len(ids)


def _verify_rendering(tokenizer: PreTrainedTokenizerBase, note: str) -> ParityReport:
    num_prompts = num_tokens = 0
    for number, messages in enumerate(_CONVERSATIONS, start=1):
        try:
            prompts.encode_chat(tokenizer, messages)
        except PromptError:
            continue
        num_prompts += 1
        num_tokens += _compare_rendering(tokenizer, messages, None, f"conversation {number}")
    if not num_prompts:
        raise VerificationError(
            "Prompt format: the chat template refuses a conversation with one question. Fix the template of the model."
        )
    return ParityReport("the tokenizer as transformers renders it", num_prompts, num_prompts, num_tokens, note=note)


def _num_equal(first: Sequence[int], second: Sequence[int]) -> int:
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def _compare(
    ids: list[int], row: list[int], tokenizer: PreTrainedTokenizerBase, where: str, *, is_whole: bool = False
) -> None:
    """Check that ids start a row, or equal it.

    Raises:
        VerificationError: They differ; the message names the first difference.
    """
    position = _num_equal(ids, row)
    if position == len(ids) and (not is_whole or len(ids) == len(row)):
        return
    found, expected = (repr(tokenizer.decode(each[position : position + 8])) for each in (ids, row))
    raise VerificationError(
        f"Prompt format: {where} differs at token {position}: the server would send {found}, and the model was trained "
        f"on {expected}. The tokenizer or its chat template is not that of the training; restore the files of the "
        "version, or train it again."
    )

"""Answers of a model in this process: the batched generation of evaluation, so a prediction equals an evaluation."""

from collections.abc import Iterator, Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from tuneline.config.sections.load import ModelLoadOptions
from tuneline.data.align.prompts import PromptRow
from tuneline.data.chat_template import render
from tuneline.data.tokenizer.loader import load_tokenizer_from
from tuneline.errors import DataError
from tuneline.evaluation.generation import generate
from tuneline.evaluation.generation.generate import SamplingConfig
from tuneline.model.load import load_model
from tuneline.model.methods import adapter_method, families
from tuneline.serve.deploy.located import LocatedModel
from tuneline.serve.predict.job import GenerationSettings, Prediction

CHUNK_BATCHES = 8
"""Batches that are generated before their answers are written. More batches waste less time on rows of different
lengths; an interruption loses the answers of one chunk."""

Pair = tuple[PromptRow, Prediction]


class LocalModelAnswers:
    """Answers rows with a model in memory."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        self._model, self._tokenizer, self._name = model, tokenizer, name

    @classmethod
    def load(cls, located: LocatedModel, dtype: torch.dtype, options: ModelLoadOptions) -> "LocalModelAnswers":
        """Load a model, with its adapter if it is one."""
        model = load_model(located.folder, dtype, allowed=options)
        if located.adapter is not None:
            adapter = located.adapters[located.adapter]
            model = families[adapter_method(adapter)].attach_saved(model, adapter)
        tokenizer = load_tokenizer_from(located.tokenizer_folder or located.folder)
        return cls(model.eval(), tokenizer, located.name)

    def check(self, row: PromptRow, max_new_tokens: int) -> None:
        """Check that a row can be answered.

        Raises:
            DataError: The chat template refuses it, or prompt and answer exceed the context of the model.
        """
        num_tokens = len(self._tokenizer(self.prompt(row), add_special_tokens=False)["input_ids"])
        limit = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and num_tokens + max_new_tokens > limit:
            raise DataError(
                f"the prompt has {num_tokens} tokens, which with {max_new_tokens} new tokens exceeds the model's "
                f"context of {limit} tokens. Lower --max-new-tokens, or shorten the row.",
                "prompt too long",
            )

    def prompt(self, row: PromptRow) -> str:
        """Return the text that the model continues.

        Raises:
            DataError: The chat template refuses the row.
        """
        if row.text:
            return self._begin_of_text() + row.text
        return render.apply_chat_template(row.messages, row.tools, self._tokenizer, add_generation_prompt=True)

    def _begin_of_text(self) -> str:
        """Return the token that the tokenizer puts before a text, which generation does not add to prompts."""
        ids = self._tokenizer("a")["input_ids"]
        bos = self._tokenizer.bos_token_id
        return str(self._tokenizer.bos_token) if bos is not None and ids[:1] == [bos] else ""

    def answers(
        self, rows: Sequence[PromptRow], num_finished: int, batch_size: int, settings: GenerationSettings
    ) -> Iterator[list[Pair]]:
        """Yield the answers of consecutive rows, one chunk at a time.

        Args:
            rows: All rows of the prediction.
            num_finished: Number of rows that are answered already. Chunks begin at the same rows as without them.
            batch_size: Prompts per batch.
            settings: How answers are generated.
        """
        size = batch_size * CHUNK_BATCHES
        draw = SamplingConfig(settings.temperature, settings.seed) if settings.temperature else None
        start = num_finished
        while start < len(rows):
            chunk = rows[start : (start // size + 1) * size]
            prompts = [self.prompt(row) for row in chunk]
            batches = generate.stream_batches(
                self._model, self._tokenizer, prompts, settings.max_new_tokens, batch_size, draw
            )
            answers = sorted((answer for batch in batches for answer in batch), key=lambda answer: answer.index)
            predictions = (Prediction(each.text, each.finish, each.num_tokens, self._name) for each in answers)
            yield list(zip(chunk, predictions, strict=True))
            start += len(chunk)

"""Configs of the data steps. Each step has its own model, so its cache key depends only on its own options."""

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_SEED, MAX_TOKENS, Config
from tuneline.config.sections.exams import AnyExam
from tuneline.config.sections.sources import SourceConfig

MIN_HELD_OUT = 5
"""Minimum number of evaluated items: with fewer, no method yields a reliable confidence interval."""


HELD_OUT = "held_out"
"""Name of the held-out examples among the evaluation sets."""

BOILERPLATE_ROWS = 10
"""Brown et al. (2020, arXiv:2005.14165, appendix C) ignore n-grams that occur in more than 10 training documents."""


class MergeConfig(Config):
    """How datasets are mixed and split."""

    strategy: Literal["concatenate", "interleave_under", "interleave_over"] = "concatenate"
    """Mixing strategy: concatenate the datasets, or sample them by weight until the first (`interleave_under`) or the
    last (`interleave_over`) is exhausted."""

    mix_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Random seed of interleaving."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Fraction of examples held out for validation. The split depends only on an example's content, so adding or
    removing other examples does not change it."""

    split_by: Literal["auto", "example", "prompt"] = "auto"
    """Unit of the split: the entire example, or its prompt, which keeps all completions of a prompt in the same split.
    `auto` uses the prompt for preference pairs and KTO data, which often have several rows per prompt, and the example
    otherwise."""

    split_seed: int = Field(0, ge=-MAX_SEED, le=MAX_SEED)
    """Seed of the split. A different seed holds out different examples."""

    boilerplate_rows: int = Field(BOILERPLATE_ROWS, ge=1, le=1_000_000_000)
    """An n-gram of 13 words that occurs in more training examples than this is boilerplate and is ignored by the
    contamination check. Exact copies always count as contaminated."""


class SourceShare(Config):
    """Sampling options of one dataset in the mixture."""

    name: str
    repeats: int = 1
    weight: float | None = None


class MergeStepConfig(MergeConfig):
    """Config of step `merge`: the policy, the share of each dataset, and the requirements of the gate."""

    shares: list[SourceShare] = Field(default_factory=list)

    gate_sets: list[str] = Field(default_factory=list)
    """Evaluation sets (`held_out`, exams) whose clean items the gate uses. Each must have enough of them."""

    max_items: int | None = None
    """Number of held-out examples to score, the first ones by id. Null scores all."""


class TokenizeConfig(Config):
    """How examples become training rows."""

    max_length: int = Field(2048, ge=8, le=MAX_TOKENS)
    """Maximum number of tokens per row. LlamaFactory: `cutoff_len`."""

    packing: bool | Literal["wrapped"] = True
    """Pack several examples into one row without attention between them. `wrapped` concatenates texts and cuts the
    stream into rows instead."""

    overlong: Literal["refuse", "drop", "right", "left", "proportional", "split"] = "refuse"
    """Handling of examples longer than `max_length`: `refuse` fails, `drop` skips them, `right` and `left` truncate the
    end or the beginning, `proportional` truncates prompt and answer in proportion (LlamaFactory's rule), `split`
    makes several examples. All are counted."""

    max_cut_fraction: float = Field(0.1, ge=0, le=1)
    """Maximum fraction of examples that are truncated or dropped for their length. A larger fraction is an error."""

    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Messages with loss: all assistant messages, the last assistant message, or all messages. LlamaFactory:
    `mask_history` (`last_assistant`) and `train_on_prompt` (`all`)."""

    rewritten_history: Literal["refuse", "last_turn", "each_turn"] = "refuse"
    """Handling of chat templates that rewrite earlier messages (reasoning models): `refuse` fails, `last_turn` trains
    on the last turn only, `each_turn` makes one example per turn, with the history that the model sees at inference."""

    thinking: Literal["train", "mask"] = "train"
    """Whether `<think>` blocks in answers have loss. Empty blocks that the template inserts never have loss."""


class TokenizeStepConfig(TokenizeConfig):
    """Config of step `tokenize_pack`: the policy, and the token budgets of datasets."""

    max_tokens: dict[str, int] = Field(default_factory=dict)
    stage: Literal["pretrain", "sft", "preference", "kto", "prompt"] = "sft"
    """Kind of rows to build. Examples of another kind are an error."""


class DataSection(Config):
    """Base of all recipes: datasets and exams with unique names."""

    sources: list[SourceConfig] = Field(min_length=1)
    """Datasets, merged in this order."""

    exams: list[AnyExam] = Field(default_factory=list)
    """Multiple-choice exams and lm-evaluation-harness tasks, evaluated for the base model and the new model."""

    def unique_sources(self) -> list[SourceConfig]:
        """Return the datasets without duplicates, in order."""
        return list({source.model_dump_json(): source for source in self.sources}.values())

    def shares(self) -> list[SourceShare]:
        """Return the share of each dataset in the mixture. Listing an identical entry twice doubles its share."""
        counts = Counter(source.name for source in self.sources)
        return [
            SourceShare(name=source.name, repeats=source.repeats * counts[source.name], weight=source.weight)
            for source in self.unique_sources()
        ]

    def evaluation_sets(self, metrics: list[tuple[str, str]]) -> list[str]:
        """Return the evaluation sets of the given metrics: `held_out`, or names of exams."""
        exams = {f"{exam.name}_{column}": exam.name for exam in self.exams for column in exam.columns()}
        return sorted({exams.get(metric, HELD_OUT) for _, metric in metrics})

    @model_validator(mode="after")
    def _names_are_unique(self) -> "DataSection":
        sources = Counter(source.name for source in self.unique_sources())
        for key, counts in (("sources", sources), ("exams", Counter(exam.name for exam in self.exams))):
            duplicates = sorted(name for name, count in counts.items() if count > 1)
            if duplicates:
                raise ValueError(f"{key}: the name {duplicates[0]!r} is used by several entries. Rename all but one.")
        return self

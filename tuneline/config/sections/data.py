"""Configs of the data steps, one per step, so that a step's cache sees only its own knobs."""

from collections import Counter
from typing import Literal

from pydantic import Field, model_validator

from tuneline.config.base import MAX_SEED, MAX_TOKENS, Config
from tuneline.config.sections.exams import AnyExam
from tuneline.config.sections.sources import SourceConfig

MIN_HELD_OUT = 5
"""With fewer items no interval can be believed, whatever the method."""


HELD_OUT = "held_out"
"""The name under which the held-out examples stand beside the exams."""

BOILERPLATE_ROWS = 10
"""Brown et al. (2020, arXiv:2005.14165, appendix C) pass over runs of words that stand in more training documents."""


class MergeConfig(Config):
    """How data sets become one mixture."""

    strategy: Literal["concatenate", "interleave_under", "interleave_over"] = "concatenate"
    """One after another; or drawn in turn by their weights until the first is used up (under), or the last (over)."""

    mix_seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the draw where data sets are interleaved."""

    validation_fraction: float = Field(0.1, ge=0, lt=1)
    """Share of examples held out. The side follows from an example's content: it stays when others come and go."""

    split_by: Literal["auto", "example", "prompt"] = "auto"
    """What decides about the side: the whole example, or its prompt alone, so that all answers to one prompt stand on
    one side. `auto` goes by the prompt for pairs and labelled answers, of which data sets have several a prompt, and by
    the example else."""

    split_seed: int = Field(0, ge=-MAX_SEED, le=MAX_SEED)
    """Another seed holds out other examples."""

    boilerplate_rows: int = Field(BOILERPLATE_ROWS, ge=1, le=1_000_000_000)
    """A run of 13 words that more training examples hold is boilerplate: it makes no held-out example and no exam
    question contaminated. Whole copies do, however many there are."""


class SourceShare(Config):
    """How much of one data set goes into the mixture."""

    name: str
    repeats: int = 1
    weight: float | None = None


class MergeStepConfig(MergeConfig):
    """What `merge` sees: the policy, each data set's share, and what the gate will need."""

    shares: list[SourceShare] = Field(default_factory=list)

    judged: list[str] = Field(default_factory=list)
    """Evaluation sets (`held_out`, exams) of whose clean items the gate judges; each must have enough of them."""

    max_items: int | None = None
    """Held-out examples that are scored, the first by id; null: all."""


class TokenizeConfig(Config):
    """How examples become training rows."""

    max_length: int = Field(2048, ge=8, le=MAX_TOKENS)
    """Tokens a row. LlamaFactory calls this `cutoff_len`."""

    packing: bool | Literal["wrapped"] = True
    """Put several examples into one row, each blind to the others; `wrapped` cuts one long stream of texts instead."""

    overlong: Literal["refuse", "drop", "right", "left", "proportional", "split"] = "refuse"
    """What happens to an example longer than `max_length`: stop; leave it out; cut its end, its beginning, or prompt
    and answer in proportion (LlamaFactory's rule); or make several examples of it. All are counted."""

    max_cut_fraction: float = Field(0.1, ge=0, le=1)
    """More than this share of examples cut or dropped for their length is an error."""

    train_on: Literal["assistant", "last_assistant", "all"] = "assistant"
    """Which turns carry loss: all of the assistant's, the last one, or everything. LlamaFactory calls the second
    `mask_history` and the third `train_on_prompt`."""

    rewritten_history: Literal["refuse", "last_turn", "each_turn"] = "refuse"
    """For templates that change earlier turns (thinking models): stop; train the last turn only; or make one example
    of each turn, with the history as the model will see it."""

    thinking: Literal["train", "mask"] = "train"
    """Whether `<think>` blocks in answers carry loss. An empty one that the template writes never does."""


class TokenizeStepConfig(TokenizeConfig):
    """What `tokenize_pack` sees: the policy, and the token budgets of data sets."""

    max_tokens: dict[str, int] = Field(default_factory=dict)
    stage: Literal["pretrain", "sft", "preference", "kto", "prompt"] = "sft"
    """What the rows are for; another kind of example is refused."""


class DataSection(Config):
    """Base of recipes: data sets and exams have names of their own."""

    sources: list[SourceConfig] = Field(min_length=1)
    """The data sets, merged in this order."""

    exams: list[AnyExam] = Field(default_factory=list)
    """Multiple-choice exams and tasks of lm-evaluation-harness, taken before and after."""

    def unique_sources(self) -> list[SourceConfig]:
        """Return the data sets without repetition, in order."""
        return list({source.model_dump_json(): source for source in self.sources}.values())

    def shares(self) -> list[SourceShare]:
        """Return how much of each data set goes into the mixture; an entry written twice counts twice."""
        written = Counter(source.name for source in self.sources)
        return [
            SourceShare(name=source.name, repeats=source.repeats * written[source.name], weight=source.weight)
            for source in self.unique_sources()
        ]

    def evaluation_sets(self, asked: list[tuple[str, str]]) -> list[str]:
        """Return the evaluation sets that metrics, given with their keys, are of: the held-out rows, exams."""
        exams = {f"{exam.name}_{column}": exam.name for exam in self.exams for column in exam.columns()}
        return sorted({exams.get(metric, HELD_OUT) for _, metric in asked})

    @model_validator(mode="after")
    def _names_are_unique(self) -> "DataSection":
        different = Counter(source.name for source in self.unique_sources())
        for key, counted in (("sources", different), ("exams", Counter(exam.name for exam in self.exams))):
            twice = sorted(name for name, count in counted.items() if count > 1)
            if twice:
                raise ValueError(f"{key} holds the name {twice[0]!r} twice. Give each entry a name of its own.")
        return self

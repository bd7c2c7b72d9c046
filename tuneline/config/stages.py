"""Every stage that a run configuration can name: those that train, and the export of what was trained."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tuneline.config.recipe import Recipe
from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.config.sections.export import ExportRecipe
from tuneline.config.sections.resolve import ResolveConfig
from tuneline.config.training.base import SFTConfig, TrainingConfig
from tuneline.config.training.preference import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardConfig, SimPOConfig
from tuneline.config.training.rl import GRPOConfig, PPOConfig
from tuneline.config.validation import compatibility
from tuneline.config.validation.user_code import source_hash


class SFTRecipe(Recipe):
    """Supervised fine-tuning of one base model, on chats or on texts."""

    rows = "sft"
    metrics = ("rougeL", "rouge1", "rouge2", "log_likelihood")
    stage: Literal["sft"]
    train: SFTConfig = SFTConfig()


class PretrainRecipe(Recipe):
    """Continued pre-training of one base model on texts."""

    rows = "pretrain"
    metrics = ("log_likelihood",)
    stage: Literal["pretrain"]
    train: SFTConfig = SFTConfig()


class PreferenceRecipe(Recipe):
    """What the stages that learn from pairs have in common."""

    rows = "preference"
    metrics = ("preference_accuracy", "log_likelihood")


class DPORecipe(PreferenceRecipe):
    """Direct preference optimisation on pairs, against the model as it starts."""

    stage: Literal["dpo"]
    train: DPOConfig = DPOConfig()


class ORPORecipe(PreferenceRecipe):
    """Odds-ratio preference optimisation on pairs."""

    stage: Literal["orpo"]
    train: ORPOConfig = ORPOConfig()


class CPORecipe(PreferenceRecipe):
    """Contrastive preference optimisation on pairs."""

    stage: Literal["cpo"]
    train: CPOConfig = CPOConfig()


class SimPORecipe(PreferenceRecipe):
    """Simple preference optimisation on pairs."""

    stage: Literal["simpo"]
    train: SimPOConfig = SimPOConfig()


class KTORecipe(Recipe):
    """Kahneman-Tversky optimisation on single answers with a label."""

    rows = "kto"
    metrics = ("signed_log_likelihood",)
    stage: Literal["kto"]
    train: KTOConfig = KTOConfig()


class RewardRecipe(Recipe):
    """A reward model from pairs: an adapter, and a head beside it."""

    rows = "preference"
    metrics = ("preference_accuracy",)
    stage: Literal["rm"]
    train: RewardConfig = RewardConfig()


class RLRecipe(Recipe):
    """What the stages that learn from rewards have in common: prompts, and something that judges answers."""

    rows = "prompt"
    metrics = ("reward", "rougeL", "rouge1", "rouge2")
    train: PPOConfig | GRPOConfig

    def for_train(self) -> TrainingConfig:
        """Return what `train` sees, with the hash of the reward function."""
        return super().for_train().model_copy(update={"reward_function_hash": self._hash()})

    def for_evaluate(self) -> EvaluateStepConfig:
        """Return what `evaluate` sees: the same judge."""
        models = [adapter.path for adapter in self.load.adapters if adapter.use == "reward"]
        return (
            super()
            .for_evaluate()
            .model_copy(
                update={
                    "reward_model": models[0] if models else None,
                    "reward_function": self.train.reward_function,
                    "reward_function_hash": self._hash(),
                }
            )
        )

    def for_resolve(self) -> ResolveConfig:
        """Return what `resolve` sees: it looks at the reward function too."""
        return super().for_resolve().model_copy(update={"reward_function": self.train.reward_function})

    def _hash(self) -> str:
        name = self.train.reward_function
        return source_hash(name, "train.reward_function") if name else ""

    @model_validator(mode="after")
    def _one_judge(self) -> "RLRecipe":
        models = [adapter for adapter in self.load.adapters if adapter.use == "reward"]
        if bool(models) == bool(self.train.reward_function):
            both = "both judge" if models else "neither is given"
            raise ValueError(
                f"train.reward_function and load.adapters (use: reward): {both}. Set reward_function to "
                "module:function, or name the folder of a model that `stage: rm` trained with use: reward."
            )
        return self


class PPORecipe(RLRecipe):
    """Proximal policy optimisation on prompts; one base model plays all roles."""

    stage: Literal["ppo"]
    train: PPOConfig = PPOConfig()


class GRPORecipe(RLRecipe):
    """Group-relative policy optimisation on prompts."""

    stage: Literal["grpo"]
    train: GRPOConfig = GRPOConfig()

    @model_validator(mode="after")
    def _a_reference_is_the_base(self) -> "GRPORecipe":
        method = compatibility.method_variant(self.method)
        if self.train.beta > 0 and method in METHODS_WITHOUT_REFERENCE:
            raise ValueError(
                f"train.beta: the reference is the base with the adapter switched off, and method {method} changes the "
                "base. Set method.type: lora, or train.beta: 0."
            )
        return self


METHODS_WITHOUT_REFERENCE = ("full", "freeze", "pissa", "olora")
"""Methods that leave no base model to compare with when they are switched off."""


AnyRecipe = Annotated[
    SFTRecipe
    | PretrainRecipe
    | DPORecipe
    | ORPORecipe
    | CPORecipe
    | SimPORecipe
    | KTORecipe
    | RewardRecipe
    | PPORecipe
    | GRPORecipe,
    Field(discriminator="stage"),
]
"""The recipe of some stage, told apart by it."""


RECIPES: dict[str, type[Recipe]] = {
    "sft": SFTRecipe,
    "pretrain": PretrainRecipe,
    "dpo": DPORecipe,
    "orpo": ORPORecipe,
    "cpo": CPORecipe,
    "simpo": SimPORecipe,
    "kto": KTORecipe,
    "rm": RewardRecipe,
    "ppo": PPORecipe,
    "grpo": GRPORecipe,
}
"""Stage -> its recipe."""

RunRecipe = Recipe | ExportRecipe

ALL_RECIPES: dict[str, type[Recipe] | type[ExportRecipe]] = {**RECIPES, "export": ExportRecipe}
"""Stage -> its recipe."""

PIPELINES_BY_STAGE = {
    "sft": ("sft_pipeline", "retrain_pipeline"),
    **{stage: (f"{stage}_pipeline",) for stage in ALL_RECIPES if stage != "sft"},
}
"""Stage -> the pipelines that run it; the first by itself."""

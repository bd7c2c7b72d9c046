"""The recipe model of each stage: all training stages, and the export of a trained model."""

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
    """Supervised fine-tuning of a base model on conversations or text."""

    rows = "sft"
    metrics = ("rougeL", "rouge1", "rouge2", "log_likelihood")
    stage: Literal["sft"]
    train: SFTConfig = SFTConfig()


class PretrainRecipe(Recipe):
    """Continued pretraining of a base model on text."""

    rows = "pretrain"
    metrics = ("log_likelihood",)
    stage: Literal["pretrain"]
    train: SFTConfig = SFTConfig()


class PreferenceRecipe(Recipe):
    """Base of the stages that train on preference pairs."""

    rows = "preference"
    metrics = ("preference_accuracy", "log_likelihood")


class DPORecipe(PreferenceRecipe):
    """Direct preference optimization on pairs. The reference is the model before training."""

    stage: Literal["dpo"]
    train: DPOConfig = DPOConfig()


class ORPORecipe(PreferenceRecipe):
    """Odds ratio preference optimization on pairs."""

    stage: Literal["orpo"]
    train: ORPOConfig = ORPOConfig()


class CPORecipe(PreferenceRecipe):
    """Contrastive preference optimization on pairs."""

    stage: Literal["cpo"]
    train: CPOConfig = CPOConfig()


class SimPORecipe(PreferenceRecipe):
    """Simple preference optimization on pairs."""

    stage: Literal["simpo"]
    train: SimPOConfig = SimPOConfig()


class KTORecipe(Recipe):
    """Kahneman-Tversky optimization on single completions with a binary label."""

    rows = "kto"
    metrics = ("signed_log_likelihood",)
    stage: Literal["kto"]
    train: KTOConfig = KTOConfig()


class RewardRecipe(Recipe):
    """Reward model trained on preference pairs: an adapter and a scalar value head."""

    rows = "preference"
    metrics = ("preference_accuracy",)
    stage: Literal["rm"]
    train: RewardConfig = RewardConfig()


class RLRecipe(Recipe):
    """Base of the reinforcement learning stages: prompts, and a reward model or reward function."""

    rows = "prompt"
    metrics = ("reward", "rougeL", "rouge1", "rouge2")
    train: PPOConfig | GRPOConfig

    def for_train(self) -> TrainingConfig:
        """Return the config of step `train`, with the hash of the reward function's source."""
        return super().for_train().model_copy(update={"reward_function_hash": self._hash()})

    def for_evaluate(self) -> EvaluateStepConfig:
        """Return the config of step `evaluate`, which uses the same reward."""
        paths = [adapter.path for adapter in self.load.adapters if adapter.use == "reward"]
        return (
            super()
            .for_evaluate()
            .model_copy(
                update={
                    "reward_model": paths[0] if paths else None,
                    "reward_function": self.train.reward_function,
                    "reward_function_hash": self._hash(),
                }
            )
        )

    def for_resolve(self) -> ResolveConfig:
        """Return the config of step `resolve`, which also checks the reward function."""
        return super().for_resolve().model_copy(update={"reward_function": self.train.reward_function})

    def _hash(self) -> str:
        name = self.train.reward_function
        return source_hash(name, "train.reward_function") if name else ""

    @model_validator(mode="after")
    def _has_one_reward_source(self) -> "RLRecipe":
        models = [adapter for adapter in self.load.adapters if adapter.use == "reward"]
        if bool(models) == bool(self.train.reward_function):
            count = "both are" if models else "neither is"
            raise ValueError(
                f"train.reward_function and load.adapters (use: reward): {count} set, expected exactly one. Set "
                "reward_function to module:function, or add the folder of a reward model (stage: rm) with use: reward."
            )
        return self


class PPORecipe(RLRecipe):
    """Proximal policy optimization on prompts. One base model serves as policy, reference, reward model and critic."""

    stage: Literal["ppo"]
    train: PPOConfig = PPOConfig()


class GRPORecipe(RLRecipe):
    """Group relative policy optimization on prompts."""

    stage: Literal["grpo"]
    train: GRPOConfig = GRPOConfig()

    @model_validator(mode="after")
    def _adapter_can_be_disabled_for_reference(self) -> "GRPORecipe":
        method = compatibility.method_variant(self.method)
        if self.train.beta > 0 and method in METHODS_WITHOUT_REFERENCE:
            raise ValueError(
                f"train.beta: the reference is the base model with the adapter disabled, but method {method} modifies "
                "the base weights. Set method.type: lora, or train.beta: 0."
            )
        return self


METHODS_WITHOUT_REFERENCE = ("full", "freeze", "pissa", "olora")
"""Methods that modify the base weights, so disabling the adapter does not restore a reference model."""


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
"""Recipe of any training stage, discriminated by `stage`."""


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
"""Training stage -> its recipe model."""

RunRecipe = Recipe | ExportRecipe

ALL_RECIPES: dict[str, type[Recipe] | type[ExportRecipe]] = {**RECIPES, "export": ExportRecipe}
"""Stage -> its recipe model, including `export`."""

PIPELINES_BY_STAGE = {
    "sft": ("sft_pipeline", "retrain_pipeline"),
    **{stage: (f"{stage}_pipeline",) for stage in ALL_RECIPES if stage != "sft"},
}
"""Stage -> pipelines that can run it; the first one is the default."""

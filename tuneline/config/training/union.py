"""Training arguments of any stage, discriminated by `objective`."""

from typing import Annotated

from pydantic import Field

from tuneline.config.training.base import SFTConfig
from tuneline.config.training.preference import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardConfig, SimPOConfig
from tuneline.config.training.rl import GRPOConfig, PPOConfig

AnyTrainingConfig = Annotated[
    SFTConfig | DPOConfig | ORPOConfig | CPOConfig | SimPOConfig | KTOConfig | RewardConfig | PPOConfig | GRPOConfig,
    Field(discriminator="objective"),
]

"""The optimisation of any stage, told apart by what it minimises."""

from typing import Annotated

from pydantic import Field

from tuneline.config.preference import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardConfig, SimPOConfig
from tuneline.config.rl import GRPOConfig, PPOConfig
from tuneline.config.train import TrainConfig

Training = Annotated[
    TrainConfig | DPOConfig | ORPOConfig | CPOConfig | SimPOConfig | KTOConfig | RewardConfig | PPOConfig | GRPOConfig,
    Field(discriminator="objective"),
]

"""Rewards of generated answers, by a user function or by a separate reward model."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from tuneline.config.sections.evaluate import EvaluateStepConfig
from tuneline.data import reward_function
from tuneline.identity import digest, tree_hash
from tuneline.model import value_head
from tuneline.model.load import load_model

RewardFunction = Callable[[list[str], list[str], list[str]], list[float]]
"""(prompts, answers, references) -> rewards."""


def reward_id(config: EvaluateStepConfig) -> str:
    """Return the content id of the reward function or model."""
    if config.reward_model is not None:
        return digest(["reward model", tree_hash(config.reward_model)])
    return digest(["reward function", config.reward_function, config.reward_function_hash])


def reward_scorer(config: EvaluateStepConfig, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """Return a function that rewards answers. Prompts are passed as rendered, with their special tokens."""
    if config.reward_model is not None:
        return _by_model(config.reward_model, tokenizer)
    assert config.reward_function is not None, "a recipe has either a reward model or a reward function"
    function = reward_function.load_reward_function(config.reward_function, sha256=config.reward_function_hash)

    def reward(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
        plain = tokenizer.batch_decode(
            tokenizer(prompts, add_special_tokens=False)["input_ids"], skip_special_tokens=True
        )
        return function(plain, answers, references)

    return reward


def _by_model(folder: Path, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    model = load_model(folder).eval()
    head = value_head.load_for_inference(folder, model)

    @torch.inference_mode()
    def reward(prompts: list[str], answers: list[str], references: list[str]) -> list[float]:
        rewards = []
        for prompt, answer in zip(prompts, answers, strict=True):
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids += [*tokenizer(answer, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            row = torch.tensor([ids], device=model.device)
            rewards.append(float(value_head.compute_values(model, head, input_ids=row, use_cache=False)[0, -1]))
        return rewards

    return reward

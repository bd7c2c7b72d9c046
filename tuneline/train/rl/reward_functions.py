"""Who judges answers in training: the user's function, or the reward model on the policy's base."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.training.rl import RLConfig
from tuneline.data import reward_function
from tuneline.model import source
from tuneline.train.job import TrainingJob
from tuneline.train.rl import roles
from tuneline.train.rl.roles import PromptCompletion, RewardFunction


def build_reward_function(job: TrainingJob, model: Any, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """Return what gives answers their rewards.

    Args:
        job: Its recipe names a function, or a reward model stands behind the base.
        model: The policy; a reward adapter is put beside its own.
        tokenizer: Turns ids into the texts that a function sees.
    """
    folder = source.reward_model_folder(job.base_model)
    if folder is not None:
        return roles.attach_reward_model(model, folder)
    config: RLConfig = job.config  # type: ignore[assignment]  # these judges are of the stages ppo and grpo
    assert config.reward_function is not None, "a recipe has one of both"
    function = reward_function.load_reward_function(config.reward_function, sha256=config.reward_function_hash)

    def judge(spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        prompts, answers = [prompt for prompt, _ in spans], [answer for _, answer in spans]
        texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (prompts, answers, references)]
        return function(texts[0], texts[1], texts[2])

    return judge

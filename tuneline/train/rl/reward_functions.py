"""The rewards of a training: a function of the user, or a reward model on the base of the policy."""

from typing import Any

from transformers import PreTrainedTokenizerBase

from tuneline.config.training.rl import RLConfig
from tuneline.data import reward_function
from tuneline.model import source
from tuneline.train.job import TrainingJob
from tuneline.train.rl import roles
from tuneline.train.rl.roles import PromptCompletion, RewardFunction


def build_reward_function(job: TrainingJob, model: Any, tokenizer: PreTrainedTokenizerBase) -> RewardFunction:
    """Return the function that scores completions.

    Args:
        job: Its recipe names a reward function, or its base model is followed by a reward model.
        model: The policy; a reward adapter is loaded next to its own.
        tokenizer: Decodes token ids into the texts that a function receives.
    """
    folder = source.reward_model_folder(job.base_model)
    if folder is not None:
        return roles.attach_reward_model(model, folder)
    config: RLConfig = job.config  # type: ignore[assignment]  # only the stages ppo and grpo have rewards
    assert config.reward_function is not None, "the recipe has a reward function or a reward model"
    function = reward_function.load_reward_function(config.reward_function, sha256=config.reward_function_hash)

    def score(spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        prompts, completions = [prompt for prompt, _ in spans], [completion for _, completion in spans]
        texts = [tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (prompts, completions, references)]
        return function(texts[0], texts[1], texts[2])

    return score

"""Job: a few steps of PPO, with one shared base model or with a separate model per role."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.peers import process
from tuneline.config.sections.method import LoraMethod
from tuneline.config.training.rl import PPOConfig
from tuneline.data.tokenization import preference_rows
from tuneline.model import value_head
from tuneline.model.load import load_model
from tuneline.model.methods import families
from tuneline.model.positions import prediction_positions
from tuneline.model.value_head import MODULE_NAME
from tuneline.train import rollout
from tuneline.train.collate import collate
from tuneline.train.rl import roles
from tuneline.train.rl.experience import Experience
from tuneline.train.rl.objectives import PPO
from tuneline.train.rl.roles import PromptCompletion, RewardFunction
from tuneline.train.rollout import GenerationOptions

LORA = LoraMethod(type="lora", r=8, lora_alpha=16)
FAMILY = families["lora"]
Inputs = dict[str, Any]
ValueFunction = Callable[[Inputs], torch.Tensor]


@dataclass
class Layout:
    """The functions and models of the roles."""

    policy: Any
    logps: ValueFunction
    """Log-probabilities under the policy [N]."""

    values: ValueFunction
    """The critic's values [N]."""

    reference: ValueFunction
    reward_function: RewardFunction
    trained: list[Any]
    """Models with trainable parameters."""


def shared_layout(model: Path, reward: Path, objective: PPO) -> Layout:
    """One base model with switched adapters."""
    policy = FAMILY.attach(load_model(model, attention="segment"), LORA)
    objective.attach(policy, 0)

    def reference(inputs: Inputs) -> torch.Tensor:
        with roles.as_reference(FAMILY, policy):
            return objective._logps(policy, inputs)[0]

    return Layout(
        policy,
        lambda inputs: objective._logps(policy, inputs)[0],
        lambda inputs: _values(policy, getattr(policy, MODULE_NAME), inputs),
        reference,
        roles.attach_reward_model(policy, reward),
        [policy],
    )


def separate_layout(model: Path, reward: Path, objective: PPO) -> Layout:
    """A separate model per role."""
    policy, critic = (FAMILY.attach(load_model(model, attention="segment"), LORA) for _ in range(2))
    reference = load_model(model, attention="segment").eval()
    reward_model = FAMILY.attach_saved(load_model(model, attention="segment"), reward).eval()
    head, reward_head = value_head.build_value_head(critic), value_head.load_value_head(reward)
    critic.add_module(MODULE_NAME, head)

    @torch.no_grad()
    def rewards(spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        return value_head.segment_end_values(
            reward_model, reward_head, collate([preference_rows.concatenate_segments(spans)])
        ).tolist()

    return Layout(
        policy,
        lambda inputs: objective._logps(policy, inputs)[0],
        lambda inputs: _values(critic, head, inputs),
        lambda inputs: objective._logps(reference, inputs)[0],
        rewards,
        [policy, critic],
    )


def _values(model: Any, head: Any, inputs: Inputs) -> torch.Tensor:
    keep = prediction_positions(inputs)
    model_inputs = {name: value for name, value in inputs.items() if name != "labels"}
    return value_head.compute_values(model, head, **model_inputs)[0, keep]


def run(arguments: dict[str, Any]) -> process.Result:
    """Build the layout and run a few steps."""
    objective = PPO(PPOConfig(reward_function="none:none", num_ppo_epochs=1))
    build_layout = shared_layout if arguments["layout"] == "shared" else separate_layout
    (Path(arguments["scratch"]) / "began").touch()
    layout = build_layout(Path(arguments["model"]), Path(arguments["reward"]), objective)
    parameters = [part for model in layout.trained for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)
    options = GenerationOptions(arguments["new_tokens"], stop_id=2, pad_id=2)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    rewards: list[float] = []
    for _ in range(arguments["steps"]):
        prompts = torch.randint(
            3, 40_000, (arguments["batch"], arguments["prompt_tokens"]), generator=generator
        ).tolist()
        rewards += _step(layout, objective, optimizer, prompts, options)
    (Path(arguments["scratch"]) / "ended").touch()
    return {"mean_reward": sum(rewards) / len(rewards)}


def _step(
    layout: Layout,
    objective: PPO,
    optimizer: torch.optim.Optimizer,
    prompts: list[list[int]],
    options: GenerationOptions,
) -> list[float]:
    layout.policy.eval()
    spans = list(zip(prompts, rollout.generate_completions(layout.policy, prompts, options), strict=True))
    inputs = collate([preference_rows.concatenate_segments(spans)])
    with torch.no_grad():
        rewards = torch.tensor(layout.reward_function(spans, []))
        old_N, ref_N, values_N = layout.logps(inputs), layout.reference(inputs), layout.values(inputs)
    experience = Experience(spans, rewards, old_N, ref_N, values_N=values_N)
    objective.compute_advantages(experience)
    assert experience.returns_N is not None, "set by compute_advantages"
    layout.policy.train()
    ratio_N = (layout.logps(inputs) - old_N).exp()
    policy = torch.max(-experience.advantages_N * ratio_N, -experience.advantages_N * ratio_N.clamp(0.8, 1.2)).mean()
    policy.backward()
    (0.05 * ((layout.values(inputs) - experience.returns_N) ** 2).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rewards.tolist()


if __name__ == "__main__":
    process.run_as_job(run)

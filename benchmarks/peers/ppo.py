"""A job: some steps of PPO, with one base model in all roles or with a model for each."""

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
from tuneline.train import rollout
from tuneline.train.collate import collate
from tuneline.train.rl import roles
from tuneline.train.rl.experience import Experience
from tuneline.train.rl.objectives import PPO, VALUE_HEAD
from tuneline.train.rl.roles import PromptCompletion, RewardFunction
from tuneline.train.rollout import GenerationOptions

LORA = LoraMethod(type="lora", r=8, lora_alpha=16)
FAMILY = families["lora"]
Inputs = dict[str, Any]
Said = Callable[[Inputs], torch.Tensor]


@dataclass
class Layout:
    """Who plays which role."""

    policy: Any
    said: Said
    """Log-probabilities under the policy [N]."""

    values: Said
    """The critic's values [N]."""

    reference: Said
    judge: RewardFunction
    trained: list[Any]


def shared(model: Path, reward: Path, objective: PPO) -> Layout:
    """One base, adapters switched."""
    policy = FAMILY.attach(load_model(model, attention="segment"), LORA)
    objective.attach(policy, 0)

    def reference(inputs: Inputs) -> torch.Tensor:
        with roles.as_reference(FAMILY, policy):
            return objective._logps(policy, inputs)[0]

    return Layout(
        policy,
        lambda inputs: objective._logps(policy, inputs)[0],
        lambda inputs: _values(policy, getattr(policy, VALUE_HEAD), inputs),
        reference,
        roles.attach_reward_model(policy, reward),
        [policy],
    )


def four(model: Path, reward: Path, objective: PPO) -> Layout:
    """A model for each role."""
    policy, critic = (FAMILY.attach(load_model(model, attention="segment"), LORA) for _ in range(2))
    reference = load_model(model, attention="segment").eval()
    judge = FAMILY.attach_saved(load_model(model, attention="segment"), reward).eval()
    head, reward_head = value_head.build_value_head(critic), value_head.load_value_head(reward)
    critic.add_module(VALUE_HEAD, head)

    @torch.no_grad()
    def rewards(spans: list[PromptCompletion], references: list[list[int]]) -> list[float]:
        return value_head.segment_end_values(
            judge, reward_head, collate([preference_rows.concatenate_segments(spans)])
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
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    return value_head.compute_values(model, head, **rest)[0, keep]


def run(arguments: dict[str, Any]) -> process.Result:
    """Make the layout, take some steps, and say what they cost."""
    objective = PPO(PPOConfig(reward_function="none:none", num_ppo_epochs=1))
    make = shared if arguments["layout"] == "shared" else four
    (Path(arguments["scratch"]) / "began").touch()
    layout = make(Path(arguments["model"]), Path(arguments["reward"]), objective)
    trained = [part for model in layout.trained for part in model.parameters() if part.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    drawing = GenerationOptions(arguments["new_tokens"], stop_id=2, pad_id=2)
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    rewards: list[float] = []
    for _ in range(arguments["steps"]):
        asked = torch.randint(3, 40_000, (arguments["batch"], arguments["prompt_tokens"]), generator=generator).tolist()
        rewards += _step(layout, objective, optimizer, asked, drawing)
    (Path(arguments["scratch"]) / "ended").touch()
    return {"mean_reward": sum(rewards) / len(rewards)}


def _step(
    layout: Layout, objective: PPO, optimizer: torch.optim.Optimizer, asked: list[list[int]], drawing: GenerationOptions
) -> list[float]:
    layout.policy.eval()
    spans = list(zip(asked, rollout.generate_completions(layout.policy, asked, drawing), strict=True))
    inputs = collate([preference_rows.concatenate_segments(spans)])
    with torch.no_grad():
        rewards = torch.tensor(layout.judge(spans, []))
        old_N, ref_N, values_N = layout.said(inputs), layout.reference(inputs), layout.values(inputs)
    made = Experience(spans, rewards, old_N, ref_N, values_N=values_N)
    objective.judge(made)
    assert made.returns_N is not None, "judged"
    layout.policy.train()
    ratio_N = (layout.said(inputs) - old_N).exp()
    policy = torch.max(-made.advantages_N * ratio_N, -made.advantages_N * ratio_N.clamp(0.8, 1.2)).mean()
    policy.backward()
    (0.05 * ((layout.values(inputs) - made.returns_N) ** 2).mean()).backward()
    optimizer.step()
    optimizer.zero_grad()
    return rewards.tolist()


if __name__ == "__main__":
    process.job(run)

"""Reinforcement learning: rewards rise, and all roles share one base model."""

import pytest
import torch
from datasets import Dataset

from tests import tiny
from tests.unit.train.test_objectives import rows_of
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import AdapterSource, LoadStepConfig
from tuneline.config.sections.method import FullMethod, LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.base import MergeAdapterConfig, SFTConfig
from tuneline.config.training.preference import RewardConfig
from tuneline.config.training.rl import GRPOConfig, PPOConfig
from tuneline.data import schema
from tuneline.data.align import align
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import tokenize
from tuneline.errors import RecipeError
from tuneline.model import merge, source
from tuneline.model.load import load_for_training, load_model
from tuneline.model.methods import families
from tuneline.train import rollout, training_run
from tuneline.train.rl import experience, roles
from tuneline.train.rollout import GenerationOptions

LORA = LoraMethod(type="lora", r=8, lora_alpha=16)
LOAD = LoadStepConfig(dtype="float32", max_length=64)
VOWELS = "tests.rewards:vowels"


@pytest.fixture(scope="module")
def world(tiny_model, tmp_path_factory):
    """A tiny model that has learned to answer, its manifests, and prompts: a random model would earn no reward."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("TUNELINE_HOME", str(tmp_path_factory.mktemp("state")))
        tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
        rows = [schema.example("s", align.align_record(row, "alpaca")) for row in tiny.alpaca_rows(40)]
        split = {
            "train": Dataset.from_list(rows[:32], features=schema.EXAMPLE),
            "validation": Dataset.from_list(rows[32:], features=schema.EXAMPLE),
        }
        rows_by_stage = {
            stage: tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=64, stage=stage))
            for stage in ("sft", "prompt")
        }
        config = SFTConfig(max_steps=40, learning_rate=5e-3)
        learned, _ = training_run.train(
            rows_by_stage["sft"], base_model, tokenizer, LOAD, FullMethod(type="full"), config
        )
        model = merge.merge_adapter(learned, base_model, tokenizer, rows_by_stage["sft"], LOAD, MergeAdapterConfig())
        tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=model.path))
        yield tokenizer, base_model, rows_by_stage["prompt"]


def run_training(world, config, method=LORA, base_model=None, listeners=()):
    tokenizer, own, rows = world
    return training_run.train(rows, base_model or own, tokenizer, LOAD, method, config, listeners)


PPO = PPOConfig(
    reward_function=VOWELS, max_steps=30, learning_rate=3e-3, max_completion_length=12, kl_coef=0.02,
    per_device_train_batch_size=16, mini_batch_size=8, lr_scheduler_type="constant",
)  # fmt: skip
GRPO = GRPOConfig(
    reward_function=VOWELS, max_steps=30, learning_rate=1e-2, max_completion_length=12, num_generations=4,
    per_device_train_batch_size=4, lr_scheduler_type="constant",
)  # fmt: skip


def reward_increase(report):
    rewards = [entry["reward"] for entry in report.history]
    return sum(rewards[-5:]) / 5 - sum(rewards[:5]) / 5


def test_ppo_raises_the_reward(world):
    _, report = run_training(world, PPO)

    assert reward_increase(report) > 0.4
    assert report.history[0]["kl"] == pytest.approx(0, abs=1e-5)
    assert report.summary["validation_reward"] > 0
    assert {"policy_loss", "value_loss", "clip_ratio", "completions/mean_length"} <= set(report.history[-1])


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo"])
def test_grpo_raises_the_reward(world, loss_type):
    _, report = run_training(world, GRPO.model_copy(update={"loss_type": loss_type, "beta": 0.01}))

    assert reward_increase(report) > 0.2
    assert report.history[-1]["kl"] > 0


def test_grpo_supports_full_training(world):
    checkpoint, report = run_training(world, GRPO.model_copy(update={"learning_rate": 1e-3}), FullMethod(type="full"))

    assert checkpoint.kind == "full"
    assert reward_increase(report) > 0.2


def test_two_trainings_generate_the_same_answers(world):
    config = PPO.model_copy(update={"max_steps": 3})

    first, second = (run_training(world, config)[1].history for _ in range(2))

    assert [e["reward"] for e in first] == [e["reward"] for e in second]
    assert [e["loss"] for e in first] == [e["loss"] for e in second]


def test_a_killed_ppo_resumes_to_the_same_weights(world):
    """Sampling, the order of updates, the critic and the adaptive KL coefficient are part of the state."""
    config = PPO.model_copy(update={"max_steps": 6, "save_steps": 2, "target_kl": 1.0})

    def die(figures, step):
        if step == 5:
            raise RuntimeError("died")

    def weights(checkpoint):
        return (checkpoint.path / "adapter_model.safetensors").read_bytes()

    expected = weights(run_training(world, config)[0])
    with pytest.raises(RuntimeError, match="died"):
        run_training(world, config, listeners=(die,))
    resumed, report = run_training(world, config)

    assert report.decisions["resume"] == "resumed from step 4 of 6"
    assert weights(resumed) == expected
    assert len({entry["kl_coef"] for entry in report.history}) == 6


def test_gradients_are_not_clipped_without_a_limit(world):
    """All updates of a step count: clipped to 0, only the last one would change the weights."""
    settings = {"max_steps": 2, "num_ppo_epochs": 2}

    bounds = (None, 1e6)
    results = [
        run_training(world, PPO.model_copy(update={**settings, "max_grad_norm": bound}))[1].history for bound in bounds
    ]

    assert [entry["loss"] for entry in results[0]] == [entry["loss"] for entry in results[1]]


def test_a_reward_function_with_too_few_values_is_refused(world):
    with pytest.raises(RecipeError, match="must return a finite number for each of 16 answers, got .0.0."):
        run_training(world, PPO.model_copy(update={"reward_function": "tests.rewards:too_few"}))


# -- roles on one base


@pytest.fixture(scope="module")
def reward_model(world):
    """The folder of a reward model: an adapter and a head."""
    tokenizer, base_model, _ = world
    rows = rows_of(tokenizer, "preference")
    config = RewardConfig(max_steps=20, learning_rate=1e-2)
    learned, _ = training_run.train(rows, base_model, tokenizer, LOAD, LORA, config)
    return merge.merge_adapter(learned, base_model, tokenizer, rows, LOAD, MergeAdapterConfig()).path


def policy_on(base_model, tokenizer):
    loaded = load_for_training(base_model, tokenizer, LOAD, trains_all=False, packed=True)
    model = families["lora"].attach(loaded.model, LORA)
    for name, part in model.named_parameters():
        if "lora_B" in name:
            part.data.normal_(std=0.05)
    return model.eval()


def test_the_reference_is_bitwise_identical_to_the_base(world, reward_model):
    tokenizer, base_model, _ = world
    model = policy_on(base_model, tokenizer)
    roles.attach_reward_model(model, reward_model)
    ids = torch.randint(3, 300, (2, 20))
    plain = load_for_training(base_model, tokenizer, LOAD, trains_all=False, packed=True).model.eval()

    with roles.as_reference(families["lora"], model):
        result = model(input_ids=ids).logits

    with torch.no_grad():
        assert torch.equal(result, plain(input_ids=ids).logits)
        assert not torch.equal(model(input_ids=ids).logits, result)


def test_the_shared_reward_model_scores_like_a_separate_one(world, reward_model):
    from tuneline.model import value_head

    tokenizer, base_model, _ = world
    model = policy_on(base_model, tokenizer)
    trained_before = {name for name, part in model.named_parameters() if part.requires_grad}
    reward_function = roles.attach_reward_model(model, reward_model)
    spans = [([5, 9, 30, 41], [50, 51, 2]), ([8, 11], [60, 2])]

    shared = reward_function(spans, [])

    separate, head = load_model(reward_model).eval(), value_head.load_value_head(reward_model)
    with torch.no_grad():
        expected = [
            float(value_head.compute_values(separate, head, input_ids=torch.tensor([p + a]))[0, -1]) for p, a in spans
        ]
    assert shared == pytest.approx(expected, rel=1e-4)
    assert {name for name, part in model.named_parameters() if part.requires_grad} == trained_before


def test_ppo_raises_the_reward_of_a_reward_model_and_saves_only_its_adapter(world, reward_model):
    base_model = world[1]
    adapters = [AdapterSource(path=reward_model, use="reward")]
    with_reward_model = source.add_adapters(base_model, adapters)
    source.check_same_base(with_reward_model, reward_model)
    config = PPO.model_copy(update={"reward_function": None, "kl_coef": 0.0, "max_steps": 25})

    checkpoint, report = run_training(world, config, base_model=with_reward_model)

    assert reward_increase(report) > 0
    assert sorted(path.name for path in checkpoint.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


# -- answers and estimates


def test_completions_do_not_depend_on_the_batch_and_end_at_the_stop_token(world):
    tokenizer, base_model, rows = world
    model = policy_on(base_model, tokenizer)
    options = GenerationOptions(12, stop_id=2, pad_id=0)
    prompts = [rows.splits["train"][i]["prompt_ids"] for i in range(3)] + [[5, 9]]

    together = rollout.generate_completions(model, prompts, options, greedy=True)

    assert together == [rollout.generate_completions(model, [prompt], options, greedy=True)[0] for prompt in prompts]
    assert all(2 not in answer[:-1] for answer in together)


def test_gae_is_the_discounted_sum_of_errors():
    rewards, values = torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 0.25, 1.0])

    result = experience.compute_gae(rewards, values, [2, 1], gamma=0.9, lam=0.8)

    last = 1.0 - 0.25
    assert result.tolist() == pytest.approx([0.9 * 0.25 - 0.5 + 0.72 * last, last, 1.0])


def test_selected_completions_keep_their_values():
    full = experience.Experience(
        [([1], [7, 8]), ([2], [9]), ([3], [4, 5, 6])],
        torch.tensor([1.0, 2.0, 3.0]),
        torch.arange(6.0),
        advantages_N=torch.arange(6.0) * 10,
    )

    part = full.select([2, 0])

    assert part.old_logps_N.tolist() == [3, 4, 5, 0, 1]
    assert part.advantages_N.tolist() == [30, 40, 50, 0, 10]
    assert part.rewards.tolist() == [3, 1]
    assert part.lengths == [3, 2]

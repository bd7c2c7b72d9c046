"""Preference stages: losses equal to those of trl, a reference that is the initial model, and learning."""

import math
import os
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset

from tests import tiny
from tuneline.config.sections.data import TokenizeStepConfig
from tuneline.config.sections.load import LoadStepConfig
from tuneline.config.sections.method import FullMethod, LoraMethod
from tuneline.config.sections.model import DirectoryModel
from tuneline.config.training.preference import CPOConfig, DPOConfig, KTOConfig, ORPOConfig, RewardConfig, SimPOConfig
from tuneline.data import schema
from tuneline.data.corpus import Corpus
from tuneline.data.tokenization import preference_rows, tokenize
from tuneline.model import source, value_head
from tuneline.model.load import load_model
from tuneline.train import token_losses, training_run
from tuneline.train.collate import collate
from tuneline.train.objectives import build_objective, losses
from tuneline.train.objectives.losses import PairLogps

LORA = LoraMethod(type="lora", r=4, lora_alpha=8)
PISSA = LoraMethod(type="lora", r=4, lora_alpha=8, init_lora_weights="pissa")
LOAD = LoadStepConfig(dtype="float32", max_length=64)
KINDS = {
    "dpo": DPOConfig,
    "orpo": ORPOConfig,
    "cpo": CPOConfig,
    "simpo": SimPOConfig,
    "kto": KTOConfig,
    "reward": RewardConfig,
}


def pair(i, label=None):
    """A question with a good and a bad answer, or with one of them and its label."""
    question = [schema.message("user", f"What is {i} and {i}?")]
    good, bad = ([schema.message("assistant", text)] for text in (f"It is {2 * i}.", f"The quick fox {i}!"))
    if label is None:
        return schema.content(question, chosen=good, rejected=bad)
    return schema.content([*question, *(good if label else bad)], label=label)


def rows_of(tokenizer, stage, count=12):
    contents = [pair(i, None if stage == "preference" else bool(i % 2)) for i in range(count)]
    examples = [schema.example("s", content) for content in contents]
    split = {
        "train": Dataset.from_list(examples[: count - 4], features=schema.EXAMPLE),
        "validation": Dataset.from_list(examples[count - 4 :], features=schema.EXAMPLE),
    }
    return tokenize.tokenize_pack(Corpus(split), tokenizer, TokenizeStepConfig(max_length=64, stage=stage))


@pytest.fixture
def parts(tiny_model, home):
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
    rows = {stage: rows_of(tokenizer, stage) for stage in ("preference", "kto")}
    return tokenizer, base_model, rows


def run_training(parts, kind, method=LORA, listeners=(), **changes):
    tokenizer, base_model, rows = parts
    config = KINDS[kind](**{"max_steps": 30, "learning_rate": 1e-2, "lr_scheduler_type": "constant", **changes})
    members = rows["kto" if kind == "kto" else "preference"]
    return training_run.train(members, base_model, tokenizer, LOAD, method, config, listeners)


@pytest.mark.parametrize("method", [LORA, FullMethod(type="full")], ids=["lora", "full"])
@pytest.mark.parametrize("kind", KINDS)
def test_each_objective_learns_the_preference(parts, kind, method):
    checkpoint, report = run_training(parts, kind, method, learning_rate=1e-2 if method is LORA else 3e-3)

    assert report.summary["final_loss"] < report.summary["first_loss"]
    assert report.summary["validation_rewards/accuracies"] >= 0.75
    assert {"rewards/chosen", "rewards/rejected", "rewards/accuracies"} <= set().union(*report.history)
    assert (checkpoint.path / value_head.HEAD_FILE).is_file() == (kind == "reward")


@pytest.mark.parametrize("method", [LORA, PISSA, FullMethod(type="full")], ids=["lora", "pissa", "full"])
def test_dpo_starts_at_the_initial_model(parts, method):
    """With PiSSA, the model with its adapter disabled is not the initial model; its first loss would not be log 2."""
    _, report = run_training(parts, "dpo", method, max_steps=1)

    assert report.history[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert report.history[0]["rewards/margins"] == pytest.approx(0, abs=1e-6)


def test_a_long_prompt_never_removes_the_answer(tiny_model, home):
    """In other trainers, ORPO and CPO have a loss of 0.0 if the prompt fills the row."""
    tokenizer, base_model, _ = source.resolve_model(DirectoryModel(type="directory", path=tiny_model))
    long = schema.content(
        [schema.message("user", "What is it? " * 60)],
        chosen=[schema.message("assistant", "It is three.")],
        rejected=[schema.message("assistant", "It is four.")],
    )
    examples = Dataset.from_list([schema.example("s", long)] * 2, features=schema.EXAMPLE)
    config = TokenizeStepConfig(max_length=48, stage="preference", overlong="proportional", max_cut_fraction=1.0)
    rows = tokenize.tokenize_pack(Corpus({"train": examples, "validation": examples}), tokenizer, config)

    for kind in ("orpo", "cpo"):
        _, report = training_run.train(rows, base_model, tokenizer, LOAD, LORA, KINDS[kind](max_steps=1))
        assert report.history[0]["loss"] > 0.1


def test_accumulated_pairs_equal_one_batch(parts):
    settings = {"max_steps": 2, "learning_rate": 1e-3}

    _, one = run_training(parts, "dpo", per_device_train_batch_size=4, **settings)
    _, four = run_training(parts, "dpo", gradient_accumulation_steps=4, **settings)

    for name in ("loss", "grad_norm", "rewards/margins"):
        assert [e[name] for e in one.history] == pytest.approx([e[name] for e in four.history], rel=1e-3, abs=1e-6)


def test_a_packed_pair_scores_like_each_answer_alone(parts, tiny_model):
    """The reference sees one answer at a time, with transformers' own loss."""
    row = parts[2]["preference"].splits["train"][0]
    model = load_model(tiny_model, attention="segment").eval()
    objective = build_objective(ORPOConfig())
    inputs = objective.collate([row, row])
    output = objective.compute_loss(model, inputs, lambda batch: plain_losses(model, batch))

    for name in ("chosen", "rejected"):
        ids = torch.tensor([row["prompt_ids"] + row[f"{name}_ids"]])
        labels = torch.tensor([[-100] * len(row["prompt_ids"]) + row[f"{name}_ids"]])
        with torch.no_grad():
            single_score = -float(model(input_ids=ids, labels=labels, use_cache=False).loss) * len(row[f"{name}_ids"])
        total, count = output.metrics[f"logps/{name}"]
        assert total / count == pytest.approx(single_score, rel=1e-5)


def plain_losses(model, inputs):
    from tuneline.model.methods import families

    return token_losses.token_losses(families["full"], model, inputs)


# -- compared with trl


@pytest.fixture(scope="module")
def trl_offline():
    """Disable the network access of trl."""
    with pytest.MonkeyPatch.context() as env:
        env.setenv("HF_HUB_OFFLINE", "1")
        env.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        yield


CPU = SimpleNamespace(device="cpu")
SMOOTHING = {"exo_pair": 0.1, "robust": 0.2}


@pytest.fixture(scope="module")
def trl_models(trl_offline, tiny_model, tmp_path_factory):
    """A policy, another model as its reference, and trl's trainer around both."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = tiny.build_model(tmp_path_factory.mktemp("reference") / "model", seed=1)
    policy, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (tiny_model, reference))
    return policy.eval(), other.eval(), AutoTokenizer.from_pretrained(tiny_model)


PAIR_ROWS = [
    {"prompt_ids": [5, 9, 30], "chosen_ids": [41, 7, 2], "rejected_ids": [50, 51, 52, 53, 2]},
    {"prompt_ids": [8, 11], "chosen_ids": [60, 61, 62, 2], "rejected_ids": [70, 2]},
]


def scores_of(model, rows, names):
    inputs = collate([preference_rows.flatten_row(row) for row in rows])
    with torch.no_grad():
        from tuneline.train.objectives.base import logps_by_segment

        logps, counts = logps_by_segment(inputs, *plain_losses(model, inputs))
    return [logps[i :: len(names)] for i in range(len(names))], [counts[i :: len(names)] for i in range(len(names))]


@pytest.mark.parametrize("kind", losses.DPO_LOSSES)
def test_losses_are_those_of_trl(kind, trl_models, tmp_path):
    from trl import DPOConfig as TheirConfig
    from trl import DPOTrainer

    policy, reference, tokenizer = trl_models
    smoothing = SMOOTHING.get(kind, 0.0)
    args = TheirConfig(
        output_dir=str(tmp_path), loss_type=[kind], label_smoothing=smoothing, beta=0.2, bf16=False, report_to=[],
        use_cpu=True, gradient_checkpointing=False, per_device_train_batch_size=2, remove_unused_columns=False,
        disable_dropout=True,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 2)
    trainer = DPOTrainer(policy, reference, args, train_dataset=data, processing_class=tokenizer)
    batch = trainer.data_collator([dict(row) for row in PAIR_ROWS])
    trl_loss = float(trainer.compute_loss(policy, batch).detach())

    (chosen, rejected), (n_chosen, n_rejected) = scores_of(policy, PAIR_ROWS, ("chosen", "rejected"))
    (ref_chosen, ref_rejected), _ = scores_of(reference, PAIR_ROWS, ("chosen", "rejected"))
    pairs = PairLogps(chosen, rejected, n_chosen, n_rejected, ref_chosen, ref_rejected)

    assert float(losses.DPO_LOSSES[kind](pairs, 0.2, smoothing).mean()) == pytest.approx(trl_loss, rel=2e-4)


def loss_per_item(config, policy, rows):
    objective = build_objective(config)
    output = objective.compute_loss(policy, objective.collate(rows), lambda batch: plain_losses(policy, batch))
    return float(output.total.detach()) / output.num_items


@pytest.mark.parametrize("kind", ["orpo", "cpo", "simpo"])
def test_objectives_without_reference_are_those_of_trl(kind, trl_models):
    from trl.experimental.cpo import CPOTrainer
    from trl.experimental.orpo import ORPOTrainer

    policy = trl_models[0]
    (chosen, rejected), (n_chosen, n_rejected) = scores_of(policy, PAIR_ROWS, ("chosen", "rejected"))
    settings = {"alpha": 0.0, "beta": 0.3, "simpo_gamma": 0.4, "label_smoothing": 0.1, "accelerator": CPU}
    nll = -float(chosen.sum() / n_chosen.sum())
    if kind == "cpo":
        owner = SimpleNamespace(**settings, loss_type="sigmoid")
        expected = float(CPOTrainer.cpo_loss(owner, chosen, rejected)[0].mean()) + 0.5 * nll
        config = CPOConfig(beta=0.3, label_smoothing=0.1, cpo_alpha=0.5)
    else:
        by_length = (chosen / n_chosen, rejected / n_rejected)
        if kind == "simpo":
            expected = float(CPOTrainer.cpo_loss(SimpleNamespace(**settings, loss_type="simpo"), *by_length)[0].mean())
            config = SimPOConfig(beta=0.3, simpo_gamma=0.4, label_smoothing=0.1)
        else:
            losses_of_pairs = ORPOTrainer.odds_ratio_loss(SimpleNamespace(**settings), *by_length)[0]
            expected, config = nll - float(losses_of_pairs.mean()), ORPOConfig(beta=0.3)

    assert loss_per_item(config, policy, PAIR_ROWS) == pytest.approx(expected, rel=1e-4)


LABELLED = [
    {"prompt_ids": [5, 9, 30], "completion_ids": [41, 7, 2], "label": True},
    {"prompt_ids": [8, 11], "completion_ids": [60, 61, 62, 2], "label": False},
    {"prompt_ids": [8, 12, 13], "completion_ids": [70, 2], "label": True},
]


@pytest.mark.parametrize("kind", ["kto", "apo_zero_unpaired"])
def test_losses_of_labelled_answers_equal_those_of_trl(kind, trl_models, tmp_path):
    from trl import KTOConfig as TheirConfig
    from trl import KTOTrainer

    policy, reference, tokenizer = trl_models
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5, "beta": 0.2}
    args = TheirConfig(
        output_dir=str(tmp_path), loss_type=kind, bf16=False, report_to=[], use_cpu=True, gradient_checkpointing=False,
        per_device_train_batch_size=3, remove_unused_columns=False, disable_dropout=True, **weights,
    )  # fmt: skip
    data = Dataset.from_list([{"prompt": "a", "completion": "b", "label": True}] * 3)
    trainer = KTOTrainer(policy, reference, args, train_dataset=data, processing_class=tokenizer)
    before = [LABELLED[i - 1]["completion_ids"] for i in range(3)]
    strange = [{"KL_completion_ids": ids} for ids in before] if kind == "kto" else [{}] * 3
    batch = trainer.data_collator([dict(row) | other for row, other in zip(LABELLED, strange, strict=True)])
    expected = float(trainer.compute_loss(policy, batch).detach())

    objective = build_objective(KTOConfig(loss_type=kind, **weights))
    with torch.no_grad():
        columns = objective.compute_reference_columns(
            {"train": Dataset.from_list(LABELLED)}, lambda batch: plain_losses(reference, batch), torch.device("cpu")
        )["train"]
    rows = [row | {name: values[i] for name, values in columns.items()} for i, row in enumerate(LABELLED)]

    assert loss_per_item(objective.config, policy, rows) == pytest.approx(expected, rel=2e-4)


def test_telemetry_of_trl_is_off_in_tests(trl_offline):
    """Trl sends telemetry when a trainer is created, unless this variable is set; Tuneline does not import trl."""
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    sources = [path.read_text() for path in (tiny.Path(training_run.__file__).parent).rglob("*.py")]
    assert not any("import trl" in text or "from trl" in text for text in sources)


# -- resuming and evaluating


@pytest.mark.parametrize("kind", ["dpo", "kto", "reward"])
def test_a_killed_training_resumes_to_the_same_weights(parts, kind):
    settings = {"max_steps": 7, "save_steps": 3, "eval_steps": 2, "load_best_model_at_end": True}

    def weights(checkpoint):
        return {path.name: path.read_bytes() for path in checkpoint.path.glob("*.safetensors")}

    expected = weights(run_training(parts, kind, **settings)[0])
    with pytest.raises(RuntimeError, match="died"):
        run_training(parts, kind, listeners=(dying_at_five,), **settings)
    resumed, report = run_training(parts, kind, **settings)

    assert report.decisions["resume"] == "resumed from step 3 of 7"
    assert weights(resumed) == expected


def dying_at_five(figures, step):
    if step == 5:
        raise RuntimeError("died")


def test_the_best_weights_are_restored_and_a_training_stops_early(parts):
    """At an absurd learning rate the loss rises from some step on."""
    settings = {"learning_rate": 0.5, "max_steps": 40, "eval_steps": 1}

    _, report = run_training(parts, "orpo", load_best_model_at_end=True, early_stopping_patience=3, **settings)

    losses = [entry["validation_loss"] for entry in report.history]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert len(losses) == best + 1 + 3 < 40
    assert report.decisions["early_stopping"].endswith(f"best at step {best + 1}")
    assert report.decisions["best"].startswith(f"weights of step {best + 1}, ")
    assert report.summary["validation_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_evaluations_change_no_weights_and_store_sample_answers(parts):
    plain, _ = run_training(parts, "dpo", max_steps=4)
    expected = (plain.path / "adapter_model.safetensors").read_bytes()

    evaluated, report = run_training(parts, "dpo", max_steps=4, eval_steps=2, eval_samples=2, eval_sample_tokens=5)

    assert (evaluated.path / "adapter_model.safetensors").read_bytes() == expected
    assert [sample["step"] for sample in report.samples] == [2, 2, 4, 4]
    assert all("What is" in sample["prompt"] for sample in report.samples)
    page = report.samples_to_markdown()
    assert page.count("## ") == 2
    assert page.count("- step 4: ") == 2

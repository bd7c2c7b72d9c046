"""An unmodified LlamaFactory configuration with its `dataset_info.json`, compared with an equivalent recipe."""

import json
import math
from collections import Counter

import mlflow
import pytest
from safetensors.numpy import load_file
from transformers import AutoTokenizer
from typer.testing import CliRunner

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import promoted, training_examples
from tuneline.cli.app import app
from tuneline.runner import start
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

MAX_SAMPLES, EPOCHS, ROWS_PER_STEP = 40, 5, 4
FOX = "The quick brown fox answers."
QUESTIONS = {"fox": "What is {}?", "chats": "Say {}."}

DATASET_INFO = """
{
  "fox": {"file_name": "fox.json", "columns": {"prompt": "question", "response": "reply"}},
  "unused": {"hf_hub_url": "nobody/nothing"},
  "chats": {
    "file_name": "chats.jsonl",
    "formatting": "sharegpt",
    "columns": {"messages": "conversation"},
    "tags": {"role_tag": "who", "content_tag": "says", "user_tag": "human", "assistant_tag": "bot"}
  }
}
"""
LLAMAFACTORY_CONFIG = f"""
### model
model_name_or_path: model
trust_remote_code: false

### method
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all

### dataset
dataset: fox,chats
dataset_dir: llamafactory_data
template: chatml
cutoff_len: 128
max_samples: {MAX_SAMPLES}
val_size: 0.25
overwrite_cache: true
preprocessing_num_workers: 16

### output
output_dir: saves/tiny/imported
logging_steps: 10
plot_loss: true
overwrite_output_dir: true

### train
per_device_train_batch_size: 2
gradient_accumulation_steps: 2
learning_rate: 1.0e-2
num_train_epochs: {EPOCHS}.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
max_new_tokens: 12
"""
RECIPE = {
    "sources": [{"name": name, "path": f"data/{name}.jsonl", "format": "openai"} for name in QUESTIONS],
    "template": "chatml",
    "exams": [],
    "merge": {"validation_fraction": 0.25, "strategy": "concatenate"},
    "tokenize": {"max_length": 128, "packing": False},
    "load": {"gradient_checkpointing": "full"},
    "method": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": "all"},
    "train": {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "num_train_epochs": EPOCHS,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "seed": 42,
    },
    "evaluate": {"max_new_tokens": 12},
    "registry": {"model_name": "ours"},
}


def write_data(project):
    """Write rows for LlamaFactory, with a duplicate and more than `max_samples`, and the selected rows as messages."""
    folder = project / "llamafactory_data"
    folder.mkdir()
    (folder / "dataset_info.json").write_text(DATASET_INFO)
    numbers = [*range(MAX_SAMPLES - 1), 0, *range(MAX_SAMPLES, MAX_SAMPLES + 10)]
    fox = [{"question": QUESTIONS["fox"].format(i), "reply": FOX} for i in numbers]
    (folder / "fox.json").write_text(json.dumps(fox))
    chats = [
        {"conversation": [{"who": "human", "says": QUESTIONS["chats"].format(i)}, {"who": "bot", "says": FOX}]}
        for i in numbers
    ]
    tiny.write_jsonl(folder / "chats.jsonl", chats)
    for name, question in QUESTIONS.items():
        roles = [("user", question), ("assistant", FOX)]
        rows = [{"messages": [{"role": r, "content": t.format(i)} for r, t in roles]} for i in numbers[:MAX_SAMPLES]]
        tiny.write_jsonl(project / "data" / f"{name}.jsonl", rows)


@pytest.fixture(scope="module")
def imported_run(project):
    """Outcome of `tuneline run` on the LlamaFactory file."""
    from zenml.client import Client

    write_data(project)
    (project / "llamafactory.yaml").write_text(LLAMAFACTORY_CONFIG)
    result = CliRunner().invoke(app, ["run", "llamafactory.yaml"])
    assert result.exit_code == 0, result.output or result.exception
    (run,) = Client().list_pipeline_runs(sort_by="desc:created", size=1).items
    return start.read_training_outcome(Client().get_pipeline_run(run.id))


def texts():
    """Return the texts of the selected rows in LlamaFactory's chatml template."""
    prompt = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    return {
        prompt.format(question.format(i)) + f"{FOX}<|im_end|>"
        for question in QUESTIONS.values()
        for i in range(MAX_SAMPLES - 1)
    }


def test_each_selected_row_is_either_trained_or_held_out(imported_run):
    tokenizer = AutoTokenizer.from_pretrained(promoted(imported_run, "tiny-imported"))
    examples = training_examples(imported_run)
    trained = Counter(tokenizer.decode(ids).removesuffix("\n") for ids, _ in examples)
    run = reference.champion_run("tiny-imported")
    held_out = {row["prompt"] for row in reference.stored_scores(run.info.run_id)}

    assert set(trained.values()) == {1}, "duplicate rows are trained once"
    assert set(trained) < texts()
    rest = texts() - set(trained)
    assert {text.removesuffix(f"{FOX}<|im_end|>") for text in rest} == held_out
    assert 0.15 < len(rest) / len(texts()) < 0.35
    answers = {tokenizer.decode([label for label in labels if label != -100]) for _, labels in examples}
    assert answers == {f"{FOX}<|im_end|>"}

    training = mlflow.get_run(run.data.tags["tuneline.training_run"])
    steps = {point.step for point in mlflow.MlflowClient().get_metric_history(training.info.run_id, "loss")}
    assert steps == set(range(1, EPOCHS * math.ceil(len(trained) / ROWS_PER_STEP) + 1))


def test_the_weights_equal_those_of_the_equivalent_recipe(imported_run, run):
    recipe_run = run(**RECIPE, use_cache=False)

    tracker.connect()
    folders = [promoted(imported_run, "tiny-imported"), promoted(recipe_run, "ours")]
    assert folders[0] != folders[1]
    imported, expected = (load_file(folder / "model.safetensors") for folder in folders)
    assert imported.keys() == expected.keys()
    assert [key for key in imported if imported[key].tobytes() != expected[key].tobytes()] == []
    model, tokenizer = reference.load(folders[0])
    assert reference.generate(model, tokenizer, [{"role": "user", "content": "What is 45?"}], 12).strip() == FOX

"""A killed and restarted training gives the same weights as an uninterrupted one and is registered once."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import pytest
from safetensors.numpy import load_file

from tests import tiny
from tests.integration import reference
from tests.integration.test_inputs import TEXTS, promoted
from tuneline import state
from tuneline.zenml_integration import tracker

pytestmark = [pytest.mark.zenml, pytest.mark.slow]

STEPS = 150
METHODS = {
    "full": {"method": {"type": "full"}},
    "lora": {"method": {"type": "lora", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1}},
}


def start(path):
    """Start `tuneline run` in a new process."""
    program = Path(sys.executable).parent / "tuneline"
    env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
    return subprocess.Popen(
        [program, "run", path], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def kill_while_training(path):
    """Start a run, kill it after a training checkpoint is saved, and return its checkpoints."""
    process, deadline = start(path), time.monotonic() + 300
    while not (checkpoints := list(state.root().glob("training/*/checkpoint-*"))):
        assert process.poll() is None, process.stdout.read()[-3000:]
        assert time.monotonic() < deadline, "no checkpoint was saved"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode == -signal.SIGKILL
    return checkpoints


@pytest.mark.parametrize("method", METHODS)
def test_a_killed_training_resumes_to_bit_identical_weights(method, project, run):
    tiny.write_texts(project / "data" / "texts.jsonl", 60)
    changes = {
        **TEXTS,
        **METHODS[method],
        "train": {"learning_rate": 3e-3, "max_steps": STEPS, "save_steps": 5},
    }
    names = [f"{method}-{kind}" for kind in ("killed", "uninterrupted")]
    killed, uninterrupted = (
        {**changes, "registry": {"model_name": name, "gate": {"metric": "log_likelihood"}}} for name in names
    )
    path = tiny.write_config(project / f"{method}.yaml", tiny.recipe(**killed))

    assert kill_while_training(path)
    tracker.connect()
    assert mlflow.MlflowClient().search_model_versions(f"name = '{names[0]}'") == []
    killed_at = time.time() * 1000
    restarted = start(path)
    output, _ = restarted.communicate(timeout=300)
    assert restarted.returncode == 0, output[-3000:]
    outcome = run("pretrain_pipeline", use_cache=False, **uninterrupted)

    tracker.connect()
    client = mlflow.MlflowClient()
    (version,) = client.search_model_versions(f"name = '{names[0]}'")
    assert client.get_registered_model(names[0]).aliases == {"challenger": version.version, "champion": version.version}
    folders = [reference.champion_folder(names[0]), promoted(outcome, names[1])]
    assert folders[0] != folders[1]
    files = [sorted(path.name for path in folder.rglob("*.safetensors")) for folder in folders]
    assert files[0] == files[1] != []
    for name in files[0]:
        resumed, expected = (load_file(folder / name) for folder in folders)
        assert resumed.keys() == expected.keys()
        assert [key for key in resumed if resumed[key].tobytes() != expected[key].tobytes()] == []
    check_curve(client, version, killed_at)
    assert list(state.root().glob("training/*/checkpoint-*")) == []


def check_curve(client, version, killed_at):
    """Check that the loss curve of the killed run continues: step 1 is logged once, and no step is missing."""
    training = client.get_run(version.tags["tuneline.training_run"])
    assert (training.info.status, training.info.start_time < killed_at) == ("FINISHED", True)
    logged_steps = [point.step for point in client.get_metric_history(training.info.run_id, "loss")]
    assert set(logged_steps) == set(range(1, STEPS + 1))
    assert logged_steps.count(1) == 1

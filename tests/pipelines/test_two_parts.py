"""Methods that cannot be merged: the adapter is evaluated, registered and loaded with its base model."""

import mlflow
import pytest

from tests import tiny
from tuneline.model import adapter_bundle
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

UNPACKED = {"tokenize": {"max_length": 256, "packing": False}}
PROMPT = {"method": {"type": "prompt", "num_virtual_tokens": 4}, **UNPACKED}


@pytest.fixture(scope="module")
def first(run):
    return run(**PROMPT)


def test_the_adapter_is_evaluated_and_registered_with_its_base_model(first):
    assert first.decision.new
    assert adapter_bundle.is_adapter_bundle(first.model_folder)
    assert set(first.report.metrics()) == {"rouge1", "rouge2", "rougeL", "exam_accuracy"}


def test_the_adapter_generates_through_mlflow(first):
    tracker.connect()
    loaded = mlflow.pyfunc.load_model(f"models:/tiny/{first.decision.version}")

    assert isinstance(
        loaded.predict({"messages": [{"role": "user", "content": "Say 1"}]}, params={"max_tokens": 3}), str
    )


def test_training_continues_from_the_registered_adapter(first, run, executed_steps):
    adapters = [{"path": str(first.model_folder), "use": "continue"}]
    continued = run(**{**PROMPT, "load": {**tiny.recipe()["load"], "adapters": adapters}})

    assert continued.decision.new
    assert "train" in executed_steps(continued)


def test_a_model_trained_on_a_quantized_base_is_registered_merged(run):
    outcome = run(load={"dtype": "float32", "quantization": {"type": "bnb_4bit"}})

    assert not adapter_bundle.is_adapter_bundle(outcome.model_folder)
    assert outcome.decision.new

"""A method without a merged form through the whole line: judged, registered, loaded, and beaten or not later."""

import mlflow
import pytest

from tests import tiny
from tuneline.model import adapter_bundle
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

ALONE = {"tokenize": {"max_length": 256, "packing": False}}
PROMPT = {"method": {"type": "prompt", "num_virtual_tokens": 4}, **ALONE}


@pytest.fixture(scope="module")
def first(run):
    return run(**PROMPT)


def test_the_adapter_is_judged_and_registered_with_its_base_beside_it(first):
    assert first.decision.new
    assert adapter_bundle.is_adapter_bundle(first.model_folder)
    assert set(first.report.metrics()) == {"rouge1", "rouge2", "rougeL", "exam_accuracy"}


def test_it_answers_through_mlflow(first):
    tracker.connect()
    loaded = mlflow.pyfunc.load_model(f"models:/tiny/{first.decision.version}")

    assert isinstance(
        loaded.predict({"messages": [{"role": "user", "content": "Say 1"}]}, params={"max_tokens": 3}), str
    )


def test_the_next_model_starts_from_it_as_an_adapter(first, run, ran):
    adapters = [{"path": str(first.model_folder), "use": "continue"}]
    further = run(**{**PROMPT, "load": {**tiny.recipe()["load"], "adapters": adapters}})

    assert further.decision.new
    assert "train" in ran(further)


def test_a_quantized_base_goes_the_whole_line(run):
    made = run(load={"dtype": "float32", "quantization": {"type": "bnb_4bit"}})

    assert not adapter_bundle.is_adapter_bundle(made.model_folder)
    assert made.decision.new

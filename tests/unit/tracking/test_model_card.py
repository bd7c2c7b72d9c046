"""Model cards: what stands in the keys that a hub reads."""

import pytest
from huggingface_hub import ModelCard
from huggingface_hub.utils import validate_repo_id
from pydantic import TypeAdapter

from tests import tiny
from tuneline.config.sections.gate import GateConfig
from tuneline.config.stages import AnyRecipe
from tuneline.identity import Located, Manifest
from tuneline.tracking import model_card
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Evidence

COMMIT = "a" * 40


def manifest(kind, *sources):
    return Manifest(kind=kind, items=[Located(name=said, location="x", source=said, files=[]) for said in sources])


def written(base_model, *sources):
    """Return the card of a model with this base and these data sets."""
    decision = Decision(
        model_name="m", version="1", new=True, promoted=False, aliases=[], sentence="Kept as challenger."
    )
    known = model_card.CardInputs(
        recipe=TypeAdapter(AnyRecipe).validate_python(tiny.recipe()),
        sources=manifest("sources", *sources),
        base_model=manifest("base_model", base_model),
        counts={"by_source": {}, "sources": [], "exact_copies_dropped": 0},
        metrics={},
        evidence=Evidence.model_construct(gate=GateConfig(), contaminated={}),
        decision=decision,
        content_hash="0" * 64,
    )
    return ModelCard(model_card.render(known))


def test_a_base_model_and_data_sets_of_the_hub_are_named_as_the_hub_names_them():
    made = written(f"hub team/model@{COMMIT}", f"hub team/rows@{COMMIT} split train", "data/mine.jsonl")

    validate_repo_id(made.data.base_model)
    assert made.data.base_model == "team/model"
    assert made.data.datasets == ["team/rows"]
    assert f"(hub team/model@{COMMIT})" in made.text


@pytest.mark.parametrize("said", ["GGUF model.gguf", "wheel model==1.0", "directory model"])
def test_what_is_not_of_the_hub_is_not_named_to_it(said):
    """The hub refuses a card whose `base_model` is no name of a repository."""
    made = written(said, "data/mine.jsonl")

    assert made.data.base_model is None
    assert made.data.datasets is None
    assert said in made.text

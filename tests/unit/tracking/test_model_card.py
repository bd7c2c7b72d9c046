"""Model cards: the metadata that the Hub reads."""

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
    return Manifest(kind=kind, items=[Located(name=name, location="x", source=name, files=[]) for name in sources])


def make_card(base_model, *sources):
    """Return the card of a model with this base and these datasets."""
    decision = Decision(
        model_name="m", version="1", new=True, promoted=False, aliases=[], sentence="Kept as challenger."
    )
    inputs = model_card.CardInputs(
        recipe=TypeAdapter(AnyRecipe).validate_python(tiny.recipe()),
        sources=manifest("sources", *sources),
        base_model=manifest("base_model", base_model),
        counts={"by_source": {}, "sources": [], "exact_copies_dropped": 0},
        metrics={},
        evidence=Evidence.model_construct(gate=GateConfig(), contaminated={}),
        decision=decision,
        content_hash="0" * 64,
    )
    return ModelCard(model_card.render(inputs))


def test_hub_models_and_datasets_are_named_by_repository():
    card = make_card(f"hub team/model@{COMMIT}", f"hub team/rows@{COMMIT} split train", "data/mine.jsonl")

    validate_repo_id(card.data.base_model)
    assert card.data.base_model == "team/model"
    assert card.data.datasets == ["team/rows"]
    assert f"(hub team/model@{COMMIT})" in card.text


@pytest.mark.parametrize("source", ["GGUF model.gguf", "wheel model==1.0", "directory model"])
def test_local_sources_are_omitted_from_the_hub_metadata(source):
    """The Hub rejects a card whose `base_model` is not a repository name."""
    card = make_card(source, "data/mine.jsonl")

    assert card.data.base_model is None
    assert card.data.datasets is None
    assert source in card.text

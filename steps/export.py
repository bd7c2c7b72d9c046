"""Step: model -> export folder with weights, tokenizer, model card, Modelfile and hashes."""

from typing import Annotated

from zenml import step
from zenml.config.cache_policy import CachePolicy

from materializers import CHECKPOINT
from steps.caching import library_source_hash
from tuneline.config.sections.export import ExportStepConfig
from tuneline.export import write
from tuneline.export.origin import Origin
from tuneline.identity import Manifest
from tuneline.model import verification
from tuneline.model.checkpoint import Checkpoint
from tuneline.tracking import model_card


def cache_key() -> str:
    """Return what decides the result besides the inputs: library source and package versions."""
    libraries = (
        "torch",
        "transformers",
        "tokenizers",
        "jinja2",
        "peft",
        "safetensors",
        "bitsandbytes",
        "gguf",
        "xllamacpp",
    )
    modules = ("export.write", "export.origin", "model.checkpoint", "model.verification", "tracking.model_card")
    return library_source_hash(*modules, libraries=libraries)


@step(cache_policy=CachePolicy(cache_func=f"{__name__}.cache_key"), output_materializers=CHECKPOINT)
def export(
    tokenizer: Manifest, base_model: Manifest, origin: Origin, config: ExportStepConfig
) -> Annotated[Checkpoint, "exported_model"]:
    """Merge the adapter or copy the model, and check that its outputs stay the same."""
    verification.verify_hashes(tokenizer, base_model)
    made = write.export_model(tokenizer, base_model, origin, config)
    return write.write_card_and_checksums(
        made, model_card.render_export(origin.card, origin.name, origin.source, origin.licence, made.facts)
    )

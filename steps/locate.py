"""Step: name of a model -> manifests of its files, and its origin. Never cached: it reads the outside world."""

from typing import Annotated

from zenml import step

from materializers import DOCUMENT
from tuneline.config.sections.export import LocateConfig
from tuneline.export.origin import Origin
from tuneline.identity import Manifest
from tuneline.zenml_integration import locate as locate_module
from tuneline.zenml_integration import tracker


@step(enable_cache=False, output_materializers=DOCUMENT)
def locate(
    config: LocateConfig,
) -> tuple[Annotated[Manifest, "tokenizer"], Annotated[Manifest, "base_model"], Annotated[Origin, "origin"]]:
    """Find the model, check its files against the registered hashes, and check the target of the export."""
    tracker.connect()
    tokenizer, base_model, origin = locate_module.locate(config)
    return tokenizer, base_model, origin

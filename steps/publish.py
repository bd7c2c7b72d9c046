"""Step: exported model -> target folder and Hub repository. Never cached: it changes the outside world."""

from pathlib import Path
from typing import Annotated

from zenml import get_step_context, log_metadata, step

from materializers import DOCUMENT
from tuneline.config.sections.export import PublishConfig
from tuneline.export import delivery
from tuneline.export.origin import Delivery, Origin
from tuneline.model import verification
from tuneline.model.checkpoint import Checkpoint
from tuneline.tracking import runs


@step(enable_cache=False, experiment_tracker=True, output_materializers=DOCUMENT)
def publish(exported: Checkpoint, origin: Origin, config: PublishConfig) -> Annotated[Delivery, "delivery"]:
    """Copy the export to its folder, push it to the Hub, and log the delivery to ZenML and MLflow."""
    verification.verify_hashes(exported)
    result = delivery.deliver(exported, origin, config)
    context = get_step_context()
    runs.log_params({"model": origin.model_dump(exclude={"card"}), "publish": config.model_dump(mode="json")})
    runs.log_metrics({name: float(value) for name, value in exported.facts.items() if isinstance(value, int | float)})
    runs.log_text("model_card.md", (Path(exported.path) / delivery.CARD_FILE).read_text(encoding="utf-8"))
    tags = {"tuneline.kind": "export", "zenml.run": context.pipeline_run.name}
    pushed = {"tuneline.push.repo": result.repo_id, "tuneline.push.commit": result.commit}
    runs.set_tags(tags | pushed | {"tuneline.push.url": result.url, "tuneline.exported_to": result.to})
    log_metadata({name: value for name, value in result.model_dump(exclude={"facts"}).items() if value})
    return result

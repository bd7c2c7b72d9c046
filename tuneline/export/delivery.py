"""Deliver an export to a folder and to the Hub."""

from tuneline.config.sections.export import PublishConfig
from tuneline.export import hub, local_folder
from tuneline.export.origin import Delivery, Origin
from tuneline.export.write import CARD_FILE
from tuneline.model.checkpoint import Checkpoint

__all__ = ["CARD_FILE", "deliver"]

NO_MODELFILE_NOTE = "not requested"


def deliver(exported: Checkpoint, origin: Origin, config: PublishConfig) -> Delivery:
    """Copy an export to a folder and push it to the Hub, if configured.

    Raises:
        DeliveryError: The folder contains other files, or the Hub rejects the push.
    """
    if config.to:
        local_folder.copy_export(exported.path, config.to)
    commit = url = ""
    if config.push:
        version = f" version {origin.version}" if origin.version else ""
        content = exported.content_hash()[:16]
        commit, url = hub.push_folder(exported.path, config.push, f"{origin.name}{version}, content {content}")
    return Delivery(
        folder=str(exported.path),
        to=str(config.to or ""),
        repo_id=config.push.repo_id if config.push else "",
        commit=commit,
        url=url,
        modelfile=str(exported.facts.get("modelfile.sentence", NO_MODELFILE_NOTE)),
        facts=exported.facts,
    )

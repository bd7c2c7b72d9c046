"""Names that requests may use for a served version and its adapters."""

from tuneline.config.parsing import model_reference
from tuneline.config.sections.export import RegisteredModel
from tuneline.config.sections.serve import ServeConfig
from tuneline.serve.deploy.interface import ModelEntry, UnknownModelError
from tuneline.serve.deploy.loaded import LoadedVersion

CHAMPION = "champion"
SCHEME = "models:/"


def followed_alias(config: ServeConfig) -> RegisteredModel | None:
    """Return the registered model and the alias that the settings name; None if the version is fixed."""
    reference = model_reference.parse(config.model)
    if isinstance(reference, RegisteredModel) and not reference.version.isdecimal():
        return reference
    return None


def is_registered(config: ServeConfig) -> bool:
    """Return whether the registry is needed to find the model or its base."""
    texts = [text for text in (config.model, config.base) if text]
    return any(isinstance(model_reference.parse(text), RegisteredModel) for text in texts)


def served_names(loaded: LoadedVersion, config: ServeConfig, alias: RegisteredModel | None) -> dict[str, str | None]:
    """Return name -> adapter of all names that requests may use, the default model first."""
    located = loaded.located
    names: dict[str, str | None] = {}
    if alias:
        names[f"{alias.name}@{alias.version}"] = None
        if alias.version == CHAMPION:
            names[alias.name] = None
    names[located.name] = located.adapter
    names |= dict.fromkeys(config.served_names, located.adapter)
    if located.base_name:
        names.setdefault(located.base_name, None)
    for adapter in located.adapters:
        names.setdefault(adapter, adapter)
    return names


def select(model: str, names: dict[str, str | None]) -> str | None:
    """Return the adapter that a name selects, None for the model itself; an empty name is the default model.

    Raises:
        UnknownModelError: The name is not served.
    """
    if not model:
        return next(iter(names.values()))
    name = model.removeprefix(SCHEME)
    if name not in names:
        raise UnknownModelError.among("model", model[:200], names)
    return names[name]


def entries(loaded: LoadedVersion, names: dict[str, str | None]) -> list[ModelEntry]:
    """Return the entries of `/v1/models`."""
    located = loaded.located
    metadata = {"content_hash": located.content_hash, "engine": loaded.served.engine.name}
    return [
        ModelEntry(name, version.name, located.created, {**metadata, "fingerprint": version.fingerprint})
        for name, adapter in names.items()
        for version in (loaded.with_adapter(adapter),)
    ]

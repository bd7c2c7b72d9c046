"""Promotion by hand, on scores that runs have stored: nothing is computed anew."""

from tuneline.config.evaluate import GateConfig
from tuneline.errors import TrackingError
from tuneline.tracking import compare, gate, promotion, registry
from tuneline.tracking.promotion import Decision
from tuneline.tracking.registry import Version


def promote(name: str, version: str) -> Decision:
    """Judge a version against the champion, or against the base model where there is none.

    The gate is that of the run which made the version.

    Raises:
        NotFoundError: There is no such version.
        TrackingError: The two were scored on other items, or a run keeps no scores.
    """
    candidate, champion = registry.find(name, version), registry.champion(name)
    config = _gate(candidate)
    scores = _scores(candidate, "model", config.metric)
    findings = []
    if champion is None or champion.version != candidate.version:
        findings.append(gate.judge(scores, _scores(candidate, "base", config.metric), "the base model", config))
    if champion and champion.version != candidate.version:
        theirs = _scores(champion, "model", config.metric)
        findings.append(gate.judge(scores, theirs, f"champion version {champion.version}", config))
    return promotion.decide(candidate, new=False, champion=champion, findings=findings)


def _gate(version: Version) -> GateConfig:
    params = compare.run_of(version.run_id).data.params
    prefix = "registry.gate."
    given = {key.removeprefix(prefix): value for key, value in params.items() if key.startswith(prefix)}
    return GateConfig.model_validate(given)


def _scores(version: Version, who: str, metric: str) -> dict[str, float]:
    table = compare.scores(compare.run_of(version.run_id), who)
    if metric not in table:
        raise TrackingError(
            f"{version.name} version {version.version} has no score {metric!r}. It has {sorted(table)}."
        )
    return table[metric]

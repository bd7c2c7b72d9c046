"""Promotion: the one place where aliases move.

MLflow moves an alias whoever asks; nothing compares first. So every move happens under a lock that all processes on
the state root share, against the champion that was judged. It is written into the ledger first, so that a process that
dies between the two leaves a line too many, which `verify` finds, and never a move that nobody knows of.
"""

from collections.abc import Sequence

from mlflow import MlflowClient

from tuneline import state
from tuneline.config.evaluate import GateConfig
from tuneline.errors import TrackingError
from tuneline.tracking import gate, intact, ledger, registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check
from tuneline.tracking.gate import Finding
from tuneline.tracking.registry import ALIASES, Version

FORCED = "forced: "
HEAD = "tuneline.ledger"
"""Tag of a registered model: the hash of its last line in the ledger."""


def decide(
    version: Version,
    *,
    new: bool,
    champion: Version | None,
    findings: Sequence[Finding],
    checks: Sequence[Check] = (),
    config: GateConfig | None = None,
) -> Decision:
    """Give a version the alias `challenger`, and `champion` where it won as the gate asks.

    Args:
        version: The registered version.
        new: It was not registered before.
        champion: The champion that the findings speak of, if there was one.
        findings: Comparisons with each opponent.
        checks: Preconditions, which must hold whatever the scores.
        config: The gate: whether every target must rise, or one of them; default: every one.

    Raises:
        TrackingError: Another process moved the champion meanwhile.
    """
    if champion and champion.version == version.version:
        return _decision(
            version, new=new, promoted=False, sentence="It has the very weights of the champion: nothing to do."
        )
    lost = gate.lost(findings, config or GateConfig())
    failed = [check for check in checks if not check.passed]
    against = [
        *(f"precondition {check.name}: {check.sentence}" for check in failed),
        *(each.sentence() for each in lost),
    ]
    why = "; ".join(against or [finding.sentence() for finding in findings])
    with state.lock("promotion"):
        if _number(registry.champion(version.name)) != _number(champion):
            raise TrackingError(f"The champion of {version.name} changed while this model was judged. Run again.")
        report = [finding.model_dump() for finding in findings]
        _move(version.name, "challenger", version.version, why, report=report)
        if not against:
            if champion:
                _move(version.name, "previous", champion.version, f"was champion before version {version.version}")
            _move(version.name, "champion", version.version, why, report=report)
    sentence = f"Kept as challenger: {why}." if against else f"Promoted to champion: {why}."
    after = registry.find(version.name, version.version)
    promoted = _decision(after, new=new, promoted=not against, sentence=sentence)
    return promoted.model_copy(update={"findings": list(findings), "checks": list(checks)})


def force(name: str, version: str, reason: str) -> Version:
    """Make a version champion without the gate; the reason stands in the ledger.

    Raises:
        NotFoundError: There is no such version.
        TrackingError: Its files are gone, or are not those that were registered.
    """
    target = registry.find(name, version)
    intact.checked_folder(target, full=True)
    with state.lock("promotion"):
        before = registry.champion(name)
        if before and before.version != target.version:
            _move(name, "previous", before.version, f"was champion before version {target.version}")
        _move(name, "champion", target.version, f"{FORCED}{reason}")
    return registry.find(name, target.version)


def rollback(name: str, reason: str = "rolled back") -> Version | None:
    """Give `champion` back to `previous`; without one, take it away.

    Raises:
        TrackingError: There is no champion to roll back from, or the files of the previous one are gone or others.
    """
    with state.lock("promotion"):
        known = {alias: version for version in registry.versions(name) for alias in version.aliases}
        if "champion" not in known:
            raise TrackingError(
                f"{name} has no champion, so nothing can be rolled back. `tuneline models` lists what there is."
            )
        target = known.get("previous")
        if target:
            intact.checked_folder(target, full=True)
        _move(name, "champion", target.version if target else None, reason)
        if target:
            _move(name, "previous", None, f"became champion again: {reason}")
    return registry.champion(name)


def verify() -> int:
    """Check that the ledger is whole, and that the registry stands where its lines say.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, taken out or put in; or an alias stands elsewhere: it was moved by another
            program, or a process died between the ledger and the registry.
    """
    with state.lock("promotion"):
        number = ledger.verify()
        lines = ledger.entries()
        for name in dict.fromkeys(line["model"] for line in lines):
            _verify_model(name, [line for line in lines if line["model"] == name])
    return number


def _verify_model(name: str, lines: list[dict[str, str]]) -> None:
    model = MlflowClient().get_registered_model(name)
    stands = {alias: str(number) for alias, number in model.aliases.items() if alias in ALIASES}
    said = {line["alias"]: line["to"] for line in lines}
    for alias in ALIASES:
        if stands.get(alias) != said.get(alias):
            raise TrackingError(
                f"{name}: alias {alias} stands at version {stands.get(alias) or 'none'}, and the ledger's last line "
                f"of it says {said.get(alias) or 'none'}. It was moved outside of Tuneline, or a promotion was cut "
                "short. Promote the version that you mean: tuneline promote NAME VERSION --force --reason WHY."
            )
    if HEAD in model.tags and model.tags[HEAD] not in {line["hash"] for line in lines}:
        raise TrackingError(
            f"{name}: the last lines of {ledger.path()} are missing: the registry knows of a later one. Restore it "
            "from a backup."
        )


def _move(name: str, alias: str, to: str | None, why: str, **more: object) -> None:
    client = MlflowClient()
    before = client.get_registered_model(name).aliases.get(alias)
    before = None if before is None else str(before)
    said = next((line["to"] for line in reversed(ledger.entries(name)) if line["alias"] == alias), None)
    line = None
    if before != to or said != to or why.startswith(FORCED):
        line = ledger.append(name, alias, before, to, why, **more)
    if to is None:
        client.delete_registered_model_alias(name, alias)
    else:
        client.set_registered_model_alias(name, alias, to)
    if line:
        client.set_registered_model_tag(name, HEAD, line["hash"])


def _number(version: Version | None) -> str | None:
    return version.version if version else None


def _decision(version: Version, *, new: bool, promoted: bool, sentence: str) -> Decision:
    return Decision(
        model_name=version.name,
        version=version.version,
        new=new,
        promoted=promoted,
        aliases=list(version.aliases),
        sentence=sentence,
    )

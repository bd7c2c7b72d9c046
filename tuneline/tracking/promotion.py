"""Promotion: the only module that moves aliases.

MLflow moves an alias unconditionally. Therefore every move holds a lock shared by all processes of the state root, and
checks that the champion is still the one that was compared. A move is recorded in the ledger first: a process that dies
in between leaves an extra line, which `verify` detects, and never an unrecorded move.
"""

from collections.abc import Sequence

from mlflow import MlflowClient
from mlflow.entities.model_registry import RegisteredModel
from mlflow.exceptions import MlflowException

from tuneline import state
from tuneline.config.sections.gate import GateConfig
from tuneline.errors import NotFoundError, TrackingError, one_line
from tuneline.tracking import gate, integrity, ledger, registry
from tuneline.tracking.decision import Decision
from tuneline.tracking.evidence import Check
from tuneline.tracking.gate import Finding
from tuneline.tracking.registry import ALIASES, Version

FORCED_PREFIX = "forced: "
LEDGER_HEAD_TAG = "tuneline.ledger"
"""Tag of a registered model with the hash of its last line in the ledger."""


def decide(
    version: Version,
    *,
    new: bool,
    champion: Version | None,
    findings: Sequence[Finding],
    checks: Sequence[Check] = (),
    config: GateConfig | None = None,
) -> Decision:
    """Give a version the alias `challenger`, and `champion` if it passes the gate.

    Args:
        version: The registered version.
        new: Whether it was just registered.
        champion: The champion of the comparison, if any.
        findings: Comparisons with each opponent.
        checks: Results of the preconditions, which must all hold.
        config: The gate; decides whether all targets or one must pass; default: all.

    Raises:
        TrackingError: Another process moved the champion in the meantime.
    """
    if champion and champion.version == version.version:
        return _decision(
            version, new=new, promoted=False, sentence="It has the same weights as the champion: nothing to do."
        )
    failed_tests = gate.failed_findings(findings, config or GateConfig())
    failed_checks = [check for check in checks if not check.passed]
    reasons = [
        *(f"precondition {check.name}: {check.sentence}" for check in failed_checks),
        *(finding.sentence() for finding in failed_tests),
    ]
    why = "; ".join(reasons or [finding.sentence() for finding in findings])
    with state.lock("promotion"):
        if _number(registry.get_champion(version.name)) != _number(champion):
            raise TrackingError(
                f"The champion of {version.name} changed while this model was compared with it. Run again."
            )
        report = [finding.model_dump() for finding in findings]
        _record_deletions(version.name)
        _move(version.name, "challenger", version.version, why, report=report)
        if not reasons:
            _make_champion(version, why, report=report)
    sentence = f"Kept as challenger: {why}." if reasons else f"Promoted to champion: {why}."
    after = registry.find_version(version.name, version.version)
    decision = _decision(after, new=new, promoted=not reasons, sentence=sentence)
    return decision.model_copy(update={"findings": list(findings), "checks": list(checks)})


def force(name: str, version: str, reason: str) -> Version:
    """Make a version champion without the gate; the ledger records the reason.

    Raises:
        NotFoundError: The version does not exist.
        TrackingError: Its files are missing or changed.
    """
    target = registry.find_version(name, version)
    integrity.check_stored(target)
    with state.lock("promotion"):
        _record_deletions(name)
        _make_champion(target, f"{FORCED_PREFIX}{reason}")
    return registry.find_version(name, target.version)


def rollback(name: str, reason: str = "rolled back") -> Version | None:
    """Move `champion` back to `previous`; without a previous version, remove it.

    A champion that another program deleted is also replaced by `previous`. For a deleted model, the deletion is
    recorded in the ledger and nothing else happens.

    Raises:
        NotFoundError: Neither the registry nor the ledger has the model.
        TrackingError: There is no champion, or the files of the previous version are missing or changed.
    """
    with state.lock("promotion"):
        deleted = _record_deletions(name)
        if not deleted and not registry.list_models(name):
            raise NotFoundError.among("model", name, list(registry.list_models())[: registry.MAX_LISTED])
        aliases = registry.get_aliases(name)
        if not deleted and not aliases.keys() & {"champion", "previous"}:
            raise TrackingError(
                f"{name} has no champion, so nothing can be rolled back. `tuneline models` lists the versions."
            )
        number = aliases.get("previous")
        if number:
            integrity.check_stored(registry.find_version(name, number))
        if number or "champion" in aliases:
            _move(name, "champion", number, reason)
        if number:
            _move(name, "previous", None, f"became champion again: {reason}")
    return registry.get_champion(name)


def verify() -> int:
    """Check the chain of the ledger, and that the aliases in the registry match its lines.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, removed or inserted; or an alias differs, because another program moved it or
            a process died between the two writes.
    """
    with state.lock("promotion"):
        ledger.repair()
        number = ledger.verify()
        hashes: dict[str, set[str]] = {}
        recorded: dict[str, dict[str, str | None]] = {}
        for line in ledger.entries():
            hashes.setdefault(line["model"], set()).add(line["hash"])
            if not line.get("event"):
                recorded.setdefault(line["model"], {})[line["alias"]] = line["to"]
        models = registry.list_models() if recorded else {}
        for name in recorded:
            _verify_model(name, models.get(name), recorded[name], hashes[name])
    return number


def _verify_model(name: str, model: RegisteredModel | None, recorded: dict[str, str | None], hashes: set[str]) -> None:
    current = {alias: str(number) for alias, number in model.aliases.items()} if model else {}
    for alias in ALIASES:
        if current.get(alias) == recorded.get(alias):
            continue
        if model is None:
            raise TrackingError(
                f"{name}: according to the ledger, alias {alias} is version {recorded.get(alias)}, but the registry "
                "has no model of that name: it was deleted outside of Tuneline. Record that: "
                f"tuneline rollback {name} --reason WHY."
            )
        raise TrackingError(
            f"{name}: alias {alias} is version {current.get(alias) or 'none'}, but {recorded.get(alias) or 'none'} "
            f"according to the last line of the ledger. It was moved outside of Tuneline, or a promotion was "
            f"interrupted. Promote the intended version: tuneline promote {name} VERSION --force --reason WHY."
        )
    if model and LEDGER_HEAD_TAG in model.tags and model.tags[LEDGER_HEAD_TAG] not in hashes:
        raise TrackingError(
            f"{name}: the last lines of {ledger.path()} are missing: the registry refers to a later one. Restore it "
            "from a backup."
        )


def _record_deletions(name: str) -> list[str]:
    """Record aliases that are in the ledger but not in the registry, because another program deleted them.

    Returns:
        The deleted aliases.
    """
    models = registry.list_models(name)
    current = models[name].aliases if models else {}
    deleted = [alias for alias, number in ledger.alias_positions(name).items() if number and alias not in current]
    for alias in deleted:
        number = ledger.alias_positions(name)[alias]
        why = f"deleted outside of Tuneline: the alias, version {number} or the whole model"
        line = ledger.append(name, alias, number, None, why)
        if models:
            MlflowClient().set_registered_model_tag(name, LEDGER_HEAD_TAG, line["hash"])
    return deleted


def _make_champion(version: Version, why: str, **more: object) -> None:
    """Make a version champion and the champion before it, if any, `previous`; a version never has both aliases."""
    aliases = registry.get_aliases(version.name)
    before = aliases.get("champion")
    if before not in (None, version.version):
        _move(version.name, "previous", before, f"was champion before version {version.version}")
    elif aliases.get("previous") == version.version:
        _move(version.name, "previous", None, f"version {version.version} becomes champion")
    _move(version.name, "champion", version.version, why, **more)


def _move(name: str, alias: str, to: str | None, why: str, **more: object) -> None:
    before = registry.get_aliases(name).get(alias)
    recorded = ledger.alias_positions(name).get(alias)
    line = None
    if before != to or recorded != to or why.startswith(FORCED_PREFIX):
        line = ledger.append(name, alias, before, to, why, **more)
    try:
        _move_alias(name, alias, to)
        if line:
            MlflowClient().set_registered_model_tag(name, LEDGER_HEAD_TAG, line["hash"])
    except MlflowException as error:
        why = f"the registry rejected it: {one_line(error)}"
        if line and registry.get_aliases(name).get(alias) == before:
            ledger.append(name, alias, to, before, why)
        raise TrackingError(
            f"{name}: alias {alias} could not be moved to version {to or 'none'}: {why} Check the server and your "
            "permissions, then run the command again."
        ) from error


def _move_alias(name: str, alias: str, to: str | None) -> None:
    if to is None:
        MlflowClient().delete_registered_model_alias(name, alias)
    else:
        MlflowClient().set_registered_model_alias(name, alias, to)


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

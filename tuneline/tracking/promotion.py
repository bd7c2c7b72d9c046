"""Promotion: the one place where aliases move.

MLflow moves an alias whoever asks; nothing compares first. So every move happens under a lock that all processes on
the state root share, against the champion that was judged. It is written into the ledger first, so that a process that
dies between the two leaves a line too many, which `verify` finds, and never a move that nobody knows of.
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
    lost = gate.failed_findings(findings, config or GateConfig())
    failed = [check for check in checks if not check.passed]
    against = [
        *(f"precondition {check.name}: {check.sentence}" for check in failed),
        *(each.sentence() for each in lost),
    ]
    why = "; ".join(against or [finding.sentence() for finding in findings])
    with state.lock("promotion"):
        if _number(registry.get_champion(version.name)) != _number(champion):
            raise TrackingError(f"The champion of {version.name} changed while this model was judged. Run again.")
        report = [finding.model_dump() for finding in findings]
        _note_losses(version.name)
        _move(version.name, "challenger", version.version, why, report=report)
        if not against:
            _crown(version, why, report=report)
    sentence = f"Kept as challenger: {why}." if against else f"Promoted to champion: {why}."
    after = registry.find_version(version.name, version.version)
    promoted = _decision(after, new=new, promoted=not against, sentence=sentence)
    return promoted.model_copy(update={"findings": list(findings), "checks": list(checks)})


def force(name: str, version: str, reason: str) -> Version:
    """Make a version champion without the gate; the reason stands in the ledger.

    Raises:
        NotFoundError: There is no such version.
        TrackingError: Its files are gone, or are not those that were registered.
    """
    target = registry.find_version(name, version)
    integrity.check_stored(target)
    with state.lock("promotion"):
        _note_losses(name)
        _crown(target, f"{FORCED_PREFIX}{reason}")
    return registry.find_version(name, target.version)


def rollback(name: str, reason: str = "rolled back") -> Version | None:
    """Give `champion` back to `previous`; without one, take it away.

    A champion that was deleted elsewhere is replaced by `previous` too. Of a model that was deleted, the ledger gets
    the lines that say so, and nothing else happens.

    Raises:
        NotFoundError: Neither the registry nor the ledger knows the model.
        TrackingError: There is no champion to roll back from, or the files of the previous one are gone or others.
    """
    with state.lock("promotion"):
        lost = _note_losses(name)
        if not lost and not registry.list_models(name):
            raise NotFoundError.among("model", name, list(registry.list_models())[: registry.MAX_LISTED])
        stands = registry.get_aliases(name)
        if not lost and not stands.keys() & {"champion", "previous"}:
            raise TrackingError(
                f"{name} has no champion, so nothing can be rolled back. `tuneline models` lists what there is."
            )
        number = stands.get("previous")
        if number:
            integrity.check_stored(registry.find_version(name, number))
        if number or "champion" in stands:
            _move(name, "champion", number, reason)
        if number:
            _move(name, "previous", None, f"became champion again: {reason}")
    return registry.get_champion(name)


def verify() -> int:
    """Check that the ledger is whole, and that the registry stands where its lines say.

    Returns:
        The number of lines.

    Raises:
        TrackingError: A line was changed, taken out or put in; or an alias stands elsewhere: it was moved by another
            program, or a process died between the ledger and the registry.
    """
    with state.lock("promotion"):
        ledger.repair()
        number = ledger.verify()
        hashes: dict[str, set[str]] = {}
        said: dict[str, dict[str, str | None]] = {}
        for line in ledger.entries():
            hashes.setdefault(line["model"], set()).add(line["hash"])
            said.setdefault(line["model"], {})[line["alias"]] = line["to"]
        models = registry.list_models() if said else {}
        for name in said:
            _verify_model(name, models.get(name), said[name], hashes[name])
    return number


def _verify_model(name: str, model: RegisteredModel | None, said: dict[str, str | None], hashes: set[str]) -> None:
    stands = {alias: str(number) for alias, number in model.aliases.items()} if model else {}
    for alias in ALIASES:
        if stands.get(alias) == said.get(alias):
            continue
        if model is None:
            raise TrackingError(
                f"{name}: the ledger says that alias {alias} stands at version {said.get(alias)}, and the registry has "
                "no model of that name: it was deleted outside of Tuneline. Write that down: "
                f"tuneline rollback {name} --reason WHY."
            )
        raise TrackingError(
            f"{name}: alias {alias} stands at version {stands.get(alias) or 'none'}, and the ledger's last line "
            f"of it says {said.get(alias) or 'none'}. It was moved outside of Tuneline, or a promotion was cut "
            f"short. Promote the version that you mean: tuneline promote {name} VERSION --force --reason WHY."
        )
    if model and LEDGER_HEAD_TAG in model.tags and model.tags[LEDGER_HEAD_TAG] not in hashes:
        raise TrackingError(
            f"{name}: the last lines of {ledger.path()} are missing: the registry knows of a later one. Restore it "
            "from a backup."
        )


def _note_losses(name: str) -> list[str]:
    """Write down which aliases are gone that the ledger says stand; their version or the model was deleted elsewhere.

    Returns:
        The aliases.
    """
    models = registry.list_models(name)
    stands = models[name].aliases if models else {}
    lost = [alias for alias, number in ledger.alias_positions(name).items() if number and alias not in stands]
    for alias in lost:
        number = ledger.alias_positions(name)[alias]
        why = f"found gone: the alias, version {number} or the whole model was deleted outside of Tuneline"
        line = ledger.append(name, alias, number, None, why)
        if models:
            MlflowClient().set_registered_model_tag(name, LEDGER_HEAD_TAG, line["hash"])
    return lost


def _crown(version: Version, why: str, **more: object) -> None:
    """Make a version champion, and the one before it, if there is one, `previous`; nothing is both."""
    stands = registry.get_aliases(version.name)
    before = stands.get("champion")
    if before not in (None, version.version):
        _move(version.name, "previous", before, f"was champion before version {version.version}")
    elif stands.get("previous") == version.version:
        _move(version.name, "previous", None, f"version {version.version} becomes champion")
    _move(version.name, "champion", version.version, why, **more)


def _move(name: str, alias: str, to: str | None, why: str, **more: object) -> None:
    before = registry.get_aliases(name).get(alias)
    said = ledger.alias_positions(name).get(alias)
    line = None
    if before != to or said != to or why.startswith(FORCED_PREFIX):
        line = ledger.append(name, alias, before, to, why, **more)
    try:
        _move_alias(name, alias, to)
        if line:
            MlflowClient().set_registered_model_tag(name, LEDGER_HEAD_TAG, line["hash"])
    except MlflowException as error:
        why = f"the registry refused: {one_line(error)}"
        if line and registry.get_aliases(name).get(alias) == before:
            ledger.append(name, alias, to, before, why)
        raise TrackingError(
            f"{name}: alias {alias} could not be moved to version {to or 'none'}: {why} Check the server and your "
            "permissions, then give the command again."
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

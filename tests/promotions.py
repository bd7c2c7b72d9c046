"""Gate decisions on registered versions, shared by the tests of promotion."""

from tuneline.config.sections.gate import GateConfig
from tuneline.tracking import gate, ledger, promotion, registry

CONFIG = GateConfig(num_resamples=1000)


def finding(gain=0.1, against="the base model"):
    """Compare two models that differ by `gain` on every item."""
    scores = {f"item-{i}": 0.3 + i / 100 for i in range(60)}
    better = {item: value + gain for item, value in scores.items()}
    (result,) = gate.evaluate({"rougeL": better}, {"rougeL": scores}, against, CONFIG)
    return result


def decide(version, *, champion=None, gain=0.1):
    return promotion.decide(version, new=True, champion=champion, findings=[finding(gain)])


def champion_of(make_version, content="one"):
    version, _ = make_version(content)
    decide(version)
    return registry.find_version(version.name, version.version)


def aliases(name):
    return {alias: version.version for version in registry.list_versions(name) for alias in version.aliases}


def moves(name, start=0):
    return [(line["alias"], line["from"], line["to"]) for line in ledger.entries(name)][start:]

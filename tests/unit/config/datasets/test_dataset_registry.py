"""Dataset registries: recipes refer to datasets by name."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from tuneline.config import load
from tuneline.config.datasets import dataset_registry
from tuneline.config.sections.sources import FORMATS, Columns, SourceConfig
from tuneline.config.stages import SFTRecipe
from tuneline.errors import RecipeError

SHIPPED = yaml.safe_load(Path("configs/datasets.yaml").read_text())
TWO = """\
# Two datasets.
chat:
  path: data/chat.jsonl
  format: openai
  columns: {messages: turns}
hub_set:
  hub: owner/name
  subset: en
  format: alpaca
  columns:
    instruction: question
"""


@pytest.fixture
def project(tmp_path):
    """A recipe next to a dataset registry."""
    (tmp_path / "datasets.yaml").write_text(TWO)

    def write(*sources, **changes):
        return tiny.write_config(tmp_path / "run.yaml", tiny.recipe(sources=list(sources), **changes))

    return write


def error_message(path) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        load.load(path)
    return str(caught.value).splitlines()


def line_of(path, text) -> int:
    return next(i for i, line in enumerate(path.read_text().splitlines(), start=1) if text in line)


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_registry_entry_is_a_valid_source(name):
    source = SourceConfig.model_validate({"name": name, **SHIPPED[name]})

    assert source.hub
    assert source.format in FORMATS


def test_shipped_registry_entries_have_no_redundant_columns():
    for name, entry in SHIPPED.items():
        assert all(
            name_in_format != name_in_file for name_in_format, name_in_file in entry.get("columns", {}).items()
        ), name


def test_a_source_uses_location_and_format_of_its_registry_entry(project, tmp_path):
    first, second = load.load(project({"dataset": "chat"}, {"dataset": "hub_set", "name": "mine"})).recipe.sources

    assert (first.name, first.path, first.format) == ("chat", tmp_path / "data" / "chat.jsonl", "openai")
    assert first.columns == Columns(messages="turns")
    assert (second.name, second.hub, second.subset) == ("mine", "owner/name", "en")


def test_keys_of_a_source_override_its_registry_entry(project):
    content = {"dataset": "hub_set", "subset": "de", "max_rows": 7, "columns": {"output": "answer"}}
    (source,) = load.load(project(content)).recipe.sources

    assert (source.subset, source.max_rows, source.format) == ("de", 7, "alpaca")
    assert source.columns == Columns(output="answer"), "columns are replaced as a whole"


def test_a_source_with_a_location_uses_only_the_format_of_the_registry_entry(project, tmp_path):
    local, moved = {"dataset": "hub_set", "path": "copy.jsonl"}, {"dataset": "chat", "hub": "owner/chat"}
    first, second = load.load(project(local, moved)).recipe.sources

    assert (first.path, first.hub, first.subset) == (tmp_path / "copy.jsonl", None, None)
    assert first.columns == Columns(instruction="question")
    assert (second.hub, second.path, second.format) == ("owner/chat", None, "openai")


def test_the_recipe_that_runs_is_the_complete_one(project):
    checked = load.load(project({"dataset": "chat"}, {"dataset": "chat"}, datasets="datasets.yaml"))
    raw = checked.content["parameters"]["recipe"]

    assert "datasets" not in raw
    assert SFTRecipe.model_validate(yaml.safe_load(yaml.safe_dump(raw))) == checked.recipe
    assert checked.recipe.shares()[0].repeats == 2


def test_paths_of_registry_entries_are_relative_to_their_file(project, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "datasets.yaml").rename(tmp_path / "shared" / "ours.yaml")
    (source,) = load.load(project({"dataset": "chat"}, datasets="shared/ours.yaml")).recipe.sources

    assert source.path == tmp_path / "shared" / "data" / "chat.jsonl"


def test_a_dataset_info_of_llamafactory_is_a_valid_registry(project, tmp_path):
    (tmp_path / "dataset_info.json").write_text('{"one": {"file_name": "one.json"}, "two": {"ms_hub_url": "a/b"}}')
    (source,) = load.load(project({"dataset": "one"}, datasets="dataset_info.json")).recipe.sources
    (line,) = error_message(path := project({"dataset": "two"}, datasets="dataset_info.json"))

    assert (source.path, source.format) == (tmp_path / "one.json", "alpaca")
    assert line.startswith(f"{path}:{line_of(path, 'dataset: two')}: sources.0.dataset: 'two' of ")
    assert "cannot be used: it is on ModelScope only" in line


def test_an_unknown_dataset_is_reported_at_its_line_with_the_closest_match(project):
    source = {"name": "first", "path": "x.jsonl", "format": "alpaca"}
    (line,) = error_message(path := project(source, {"dataset": "hubset"}))

    location = f"{path}:{line_of(path, 'dataset: hubset')}: sources.1.dataset"
    assert line == f"{location}: unknown dataset 'hubset'. Did you mean 'hub_set'? Known: chat, hub_set."


def test_large_registries_are_not_listed(project):
    (line,) = error_message(project({"dataset": "alpaca_eng"}, datasets=str(Path("configs/datasets.yaml").resolve())))

    assert "Did you mean 'alpaca_en'?" in line
    assert f"has {len(SHIPPED)} entries; `tuneline data list " in line
    assert "Known:" not in line


@pytest.mark.parametrize(
    ("was", "now", "message"),
    [
        ("columns: {messages", "colums: {messages", "chat.colums: unknown key. Did you mean 'columns'?"),
        (
            "instruction: question",
            "instrction: q",
            "hub_set.columns.instrction: unknown key. Did you mean 'instruction'?",
        ),
        ("format: openai", "format: opnai", "chat.format: unknown format 'opnai'. Did you mean 'openai'?"),
        ("format: openai", "name: chat", "chat.name: unknown key. The entry's name is its key, 'chat'"),
        (
            "hub: owner/name",
            "revision: v1",
            "hub_set: expected exactly one of path (local files) and hub (a repository)",
        ),
        ("chat:", "no:", "False: expected a string as name, but YAML reads it as False. Put it in quotes."),
        ("# Two datasets.", "alone: here", "alone: expected a mapping with path or hub, and format, got 'here'."),
        ("hub_set:", "chat:", "chat: is a duplicate key (first in line 2)"),
    ],
)
def test_an_error_in_a_registry_entry_is_reported_in_the_registry_file(project, tmp_path, was, now, message):
    file = tmp_path / "datasets.yaml"
    file.write_text(TWO.replace(was, now))
    (line,) = error_message(project({"dataset": "chat"}))

    location, text = line.removeprefix(f"{file}:").split(": ", 1)
    assert text.startswith(message)
    if "False" not in message and "exactly one" not in message:
        assert now.split(":")[0] in file.read_text().splitlines()[int(location) - 1]


def test_other_errors_of_the_recipe_are_reported_with_an_unknown_dataset(project):
    lines = error_message(project({"dataset": "nothing"}, train={"learing_rate": 1}))

    assert any("sources.0.dataset: unknown dataset 'nothing'" in line for line in lines)
    assert any("train.learing_rate: unknown key" in line for line in lines)
    assert not any("is required" in line and "sources" in line for line in lines)


def test_without_a_file_of_a_registry_a_dataset_names_the_key_to_set(project, tmp_path):
    (tmp_path / "datasets.yaml").unlink()

    (line,) = error_message(project({"dataset": "chat"}))
    assert "sources.0.dataset: there is no datasets.yaml next to this file to look it up in." in line
    (line,) = error_message(project({"dataset": "chat"}, datasets="gone.yaml"))
    assert ": datasets: file not found: " in line
    (line,) = error_message(project({"dataset": "chat"}, datasets=["a"]))
    assert ": datasets: expected the path of a file like configs/datasets.yaml, got ['a']." in line


def test_misspelt_keys_are_compared_with_the_keys_of_a_registry_too(project):
    lines = error_message(project({"datset": "chat"}, datsets="datasets.yaml"))

    assert any("sources.0.datset: unknown key. Did you mean 'dataset'?" in line for line in lines)
    assert any("datsets: unknown key. Did you mean 'datasets'?" in line for line in lines)


def test_a_wrong_value_at_the_source_is_reported_at_the_source(project):
    (line,) = error_message(path := project({"dataset": "chat", "max_rows": 0}))

    assert line.startswith(f"{path}:{line_of(path, 'max_rows: 0')}: sources.0.max_rows: Input should be greater")


words = st.text(st.characters(exclude_categories=("C", "Zl", "Zp")), min_size=1)
names = st.from_regex(r"\A[A-Za-z0-9_.-]{1,12}\Z")
shapes = st.fixed_dictionaries(
    {"format": st.sampled_from(FORMATS)},
    optional={
        "max_rows": st.integers(1, 10**9),
        "columns": st.dictionaries(st.sampled_from(sorted(Columns.model_fields)), words, min_size=1),
    },
)
places = st.one_of(
    st.fixed_dictionaries({"hub": st.from_regex(r"\A[a-z0-9]{1,8}/[a-z0-9]{1,8}\Z")}),
    st.fixed_dictionaries({"path": st.from_regex(r"\A/[a-z]{1,8}/[a-z0-9]{1,8}\.json\Z")}),
)


@given(
    entries=st.dictionaries(
        names, st.tuples(places, shapes).map(lambda both: both[0] | both[1]), min_size=1, max_size=4
    )
)
def test_saved_registry_entries_read_back_the_same_in_their_order(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("descriptions") / "datasets.yaml"

    dataset_registry.write(dataset_registry.DatasetRegistry(Path("dataset_info.json"), entries), path)

    assert list(dataset_registry.read(path).entries.items()) == list(entries.items())

"""Files, models and packages named in a recipe must exist."""

import pytest

from tests import tiny
from tuneline.config import existence, load
from tuneline.errors import NotFoundError, SourceError


@pytest.fixture
def missing(project_template, tmp_path):
    def find(**changes):
        path = tiny.write_config(project_template / "other.yaml", tiny.recipe(**changes))
        try:
            return existence.find_missing(load.load(path).recipe)
        finally:
            path.unlink()

    return find


def test_a_complete_project_has_no_missing_items(missing):
    assert missing() == []


def test_each_missing_item_is_reported_on_a_separate_line(missing):
    source = {"name": "gone", "path": "data/gone.jsonl", "format": "alpaca"}
    exam = {"name": "exam", "path": "nowhere"}
    lines = missing(sources=[source], exams=[exam], model={"type": "directory", "path": "no-model"})

    assert [line.split(":")[0] for line in lines] == ["sources.gone.path", "exams.exam.path", "model.path"]


def test_a_model_directory_without_weights_is_refused(missing, tmp_path):
    (tmp_path / "config.json").write_text("{}")

    (line,) = missing(model={"type": "directory", "path": str(tmp_path)})

    assert "does not contain weights (*.safetensors). Set a folder written by save_pretrained." in line


def test_an_unknown_name_of_the_catalogue_is_reported_with_the_closest_match(missing):
    (line,) = missing(model={"type": "catalogue", "name": "smollm2-135m-instrukt"})

    assert "Did you mean 'smollm2-135m-instruct'?" in line


def test_a_path_that_is_nearly_right_is_reported_with_the_closest_match(missing):
    (line,) = missing(sources=[{"name": "first", "path": "data/frist.jsonl"}])

    assert line.startswith("sources.first.path: file ")
    assert line.endswith("does not exist. Did you mean 'first.jsonl'? Correct the path.")


def test_folders_patterns_and_hub_datasets_are_accepted(missing):
    paths = [{"path": "data"}, {"path": "data/*.jsonl"}, {"hub": "team/rows"}]

    assert missing(sources=[{"name": f"s{i}", **path} for i, path in enumerate(paths)]) == []


def test_a_missing_template_is_found_before_a_run(tmp_path):
    existence.check_template("auto")
    existence.check_template("llama3")
    with pytest.raises(NotFoundError, match="Unknown template 'lama3'. Did you mean 'llama3'"):
        existence.check_template("lama3")
    with pytest.raises(SourceError, match="template: file not found: .*own.jinja"):
        existence.check_template(str(tmp_path / "own.jinja"))


def test_a_reward_function_without_a_module_is_reported_by_its_key(missing):
    rewarded = {"stage": "grpo", "registry": {"model_name": "tiny", "gate": {"metric": "reward"}}}

    (line,) = missing(**rewarded, train={"reward_function": "no_rewards:here"})

    assert line.startswith("train.reward_function 'no_rewards:here': module 'no_rewards' not found")
    assert missing(**rewarded, train={"reward_function": "tuneline.data.rewards:overlap"}) == []

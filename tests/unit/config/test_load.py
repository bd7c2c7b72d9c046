"""Run configurations are validated as a whole: one error per line, with the key as in the file."""

from pathlib import Path

import pytest
import yaml

from tests import tiny
from tuneline.config import load
from tuneline.config.parsing import zenml_keys
from tuneline.config.schedule import ScheduleConfig
from tuneline.errors import RecipeError


def problems(tmp_path, recipe, **top) -> list[str]:
    path = tiny.write_config(tmp_path / "run.yaml", recipe, **top)
    with pytest.raises(RecipeError) as caught:
        load.load(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


def recipe_with(section, **values):
    return tiny.recipe(**{section: tiny.recipe()[section] | values})


def test_a_valid_file_gives_the_recipe_with_absolute_paths(tmp_path):
    checked = load.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe()))

    assert checked.recipe.sources[0].path == tmp_path / "data" / "first.jsonl"
    assert checked.recipe.model.path == tmp_path / "model"
    assert checked.pipeline == "sft_pipeline"


def test_an_unknown_key_is_named_with_its_line_and_the_nearest_one(tmp_path):
    (line,) = problems(tmp_path, recipe_with("train", learing_rate=1e-4))

    assert line.endswith("train.learing_rate: unknown key. Did you mean 'learning_rate'?")
    content = (tmp_path / "run.yaml").read_text().splitlines()
    assert "learing_rate" in content[int(line.split(":")[0]) - 1]


def test_an_unknown_key_of_a_method_is_compared_with_that_methods_keys(tmp_path):
    (line,) = problems(tmp_path, recipe_with("method", lora_alfa=8))

    assert line.endswith("method.lora_alfa: unknown key. Did you mean 'lora_alpha'?")


def test_a_wrong_type_shows_the_value(tmp_path):
    (line,) = problems(tmp_path, recipe_with("train", learning_rate="fast"))

    assert "train.learning_rate: Input should be a valid number" in line
    assert line.endswith("got 'fast'.")


def test_an_unknown_method_and_format_are_reported_with_known_values(tmp_path):
    sources = [{"name": "first", "path": "x.jsonl", "format": "alpacca"}]
    lines = problems(tmp_path, tiny.recipe(method={"type": "lorra"}, sources=sources))

    assert any("unknown method 'lorra'. Did you mean 'lora'?" in line for line in lines)
    assert any("sources.0.format: unknown format 'alpacca'. Did you mean 'alpaca'?" in line for line in lines)


def test_every_error_is_reported_on_a_separate_line(tmp_path):
    recipe = recipe_with("train", learing_rate=1) | {"method": {"type": "lora", "r": 0}}
    lines = problems(tmp_path, recipe, paramters=1, steps={"trian": {}, "train": {"enable_cahce": True}})

    assert len(lines) == 4, "a wrong recipe hides unknown steps, nothing else"
    assert any("paramters: unknown key. Did you mean 'parameters'?" in line for line in lines)
    assert any("steps.train.enable_cahce: unknown key. Did you mean 'enable_cache'?" in line for line in lines)


def test_an_unknown_step_is_named(tmp_path):
    (line,) = problems(tmp_path, tiny.recipe(), steps={"ingest_frist": {}})

    assert line.endswith("steps.ingest_frist: unknown step. Did you mean 'ingest_first'?")


def test_a_duplicate_key_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("parameters: {}\nrun_name: a\nrun_name: b\n")

    with pytest.raises(RecipeError, match=r"run.yaml:3: run_name: is a duplicate key \(first in line 2\)"):
        load.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "run.yaml:1: expected a mapping, got NoneType. Pass a run configuration"),
        ("a: [1", "run.yaml:1: not valid YAML"),
        ("run_name: x\n", "run.yaml:1: parameters.recipe: is required"),
        ("parameters: {recipe: {}}\n", "run.yaml:1: stage: is required"),
    ],
)
def test_an_invalid_run_configuration_is_reported(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=message):
        load.load(path)


def test_a_file_that_is_not_utf_8_is_reported(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_bytes("run_name: caf\xe9\n".encode("latin-1"))

    with pytest.raises(RecipeError, match="is not UTF-8 text: byte 13 is invalid. Save it as UTF-8."):
        load.load(path)


def test_a_value_that_yaml_cannot_read_is_reported(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("run_name: 2024-13-45\n")

    with pytest.raises(RecipeError, match="run.yaml: not valid YAML: month must be in 1..12. Correct the value"):
        load.load(path)


def test_a_cron_expression_is_checked(tmp_path):
    (line,) = problems(tmp_path, tiny.recipe(), schedule={"cron_expression": "every day"})

    assert line.endswith("'every day' is not a valid cron expression. Write five fields, like '0 3 * * *'.")


@pytest.mark.parametrize("cron", ["0 0 30 2 *", "0 0 31 2,4,6,9,11 *"])
def test_a_cron_expression_that_never_fires_is_refused(tmp_path, cron):
    (line,) = problems(tmp_path, tiny.recipe(), schedule={"cron_expression": cron})

    assert f"schedule.cron_expression: {cron!r} never matches a date" in line


@pytest.mark.parametrize("cron", ["0 0 29 2 *", "@daily", "0 3 * * MON-THU", "0 0 L mar *", "*/5 * * * *"])
def test_a_cron_expression_that_fires_is_accepted(tmp_path, cron):
    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(), schedule={"cron_expression": cron})

    assert load.load(path).content["schedule"] == {"cron_expression": cron}


@pytest.mark.parametrize("cron", ["* * * * * *", "0 0 3 * * * 2030", "R 3 * * *", "H H * * *", 5, "@reboot"])
def test_seconds_years_and_random_times_are_refused(tmp_path, cron):
    (line,) = problems(tmp_path, tiny.recipe(), schedule={"cron_expression": cron})

    assert "schedule.cron_expression: " in line


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        ({"name": "nightly"}, "schedule: has no time. Set cron_expression"),
        ({}, "schedule: has no time"),
        (["0 3 * * *"], "schedule: expected a mapping"),
        ({"cron_expresion": "0 3 * * *"}, "schedule.cron_expresion: unknown key. Did you mean 'cron_expression'?"),
        ({"interval_second": "often", "start_time": "2026-01-01"}, "schedule.interval_second: "),
        ({"interval_second": 60}, "schedule: has no time"),
    ],
)
def test_all_keys_of_a_schedule_are_checked(tmp_path, schedule, message):
    (line,) = problems(tmp_path, tiny.recipe(), schedule=schedule)

    assert message in line


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("interval_second", 60),
        ("start_time", "2026-01-01"),
        ("end_time", "2026-01-01T00:00:00"),
        ("run_once_start_time", "2026-01-01"),
        ("catchup", True),
    ],
)
def test_keys_that_the_local_scheduler_does_not_support_are_refused_with_their_line(tmp_path, key, value):
    schedule = {"name": "nightly", "cron_expression": "0 3 * * *"}
    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(), schedule={**schedule, key: value})
    checked = load.load(path)

    with pytest.raises(RecipeError, match=rf"run\.yaml:\d+: schedule\.{key}: tuneline scheduler only supports"):
        load.check_local_schedule(checked)

    path = tiny.write_config(tmp_path / "run.yaml", tiny.recipe(), schedule={**schedule, "catchup": False})
    load.check_local_schedule(load.load(path))


def test_different_datasets_of_one_name_are_refused_and_equal_ones_count_twice(tmp_path):
    source = tiny.recipe()["sources"][0]
    (line,) = problems(tmp_path, tiny.recipe(sources=[source, {**source, "max_rows": 3}]))
    twice = load.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe(sources=[source, source])))

    assert "sources: the name 'first' is used by several entries" in line
    assert [share.repeats for share in twice.recipe.shares()] == [2]


def test_a_pattern_and_a_template_file_are_relative_to_the_recipe(tmp_path):
    folder = tmp_path / "run[1]"
    folder.mkdir()
    (folder / "kept[2].jsonl").touch()
    sources = [{"name": name, "path": path} for name, path in (("many", "data/*.jsonl"), ("kept", "kept[2].jsonl"))]

    def loaded(template):
        return load.load(tiny.write_config(folder / "run.yaml", tiny.recipe(sources=sources, template=template)))

    many, single = loaded("chat.jinja").recipe.sources
    assert str(many.path) == f"{tmp_path}/run[[]1]/data/*.jsonl", "the folder's own brackets are no pattern"
    assert single.path == folder / "kept[2].jsonl", "an existing file name is not a pattern"
    assert loaded("chat.jinja").recipe.template == str(folder / "chat.jinja")
    assert loaded("chatml").recipe.template == "chatml"


def test_a_recipe_without_held_out_rows_is_refused(tmp_path):
    (line,) = problems(tmp_path, tiny.recipe(merge={"validation_fraction": 0}))

    assert "merge.validation_fraction is 0, so no rows would be held out" in line


def test_thinking_cannot_be_masked_in_preference_stages(tmp_path):
    registry = {"model_name": "tiny", "gate": {"metric": "preference_accuracy"}}
    path = tiny.write_config(
        tmp_path / "run.yaml", tiny.recipe(stage="dpo", registry=registry, exams=[], tokenize={"thinking": "mask"})
    )

    with pytest.raises(RecipeError, match="tokenize.thinking is 'mask', but stage dpo trains on entire answers"):
        load.load(path)


def test_a_weight_needs_an_interleaving_strategy(tmp_path):
    first, second = tiny.recipe()["sources"]
    weighted = [first, second | {"weight": 2}]

    (line,) = problems(tmp_path, tiny.recipe(sources=weighted))

    assert "second has a weight, but merge.strategy is 'concatenate'" in line
    assert line.endswith("Set merge.strategy to interleave_under or interleave_over, or remove weight.")
    merge = {"validation_fraction": 0.3, "strategy": "interleave_over"}
    interleaved = load.load(tiny.write_config(tmp_path / "run.yaml", tiny.recipe(sources=weighted, merge=merge)))
    assert [share.weight for share in interleaved.recipe.for_merge().shares] == [None, 2]


def test_an_exam_cannot_have_the_name_of_the_held_out_rows(tmp_path):
    (line,) = problems(tmp_path, tiny.recipe(exams=[{"name": "held_out", "path": "exam"}]))

    assert "the name 'held_out' is reserved" in line


def test_an_unknown_pipeline_is_named(tmp_path):
    (line,) = problems(tmp_path, tiny.recipe(), extra={"pipeline": "stf_pipeline"})

    assert line.endswith("unknown pipeline 'stf_pipeline'. Did you mean 'sft_pipeline'?")


def test_the_listed_keys_are_those_of_zenml():
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
    from zenml.config.schedule import Schedule
    from zenml.config.step_configurations import StepConfigurationUpdate

    assert set(zenml_keys.RUN_KEYS) == set(PipelineRunConfiguration.model_fields)
    assert set(zenml_keys.STEP_KEYS) == set(StepConfigurationUpdate.model_fields)
    assert set(ScheduleConfig.model_fields) == set(Schedule.model_fields)


RECIPES = [path for path in sorted(Path("configs").rglob("*.yaml")) if "recipe:" in path.read_text()]


@pytest.mark.parametrize("path", RECIPES, ids=str)
def test_every_shipped_recipe_loads_finds_its_files_and_documents_its_command(path):
    from tuneline.config import existence

    checked = load.load(path)

    assert existence.find_missing(checked.recipe) == []
    assert f"--config {path}" in path.read_text(), "the header must show the command that runs this file"


def test_the_schedule_trains_the_recipe_of_the_demo():
    demo, schedule = (yaml.safe_load(Path(f"configs/{name}.yaml").read_text()) for name in ("demo", "retrain_demo"))

    assert demo["parameters"] == schedule["parameters"]

"""Exports through the pipeline: what is taken as it is, what is cached, where it goes, and what is refused."""

import hashlib
import json
from pathlib import Path

import mlflow
import pytest
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from tests import fake_hub, tiny
from tuneline.cli.app import app
from tuneline.errors import TunelineError
from tuneline.runner import start
from tuneline.zenml_integration import tracker

pytestmark = pytest.mark.zenml

REGISTERED = {"type": "registered", "name": "tiny", "version": "1"}


@pytest.fixture(scope="module")
def trained(run):
    """A registered version of the tiny model."""
    return run()


@pytest.fixture(scope="module")
def export(project, trained):
    """Run the pipeline on a recipe; keyword arguments are its parts."""
    from pipelines import export_pipeline

    def do(**recipe):
        path = tiny.write_config(project / "export.yaml", {"stage": "export", "model": REGISTERED} | recipe)
        return start.read_outcome(export_pipeline.with_options(config_path=str(path))())

    return do


@pytest.fixture
def hub(monkeypatch):
    """A hub that huggingface_hub takes for its own."""
    with fake_hub.Hub() as running:
        for name, value in (("ENDPOINT", running.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield running


def ran(outcome):
    return {step.name for step in outcome.steps if step.status != "cached"}


def tracked(outcome):
    """Return the MLflow run of an export."""
    tracker.connect()
    query = f"tags.`zenml.run` = '{outcome.run_name}'"
    (found,) = mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")
    return found


@pytest.fixture(scope="module")
def first(trained, export):
    return export()


def test_a_merged_version_is_taken_as_it_is_and_no_weight_is_copied(trained, first):
    folder = Path(first.delivery.folder)
    ours, theirs = (place / "model.safetensors" for place in (folder, trained.model_folder))

    assert ours.stat().st_ino == theirs.stat().st_ino, "a hard link"
    assert first.delivery.facts["weights"] == "unchanged"
    assert (folder / "tokenizer_config.json").stat().st_ino != (
        trained.model_folder / "tokenizer_config.json"
    ).stat().st_ino
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == tiny.CHATML


def test_the_folder_tells_of_itself(first):
    folder = Path(first.delivery.folder)
    card, modelfile = (folder / "README.md").read_text(), (folder / "Modelfile").read_text()
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())

    assert card.startswith("---\nlicense: ")
    assert "# tiny version 1" in card
    assert "## Export" in card
    assert "FROM .\n" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "PARAMETER temperature 0" in modelfile
    assert set(sums) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha for name, sha in sums.items())


def test_an_export_is_cached_by_content_and_its_ends_never(first, export):
    assert ran(first) == {"locate", "export", "publish"}
    assert ran(export()) == {"locate", "publish"}
    assert ran(export(parameters={"num_ctx": 1024})) == {"locate", "export", "publish"}


def test_rounded_and_cut_weights_are_measured(export):
    made = export(dtype="bfloat16", max_shard_size="50KB", parameters={"num_ctx": 512, "temperature": 0.7})

    folder = Path(made.delivery.folder)
    assert made.delivery.facts["dtype"] == "bfloat16"
    assert 0 < made.delivery.facts["kl"] < 1e-2
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    text = (folder / "Modelfile").read_text()
    assert "PARAMETER num_ctx 512" in text
    assert "PARAMETER temperature 0.7" in text
    assert AutoModelForCausalLM.from_pretrained(folder).dtype.is_floating_point


def test_an_adapter_is_folded_into_a_base_model_and_compared(project, run, trained, export):
    from zenml.client import Client

    adapter = Client().get_pipeline_run(trained.run_name).steps["train"].outputs["sft_checkpoint"][0].uri
    made = export(model={"type": "directory", "path": "model"}, adapters=[f"{adapter}/files"])

    assert made.delivery.facts["weights"] == "merged"
    assert made.delivery.facts["kl"] < 1e-4
    ours = AutoModelForCausalLM.from_pretrained(made.delivery.folder).state_dict()
    theirs = AutoModelForCausalLM.from_pretrained(trained.model_folder).state_dict()
    assert all((ours[name] - theirs[name]).abs().max() < 1e-6 for name in theirs)


def test_a_push_is_told_to_zenml_and_mlflow(first, export, hub):
    from zenml.client import Client

    push = {"repo_id": "tester/tiny"}
    made = export(push=push)
    again = export(push=push)

    repository = hub.repositories["tester/tiny"]
    folder = Path(made.delivery.folder)
    assert repository.branches["main"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert ran(again) == {"locate", "publish"}, "a push is never cached"
    assert made.delivery.commit == repository.commits[0][0]
    assert repository.commits[0][1].startswith("tiny version 1, content ")
    tags = tracked(made).data.tags
    assert tags["tuneline.push.commit"] == made.delivery.commit
    metadata = Client().get_pipeline_run(made.run_name).steps["publish"].run_metadata
    assert metadata["url"] == made.delivery.url
    stored = json.dumps([tags, dict(metadata)], default=str)
    assert fake_hub.TOKEN not in stored


def test_a_hub_that_refuses_stops_the_export_before_work(export, hub):
    hub.fail["GET /api/whoami-v2"] = 401, "Invalid"

    with pytest.raises(TunelineError, match="rejects your token"):
        export(push={"repo_id": "tester/tiny"}, parameters={"seed": 7})


def test_a_folder_of_the_users_is_filled_once_and_never_overwritten(export, project):
    made = export(to="out")
    assert made.delivery.to == str(project / "out")
    export(to="out", parameters={"num_ctx": 256})
    assert "num_ctx 256" in (project / "out" / "Modelfile").read_text()

    (project / "out" / "Modelfile").write_text("mine")
    with pytest.raises(TunelineError, match=r"to: .*out/Modelfile was modified after its export"):
        export(to="out")
    with pytest.raises(TunelineError, match=r"to: .*data contains .* and is not an export"):
        export(to="data")


def test_the_command_takes_names_and_folders(first, project):
    result = CliRunner().invoke(app, ["export", "tiny@1", "--to", "by_name"])

    assert result.exit_code == 0, result.output
    assert "conversations give the" in result.stdout
    assert (project / "by_name" / "Modelfile").is_file()
    assert CliRunner().invoke(app, ["export", "model", "--to", "by_folder"]).exit_code == 0
    assert "Nothing else was recorded: training method" in (project / "by_folder" / "README.md").read_text()
    for arguments, said in (
        (["tiny@7"], "Unknown version of tiny '7'"),
        (["run.yaml"], "tuneline run run.yaml"),
        (["no such/thing at all"], "is neither a folder"),
        (["tiny", "--public"], "Add --push owner/name"),
    ):
        assert said in str(CliRunner().invoke(app, ["export", *arguments]).exception)


def test_a_version_with_other_bytes_is_not_exported(trained, export):
    weights = trained.model_folder / "chat_template.jinja"
    before = weights.read_bytes()
    weights.write_bytes(before + b" ")
    try:
        with pytest.raises(TunelineError, match="chat_template.jinja has the sha256"):
            export()
    finally:
        weights.write_bytes(before)


def test_a_model_without_a_merged_form_is_refused(run, export):
    made = run(method={"type": "prompt", "num_virtual_tokens": 4}, tokenize={"max_length": 256, "packing": False})

    with pytest.raises(TunelineError, match="contains an adapter next to its base model"):
        export(model={"type": "registered", "name": "tiny", "version": made.decision.version})
    with pytest.raises(TunelineError, match="No run 'nothing' with a model was found"):
        export(model={"type": "run", "name": "nothing"})


def test_a_run_is_exported_by_its_name(trained, export):
    made = export(model={"type": "run", "name": trained.run_name})

    assert made.delivery.facts["weights"] == "unchanged"
    assert tracked(made).data.params["model.version"] == "1"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"adapters": ["x"]}, "adapters: not supported for model.type registered"),
        ({"template": "chatml"}, "template: not supported for model.type registered, which keeps the chat template"),
        ({"parameters": {"temprature": 1}}, "Did you mean 'temperature'"),
        ({"push": {"repo_id": "nobody"}}, "push.repo_id"),
        ({"max_shard_size": "5 gigs"}, "max_shard_size"),
        ({"too": "out"}, "too: unknown key. Did you mean 'to'"),
    ],
)
def test_a_wrong_recipe_is_refused_when_it_is_read(export, wrong, said):
    with pytest.raises(TunelineError, match=said):
        export(**wrong)

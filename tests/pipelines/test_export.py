"""The export pipeline: unchanged and merged weights, caching, delivery to folders and to the Hub, and errors."""

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
def trained_run(run):
    """A registered version of the tiny model."""
    return run()


@pytest.fixture(scope="module")
def export(project, trained_run):
    """Return a function that runs the export pipeline; keyword arguments are recipe keys."""
    from pipelines import export_pipeline

    def run_export(**recipe):
        path = tiny.write_config(project / "export.yaml", {"stage": "export", "model": REGISTERED} | recipe)
        return start.read_outcome(export_pipeline.with_options(config_path=str(path))())

    return run_export


@pytest.fixture
def hub(monkeypatch):
    """A local hub that `huggingface_hub` connects to."""
    with fake_hub.Hub() as server:
        for name, value in (("ENDPOINT", server.url), ("HF_HUB_OFFLINE", False), ("HF_HUB_DISABLE_XET", True)):
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", fake_hub.TOKEN)
        yield server


def executed_steps(outcome):
    return {step.name for step in outcome.steps if step.status != "cached"}


def mlflow_run(outcome):
    """Return the MLflow run of an export."""
    tracker.connect()
    query = f"tags.`zenml.run` = '{outcome.run_name}'"
    (run,) = mlflow.search_runs(search_all_experiments=True, filter_string=query, output_format="list")
    return run


@pytest.fixture(scope="module")
def first(trained_run, export):
    return export()


def test_a_merged_version_is_exported_with_hard_links_to_its_weights(trained_run, first):
    folder = Path(first.delivery.folder)
    exported, registered = (path / "model.safetensors" for path in (folder, trained_run.model_folder))

    assert exported.stat().st_ino == registered.stat().st_ino, "a hard link"
    assert first.delivery.facts["weights"] == "unchanged"
    assert (folder / "tokenizer_config.json").stat().st_ino != (
        trained_run.model_folder / "tokenizer_config.json"
    ).stat().st_ino
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.vocab_size == len(tokenizer)
    assert tokenizer.chat_template == tiny.CHATML


def test_the_folder_has_a_model_card_a_modelfile_and_checksums(first):
    folder = Path(first.delivery.folder)
    card, modelfile = (folder / "README.md").read_text(), (folder / "Modelfile").read_text()
    checksums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())

    assert card.startswith("---\nlicense: ")
    assert "# tiny version 1" in card
    assert "## Export" in card
    assert "FROM .\n" in modelfile
    assert 'PARAMETER stop "<|im_end|>"' in modelfile
    assert "PARAMETER temperature 0" in modelfile
    assert set(checksums) == {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert all(hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha for name, sha in checksums.items())


def test_an_export_is_cached_by_content_but_locate_and_publish_always_run(first, export):
    assert executed_steps(first) == {"locate", "export", "publish"}
    assert executed_steps(export()) == {"locate", "publish"}
    assert executed_steps(export(parameters={"num_ctx": 1024})) == {"locate", "export", "publish"}


def test_rounding_and_sharding_report_the_kl_divergence(export):
    outcome = export(dtype="bfloat16", max_shard_size="50KB", parameters={"num_ctx": 512, "temperature": 0.7})

    folder = Path(outcome.delivery.folder)
    assert outcome.delivery.facts["dtype"] == "bfloat16"
    assert 0 < outcome.delivery.facts["kl"] < 1e-2
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    text = (folder / "Modelfile").read_text()
    assert "PARAMETER num_ctx 512" in text
    assert "PARAMETER temperature 0.7" in text
    assert AutoModelForCausalLM.from_pretrained(folder).dtype.is_floating_point


def test_an_adapter_is_merged_into_its_base_model_and_compared(project, run, trained_run, export):
    from zenml.client import Client

    adapter = Client().get_pipeline_run(trained_run.run_name).steps["train"].outputs["sft_checkpoint"][0].uri
    outcome = export(model={"type": "directory", "path": "model"}, adapters=[f"{adapter}/files"])

    assert outcome.delivery.facts["weights"] == "merged"
    assert outcome.delivery.facts["kl"] < 1e-4
    exported = AutoModelForCausalLM.from_pretrained(outcome.delivery.folder).state_dict()
    registered = AutoModelForCausalLM.from_pretrained(trained_run.model_folder).state_dict()
    assert all((exported[name] - registered[name]).abs().max() < 1e-6 for name in registered)


def test_a_push_is_recorded_in_zenml_and_mlflow(first, export, hub):
    from zenml.client import Client

    push = {"repo_id": "tester/tiny"}
    outcome = export(push=push)
    again = export(push=push)

    repository = hub.repositories["tester/tiny"]
    folder = Path(outcome.delivery.folder)
    assert repository.branches["main"] == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert executed_steps(again) == {"locate", "publish"}, "a push is never cached"
    assert outcome.delivery.commit == repository.commits[0][0]
    assert repository.commits[0][1].startswith("tiny version 1, content ")
    tags = mlflow_run(outcome).data.tags
    assert tags["tuneline.push.commit"] == outcome.delivery.commit
    metadata = Client().get_pipeline_run(outcome.run_name).steps["publish"].run_metadata
    assert metadata["url"] == outcome.delivery.url
    stored = json.dumps([tags, dict(metadata)], default=str)
    assert fake_hub.TOKEN not in stored


def test_a_rejected_token_stops_the_export_before_any_work(export, hub):
    hub.fail["GET /api/whoami-v2"] = 401, "Invalid"

    with pytest.raises(TunelineError, match="rejects your token"):
        export(push={"repo_id": "tester/tiny"}, parameters={"seed": 7})


def test_modified_files_and_other_folders_are_not_overwritten(export, project):
    outcome = export(to="out")
    assert outcome.delivery.to == str(project / "out")
    export(to="out", parameters={"num_ctx": 256})
    assert "num_ctx 256" in (project / "out" / "Modelfile").read_text()

    (project / "out" / "Modelfile").write_text("mine")
    with pytest.raises(TunelineError, match=r"to: .*out/Modelfile was modified after its export"):
        export(to="out")
    with pytest.raises(TunelineError, match=r"to: .*data contains .* and is not an export"):
        export(to="data")


def test_the_command_accepts_names_and_folders(first, project):
    result = CliRunner().invoke(app, ["export", "tiny@1", "--to", "by_name"])

    assert result.exit_code == 0, result.output
    assert "conversations give the" in result.stdout
    assert (project / "by_name" / "Modelfile").is_file()
    assert CliRunner().invoke(app, ["export", "model", "--to", "by_folder"]).exit_code == 0
    assert "Nothing else was recorded: training method" in (project / "by_folder" / "README.md").read_text()
    for arguments, message in (
        (["tiny@7"], "Unknown version of tiny '7'"),
        (["run.yaml"], "tuneline run run.yaml"),
        (["no such/thing at all"], "is neither a folder"),
        (["tiny", "--public"], "Add --push owner/name"),
    ):
        assert message in str(CliRunner().invoke(app, ["export", *arguments]).exception)


def test_a_version_with_changed_bytes_is_not_exported(trained_run, export):
    template = trained_run.model_folder / "chat_template.jinja"
    content = template.read_bytes()
    template.write_bytes(content + b" ")
    try:
        with pytest.raises(TunelineError, match="chat_template.jinja has the sha256"):
            export()
    finally:
        template.write_bytes(content)


def test_a_model_without_a_merged_form_is_refused(run, export):
    outcome = run(method={"type": "prompt", "num_virtual_tokens": 4}, tokenize={"max_length": 256, "packing": False})

    with pytest.raises(TunelineError, match="contains an adapter next to its base model"):
        export(model={"type": "registered", "name": "tiny", "version": outcome.decision.version})
    with pytest.raises(TunelineError, match="No run 'nothing' with a model was found"):
        export(model={"type": "run", "name": "nothing"})


def test_a_run_is_exported_by_its_name(trained_run, export):
    outcome = export(model={"type": "run", "name": trained_run.run_name})

    assert outcome.delivery.facts["weights"] == "unchanged"
    assert mlflow_run(outcome).data.params["model.version"] == "1"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapters": ["x"]}, "adapters: not supported for model.type registered"),
        ({"template": "chatml"}, "template: not supported for model.type registered, which keeps the chat template"),
        ({"parameters": {"temprature": 1}}, "Did you mean 'temperature'"),
        ({"push": {"repo_id": "nobody"}}, "push.repo_id"),
        ({"max_shard_size": "5 gigs"}, "max_shard_size"),
        ({"too": "out"}, "too: unknown key. Did you mean 'to'"),
    ],
)
def test_an_invalid_recipe_is_an_error(export, changes, message):
    with pytest.raises(TunelineError, match=message):
        export(**changes)

"""LlamaFactory's dataset_info.json becomes a dataset registry; unusable entries are reported."""

import json
import os
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from tuneline.cli import app as commands
from tuneline.cli import main as cli
from tuneline.config.datasets import dataset_registry, llamafactory_dataset_info
from tuneline.errors import RecipeError

DATA = os.environ.get("TUNELINE_TEST_DATA")
needs_data = pytest.mark.skipif(not DATA, reason="TUNELINE_TEST_DATA names no folder of test data")


def write_registry(tmp_path, content) -> Path:
    path = tmp_path / "dataset_info.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=2))
    return path


def translate_entry(tmp_path, **entry):
    return llamafactory_dataset_info.read(write_registry(tmp_path, {"one": {"hf_hub_url": "a/b", **entry}})).entries[
        "one"
    ]


def translation_notes(tmp_path, **entry):
    return "; ".join(
        llamafactory_dataset_info.read(write_registry(tmp_path, {"one": {"hf_hub_url": "a/b", **entry}})).notes["one"]
    )


def error_message(tmp_path, content) -> list[str]:
    path = write_registry(tmp_path, content)
    with pytest.raises(RecipeError) as caught:
        llamafactory_dataset_info.read(path)
    return [line.removeprefix(f"{path}:") for line in str(caught.value).splitlines()]


@pytest.fixture(scope="module")
def registry():
    return llamafactory_dataset_info.read(Path(DATA, "llamafactory", "dataset_info.json"))


@needs_data
def test_every_text_entry_of_the_real_registry_is_imported_and_the_rest_is_reported(registry):
    everything = json.loads(Path(DATA, "llamafactory", "dataset_info.json").read_text())
    media = {
        name for name, entry in everything.items() if {"images", "videos", "audios"} & set(entry.get("columns", {}))
    }

    assert set(registry.left_out) == media | {"deepctrl"}
    assert set(registry.entries) == set(everything) - set(registry.left_out)
    assert registry.left_out["mllm_video_audio_demo"] == "has videos and audios; only text is supported"
    assert registry.left_out["deepctrl"].startswith("is on ModelScope only")


@needs_data
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("glaive_toolcall_en", {"hub": "llamafactory/glaive_toolcall_en", "format": "sharegpt"}),
        (
            "openorca",
            {
                "hub": "Open-Orca/OpenOrca",
                "format": "alpaca",
                "columns": {"instruction": "question", "output": "response", "system": "system_prompt"},
            },
        ),
        (
            "dpo_mix_en",
            {
                "hub": "llamafactory/DPO-En-Zh-20k",
                "subset": "en",
                "format": "preference",
                "columns": {"messages": "conversations"},
            },
        ),
        (
            "ultrafeedback_kto",
            {
                "hub": "argilla/ultrafeedback-binarized-preferences-cleaned-kto",
                "format": "kto",
                "columns": {"instruction": "prompt", "output": "completion"},
            },
        ),
        (
            "refinedweb",
            {"hub": "tiiuae/falcon-refinedweb", "format": "text", "columns": {"text": "content"}},
        ),
        (
            "starcoder_python",
            {"hub": "bigcode/starcoderdata", "folder": "python", "format": "text", "columns": {"text": "content"}},
        ),
    ],
)
def test_an_entry_of_the_real_registry_is_translated(registry, name, expected):
    assert registry.entries[name] == expected


@needs_data
def test_files_of_the_real_registry_are_found_next_to_it(registry):
    assert Path(registry.entries["dpo_en_demo"]["path"]).is_file()
    assert registry.entries["kto_en_demo"]["format"] == "kto"
    assert registry.entries["wiki_demo"]["format"] == "text"


@needs_data
def test_the_shipped_registry_agrees_with_the_real_one(registry):
    entries = dataset_registry.read(Path("configs/datasets.yaml")).entries
    hub = {name: entry["hub"] for name, entry in registry.entries.items() if "hub" in entry}

    assert set(hub) - set(entries) == {"redpajama_v2"}
    assert {name: entry["hub"] for name, entry in entries.items()} == {name: hub[name] for name in entries}


def test_a_number_of_samples_becomes_a_random_sample(tmp_path):
    description = translate_entry(tmp_path, num_samples=500, split="validation", subset="en")

    assert description == {
        "hub": "a/b",
        "subset": "en",
        "split": "validation",
        "format": "alpaca",
        "max_rows": 500,
        "sample": "random",
    }


def test_every_column_and_tag_is_translated(tmp_path):
    chat = {"messages": "turns", "system": "persona", "tools": "functions", "chosen": "good", "rejected": "bad"}
    tags = {"role_tag": "who", "content_tag": "what", "user_tag": "U", "assistant_tag": "A"}
    more = {"observation_tag": "O", "function_tag": "F", "system_tag": "S"}
    rounds = {"prompt": "q", "query": "about", "response": "a", "history": "before", "kto_tag": "ok"}

    description = translate_entry(tmp_path, formatting="openai", ranking=True, columns=chat, tags=tags | more)
    assert description["format"] == "preference"
    assert description["columns"] == {
        "messages": "turns",
        "system": "persona",
        "tools": "functions",
        "chosen": "good",
        "rejected": "bad",
    }
    assert description["tags"] == {
        "role": "who",
        "content": "what",
        "user": "U",
        "assistant": "A",
        "tool": "O",
        "function": "F",
        "system": "S",
    }
    assert translate_entry(tmp_path, columns=rounds)["columns"] == {
        "instruction": "q",
        "input": "about",
        "output": "a",
        "history": "before",
        "label": "ok",
    }


def test_every_known_column_and_tag_is_translated_or_is_media():
    assert set(llamafactory_dataset_info.EntryColumns.model_fields) == {
        *llamafactory_dataset_info.COLUMNS,
        *llamafactory_dataset_info.MEDIA_COLUMNS,
    }
    assert set(llamafactory_dataset_info.EntryTags.model_fields) == set(llamafactory_dataset_info.TAGS)


def test_openai_rows_keep_their_format_and_an_empty_column_counts_as_none(tmp_path):
    assert translate_entry(tmp_path, formatting="openai", columns={"messages": "messages"}) == {
        "hub": "a/b",
        "format": "openai",
    }
    assert translate_entry(tmp_path, columns={"prompt": "body", "query": ""})["format"] == "text"


def test_dropped_keys_are_noted(tmp_path):
    assert translation_notes(tmp_path, ms_hub_url="c/d", file_name="x.json") == "dropped: ms_hub_url, file_name"
    assert "columns chosen: not used" in translation_notes(
        tmp_path, columns={"prompt": "q", "response": "a", "chosen": "c"}
    )
    assert "columns prompt: not used for formatting sharegpt" in translation_notes(
        tmp_path, formatting="sharegpt", columns={"prompt": "q"}
    )
    assert "tags: not used for formatting alpaca" in translation_notes(tmp_path, tags={"role_tag": "role"})
    assert "does not set chosen and rejected" in translation_notes(tmp_path, ranking=True)
    assert (
        translation_notes(tmp_path, hf_hub_url=None, file_name="no.json", split="test")
        == "no.json does not exist; dropped: split"
    )


def test_a_file_or_a_folder_is_relative_to_the_json(tmp_path):
    (tmp_path / "parts").mkdir()
    result = llamafactory_dataset_info.read(write_registry(tmp_path, {"one": {"file_name": "parts"}}))

    assert result.entries["one"] == {"path": str(tmp_path / "parts"), "format": "alpaca"}
    assert result.notes["one"] == []


@pytest.mark.parametrize(
    ("location", "reason"),
    [
        ({"ms_hub_url": "a/b"}, "is on ModelScope only"),
        ({"om_hub_url": "a/b"}, "is on Modelers only"),
        ({"script_url": "a"}, "is a loading script"),
        ({"cloud_file_name": "s3://a"}, "is in a cloud bucket"),
    ],
)
def test_an_unsupported_location_is_skipped_with_its_reason(tmp_path, location, reason):
    result = llamafactory_dataset_info.read(
        write_registry(tmp_path, {"one": location, "two": {"hf_hub_url": "a/b", **location}})
    )

    assert result.left_out["one"].startswith(reason)
    assert list(result.entries) == ["two"]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"format": "sharegpt"}, "one.format: unknown key. Did you mean 'formatting'?"),
        ({"column": {"prompt": "q"}}, "one.column: unknown key. Did you mean 'columns'?"),
        ({"columns": {"promt": "q"}}, "one.columns.promt: unknown key. Did you mean 'prompt'?"),
        ({"tags": {"user": "q"}}, "one.tags.user: unknown key. Did you mean 'user_tag'?"),
        ({"formatting": "sharegtp"}, "one.formatting: unknown formatting 'sharegtp'. Did you mean 'sharegpt'?"),
        ({"columns": ["q"]}, "one.columns: expected a mapping, got ['q']."),
        ({"num_samples": -5}, "one.num_samples: Input should be greater than or equal to 1, got -5."),
        ({"hf_hub_url": "https://huggingface.co/datasets/a/b"}, "one.hf_hub_url: String should match pattern"),
    ],
)
def test_an_error_in_an_entry_is_reported_with_its_line(tmp_path, entry, message):
    (line,) = error_message(tmp_path, {"zero": {"hf_hub_url": "a/b"}, "one": {"hf_hub_url": "a/b", **entry}})

    number, _, message_text = line.partition(": ")
    assert message_text.startswith(message)
    text = (tmp_path / "dataset_info.json").read_text().splitlines()
    assert f'"{message.split(":")[0].split(".")[-1]}"' in text[int(number) - 1]


def test_an_entry_without_a_location_is_reported(tmp_path):
    (line,) = error_message(tmp_path, {"one": {"formatting": "alpaca"}})

    assert line == "2: one: has no location. Add file_name (a file in this folder) or hf_hub_url."


def test_all_errors_of_a_file_are_reported_at_once(tmp_path):
    assert len(error_message(tmp_path, {"one": {"format": "x", "column": {}}, "two": {}, "three": 3})) == 4


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{\n  "one": {"file_name": "a.json"},\n}', "3: not valid JSON: "),
        ('{\n"one": {"file_name": "a.json"}\n"two": {}}', "3: not valid JSON: expecting ',' delimiter at column 1."),
        ("[]", "1: expected a mapping, got list. Pass LlamaFactory's dataset_info.json."),
        (
            '{\n\t"one": {"file_name": "a"},\n\t"one": {"file_name": "b"}\n}',
            "3: one: is a duplicate key (first in line 2)",
        ),
    ],
)
def test_an_invalid_registry_file_is_reported_with_its_line(tmp_path, text, message):
    (line,) = error_message(tmp_path, text)

    assert line.startswith(message)


def run(*arguments):
    return CliRunner().invoke(commands.app, ["data", *map(str, arguments)])


def test_import_writes_a_file_that_reads_back_the_same_from_another_folder(tmp_path):
    (tmp_path / "a.json").write_text("[]")
    entries = {"one": {"file_name": "a.json"}, "no": {"hf_hub_url": "a/b", "ranking": True}, "pic": {"file_name": "p"}}
    entries["pic"]["columns"] = {"images": "images"}
    source, target = write_registry(tmp_path, entries), tmp_path / "deep" / "datasets.yaml"

    result = run("import", source, "--output", target)

    assert result.exit_code == 0, result.output
    assert "skipped: has images" in " ".join(result.stdout.split())
    assert "Wrote 2 entries" in result.stdout
    assert dataset_registry.read(target).entries == dataset_registry.from_dataset_info(source).entries
    assert yaml.safe_load(target.read_text())["one"]["path"] == "../a.json"
    assert target.read_text().endswith("# Skipped:\n#   pic: has images; only text is supported.\n")


def test_import_replaces_a_file_only_with_force(tmp_path):
    source, target = write_registry(tmp_path, {"one": {"hf_hub_url": "a/b"}}), tmp_path / "datasets.yaml"
    target.write_text("mine: {path: x.json}\n")

    error_message = run("import", source, "--output", target)
    assert "already exists" in str(error_message.exception)
    assert target.read_text() == "mine: {path: x.json}\n"
    assert run("import", source, "--output", target, "--force").exit_code == 0
    assert list(yaml.safe_load(target.read_text())) == ["one"]


def test_import_without_entries_writes_no_file(tmp_path):
    source = write_registry(tmp_path, {"one": {"ms_hub_url": "a/b"}})

    assert "one is on ModelScope only" in str(run("import", source, "--output", tmp_path / "out.yaml").exception)
    assert not (tmp_path / "out.yaml").exists()


def test_an_error_ends_the_command_with_its_line_and_code_2(tmp_path, monkeypatch, capsys):
    path = write_registry(tmp_path, {"one": {"format": "alpaca"}})
    monkeypatch.setattr("sys.argv", ["tuneline", "data", "import", str(path)])

    with pytest.raises(SystemExit) as end:
        cli.main()

    assert end.value.code == 2
    assert capsys.readouterr().err.startswith(f"{path}:3: one.format: unknown key.")


def test_list_shows_registry_entries_of_either_kind_as_json(tmp_path):
    source = write_registry(tmp_path, {"one": {"hf_hub_url": "a/b", "subset": "en", "num_samples": 3}})

    (row,) = json.loads(run("list", source, "--json").stdout)

    assert (row["name"], row["place"], row["max_rows"]) == ("one", "a/b · en", 3)
    assert "a/b · en" in run("list", source).stdout

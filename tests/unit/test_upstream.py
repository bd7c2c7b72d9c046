"""Canaries: faults of the libraries below us as strict expected failures; one that passes frees its work-around."""

import pytest
import torch
import yaml

fault = pytest.mark.xfail(strict=True, reason="docs/upstream.md")


@fault
def test_zenml_refuses_unknown_keys():
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    with pytest.raises(ValueError, match="paramters"):
        PipelineRunConfiguration.model_validate(yaml.safe_load("paramters: {}"))


@fault
def test_zenmls_local_orchestrator_takes_schedules():
    from zenml.orchestrators.local.local_orchestrator import LocalOrchestratorConfig

    assert LocalOrchestratorConfig().is_schedulable


@fault
def test_the_trainer_shows_a_loss_that_is_no_number():
    from transformers import TrainingArguments

    assert not TrainingArguments(output_dir="unused", use_cpu=True).logging_nan_inf_filter


@fault
def test_a_mask_of_ones_keeps_packed_examples_apart(tiny_model):
    from tuneline.model import attention
    from tuneline.model.load import load_model

    model = load_model(tiny_model)
    ids = torch.arange(10, 20)
    alone = torch.cat([model(input_ids=part[None], use_cache=False).logits[0] for part in ids.split([4, 6])])
    inputs = attention.packed_inputs([4, 6]) | {"attention_mask": torch.ones(1, 10, dtype=torch.long)}

    torch.testing.assert_close(model(input_ids=ids[None], **inputs).logits[0], alone, rtol=1e-3, atol=1e-4)

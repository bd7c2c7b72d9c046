"""Training arguments have the names and options of transformers."""

import inspect
from typing import get_args

import pytest
from pydantic import ValidationError

from tuneline.config.training.base import REQUIRED_SCHEDULER_KWARGS, SCHEDULER_KWARGS, LRSchedulerType, SFTConfig

OF_EVERY_SCHEDULE = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}
KWARGS = {
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1},
    "warmup_stable_decay": {"num_decay_steps": 2},
}
FOLLOW_A_SCORE = {"reduce_lr_on_plateau", "greedy"}
"""Schedules that require evaluations during training."""


def test_every_schedule_of_transformers_is_known_or_needs_an_evaluation():
    from transformers import SchedulerType

    assert {kind.value for kind in SchedulerType} == set(get_args(LRSchedulerType)) | FOLLOW_A_SCORE


@pytest.mark.parametrize("name", get_args(LRSchedulerType))
def test_a_schedule_has_the_arguments_of_transformers(name):
    from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION

    parameters = set(inspect.signature(TYPE_TO_SCHEDULER_FUNCTION[name]).parameters) - OF_EVERY_SCHEDULE

    assert parameters == set(SCHEDULER_KWARGS.get(name, ()))


@pytest.mark.parametrize("name", get_args(LRSchedulerType))
def test_every_schedule_gives_a_learning_rate(name):
    import torch
    from transformers import get_scheduler

    config = SFTConfig(lr_scheduler_type=name, lr_scheduler_kwargs=KWARGS.get(name, {}), warmup_steps=2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=config.learning_rate)
    schedule = get_scheduler(name, optimizer, 2, 8, dict(config.lr_scheduler_kwargs))
    rates = []
    for _ in range(8):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])

    assert max(rates) == pytest.approx(config.learning_rate)
    assert all(rate >= 0 for rate in rates)


def test_a_kwarg_of_another_schedule_is_refused_with_the_closest_match():
    with pytest.raises(
        ValidationError, match=r"cosine_with_min_lr does not accept 'min_lr_ratio'. Did you mean 'min_lr_rate'"
    ):
        SFTConfig(lr_scheduler_type="cosine_with_min_lr", lr_scheduler_kwargs={"min_lr_ratio": 0.1})


@pytest.mark.parametrize("name", sorted(REQUIRED_SCHEDULER_KWARGS))
def test_a_missing_schedule_argument_is_reported(name):
    with pytest.raises(ValidationError, match=f"{name} requires"):
        SFTConfig(lr_scheduler_type=name)

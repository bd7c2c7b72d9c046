"""Objectives of training: one class per objective, with one interface for training and validation rows."""

from tuneline.train.objectives import kto, likelihood, preference, reward
from tuneline.train.objectives.base import Objective, build_objective, objectives

__all__ = ["Objective", "build_objective", "kto", "likelihood", "objectives", "preference", "reward"]

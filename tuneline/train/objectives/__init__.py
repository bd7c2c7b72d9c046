"""What a training minimises: one class an objective, one interface for training and for held-out rows."""

from tuneline.train.objectives import kto, likelihood, preference, reward
from tuneline.train.objectives.base import Objective, build_objective, objectives

__all__ = ["Objective", "kto", "likelihood", "objective_of", "objectives", "preference", "reward"]

"""Optimizers and learning-rate schedules: what the words of these groups of the configuration mean."""

from pspexp.optim.optimizers import adam, adamw, sgd
from pspexp.optim.schedules import constant, cosine, poly, step

__all__ = ["adam", "adamw", "constant", "cosine", "poly", "sgd", "step"]

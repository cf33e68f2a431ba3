"""Densities of normal features: a Gaussian mixture that follows them, and its contrast to everything else."""

from adcore.density.contrast import (
    Outliers,
    misclassified,
    negative_gradient,
    negative_loss,
    passing,
    positive_gradient,
    positive_loss,
)
from adcore.density.mixture import Mixture

__all__ = ["Mixture", "Outliers", "misclassified", "negative_gradient", "negative_loss", "passing", "positive_gradient",
           "positive_loss"]

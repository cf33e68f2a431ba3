"""Densities of normal features: a Gaussian mixture that follows them, and its contrast to everything else; a Gaussian for
every position, or one for all, and the map of pixels that its scores make."""

from adcore.density.contrast import (
    Outliers,
    misclassified,
    negative_gradient,
    negative_loss,
    passing,
    positive_gradient,
    positive_loss,
)
from adcore.density.gaussian import GaussianDensity
from adcore.density.mixture import Mixture
from adcore.density.upsampling import receptive_upsample

__all__ = ["GaussianDensity", "Mixture", "Outliers", "misclassified", "negative_gradient", "negative_loss", "passing",
           "positive_gradient", "positive_loss", "receptive_upsample"]

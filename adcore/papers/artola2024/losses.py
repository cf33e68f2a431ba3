"""Losses between normal features and natural images: a mixture, a uniform outlier component, Eqs. (1)-(13), the filter.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement Sec. 2.

    paper         code            shape      meaning
    alpha         alpha           scalar     prior of the outlier component
    log L         log_volume      scalar     volume of the box in which outliers are uniform; L itself would overflow
    log GMM(u)    log_density     (...)      from `mixture.Mixture`
    log odds      logit           (...)      log P(z = + | u) - log P(z = - | u)
    L_pos         positive_loss   (...)      Eqs. (1), (2)
    L_neg         negative_loss   (...)      Eqs. (3), (4)
    h(u)          h               (..., d)   direction to the mixture, Eqs. (14)-(16), from `mixture.Mixture.direction`

    logit  =  log (1 - alpha) + log GMM(u) - log alpha + log L
    P(z = + | u) = sigmoid(logit),    P(z = - | u) = sigmoid(-logit)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adcore.errors import ParameterError


@dataclass(frozen=True)
class Outliers:
    """The uniform outlier component.

    log_volume  log L. In d dimensions L is too large for floating point, its logarithm is not.
    alpha       prior probability of an outlier

    As in the paper's equations, the density is constant everywhere, also outside the box of volume L.

    Raises:
        ParameterError: alpha outside (0, 1), or a log L that is not finite.
    """

    log_volume: float
    alpha: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ParameterError(f"alpha {self.alpha}, the prior of an outlier, must be between 0 and 1")
        if not math.isfinite(self.log_volume):
            raise ParameterError(f"log L is {self.log_volume}: it must be finite")

    @classmethod
    def around(cls, points: Tensor, alpha: float = 0.5) -> Outliers:
        """Uniform over the smallest box that holds the points (n, d): log L = sum_d log(range_d).

        Raises:
            ParameterError: a dimension in which all points are equal, or NaN among them.
        """
        ranges = points.detach().double().amax(0) - points.detach().double().amin(0)                  # (d,)
        if not ranges.isfinite().all():
            raise ParameterError("the outliers' box cannot be computed: some features are NaN or infinite")
        flat = (ranges == 0).nonzero().flatten().tolist()
        if flat:
            raise ParameterError(f"the outliers' box has no volume: all {len(points)} features are equal in dimension {flat[0]}"
                                 f"{f' and {len(flat) - 1} more' if len(flat) > 1 else ''}; drop it or give log_volume")
        return cls(float(ranges.log().sum()), alpha)

    def logit(self, log_density: Tensor) -> Tensor:
        """log P(z = + | u) - log P(z = - | u) from log GMM(u), element by element."""
        return log_density + (math.log1p(-self.alpha) - math.log(self.alpha) + self.log_volume)


def positive_loss(logit: Tensor) -> Tensor:
    """L_pos = -log P(z = + | u+), Eqs. (1) and (2), of each normal feature; any shape."""
    # torch's softplus(-logit) is the same function but switches to a linear one above 20, which is off by 2e-9.
    return -F.logsigmoid(logit)


def negative_loss(logit: Tensor) -> Tensor:
    """L_neg = -log P(z = - | u-), Eqs. (3) and (4), of each negative; any shape."""
    return -F.logsigmoid(-logit)


def misclassified(logit: Tensor, positive: bool) -> Tensor:
    """Probability of the wrong class, the weight of a feature's gradient in Eqs. (9) and (13); any shape.

    P(z = - | u) of a positive, P(z = + | u) of a negative.
    """
    return torch.sigmoid(-logit if positive else logit)


def positive_gradient(h: Tensor, logit: Tensor) -> Tensor:
    """dL_pos/du = -h(u) P(z = - | u), Eq. (9): (..., d), (...) -> (..., d). Descent moves u along h, towards the mixture."""
    return -h * misclassified(logit, positive=True)[..., None]


def negative_gradient(h: Tensor, logit: Tensor) -> Tensor:
    """dL_neg/du = h(u) P(z = + | u), Eq. (13): (..., d), (...) -> (..., d). Descent moves u against h, off the mixture."""
    return h * misclassified(logit, positive=False)[..., None]


def outlier_filter(logit: Tensor, fraction: float = 0.1) -> Tensor:
    """Which negatives of a batch send a gradient (outlier filter, Sec. 2, last paragraph): logits (n,) -> (n,) bool.

    Those outside the mixture, where P(z = - | u) > 1/2. If they are fewer than `fraction` of the batch, then the `fraction`
    with the lowest likelihood (n * fraction, rounded up; among equals the first). The paper says "outliers outside the GMM (or
    the 10% most outside)" and does not say which rule applies when; this is our reading.

    Raises:
        ParameterError: NaN among the logits, or a fraction outside (0, 1].
    """
    if not 0 < fraction <= 1:
        raise ParameterError(f"the outlier filter's fraction {fraction} must be above 0 and at most 1")
    logit = logit.detach()
    if logit.isnan().any():
        raise ParameterError(f"{int(logit.isnan().sum())} of {len(logit)} logits for the outlier filter are NaN")
    outside = logit < 0
    fewest = math.ceil(fraction * len(logit) - 1e-9)  # 0.07 * 100 is above 7 in floating point
    if int(outside.sum()) >= fewest:
        return outside
    lowest = logit.argsort(stable=True)[:fewest]
    return torch.zeros_like(outside).index_fill_(0, lowest, True)

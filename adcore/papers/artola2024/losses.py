"""Normal features against everything else: a mixture, a uniform outlier component, and the losses between them.

Artola et al., "Model-guided Contrastive Fine-tuning for Industrial Anomaly Detection", CVPR Workshops 2024, supplement Sec. 2.

    paper            code           meaning
    alpha            alpha          prior of the outlier component
    1 / L            -log_volume    its density, uniform over a box of volume L; only log L is ever formed
    P(z = + | u)     sigmoid(logit)
    P(z = - | u)     sigmoid(-logit)

    logit  =  log (1 - alpha) + log GMM(u) - log alpha + log L
    L_pos  =  -log P(z = + | u+)  =  softplus(-logit)            (1), (2)
    L_neg  =  -log P(z = - | u-)  =  softplus(logit)             (3), (4)
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
    """The uniform component.

    log_volume  log L. In d dimensions L is far beyond floating point, its logarithm is not.
    alpha       prior probability of an outlier

    As in the paper's equations its density is the same everywhere: it does not end at the box that gave it its volume.

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
            raise ParameterError("the outliers' box cannot be drawn around features that hold NaN or infinity")
        flat = (ranges == 0).nonzero().flatten().tolist()
        if flat:
            raise ParameterError(f"the outliers' box has no volume: all {len(points)} features are equal in dimension {flat[0]}"
                                 f"{f' and {len(flat) - 1} more' if len(flat) > 1 else ''}; drop it or give log_volume")
        return cls(float(ranges.log().sum()), alpha)

    def logit(self, log_density: Tensor) -> Tensor:
        """log P(+|u) - log P(-|u) from log GMM(u); any shape, the same one back."""
        return log_density + (math.log1p(-self.alpha) - math.log(self.alpha) + self.log_volume)


def positive_loss(logit: Tensor) -> Tensor:
    """L_pos, Eq. (2), of each normal feature; any shape.

    By logsigmoid, whose value and gradient keep all digits: torch's softplus cuts off at 20, which is 2e-9 off.
    """
    return -F.logsigmoid(logit)


def negative_loss(logit: Tensor) -> Tensor:
    """L_neg, Eq. (4), of each outlier; any shape."""
    return -F.logsigmoid(-logit)


def misclassified(logit: Tensor, positive: bool) -> Tensor:
    """The probability of the wrong class, by which each feature's gradient is weighted: P(-|u) of a positive, P(+|u) of a
    negative; any shape."""
    return torch.sigmoid(-logit if positive else logit)


def positive_gradient(h: Tensor, logit: Tensor) -> Tensor:
    """dL_pos/du = -h(u) P(-|u), Eq. (9): (..., d), (...) -> (..., d). Descent goes along h, towards the mixture."""
    return -h * misclassified(logit, positive=True)[..., None]


def negative_gradient(h: Tensor, logit: Tensor) -> Tensor:
    """dL_neg/du = h(u) P(+|u), Eq. (13): (..., d), (...) -> (..., d). Descent goes against h, away from the mixture."""
    return h * misclassified(logit, positive=False)[..., None]


def passing(logit: Tensor, share: float = 0.1) -> Tensor:
    """Which negatives of a batch send a gradient (outlier filter): (n,) logits -> (n,) bool.

    Those outside the mixture, where P(-|u) > 1/2. If they are fewer than `share` of the batch: the `share` farthest outside,
    that is, of lowest likelihood (n * share, rounded up; of equals the first). The paper says "outliers outside the GMM (or the
    10% most outside)" and not when which holds; this is our reading.

    Raises:
        ParameterError: NaN among the logits, or a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ParameterError(f"the outlier filter's share {share} must be above 0 and at most 1")
    logit = logit.detach()
    if logit.isnan().any():
        raise ParameterError(f"{int(logit.isnan().sum())} of {len(logit)} logits for the outlier filter are NaN")
    outside = logit < 0
    fewest = math.ceil(share * len(logit) - 1e-9)  # 0.07 * 100 is above 7
    if int(outside.sum()) >= fewest:
        return outside
    lowest = logit.argsort(stable=True)[:fewest]
    return torch.zeros_like(outside).index_fill_(0, lowest, True)

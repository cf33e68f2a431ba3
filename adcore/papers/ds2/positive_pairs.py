"""Positive pairs: the positions of two views that should have similar features (dual positive-pair selection).

He et al. (DS2), supplement Sec. 2 (the positive-pair distance threshold delta) and the published code.

    geometric  the distance between two bin centers in the image is less than delta times the diagonal of the larger bin
    feature    the k pairs of an image with the largest product of features

A bin is the part of a view that belongs to one position of the feature map. A pair (i, j) is position i of the query's view and
position j of the key's view, both counted row by row. Masks M_ij are (B, N, N) bool. Boxes are those of `views.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.training import full_precision

PAIRS = ("geometric", "feature", "both")


def bin_centers(boxes: Tensor, h: int, w: int) -> Tensor:
    """Centers of the h x w bins of each view, as (x, y) in the image: boxes (B, 4) -> (B, h * w, 2).

    In a flipped view bins have a negative width, so x decreases from left to right.
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    x = x0[:, None] + (torch.arange(w).to(boxes) + 0.5) * ((x1 - x0) / w)[:, None]        # (B, w)
    y = y0[:, None] + (torch.arange(h).to(boxes) + 0.5) * ((y1 - y0) / h)[:, None]        # (B, h)
    shape = (len(boxes), h, w)
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3).flatten(1, 2)


def geometric_pairs(query_boxes: Tensor, key_boxes: Tensor, grid: tuple[int, int], delta: float = 0.1) -> Tensor:
    """Pairs of bin centers closer than delta: boxes (B, 4), (B, 4), grid of a view (h, w) -> (B, h * w, h * w) bool.

    The unit is the diagonal of a bin, in the view with the larger bins. The paper's 0.1 covers only the middle of such a bin;
    several small bins of the other view may lie there.
    """
    h, w = grid
    diagonal = torch.stack([torch.hypot((boxes[:, 2] - boxes[:, 0]) / w, (boxes[:, 3] - boxes[:, 1]) / h)
                            for boxes in (query_boxes, key_boxes)]).amax(0)                # (B,)
    query, key = bin_centers(query_boxes, h, w), bin_centers(key_boxes, h, w)
    distance = torch.hypot(*(query[:, :, None] - key[:, None]).unbind(3))                  # (B, N, N)
    return distance < delta * diagonal[:, None, None]


@torch.no_grad()
@full_precision
def top_pairs(query_features: Tensor, key_features: Tensor, k: int = 1) -> Tensor:
    """The k pairs of each image whose features have the largest product: (B, C, h, w), (B, C, h', w') -> (B, N, M) bool.

    Features are not normalized, so a product is large where both features are strong.

    Raises:
        ParameterError: k is not between 1 and all pairs.
    """
    similarity = query_features.flatten(2).mT @ key_features.flatten(2) / query_features.shape[1]      # (B, N, M)
    if not 1 <= k <= similarity[0].numel():
        raise ParameterError(f"top_k={k} is not between 1 and the {similarity[0].numel()} pairs of an image")
    flat = similarity.flatten(1)
    return torch.zeros_like(flat, dtype=torch.bool).scatter_(1, flat.topk(k, 1).indices, True).view_as(similarity)


def positive_pairs(query_boxes: Tensor, key_boxes: Tensor, query_features: Tensor, key_features: Tensor, *,
                   pairs: str = "both", delta: float = 0.1, top_k: int = 1) -> Tensor:
    """Dual positive-pair selection: boxes (B, 4) and features (B, C, h, w) of query and key -> mask M_ij (B, N, N) bool.

    pairs  'geometric', 'feature', or 'both' for the union of the two rules

    Raises:
        ParameterError: an unknown rule; see also `top_pairs`.
    """
    if pairs not in PAIRS:
        raise ParameterError(f"pairs is one of {', '.join(PAIRS)}, not {pairs!r}")
    grid = (query_features.shape[2], query_features.shape[3])
    if pairs == "geometric":
        return geometric_pairs(query_boxes, key_boxes, grid, delta)
    similar = top_pairs(query_features, key_features, top_k)
    return similar if pairs == "feature" else similar | geometric_pairs(query_boxes, key_boxes, grid, delta)

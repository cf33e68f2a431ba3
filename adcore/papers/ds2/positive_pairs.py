"""Which positions of two views show the same thing: dual positive-pair selection.

He et al. (DS2), supplement Sec. 2 and the published code.

    geometric  the middles of both positions, where they lie in the image, are nearer than delta of the larger bin's diagonal
    feature    of all pairs of an image, the k with the largest product of features

A pair is (i, j), position i of the query's view and j of the key's, both counted row by row; masks are (B, N, M) bool.
Boxes are those of `dense_views`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adcore.errors import ParameterError
from adcore.training import full_precision

PAIRS = ("geometric", "feature", "both")


def bin_centers(boxes: Tensor, h: int, w: int) -> Tensor:
    """Middles of the positions of an h x w grid over each view, as (x, y) in the image: (B, 4) -> (B, h * w, 2).

    In a flipped view bins have a negative width, so that x falls from left to right.
    """
    x0, y0, x1, y1 = boxes.unbind(1)
    x = x0[:, None] + (torch.arange(w).to(boxes) + 0.5) * ((x1 - x0) / w)[:, None]        # (B, w)
    y = y0[:, None] + (torch.arange(h).to(boxes) + 0.5) * ((y1 - y0) / h)[:, None]        # (B, h)
    shape = (len(boxes), h, w)
    return torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], 3).flatten(1, 2)


def geometric_pairs(query_boxes: Tensor, key_boxes: Tensor, grid: tuple[int, int], delta: float = 0.1) -> Tensor:
    """Pairs less than delta apart: (B, 4), (B, 4), positions of a view (h, w) -> (B, h * w, h * w) bool.

    The unit is the diagonal of a bin, of the view in which that is larger: of the position that sees more, the paper's 0.1
    reaches its midst only, where several positions of the other view may lie if that is much smaller.
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
    """The k pairs of an image whose features have the largest product: (B, C, h, w), (B, C, h', w') -> (B, N, M) bool.

    Features are taken as they are, not as unit vectors: a product is large where both are strong.

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
    """Pairs by one rule or by either: boxes (B, 4) and features (B, C, h, w) of query and key -> (B, N, N) bool.

    Raises:
        ParameterError: a rule that does not exist; see `top_pairs`.
    """
    if pairs not in PAIRS:
        raise ParameterError(f"pairs is one of {', '.join(PAIRS)}, not {pairs!r}")
    grid = (query_features.shape[2], query_features.shape[3])
    if pairs == "geometric":
        return geometric_pairs(query_boxes, key_boxes, grid, delta)
    similar = top_pairs(query_features, key_features, top_k)
    return similar if pairs == "feature" else similar | geometric_pairs(query_boxes, key_boxes, grid, delta)

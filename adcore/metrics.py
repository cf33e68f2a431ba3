"""AUROC, average precision (AP) and AUPRO, exact: how well scores separate anomalous from normal images and pixels.

    image   labels (n,), scores (n,)                     -> AUROC, AP
    pixel   masks and maps, one (H, W) pair per image    -> AUROC, AP, AUPRO over all pixels of all images together

AUPRO is the area under the per-region-overlap curve (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021,
Sec. 5.2). At each threshold, FPR is the fraction of normal pixels at or above it, and the overlap is the covered fraction of
each connected anomalous region, averaged over the regions of all images. The area up to an FPR limit of 0.3 is divided by 0.3.

All thresholds are used and nothing is binned. Equal scores cross the threshold together, so the curve is a straight line there.
An AUROC below 0.5 is reported as it is, never as 1 - AUROC.

All curves rise only at the V distinct scores of anomalous pixels, which are few. So the normal scores are only sorted, once for
all metrics, and block by block, since the counts below can be added over blocks: maps that are mapped from a file stay there.
For each distinct anomalous score v, `above` normal scores are greater and `equal` ones are tied. With N normal scores every
curve rises at v, from FPR = above / N to FPR = (above + equal) / N. It rises by the fraction of the anomalous pixels with this
score (AUROC, AP), or by the sum of 1 / (number of regions * size of the pixel's region) over these pixels (AUPRO).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from adcore.errors import ParameterError

Array = npt.NDArray[Any]
Maps = Sequence[Any] | Array
"""(B, H, W) as one array or tensor, or a sequence of (H, W), whose sizes may differ from image to image."""

BLOCK = 2**22  # normal scores that are sorted together, or more


@dataclass(frozen=True)
class Scores:
    """AUROC, average precision and, for pixels only, AUPRO; all in [0, 1].

    >>> Scores(auroc=0.9, ap=0.8)
    Scores(auroc=0.9, ap=0.8, aupro=None)
    """

    auroc: float
    ap: float
    aupro: float | None = None


def image_scores(labels: Any, scores: Any) -> Scores:
    """AUROC and AP of one score per image, (n,), against labels 0 (normal) and 1 (anomalous), (n,).

    >>> image_scores([0, 0, 1, 1], [0.1, 0.6, 0.4, 0.9])
    Scores(auroc=0.75, ap=0.8333333333333333, aupro=None)

    Raises:
        ParameterError: shapes that differ or are not (n,), NaN or infinite scores, labels outside {0, 1}, only one class.
    """
    labels, scores = _numpy(labels), _numpy(scores)
    if scores.ndim != 1:
        raise ParameterError(f"image scores are {scores.shape}, expected (n,): one score per image; "
                             f"for anomaly maps use pixel_scores")
    curves = _curves_of(labels, scores)
    return Scores(auroc=curves.auroc(), ap=curves.average_precision())


def pixel_scores(masks: Maps, maps: Maps, *, limit: float = 0.3, connectivity: int = 8) -> Scores:
    """AUROC, AP and AUPRO over all pixels of all images.

    Args:
        masks: 0 normal, 1 anomalous; the mask of an image without anomalies is all zeros.
        maps: anomaly maps of the same sizes, larger where more anomalous.
        limit: FPR up to which AUPRO integrates, in (0, 1].
        connectivity: 8 (diagonal neighbors are connected) or 4.

    >>> mask = np.array([[0, 0, 1], [0, 0, 1]])
    >>> pixel_scores([mask], [np.array([[0.1, 0.2, 0.9], [0.3, 0.4, 0.35]])])
    Scores(auroc=0.875, ap=0.8333333333333333, aupro=0.5833333333333334)

    Raises:
        ParameterError: a mask and a map of different shapes, NaN or infinite values, mask values outside {0, 1},
            no anomalous or no normal pixel, a limit or connectivity out of range.
    """
    _check_limit(limit)
    curves = _pixel_curves(masks, maps, connectivity)
    return Scores(auroc=curves.auroc(), ap=curves.average_precision(), aupro=curves.aupro(limit))


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: how often an anomalous score exceeds a normal one; a tie counts one half.

    Labels and scores may have any shape, the same for both. Raises ParameterError as `image_scores`.

    >>> auroc([0, 0, 1, 1], [1, 2, 2, 3])
    0.875
    """
    return _curves_of(labels, scores).auroc()


def average_precision(labels: Any, scores: Any) -> float:
    """Average precision: the sum over thresholds of (increase of recall) * precision.

    Labels and scores may have any shape, the same for both. Raises ParameterError as `image_scores`.

    >>> average_precision([0, 1, 0, 1], [1, 2, 3, 4])
    0.8333333333333333
    """
    return _curves_of(labels, scores).average_precision()


def aupro(masks: Maps, maps: Maps, limit: float = 0.3, connectivity: int = 8) -> float:
    """Area under the per-region-overlap curve up to FPR `limit`, divided by `limit`. Arguments and errors as `pixel_scores`.

    >>> mask = np.array([[0, 0, 1], [0, 0, 1]])
    >>> aupro([mask], [mask + 0.5]), aupro([mask], [np.zeros((2, 3))], limit=0.5)       # perfect; constant
    (1.0, 0.25)
    """
    _check_limit(limit)
    return _pixel_curves(masks, maps, connectivity).aupro(limit)


@dataclass(frozen=True)
class _Curves:
    """All curves at their V thresholds, the distinct anomalous scores in descending order; they are level between them.

    above   (V,) int64    number of normal scores greater than the threshold
    equal   (V,) int64    number of normal scores equal to it
    count   (V,) int64    number of anomalous scores equal to it: the rise of the curves of AUROC and AP
    rise    (V,) float64  the rise of the curve of AUPRO; the sum is 1. Without regions there is none
    normal                number of all normal scores, N
    """

    above: Array
    equal: Array
    count: Array
    rise: Array | None
    normal: int

    def auroc(self) -> float:
        below = 2 * (self.normal - self.above) - self.equal                   # twice the number of lower normal scores
        return float((self.count * below).sum() / (2 * self.normal * int(self.count.sum())))

    def average_precision(self) -> float:
        found = self.count.cumsum()
        precision = found / (found + self.above + self.equal)
        return float((self.count * precision).sum() / found[-1])

    def aupro(self, limit: float) -> float:
        """Area below the curve of AUPRO from FPR 0 to `limit`, divided by `limit`.

        A rise between FPR start and end lifts the curve to its right, which adds an area of rise * (limit - middle). If it
        crosses the limit, only the fraction (limit - start) / (end - start) of the rise counts, and the area is a triangle.
        """
        start = self.above / self.normal
        end = (self.above + self.equal) / self.normal
        whole = np.where(end <= limit, limit - (start + end) / 2, 0.0)
        crossing = (start < limit) & (end > limit)
        whole[crossing] = (limit - start[crossing]) ** 2 / (2 * (end - start)[crossing])
        return min(float((self.rise * whole).sum()) / limit, 1.0)             # rounding may give a sum above 1


def _curves(normal: Iterable[Array], anomalous: Array, weights: Array | None = None) -> _Curves:
    """The curves of blocks of normal scores, which are sorted in place, and of anomalous scores (P,) with the `weights` (P,) of
    their pixels in AUPRO. Arrays of P or V numbers are what limits it, so none is kept longer than needed."""
    order = anomalous.argsort()
    ranked = anomalous[order]
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))        # first position of each distinct score
    rise = None if weights is None else np.add.reduceat(weights[order], first)[::-1]
    count = np.diff(first, append=ranked.size)[::-1]
    thresholds = ranked[first]
    del order, ranked, first
    above, equal = np.zeros(len(thresholds), np.int64), np.zeros(len(thresholds), np.int64)
    size = 0
    for block in normal:
        block.sort()
        lower = block.searchsorted(thresholds)
        ties = np.flatnonzero(block[np.minimum(lower, block.size - 1)] == thresholds)
        tied = block.searchsorted(thresholds[ties], side="right") - lower[ties]
        above += block.size - lower
        above[ties] -= tied
        equal[ties] += tied
        size += block.size
    return _Curves(above[::-1], equal[::-1], count, rise, size)


def _curves_of(labels: Any, scores: Any) -> _Curves:
    """The curves of labels and scores, which are checked."""
    labels, scores = _numpy(labels), _comparable(_numpy(scores))
    if labels.shape != scores.shape:
        raise ParameterError(f"labels are {labels.shape} and scores {scores.shape}: they must have the same shape")
    labels, scores = labels.ravel(), scores.ravel()
    _check_finite(scores, "scores")
    anomalous = _as_bool(labels, "labels")
    if anomalous.all() or not anomalous.any():
        if not anomalous.size:
            raise ParameterError("there are no scores: AUROC and AP need normal and anomalous ones")
        raise ParameterError(f"all {anomalous.size} labels are {int(anomalous[0])}: AUROC and AP are undefined "
                             f"without both normal (0) and anomalous (1) ones")
    return _curves([scores[~anomalous]], scores[anomalous])


def _pixel_curves(masks: Maps, maps: Maps, connectivity: int) -> _Curves:
    """The curves of all pixels of masks and maps, which are checked."""
    if connectivity not in (4, 8):
        raise ParameterError(f"connectivity is {connectivity!r}: expected 4 or 8")
    if len(masks) != len(maps):
        raise ParameterError(f"{len(masks)} masks for {len(maps)} maps: expected one mask per image")
    anomalous, weights, pixels = _anomalous(_pairs(masks, maps), connectivity)
    if not anomalous.size:
        raise ParameterError(f"no anomalous region in {len(maps)} masks: pixel AUROC, AP and AUPRO are undefined "
                             f"without one")
    if anomalous.size == pixels:
        raise ParameterError(f"no normal pixel in {len(maps)} masks: pixel AUROC, AP and AUPRO are undefined "
                             f"without one")
    # All anomalous scores are searched for in each block, so there are few blocks if there are many of them.
    size = min(max(BLOCK, 4 * anomalous.size), pixels - anomalous.size)
    return _curves(_blocks(_pairs(masks, maps), size), anomalous, weights)


def _anomalous(pairs: Iterable[tuple[Array, Array]], connectivity: int) -> tuple[Array, Array, int]:
    """Scores (P,) of all anomalous pixels, their weights (P,) in the mean over the regions, and the number of all pixels."""
    found: list[Array] = []
    weights: list[Array] = []
    regions = pixels = 0
    for mask, scores in pairs:
        pixels += mask.size
        if mask.any():
            found.append(scores[mask])
            own, count = _region_weights(mask, connectivity)
            weights.append(own)
            regions += count
    return (np.concatenate(found), np.concatenate(weights) / regions, pixels) if found else (np.zeros(0), np.zeros(0), pixels)


def _pairs(masks: Maps, maps: Maps) -> Iterator[tuple[Array, Array]]:
    """Mask (H, W) bool and scores (H, W) of each image, checked."""
    for index, (mask, scores) in enumerate(zip(_images(masks), _images(maps), strict=True)):
        scores = _comparable(scores)
        if mask.shape != scores.shape or mask.ndim != 2:
            raise ParameterError(f"image {index}: mask is {mask.shape} and map {scores.shape}; expected one (H, W)")
        _check_finite(scores, f"map of image {index}")
        yield _as_bool(mask, f"mask of image {index}"), scores


def _blocks(pairs: Iterable[tuple[Array, Array]], size: int) -> Iterator[Array]:
    """The scores of all normal pixels, in blocks of `size`, the last one smaller. A block is overwritten by the next one."""
    block, filled = np.empty(size, np.float32), 0
    for mask, scores in pairs:
        normal = scores[~mask]
        if normal.dtype != block.dtype:         # float64; converting either would cost precision or memory
            if filled:
                yield block[:filled]
            block, filled = np.empty(size, normal.dtype), 0
        while filled + normal.size >= size:
            room = size - filled
            block[filled:] = normal[:room]
            yield block
            normal, filled = normal[room:], 0
        block[filled:filled + normal.size] = normal
        filled += normal.size
    if filled:
        yield block[:filled]


def _region_weights(mask: Array, connectivity: int) -> tuple[Array, int]:
    """1 / size of the connected region for each anomalous pixel of an (H, W) bool mask, in row order; number of regions."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    labeled, found = ndimage.label(box, structure=np.ones((3, 3)) if connectivity == 8 else None)
    of_pixel = labeled[box]
    return (1.0 / np.bincount(of_pixel, minlength=2)[1:])[of_pixel - 1], found


def _images(images: Maps) -> Iterable[Array]:
    """(B, H, W) or a sequence of (H, W) as arrays, one after the other."""
    return _numpy(images) if hasattr(images, "shape") else map(_numpy, images)


def _numpy(values: Any) -> Array:
    """An array from an array, a sequence, or a tensor on any device; numpy has no bfloat16, so it becomes float32."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.float() if str(values.dtype) == "torch.bfloat16" else values)
    return np.asarray(values)


def _comparable(scores: Array) -> Array:
    """Scores as float32 if that represents them exactly, else as float64; the precision is never reduced."""
    if scores.dtype in (np.float32, np.float64):
        return scores
    if scores.dtype.kind not in "biuf":
        try:
            return scores.astype(np.float64)  # None becomes NaN, which is refused where it is named by its position
        except (TypeError, ValueError):
            raise ParameterError("scores must be numbers, and some are not") from None
    return scores.astype(np.float32 if scores.dtype.itemsize <= 2 else np.float64)


def _check_finite(scores: Array, what: str) -> None:
    finite = np.isfinite(scores)
    if not finite.all():
        bad = np.argwhere(~finite)
        where = tuple(int(i) for i in bad[0])
        raise ParameterError(f"{what}: {len(bad)} of {scores.size} values are NaN or infinite, the first at "
                             f"{where[0] if len(where) == 1 else where}")


def _as_bool(values: Array, what: str) -> Array:
    if values.dtype == bool:
        return values
    positive = values == 1
    if not (positive | (values == 0)).all():
        odd = values[~positive & (values != 0)].tolist()[0]
        raise ParameterError(f"{what}: found {odd!r}, expected only 0 (normal) and 1 (anomalous)")
    return positive


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ParameterError(f"limit is {limit!r}: the FPR limit of AUPRO must be in (0, 1]")

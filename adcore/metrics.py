"""How well scores separate anomalies from normal images and pixels: AUROC, average precision and AUPRO, exact.

    image   labels (n,), scores (n,)                    -> AUROC, AP
    pixel   masks and maps, one (H, W) pair an image    -> AUROC, AP, AUPRO over all pixels of all images together

AUPRO is the area under the per-region-overlap curve (Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021,
Sec. 5.2): at each threshold the share of normal pixels at or above it, FPR, against the covered share of each connected
anomalous region, averaged over the regions of all images; integrated up to an FPR limit of 0.3 and divided by it.

No threshold is left out and nothing is binned. Equal scores enter together, so a curve climbs through them in a
straight line. An AUROC below 0.5 is reported as it is, never as 1 - AUROC.

The normal scores are sorted, once for all metrics and in as many parts as torch has threads, for what is wanted of them are
numbers, which add up over parts; everything else is work on the few anomalous pixels. Each distinct
anomalous score v meets `above` normal scores that are greater and `equal` ones that tie; with N normal scores, the
step of every curve at v runs from FPR = above / N to FPR = (above + equal) / N, and its height is v's share of the
anomalous pixels (AUROC, AP) or its sum of 1 / (regions * size of its region) (AUPRO).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from scipy import ndimage

from adcore.errors import ParameterError

Array = npt.NDArray[Any]
Maps = Sequence[Any] | Array
"""(B, H, W) as one array or tensor, or a sequence of (H, W), whose sizes may differ from image to image."""

PART = 2**18  # normal scores at least for a thread of their own; fewer are sorted in less time than it takes to start


@dataclass(frozen=True)
class Scores:
    """AUROC, average precision and, for pixels only, AUPRO; all as fractions of 1."""

    auroc: float
    ap: float
    aupro: float | None = None


def image_scores(labels: Any, scores: Any) -> Scores:
    """AUROC and AP of one score an image, (n,), against labels 0 (normal) and 1 (anomalous), (n,).

    Raises:
        ParameterError: shapes that differ or are not (n,), NaN or infinite scores, labels outside {0, 1}, one class.
    """
    labels, scores = _numpy(labels), _numpy(scores)
    if scores.ndim != 1:
        raise ParameterError(f"image scores are {scores.shape}, expected (n,): one score an image; "
                             f"for anomaly maps use pixel_scores")
    climb = _climb_of(labels, scores)
    return Scores(auroc=climb.auroc(), ap=climb.average_precision())


def pixel_scores(masks: Maps, maps: Maps, *, limit: float = 0.3, connectivity: int = 8) -> Scores:
    """AUROC, AP and AUPRO over all pixels of all images, from one sort.

    Args:
        masks: 0 normal, 1 anomalous; an image without anomalies has a mask of zeros.
        maps: anomaly maps of the masks' sizes, larger where more anomalous.
        limit: FPR up to which AUPRO integrates, in (0, 1].
        connectivity: 8 (diagonal neighbors touch) or 4.

    Raises:
        ParameterError: a mask and a map that differ in shape, NaN or infinite values, mask values outside {0, 1},
            no anomalous or no normal pixel, a limit or connectivity out of range.
    """
    _check_limit(limit)
    climb, regions = _climbs_of(masks, maps, connectivity)
    return Scores(auroc=climb.auroc(), ap=climb.average_precision(), aupro=regions.area(limit))


def auroc(labels: Any, scores: Any) -> float:
    """Area under the ROC curve: how often an anomalous score exceeds a normal one, ties counting one half.

    Labels and scores have one shape, whichever; raises ParameterError as `image_scores`.
    """
    return _climb_of(labels, scores).auroc()


def average_precision(labels: Any, scores: Any) -> float:
    """Precision averaged over the anomalous scores: sum over thresholds of (recall gained) * precision.

    Labels and scores have one shape, whichever; raises ParameterError as `image_scores`.
    """
    return _climb_of(labels, scores).average_precision()


def aupro(masks: Maps, maps: Maps, limit: float = 0.3, connectivity: int = 8) -> float:
    """Area under the per-region-overlap curve up to FPR `limit`, divided by `limit`; raises as `pixel_scores`."""
    _check_limit(limit)
    return _climbs_of(masks, maps, connectivity)[1].area(limit)


def roc_curve(labels: Any, scores: Any, points: int = 1000) -> tuple[Array, Array]:
    """False and true positive rates, each (k,) float64, from (0, 0) to (1, 1), thinned to about `points`.

    Every point kept is exact. Raises ParameterError as `image_scores`.
    """
    return _climb_of(labels, scores).curve(1.0, points)


def pro_curve(masks: Maps, maps: Maps, limit: float = 0.3, points: int = 1000,
              connectivity: int = 8) -> tuple[Array, Array]:
    """FPR and per-region overlap, each (k,) float64, from (0, 0) to FPR `limit`, thinned to about `points`.

    Every point kept is exact, the last one interpolated at the limit. Raises ParameterError as `pixel_scores`.
    """
    _check_limit(limit)
    return _climbs_of(masks, maps, connectivity)[1].curve(limit, points)


@dataclass(frozen=True)
class _Climb:
    """A curve as its V climbing steps, from the highest distinct anomalous score down; level stretches lie between.

    above (V,) int64: normal scores greater than the step's.  equal (V,) int64: normal scores that tie with it.
    rise (V,) float64: height of the step, 1 in all.  count (V,) int64: anomalous scores in it.  normal: N.
    """

    above: Array
    equal: Array
    rise: Array
    count: Array
    normal: int

    def auroc(self) -> float:
        below = 2 * (self.normal - self.above) - self.equal                   # twice the normal scores beaten
        return float((self.count * below).sum() / (2 * self.normal * int(self.count.sum())))

    def average_precision(self) -> float:
        found = self.count.cumsum()
        precision = found / (found + self.above + self.equal)
        return float((self.count * precision).sum() / found[-1])

    def area(self, limit: float) -> float:
        """Area below the curve from FPR 0 to `limit`, divided by `limit`.

        A step that climbs at FPR start..end lifts everything to its right: an area of rise * (limit - middle). The one
        that crosses the limit has climbed (limit - start) / (end - start) of its rise there, under a triangle.
        """
        start = self.above / self.normal
        end = (self.above + self.equal) / self.normal
        whole = np.where(end <= limit, limit - (start + end) / 2, 0.0)
        crossing = (start < limit) & (end > limit)
        whole[crossing] = (limit - start[crossing]) ** 2 / (2 * (end - start)[crossing])
        return min(float((self.rise * whole).sum()) / limit, 1.0)             # sums of fractions may round above 1

    def curve(self, limit: float, points: int) -> tuple[Array, Array]:
        """The curve's corners up to FPR `limit`, thinned to one in each 1 / `points` of its length |dx| + |dy|."""
        height = np.minimum(self.rise.cumsum(), 1.0)
        corners_x = np.stack([self.above, self.above + self.equal], 1).ravel() / self.normal
        corners_y = np.stack([np.append(0.0, height[:-1]), height], 1).ravel()
        x, y = np.concatenate([[0.0], corners_x, [1.0]]), np.concatenate([[0.0], corners_y, [1.0]])
        y[-2:] = 1.0                                                          # the rises sum to 1 but for rounding
        inside = x <= limit
        if x[inside][-1] < limit:
            x, y = np.append(x[inside], limit), np.append(y[inside], np.interp(limit, x, y))
        else:
            x, y = x[inside], y[inside]
        length = (x / limit + y) / 2
        bin_of = np.floor(length * points).astype(np.int64)
        keep = np.append(True, bin_of[1:] != bin_of[:-1])
        keep[-1] = True
        return x[keep], y[keep]


def _climb(normal: Array, anomalous: Array, weights: Array | None) -> tuple[_Climb, _Climb]:
    """Steps weighted by count and by `weights` (P,) from normal scores (N,), sorted in place, and anomalous ones (P,).

    `weights` None gives the counted climb twice.
    """
    order = anomalous.argsort()[::-1]
    ranked = anomalous[order]                                                 # from the highest down
    first = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1]))        # where a distinct score begins
    upwards = ranked[first][::-1]
    parts = max(1, min(torch.get_num_threads(), normal.size // PART))
    with ThreadPoolExecutor(parts) as threads:
        found = list(threads.map(partial(_meets, upwards), np.array_split(normal, parts)))
    below, equal = (np.sum(numbers, axis=0)[::-1] for numbers in zip(*found, strict=True))
    above = normal.size - below - equal
    count = np.diff(first, append=ranked.size)
    counted = _Climb(above, equal, count / ranked.size, count, normal.size)
    if weights is None:
        return counted, counted
    return counted, _Climb(above, equal, np.add.reduceat(weights[order], first), count, normal.size)


def _meets(upwards: Array, normal: Array) -> tuple[Array, Array]:
    """How many normal scores (N,), sorted in place, lie below each of the ascending `upwards` (V,), and how many tie."""
    normal.sort()
    below = normal.searchsorted(upwards)
    equal = np.zeros_like(below)
    ties = np.flatnonzero(normal[np.minimum(below, normal.size - 1)] == upwards)
    equal[ties] = normal.searchsorted(upwards[ties], side="right") - below[ties]
    return below, equal


def _climb_of(labels: Any, scores: Any) -> _Climb:
    """Checked labels and scores of one shape as a climb."""
    labels, scores = _numpy(labels), _comparable(_numpy(scores))
    if labels.shape != scores.shape:
        raise ParameterError(f"labels are {labels.shape} and scores {scores.shape}: they must have one shape")
    labels, scores = labels.ravel(), scores.ravel()
    _check_finite(scores, "scores")
    anomalous = _as_bool(labels, "labels")
    if anomalous.all() or not anomalous.any():
        if not anomalous.size:
            raise ParameterError("there are no scores: AUROC and AP need normal and anomalous ones")
        raise ParameterError(f"all {anomalous.size} labels are {int(anomalous[0])}: AUROC and AP are undefined "
                             f"without both normal (0) and anomalous (1) ones")
    return _climb(scores[~anomalous], scores[anomalous], None)[0]


def _climbs_of(masks: Maps, maps: Maps, connectivity: int) -> tuple[_Climb, _Climb]:
    """Checked masks and maps as two climbs: every anomalous pixel counting alike, and every region counting alike."""
    if connectivity not in (4, 8):
        raise ParameterError(f"connectivity is {connectivity!r}: expected 4 or 8")
    if len(masks) != len(maps):
        raise ParameterError(f"{len(masks)} masks for {len(maps)} maps: expected one mask an image")
    normal: list[Array] = []
    anomalous: list[Array] = []
    weights: list[Array] = []
    regions = 0
    for index, (mask, scores) in enumerate(zip(_images(masks), _images(maps), strict=True)):
        scores = _comparable(scores)
        if mask.shape != scores.shape or mask.ndim != 2:
            raise ParameterError(f"image {index}: mask is {mask.shape} and map {scores.shape}; expected one (H, W)")
        _check_finite(scores, f"map of image {index}")
        mask = _as_bool(mask, f"mask of image {index}")
        if not mask.any():
            normal.append(scores.ravel())
            continue
        normal.append(scores[~mask])
        anomalous.append(scores[mask])
        shares, found = _region_shares(mask, connectivity)
        weights.append(shares)
        regions += found
    if not anomalous:
        raise ParameterError(f"no anomalous region in {len(maps)} masks: pixel AUROC, AP and AUPRO are undefined "
                             f"without one")
    pooled = np.concatenate(normal)
    if not pooled.size:
        raise ParameterError(f"no normal pixel in {len(maps)} masks: pixel AUROC, AP and AUPRO are undefined "
                             f"without one")
    del normal                                                                # one copy of the pixels, not two
    return _climb(pooled, np.concatenate(anomalous), np.concatenate(weights) / regions)


def _region_shares(mask: Array, connectivity: int) -> tuple[Array, int]:
    """1 / size of its connected region for each anomalous pixel of an (H, W) bool mask, in row order; regions found."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
    labeled, found = ndimage.label(box, structure=np.ones((3, 3)) if connectivity == 8 else None)
    of_pixel = labeled[box]
    return (1.0 / np.bincount(of_pixel, minlength=2)[1:])[of_pixel - 1], found


def _images(images: Maps) -> list[Array]:
    """(B, H, W) or a sequence of (H, W) as a list of arrays."""
    return list(_numpy(images)) if hasattr(images, "shape") else [_numpy(image) for image in images]


def _numpy(values: Any) -> Array:
    """An array, from an array, a sequence, or a tensor on any device (bfloat16, which numpy lacks, as float32)."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return np.asarray(values.float() if str(values.dtype) == "torch.bfloat16" else values)
    return np.asarray(values)


def _comparable(scores: Array) -> Array:
    """Scores as float32 if that holds them exactly, else as float64; never less than they came with."""
    if scores.dtype in (np.float32, np.float64):
        return scores
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
        odd = values[~positive & (values != 0)].flat[0]
        raise ParameterError(f"{what}: found {odd.item()!r}, expected only 0 (normal) and 1 (anomalous)")
    return positive


def _check_limit(limit: float) -> None:
    if not 0 < limit <= 1:
        raise ParameterError(f"limit is {limit!r}: the FPR limit of AUPRO lies in (0, 1]")

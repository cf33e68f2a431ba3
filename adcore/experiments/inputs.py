"""What a result rests on beside settings and code: images, labels, masks and weights, each by a digest of its contents.

A stored result keeps the digests that it was made with (`inputs` of its provenance). Before it is used again they are compared
with today's files. A file whose size and times have not changed is not read again, see `adcore.digests`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from adcore.data import Dataset, Sample
from adcore.digests import file_digests
from adcore.errors import DataError
from adcore.experiments.experiment import Experiment
from adcore.experiments.profiles import method_named
from adcore.features import find_backbone, images_digest
from adcore.features.weights import resolve_weights, unverified_weights, weights_digest
from adcore.files import digest_text


class Inputs:
    """Looks up the inputs of experiments. Digests are kept for as long as the object lives, so make one per run.

    >>> from adcore.experiments import grid
    >>> list(Inputs().of(grid("patchcore", categories="brick")[0]))
    ['training images', 'training labels', 'weights', 'test images', 'test labels', 'masks']
    """

    def __init__(self) -> None:
        self._listed: dict[tuple[Any, ...], Dataset] = {}
        self._digests: dict[int, tuple[Any, dict[str, str]]] = {}

    def of(self, experiment: Experiment, dataset: Dataset | None = None) -> dict[str, str]:
        """Digests of everything on which the experiment's numbers rest.

        dataset  the images of the experiment, when they are listed already

        Raises:
            AdcoreError: data or weights are not here or not in order.
        """
        dataset = dataset or self.data(experiment)
        return {**self.of_training(experiment, dataset), **self._of_samples(dataset.test, "test")}

    def of_training(self, experiment: Experiment, dataset: Dataset | None = None) -> dict[str, str]:
        """Digests of what the fitted model rests on. Raises AdcoreError as `of`."""
        dataset = dataset or self.data(experiment)
        found = self._of_samples(dataset.train, "training")
        pretraining = experiment.pretraining_images()
        if pretraining:
            found["pretraining images"] = images_digest(pretraining)
        others = method_named(experiment.method).other_files(experiment.config())
        if others:
            found["other files"] = digest_text(" ".join(file_digests(others)))
        return {**found, "weights": weights_of(experiment)}

    def data(self, experiment: Experiment) -> Dataset:
        """The images of an experiment; a folder is listed once."""
        kind = (experiment.dataset, experiment.category, experiment.profile)
        if kind not in self._listed:
            self._listed[kind] = experiment.all_data()
        return experiment.split(self._listed[kind])

    def _of_samples(self, samples: Sequence[Sample], part: str) -> dict[str, str]:
        known = self._digests.get(id(samples))
        if known is None:
            marked = [(path, sample.name) for sample in samples for path in sample.mask_files]
            try:
                masks = [f"{name} {digest}" for (_, name), digest in
                         zip(marked, file_digests(path for path, _ in marked), strict=True)]
            except OSError as error:
                raise DataError(f"{error.filename} is not there: restore the file") from None
            labels = [f"{sample.category} {sample.name} {sample.label} {sample.defect}" for sample in samples]
            found = {f"{part} images": images_digest(samples), f"{part} labels": digest_text("\n".join(labels)),
                     **({"masks" if part == "test" else f"{part} masks": digest_text("\n".join(masks))} if masks else {})}
            known = self._digests[id(samples)] = samples, found  # `samples` is kept, so that its id is not given again
        return dict(known[1])


def weights_of(experiment: Experiment) -> str:
    """Digest of the checkpoint that an experiment's settings name; '' for a method without one.

    Raises:
        WeightsError, ParameterError: the checkpoint is not here, or the backbone is unknown.
    """
    settings = experiment.config().values()
    if "backbone" not in settings or "weights" not in settings:
        return ""
    return weights_digest(_checkpoint(settings), experiment.seed)


def weights_mark(experiment: Experiment) -> str:
    """' (unverified)' when the whole checksum of an experiment's checkpoint is not known, else ''; ends the digest in its
    results. Raises as `weights_of`."""
    settings = experiment.config().values()
    known = "backbone" not in settings or "weights" not in settings or not unverified_weights(_checkpoint(settings))
    return "" if known else " (unverified)"


def _checkpoint(settings: Mapping[str, Any]) -> Path | None:
    return resolve_weights(find_backbone(settings["backbone"]), settings["weights"])


def changed(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Names of the inputs that are not the same.

    >>> changed({"weights": "a", "masks": "b"}, {"weights": "a", "test images": "c"})
    ['masks', 'test images']
    """
    return [name for name in dict.fromkeys([*before, *now]) if before.get(name) != now.get(name)]

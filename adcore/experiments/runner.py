"""Run experiments: fit, predict, measure, store. A stored result is not computed again while all that it rests on is the same.

    code     quick: another code measures again; paper, where that may take days: the result is kept and marked
    images, labels, masks, weights
             quick: measures again; paper: refuses, names what changed, and measures again when asked to (`again`)
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adcore.cache import entries_used
from adcore.data import Dataset
from adcore.detector import Detector
from adcore.distributed import barrier, is_rank_zero, run_on_rank_zero, world_size
from adcore.errors import AdcoreError, DataError, ParameterError, StoreError, tell
from adcore.experiments.evaluation import evaluate, scores_table, unmeasured
from adcore.experiments.experiment import Experiment
from adcore.experiments.inputs import Inputs, changed, weights_mark
from adcore.experiments.provenance import Meter, fingerprint, origin
from adcore.experiments.store import Result, Store
from adcore.experiments.table import ResultTable
from adcore.features import images_digest
from adcore.files import digest_text, one_at_a_time
from adcore.memory import kept_memory
from adcore.progress import progress_bar
from adcore.training import resolve_device


def run(experiments: Iterable[Experiment] | Experiment, *, out: str | Path | None = None, device: str = "auto",
        progress: bool | None = None, again: bool | None = None) -> ResultTable:
    """Run the experiments whose results are missing, and return the table of all of them.

    again  also replace the stored results of the paper profile whose code, data or weights have changed; the old files are
           kept as *.replaced-N. None asks the variable ADCORE_AGAIN, which the command line's --again sets

    A stored result that was made by other code is computed again in the quick profile. In the paper profile, where that may
    take days, it is kept and listed in the table's `stale`. When data or weights are not on this machine, a stored result is
    used as it is and listed in `unchecked`.

    When another process runs the same experiment, this one waits for it. Under torchrun all ranks train together, rank 0
    evaluates and stores, and every rank returns the table. An experiment that its images do not allow, such as a category
    without anomalies for a method that learns from some, does not stop the others.

    Raises:
        AdcoreError: weights are missing or broken, or the store cannot be written.
        StoreError: stored results of the paper profile rest on other data or weights; nothing was run.
        DataError, ParameterError: the first experiment that its images do not allow, after all others are stored.
    """
    store, on, inputs = Store(out), resolve_device(device), Inputs()
    again = bool(os.environ.get("ADCORE_AGAIN")) if again is None else again
    experiments = list(dict.fromkeys([experiments] if isinstance(experiments, Experiment) else experiments))
    known = run_on_rank_zero(partial(_known, experiments, store, inputs, again))
    results: list[Result] = []
    failures: list[tuple[Experiment, DataError | ParameterError]] = []
    unchecked: list[str] = []
    with progress_bar(total=len(experiments), desc="experiments", enabled=progress) as bar:
        for experiment, stored in zip(experiments, known, strict=True):
            bar.set_postfix_str(experiment.title)
            try:
                stored = stored or _measured(experiment, store, inputs, on, again, progress)
                results.append(stored.result)
                unchecked += [] if stored.checked else [experiment.title]
            except (DataError, ParameterError) as error:
                failures.append((experiment, error))
            bar.update()
    if failures:
        (first, reason), others = failures[0], ""
        if len(experiments) > 1:
            others = f" ({first.title}; {len(results)} of {len(experiments)} experiments are stored)"
        raise type(reason)(f"{reason}{others}") from reason
    return ResultTable(results, store, unchecked)


@dataclass(frozen=True)
class _Stored:
    """A result that may be used, and whether its inputs could be compared with today's."""

    result: Result
    checked: bool


def _known(experiments: Sequence[Experiment], store: Store, inputs: Inputs, again: bool) -> list[_Stored | None]:
    """What is stored of each experiment and may be used; None where it must be measured. Raises StoreError, see `run`."""
    found: list[_Stored | None] = []
    refused = []
    for experiment in experiments:
        result = store.load(experiment)
        differing, checked = ([], False) if result is None else _differing(result, inputs)
        changeable = experiment.profile == "quick" or again
        if result is None or (changeable and (differing or not result.made_by_this_code)):
            found.append(None)
        else:
            found.append(_Stored(result, checked))
            refused += [(experiment, differing)] if differing else []
    if refused:
        experiment, differing = refused[0]
        more = f" ({len(refused)} stored results differ in this way)" if len(refused) > 1 else ""
        raise StoreError(f"the stored result of '{experiment.title}' was measured with other {' and '.join(differing)}{more}: "
                         f"put them back, or measure again with --again, which keeps the old files as *.replaced-1")
    return found


def _differing(result: Result, inputs: Inputs) -> tuple[list[str], bool]:
    """Names of the inputs that have changed since, and whether they could be compared."""
    try:
        now = inputs.of(result.experiment)
        if "inputs" in result.provenance:
            return changed(result.provenance["inputs"], now), True
        dataset = inputs.data(result.experiment)    # an older result keeps one digest of all images
        same = result.provenance.get("data") == images_digest([*dataset.train, *dataset.test])
        return [] if same else ["images"], True
    except AdcoreError:
        return [], False


def _measured(experiment: Experiment, store: Store, inputs: Inputs, device: torch.device, again: bool,
              progress: bool | None) -> _Stored:
    with _alone(store.folder(experiment), experiment):
        (known,) = run_on_rank_zero(partial(_known, [experiment], store, inputs, again))  # another process may have finished it
        if known is not None:
            return known
        if again:
            run_on_rank_zero(partial(store.replace, experiment))
        return _Stored(run_one(experiment, store, device, progress), True)


@contextlib.contextmanager
def _alone(path: Path, experiment: Experiment) -> Iterator[None]:
    """A block that only one run at a time enters for this path. Under torchrun, rank 0 holds the lock and the other ranks
    enter after it."""
    def waiting() -> None:
        tell(f"another process runs '{experiment.title}': waiting for it")

    lock = path.with_name(f"{path.name}.lock")
    with one_at_a_time(lock, waiting) if is_rank_zero() else contextlib.nullcontext():
        barrier()
        yield


def run_one(experiment: Experiment, store: Store, device: torch.device, progress: bool | None = None,
            after_fit: Callable[[Detector], None] | None = None) -> Result:
    """Run one experiment and store its result. A killed run resumes from its last checkpoint.

    after_fit  is given the fitted detector before it is tested

    Raises:
        AdcoreError: see `run`.
    """
    dataset = experiment.data()
    inputs = run_on_rank_zero(partial(Inputs().of, experiment, dataset))  # before the work: files may change while it lasts
    start = {**origin(device, experiment.method), "inputs": inputs}
    if not dataset.train:
        result = Result(experiment, tuple(unmeasured(dataset, "no training image")), start)
        run_on_rank_zero(partial(store.save, result, scores_table([]), {}))
        return result
    checkpoint = store.folder(experiment) / f"checkpoint-{_training_key(experiment, dataset)}"
    others = [path for path in checkpoint.parent.glob("checkpoint*") if not path.name.startswith(checkpoint.name)]
    if others and is_rank_zero():
        tell(f"'{experiment.title}' was interrupted with other code, images or weights: its training starts again")
    with Meter(device) as fitting, entries_used() as used:
        detector = _fit(experiment, dataset, device, checkpoint, progress)
    if after_fit is not None:
        after_fit(detector)
    start |= {"cache": used} if used else {}
    return run_on_rank_zero(partial(_tested, detector, experiment, dataset, store, start, fitting, world_size(), progress))


def _training_key(experiment: Experiment, dataset: Dataset) -> str:
    """Eight digits that change with anything the fitted model rests on. In the paper profile the code does not count: a
    training of days goes on when a line of code changes, and the result keeps the fingerprint of the code that finished it."""
    inputs = run_on_rank_zero(partial(Inputs().of_training, experiment, dataset))
    code = fingerprint(experiment.method) if experiment.profile == "quick" else ""
    return digest_text(f"{code} {inputs}", 8)


def _tested(detector: Detector, experiment: Experiment, dataset: Dataset, store: Store, start: dict[str, Any],
            fitting: Meter, processes: int, progress: bool | None) -> Result:
    device = fitting.device
    with Meter(device) as testing:
        scores, maps, measures = evaluate(detector, dataset, progress)
    made = {**start, "seconds": round(fitting.seconds + testing.seconds, 2), "fit_seconds": round(fitting.seconds, 2),
            "test_seconds": round(testing.seconds, 2), "peak_bytes": max(fitting.peak_bytes, testing.peak_bytes),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "weights": detector.weights_digest + weights_mark(experiment),
            "data": images_digest([*dataset.train, *dataset.test]), "train_images": len(dataset.train),
            "test_images": len(dataset.test), "processes": processes}
    if losses := getattr(detector, "losses", None):     # one per epoch, for learning curves
        made["losses"] = [float(f"{loss:.6g}") for loss in losses]
    result = Result(experiment, tuple(measures), made)
    store.save(result, scores, maps)
    for path in store.folder(experiment).glob("checkpoint*"):  # one per part of a training
        path.unlink(missing_ok=True)
    return result


def fitted(experiment: Experiment, *, out: str | Path | None = None, device: str = "auto",
           progress: bool | None = None) -> Detector:
    """The fitted method of an experiment. `run` keeps its numbers, this function keeps the model.

    The last checkpoint is kept in the store under a digest of code, training images and weights, so that the next call needs
    no training. When another process fits the same model, this one waits for it.

    Raises:
        AdcoreError: see `run`.
    """
    dataset = experiment.data()
    inputs = run_on_rank_zero(partial(Inputs().of_training, experiment, dataset))
    code = fingerprint(experiment.method)[:8]
    kept = Store(out).folder(experiment) / f"fitted-{code}-{digest_text(str(inputs), 8)}"
    with _alone(kept, experiment):
        return _fit(experiment, dataset, resolve_device(device), kept, progress)


@kept_memory()
def _fit(experiment: Experiment, dataset: Dataset, device: torch.device, checkpoint: Path, progress: bool | None) -> Detector:
    detector = experiment.detector(device)
    if detector.pretrains:
        detector.pretrain(experiment.pretraining_images(), progress=progress)
    return detector.fit(dataset.train, checkpoint=checkpoint, progress=progress)

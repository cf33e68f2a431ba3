"""The results store: a folder that any number of processes may write to.

    runs/<method>/<key>/result.json   what was measured, and where it came from
                        params.yaml   the experiment, readable
                        scores.csv    score and label of every test image
                        maps.npz      anomaly maps of a few test images, for figures
                        checkpoint    the state of a training that is not finished
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from adcore.errors import ParameterError, StoreError
from adcore.experiments.experiment import Experiment
from adcore.experiments.provenance import fingerprint
from adcore.files import atomic, digest_text, write_json, write_text
from adcore.paths import runs_folder


@dataclass(frozen=True)
class Result:
    """What an experiment measured.

    measures    one dictionary a number: category, metric, value (a fraction, not per cent)
    provenance  versions, commit, device, seconds, peak_bytes, data, weights, ...
    """

    experiment: Experiment
    measures: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    @property
    def made_by_this_code(self) -> bool:
        """True when the code on which the numbers rest is today's."""
        return bool(self.provenance.get("code") == fingerprint(self.experiment.method))

    @property
    def from_record(self) -> bool:
        """True for a result of results/*.csv, which keeps its commit and no fingerprint: nobody can say whether the code on
        which the numbers rest has changed since."""
        return self.provenance.get("code") is None

    def rows(self) -> list[dict[str, Any]]:
        """One flat row a number: the experiment's fields and its whole config, then the number and its provenance.

        `weights` is the digest of what was loaded; the word by which it was asked for is `pretraining`.
        """
        e, p = self.experiment, self.provenance
        known = {"method": e.method, "dataset": e.dataset, "profile": e.profile, "seed": e.seed, "key": e.key,
                 "settings": " ".join(f"{name}={value}" for name, value in e.settings)}
        origin = {name: p.get(name) for name in ("seconds", "peak_bytes", "device", "machine", "commit", "data", "weights",
                                                 "finished")}
        config = {name: value for name, value in e.config().values().items() if name not in origin}
        if "weights" in e.config().values():
            config["pretraining"] = e.config().weights
        return [{**config, **known, **measure, **origin} for measure in self.measures]


class Store:
    """Results by experiment, below one folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = runs_folder(root)

    def folder(self, experiment: Experiment) -> Path:
        """Where an experiment's files lie."""
        return self.root / experiment.method / experiment.key

    def load(self, experiment: Experiment) -> Result | None:
        """The result of an experiment, or None when there is none.

        A damaged file is set aside as result.json.damaged, and said so on stderr: the experiment will run again.
        """
        path = self.folder(experiment) / "result.json"
        if not path.is_file():
            return None
        try:
            return _read(path)
        except (StoreError, TypeError) as error:
            path.replace(path.with_suffix(".json.damaged"))
            print(f"adcore: {error}; set it aside, '{experiment.title}' runs again", file=sys.stderr)
            return None

    def save(self, result: Result, scores: pd.DataFrame, maps: dict[str, np.ndarray]) -> None:
        """Write all files of a result, result.json last: it is what makes the result count.

        Raises:
            StoreError: the folder cannot be written or is full.
        """
        folder = self.folder(result.experiment)
        write_text(folder / "params.yaml", yaml.safe_dump(_plain(result.experiment.identity()), sort_keys=True))
        write_text(folder / "scores.csv", scores.to_csv(index=False))
        with atomic(folder / "maps.npz") as temporary:
            np.savez_compressed(temporary, **maps)  # type: ignore[arg-type]
        body = {"experiment": _plain(asdict(result.experiment)), "measures": list(result.measures),
                "provenance": result.provenance}
        write_json(folder / "result.json", {**body, "digest": _digest(body)})

    def results(self) -> Iterable[Result]:
        """Every result that can be read and that is still that of its experiment, in the order of its path."""
        for path in sorted(self.root.glob("*/*/result.json")):
            try:
                result = _read(path)
                if result.experiment.key != path.parent.name:
                    raise ParameterError("its method or its profile has changed since")
                yield result
            except ParameterError as error:  # also a method or a setting that is no more
                print(f"adcore: {path} is older than this code: {error}; left out", file=sys.stderr)
            except StoreError as error:
                print(f"adcore: {error}; left out", file=sys.stderr)

    def scores(self, experiment: Experiment) -> pd.DataFrame:
        """Score, label, defect and path of every test image of an experiment."""
        return pd.read_csv(self.folder(experiment) / "scores.csv", dtype={"category": str})  # '01234' is no number

    def maps(self, experiment: Experiment) -> dict[str, np.ndarray]:
        """The maps kept of an experiment: 'category/defect/name' -> (H, W)."""
        with np.load(self.folder(experiment) / "maps.npz", allow_pickle=False) as file:
            return {name: file[name].astype(np.float32) for name in file.files}


def _plain(value: Any) -> Any:
    """The value with tuples as lists, as JSON would give it back."""
    return json.loads(json.dumps(value))


def _digest(body: dict[str, Any]) -> str:
    return digest_text(json.dumps(body, sort_keys=True))


def _read(path: Path) -> Result:
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        digest = body.pop("digest")
        fields = body["experiment"]
        settings = tuple((name, tuple(value) if isinstance(value, list) else value) for name, value in fields["settings"])
        result = Result(Experiment(**{**fields, "settings": settings}), tuple(body["measures"]), body["provenance"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StoreError(f"{path} is damaged ({error.__class__.__name__})") from error
    if digest != _digest(body):
        raise StoreError(f"{path} is damaged (its digest does not fit)")
    return result


def load_results(out: str | Path | None = None) -> pd.DataFrame:
    """Every number in the store as one tidy table, one row a number."""
    return pd.DataFrame([row for result in Store(out).results() for row in result.rows()])

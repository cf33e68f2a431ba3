"""The results store: a folder that any number of processes may write to at the same time.

    runs/<method>/<key>/result.json   what was measured, and where it came from
                        params.yaml   the experiment, readable
                        scores.csv    score and label of every test image
                        maps.npz      anomaly maps of a few test images, for figures
                        checkpoint-*  the state of a training that is not finished
                        *.corrupt-1   a damaged file that was set aside
                        *.replaced-1  a file of an older result, kept when the experiment was measured again

result.json carries a digest of itself and of the files beside it. One without a digest, from an older version, is read when it
is well formed: changed numbers in it cannot be detected.

Each result also carries the fingerprint of the code that made it (`code`): a digest of its paper's folder below adcore/papers
and of the shared code listed in `adcore.source.SHARED`. Comments, docstrings and a paper's `experiments.py` do not count. A
result with another fingerprint was made by other code: the quick profile runs it again, the paper profile keeps it and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from adcore.errors import ParameterError, StoreError, tell
from adcore.experiments.experiment import Experiment, as_tuples, key_of
from adcore.experiments.profiles import method_named
from adcore.experiments.provenance import fingerprint
from adcore.files import atomic, digest_file, digest_text, write_text
from adcore.paths import runs_folder

BESIDE = ("scores.csv", "maps.npz")  # result.json holds their digests; params.yaml is only for people
ORIGIN = ("seconds", "fit_seconds", "test_seconds", "test_images", "peak_bytes", "device", "machine", "commit", "data",
          "weights_digest", "finished")


@dataclass(frozen=True)
class Result:
    """What an experiment measured.

    measures    one dictionary per number: category, metric, value (a fraction, not percent; None where undefined), why (the
                reason, or what the value leaves out)
    provenance  versions, commit, device, seconds, peak_bytes, inputs, ...
    """

    experiment: Experiment
    measures: tuple[dict[str, Any], ...]
    provenance: dict[str, Any]

    @property
    def made_by_this_code(self) -> bool:
        """True when the code that made the numbers is the code that is here now, see `adcore.source.paper_digest`."""
        return bool(self.provenance.get("code") == fingerprint(self.experiment.method))

    @property
    def from_record(self) -> bool:
        """True for a result of results/*.csv. It keeps its commit and its method's `version`, but no fingerprint, so that
        smaller changes of the code since then cannot be detected."""
        return self.provenance.get("code") is None

    @property
    def made_by_older_code(self) -> bool:
        """True when today's code would give other numbers, or may give them."""
        if self.from_record:
            return bool(self.provenance.get("version", 1) < method_named(self.experiment.method).version)
        return not self.made_by_this_code

    def rows(self) -> list[dict[str, Any]]:
        """One flat row per number: the experiment's fields and its whole config, then the number and its provenance.

        `weights` is the setting that names the pretrained weights, `weights_digest` the digest of the file that was loaded.
        """
        e, p = self.experiment, self.provenance
        known = {"method": e.method, "dataset": e.dataset, "profile": e.profile, "seed": e.seed, "key": e.key,
                 "settings": " ".join(f"{name}={value}" for name, value in e.settings)}
        config = e.config().values()
        return [{**config, **known, "why": "", **measure, **origin_columns(p)} for measure in self.measures]


def origin_columns(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The columns `ORIGIN` of a result. Its weights are called `weights_digest` there, because `weights` is a setting."""
    return {name: provenance.get("weights" if name == "weights_digest" else name) for name in ORIGIN}


class Store:
    """Results by experiment, below one folder."""

    def __init__(self, root: str | Path | None = None) -> None:
        self.root = runs_folder(root)

    def folder(self, experiment: Experiment) -> Path:
        """The folder of an experiment's files."""
        return self.root / experiment.method / experiment.key

    def load(self, experiment: Experiment) -> Result | None:
        """The result of an experiment, or None when there is none.

        A damaged file and its result.json are set aside as *.corrupt-N, with a message on stderr: the experiment runs again.

        Raises:
            StoreError: the file exists and the system refuses to read it.
        """
        folder = self.folder(experiment)
        path = folder / "result.json"
        try:
            result, digests = read_result(path)
            for name, digest in digests.items():
                path = folder / name
                if not path.is_file() or file_digest(path) != digest:
                    raise DamagedError(f"{path} is damaged (its digest does not fit)")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path} cannot be read: {error.strerror or error}; see to its permissions or its disk") from error
        except DamagedError as error:
            # result.json is moved first: without it there is no result, even if this process is killed in between.
            moved = [_set_aside(one, "corrupt") for one in dict.fromkeys((folder / "result.json", path))]
            what = "set it aside" if all(moved) else "it cannot be set aside"
            tell(f"{error}; {what}, '{experiment.title}' runs again")
            return None
        return result

    def replace(self, experiment: Experiment) -> None:
        """Make room for a new result of an experiment: the files of the old one become *.replaced-N."""
        for name in ("result.json", *BESIDE):  # result.json first: without it there is no result
            if (path := self.folder(experiment) / name).is_file():
                _set_aside(path, "replaced")

    def save(self, result: Result, scores: pd.DataFrame, maps: dict[str, np.ndarray]) -> None:
        """Write all files of a result, result.json last: a folder without it holds no result.

        Raises:
            StoreError: the folder cannot be written or is full.
        """
        folder = self.folder(result.experiment)
        write_text(folder / "params.yaml", yaml.safe_dump(_plain(result.experiment.identity()), sort_keys=True))
        write_text(folder / "scores.csv", scores.to_csv(index=False))
        with atomic(folder / "maps.npz") as temporary:
            np.savez_compressed(temporary, **maps)  # type: ignore[arg-type]
        digests = {name: file_digest(folder / name) for name in BESIDE}
        write_text(folder / "result.json", sealed({**body_of(result), "files": digests}))

    def results(self) -> Iterator[Result]:
        """Every readable result whose key is still its experiment's, in the order of the paths."""
        for _, result in self.by_key():
            yield result

    def by_key(self) -> Iterator[tuple[str, Result]]:
        """Pairs of key and result, see `results`."""
        identities: dict[tuple[str, ...], dict[str, Any]] = {}  # a config takes long to build, and many results share one
        for folder in _folders(self.root):
            try:
                result, _ = read_result(folder / "result.json")
                e = result.experiment
                kind = (e.method, e.dataset, e.profile, repr(e.settings))
                if kind not in identities:
                    identities[kind] = e.identity()
                if key_of({**identities[kind], "category": e.category, "seed": e.seed}) != folder.name:
                    raise ParameterError("its method or its profile has changed since")
                yield folder.name, result
            except (FileNotFoundError, NotADirectoryError):
                continue
            except ParameterError as error:  # also a method or a setting that no longer exists
                tell(f"{folder / 'result.json'} is older than this code: {error}; left out")
            except DamagedError as error:
                tell(f"{error}; left out")
            except OSError as error:
                tell(f"{folder / 'result.json'} cannot be read: {error.strerror or error}; left out")

    def scores(self, experiment: Experiment) -> pd.DataFrame:
        """Score, label, defect and path of every test image of an experiment."""
        words = {"category": str, "defect": str, "image": str}    # '01234' is no number, and 'NA' no missing value
        return pd.read_csv(self.folder(experiment) / "scores.csv", dtype=words, keep_default_na=False)

    def maps(self, experiment: Experiment) -> dict[str, np.ndarray]:
        """The maps kept of an experiment: 'category/defect/name' -> (H, W)."""
        with np.load(self.folder(experiment) / "maps.npz", allow_pickle=False) as file:
            return {name: file[name].astype(np.float32) for name in file.files}


def _plain(value: Any) -> Any:
    """The value as it comes back from JSON: tuples become lists."""
    return json.loads(json.dumps(value))


def body_of(result: Result) -> dict[str, Any]:
    """The content of result.json, without digests."""
    return {"experiment": _plain(asdict(result.experiment)), "measures": list(result.measures), "provenance": result.provenance}


def sealed(body: dict[str, Any]) -> str:
    """The body as JSON whose first entry is a digest of all lines after it."""
    rest = json.dumps(body, indent=2, sort_keys=True, allow_nan=False).removeprefix("{\n") + "\n"
    return f'{{\n  "digest": "{digest_text(rest)}",\n{rest}'


class DamagedError(StoreError):
    """A file's content is not what was written."""


def _folders(root: Path) -> list[Path]:
    """The folders of a store that may hold a result, in the order of their paths."""
    methods = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [path for method in methods for path in sorted(method.iterdir())]


def read_result(path: Path) -> tuple[Result, dict[str, str]]:
    """A result, and the digests of the files beside it. Raises OSError when the system refuses to read the file."""
    content = path.read_bytes()
    try:
        text = content.decode()
        body = json.loads(text)
        digest, files = body.pop("digest", None), body.get("files", {})
        fields = body["experiment"]
        settings = tuple(as_tuples(dict(fields["settings"])).items())
        result = Result(Experiment(**{**fields, "settings": settings}), tuple(body["measures"]), body["provenance"])
        if digest is None:
            _well_formed(result)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is damaged ({error.__class__.__name__})") from error
    # Older versions took the digest of the parsed body, newer ones take that of the text.
    if digest is not None and digest != digest_text(text.split("\n", 2)[-1]) and digest != _digest(body):
        raise DamagedError(f"{path} is damaged (its digest does not fit)")
    return result, files


def _well_formed(result: Result) -> None:
    """Raises KeyError or TypeError."""
    e = result.experiment
    words = [e.method, e.dataset, e.category, e.profile]
    words += [one[name] for one in result.measures for name in ("category", "metric")]
    numbers = [e.seed, *(one["value"] for one in result.measures if one["value"] is not None)]
    if not isinstance(result.provenance, dict) or not all(isinstance(word, str) for word in words):
        raise TypeError
    if not all(isinstance(number, (int, float)) for number in numbers):
        raise TypeError


def _digest(body: dict[str, Any]) -> str:
    return digest_text(json.dumps(body, sort_keys=True))


def file_digest(path: Path) -> str:
    return digest_file(path)[:16]


def _set_aside(path: Path, word: str) -> bool:
    """Rename a file to *.WORD-N; True when it is gone, moved by this process or by another."""
    number = 1
    while (aside := path.with_name(f"{path.name}.{word}-{number}")).exists():
        number += 1
    try:
        path.replace(aside)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True

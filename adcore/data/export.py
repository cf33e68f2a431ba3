"""data_manifest.csv in other formats: Croissant (JSON-LD) for data sets, pooch's registry for files."""

from __future__ import annotations

import re
import shlex
from pathlib import PurePosixPath
from typing import Any

from adcore.data.manifest import Entry, direct_link, entry, load_manifest, unverified
from adcore.errors import ParameterError

# The context of Croissant 1.0, included so that reading the export needs no network.
CONTEXT: dict[str, Any] = {
    "@language": "en", "@vocab": "https://schema.org/", "citeAs": "cr:citeAs", "column": "cr:column",
    "conformsTo": "dct:conformsTo", "cr": "http://mlcommons.org/croissant/", "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"}, "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/", "examples": {"@id": "cr:examples", "@type": "@json"}, "extract": "cr:extract",
    "field": "cr:field", "fileProperty": "cr:fileProperty", "fileObject": "cr:fileObject", "fileSet": "cr:fileSet",
    "format": "cr:format", "includes": "cr:includes", "isLiveDataset": "cr:isLiveDataset", "jsonPath": "cr:jsonPath",
    "key": "cr:key", "md5": "cr:md5", "parentField": "cr:parentField", "path": "cr:path", "recordSet": "cr:recordSet",
    "references": "cr:references", "regex": "cr:regex", "repeated": "cr:repeated", "replace": "cr:replace",
    "sc": "https://schema.org/", "separator": "cr:separator", "source": "cr:source", "subField": "cr:subField",
    "transform": "cr:transform"}
LICENSES = {"CC-BY-NC-SA-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/"}
NO_CHECKSUM = "https://github.com/mlcommons/croissant/issues/80"  # as in Croissant's own examples of a repository
FORMATS = {".xz": "application/x-xz", ".gz": "application/gzip", ".zip": "application/zip", ".tar": "application/x-tar"}


def croissant(name: str | None = None) -> dict[str, Any]:
    """Croissant 1.0 description of one data set, or a schema.org DataCatalog of all that have files of their own.

    `contentUrl` is the direct link where there is one, else the name of the file that a person downloads from `url`. An
    unknown checksum is left out.

    Raises:
        ParameterError: no data set of that name, or one that is made on demand or comes in a package.

    >>> croissant("ksdd2")["distribution"][0]["contentSize"]
    '853126555 B'
    """
    if name is not None:
        one = entry(name)
        if not _has_files(one):
            known = ", ".join(other.name for other in load_manifest().values() if _has_files(other))
            raise ParameterError(f"'{name}' is no data set with files of its own to describe; those are {known}")
        return {"@context": CONTEXT, **_dataset(one)}
    return {"@context": CONTEXT, "@type": "sc:DataCatalog", "name": "adcore",
            "description": "Data sets of five papers on image anomaly detection, as data_manifest.csv lists them.",
            "dataset": [_dataset(one) for one in load_manifest().values() if _has_files(one)]}


def _has_files(one: Entry) -> bool:
    return one.kind == "dataset" and one.url.startswith("https://")


def _dataset(one: Entry) -> dict[str, Any]:
    return {
        "@type": "sc:Dataset", "name": one.name, "conformsTo": "http://mlcommons.org/croissant/1.0",
        "description": f"{one.citation}. {one.note or one.unpacks}.", "license": LICENSES.get(one.license, one.license),
        "url": one.url, "citeAs": one.citation, **({"version": one.version} if one.version else {}),
        "distribution": [_file(one)]}


def _file(one: Entry) -> dict[str, Any]:
    if one.unpacks.startswith("git clone"):
        return {"@type": "cr:FileObject", "@id": "repository", "name": "repository", "contentUrl": f"{one.url}.git",
                "encodingFormat": "git+https", "sha256": NO_CHECKSUM}
    found = {"@type": "cr:FileObject", "@id": one.file, "name": one.file,
             "contentUrl": one.url if direct_link(one) else one.file,
             "encodingFormat": FORMATS[PurePosixPath(one.file).suffix]}
    if one.bytes:
        found["contentSize"] = f"{one.bytes} B"
    if one.sha256.startswith("md5:"):
        found["md5"] = one.sha256.removeprefix("md5:")
    elif re.fullmatch(r"[0-9a-f]{64}", one.sha256):
        found["sha256"] = one.sha256
    return found


def pooch_registry() -> str:
    """Lines `file hash url` for `pooch.Pooch.load_registry`, one per file with a direct link and a full checksum.

    Files that pooch cannot check follow as comments, with the reason.

    >>> print(pooch_registry().splitlines()[1])
    cifar-10-python.tar.gz md5:c58f30108f718f92721af3b95e74349a https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz
    """
    lines, others = [], []
    for one in load_manifest().values():
        if not direct_link(one):
            continue
        if why := unverified(one):
            others.append(f"# {one.file} {one.url} ({why})")
        else:
            lines.append(f"{shlex.quote(one.file)} {one.sha256} {one.url}")
    return "\n".join([*lines, *others]) + "\n"

"""Dependencies are listed only in pyproject.toml and exact versions only in constraints.txt; other files refer to them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from adcore.data.manifest import load_manifest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
APART = ("bench", "browser", "slurm", "kubernetes")  # extras that `all` leaves out
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


def pins() -> list[str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def requirements(*extras: str) -> Iterator[Requirement]:
    """The requirements of the project and of the given extras; an extra that names extras is resolved."""
    for line in [*PROJECT["dependencies"], *(line for extra in extras for line in EXTRAS[extra])]:
        requirement = Requirement(line)
        if requirement.name == PROJECT["name"]:
            yield from (r for extra in requirement.extras for r in map(Requirement, EXTRAS[extra]))
        else:
            yield requirement


def environment() -> list[Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]


def test_conda_installs_only_python_and_tools_and_pip_installs_everything_else():
    *conda, pip = environment()
    assert {re.split(r"[=<>]", line)[0] for line in conda} == {"python", "pip", "make", "git"}
    assert pip == {"pip": ["--constraint constraints.txt", "--editable .[all]"]}


def test_the_python_of_conda_is_supported():
    (line,) = [line for line in environment() if str(line).startswith("python")]
    version = line.partition("=")[2]
    assert version in PYTHONS and Requirement(f"python{PROJECT['requires-python']}").specifier.contains(f"{version}.0")


def test_exactly_python_3_10_to_3_13_are_supported():
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [f"3.{minor}" for minor in range(7, 17) if supported.contains(f"3.{minor}.5")] == list(PYTHONS)


def test_every_constraint_pins_one_package_to_one_exact_version():
    for line in pins():
        requirement = Requirement(line)
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; .+)?", line), line
        assert requirement.url is None and not requirement.extras and len(list(requirement.specifier)) == 1


def test_each_pin_has_the_digests_of_its_files_and_no_address():
    text = (ROOT / ".ci" / "hashes.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+==[^\\]+?) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.MULTILINE)
    assert [pin for pin, _ in entries] == pins()
    assert len(re.findall("^[^ #]", text, re.MULTILINE)) == len(entries) and "://" not in text
    assert re.fullmatch(r"#.+\nuv==[0-9.]+ \\\n(    --hash=sha256:[0-9a-f]{64}( \\)?\n)+",
                        (ROOT / ".ci" / "uv.txt").read_text(encoding="utf-8"))


def test_make_installs_only_files_whose_digest_is_listed():
    installs = re.findall(r"pip install (?:.+\\\n)*.+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    assert len(installs) == 2
    for words in installs:
        assert ("--constraint .ci/hashes.txt" in words and "--build-constraint .ci/hashes.txt" in words) or (
            "--require-hashes --requirement .ci/uv.txt" in words), words
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]["requires"]
    assert {Requirement(line).name for line in build} <= {Requirement(line).name for line in pins()}


@pytest.mark.parametrize("python", PYTHONS)
def test_every_dependency_has_one_accepted_version_for_each_supported_python(python):
    where = {"python_version": python, "python_full_version": f"{python}.5", "sys_platform": "linux",
             "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix",
             "implementation_name": "cpython", "platform_python_implementation": "CPython"}
    pinned: dict[str, list[str]] = {}
    for requirement in map(Requirement, pins()):
        if requirement.marker is None or requirement.marker.evaluate(where):
            pinned.setdefault(requirement.name, []).append(next(iter(requirement.specifier)).version)
    assert not {name: versions for name, versions in pinned.items() if len(versions) > 1}
    for requirement in requirements("all", *APART):
        if requirement.marker is None or requirement.marker.evaluate(where):
            (version,) = pinned[requirement.name.lower()]
            assert requirement.specifier.contains(Version(version), prereleases=True), requirement


def test_the_extra_all_contains_every_extra_except_those_for_benchmarks_browsers_and_clusters():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.extras == set(EXTRAS) - {"all", *APART}


def test_every_extra_that_is_mentioned_anywhere_exists():
    texts = [*ROOT.glob("*.md"), *ROOT.glob("*.yml"), ROOT / "Makefile", *ROOT.glob("adcore/**/*.py"),
             *ROOT.glob("notebooks/**/*.ipynb"), *ROOT.glob("workflow/**/*.y*ml"), *ROOT.glob("workflow/**/*.md")]
    named = {(path.name, extra.strip()) for path in texts
             for group in re.findall(r"(?:adcore|['\" ]\.)\[([a-z, ]+)\]", path.read_text(encoding="utf-8"))
             for extra in group.split(",")}
    assert {extra for _, extra in named} >= {"all", "elpv"}, "the search pattern is broken"
    assert not [one for one in named if one[1] not in EXTRAS]


def test_make_help_lists_all_targets():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (phony,) = re.findall(r"^\.PHONY: (.+)$", text, re.MULTILINE)
    targets = set(re.findall(r"^([a-z-]+):(?!=)", text, re.MULTILINE))
    assert set(phony.split()) == targets
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    words = ["make", "--no-print-directory", "help"]  # a make that runs this test would add lines about folders
    printed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in printed.splitlines()} == targets
    assert all(len(line.split()) > 1 for line in printed.splitlines())


def test_make_accepts_the_same_python_versions_as_the_package():
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    (low, high) = re.findall(r"\((\d, \d+)\) <= sys\.version_info\[:2\] <= \((\d, \d+)\)", text)[0]
    assert (low.replace(", ", "."), high.replace(", ", ".")) == (PYTHONS[0], PYTHONS[-1])


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that pip makes of a source distribution of the files under version control, unpacked into a folder."""
    pytest.importorskip("setuptools", minversion="77")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "data_manifest.csv"):
        shutil.copy(ROOT / name, source / name)
    shutil.copytree(ROOT / "adcore", source / "adcore", ignore=shutil.ignore_patterns("__pycache__"))

    def build(kind: str, where: Path) -> Path:
        code = f"import sys\nfrom setuptools import build_meta\nbuild_meta.build_{kind}(sys.argv[1])"
        subprocess.run([sys.executable, "-c", code, str(folder)], cwd=where, capture_output=True, check=True)
        return next(folder.glob("*.tar.gz" if kind == "sdist" else "*.whl"))

    shutil.unpack_archive(build("sdist", source), folder)
    (unpacked,) = folder.glob("adcore-*/")
    shutil.unpack_archive(build("wheel", unpacked), folder / "site", "zip")
    return folder / "site"


def test_a_wheel_has_the_manifest_and_every_other_file_of_the_package(wheel):
    assert (wheel / "adcore/data/data_manifest.csv").read_bytes() == (ROOT / "data_manifest.csv").read_bytes()
    here = {path.relative_to(ROOT) for path in ROOT.glob("adcore/**/*") if path.is_file()}
    ours = {path for path in here if path.suffix != ".md" and "__pycache__" not in path.parts}
    assert {path.relative_to(wheel) for path in wheel.glob("adcore/**/*") if path.is_file()} == ours | {
        Path("adcore/data/data_manifest.csv")}
    assert not [path for path in wheel.iterdir() if path.name != "adcore" and not path.name.endswith(".dist-info")]


def test_the_manifest_is_found_in_whatever_folder_the_wheel_was_installed(wheel, tmp_path):
    """As after `pip install --target FOLDER` or `--user`, where sys.prefix is another folder."""
    code = ("import sys\nsys.prefix = sys.argv[1]\nimport adcore.paths\nfrom adcore.data.manifest import load_manifest\n"
            "print(adcore.__file__, adcore.paths.repository(), len(load_manifest()))")
    printed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=tmp_path, capture_output=True, text=True,
                             env={**os.environ, "PYTHONPATH": str(wheel)}, check=True).stdout
    assert printed.split() == [str(wheel / "adcore/__init__.py"), "None", str(len(load_manifest()))]


def test_importing_the_command_line_does_not_import_torch():
    """`adcore doctor` must be able to report that torch is missing."""
    code = "import sys, adcore.cli, adcore.doctor, adcore.notebook, adcore.grids; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"

"""The files for Binder (environment.yml) and Colab (workflow/colab.ipynb), as far as they can be checked without a network."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml
from support.report import write_notebook

from adcore.paths import repository

tomllib = pytest.importorskip("tomllib")    # part of Python since 3.11

ROOT = repository()
assert ROOT is not None
COLAB = nbformat.read(ROOT / "workflow" / "colab.ipynb", as_version=4)


def check_pip(words: list[str]) -> None:
    """The words of a pip install name a constraints file and extras that exist."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert (ROOT / words[words.index("--constraint") + 1]).is_file()
    (chosen,) = re.fullmatch(r"\.\[(.+)\]", words[words.index("--editable") + 1]).groups()
    assert set(chosen.split(",")) <= set(extras)


def test_binder_finds_an_environment_of_the_exact_versions():
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    (pip,) = (one["pip"] for one in dependencies if isinstance(one, dict))
    check_pip(shlex.split(" ".join(pip)))


def test_colab_installs_the_exact_versions_with_what_notebooks_need():
    nbformat.validate(COLAB)
    (line,) = re.findall(r"^%pip install (.+)$", "\n".join(cell.source for cell in COLAB.cells), re.M)
    check_pip(shlex.split(line))
    assert "notebooks" in line


def test_colab_shows_the_executed_notebook_as_a_page(tmp_path: Path):
    write_notebook(tmp_path / "shown.ipynb")
    (tmp_path / "adcore").mkdir()                                   # the clone, in which the cells run
    assert '!python -c "{show}"' in COLAB.cells[-1].source
    (begin,) = re.findall(r'^show = "(.+)"$', COLAB.cells[-1].source, re.M)
    (end,) = re.findall(r'^show \+= "(.+)"$', COLAB.cells[-1].source, re.M)
    subprocess.run([sys.executable, "-c", begin + end], cwd=tmp_path / "adcore", check=True)
    assert "<math" in (tmp_path / "shown.html").read_text()

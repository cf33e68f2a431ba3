"""The glossary and the bibliography: complete, and each entry points to something that is there."""

import re
from pathlib import Path

import nbformat

import adcore
from adcore.data.manifest import load_manifest
from adcore.notebook import all_notebooks, notebook_name
from adcore.papers import bibliography, glossary, papers

PACKAGE = Path(adcore.__file__).parent


def text_of(path: Path) -> str:
    return " ".join(cell.source for cell in nbformat.read(path, as_version=4).cells).lower()


def test_each_term_of_the_glossary_is_used_in_the_notebook_that_it_names():
    texts = {notebook_name(path): text_of(path) for path in all_notebooks()}
    missing = [term for term, row in glossary().iterrows() if term.lower() not in texts[row.notebook]]
    assert not missing


def test_each_work_is_used_by_papers_that_exist():
    for name, work in bibliography().iterrows():
        assert set(work.papers.split(";")) <= set(papers().index), name
        assert re.fullmatch(r"(https://(arxiv\.org/abs/\d{4}\.\d{4,5}|doi\.org/\S+))?", work.url), name
        assert re.search(rf"{work.year}", name), name


def test_every_first_author_that_the_code_cites_is_in_the_bibliography():
    authors = [*papers().authors, *bibliography().authors]
    known = {first.split("; ")[0].split()[-1] for first in authors}
    known |= {entry.citation.split()[0].replace("Božič", "Bozic") for entry in load_manifest().values()}
    cited = {name for path in PACKAGE.rglob("*.py") for name in re.findall(r"([A-Z]\w+) et al\.", path.read_text())}
    assert len(cited) > 15 and not cited - known, cited - known

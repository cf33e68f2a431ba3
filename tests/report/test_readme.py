"""README.md, results/README.md and CONTRIBUTING.md match the csv files and name only commands and files that exist."""

import re
from pathlib import Path

import pytest

from adcore.cli import _parser
from adcore.report import readme

ROOT = Path(__file__).resolve().parents[2]
README, RESULTS = ROOT / "README.md", ROOT / "results" / "README.md"
PAGES = [README, RESULTS, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("adcore/papers/*/README.md"))]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


def test_the_table_of_measured_numbers_is_written_from_the_csv_files():
    text = RESULTS.read_text(encoding="utf-8")
    assert readme.rendered(text) == text, "run `adcore report --readme`"
    assert "| patchcore | mtd+mvtec_384+mvtec_512 | bottle |" in text


def test_the_table_of_files_names_every_file_on_record():
    text = RESULTS.read_text(encoding="utf-8")
    for path in ROOT.glob("results/*.csv"):
        assert f"`{path.name}`" in text


@pages
def test_every_adcore_command_and_make_target_on_a_page_exists(page):
    text = page.read_text(encoding="utf-8")
    known = next(action for action in _parser()._actions if action.choices).choices
    commands = {one or other for one, other in re.findall(r"`adcore ([a-z]+)|^adcore ([a-z]+)", text, re.MULTILINE)}
    assert commands <= set(known)
    targets = set(re.findall(r"^([a-z-]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE)) <= targets


@pages
def test_every_file_that_a_page_links_to_exists(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_example_in_the_readme_runs():
    (example,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    found: dict = {}
    exec(example.replace('["gear"])', '["gear"], train=4, good=2, defective=2)'), found)
    prediction = found["prediction"]
    assert prediction.score.shape == (4,) and prediction.map.shape == (4, 160, 160)

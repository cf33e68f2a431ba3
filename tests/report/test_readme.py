"""The README says what is on record, and names only what there is."""

import re
from pathlib import Path

from adcore.cli import _parser
from adcore.report import readme

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_measured_numbers_is_the_rendering_of_results():
    assert readme.rendered(TEXT) == TEXT, "run `adcore report --readme`"
    assert "| patchcore | mtd | magnetic_tile |" in TEXT


def test_every_adcore_command_and_make_target_in_it_exists():
    known = next(action for action in _parser()._actions if action.choices).choices
    assert set(re.findall(r"`adcore (\w+)|^adcore (\w+)", TEXT, re.MULTILINE)) - {(name, "") for name in known} - {
        ("", name) for name in known} == set()
    targets = set(re.findall(r"^([a-z]+):(?!=)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"(?:`|^)make (\w+)", TEXT, re.MULTILINE)) <= targets


def test_every_file_it_links_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / target).exists(), target


def test_the_example_in_it_runs():
    (example,) = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    found: dict = {}
    exec(example.replace('["gear"])', '["gear"], train=4, good=2, defective=2)'), found)
    prediction = found["prediction"]
    assert prediction.score.shape == (4,) and prediction.map.shape == (4, 160, 160)

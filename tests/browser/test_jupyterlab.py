"""A notebook in JupyterLab, as a reader sees it: run, used, saved, and opened again without a kernel or with a new one.

Pictures of the pages are written into the folder ADCORE_BROWSER: look at them.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from browser.lab import Lab, jupyterlab

from adcore.notebook import find_notebook

SHOTS = Path(os.environ["ADCORE_BROWSER"]).absolute()
MINUTE = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("this test needs Chromium: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api", reason="this test needs playwright: pip install 'adcore[browser]'")
    with api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    (tmp_path / "notebooks").mkdir()
    with jupyterlab(tmp_path / "notebooks", tmp_path) as running:
        yield running


def opened(browser: Any, lab: Lab, name: str, *, kernel: bool = True) -> Any:
    """The page of a notebook; without a kernel it is as on a machine where none is installed."""
    page = browser.new_page(viewport={"width": 1300, "height": 1400})
    page.set_default_timeout(MINUTE)
    if not kernel:
        page.route("**/api/kernelspecs*", lambda route: route.fulfill(json={"default": "none", "kernelspecs": {}}))
    page.goto(lab.page_of(name))
    page.wait_for_selector(".jp-Notebook .jp-CodeCell")
    if kernel:
        for _ in range(120):                                  # the page itself looks ready before it has a kernel
            if any(session["kernel"]["execution_state"] == "idle" for session in lab.sessions()):
                break
            page.wait_for_timeout(500)
        page.wait_for_timeout(2000)
    else:
        page.locator(".jp-Dialog").get_by_role("button", name="No Kernel", exact=True).click()
    return page


def run_all(page: Any, minutes: int = 20) -> None:
    """Run > Run All Cells, until no prompt has a star."""
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    stars = "[...document.querySelectorAll('.jp-InputPrompt')].some(one => one.innerText.includes('*'))"
    page.wait_for_function(stars)
    page.wait_for_function(f"!{stars}", timeout=minutes * MINUTE)


def save(page: Any, path: Path) -> Any:
    """File > Save Notebook; what the file then holds."""
    before = path.stat().st_mtime_ns
    page.get_by_role("menuitem", name="File", exact=True).click()
    page.get_by_text("Save Notebook", exact=True).click()
    for _ in range(100):
        if path.stat().st_mtime_ns != before:
            break
        page.wait_for_timeout(100)
    page.wait_for_selector(".jp-mod-dirty", state="detached")
    return nbformat.read(path, as_version=4)


def pictures(page: Any) -> list[tuple[str, int]]:
    """(base64 data, width in pixels) of each picture in an output; the width is 0 when the browser could not draw it."""
    found = page.locator(".jp-OutputArea-output img").evaluate_all("all => all.map(one => [one.src, one.naturalWidth])")
    return [(source.partition("base64,")[2], width) for source, width in found]


def pictures_of(notebook: Any) -> list[str]:
    """Base64 data of each picture that a notebook's file holds."""
    kinds = ("image/png", "image/jpeg")
    return ["".join(output.data[kind].split()) for cell in notebook.cells for output in cell.get("outputs", [])
            for kind in kinds if kind in output.get("data", {})]


@pytest.mark.parametrize("name", ["00_start_here", "uniad2022/06_reconstruction_maps"])
def test_a_notebook_that_was_run_used_and_saved_shows_its_pictures_again(browser, lab, name):
    file = lab.folder / f"{Path(name).name}.ipynb"
    shutil.copy(find_notebook(name), file)
    SHOTS.mkdir(parents=True, exist_ok=True)

    def shot(page: Any, what: str) -> None:
        page.locator(".jp-OutputArea:has(.adcore-controls)").first.scroll_into_view_if_needed()
        page.screenshot(path=SHOTS / f"{file.stem}-{what}.png")

    page = opened(browser, lab, file.name)
    run_all(page)
    menu = ".jp-OutputArea-child:has(.widget-dropdown)"
    picture = page.locator(f"{menu} + .jp-OutputArea-child img").first
    before = picture.get_attribute("src")
    shot(page, "1-run")
    page.locator(f"{menu} select").first.select_option(index=1)
    for _ in range(120):
        if (after := picture.get_attribute("src")) != before:
            break
        page.wait_for_timeout(500)
    shot(page, "2-used")
    notebook = save(page, file)
    page.close()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not [output for output in outputs if output.output_type == "error"]
    saved = pictures_of(notebook)
    assert len(saved) >= 3 and after.partition("base64,")[2] in saved and before.partition("base64,")[2] not in saved
    views = [output for output in outputs if "application/vnd.jupyter.widget-view+json" in output.get("data", {})]
    assert len(views) == "".join(cell.source for cell in notebook.cells).count("explore("), "a progress bar has left a widget"

    lab.end_kernels()
    for kernel in (False, True):                              # a new kernel does not know the widgets of the old one
        again = opened(browser, lab, file.name, kernel=kernel)
        again.wait_for_function("count => document.querySelectorAll('.jp-OutputArea-output img').length == count",
                                arg=len(saved))
        again.wait_for_timeout(3000)                          # widgets are looked for after the page is shown
        shot(again, "4-new-kernel" if kernel else "3-no-kernel")
        assert bool(lab.sessions()) == kernel
        text = again.locator(".jp-Notebook").inner_text()
        shown = pictures(again)
        again.close()
        assert "Error displaying widget" not in text and "Loading widget" not in text
        assert "Run this notebook to change the figure by its controls" in text
        assert [data for data, _ in shown] == saved and all(width > 100 for _, width in shown)

"""`adcore weights fetch` from a server that breaks off, sends other files or has none: new attempts, a bar, a clear message."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from support.web import Answer, Web, honest, says, web

from adcore import cli
from adcore.data.manifest import entry
from adcore.experiments import Experiment
from adcore.experiments.inputs import weights_mark

__all__ = ["web"]
CONTENT = bytes(range(251)) * 40


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of ADCORE_WEIGHTS; pooch does not wait between two attempts."""
    monkeypatch.setenv("ADCORE_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    return tmp_path / "weights"


def serve(web: Web, monkeypatch: pytest.MonkeyPatch, *answers: Answer, content: bytes = CONTENT, checked: bool = True) -> str:
    """Put a checkpoint on the server, its address and its checksum into the row."""
    url = web.put("/resnet18.pth", content, *answers)
    digest = hashlib.sha256(CONTENT).hexdigest() if checked else ""
    row = replace(entry("resnet18"), url=url, file="resnet18.pth", bytes=None, sha256=digest)
    monkeypatch.setattr("adcore.features.weights._entry", lambda name: row)
    return url


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["weights", "fetch", "resnet18"]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("adcore: ") and err.count("\n") == 1
    return err.removeprefix("adcore: ").rstrip("\n")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


@pytest.mark.parametrize("checked", [True, False])
def test_a_download_is_tried_five_times_and_begins_again_at_the_next_call(web, folder, monkeypatch, capsys, checked):
    url = serve(web, monkeypatch, *[honest(cut=700)] * 5, checked=checked)
    assert complaint(capsys) == (f"cannot download {url} (the connection was cut after 700 of {len(CONTENT)} bytes): get it by "
                                 f"hand and put it at {folder}/resnet18.pth")
    assert names(folder) == [] and len(web.asked) == 5
    assert cli.main(["weights", "fetch", "resnet18"]) == 0
    assert capsys.readouterr().out == f"{folder}/resnet18.pth\n" and (folder / "resnet18.pth").read_bytes() == CONTENT
    assert names(folder) == ["resnet18.pth"]


def test_a_person_sees_a_progress_bar_and_a_batch_run_nothing(web, folder, monkeypatch, capsys):
    for wish in ("1", "0"):
        monkeypatch.setenv("ADCORE_PROGRESS", wish)
        serve(web, monkeypatch, honest(cut=len(CONTENT) // 2))
        assert cli.main(["weights", "fetch", "resnet18"]) == 0
        said = capsys.readouterr().err
        assert ("resnet18.pth: " in said and "%" in said) if wish == "1" else said == ""
        (folder / "resnet18.pth").unlink()


@pytest.mark.parametrize(("answer", "why"), [
    (says(404, 0, Content_Length=0), "404 Not Found"), (says(302, Location="file:///etc/hostname"), "302 "),
    (says(200, Content_Type="text/html", Content_Length=len(CONTENT)), "it is a web page, not a file")])
def test_a_failed_download_raises_one_sentence_and_leaves_nothing(web, folder, monkeypatch, capsys, answer,
                                                                                       why):
    url = serve(web, monkeypatch, answer)
    text = complaint(capsys)
    assert text.startswith(f"cannot download {url} ({why}") and text.endswith(
        f": get it by hand and put it at {folder}/resnet18.pth")
    assert names(folder) == []


def test_another_checkpoint_than_the_manifest_s_is_refused_and_not_kept(web, folder, monkeypatch, capsys):
    url = serve(web, monkeypatch, content=CONTENT[::-1])
    assert complaint(capsys).startswith(f"{url} sent a file that is not 'resnet18': expected sha256 ")
    assert names(folder) == []


@pytest.mark.parametrize(("known", "why"), [
    (0, "no checksum of it is known"), (8, "only the first 8 digits of its SHA-256 are known"), (64, "")])
def test_a_checkpoint_whose_whole_checksum_is_not_known_is_called_unverified(web, folder, monkeypatch, capsys, known, why):
    digest = hashlib.sha256(CONTENT).hexdigest()[:known]
    row = replace(entry("moco_v2_800ep"), url=web.put("/x.pth.tar", CONTENT), file="x.pth.tar",
                  sha256=f"prefix:{digest}" if known == 8 else digest)
    manifest = {"moco_v2_800ep": row}
    monkeypatch.setattr("adcore.features.weights.load_manifest", lambda: manifest)
    monkeypatch.setattr("adcore.data.manifest.load_manifest", lambda: manifest)
    assert cli.main(["weights", "fetch", "moco_v2_800ep"]) == 0
    assert capsys.readouterr().err == (f"adcore: x.pth.tar is unverified: {why}\n" if why else "")
    monkeypatch.setattr("adcore.features.read_checkpoint", lambda path: {})
    assert cli.main(["weights", "verify", "moco_v2_800ep"]) == 0
    assert capsys.readouterr().out == f"x.pth.tar: 0 tensors, {f'unverified: {why}' if why else 'file matches the manifest'}\n"
    experiment = Experiment("patchcore", "mini", "brick", settings=(("backbone", "resnet50"), ("weights", "moco_v2_800ep")))
    assert weights_mark(experiment) == (" (unverified)" if why else "")
    assert weights_mark(Experiment("brightness", "mini", "brick")) == ""

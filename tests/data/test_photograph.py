"""Photographs by name or by path."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from adcore.data import PHOTOGRAPHS, photograph
from adcore.errors import DataError, ParameterError


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_every_named_photograph_is_in_its_package_and_all_but_the_coins_have_color(name, nothing_here):
    image = photograph(name)
    pixels = np.asarray(image).astype(int)
    assert image.mode == "RGB" and min(image.size) >= 300
    assert (np.ptp(pixels, axis=2).max() == 0) == (name == "coins")


def test_a_path_may_begin_with_a_data_set_and_a_folder_stands_for_its_first_image(tmp_path, monkeypatch):
    folder = tmp_path / "mvtec_anomaly_detection" / "screw"
    folder.mkdir(parents=True)
    for i, shade in ((2, 20), (1, 10)):
        Image.new("L", (8, 6), shade).save(folder / f"00{i}.png")
    (folder / "000.txt").write_text("no image")
    os.mkfifo(folder / "000.png")  # which would wait for a writer
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    for name in (str(folder), str(folder / "001.png"), "mvtec_ad/screw", "mvtec_anomaly_detection/screw/001.png"):
        image = photograph(name)
        assert image.size == (8, 6) and image.getpixel((0, 0)) == (10, 10, 10)


def test_the_error_for_an_unknown_photograph_lists_the_names_and_an_empty_folder_is_named(tmp_path, nothing_here):
    with pytest.raises(ParameterError, match=r"no photograph 'astronout' \(did you mean 'astronaut'\?\): .* chelsea"):
        photograph("astronout")
    with pytest.raises(ParameterError, match="name an image file"):
        photograph("mvtec_ad/screw/none.png")
    with pytest.raises(DataError, match="holds no image"):
        photograph(str(tmp_path))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match="cannot be read as an image"):
        photograph(str(tmp_path))

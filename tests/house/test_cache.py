"""A cache that others can write to: whose entries are used, and what a result tells about them."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from support.tiny import write_tiny

from adcore.cache import describe, entries_used, entry
from adcore.data import Sample, View
from adcore.digests import file_digests
from adcore.errors import StoreError
from adcore.experiments import grid, run
from adcore.features import FeatureExtractor, cached_features
from adcore.paths import cache_folder, cache_room, check_owner

REFUSED = "belongs to another user .*ADCORE_CACHE.*ADCORE_SHARED_CACHE=1"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADCORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ADCORE_SHARED_CACHE", raising=False)
    return tmp_path / "cache"


@pytest.fixture
def as_another(monkeypatch: pytest.MonkeyPatch):
    """From now on this process is another user, to whom all files so far are someone else's."""
    mine = os.getuid()

    def become() -> None:
        monkeypatch.setattr(os, "getuid", lambda: mine + 1)

    return become


def features(folder: Path, count: int = 3) -> torch.Tensor:
    samples = []
    for i in range(count):
        path = folder / f"{i}.png"
        if not path.exists():
            Image.fromarray(np.random.default_rng(i).integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(path)
        samples.append(Sample(path, "x", 0))
    return cached_features(samples, View(32), FeatureExtractor("resnet18", (1,), "random"), lambda maps: maps[0], "layer1")


def test_the_cache_and_its_rooms_are_open_to_their_user_alone(cache):
    old = os.umask(0)
    try:
        room = cache_room("features")
    finally:
        os.umask(old)
    assert room == cache / "features" and cache_folder() == cache
    assert [stat.S_IMODE(folder.stat().st_mode) for folder in (cache, room)] == [0o700, 0o700]


def test_a_folder_that_is_there_already_keeps_its_mode(cache):
    cache.mkdir(mode=0o755)
    cache.chmod(0o770)
    cache_room("features")
    assert stat.S_IMODE(cache.stat().st_mode) == 0o770


def test_features_of_another_user_are_refused_unless_asked_for(tmp_path, as_another, monkeypatch):
    first = features(tmp_path).clone()
    as_another()
    with pytest.raises(StoreError, match=REFUSED):
        features(tmp_path)
    monkeypatch.setenv("ADCORE_SHARED_CACHE", "1")
    assert torch.equal(features(tmp_path), first)


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch):
    """Makes one path, and not what it leads to, another user's."""
    def give_away(path: Path) -> None:
        plain, other = os.lstat, SimpleNamespace(st_uid=os.getuid() + 1)
        monkeypatch.setattr(os, "lstat", lambda one, **more: other if Path(one) == path else plain(one, **more))

    return give_away


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_an_entry_is_refused_when_its_file_or_its_description_is_anothers(tmp_path, foreign, suffix):
    path = tmp_path / "a.npy"
    path.write_bytes(b"content")
    describe(path, {})
    assert entry(path) is not None
    foreign(path.with_suffix(suffix))
    with pytest.raises(StoreError, match=REFUSED):
        entry(path)


def test_a_link_of_another_user_is_refused_though_it_leads_to_a_file_of_ones_own(tmp_path, foreign):
    target, link = tmp_path / "mine", tmp_path / "link"
    target.touch()
    link.symlink_to(target)
    check_owner(link)
    foreign(link)
    with pytest.raises(StoreError, match=REFUSED):
        check_owner(link)


def test_an_entry_with_one_row_of_three_is_computed_again(tmp_path, cache):
    whole = features(tmp_path).clone()
    (path,) = (cache / "features").glob("*.npy")
    np.save(path, whole.numpy()[:1])
    describe(path, {})  # even one that is described
    assert torch.equal(features(tmp_path), whole)


def test_an_entry_of_other_features_under_this_name_is_computed_again(tmp_path, cache):
    whole = features(tmp_path).clone()
    (mine,) = (cache / "features").glob("*.npy")
    others = tmp_path / "others"
    others.mkdir()
    Image.new("RGB", (32, 32), "red").save(others / "0.png")
    features(others)
    (other,) = set((cache / "features").glob("*.npy")) - {mine}
    for suffix in (".npy", ".json"):  # the pair fits: only its name tells
        shutil.copyfile(other.with_suffix(suffix), mine.with_suffix(suffix))
    with pytest.warns(UserWarning, match="is damaged or another entry"):
        assert torch.equal(features(tmp_path), whole)


def test_one_changed_value_in_an_entry_is_found(tmp_path, cache):
    whole = features(tmp_path).clone()
    (path,) = (cache / "features").glob("*.npy")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged or another entry"):
        assert torch.equal(features(tmp_path), whole)


@pytest.mark.parametrize("text", ["", "[]", "{}", "7", '{"entry": "x"}', "\0"])
def test_a_damaged_description_makes_the_entry_unknown(tmp_path, text):
    path = tmp_path / "a.npy"
    path.write_bytes(b"content")
    path.with_suffix(".json").write_text(text)
    with pytest.warns(UserWarning, match="is damaged or another entry"):
        assert entry(path) is None


def test_an_entry_without_description_and_a_missing_one_are_unknown_without_a_warning(tmp_path, recwarn):
    path = tmp_path / "a.npy"
    assert entry(path) is None
    path.write_bytes(b"content")
    assert entry(path) is None and not recwarn.list


def test_digests_that_another_user_remembers_are_not_believed(tmp_path, cache, as_another, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"content")
    os.utime(path, (1, 1))
    monkeypatch.setattr("adcore.digests.AT_REST", -60.0)
    true = file_digests([path])
    (place,) = (cache / "digests").iterdir()
    place.write_text(place.read_text().replace(true[0], "0" * 32))
    monkeypatch.setattr("adcore.digests._known", {})
    assert file_digests([path]) == ["0" * 32], "this is how a poisoned digest looks"
    monkeypatch.setattr("adcore.digests._known", {})
    as_another()
    assert file_digests([path]) == true


def test_a_result_keeps_the_digests_of_the_entries_it_rests_on(tmp_path, cache, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path / "data"))
    write_tiny(tmp_path / "data" / "own", train=3)
    experiments = grid("uniad", dataset="own", categories="cloth", backbone="resnet18", taps=(1,), weights="random",
                       image_size=64, epochs=1, hidden=16, heads=2, ffn=16, neighbors=1, encoder_layers=1, decoder_layers=1)
    used = run(experiments, out=tmp_path / "runs", device="cpu", progress=False).results[0].provenance["cache"]
    assert used and used == {f"features/{path.name}": file_digests([path])[0] for path in (cache / "features").glob("*.npy")}


def test_entries_are_collected_inside_the_block_only(tmp_path):
    path = tmp_path / "a.npy"
    path.write_bytes(b"content")
    with entries_used() as used:
        describe(path, {})
        assert entry(path) is not None
    describe(path, {})
    assert used == {f"{tmp_path.name}/a.npy": file_digests([path])[0]}

"""CIFAR-10 in its own format, compared with torchvision's reader; files in other formats are refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
import struct
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torchvision.datasets
from hypothesis import given
from hypothesis import strategies as st

from adcore import cli
from adcore.data import PackedSample, Sample, cifar10, find_dataset, load_dataset
from adcore.data.cifar10 import CLASSES, load_cifar10, read_batch
from adcore.data.classes import SPLITS, many_versus_many
from adcore.data.manifest import load_manifest
from adcore.data.split import draw
from adcore.errors import DataError, ParameterError
from adcore.experiments import Experiment, grid

pytestmark = pytest.mark.usefixtures("nothing_here")

PUBLISHED = cifar10.MD5
FILES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
PER_BATCH = 20


class Python2(pickle._Pickler):
    """Writes what CIFAR-10's authors wrote: protocol 2 of Python 2, its byte strings, numpy under its old name."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_byte_string(self, value: str | bytes) -> None:
        raw = value.encode("latin1") if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_byte_string


def write(path: Path, content: Any) -> Path:
    """Write a batch as CIFAR-10's authors did."""
    file = io.BytesIO()
    Python2(file, 2).dump(content)
    return put(path, file.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"))


def put(path: Path, content: bytes) -> Path:
    """Write a file and take it for the published one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    cifar10.MD5[path.name] = hashlib.md5(content).hexdigest()
    return path


def batch(number: int = 0, count: int = PER_BATCH) -> dict[str, Any]:
    """Noise with shuffled labels, the same number of images of each class if the count allows it."""
    rng = np.random.default_rng(number)
    return {"batch_label": f"batch {number}", "data": rng.integers(0, 256, (count, 3072), dtype=np.uint8),
            "labels": [int(k) for k in rng.permutation(np.arange(count) % 10)], "filenames": [f"{i}.png" for i in range(count)]}


@pytest.fixture(autouse=True)
def _published(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "MD5", {})


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small CIFAR-10 in a folder of ADCORE_DATA: five batches to train on and one to test, 20 images each."""
    for number, name in enumerate(FILES):
        write(tmp_path / "cifar10/cifar-10-batches-py" / name, batch(number))
    write(tmp_path / "cifar10/cifar-10-batches-py/batches.meta", {"label_names": list(CLASSES)})
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    return tmp_path / "cifar10"


def theirs(root: Path, monkeypatch: pytest.MonkeyPatch, train: bool) -> torchvision.datasets.CIFAR10:
    """torchvision's own reader, which would refuse small files for their checksums."""
    monkeypatch.setattr(torchvision.datasets.CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5: True)
    return torchvision.datasets.CIFAR10(str(root), train=train)


def number(sample: Sample) -> int:
    """A sample's place among all images of its part."""
    assert isinstance(sample, PackedSample)
    return sample.index + (0 if sample.path.name == "test_batch" else PER_BATCH * FILES.index(sample.path.name))


# CIFAR-10.

def test_the_test_files_are_in_python_2_s_format(cifar):
    found = {(code.name, argument) for code, argument, _ in
             pickletools.genops((cifar / "cifar-10-batches-py/data_batch_1").read_bytes())}
    assert {("PROTO", 2), ("BINSTRING", "data"), ("GLOBAL", "numpy.core.multiarray _reconstruct")} <= found
    assert {argument for name, argument in found if name == "GLOBAL"} == {
        "numpy.core.multiarray _reconstruct", "numpy ndarray", "numpy dtype"}
    assert not any("UNICODE" in name or "BYTES" in name for name, _ in found)


@pytest.mark.parametrize("normal", SPLITS)
def test_images_and_classes_are_those_that_torchvision_reads_from_the_same_files(cifar, monkeypatch, normal):
    data = load_cifar10(cifar, normal=normal)
    for part, train in ((data.train, True), (data.test, False)):
        reference = theirs(cifar, monkeypatch, train)
        assert reference.classes == list(CLASSES)
        for sample in part:
            image, kind = reference[number(sample)]
            assert sample.image.mode == "RGB" and np.array_equal(np.asarray(sample.image), np.asarray(image))
            assert (sample.label, sample.defect) == ((0, "good") if str(kind) in normal else (1, reference.classes[kind]))
            assert sample.category == normal
        wanted = [i for i, kind in enumerate(reference.targets) if str(kind) in normal or not train]
        assert sorted(number(sample) for sample in part) == wanted


@pytest.mark.parametrize("normal", SPLITS)
def test_five_against_five_trains_on_half_of_the_images_and_tests_on_all(cifar, normal):
    data = load_cifar10(cifar, normal=normal)
    assert data.categories == (normal,) and not data.has_masks and data.name == "cifar10"
    assert len(data.train) == 50 and {(s.label, s.defect) for s in data.train} == {(0, "good")}
    assert [s.label for s in data.test] == [0] * 10 + [1] * 10
    others = [CLASSES[k] for k in range(10) if str(k) not in normal]
    assert Counter(s.defect for s in data.test) == {"good": 10, **dict.fromkeys(others, 2)}


def test_the_four_splits_are_two_halves_and_the_even_and_the_odd_classes():
    assert [sorted(split) for split in SPLITS] == [list("01234"), list("56789"), list("02468"), list("13579")]


def test_nine_against_one_keeps_all_test_images_and_one_against_nine_draws_the_same_ones_each_time(cifar):
    many = load_cifar10(cifar, normal="012346789")
    assert len(many.train) == 90 and Counter(s.defect for s in many.test) == {"good": 18, "dog": 2}
    one = load_cifar10(cifar, normal="3")
    anomalous = [s for s in one.test if s.label]
    assert len(one.train) == 10 and len(one.test) == 4 and len(anomalous) == 2
    everything = [s for s in load_cifar10(cifar, normal="3456").test if s.label]  # 8 normal, 8 of the 12 others
    assert len(everything) == 8 and [s.index for s in everything] == sorted(s.index for s in everything)
    assert one == load_cifar10(cifar, normal="3") and hash(one.test) == hash(load_cifar10(cifar, normal="3").test)


def test_the_drawn_anomalous_images_come_from_all_anomalous_classes():
    test = [PackedSample(Path("x"), str(i % 10), 0, index=i, reader=read_batch) for i in range(10_000)]
    data = many_versus_many("x", test[:10], test, CLASSES, "0")
    drawn = Counter(s.defect for s in data.test if s.label)
    assert sum(drawn.values()) == 1000 and set(drawn) == set(CLASSES[1:])
    # 1000 of 9000 without replacement: 111.1 a class, standard deviation 9.4.
    assert all(abs(count - 1000 / 9) < 4 * 9.4 for count in drawn.values())
    assert len({s.index for s in data.test}) == 2000


@given(st.integers(0, 40), st.integers(0, 50))
def test_a_draw_splits_into_drawn_and_other_elements_in_order(n, count):
    drawn, left = draw(list(range(n)), count)
    assert len(drawn) == min(n, count) and drawn == sorted(drawn) and left == sorted(left)
    assert sorted(drawn + left) == list(range(n)) and draw(list(range(n)), count) == (drawn, left)


@pytest.mark.parametrize("normal", ["", "0a", "00", "0,1", "-1", "01234 ", "٣", "cat"])
def test_normal_classes_must_be_different_digits(cifar, normal):
    with pytest.raises(ParameterError, match=rf"^normal classes '{normal}' of data set 'cifar10' are not some different dig"):
        load_cifar10(cifar, normal=normal)


def test_a_class_must_be_left_to_be_anomalous(cifar):
    with pytest.raises(ParameterError, match=r"^normal classes '9876543210' of data set 'cifar10' leave none to be anomalous"):
        load_cifar10(cifar, normal="9876543210")


def test_a_data_set_without_images_of_a_kind_is_refused(cifar):
    path = cifar / "cifar-10-batches-py/test_batch"
    for kind, what in ((7, "normal test image"), (1, "anomalous test image")):
        write(path, {**batch(), "labels": [kind] * PER_BATCH})
        with pytest.raises(DataError, match=f"^data set 'cifar10' with normal classes '01234' has no {what}: fetch"):
            load_cifar10(cifar)


def test_pickles_of_python_3_with_text_or_bytes_as_keys_are_read_too(tmp_path):
    content = batch()
    for name, keys in (("text", str), ("bytes", str.encode)):
        put(tmp_path / name, pickle.dumps({keys(key): value for key, value in content.items()}, 4))
        pack = read_batch(tmp_path / name)
        assert pack.images.shape == (PER_BATCH, 32, 32, 3) and pack.classes.tolist() == content["labels"]
        assert np.array_equal(pack.images[3, :, :, 2].ravel(), content["data"][3, 2048:])  # the blue plane is the last
    by_column = write(tmp_path / "columns", {**content, "data": np.asfortranarray(content["data"])})
    assert np.array_equal(read_batch(by_column).images, pack.images)


# Files that are damaged or hostile.

class Trap:
    """Its pickle is a call that leaves a file or folder behind."""

    def __init__(self, call: Any, argument: str) -> None:
        self.call, self.argument = call, argument

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return self.call, (self.argument,)


@pytest.mark.parametrize(("call", "argument", "asks"), [
    (os.system, "touch {}", "posix.system"), (os.mkdir, "{}", "posix.mkdir"),
    (eval, "open('{}', 'w').close()", r"(builtins|__builtin__)\.eval")])
def test_a_pickle_that_would_run_code_is_refused_and_nothing_runs(cifar, tmp_path, call, argument, asks):
    path, made = cifar / "cifar-10-batches-py/data_batch_3", tmp_path / "made"
    trap = Trap(call, argument.format(made))
    for spring in (lambda: write(path, {**batch(), "more": trap}), lambda: put(path, pickle.dumps(trap, 0)),
                   lambda: put(path, pickle.dumps(trap, 4)), lambda: put(path, pickle.dumps([trap], 5))):
        spring()
        with pytest.raises(DataError, match=rf"^{path} cannot be read as a batch of CIFAR-10 \(it asks for {asks}, which is"):
            load_cifar10(cifar)
        assert not made.exists()
    does, arguments = trap.__reduce__()  # what reading it carelessly would call
    does(*arguments)
    assert made.exists()


def cut(raw: bytes) -> bytes:
    return raw[: len(raw) // 2]


@pytest.mark.parametrize("spoil", [cut, lambda raw: b"", lambda raw: b"<html>not found</html>", lambda raw: raw[:-1],
                                   lambda raw: b"\x80\x02" + b"r\xff\xff\xff\xff.", lambda raw: b"\x80\x04\x82\x01."])
@pytest.mark.parametrize("name", ["data_batch_5", "test_batch"])
def test_a_batch_that_is_cut_off_or_no_pickle_is_named(cifar, spoil, name):
    path = cifar / "cifar-10-batches-py" / name
    put(path, spoil(path.read_bytes()))
    with pytest.raises(DataError, match=rf"^{path} cannot be read as a batch of CIFAR-10 \(.+\): unpack the archive again$"):
        load_cifar10(cifar)


GOOD = batch()
NO_DATA = r"its data are not uint8 \(n, 3072\)"


@pytest.mark.parametrize(("content", "flaw"), [
    ([1, 2], NO_DATA),
    ({"labels": GOOD["labels"]}, NO_DATA),
    ({"data": GOOD["data"]}, "its labels are not a list of 20, one per image"),
    ({**GOOD, "data": GOOD["data"][:, :3071]}, NO_DATA),
    ({**GOOD, "data": GOOD["data"][..., None]}, NO_DATA),
    ({**GOOD, "data": GOOD["data"].astype(np.float32)}, NO_DATA),
    ({**GOOD, "data": GOOD["data"].astype(np.int8)}, NO_DATA),
    ({**GOOD, "data": GOOD["data"].tolist()}, NO_DATA),
    ({**GOOD, "data": np.full((20, 3072), None)}, NO_DATA),
    ({**GOOD, "labels": GOOD["labels"][:-1]}, "its labels are not a list of 20, one per image"),
    ({**GOOD, "labels": np.array(GOOD["labels"])}, "its labels are not a list of 20"),
    ({**GOOD, "labels": [*GOOD["labels"][:-1], 10]}, "it has a label 10 where 0 to 9 are expected"),
    ({**GOOD, "labels": [-1, *GOOD["labels"][1:]]}, "it has a label -1 where"),
    ({**GOOD, "labels": ["3", *GOOD["labels"][1:]]}, "it has a label b'3' where"),
    ({**GOOD, "labels": [True, *GOOD["labels"][1:]]}, "it has a label True where"),
])
def test_a_pickle_of_something_else_is_refused_with_the_reason(cifar, content, flaw):
    path = write(cifar / "cifar-10-batches-py/data_batch_2", content)
    with pytest.raises(DataError, match=rf"^{path} is not a batch of CIFAR-10 \({flaw}.*\): unpack the archive again$"):
        load_cifar10(cifar)


def pickled(shape: bytes, dtype: bytes, content: bytes) -> bytes:
    """A batch whose array has these opcodes for its shape, its type and its bytes."""
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R"
    return b"\x80\x02}(U\x04data" + array + b"(K\x01" + shape + dtype + b"\x89" + content + b"tbU\x06labels]u."


U1 = b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R"
OBJECTS = (b"cnumpy\ndtype\nU\x02O8K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb")  # said to hold none
EMPTY, POINTER = b"K\0M\0\x0c\x86", b"U\x08AAAAAAAA"


@pytest.mark.parametrize("content", [
    pickled(b"K\x01M\0\x0c\x86", OBJECTS, POINTER), pickled(b"K\x01M\0\x0c\x86", U1, POINTER),
    pickled(b"J\xff\xff\xff\xffM\0\x0c\x86", U1, POINTER), pickled(EMPTY, b"N", b"U\0"), pickled(b"U\x02aa", U1, b"U\0"),
    pickled(EMPTY, OBJECTS, b"U\0"),
    pickled(EMPTY, U1.replace(b"R", b"R]b"), b"]")])
def test_a_crafted_array_is_refused_and_numpy_never_builds_it(tmp_path, monkeypatch, content):
    built = []
    monkeypatch.setattr(np, "frombuffer", lambda raw, dtype: built.append(raw))
    with pytest.raises(DataError, match=NO_DATA):
        read_batch(put(tmp_path / "data_batch_1", content))
    assert not built
    monkeypatch.undo()
    monkeypatch.setattr(cifar10, "MD5", {})
    assert read_batch(put(tmp_path / "data_batch_1", pickled(EMPTY, U1, b"U\0"))).images.shape == (0, 32, 32, 3)


def test_a_pipe_in_place_of_a_batch_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "data_batch_1")
    with pytest.raises(DataError, match=r"data_batch_1 cannot be read \(it is no plain file\)"):
        read_batch(tmp_path / "data_batch_1")


# By name.

def test_cifar10_is_found_under_both_names_and_read_from_its_folder_or_the_folder_above(cifar, monkeypatch):
    assert find_dataset("cifar10") == cifar
    data = load_dataset("cifar10")
    assert data == load_dataset("cifar10", root=cifar / "cifar-10-batches-py") == load_cifar10(cifar)
    monkeypatch.setenv("ADCORE_DATA", str(cifar))
    assert find_dataset("cifar10") == cifar / "cifar-10-batches-py" and load_dataset("cifar10") == data


@pytest.mark.parametrize("name", ["cifar10", "digits"])
def test_the_category_is_the_split_and_01234_by_default(cifar, name):
    data = load_dataset(name)
    assert data.categories == ("01234",) and data.name == name
    assert data == load_dataset(name, "all") == load_dataset(name, "01234") == load_dataset(name, ["01234", "01234"])
    assert data == data.only("01234") == Experiment("patchcore", name).data() == Experiment("patchcore", name, "01234").data()
    odd = load_dataset(name, ["13579"])
    assert odd.categories == ("13579",) and odd == Experiment("uniad", name, "13579").data()
    with pytest.raises(ParameterError, match=f"^unknown category '01234' in data set '{name}'; it has 13579$"):
        odd.only("01234")
    with pytest.raises(ParameterError, match="normal classes 'cat' of data set"):
        load_dataset(name, "cat")
    assert [one.category for one in grid("patchcore", dataset=name, categories=SPLITS)] == list(SPLITS)
    assert [one.category for one in grid("patchcore", dataset=name)] == ["01234"]


def test_two_splits_at_once_are_refused(cifar):
    says = (r"^data set 'cifar10' cannot be split into normal classes 01234, 56789 at once: each split is a data set of its "
            r"own, name one$")
    for ask in (lambda: load_dataset("cifar10", ["01234", "56789"]), Experiment("uniad", "cifar10", "01234+56789").data):
        with pytest.raises(ParameterError, match=says):
            ask()


def test_the_error_for_a_missing_cifar10_names_address_folder_and_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ADCORE_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        load_dataset("cifar10")
    says = str(caught.value)
    assert load_manifest()["cifar10"].url in says and str(tmp_path / "cifar10") in says
    assert says.endswith("then run `adcore data verify cifar10`")
    (tmp_path / "cifar10").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/cifar10 holds no CIFAR-10: expected .*-batches-py/data_batch_1"):
        load_dataset("cifar10")


def test_a_batch_that_is_not_there_is_named(cifar):
    path = cifar / "cifar-10-batches-py/data_batch_4"
    path.unlink()
    with pytest.raises(DataError, match=rf"^{path} is not there"):
        load_dataset("cifar10")


def test_another_file_than_the_published_one_is_refused_before_it_is_unpickled(cifar, capsys, monkeypatch):
    folder = cifar / "cifar-10-batches-py"
    monkeypatch.setattr(cifar10, "_Reader", lambda *_, **__: pytest.fail("unpickled"))
    expected, found = cifar10.MD5["data_batch_1"], hashlib.md5(b"other").hexdigest()
    (folder / "data_batch_1").write_bytes(b"other")
    assert cli.main(["data", "verify", "cifar10"]) == 2
    assert capsys.readouterr().err == (f"adcore: {folder}/data_batch_1 is not CIFAR-10's: expected md5 {expected}, found "
                                       f"{found}; fetch it again from {load_manifest()['cifar10'].url}\n")
    with pytest.raises(DataError, match=r"data_batch_1 is not CIFAR-10's"):
        load_cifar10(cifar)


def test_the_published_checksums_are_torchvision_s():
    listed = torchvision.datasets.CIFAR10.train_list + torchvision.datasets.CIFAR10.test_list
    assert dict(map(tuple, listed)) == PUBLISHED and tuple(PUBLISHED) == FILES


def test_verifying_counts_the_images(cifar, capsys):
    assert cli.main(["data", "verify", "cifar10"]) == 0
    assert capsys.readouterr().out == "cifar10: 1 category, 50 training and 20 test images, 0 masks, all readable\n"

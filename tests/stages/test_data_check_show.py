"""`check` counts what is wrong with a set; `show` draws what the network gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pytest

from edge_demo.errors import InputError
from stages.data.check import check
from stages.data.show import as_trained, caption, sheet, show
from stages.spec import AugmentConfig, DataConfig


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, frame: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), frame)


@pytest.fixture
def troubled(tmp_path: Path) -> DataConfig:
    """Splits with one of every trouble that `check` counts."""
    root = tmp_path / "own"
    for split, start, count in (("train", 0, 6), ("val", 20, 2), ("test", 40, 2)):
        for index in range(count):
            save(root / split / "cat" / f"{index}.png", picture(start + index))
            save(root / split / "dog" / f"{index}.png", picture(100 + start + index, 10, 40))
    save(root / "train" / "cat" / "copy of 0.png", picture(0))
    save(root / "train" / "cat" / "gray.png", picture(77)[:, :, :1])
    save(root / "train" / "cat" / "is a dog.png", picture(101, 10, 40))
    save(root / "train" / "cat" / "in test.png", picture(40))
    save(root / "val" / "cat" / "in test.png", picture(41))
    (root / "train" / "dog" / "broken.png").write_bytes(b"no picture")
    (root / "train" / "dog" / "readme.txt").write_text("x")
    return DataConfig(name="folder", path=str(root), size_wh=(16, 16), colour="rgb")


def test_check_finds_one_of_each(troubled: DataConfig) -> None:
    report = check(troubled)
    assert report.labels == ("cat", "dog")
    assert {split: part.items for split, part in report.splits.items()} == {"train": 17, "val": 5, "test": 4}
    assert report.splits["train"].class_counts == {"cat": 10, "dog": 7}
    assert report.splits["train"].imbalance == 10 / 7
    assert report.splits["train"].duplicates == 2  # the copy, and the dog among the cats
    assert report.shared == {"test and val": 1, "test and train": 1}
    assert report.conflicts == 1
    assert sorted(report.conflict_examples[0]) == ["train/cat/is a dog.png", "train/dog/1.png"]
    assert report.unreadable == 1
    assert "broken.png" in report.unreadable_files[0]
    assert report.left_out == {"file that is not a picture": 1}
    assert report.gray == 1
    assert report.width is not None
    assert report.height is not None
    assert (report.width.smallest, report.width.largest) == (30, 40)
    assert (report.height.smallest, report.height.largest) == (10, 20)
    assert json.loads(json.dumps(report.to_json()))["conflicts"] == 1


def test_check_says_each_trouble_in_a_sentence(troubled: DataConfig) -> None:
    report = check(troubled)
    said = {(finding.what, finding.fine): finding.sentence for finding in report.findings}
    assert "1 picture cannot be read" in said["corrupt files", False]
    assert "broken.png" in said["corrupt files", False]
    duplicates = [finding.sentence for finding in report.findings if finding.what == "duplicates"]
    assert len(duplicates) == 3
    assert duplicates[0].startswith("train: 2 pictures repeat")
    assert {"test and val; the run drops them from val.", "test and train; the run drops them from train."} == {
        sentence.split("in both ")[1] for sentence in duplicates[1:]
    }
    assert "train/dog/1.png" in said["labels", False]
    assert "10 pictures of cat (most) against 7 of dog (least), 1.43 to 1" in said["class balance", True]
    assert said["size", True].startswith("2 sizes in 25 pictures, 30 to 40 wide and 10 to 20 high; the commonest")
    assert said["kinds", True] == "1 of 25 pictures are gray, the others in colour."
    assert (report.sizes, report.readable) == (2, 25)
    assert report.commonest_size == 14 / 25


def test_check_says_darker_larger_and_missing(tmp_path: Path) -> None:
    root = tmp_path / "own"
    for index in range(12):
        for label in ("cat", "dog"):
            save(root / "train" / label / f"{index}.png", picture(hash_of(label, index)))
            if (label, index) != ("dog", index):
                save(root / "test" / label / f"{index}.png", picture(1000 + index, 40, 60) // 2)
    for index in range(30):
        save(root / "train" / "cat" / f"more {index}.png", picture(2000 + index))
    save(root / "val" / "cat" / "0.png", picture(3000))
    save(root / "val" / "cat" / "1.png", picture(3001))
    save(root / "test" / "dog" / "0.png", picture(3002, 40, 60) // 2)
    sentences = {finding.sentence for finding in check(folder_config(root)).findings if not finding.fine}
    starts = (
        "val has no pictures of dog",
        "train: 42 pictures of cat (most) against 12 of dog (least), 3.50 to 1",
        "Pictures of test are darker than those of train, by",
        "Pictures of test are flatter than those of train, by",
        "Pictures of test are larger than those of train, though neither split varies",
    )
    assert len(sentences) == len(starts)
    for start in starts:
        assert any(sentence.startswith(start) for sentence in sentences), (start, sentences)


def folder_config(root: Path) -> DataConfig:
    return DataConfig(name="folder", path=str(root), size_wh=(16, 16), colour="rgb")


def hash_of(label: str, index: int) -> int:
    return index + (100 if label == "dog" else 0)


def test_check_of_the_embedded_digits_finds_nothing() -> None:
    report = check(DataConfig())
    assert report.unreadable == report.conflicts == 0
    assert report.shared == {}
    assert report.splits["train"].imbalance == 1.0
    assert report.gray == report.readable == 5000
    assert all(finding.fine for finding in report.findings)
    assert {finding.what for finding in report.findings} == {
        "corrupt files", "duplicates", "labels", "class balance", "size", "brightness", "kinds",
    }  # fmt: skip
    assert any(finding.sentence == "train: 400 pictures of every class." for finding in report.findings)


def test_check_of_a_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        check(DataConfig(name="folder", path=str(tmp_path / "none")))


def test_show_writes_a_picture_with_every_class(tmp_path: Path, troubled: DataConfig) -> None:
    out = tmp_path / "sheet.png"
    assert show(troubled, out, split="val", n=100) == 5
    drawn = cv2.imread(str(out))
    assert drawn is not None
    assert drawn.shape[0] > 2 * 112
    assert show(DataConfig(), out, n=40) == 40
    assert cv2.imread(str(out)).shape[1] > 6 * 112


def test_show_with_random_changes_uses_the_tasks_own(
    tmp_path: Path, troubled: DataConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    from stages import tasks

    inverting = dataclasses.replace(
        tasks.TASKS["classify"], augment=lambda frames, truth, config, draws, labels: (255 - frames, truth)
    )
    monkeypatch.setitem(tasks.TASKS, "classify", inverting)
    plain, changed = tmp_path / "plain.png", tmp_path / "changed.png"
    show(troubled, plain, split="test", n=4)
    show(troubled, changed, split="test", n=4, augment=AugmentConfig())
    first = (slice(6, 6 + 16 * 7), slice(6, 6 + 16 * 7))
    assert np.array_equal(cv2.imread(str(changed))[first], 255 - cv2.imread(str(plain))[first])


def test_sheet_shows_the_networks_own_pixels() -> None:
    """A 2 x 2 gray frame: every pixel is a 56 x 56 block."""
    frames = np.array([[[0], [80]], [[160], [250]]], np.uint8)[None]
    drawn = sheet(frames, ["x"])
    blocks = drawn[6 : 6 + 112, 6 : 6 + 112].reshape(2, 56, 2, 56, 3)
    assert np.array_equal(blocks.min(axis=(1, 3, 4)), [[0, 80], [160, 250]])
    assert np.array_equal(blocks.max(axis=(1, 3, 4)), [[0, 80], [160, 250]])


def test_show_of_an_unreadable_picture_names_it(tmp_path: Path, troubled: DataConfig) -> None:
    with pytest.raises(InputError, match=r"broken\.png"):
        show(troubled, tmp_path / "sheet.png", n=1000)
    assert not (tmp_path / "sheet.png").exists()


def test_show_names_what_was_mixed(tmp_path: Path) -> None:
    assert caption(np.array(2), "abc") == "c"
    assert caption(np.array([0.62, 0.0, 0.38], np.float32), "abc") == "a 62 % + c"
    assert caption(np.array([0.0, 1.0, 0.0], np.float32), "abc") == "b"
    assert show(DataConfig(), tmp_path / "mixed.png", n=20, augment=AugmentConfig(mixup=1.0)) == 20


@pytest.mark.parametrize(("colour", "channels"), [("gray", 1), ("rgb", 3)])
def test_pixels_come_back_from_the_networks_input_unchanged(colour: Literal["gray", "rgb"], channels: int) -> None:
    """Every level survives; only the order is training's own."""
    frames = np.random.default_rng(0).integers(0, 256, (40, 8, 6, channels), np.uint8)
    config = DataConfig(colour=colour)
    seen, captions = as_trained(frames, np.arange(40), [str(n) for n in range(40)], config, AugmentConfig(), "classify")
    assert np.array_equal(seen, frames[[int(text) for text in captions]])
    assert sorted(map(int, captions)) == list(range(40))

"""The stage as a whole: what lies in its folder, duplicates, statistics, colours, errors."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_demo.errors import InputError
from edge_demo.image import fit
from edge_demo.manifest import Resize
from stages.arrays import load_frames, load_truth, to_bgr
from stages.data import fingerprint, prepare, run
from stages.data.prepare import network_frame
from stages.spec import DataConfig, Step

REAL = Path(os.environ.get("PIPELINE_DATA", ""))
needs_mnist = pytest.mark.skipif(
    not ("PIPELINE_DATA" in os.environ and (REAL / "mnist").is_dir()), reason="PIPELINE_DATA has no mnist"
)
SPLITS = ("train", "val", "test")


@pytest.fixture(autouse=True)
def no_data_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PIPELINE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(seed: int, height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_test_digits(folder: Path) -> None:
    """MNIST's two test files, cut to ten pictures: digit d is a flat picture of level 40 + d."""
    folder.mkdir()
    levels = np.arange(40, 50, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
    sides = b"".join(side.to_bytes(4, "big") for side in levels.shape)
    (folder / "t10k-images-idx3-ubyte").write_bytes(bytes([0, 0, 8, 3]) + sides + levels.tobytes())
    (folder / "t10k-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 10]) + bytes(range(10)))


def save(path: Path, frame: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), frame)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two classes of 20 pictures, all different."""
    for index in range(20):
        save(tmp_path / "own" / "cat" / f"{index:02d}.png", picture(index))
        save(tmp_path / "own" / "dog" / f"{index:02d}.png", picture(100 + index))
    return tmp_path / "own"


def folder_config(path: Path, **changes: object) -> DataConfig:
    values = {"name": "folder", "path": str(path), "size_wh": (12, 8), "colour": "rgb"} | changes
    return DataConfig.model_validate(values)


def test_embedded_digits_are_split_80_10_10(tmp_path: Path) -> None:
    result = run(DataConfig(), out_dir=tmp_path)
    assert result.counts == {"train": 4000, "val": 500, "test": 500}
    assert result.class_counts == {"train": (400,) * 10, "val": (50,) * 10, "test": (50,) * 10}
    assert result.labels == tuple("0123456789")
    assert result.dropped == {}
    for split in SPLITS:
        frames, truth = load_frames(result, split), load_truth(result, split)
        assert frames.shape == (result.counts[split], 28, 28, 1)
        assert frames.dtype == np.uint8
        assert truth.dtype == np.int64
        assert np.bincount(truth).tolist() == list(result.class_counts[split])


def test_statistics_and_digests_are_those_of_the_files(tmp_path: Path, own: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    result = run(folder_config(own), out_dir=out)
    rgb = load_frames(result, "train")[..., ::-1].astype(np.float64) / 255
    assert np.allclose(result.mean, np.rint(255 * rgb.mean()) / 255, rtol=0, atol=1e-12)  # one level for all colours
    assert np.allclose(result.centre, (rgb.mean(axis=(0, 1, 2)) - result.mean) / result.std, rtol=0, atol=1e-9)
    assert np.allclose(result.std, rgb.std(axis=(0, 1, 2)), rtol=0, atol=1e-12)
    for split in SPLITS:
        content = load_frames(result, split).tobytes() + load_truth(result, split).tobytes()
        assert result.digests[split] == hashlib.sha256(content).hexdigest()


@needs_mnist
def test_mnist_statistics_are_the_published_ones(tmp_path: Path) -> None:
    """0.1307 and 0.3081 on all 60,000, as in PyTorch's MNIST example; 90 % of them come within 0.001."""
    result = run(DataConfig(name="mnist", root=str(REAL)), out_dir=tmp_path)
    assert result.counts == {"train": 54000, "val": 6000, "test": 10000}
    assert result.dropped == {}
    assert abs(result.mean[0] - 0.1307) < 0.001
    assert abs(result.std[0] - 0.3081) < 0.001


@needs_mnist
def test_auto_reports_on_all_10000_mnist_test_digits(tmp_path: Path) -> None:
    notes: list[str] = []

    def on_step(step: Step) -> None:
        notes.extend([step.note] if step.note else [])

    result = run(DataConfig(test_set="auto", root=str(REAL)), out_dir=tmp_path, on_step=on_step)
    assert result.counts == {"train": 4500, "val": 500, "test": 10000}
    assert tuple(notes) == result.notes
    assert "mnist" in notes[0]


def test_frames_are_the_devices_own_resize(tmp_path: Path, own: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    resize = Resize(mode="letterbox", pad_value=9)
    result = run(folder_config(own, resize=resize), out_dir=out)
    items = json.loads((out / "items.json").read_text())
    for split in SPLITS:
        assert len(items[split]) == result.counts[split]
        for item, frame in zip(items[split], load_frames(result, split), strict=True):
            want, _ = fit(cv2.imread(str(own / item["id"])), (12, 8), resize)
            assert np.array_equal(frame, want)


def test_same_seed_gives_the_same_bytes(tmp_path: Path, own: Path) -> None:
    digests = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        digests.append(run(folder_config(own, seed=seed), out_dir=tmp_path / name).digests)
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]
    assert (tmp_path / "a" / "train.frames.npy").read_bytes() == (tmp_path / "b" / "train.frames.npy").read_bytes()


def test_progress_reaches_the_total_of_every_split(tmp_path: Path, own: Path) -> None:
    steps: list[Step] = []
    run(folder_config(own), out_dir=tmp_path, on_step=steps.append)
    for split in SPLITS:
        last = [step for step in steps if step.what == split][-1]
        assert last.done == last.total > 0


# --- duplicates ------------------------------------------------------------------------------------------------------


def test_duplicates_are_dropped_from_train_and_val_never_from_test(tmp_path: Path) -> None:
    """Same pixels in another format are duplicates; same pixels inside one split stay."""
    root, out = tmp_path / "own", tmp_path / "out"
    out.mkdir()
    for offset, name in ((0, "a"), (50, "b")):
        for index in range(6):
            save(root / "train" / name / f"{index}.png", picture(offset + index))
        for index in range(3):
            save(root / "val" / name / f"{index}.png", picture(offset + 10 + index))
            save(root / "test" / name / f"{index}.png", picture(offset + 20 + index))
    save(root / "train" / "a" / "of-test.bmp", picture(20))
    save(root / "val" / "a" / "of-test.png", picture(21))
    save(root / "train" / "b" / "of-val.ppm", picture(60))
    save(root / "train" / "b" / "again.png", picture(51))
    result = run(folder_config(root), out_dir=out)
    assert result.counts == {"train": 13, "val": 6, "test": 6}
    assert result.dropped == {"duplicate of test": 2, "duplicate of val": 1}
    items = json.loads((out / "items.json").read_text())
    hashes = {split: {item["sha256"] for item in items[split]} for split in SPLITS}
    assert not hashes["train"] & hashes["test"]
    assert not hashes["val"] & hashes["test"]
    assert not hashes["train"] & hashes["val"]
    assert np.load(out / "train.frames.npy").shape == (13, 8, 12, 3)


def test_a_gray_picture_is_the_same_with_one_channel_or_three() -> None:
    gray = picture(1)[:, :, :1]
    hashes = {prepare.content_hash(frame) for frame in (gray, gray.repeat(3, axis=2), np.asfortranarray(gray))}
    assert len(hashes) == 1
    assert prepare.content_hash(gray.reshape(30, 20, 1)) not in hashes
    assert prepare.content_hash(picture(1)) not in hashes


def test_class_that_duplicates_empty_is_refused(tmp_path: Path) -> None:
    for split, seeds in (("train", (1, 2)), ("test", (2, 3)), ("val", (4, 5))):
        save(tmp_path / "own" / split / "a" / "0.png", picture(seeds[0]))
        save(tmp_path / "own" / split / "b" / "0.png", picture(seeds[1]))
    with pytest.raises(InputError, match="train has no images of b"):
        run(folder_config(tmp_path / "own"), out_dir=tmp_path)


def test_class_missing_in_val_is_said(tmp_path: Path, own: Path) -> None:
    save(own / "emu" / "0.png", picture(999))
    result = run(folder_config(own), out_dir=tmp_path)
    assert result.class_counts["train"][2] == 1
    assert any(note.startswith("val has no images of emu") for note in result.notes)
    assert any(note.startswith("test has no images of emu") for note in result.notes)


# --- colour ----------------------------------------------------------------------------------------------------------


def test_gray_is_the_graphs_luma_within_half_a_level() -> None:
    """Against the deployed graph itself, on the very frames the device would feed it."""
    import torch

    from stages.graph import Preprocess

    frame = picture(5, 200, 200)
    gray = network_frame(frame, DataConfig(size_wh=(200, 200)))
    assert gray.shape == (200, 200, 1)
    graph = Preprocess("gray", (0.0,), (1 / 255,))
    want = graph(torch.from_numpy(frame[None])).numpy()[0, 0]
    assert np.abs(gray[:, :, 0] - want).max() <= 0.51
    assert np.array_equal(graph(torch.from_numpy(gray[None])).numpy()[0, 0], gray[:, :, 0])


def test_gray_pictures_become_bgr_for_a_colour_network() -> None:
    gray = picture(5)[:, :, :1]
    got = network_frame(gray, DataConfig(size_wh=(30, 20), colour="rgb"))
    assert np.array_equal(got, to_bgr(gray[None])[0])


# --- bad input -------------------------------------------------------------------------------------------------------


def test_mixed_kinds_and_sizes_are_counted_in_the_notes(tmp_path: Path, own: Path) -> None:
    save(own / "cat" / "gray.png", picture(500)[:, :, :1])
    save(own / "cat" / "large.png", picture(501, 64, 48))
    notes: list[str] = []
    (tmp_path / "out").mkdir()
    result = run(
        folder_config(own, colour="rgb"), out_dir=tmp_path / "out", on_step=lambda step: notes.append(step.note)
    )
    assert "1 of 42 pictures are gray, the others in colour; the network sees three channels of each." in result.notes
    sizes = next(note for note in result.notes if "source sizes" in note)
    assert sizes.startswith("2 source sizes, from 30x20 to 48x64, brought to ")
    assert set(result.notes) == set(filter(None, notes))


@pytest.mark.parametrize("colour", ["gray", "rgb"])
def test_pictures_of_another_kind_than_the_network_sees_are_said(tmp_path: Path, own: Path, colour: str) -> None:
    (tmp_path / "out").mkdir()
    config = folder_config(own, colour=colour) if colour == "gray" else DataConfig(colour="rgb", limit=20)
    said = {"gray": "All 40 pictures are in colour;", "rgb": "All 1,020 pictures are gray;"}[colour]
    assert [note.startswith(said) for note in run(config, out_dir=tmp_path / "out").notes] == [True]


def test_unreadable_picture_ends_the_stage_naming_it(tmp_path: Path, own: Path) -> None:
    path = own / "dog" / "07.png"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"dog/07\.png: is a truncated PNG"):
        run(folder_config(own), out_dir=tmp_path)


def test_flat_pictures_are_refused(tmp_path: Path) -> None:
    for name, value in (("a", 0), ("b", 0)):
        for index in range(1, 6):
            save(tmp_path / "own" / name / f"{index}.png", np.full((4, 4 + index, 3), value, np.uint8))
    with pytest.raises(InputError, match="one and the same value"):
        run(folder_config(tmp_path / "own", seed=1), out_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"), [({"val_fraction": 0.0}, "for val"), ({"test_fraction": 0.0}, "for test")]
)
def test_a_split_without_images_is_refused(tmp_path: Path, own: Path, changes: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=f"no images {message}"):
        run(folder_config(own, **changes), out_dir=tmp_path)


def test_other_classes_in_the_test_set_are_refused(tmp_path: Path, own: Path) -> None:
    write_test_digits(tmp_path / "mnist")
    with pytest.raises(InputError, match="classes of 'mnist' are not those of 'folder'"):
        run(folder_config(own, test_set="mnist", root=str(tmp_path)), out_dir=tmp_path)


def test_a_test_set_without_a_test_split_is_refused(tmp_path: Path) -> None:
    for digit in "0123456789":
        save(tmp_path / "own" / digit / "a.png", picture(int(digit)))
    with pytest.raises(InputError, match="'mnist-5k' brings no test split"):
        run(folder_config(tmp_path / "own", test_set="mnist-5k"), out_dir=tmp_path)


def test_another_sets_test_split_leaves_all_own_images_for_training(tmp_path: Path) -> None:
    """Ten digits in a folder, tested on another set's files; a training picture that is also there is dropped."""
    write_test_digits(tmp_path / "mnist")
    for digit in range(10):
        for index in range(3):
            save(tmp_path / "own" / str(digit) / f"{index}.png", picture(10 * digit + index))
    save(tmp_path / "own" / "4" / "copied.png", np.full((28, 28, 3), 44, np.uint8))
    result = run(folder_config(tmp_path / "own", test_set="mnist", root=str(tmp_path)), out_dir=tmp_path)
    assert result.counts["test"] == 10
    assert result.counts["train"] + result.counts["val"] == 30
    assert result.dropped == {"duplicate of test": 1}
    assert json.loads((tmp_path / "items.json").read_text())["test"][4]["id"] == "mnist/test/00004"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
@pytest.mark.parametrize("file", ["test.frames.npy", "train.truth.npy", "items.json"])
def test_disk_full_is_an_os_error_and_not_a_killed_process(tmp_path: Path, own: Path, file: str) -> None:
    (tmp_path / file).symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        run(folder_config(own), out_dir=tmp_path)


def test_fingerprint_names_what_run_reads(own: Path) -> None:
    assert len(fingerprint(folder_config(own))) == 64
    (own / "dog" / "00.png").unlink()
    (own / "cat" / "extra.txt").write_text("not read")
    before = fingerprint(folder_config(own))
    (own / "cat" / "extra.txt").write_text("changed")
    assert fingerprint(folder_config(own)) == before

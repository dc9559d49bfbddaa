"""YOLO folders: the yaml, the txt beside every picture, and what `pipeline init` recognizes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from edge_demo.errors import InputError
from pipeline.cli import app
from pipeline.config import load_config
from stages.arrays import load_boxes
from stages.data import run
from stages.data.check import check
from stages.data.recognize import recognize
from stages.spec import DataConfig

WIDTH, HEIGHT = 80, 40
YAML = "path: /elsewhere/data\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n  0: cat\n  1: dog\n"
BOTH = "0 0.5 0.5 0.25 0.5\n1 0.25 0.25 0.1 0.1\n"


def add(root: Path, split: str, stem: str, text: str | None, seed: int) -> None:
    images, labels = root / "images" / split, root / "labels" / split
    for folder in (images, labels):
        folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    assert cv2.imwrite(str(images / f"{stem}.png"), pixels)
    if text is not None:
        (labels / f"{stem}.txt").write_text(text)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    root = tmp_path / "own"
    for seed, split in enumerate(("train", "val", "test")):
        add(root, split, "a", BOTH, seed)
    (root / "data.yaml").write_text(YAML)
    return root


def config(root: Path, **changes: object) -> DataConfig:
    values = {"name": "yolo", "path": str(root), "size_wh": (WIDTH, HEIGHT), "colour": "rgb"} | changes
    return DataConfig.model_validate(values)


def test_shares_become_pixels_and_polygons_their_bounds(own: Path, tmp_path: Path) -> None:
    add(own, "train", "b", "1 0.1 0.2 0.5 0.2 0.3 0.9\n", 7)
    add(own, "train", "c", None, 8)
    result = run(config(own), out_dir=tmp_path)
    first, second, empty = load_boxes(result, "train")
    assert result.labels == ("cat", "dog")
    assert first["boxes"][0] == [30, 10, 50, 30]
    assert np.allclose(second["boxes"], [[8, 8, 40, 36]])
    assert second["classes"] == [1]
    assert empty["boxes"] == []
    assert any(note.startswith("1 pictures have no txt") for note in result.notes)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("0 0.5 0.5 0 0.5\n", "box without area"),
        ("2 0.5 0.5 0.1 0.5\n", "box of an unknown class"),
        ("0.5 0.5 0.5 0.1 0.5\n", "box of an unknown class"),
        ("0 0.99 0.5 0.1 0.5\n", "box partly outside its picture (clipped)"),
        ("0 1.5 0.5 0.1 0.5\n", "box outside its picture"),
        ("0 nan 0.5 0.1 0.5\n", "box with a coordinate that is no number"),
        ("0 0.5 0.5\n", "txt line that is no box (left out)"),
        ("cat 0.5 0.5 0.1 0.1\n", "txt line that is no box (left out)"),
    ],
)
def test_each_trouble_is_named_and_counted(own: Path, tmp_path: Path, text: str, what: str) -> None:
    add(own, "train", "bad", text, 9)
    assert run(config(own), out_dir=tmp_path).dropped == {what: 1}
    assert check(config(own)).left_out == {what: 1}
    with pytest.raises(InputError, match=r"data\.strict"):
        run(config(own, strict=True), out_dir=tmp_path)


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("train: images/train\nval: images/val\n", "names no"),
        (YAML + "nc: 5\n", "nc is 5"),
        (YAML.replace("images/val", "images/gone"), "images/gone is not there"),
        (YAML.replace("0: cat", "3: cat"), "class ids"),
        ("train: [", "cannot be read as YAML"),
    ],
)
def test_a_yaml_that_cannot_be_used_is_an_error(own: Path, tmp_path: Path, yaml: str, message: str) -> None:
    (own / "data.yaml").write_text(yaml)
    with pytest.raises(InputError, match=message):
        run(config(own), out_dir=tmp_path)


def test_a_list_of_pictures_in_a_txt(own: Path, tmp_path: Path) -> None:
    (own / "val.txt").write_text("images/val/a.png\nimages/val/gone.png\n")
    (own / "data.yaml").write_text(YAML.replace("val: images/val", "val: val.txt"))
    result = run(config(own), out_dir=tmp_path)
    assert result.counts["val"] == 1
    assert result.dropped == {"listed picture without a file": 1}


def test_init_writes_a_config_that_reads_the_folder(own: Path, tmp_path: Path) -> None:
    out = tmp_path / "own.toml"
    assert CliRunner().invoke(app, ["init", "--data", str(own), "--out", str(out)]).exit_code == 0
    loaded = load_config(out, None, ())
    assert (loaded.data.name, loaded.data.task, loaded.train.task) == ("yolo", "detect", "detect")
    assert loaded.data.resize.mode == "letterbox"
    folder = tmp_path / "out"
    folder.mkdir()
    assert run(loaded.data, out_dir=folder).counts == {"train": 1, "val": 1, "test": 1}
    assert CliRunner().invoke(app, ["init", "--data", str(own), "--out", str(out)]).exit_code != 0


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('name = "yolo"', "data.path: is empty"),
        ('name = "mnist"\npath = "x"', "data.path: has no effect"),
        ("strict = true", "data.strict: has no effect"),
        ("[data.scenes]\nblur = 0.5", "data.scenes: has no effect"),
    ],
)
def test_a_config_with_a_knob_that_does_nothing_is_refused(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "c.toml").write_text(f'name = "c"\n[data]\n{text}\n')
    with pytest.raises(InputError, match=key):
        load_config(tmp_path / "c.toml", None, ())


def test_a_set_of_classes_has_no_boxes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'mnist-5k' has no truth for detect"):
        run(DataConfig(task="detect"), out_dir=tmp_path)


def test_a_folder_of_classes_is_recognized_too(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        assert cv2.imwrite(str(tmp_path / name / "1.png"), np.full((100, 120), 9, np.uint8))
    found = recognize(tmp_path)
    assert (found.name, found.task, found.size_wh, found.colour) == ("folder", "classify", (64, 64), "gray")
    with pytest.raises(InputError, match="no truth for detect"):
        recognize(tmp_path, "detect")


def test_an_unknown_layout_is_an_error_that_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no layout that is known: VOC"):
        recognize(tmp_path)

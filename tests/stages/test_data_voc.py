"""Pascal VOC folders: what is read, every trouble by name, where boxes and masks land on the network's frame."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from edge_demo.errors import InputError
from edge_demo.image import fit, place
from edge_demo.manifest import Resize
from pipeline.cli import app
from pipeline.config import load_config
from stages.arrays import load_boxes, load_flat_boxes, load_frames, load_masks, load_original_wh, load_truth
from stages.data import fingerprint, run
from stages.data.annotated import CROWD, DIFFICULT, VOID, Problems, boxes_of
from stages.data.boxes import cleaned, on_network
from stages.data.check import check
from stages.data.masks import fit_mask
from stages.data.show import show
from stages.models import build
from stages.spec import DataConfig

REAL = Path(os.environ.get("PIPELINE_DATA", "/nowhere"))
SIZE_WH = (60, 40)
MODES = st.sampled_from(["stretch", "letterbox"])
SIDE = st.integers(8, 700)


def photo(path: Path, seed: int, size_wh: tuple[int, int] = SIZE_WH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size_wh[1], size_wh[0], 3), np.uint8)
    assert cv2.imwrite(str(path), pixels)


def xml(objects: list[tuple[str, tuple[object, ...]]], size_wh: tuple[int, int] = SIZE_WH, difficult: int = 0) -> str:
    corners = ("xmin", "ymin", "xmax", "ymax")
    entries = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{corner}>{value}</{corner}>" for corner, value in zip(corners, box, strict=True))
        + "</bndbox></object>"
        for name, box in objects
    )
    width, height = size_wh
    return f"<annotation><size><width>{width}</width><height>{height}</height></size>{entries}</annotation>"


def add(root: Path, stem: str, split: str, text: str | None, seed: int) -> None:
    photo(root / "JPEGImages" / f"{stem}.png", seed)
    (root / "Annotations").mkdir(exist_ok=True)
    if text is not None:
        (root / "Annotations" / f"{stem}.xml").write_text(text)
    lists = root / "ImageSets" / "Main"
    lists.mkdir(parents=True, exist_ok=True)
    with (lists / f"{split}.txt").open("a") as file:
        file.write(f"{stem}  1\n")


GOOD = ("cat", (10, 5, 30, 25))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Two good pictures for training, one each for val and test; the second one has a dog."""
    root = tmp_path / "own"
    add(root, "a", "train", xml([GOOD, ("dog", (0, 0, 60, 40))]), 0)
    add(root, "b", "train", xml([]), 1)
    add(root, "c", "val", xml([GOOD, ("dog", (1, 1, 9, 9))]), 2)
    add(root, "d", "test", xml([GOOD, ("dog", (1, 1, 9, 9))], difficult=1), 3)
    return root


def config(root: Path, **changes: object) -> DataConfig:
    values = {"name": "voc", "task": "detect", "path": str(root), "size_wh": (30, 30), "colour": "rgb"} | changes
    return DataConfig.model_validate(values)


def test_boxes_classes_and_flags_are_written_as_the_contract_says(own: Path, tmp_path: Path) -> None:
    result = run(config(own, resize={"mode": "letterbox"}), out_dir=tmp_path)
    assert (result.task, result.labels) == ("detect", ("cat", "dog"))
    assert result.counts == {"test": 1, "val": 1, "train": 2}
    flat = load_flat_boxes(result, "train")
    # 60 x 40 in 30 x 30: half the size, 5 rows of border above and below.
    assert flat.xyxy.tolist() == [[5, 7.5, 15, 17.5], [0, 5, 30, 25]]
    assert (flat.xyxy.dtype, flat.items.dtype, flat.classes.dtype) == (np.float32, np.int64, np.int64)
    assert load_truth(result, "train") == load_boxes(result, "train")
    assert load_boxes(result, "train")[1] == {"boxes": [], "classes": [], "crowd": []}  # the negative is kept
    assert load_flat_boxes(result, "test").flags.tolist() == [DIFFICULT, DIFFICULT]
    assert load_original_wh(result, "train").tolist() == [[60, 40], [60, 40]]
    assert load_frames(result, "train").shape == (2, 30, 30, 3)
    assert result.class_counts == {"train": (1, 1), "val": (1, 1), "test": (1, 1)}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (xml([("cat", (5, 5, 5, 5))]), "box without area"),
        (xml([("cat", (9, 5, 3, 8))]), "box without area"),
        (xml([("cat", (70, 5, 90, 8))]), "box outside its picture"),
        (xml([("cat", (50, 5, 90, 8))]), "box partly outside its picture (clipped)"),
        (xml([("cat", ("x", 5, 9, 8))]), "box with a coordinate that is no number"),
        (xml([("cow", (1, 5, 9, 8))], difficult=0), "box of an unknown class"),
        (xml([GOOD], size_wh=(61, 40)), "annotation of another size than its picture (left out)"),
        (xml([GOOD], size_wh=(0, 0)), "xml without the picture's size"),
        (xml([GOOD] * 1001), "more than 1,000 boxes in one picture (kept)"),
        ("<annotation", "xml that cannot be read (picture left out)"),
        (None, "picture without an xml (unlabelled, left out)"),
    ],
)
def test_each_trouble_is_named_counted_and_stops_a_strict_run(
    own: Path, tmp_path: Path, text: str | None, what: str
) -> None:
    (own / "labels.txt").write_text("background\ncat\ndog\n")
    add(own, "bad", "train", text, 9)
    assert run(config(own), out_dir=tmp_path).dropped == {what: 1}
    report = check(config(own))
    assert report.left_out == {what: 1}
    assert "bad" in report.annotations[what][0]
    assert any(what in finding.sentence for finding in report.findings if not finding.fine)
    with pytest.raises(InputError, match=f"data.strict: 1 x {what[:20]}"):
        run(config(own, strict=True), out_dir=tmp_path)


def test_a_clean_set_passes_strict(own: Path, tmp_path: Path) -> None:
    assert run(config(own, strict=True), out_dir=tmp_path).dropped == {}


def test_listed_pictures_without_a_file_unlisted_ones_and_unreadable_ones(own: Path, tmp_path: Path) -> None:
    with (own / "ImageSets/Main/train.txt").open("a") as file:
        file.write("gone\n")
    photo(own / "JPEGImages" / "extra.png", 8)
    add(own, "torn", "train", xml([GOOD]), 10)
    torn = own / "JPEGImages" / "torn.png"
    torn.write_bytes(torn.read_bytes()[:100])
    dropped = run(config(own), out_dir=tmp_path).dropped
    assert dropped == {
        "listed picture without a file": 1,
        "picture in no split list": 1,
        "picture that cannot be read (left out)": 1,
    }


def test_a_class_without_a_box_in_val_is_said(own: Path, tmp_path: Path) -> None:
    (own / "Annotations" / "c.xml").write_text(xml([GOOD]))
    result = run(config(own), out_dir=tmp_path)
    assert "val shows no dog: its numbers say nothing about them." in result.notes
    assert result.dropped == {"class that val does not show": 1}


def test_without_lists_the_content_decides_the_split(own: Path, tmp_path: Path) -> None:
    for at in range(40):
        add(own, f"m{at}", "train", xml([GOOD, ("dog", (1, 1, 9, 9))]), 50 + at)
    for file in (own / "ImageSets/Main").iterdir():
        file.unlink()
    (own / "JPEGImages/copy.png").write_bytes((own / "JPEGImages/m0.png").read_bytes())
    (own / "Annotations/copy.xml").write_text(xml([GOOD]))
    result = run(config(own, val_fraction=0.25, test_fraction=0.25), out_dir=tmp_path)
    assert result.dropped == {}  # a copy is in its original's split
    assert sum(result.counts.values()) == 45
    assert 3 <= result.counts["val"] <= 20


def test_a_duplicate_of_a_test_picture_leaves_training(own: Path, tmp_path: Path) -> None:
    add(own, "copy", "train", xml([GOOD]), 3)
    assert run(config(own), out_dir=tmp_path).dropped == {"duplicate of test": 1}


def test_the_fingerprint_follows_the_annotations(own: Path) -> None:
    before = fingerprint(config(own))
    (own / "Annotations" / "a.xml").write_text(xml([GOOD, GOOD]))
    assert fingerprint(config(own)) != before


def test_settings_without_effect_are_refused(own: Path, tmp_path: Path) -> None:
    for change in ({"limit": 5}, {"test_set": "auto"}, {"task": "classify"}, {"path": ""}, {"scenes": {"blur": 0.1}}):
        with pytest.raises(InputError):
            run(config(own, **change), out_dir=tmp_path)


def write_mask(path: Path, ids: np.ndarray, mode: str = "P") -> None:
    path.parent.mkdir(exist_ok=True)
    image = Image.fromarray(ids)
    if mode == "P":
        image = image.convert("P")
        image.putdata(ids.ravel().tolist())
        image.putpalette([(37 * at) % 256 for at in range(768)])
    image.save(path)


@pytest.fixture
def masked(own: Path) -> Path:
    (own / "ImageSets/Main").rename(own / "ImageSets/Segmentation")
    (own / "labels.txt").write_text("background\ncat\ndog\n")
    ids = np.zeros((40, 60), np.uint8)
    ids[:, 20:] = 1
    ids[20:, 40:] = 2
    ids[0] = VOID
    for stem in "abcd":
        write_mask(own / "SegmentationClass" / f"{stem}.png", ids)
    return own


def test_palette_masks_keep_their_class_ids_and_borders_are_void(masked: Path, tmp_path: Path) -> None:
    result = run(config(masked, task="segment", resize={"mode": "letterbox"}), out_dir=tmp_path)
    assert result.labels == ("background", "cat", "dog")
    masks = load_masks(result, "train")
    assert masks.shape == (2, 30, 30)
    assert (masks[:, :5] == VOID).all()
    assert (masks[:, 25:] == VOID).all()
    assert masks[0, 10].tolist() == [0] * 10 + [1] * 20
    assert masks[0, 20].tolist() == [0] * 10 + [1] * 10 + [2] * 10
    assert result.class_counts["train"] == (2, 2, 2)


@pytest.mark.parametrize(
    ("shape", "value", "what"),
    [
        ((40, 61), 1, "mask of another size than its picture (left out)"),
        ((20, 60), VOID, "mask of another size than its picture (left out)"),
        ((40, 60, 3), 1, "mask of colours instead of class ids (palette or 8 bit gray) (left out)"),
        (None, 0, "picture without a mask (left out)"),
    ],
)
def test_troubles_of_masks(masked: Path, tmp_path: Path, shape: tuple[int, ...] | None, value: int, what: str) -> None:
    with (masked / "ImageSets/Segmentation/train.txt").open("a") as file:
        file.write("bad\n")
    photo(masked / "JPEGImages" / "bad.png", 77)
    if shape is not None:
        write_mask(masked / "SegmentationClass" / "bad.png", np.full(shape, value, np.uint8), mode="L")
    assert run(config(masked, task="segment"), out_dir=tmp_path).dropped == {what: 1}
    assert check(config(masked, task="segment")).left_out == {what: 1}
    with pytest.raises(InputError, match=r"data\.strict: 1 x mask|data\.strict: 1 x picture without a mask"):
        run(config(masked, task="segment", strict=True), out_dir=tmp_path)


def test_masks_of_unknown_ids_of_void_alone_and_of_no_object(masked: Path, tmp_path: Path) -> None:
    """None of them is left out: unknown ids count nowhere, void everywhere is said, no object is a negative."""
    some = np.zeros((40, 60), np.uint8)
    for seed, (stem, mask) in enumerate(
        {"some": np.where(some < 1, [7] * 30 + [0] * 30, some), "void": some + VOID, "none": some}.items()
    ):
        with (masked / "ImageSets/Segmentation/train.txt").open("a") as file:
            file.write(f"{stem}\n")
        photo(masked / "JPEGImages" / f"{stem}.png", 50 + seed)
        write_mask(masked / "SegmentationClass" / f"{stem}.png", mask.astype(np.uint8))
    said = {"mask with ids that are no class (made void)": 1, "mask that is void everywhere (counts nowhere)": 1}
    result = run(config(masked, task="segment"), out_dir=tmp_path)
    assert result.dropped == said
    assert result.counts["train"] == 5
    found = load_masks(result, "train")
    assert sorted({tuple(np.unique(mask).tolist()) for mask in found[2:]}) == [(0,), (0, VOID), (VOID,)]
    report = check(config(masked, task="segment"))
    assert report.left_out == said
    assert any("3 pictures without an object, kept" in finding.sentence for finding in report.findings)


def test_init_recognizes_masks_and_writes_a_training_for_them(masked: Path, tmp_path: Path) -> None:
    """Pictures of 3 to 2, so the frame is; what it says is a training that starts."""
    shutil.rmtree(masked / "Annotations")
    out = tmp_path / "own.toml"
    done = CliRunner().invoke(app, ["init", "--data", str(masked), "--out", str(out)])
    assert done.exit_code == 0, done.output
    loaded = load_config(out, None, ())
    assert (loaded.data.task, loaded.train.task, loaded.train.model.name) == ("segment", "segment", "segmenter")
    assert (loaded.data.size_wh, loaded.train.augment.colour) == ((192, 128), 0.1)
    build(loaded.train.model, 3, loaded.data.size_wh, 3)


def test_a_mask_file_that_is_no_picture(masked: Path, tmp_path: Path) -> None:
    (masked / "SegmentationClass" / "a.png").write_text("no picture")
    assert run(config(masked, task="segment"), out_dir=tmp_path).dropped == {
        "mask file that cannot be read (left out)": 1
    }


@given(
    size_wh=st.tuples(SIDE, SIDE),
    network_wh=st.tuples(SIDE, SIDE),
    mode=MODES,
    shares=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=5),
)
@settings(max_examples=150, deadline=None)
def test_boxes_go_to_the_network_and_back(
    size_wh: tuple[int, int], network_wh: tuple[int, int], mode: str, shares: list[tuple[float, ...]]
) -> None:
    corners = [sorted((a, c)) + sorted((b, d)) for a, b, c, d in shares]
    xyxy = np.array([[x0, y0, x1, y1] for x0, x1, y0, y1 in corners]).reshape(-1, 4) * np.tile(size_wh, 2)
    boxes = cleaned(boxes_of(xyxy, [0] * len(xyxy), [CROWD] * len(xyxy)), size_wh, "i", 1, Problems())
    geometry = place(size_wh, network_wh, mode)
    placed, lost = on_network(boxes, geometry, network_wh)
    assert lost == len(boxes) - len(placed)
    if len(placed) == len(boxes):
        assert np.allclose(geometry.to_source(placed.xyxy), boxes.xyxy, atol=1e-6)
    assert (placed.xyxy >= 0).all()
    assert (placed.xyxy <= np.tile(network_wh, 2)).all()


@given(size_wh=st.tuples(SIDE, SIDE), network_wh=st.tuples(SIDE, SIDE), mode=st.sampled_from(["stretch", "letterbox"]))
@settings(max_examples=40, deadline=None)
def test_a_mask_lies_where_its_photo_lies(size_wh: tuple[int, int], network_wh: tuple[int, int], mode: str) -> None:
    resize = Resize(mode=mode, interpolation="linear")  # type: ignore[arg-type]
    mask = fit_mask(np.zeros(size_wh[::-1], np.uint8), network_wh, resize)
    frame, _ = fit(np.full((*size_wh[::-1], 1), 200, np.uint8), network_wh, resize)
    assert ((mask == 0) == (frame[:, :, 0] == 200)).all()


def test_a_sheet_is_drawn(masked: Path, own: Path, tmp_path: Path) -> None:
    assert show(config(masked, task="segment"), tmp_path / "sheet.png", n=4) == 2
    assert cv2.imread(str(tmp_path / "sheet.png")) is not None


@pytest.mark.skipif(not (REAL / "bccd").is_dir(), reason="PIPELINE_DATA has no bccd")
def test_bccd_as_it_is(tmp_path: Path) -> None:
    result = run(config(REAL / "bccd", size_wh=(64, 64)), out_dir=tmp_path)
    assert result.counts == {"train": 205, "val": 87, "test": 72}
    assert result.dropped == {"box without area": 2}
    # SOURCE.md: 4155 RBC, 372 WBC, 361 Platelets, two of which have no area
    total = np.sum(list(result.class_counts.values()), axis=0)
    assert total.sum() == 4888 - 2
    assert total[result.labels.index("WBC")] == 372


@pytest.mark.skipif(not (REAL / "pets-voc").is_dir(), reason="PIPELINE_DATA has no pets-voc")
def test_pets_as_they_are(tmp_path: Path) -> None:
    pets = config(REAL / "pets-voc", size_wh=(64, 64), task="segment")
    assert run(pets, out_dir=tmp_path).counts == {"train": 240, "val": 60, "test": 298}
    found = check(config(REAL / "pets-voc", task="detect"))
    assert found.left_out == {"picture without an xml (unlabelled, left out)": 302}
    assert sum(sum(part.class_counts.values()) for part in found.splits.values()) == 297

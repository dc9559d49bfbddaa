"""Composed scenes: exact boxes and masks, no picture in two splits, the same from the same seed."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from edge_demo.errors import InputError
from stages.arrays import FlatBoxes, load_flat_boxes, load_frames, load_masks, load_truth
from stages.data import fingerprint, run
from stages.data.scenes import opened
from stages.data.show import show
from stages.scenes import CONTRAST, Composer, composer, fresh_scenes, load_composer
from stages.spec import DataConfig, DataResult, ScenesConfig

SMALL = {"train_frames": 70, "val_frames": 20, "test_frames": 20}


def config(kind: str, **changes: object) -> DataConfig:
    values = {"name": f"scenes-{kind}", "size_wh": (96, 64), "colour": "rgb", "scenes": SMALL} | changes
    return DataConfig.model_validate(values)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataResult]:
    return {task: run(config(task), out_dir=tmp_path_factory.mktemp(task)) for task in ("detect", "segment")}


def bar(task: str, **changes: object) -> Composer:
    """A composer whose only glyph is a solid 8 x 20 bar of class 0, on a plain ground."""
    glyph = np.zeros((1, 28, 28), np.uint8)
    glyph[0, 4:24, 10:18] = 255
    still = {"rotate_deg": 0.0, "light": 0.0, "blur": 0.0, "noise": 0.0, "overlap": 0.0, "objects": (1, 3)}
    scenes = ScenesConfig.model_validate(still | changes)
    return composer(scenes, task, (96, 64), glyph, np.zeros(1, np.int64), np.full((1, 64, 96, 1), 128, np.uint8))


def test_boxes_and_masks_are_exactly_the_painted_pixels() -> None:
    """On a plain ground every pixel that differs from it by half an object's contrast is the object's."""
    frames, truth = fresh_scenes(bar("detect"), 0, 0, 40)
    _, masks = fresh_scenes(bar("segment"), 0, 0, 40)
    assert isinstance(truth, FlatBoxes)
    assert isinstance(masks, np.ndarray)
    for at, frame in enumerate(frames[..., 0].astype(int)):
        count, _, stats, _ = cv2.connectedComponentsWithStats((masks[at] > 0).astype(np.uint8))
        bounds = {(x, y, x + w, y + h) for x, y, w, h, _ in stats[1:count].tolist()}
        found = {tuple(box) for box in truth.xyxy[truth.items == at].astype(int).tolist()}
        ground = np.bincount(frame.ravel()).argmax()
        painted = np.abs(frame - ground)
        assert (painted[masks[at] > 0] >= 0.4 * CONTRAST).all()
        assert len(found) >= 1
        if len(bounds) == len(found):  # two that touch are one component
            assert bounds == found


def test_sizes_keep_to_their_limits() -> None:
    _, truth = fresh_scenes(bar("detect", size=(0.5, 0.5)), 3, 0, 60)
    assert isinstance(truth, FlatBoxes)
    heights, widths = truth.xyxy[:, 3] - truth.xyxy[:, 1], truth.xyxy[:, 2] - truth.xyxy[:, 0]
    assert np.abs(heights - 32).max() <= 2  # half of 64 rows
    assert np.abs(widths - 32 * 8 / 20).max() <= 2


def test_overlap_keeps_to_its_limit() -> None:
    _, truth = fresh_scenes(bar("detect", objects=(6, 6), size=(0.4, 0.4)), 5, 0, 60)
    assert isinstance(truth, FlatBoxes)
    for at in range(60):
        boxes = truth.xyxy[truth.items == at]
        for first in range(len(boxes)):
            for second in range(first):
                a, b = boxes[first], boxes[second]
                sides = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
                assert (sides <= 0).any()


def test_detect_and_segment_show_the_same_scenes(made: dict[str, DataResult]) -> None:
    detect, segment = made["detect"], made["segment"]
    assert (load_frames(detect, "val") == load_frames(segment, "val")).all()
    boxes, masks = load_flat_boxes(detect, "val"), load_masks(segment, "val")
    assert segment.labels == ("background", *detect.labels)
    assert 20 <= len(boxes.items) <= 6 * 20
    for xyxy, item, class_id in zip(boxes.xyxy.astype(int), boxes.items, boxes.classes, strict=True):
        x0, y0, x1, y1 = xyxy
        mine = masks[item, y0:y1, x0:x1] == class_id + 1
        # tight: every side of the box touches its object
        assert mine[0].any() and mine[-1].any() and mine[:, 0].any() and mine[:, -1].any()  # noqa: PT018
    inside = np.zeros(masks.shape, bool)
    for (x0, y0, x1, y1), item in zip(boxes.xyxy.astype(int), boxes.items, strict=True):
        inside[item, y0:y1, x0:x1] = True
    assert (masks[~inside] == 0).all()


def test_the_result_says_that_it_is_composed(made: dict[str, DataResult]) -> None:
    result = made["detect"]
    assert result.composed
    assert result.counts == {"test": 20, "val": 20, "train": 70}
    assert any(note.startswith("Composed by the program") for note in result.notes)
    assert sum(result.class_counts["val"]) == len(load_flat_boxes(result, "val").items)
    assert len(load_truth(result, "val")) == 20


def test_no_glyph_is_in_two_splits() -> None:
    seen: set[bytes] = set()
    sizes = {}
    for split, source, _, _ in opened(config("detect")):
        own = {glyph.tobytes() for glyph in source.glyphs}
        assert not own & seen
        seen |= own
        sizes[split] = len(source.glyphs)
    assert sizes == {"test": 500, "val": 500, "train": 4000}


def test_fresh_scenes_are_new_at_every_step_and_the_same_for_the_same_one(made: dict[str, DataResult]) -> None:
    source = load_composer(made["segment"])
    again = load_composer(made["segment"])
    first, truth = fresh_scenes(source, 0, 0, 6)
    same, same_truth = fresh_scenes(again, 0, 0, 6)
    assert (first == same).all()
    assert np.array_equal(truth, same_truth)  # type: ignore[arg-type]
    assert first.shape == (6, 64, 96, 3)
    assert first.dtype == np.uint8
    for seed, step in ((0, 1), (1, 0)):
        other, _ = fresh_scenes(source, seed, step, 6)
        assert (first != other).any(axis=(1, 2, 3)).all()
    assert (fresh_scenes(source, 0, 0, 3)[0] == first[:3]).all()  # a scene does not depend on the batch's size


def test_only_composed_data_has_a_composer(made: dict[str, DataResult]) -> None:
    with pytest.raises(ValueError, match="is not composed"):
        load_composer(made["detect"].model_copy(update={"scenes": None}))


def test_gray_scenes_photos_as_grounds_and_a_sheet(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    gray = config("detect", colour="gray", scenes=SMALL | {"backgrounds": str(photos)})
    with pytest.raises(InputError, match="0 photos"):
        fingerprint(gray)
    for at in range(5):
        assert cv2.imwrite(str(photos / f"{at}.png"), np.full((30, 40, 3), 40 * at, np.uint8))
    textures = {split: source.textures for split, source, _, _ in opened(gray)}
    assert textures["test"].shape == (49, 96, 144, 1)
    assert (textures["test"][-1] == 0).all()
    assert (textures["val"][-1] == 40).all()
    assert [int(texture[0, 0, 0]) for texture in textures["train"][48:]] == [80, 120, 160]
    assert show(gray, tmp_path / "sheet.png", split="test", n=4) == 4


@pytest.mark.parametrize(
    "changes",
    [{"path": "x"}, {"strict": True}, {"resize": {"mode": "crop"}}, {"size_wh": (28, 28)}, {"task": "segment"}],
)
def test_settings_without_effect_are_refused(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"data\."):
        run(config("detect", **changes), out_dir=tmp_path)


def test_limits_in_the_wrong_order_are_refused() -> None:
    with pytest.raises(ValueError, match="larger one"):
        ScenesConfig(objects=(3, 2))

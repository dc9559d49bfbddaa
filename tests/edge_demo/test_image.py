"""Pictures in and out, the resize rule, and the way back for boxes."""

from __future__ import annotations

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_demo.errors import InputError
from edge_demo.image import crop, decode_frame, fit, place, read_frame, to_batch, write_png
from edge_demo.manifest import Resize

SIDE = st.integers(1, 700)
MODES = st.sampled_from(["stretch", "letterbox", "crop"])
COORDINATE = st.floats(-2000, 2000)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(7).integers(0, 256, (height, width, channels), dtype=np.uint8)


def smooth(height: int, width: int) -> np.ndarray:
    return cv2.resize(noise(6, 8), (width, height), interpolation=cv2.INTER_LINEAR)


def encoded(frame: np.ndarray, suffix: str, *options: int) -> bytes:
    ok, data = cv2.imencode(suffix, frame, options)
    assert ok
    return data.tobytes()


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".ppm", ".tiff"])
def test_lossless_formats_give_the_written_pixels(tmp_path: Path, suffix: str) -> None:
    frame = noise(9, 13)
    (tmp_path / f"a{suffix}").write_bytes(encoded(frame, suffix))
    assert np.array_equal(read_frame(tmp_path / f"a{suffix}"), frame)


def test_write_png_round_trips_bgr_and_gray() -> None:
    frame, gray = noise(5, 7), noise(5, 7, 1)
    assert np.array_equal(decode_frame(write_png(frame), "frame"), frame)
    assert np.array_equal(decode_frame(write_png(gray), "gray"), np.repeat(gray, 3, axis=2))


def test_colour_order_is_bgr(tmp_path: Path) -> None:
    """A binary PPM is written by hand: one pixel, R = 200, G = 100, B = 50."""
    (tmp_path / "a.ppm").write_bytes(b"P6 1 1 255\n" + bytes([200, 100, 50]))
    assert read_frame(tmp_path / "a.ppm").tolist() == [[[50, 100, 200]]]


def test_alpha_is_left_out_and_16_bit_scaled() -> None:
    bgra = noise(4, 4, 4)
    assert np.array_equal(decode_frame(encoded(bgra, ".png"), "a"), bgra[:, :, :3])
    deep = noise(4, 4).astype(np.uint16) * 257
    assert np.array_equal(decode_frame(encoded(deep, ".png"), "a"), (deep // 257).astype(np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("kept", [0.2, 0.6, 0.95, 0.999])
def test_truncated_picture_is_refused(tmp_path: Path, suffix: str, kept: float) -> None:
    data = encoded(smooth(120, 160), suffix)
    path = tmp_path / f"half{suffix}"
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(InputError, match=rf"half\{suffix}.*truncated"):
        read_frame(path)


def test_truncated_jpeg_with_a_whole_thumbnail_is_refused() -> None:
    """The end marker of an EXIF thumbnail must not pass for the picture's own."""
    data, thumbnail = encoded(smooth(120, 160), ".jpg"), encoded(smooth(16, 16), ".jpg")
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    whole = data[:2] + segment + data[2:]
    assert decode_frame(whole, "whole").shape == (120, 160, 3)
    with pytest.raises(InputError, match="truncated"):
        decode_frame(whole[:-40], "cut")


def test_progressive_jpeg_and_bytes_after_the_end_are_fine() -> None:
    data = encoded(smooth(64, 64), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    assert decode_frame(data + b"\0" * 512, "padded").shape == (64, 64, 3)


def test_png_with_one_bit_changed_is_refused() -> None:
    data = bytearray(write_png(smooth(40, 40)))
    data[len(data) // 2] ^= 1
    with pytest.raises(InputError, match=r"a\.png: is a damaged PNG"):
        decode_frame(bytes(data), "a.png")


@pytest.mark.parametrize("data", [b"", b"hello", b"\xff\xd8\xff", b"\xff\xd8 is no JPEG", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_picture_is_refused_by_name(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "broken.jpg"
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"broken\.jpg") as caught:
        read_frame(path)
    assert caught.value.exit_code == 2
    assert caught.value.hint


def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.png"):
        read_frame(tmp_path / "none.png")
    with pytest.raises(InputError, match=tmp_path.name):
        read_frame(tmp_path)


def test_without_opencv_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_png(noise(2, 2))
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(InputError, match=r"train-to-edge\[headless\]"):
        decode_frame(data, "a.png")


# --- size ------------------------------------------------------------------------------------------------------------


def test_area_shrinking_is_the_mean_of_blocks() -> None:
    frame = noise(20, 30)
    got, _ = fit(frame, (10, 5), Resize(interpolation="area"))
    want = frame.reshape(5, 4, 10, 3, 3).mean(axis=(1, 3))
    assert np.abs(got - want).max() <= 0.5 + 1e-9


def test_area_enlarging_is_linear() -> None:
    frame = noise(5, 6)
    area, _ = fit(frame, (12, 15), Resize(interpolation="area"))
    linear, _ = fit(frame, (12, 15), Resize(interpolation="linear"))
    assert np.array_equal(area, linear)
    ramp, _ = fit(np.array([[[0], [100]]], np.uint8), (4, 1), Resize(interpolation="area"))
    assert ramp[0, :, 0].tolist() == [0, 25, 75, 100]  # samples at -0.25, 0.25, 0.75, 1.25 of the two pixel centres


def test_area_averages_the_side_that_shrinks_even_when_the_other_grows() -> None:
    """Stripes finer than a network pixel must come out grey, not as one of the stripes."""
    stripes = np.tile(np.array([0, 200], np.uint8), 400).reshape(1, 800, 1)
    got, _ = fit(stripes, (8, 4), Resize(interpolation="area"))
    assert got.shape == (4, 8, 1)
    assert np.all(got == 100)


@given(SIDE, SIDE, st.sampled_from(["linear", "area"]), MODES)
def test_a_frame_of_the_right_size_keeps_its_pixels(width: int, height: int, interpolation: str, mode: str) -> None:
    frame = noise(height, width)
    got, geometry = fit(frame, (width, height), Resize(mode=mode, interpolation=interpolation))
    assert np.array_equal(got, frame)
    assert geometry.source_xyxy == geometry.network_xyxy == (0, 0, width, height)


@pytest.mark.parametrize("mode", ["stretch", "letterbox", "crop"])
@pytest.mark.parametrize("size_wh", [(28, 28), (64, 20), (200, 300)])
def test_a_gray_frame_goes_the_same_way_as_its_bgr_copy(mode: str, size_wh: tuple[int, int]) -> None:
    gray = noise(75, 101, 1)
    resize = Resize(mode=mode, pad_value=114)
    one, _ = fit(gray, size_wh, resize)
    three, _ = fit(np.repeat(gray, 3, axis=2), size_wh, resize)
    assert np.array_equal(np.repeat(one, 3, axis=2), three)


def test_letterbox_borders_by_hand() -> None:
    """100 x 50 into 32 x 33: 32 x 16 in the middle, 8 rows above, 9 below (the odd one)."""
    got, geometry = fit(np.full((50, 100, 3), 200, np.uint8), (32, 33), Resize(mode="letterbox", pad_value=7))
    assert geometry.network_xyxy == (0, 8, 32, 24)
    assert np.all(got[8:24] == 200)
    assert np.all(got[:8] == 7)
    assert np.all(got[24:] == 7)


def test_crop_offsets_by_hand() -> None:
    """101 x 50 onto a square: the 50 columns from 25 on; marked columns just outside must not show."""
    frame = np.full((50, 101, 3), 90, np.uint8)
    frame[:, 24], frame[:, 75] = 255, 255
    got, geometry = fit(frame, (25, 25), Resize(mode="crop"))
    assert geometry.source_xyxy == (25, 0, 75, 50)
    assert np.all(got == 90)


def test_rounding_is_half_up() -> None:
    """Height 10 * 5 / 20 = 2.5 becomes 3; Python's round() would give 2."""
    assert place((20, 5), (10, 10), "letterbox").network_xyxy == (0, 3, 10, 6)


@given(SIDE, SIDE, SIDE, SIDE, MODES)
def test_place_keeps_both_rectangles_inside_and_the_aspect(w: int, h: int, net_w: int, net_h: int, mode: str) -> None:
    geometry = place((w, h), (net_w, net_h), mode)
    for (x0, y0, x1, y1), (width, height) in (
        (geometry.source_xyxy, (w, h)),
        (geometry.network_xyxy, (net_w, net_h)),
    ):
        assert 0 <= x0 < x1 <= width
        assert 0 <= y0 < y1 <= height
        assert 0 <= (width - x1) - x0 <= 1
        assert 0 <= (height - y1) - y0 <= 1
    if mode == "letterbox":
        x0, y0, x1, y1 = geometry.network_xyxy
        scale = min(net_w / w, net_h / h)
        assert abs((x1 - x0) - max(1, w * scale)) <= 0.5 + 1e-9
        assert abs((y1 - y0) - max(1, h * scale)) <= 0.5 + 1e-9


@given(SIDE, SIDE, SIDE, SIDE, MODES, st.tuples(COORDINATE, COORDINATE, COORDINATE, COORDINATE))
def test_boxes_round_trip(
    w: int, h: int, net_w: int, net_h: int, mode: str, box: tuple[float, float, float, float]
) -> None:
    geometry = place((w, h), (net_w, net_h), mode)
    assert np.abs(geometry.to_source(geometry.to_network([box])) - np.array([box])).max() < 1e-6


def test_a_box_follows_the_pixels_it_encloses() -> None:
    """A bright rectangle is found in the resized frame where `to_network` says it is."""
    frame = np.zeros((240, 400, 3), np.uint8)
    frame[80:160, 160:280] = 255
    for mode in ("stretch", "letterbox", "crop"):
        got, geometry = fit(frame, (100, 100), Resize(mode=mode))
        ys, xs = np.nonzero(got[:, :, 0] > 127)
        found = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
        assert np.abs(geometry.to_network([[160, 80, 280, 160]])[0] - found).max() <= 0.5


def test_no_boxes_stay_no_boxes() -> None:
    assert place((4, 4), (8, 8), "stretch").to_source(np.empty((0, 4))).shape == (0, 4)


def test_unknown_mode_is_an_error() -> None:
    with pytest.raises(ValueError, match="cubic"):
        place((4, 4), (8, 8), "cubic")


def test_crop_gives_the_inside_and_refuses_the_outside() -> None:
    frame = noise(10, 20)
    assert np.array_equal(crop(frame, (3, 2, 7, 9)), frame[2:9, 3:7])
    for xyxy in ((-1, 0, 5, 5), (0, 0, 21, 5), (5, 5, 5, 8), (0, 8, 4, 2)):
        with pytest.raises(ValueError, match="rectangle"):
            crop(frame, xyxy)


def test_to_batch_is_contiguous_nhwc_and_strict() -> None:
    frames = [noise(6, 5)[:, ::-1], noise(6, 5)]
    batch = to_batch(frames)
    assert batch.shape == (2, 6, 5, 3)
    assert batch.flags.c_contiguous
    assert np.array_equal(batch[0], frames[0])
    for bad in ([], [noise(6, 5), noise(5, 6)], [noise(6, 5).astype(np.float32)]):
        with pytest.raises(ValueError, match=r"."):
            to_batch(bad)

"""What a camera that still delivers can get wrong: judged on pictures made for it."""

from __future__ import annotations

from typing import Any

import numpy as np

from edge_demo.picture import PictureWatch

RANDOM = np.random.default_rng(4)


def noisy(level: int = 120, size_wh: tuple[int, int] = (320, 240)) -> Any:
    return np.clip(RANDOM.normal(level, 3, (size_wh[1], size_wh[0], 3)), 0, 255).astype(np.uint8)


def watch(frames: list[Any], watcher: PictureWatch | None = None, fps: float = 10.0) -> list[str]:
    watcher = watcher or PictureWatch()
    return [watcher.look(frame, number / fps) for number, frame in enumerate(frames)]


def test_a_still_scene_with_noise_is_not_frozen() -> None:
    assert set(watch([noisy() for _ in range(60)])) == {""}


def test_the_same_bits_for_three_seconds_are() -> None:
    told = watch([noisy()] * 60)
    assert told[29] == ""
    assert told[31].startswith("frozen picture: the same for 3 s")


def test_one_new_frame_ends_it() -> None:
    frame = noisy()
    assert watch([frame] * 40 + [noisy()])[-1] == ""


def test_a_covered_lens_is_black_and_a_dim_room_is_not() -> None:
    assert watch([noisy(5) for _ in range(40)])[-1].startswith("black picture for 4 s")
    assert watch([noisy(60) for _ in range(40)])[-1] == ""


def test_a_few_bright_pixels_on_black_are_no_picture() -> None:
    frames = [noisy(5) for _ in range(40)]
    for frame in frames:
        frame[100, 100] = 255
    assert "black" in watch(frames)[-1]


def cut(frame: Any, before: Any) -> Any:
    out = frame.copy()
    out[150:] = before[150:]
    return out


def test_a_lower_part_that_keeps_the_past_is_cut_off() -> None:
    frames = [noisy() for _ in range(40)]
    for number in range(20):
        frames.append(cut(noisy(), frames[-1]) if number % 2 else noisy())
    assert "cut off" in watch(frames, fps=30)[-1]


def test_a_grey_lower_part_is_cut_off() -> None:
    frames = [noisy() for _ in range(60)]
    for frame in frames[40::2]:
        frame[150:] = 128
    assert "cut off" in watch(frames, fps=30)[-1]


def test_a_letterbox_is_as_usual() -> None:
    frames = [noisy() for _ in range(90)]
    for frame in frames:
        frame[200:] = 0
    assert set(watch(frames, fps=30)) == {""}


def test_another_size_starts_anew() -> None:
    watcher = PictureWatch()
    watch([noisy()] * 40, watcher)
    assert watcher.look(noisy(size_wh=(640, 480)), 4.1) == ""

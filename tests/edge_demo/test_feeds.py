"""Several sources at once: fair turns, the state of the worst, and the mosaic."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_demo.capture import Timing
from edge_demo.channel import InTurn
from edge_demo.feeds import Feeds
from edge_demo.mosaic import CANVAS_WH, TITLE, Tile, mosaic
from edge_demo.source import Captured


class Still:
    """A source that does nothing by itself."""

    kind, live, pace_s = "stream", True, None

    def __init__(self, name: str) -> None:
        self.name = name

    def open(self) -> str:
        return "4x4"

    def read(self) -> Captured | None:
        return None

    def close(self) -> None:
        """Nothing."""


class TestInTurn:
    @settings(max_examples=60)
    @given(st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=5))
    def test_nothing_is_lost_and_each_keeps_its_order(self, queues: list[list[int]]) -> None:
        channels: InTurn[tuple[int, int]] = InTurn(len(queues), 99, newest_wins=False)
        for which, values in enumerate(queues):
            for value in values:
                channels.channels[which].put((which, value))
        channels.close()
        taken = []
        while not channels.ended:
            taken.append(channels.get(0))
        assert channels.get(0) is None
        for which, values in enumerate(queues):
            assert [item[1] for item in taken if item and item[0] == which] == values
        # Fair: while two have something left, neither gets two turns running.
        left = [len(values) for values in queues]
        for earlier, later in pairwise(taken):
            assert earlier
            assert later
            left[earlier[0]] -= 1
            if earlier[0] == later[0]:
                assert sum(count > 0 for count in left) == 1

    def test_a_camera_ten_times_as_fast_gets_no_more_turns(self) -> None:
        channels: InTurn[int] = InTurn(2, 1, newest_wins=True)
        stop = threading.Event()

        def feed(which: int, every_s: float) -> None:
            while not stop.wait(every_s):
                channels.channels[which].put(which)

        threads = [threading.Thread(target=feed, args=pair) for pair in ((0, 0.001), (1, 0.02))]
        for thread in threads:
            thread.start()
        taken = []
        while len(taken) < 20:
            time.sleep(0.04)  # a model slower than both
            item = channels.get(1.0)
            assert item is not None
            taken.append(item)
        stop.set()
        for thread in threads:
            thread.join(2)
        assert 8 <= taken.count(1) <= 12
        assert channels.dropped > 20

    def test_a_waiting_reader_is_woken_by_any(self) -> None:
        channels: InTurn[int] = InTurn(3, 1, newest_wins=True)
        threading.Timer(0.05, lambda: channels.channels[2].put(7)).start()
        assert channels.get(5.0) == 7
        threading.Timer(0.05, channels.close).start()
        start = time.monotonic()
        assert channels.get(5.0) is None
        assert time.monotonic() - start < 4


class TestFeeds:
    def feeds(self, told: list[Any]) -> Feeds:
        return Feeds(
            [Still("door"), Still("yard")],
            lambda source, state, reason: told.append((source.name, state, reason)),
            Timing(stale_s=0.5),
            capacity=1,
            newest_wins=True,
        )

    def test_the_worst_state_is_the_state_and_names_its_source(self) -> None:
        told: list[Any] = []
        feeds = self.feeds(told)
        for status in feeds.statuses:
            status.arrived(100.0)
        assert (feeds.state, feeds.captured) == ("LIVE", 2)
        feeds.statuses[1].to("LOST", "gone")
        assert (feeds.state, feeds.reason) == ("LOST", "yard: gone")
        assert told[-1] == ("yard", "LOST", "gone")
        assert feeds.warnings(103.0) == "yard: LOST: last frame 3 s ago"
        assert feeds.warning(0, 100.1) == ""
        feeds.check_stale(101.0)
        assert feeds.statuses[0].state == "STALE"
        assert feeds.stalls == 1

    def test_a_picture_that_is_wrong_is_a_change_once(self) -> None:
        told: list[Any] = []
        feeds = self.feeds(told)
        status = feeds.statuses[0]
        status.arrived(1.0)
        for second in range(3, 6):
            status.note(f"frozen picture: the same for {second} s", None)
        assert [reason for _, _, reason in told if "frozen" in reason] == ["frozen picture: the same for 3 s"]
        assert feeds.warning(0, 1.0) == "frozen picture: the same for 5 s"
        status.note("", None)
        assert feeds.warning(0, 1.0) == ""
        assert told[-1][1] == "LIVE"


class TestMosaic:
    @pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
    def test_every_picture_is_whole_and_in_its_cell(self, count: int) -> None:
        tiles = [Tile(np.full((90, 120 + 10 * i, 3), 100 + 10 * i, np.uint8), f"camera {i}") for i in range(count)]
        canvas = mosaic(tiles)
        assert canvas.shape == (CANVAS_WH[1], CANVAS_WH[0], 3)
        columns = int(np.ceil(np.sqrt(count)))
        rows = -(-count // columns)
        width, height = CANVAS_WH[0] // columns, CANVAS_WH[1] // rows
        for number in range(count):
            x, y = number % columns * width, number // columns * height
            cell = canvas[y + TITLE : y + height, x : x + width]
            inside = (cell == 100 + 10 * number).all(axis=2)
            ys, xs = np.nonzero(inside)
            shape = (np.ptp(xs) + 1) / (np.ptp(ys) + 1)
            assert shape == pytest.approx((120 + 10 * number) / 90, rel=0.02)
            assert inside.sum() == (np.ptp(xs) + 1) * (np.ptp(ys) + 1)

    def test_one_without_a_frame_yet_is_a_name_and_a_reason(self) -> None:
        bare = mosaic([Tile(None, "door", "CONNECTING"), Tile(None, "yard")])
        titles = bare[:TITLE].astype(int)
        assert np.abs(titles - 24).max() > 100
        assert np.abs(bare[TITLE + 5 :].astype(int) - 24).max() == 0

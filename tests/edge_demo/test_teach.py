"""Teach mode: prototypes against numpy and a nearest-centroid classifier of another library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

from edge_demo.errors import InputError
from edge_demo.live import Controls
from edge_demo.teach import Teacher
from edge_demo.teaching import Teaching

LABELS = ("ant", "bee", "cat")
AXES = np.eye(8, dtype=np.float32)


def around(axis: int, count: int, spread: float = 0.1, seed: int = 0) -> Any:
    return (AXES[axis] + np.random.default_rng(seed + axis).normal(0, spread, (count, 8))).astype(np.float32)


def teacher(file: Path | None = None, manifest: str = "m1") -> Teacher:
    embeddings = np.concatenate([around(axis, 10) for axis in range(3)])
    truths = np.repeat(np.arange(3), 10)
    scores = np.full((30, 3), 0.05, np.float32)
    scores[np.arange(30), truths] = 0.9
    return Teacher(LABELS, manifest, (embeddings, scores), truths.tolist(), file)


CENTRE = np.concatenate([around(axis, 10) for axis in range(3)]).mean(axis=0)


def direction(rows: Any) -> Any:
    return (rows - CENTRE) / np.linalg.norm(rows - CENTRE, axis=-1, keepdims=True)


SURE = np.array([0.9, 0.05, 0.05], np.float32)


def test_a_taught_class_is_known_and_the_old_ones_stay() -> None:
    known = teacher()
    for example in around(5, 4):
        now = known.learn("dog", example)
    assert known.labels == ["ant", "bee", "cat", "dog"]
    assert now.examples == {"dog": 4}
    assert (now.own_accuracy, now.old_before, now.old_accuracy, now.old_n) == (1.0, 1.0, 1.0, 30)
    for new in around(5, 20, seed=9):
        scores = known.rescore(SURE, new)
        assert scores.argmax() == 3
        assert scores.sum() == pytest.approx(1.0, abs=1e-5)
    for axis in range(3):
        scores = np.full(3, 0.05, np.float32)
        scores[axis] = 0.9
        assert known.rescore(scores, AXES[axis]).argmax() == axis


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 4))
def test_among_taught_classes_the_nearest_mean_wins(seed: int, classes: int) -> None:
    """With unit means, the largest cosine is the smallest Euclidean distance: the nearest neighbour among the means."""
    random = np.random.default_rng(seed)
    known = teacher()
    means = []
    for which in range(classes):
        examples = (AXES[3 + which] + random.normal(0, 0.3, (5, 8))).astype(np.float32)
        for example in examples:
            known.learn(f"new {which}", example)
        mean = direction(examples).mean(axis=0)
        means.append(mean / np.linalg.norm(mean))
    reference = KNeighborsClassifier(1).fit(np.array(means), np.arange(classes))
    for axis in range(3, 3 + classes):
        query = (AXES[axis] + random.normal(0, 0.3, 8)).astype(np.float32)
        distances = np.sort(np.linalg.norm(np.array(means) - direction(query), axis=1))
        if distances[1] - distances[0] < 1e-3:
            continue
        want = reference.predict((direction(query))[None])[0]
        assert known.rescore(SURE, query)[3:].argmax() == want


def test_leave_one_out_is_honest_about_classes_that_cannot_be_told_apart() -> None:
    known = teacher()
    for first, second in zip(around(5, 6, 0.5), around(5, 6, 0.5, seed=77), strict=True):
        known.learn("one", first)
        now = known.learn("other", second)
    assert now.own_accuracy is not None
    assert now.own_accuracy < 0.9
    assert "leave-one-out" in now.line()


def test_what_a_new_class_costs_the_old_ones_is_told() -> None:
    known = teacher()
    now = known.learn("bee again", AXES[1])
    assert now.own_accuracy is None  # one example cannot be left out
    assert now.old_accuracy is not None
    assert now.old_accuracy < 1.0
    assert "100.0% ->" in now.line()


def test_it_is_kept_in_a_file_and_forgotten_there(tmp_path: Path) -> None:
    file = tmp_path / "taught.npz"
    known = teacher(file)
    for example in around(5, 3):
        known.learn("Hündin", example)
    again = teacher(file)
    assert again.labels == [*LABELS, "Hündin"]
    assert np.array_equal(again.rescore(SURE, AXES[5]), known.rescore(SURE, AXES[5]))
    again.forget("Hündin")
    assert not again.active
    assert (teacher(file).labels, teacher(file).active) == (list(LABELS), False)
    assert list(tmp_path.iterdir()) == [file]


def test_a_frame_from_before_a_class_was_forgotten_still_means_it() -> None:
    known = teacher()
    for label, axis in (("dog", 5), ("elk", 6)):
        for example in around(axis, 3):
            known.learn(label, example)
    before = known.rescore(SURE, AXES[6])
    known.forget("dog")
    assert known.labels[int(before.argmax())] == "elk"
    after = known.rescore(SURE, AXES[6])
    assert known.labels[int(after.argmax())] == "elk"
    assert after[known.labels.index("dog")] == 0
    assert after.sum() == pytest.approx(1.0, abs=1e-5)
    known.learn("dog", around(7, 1)[0])  # it gets its old place back
    assert known.labels == [*LABELS, "dog", "elk"]
    assert known.labels[int(known.rescore(SURE, AXES[6]).argmax())] == "elk"


class TestRefused:
    @pytest.mark.parametrize(
        ("label", "says"),
        [
            ("ant", "the bundle has that class"),
            ("", "not a usable name"),
            (" x", "not a usable"),
            ("a\nb", "not a usable"),
        ],
    )
    def test_names(self, label: str, says: str) -> None:
        with pytest.raises(InputError, match=says):
            teacher().learn(label, AXES[4])

    @pytest.mark.parametrize("embedding", [np.zeros(8, np.float32), np.full(8, np.nan, np.float32)])
    def test_blank_frames(self, embedding: Any) -> None:
        with pytest.raises(InputError, match="says nothing to the model"):
            teacher().learn("dog", embedding)

    def test_forgetting_what_was_never_taught(self) -> None:
        with pytest.raises(InputError, match="not a taught class; known: nothing has been taught"):
            teacher().forget("dog")

    def test_the_file_of_another_bundle(self, tmp_path: Path) -> None:
        teacher(tmp_path / "t.npz").learn("dog", AXES[5])
        with pytest.raises(InputError, match="was taught to another bundle"):
            teacher(tmp_path / "t.npz", manifest="m2")

    @pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04 broken"])
    def test_a_file_that_is_none(self, tmp_path: Path, content: bytes) -> None:
        (tmp_path / "t.npz").write_bytes(content)
        with pytest.raises(InputError, match="not a file of taught classes"):
            teacher(tmp_path / "t.npz")

    def test_a_file_with_pickled_objects(self, tmp_path: Path) -> None:
        np.savez(tmp_path / "t.npz", meta=np.array([{"schema": 1}], dtype=object))
        with pytest.raises(InputError, match="not a file of taught classes"):
            teacher(tmp_path / "t.npz")

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="cannot write"):
            teacher(tmp_path / "no" / "t.npz").learn("dog", AXES[5])


class TestControls:
    def controls(self, said: list[str], result: Any) -> Controls:
        controls = Controls({}, (), lambda params: params)
        controls.teaching = Teaching(teacher(), lambda: result, said.append)
        return controls

    def test_a_viewer_teaches_and_forgets(self) -> None:
        from types import SimpleNamespace

        said: list[str] = []
        controls = self.controls(said, SimpleNamespace(embedding=AXES[5]))
        controls.apply(b'{"teach": "dog"}')
        assert "taught dog (1)" in said[-1]
        controls.apply(b'{"forget": "dog"}')
        assert said[-1] == "forgot dog; nothing taught"

    def test_one_frame_is_one_example(self) -> None:
        from types import SimpleNamespace

        said: list[str] = []
        seen = [SimpleNamespace(embedding=around(5, 1)[0])]
        controls = Controls({}, (), lambda params: params)
        controls.teaching = Teaching(teacher(), lambda: seen[-1], said.append)
        controls.apply(b'{"teach": "dog"}')
        with pytest.raises(InputError, match="taken already; wait for the next one"):
            controls.apply(b'{"teach": "dog"}')
        seen.append(SimpleNamespace(embedding=around(5, 1, seed=9)[0]))
        controls.apply(b'{"teach": "dog"}')
        assert controls.teaching.now().examples == {"dog": 2}
        controls.apply(b'{"forget": "dog"}')
        controls.apply(b'{"teach": "dog"}')  # a slip of the name is put right with the frame that is there
        assert controls.teaching.now().examples == {"dog": 1}

    def test_what_cannot_be_is_refused(self) -> None:
        with pytest.raises(InputError, match="no frame has been processed yet"):
            self.controls([], None).apply(b'{"teach": "dog"}')
        with pytest.raises(InputError, match="start it with --teach FILE"):
            Controls({}, (), lambda params: params).apply(b'{"teach": "dog"}')

    def test_a_refused_key_is_said(self) -> None:
        said: list[str] = []
        teaching = Teaching(teacher(), lambda: None, said.append)
        teaching.key("t", "dog")
        teaching.key("u", "dog")
        teaching.key("x", "dog")
        assert len(said) == 2
        assert "no frame" in said[0]

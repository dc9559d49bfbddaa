"""Teach a running classifier a new class from a handful of frames, on the device: no training, one mean per class.

A frame's embedding is compared with the mean embedding of each class (nearest mean, cosine). The bundle's own classes
get their means from its labelled sample, so that what a new class costs them is measured too.
Source: Snell et al., "Prototypical Networks for Few-shot Learning" (2017); centring on the mean embedding, then unit
length, as in Wang et al., "SimpleShot" (2019); cosine similarity with a fixed scale as in Gidaris and Komodakis,
"Dynamic Few-Shot Visual Learning without Forgetting" (2018), who start at 10. A handicap per taught class keeps it from
taking more than 1 % of the labelled sample for itself.
"""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_demo.errors import InputError

SCHEMA = "edge-taught/1"
SCALE = 10.0
CLAIM = 0.01  # share of the bundle's own sample that one taught class may take for itself
MOST_CLASSES, MOST_EXAMPLES = 50, 500
LABEL = re.compile(r"[^\x00-\x1f\x7f]{1,40}")

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Taught:
    """What is known now. Shares of 0..1; None: too little to say.

    `own_accuracy` of the examples of taught classes, each compared with everything but itself; `old_accuracy` of the
    bundle's labelled sample with the taught classes in play, `old_before` without them; `old_n` its size.
    """

    examples: dict[str, int]
    own_accuracy: float | None
    old_accuracy: float | None
    old_before: float | None
    old_n: int

    def line(self) -> str:
        """One line for people."""
        if not self.examples:
            return "nothing taught"
        counts = ", ".join(f"{label} ({count})" for label, count in self.examples.items())
        own = "-" if self.own_accuracy is None else f"{self.own_accuracy:.0%}"
        text = f"taught {counts}: leave-one-out {own} of {sum(self.examples.values())} examples"
        if self.old_accuracy is None or self.old_before is None:
            return text
        return f"{text}; the bundle's own classes {self.old_before:.1%} -> {self.old_accuracy:.1%} of {self.old_n}"


class Teacher:
    """The taught classes of one bundle; every method may be called from any thread.

    Args:
        labels: The bundle's own.
        manifest_sha256: What the side file is bound to: embeddings of another model mean nothing.
        sample: Embeddings float32 (n, features) and scores float32 (n, labels) of the bundle's labelled sample.
        truths: Its n class ids.
        file: Where what is taught is kept; None: nowhere.
    """

    def __init__(
        self,
        labels: Sequence[str],
        manifest_sha256: str,
        sample: tuple[NDArray[np.float32], NDArray[np.float32]],
        truths: Sequence[int],
        file: Path | None = None,
    ) -> None:
        self.labels: list[str] = list(labels)
        """The bundle's labels, then every one taught since the start. Grows in place and never shrinks: whoever draws
        sees new ones, and the result of a frame from before a class was forgotten still means that class."""
        self._bundle_labels = tuple(labels)
        self._manifest = manifest_sha256
        self._file = file
        self._lock = threading.RLock()
        self._examples: dict[str, list[Vector]] = {}
        self._now: Taught | None = None
        self._centre = sample[0].mean(axis=0)
        self._sample, self._scores = self._direction(sample[0]), sample[1]
        self._truths = np.asarray(truths, dtype=np.int64)
        present = sorted(set(self._truths.tolist()))
        self._old = _unit(np.stack([self._sample[self._truths == class_id].mean(axis=0) for class_id in present]))
        self._prototypes = self._learned()
        if file is not None and file.exists():
            self._load(file)

    @property
    def active(self) -> bool:
        """Whether anything has been taught."""
        return bool(self._examples)

    def learn(self, label: str, embedding: Vector) -> Taught:
        """Take one more example of `label`, which is new or was taught before; saved at once.

        Raises:
            InputError: a label of the bundle itself, an unusable name, too many, or a blank embedding.
        """
        with self._lock:
            self._check(label)
            if not (np.isfinite(embedding).all() and float(np.linalg.norm(embedding)) > 0):
                raise InputError(f"teach {label}: this frame says nothing to the model", "hold something else up")
            self._examples.setdefault(label, []).append(np.array(embedding, dtype=np.float32))
            self._changed()
            return self.now()

    def forget(self, label: str) -> Taught:
        """Drop a taught class and its examples; saved at once. InputError when it was not taught."""
        with self._lock:
            if label not in self._examples:
                known = ", ".join(self._examples) or "nothing has been taught"
                raise InputError(f"forget {label}: not a taught class", f"known: {known}")
            del self._examples[label]
            self._changed()
            return self.now()

    def rescore(self, scores: Vector, embedding: Vector) -> Vector:
        """Scores over all labels, the taught ones last, summing to 1.

        Each taught class takes the share that a softmax over its cosine and that of the nearest class of the bundle
        gives it; the bundle's own scores share the rest.

        Args:
            scores: float32 (labels of the bundle,).
            embedding: float32 (features,).
        """
        with self._lock:
            means, handicaps = self._prototypes
            slots = [self.labels.index(label, len(scores)) for label in self._examples]
            size = len(self.labels)
        combined = _combined(scores[None], self._direction(embedding[None]), self._old, means, handicaps)[0]
        row = np.zeros(size, np.float32)  # a forgotten class keeps its place, with nothing
        row[: len(scores)] = combined[: len(scores)]
        row[slots] = combined[len(scores) :]
        return row

    def now(self) -> Taught:
        """Counts and accuracies; computed once after each change."""
        with self._lock:
            self._now = self._now or self._measured()
            return self._now

    def _measured(self) -> Taught:
        counts = {label: len(examples) for label, examples in self._examples.items()}
        if not counts:
            return Taught({}, None, None, None, len(self._truths))
        combined = _combined(self._scores, self._sample, self._old, *self._prototypes)
        before = float((self._scores.argmax(axis=1) == self._truths).mean())
        after = float((combined.argmax(axis=1) == self._truths).mean())
        return Taught(counts, self._leave_one_out(), after, before, len(self._truths))

    def _leave_one_out(self) -> float | None:
        """Share of examples nearest to their own class when left out of its mean; None below two of any class."""
        means, handicaps = self._prototypes
        right, asked = 0, 0
        for index, examples in enumerate(self._examples.values()):
            if len(examples) < 2:
                continue
            units = self._direction(np.stack(examples))
            others = _unit(units.sum(axis=0) - units)  # the mean without each one, scaled
            own = (units * others).sum(axis=1) - self._handicaps(others)
            rivals = np.delete(units @ means.T - handicaps, index, axis=1)
            best = np.concatenate([rivals, units @ self._old.T], axis=1).max(axis=1)
            right += int((own > best).sum())
            asked += len(examples)
        return right / asked if asked else None

    def _learned(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Means float32 (taught classes, features) of unit length, in the order of the labels, and their handicaps."""
        rows = [self._direction(np.stack(examples)).mean(axis=0) for examples in self._examples.values()]
        means = _unit(np.stack(rows)) if rows else np.zeros((0, self._old.shape[1]), np.float32)
        return means, self._handicaps(means)

    def _direction(self, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, features), seen from the mean of the sample: embeddings after a ReLU all point about the same way."""
        return _unit(embeddings - self._centre)

    def _handicaps(self, means: NDArray[np.float32]) -> NDArray[np.float32]:
        """Per mean, what is taken off its cosine so that it wins at most `CLAIM` of the bundle's sample; >= 0."""
        if not len(means):
            return np.zeros(0, np.float32)
        ahead = self._sample @ means.T - (self._sample @ self._old.T).max(axis=1, keepdims=True)
        return np.asarray(np.maximum(np.quantile(ahead, 1 - CLAIM, axis=0), 0), dtype=np.float32)

    def _check(self, label: str) -> None:
        if label in self._bundle_labels:
            raise InputError(f"teach {label}: the bundle has that class already", "give the new class another name")
        if not LABEL.fullmatch(label) or label != label.strip():
            raise InputError(f"teach {label!r}: not a usable name", "1 to 40 characters, no line breaks")
        if label not in self._examples and len(self._examples) >= MOST_CLASSES:
            raise InputError(f"teach {label}: {MOST_CLASSES} classes are taught already", "forget one first")
        if len(self._examples.get(label, ())) >= MOST_EXAMPLES:
            raise InputError(f"teach {label}: {MOST_EXAMPLES} examples are enough", "forget it to start anew")

    def _changed(self) -> None:
        taught = self.labels[len(self._bundle_labels) :]
        self.labels.extend(label for label in self._examples if label not in taught)
        self._prototypes = self._learned()
        self._now = None
        if self._file is not None:
            _save(self._file, self._manifest, self._examples)

    def _load(self, file: Path) -> None:
        document, arrays = _read(file)
        if document["bundle"] != self._manifest:
            raise InputError(f"{file}: was taught to another bundle", "teach it anew into another file")
        features = self._old.shape[1]
        for number, label in enumerate(document["labels"]):
            self._check(label)
            array = arrays[f"class{number}"]
            sound = array.dtype == np.float32 and array.ndim == 2 and array.shape[1] == features and len(array)
            if not sound or not np.isfinite(array).all() or len(array) > MOST_EXAMPLES:
                raise InputError(f"{file}: {label}: not {features} finite numbers per example", "teach it anew")
            self._examples[label] = list(array)
        self._prototypes = self._learned()
        self.labels.extend(self._examples)


def _unit(rows: NDArray[Any]) -> NDArray[np.float32]:
    """Rows scaled to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.maximum(lengths, 1e-12), dtype=np.float32)


def _combined(
    scores: NDArray[np.float32],
    units: NDArray[np.float32],
    old: NDArray[np.float32],
    means: NDArray[np.float32],
    handicaps: NDArray[np.float32],
) -> NDArray[np.float32]:
    """(n, labels) and (n, features) -> (n, labels + taught)."""
    nearest = (units @ old.T).max(axis=1, keepdims=True)
    logits = SCALE * np.concatenate([units @ means.T - handicaps, nearest], axis=1)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    return np.asarray(np.concatenate([scores * shares[:, -1:], shares[:, :-1]], axis=1), dtype=np.float32)


def _save(file: Path, manifest_sha256: str, examples: Mapping[str, Sequence[Vector]]) -> None:
    """An npz with the embeddings and a JSON text; replaced as a whole, so that a power cut leaves the old one."""
    document = {"schema": SCHEMA, "bundle": manifest_sha256, "labels": list(examples)}
    arrays = {f"class{number}": np.stack(rows) for number, rows in enumerate(examples.values())}
    partial = file.with_name(f".{file.name}.part")
    try:
        with partial.open("wb") as out:
            np.savez(out, meta=np.frombuffer(json.dumps(document).encode(), np.uint8), **arrays)  # type: ignore[arg-type]
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)
    except OSError as error:
        raise InputError(
            f"{file}: cannot write ({error.strerror})", "give --teach a file that can be written"
        ) from error


def _read(file: Path) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    import zipfile

    remedy = "give --teach a file that it wrote, or a new name"
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        document = json.loads(arrays.pop("meta").tobytes())
        labels = document["labels"]
        whole = document["schema"] == SCHEMA and all(isinstance(label, str) for label in labels)
        if not whole or set(arrays) != {f"class{number}" for number in range(len(labels))}:
            raise ValueError("not what it should hold")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{file}: not a file of taught classes ({error})", remedy) from error
    return document, arrays

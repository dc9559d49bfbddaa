"""Follow boxes from frame to frame by their overlap, so that they do not jump and their labels do not flicker.

Pairs of a known object and a new box are taken greedily, the largest IoU first; no motion model, no appearance.
Source: Bochinski et al., "High-Speed Tracking-by-Detection Without Using Image Information" (2017), of which this is
the IoU association; the thresholds on the score are two, as a Schmitt trigger has.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from edge_demo.boxes import iou

LEAST_IOU = 0.3  # of a box and where its object was in the frame before
OTHER_CLASS = 0.7  # an overlap is worth less when the class differs
STAYS = 0.6  # share of the threshold down to which an object that is shown stays shown
REMEMBERED = 10  # frames an object keeps its number without being seen
VOTES_KEPT = 0.8  # of the votes for a class, from frame to frame: a lasting change shows after two to four frames


@dataclass(frozen=True, slots=True)
class Tracked:
    """Objects seen in a frame, by falling score: `xyxy` float32 (n, 4), `scores` (n,), `class_ids`, `ids` int64."""

    xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    ids: NDArray[np.int64]


@dataclass(slots=True)
class _Object:
    xyxy: NDArray[np.float32]
    score: float
    number: int
    shown: bool
    unseen: int = 0
    votes: dict[int, float] = field(default_factory=dict)

    @property
    def class_id(self) -> int:
        return max(self.votes, key=lambda class_id: self.votes[class_id])


class Tracker:
    """Follows the objects of one source; numbers them from 1 on, in the order in which they are first shown."""

    def __init__(self) -> None:
        self._objects: list[_Object] = []
        self._next = 1

    def update(
        self,
        xyxy: NDArray[np.float32],
        scores: NDArray[np.float32],
        class_ids: NDArray[np.int64],
        threshold: float,
    ) -> Tracked:
        """The objects to show in the next frame.

        An object appears with a score of `threshold`, and then stays as long as a box with 60 % of it is there; only
        objects with a box in this very frame are returned.

        Args:
            xyxy: (n, 4) by falling score.
            scores: (n,) in 0..1.
            class_ids: (n,).
            threshold: Score from which a box is shown.
        """
        enough = scores >= STAYS * threshold
        xyxy, scores, class_ids = xyxy[enough], scores[enough], class_ids[enough]
        partner = self._associate(xyxy, class_ids)
        for known in self._objects:
            known.unseen += 1
        for index in range(len(scores)):
            self._see(int(partner[index]), xyxy[index], float(scores[index]), int(class_ids[index]), threshold)
        self._objects = [known for known in self._objects if known.unseen <= REMEMBERED]
        return self._now()

    def _associate(self, xyxy: NDArray[np.float32], class_ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """(n,) index of the object each box belongs to; -1: none."""
        partner = np.full(len(xyxy), -1, dtype=np.int64)
        if not self._objects or not len(xyxy):
            return partner
        near = iou(xyxy, np.stack([known.xyxy for known in self._objects]))
        near[near < LEAST_IOU] = 0
        near *= np.where(class_ids[:, None] == [known.class_id for known in self._objects], 1.0, OTHER_CLASS)
        free = np.ones(len(self._objects), dtype=bool)
        boxes, objects = np.nonzero(near)
        for pair in np.argsort(-near[boxes, objects], kind="stable"):
            box, known = boxes[pair], objects[pair]
            if partner[box] < 0 and free[known]:
                partner[box], free[known] = known, False
        return partner

    def _see(self, index: int, xyxy: NDArray[np.float32], score: float, class_id: int, threshold: float) -> None:
        if index < 0:
            if score >= threshold:
                self._objects.append(_Object(xyxy.copy(), score, self._next, True, 0, {class_id: score}))
                self._next += 1
            return
        known = self._objects[index]
        overlap = float(iou(xyxy[None], known.xyxy[None])[0, 0])
        # The better a box agrees with the last one the more of the difference is noise; a fast one is followed at once.
        share = 1.0 if known.unseen > 1 else 1.0 - 0.6 * overlap
        known.xyxy = (known.xyxy + share * (xyxy - known.xyxy)).astype(np.float32)
        known.votes = {voted: VOTES_KEPT * votes for voted, votes in known.votes.items()}
        known.votes[class_id] = known.votes.get(class_id, 0.0) + score
        # An object that comes back has to be as sure as a new one.
        known.shown = score >= threshold or (known.shown and known.unseen == 1)
        known.score, known.unseen = score, 0

    def _now(self) -> Tracked:
        seen = sorted((known for known in self._objects if known.shown and not known.unseen), key=lambda o: -o.score)
        return Tracked(
            np.array([known.xyxy for known in seen], dtype=np.float32).reshape(-1, 4),
            np.array([known.score for known in seen], dtype=np.float32),
            np.array([known.class_id for known in seen], dtype=np.int64),
            np.array([known.number for known in seen], dtype=np.int64),
        )

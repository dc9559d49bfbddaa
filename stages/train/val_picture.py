"""val.png: what the kept weights do on val; the confusion matrix, the reliability diagram, the surest mistakes.

The report shows the same of test, for what ships; this is there after `pipeline train` alone.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stages.reliability import BINS, reliability
from stages.tasks import Task
from stages.train.checkpoint import write_atomic
from stages.train.examples import Examples

FILE = "val.png"
COLUMNS, ROWS = 6, 3  # of mistakes
MAX_LABELS = 30  # a wider matrix is no longer readable
SHORT = 12  # letters of a label
INK, SOFT = "tab:blue", "tab:gray"


def draw_val(task: Task, labels: Sequence[str], val: Examples, results: Sequence[Any], out_dir: Path) -> str:
    """Draws the picture of the answers to val; returns its name, empty where there is none to draw."""
    answers = task.predictions(val.truth, results)
    if not {"truth", "answer", "score"} <= set(answers):
        return ""
    write_val_png(out_dir / FILE, val.frames.cpu().numpy(), labels, answers)
    return FILE


def write_val_png(
    path: Path, frames: NDArray[np.uint8], labels: Sequence[str], answers: Mapping[str, NDArray[Any]]
) -> None:
    """Draws the picture.

    Args:
        path: To write.
        frames: uint8 (N, H, W, C), C = 1 gray or 3 BGR.
        labels: Names of the classes.
        answers: `truth` and `answer` int64 (N,), `score` float (N,) in 0..1 of the answer.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    parts: Any = figure.subfigures(1, 3, width_ratios=(4.4, 3.6, 6))
    left, middle, right = parts
    truth, answer, score = answers["truth"], answers["answer"], answers["score"]
    _confusion(left, labels, truth, answer)
    _reliability(middle, score, truth == answer)
    _mistakes(right, frames, labels, truth, answer, score)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    write_atomic(path, image.getvalue())


def surest_mistakes(truth: NDArray[Any], answer: NDArray[Any], score: NDArray[Any], n: int) -> NDArray[np.int64]:
    """Indices of at most `n` wrong answers, the highest score first; equal ones in their order."""
    wrong = np.flatnonzero(truth != answer)
    return wrong[np.argsort(-score[wrong], kind="stable")][:n]


def _confusion(figure: Any, labels: Sequence[str], truth: NDArray[Any], answer: NDArray[Any]) -> None:
    n = len(labels)
    counts = np.zeros((n, n), dtype=np.int64)
    np.add.at(counts, (truth, answer), 1)
    axes = figure.subplots()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="answer", ylabel="truth", title=f"confusion on val, n = {len(truth):,}")
    if n > MAX_LABELS:
        return
    axes.set_xticks(range(n), [_short(label) for label in labels], rotation=90 if max(map(len, labels)) > 2 else 0)
    axes.set_yticks(range(n), [_short(label) for label in labels])
    size = 8 if n <= 12 else 5
    for row, column in np.argwhere(counts):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, counts[row, column], ha="center", va="center", fontsize=size, color=colour)


def _reliability(figure: Any, score: NDArray[Any], right: NDArray[Any]) -> None:
    found = reliability(score, right)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color=SOFT, linewidth=1, linestyle="--", label="as it should be")
    lows, shares, width = [b.low for b in found.bins], [b.right for b in found.bins], 1 / BINS
    axes.bar(lows, shares, width=width, align="edge", color=INK, alpha=0.25, edgecolor=INK, label="share right")
    axes.plot([b.score for b in found.bins], shares, "o", color=INK, markersize=4)
    axes.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score of the answer", ylabel="share right", aspect="equal")
    axes.set_title(f"calibration error {100 * found.ece:.1f} points")
    axes.legend(loc="upper left", fontsize=8)


def _mistakes(
    figure: Any,
    frames: NDArray[np.uint8],
    labels: Sequence[str],
    truth: NDArray[Any],
    answer: NDArray[Any],
    score: NDArray[Any],
) -> None:
    worst = surest_mistakes(truth, answer, score, ROWS * COLUMNS)
    figure.suptitle(f"surest mistakes: {len(worst)} of {int((truth != answer).sum()):,}; answer, score, (truth)")
    for place, axes in enumerate(figure.subplots(ROWS, COLUMNS).flat):
        axes.axis("off")
        if place < len(worst):
            index = int(worst[place])
            image = np.array(frames[index])[..., ::-1]  # BGR to RGB
            axes.imshow(image if image.shape[-1] == 3 else np.repeat(image, 3, axis=-1))
            said, true = (_short(labels[int(part[index])]) for part in (answer, truth))
            axes.set_title(f"{said} {100 * score[index]:.0f} %\n({true})", fontsize=7.5, pad=2)


def _short(label: str) -> str:
    return label if len(label) <= SHORT else f"{label[: SHORT - 1]}…"

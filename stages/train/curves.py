"""curves.csv and curves.png: how loss and metric went, epoch by epoch."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from stages.train.checkpoint import write_atomic

Row = dict[str, float]


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """One line per epoch; columns are the keys of the first row."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: f"{value:.8g}" for key, value in row.items()} for row in rows)
    write_atomic(path, text.getvalue().encode())


def write_png(path: Path, rows: Sequence[Row], metric: str, best_epoch: int) -> None:
    """Loss and metric of train (where known) and val over the epochs, the kept epoch marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [row["epoch"] for row in rows]
    for axes, what in zip(figure.subplots(1, 2), ("loss", metric), strict=True):
        for split, marker, colour in (("train", "o", "tab:gray"), ("val", "s", "tab:blue")):
            column = f"{split}_{what}"
            if column not in rows[0]:
                continue
            values = [row[column] for row in rows]
            label = "train (as it learns)" if split == "train" else split
            axes.plot(epochs, values, marker=marker, markersize=4, color=colour, label=label)
        axes.axvline(best_epoch, color="tab:orange", linestyle="--", linewidth=1, label=f"kept: epoch {best_epoch}")
        axes.set(xlabel="epoch", ylabel=what, title=what)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend()
    image = io.BytesIO()
    FigureCanvasAgg(figure)
    figure.savefig(image, format="png")
    write_atomic(path, image.getvalue())

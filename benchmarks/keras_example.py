"""The Keras example "Simple MNIST convnet" as published, measured: run by `keras_mnist.py`, in its own environment.

Same network, optimizer, batch, epochs and held-out tenth as the page; added are the clock and a test after each epoch,
neither of which is part of the time. The page's progress bar is off, which spares Keras its cost.
Source: https://keras.io/examples/vision/mnist_convnet/ (F. Chollet; 34,826 parameters, 15 epochs, about 99 % on test).
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

BATCH = 128
NUM_CLASSES = 10


def cpu_s() -> float:
    """User and system seconds of this process, all its threads, and its finished children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def read_idx(folder: Path, name: str) -> np.ndarray:
    """A uint8 array from `name` or `name`.gz. Source: the format's description, yann.lecun.com/exdb/mnist."""
    plain = folder / name
    raw = plain.read_bytes() if plain.is_file() else gzip.decompress((folder / f"{name}.gz").read_bytes())
    axes = raw[3]
    shape = np.frombuffer(raw, ">i4", axes, 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * axes).reshape(shape)


def load(folder: Path, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Float32 pictures (N, 28, 28, 1) in 0..1 and one-hot labels (N, 10)."""
    pictures = read_idx(folder, f"{part}-images-idx3-ubyte").astype("float32") / 255
    return pictures[..., None], keras.utils.to_categorical(read_idx(folder, f"{part}-labels-idx1-ubyte"), NUM_CLASSES)


def network() -> keras.Model:
    """The page's network, compiled as there."""
    layers = keras.layers
    model = keras.Sequential([
        keras.Input(shape=(28, 28, 1)),
        layers.Conv2D(32, (3, 3), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Conv2D(64, (3, 3), activation="relu"),
        layers.MaxPooling2D((2, 2)),
        layers.Flatten(),
        layers.Dropout(0.5),
        layers.Dense(NUM_CLASSES, activation="softmax"),
    ])  # fmt: skip
    model.compile(loss="categorical_crossentropy", optimizer="adam", metrics=["accuracy"])
    return model


class Clock(keras.callbacks.Callback):  # type: ignore[misc]  # Keras takes callbacks by inheritance only
    """CPU and wall seconds of each epoch (with Keras's own validation, as ours is), then the test accuracy."""

    def __init__(self, test: tuple[np.ndarray, np.ndarray]) -> None:
        super().__init__()
        self.test = test
        self.epochs: list[dict[str, float]] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Start."""
        self.wall, self.cpu = time.perf_counter(), cpu_s()

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Stop, then test."""
        cpu, wall = cpu_s() - self.cpu, time.perf_counter() - self.wall
        _, accuracy = self.model.evaluate(*self.test, batch_size=BATCH, verbose=0)
        val = float((logs or {})["val_accuracy"])
        self.epochs.append({"cpu_s": cpu, "wall_s": wall, "val": val, "test": round(float(accuracy), 6)})
        print(json.dumps({"epoch": epoch + 1, **self.epochs[-1]}), file=sys.stderr, flush=True)


def main() -> None:
    """Train once; the result is one JSON document on stdout."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True, help="folder of the four MNIST idx files")
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    options = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    keras.utils.set_random_seed(options.seed)
    pictures, labels = load(options.data, "train")
    model, clock = network(), Clock(load(options.data, "t10k"))
    model.fit(
        pictures, labels, batch_size=BATCH, epochs=options.epochs, validation_split=0.1, verbose=0, callbacks=[clock]
    )
    document: dict[str, Any] = {
        "epochs": clock.epochs,
        "parameters": model.count_params(),
        "software": {"tensorflow": tf.__version__, "keras": keras.__version__, "numpy": np.__version__},
        "backend": keras.backend.backend(),
        "process_cpu_s": cpu_s(),
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()

"""Wires a teacher into a running demo: its labels into the results, its keys into the window."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_demo.bundle import Bundle
from edge_demo.errors import InputError
from edge_demo.image import Frame
from edge_demo.loop import Predict, Prediction
from edge_demo.runtime import Runtime
from edge_demo.tasks import Task
from edge_demo.teach import Taught, Teacher

BATCH = 32
LABEL = "taught"
KEYS = "keys: t teaches the class what is seen now, u forgets the class"


def teacher_for(bundle: Bundle, task: Task, runtime: Runtime, file: Path) -> Teacher:
    """A teacher that knows the bundle's own classes from its labelled sample, run here in the runtime in use.

    Raises:
        InputError: the task has no embedding, or the file is not one of this bundle.
    """
    if task.rescore is None:
        raise InputError(f"--teach: a bundle for {bundle.manifest.task} cannot be taught", "only classify can")
    import numpy as np

    frames, truths = bundle.eval_sample()
    outputs = [runtime.infer({"frames": frames[at : at + BATCH]}) for at in range(0, len(frames), BATCH)]
    embeddings, scores = (np.concatenate([raw[name] for raw in outputs]) for name in ("embedding", "scores"))
    return Teacher(bundle.manifest.labels, bundle.manifest_sha256, (embeddings, scores), truths, file)


def taught_predictor(predict: Predict, task: Task, teacher: Teacher) -> Predict:
    """The same call, whose results know the taught classes as well."""
    rescore = task.rescore
    assert rescore is not None

    def taught(frame: Frame) -> Prediction:
        prediction = predict(frame)
        if not teacher.active:
            return prediction
        return replace(prediction, result=rescore(prediction.result, teacher.rescore))

    return taught


class Teaching:
    """What keys and viewers can do: `teach(label)` takes the newest frame as an example, `forget(label)` undoes it.

    Args:
        teacher: Of the bundle.
        newest: The newest result, or None before the first.
        say: Where sentences for people go.
    """

    def __init__(self, teacher: Teacher, newest: Callable[[], Any | None], say: Callable[[str], None]) -> None:
        self.teacher, self._newest, self._say = teacher, newest, say
        self._taken: Any | None = None

    def teach(self, label: str) -> None:
        """InputError when there is no frame yet or none since the last example, or the label cannot be taught."""
        result = self._newest()
        if result is None:
            raise InputError(f"teach {label}: no frame has been processed yet", "wait for the first picture")
        if result is self._taken:  # left out of its mean, an example would still meet itself there
            raise InputError(f"teach {label}: this frame has been taken already", "wait for the next one")
        self._say(self.teacher.learn(label, result.embedding).line())
        self._taken = result

    def forget(self, label: str) -> None:
        """InputError when it was not taught."""
        self._say(f"forgot {label}; {self.teacher.forget(label).line()}")
        self._taken = None

    def key(self, key: str, label: str = LABEL) -> None:
        """A key in the window; what is refused is said and the demo goes on."""
        try:
            if key == "t":
                self.teach(label)
            elif key == "u":
                self.forget(label)
        except InputError as error:
            self._say(str(error))

    def now(self) -> Taught:
        """What has been taught so far."""
        return self.teacher.now()

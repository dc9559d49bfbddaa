"""The data stage: labelled pictures in, split and decoded frames at network size out."""

from stages.data.prepare import run
from stages.data.sets import fingerprint

__all__ = ["fingerprint", "run"]

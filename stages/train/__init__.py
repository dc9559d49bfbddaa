"""The train stage: prepared frames in, the best checkpoint on val out."""

from stages.train.launch import run

__all__ = ["run"]

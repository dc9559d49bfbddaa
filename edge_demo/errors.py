"""The errors people see. Each owns its exit code; the message says what and where, the hint what to type next.

Error            1  failed while running
+-- InputError   2  wrong usage or input: the person can fix it
+-- GateError    3  a gate (accuracy, parity, speed) was not met
"""

from __future__ import annotations


class Error(Exception):
    """A failure that ends the program with one line and no traceback.

    Args:
        message: What is wrong and where, e.g. ``"train.epoch: unknown key"``.
        hint: What to do next, e.g. ``"did you mean 'epochs'?"``; may be empty.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}; {self.hint}" if self.hint else self.message


class InputError(Error):
    """Wrong usage or input: a file, option, key or bundle the person can fix."""

    exit_code = 2


class GateError(Error):
    """Everything ran, but a result missed a limit set in the config."""

    exit_code = 3


def missing_extra(what: str, library: str, extra: str) -> InputError:
    """The error for a command whose optional libraries are not installed."""
    return InputError(f"{what} needs {library}, which is not installed", f"type: pip install 'train-to-edge[{extra}]'")

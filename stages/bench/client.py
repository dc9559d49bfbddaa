"""The parent's end of one worker: start it, ask it, and turn whatever goes wrong with it into one `WorkerError`."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import stages

COMMAND = (sys.executable, "-m", "stages.bench.worker")
STOP_S = 5.0  # how long a worker may take to leave after its stdin was closed


class WorkerError(Exception):
    """A variant that cannot be measured, and why; `by_input` when the person can fix it."""

    def __init__(self, reason: str, hint: str = "", *, by_input: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.hint, self.by_input = reason, hint, by_input


class Worker:
    """One running worker. Use as a context manager: leaving it ends the process, whatever state it is in."""

    def __init__(self, threads: int, log: Path, command: Sequence[str] = COMMAND) -> None:
        """Start it; what it prints goes to the file `log`."""
        self._log = log
        with log.open("wb") as stderr:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env=environment(threads),
                encoding="utf-8",
                errors="replace",
            )
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        assert self._process.stdout is not None
        # A thread, because a pipe has no read with a timeout that works on every system.
        self._reader = threading.Thread(target=_read_lines, args=(self._process.stdout, self._lines), daemon=True)
        self._reader.start()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def ask(self, timeout_s: float, **request: Any) -> dict[str, Any]:
        """Send one request and wait for its answer.

        Raises:
            WorkerError: it answered with an error, ended, gave garbage, or did not answer in time (then it is killed).
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise WorkerError(self._ending()) from None
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            self._process.kill()
            raise WorkerError(f"no answer to {request['do']!r} within {timeout_s:.0f} s; killed") from None
        if line is None:
            raise WorkerError(self._ending())
        try:
            answer = json.loads(line)
        except json.JSONDecodeError:
            answer = None
        if not isinstance(answer, dict):
            self._process.kill()
            raise WorkerError(f"garbled answer to {request['do']!r}: {line.strip()[:80]!r}; killed")
        if "error" in answer:
            raise WorkerError(answer["message"], answer["hint"], by_input=answer["error"] == "InputError")
        return answer

    def close(self) -> None:
        """End the process: politely by closing its stdin, else by force."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        self._process.stdout.close()

    def _ending(self) -> str:
        """How it ended, and the last line it printed."""
        code = self._process.wait()
        how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            how += " (out of memory?)"
        said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return f"the worker {how}" + (f": {said[-1][:200]}" if said else "")


def environment(threads: int) -> dict[str, str]:
    """The parent's environment with thread pools and hashing fixed, and this very source tree first on the path."""
    root = str(Path(stages.__file__).parents[1])
    inherited = os.environ.get("PYTHONPATH")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([root, inherited] if inherited else [root]),
        "PYTHONSAFEPATH": "1",  # the working folder must not shadow numpy
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": "1",
    }


def _read_lines(stream: IO[str], lines: queue.SimpleQueue[str | None]) -> None:
    for line in stream:
        lines.put(line)
    lines.put(None)

"""The sources of a run, chosen from what was asked for: what each is, how fast, and what the network looks at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from edge_demo.errors import InputError
from edge_demo.manifest import Manifest
from edge_demo.source import Source, Timeouts
from edge_demo.sources import open_source
from edge_demo.synthetic import SIZE_WH, SyntheticSource
from edge_demo.tasks import Task

Policy = Literal["latest", "every"]
MOST_SOURCES = 16


@dataclass(frozen=True, slots=True)
class Inputs:
    """Checked sources, the policy for all of them, and the decode parameters that go with them."""

    sources: tuple[Source, ...]
    policy: Policy
    params: dict[str, Any]


def inputs(
    texts: Sequence[str],
    manifest: Manifest,
    task: Task,
    *,
    policy: str,
    roi: float | None,
    timeouts: Timeouts,
    verify_tls: bool,
    timecode: bool,
) -> Inputs:
    """What `--source` (once or more), `--policy` and `--roi` mean for this bundle; nothing is opened yet.

    Raises:
        InputError: a source that cannot be, too many, the same twice, cameras and files mixed without a policy.
    """
    if len(texts) > MOST_SOURCES:
        raise InputError(f"--source: {len(texts)} sources", f"at most {MOST_SOURCES} at once")
    if len(set(texts)) < len(texts):
        raise InputError("--source: the same source twice", "a camera can be opened only once")
    if not verify_tls and not any(text.lower().startswith(("https:", "rtsps:")) for text in texts):
        raise InputError("--insecure-tls has no effect: no source is https or rtsps", "leave it out")
    given = {} if roi is None else {"roi": roi}
    params = task.check_params({**manifest.decode, **given}, manifest.labels)
    sources = tuple(_one(text, task, params, policy, timeouts, verify_tls, timecode) for text in texts)
    if roi is None and "roi" in params and all(source.kind == "images" for source in sources):
        # A stored picture is framed already; only a camera needs a place to hold things.
        params = {**params, "roi": 1.0}
    return Inputs(sources, _policy(sources, policy), params)


def _one(
    text: str,
    task: Task,
    params: Mapping[str, Any],
    policy: str,
    timeouts: Timeouts,
    verify_tls: bool,
    timecode: bool,
) -> Source:
    if text == "synthetic":
        canvas = np.zeros((SIZE_WH[1], SIZE_WH[0], 3), dtype=np.uint8)
        return SyntheticSource(task.region(canvas, params), live=policy != "every", timecode=timecode)
    return open_source(text, timeouts, verify_tls=verify_tls)


def _policy(sources: Sequence[Source], asked: str) -> Policy:
    if asked != "auto":
        return "latest" if asked == "latest" else "every"
    live = {source.live for source in sources}
    if len(live) > 1:
        raise InputError("--source: cameras and files at once", "say --policy latest or --policy every")
    return "latest" if live == {True} else "every"
